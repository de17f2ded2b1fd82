"""Figures of what is paid for privacy: numbers against the budget epsilon, with their bands."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes

from fedrec.report.plots import ALONE, BAD, FLAT, GOOD, INK, MUTED, OURS, STYLE, number, subplots, svg

COLOURS = (OURS, ALONE, GOOD, BAD, FLAT, INK)
MARKS = "osD^vPX*"


class Series(NamedTuple):
    """A line over the budgets, with a band where `low` and `high` differ from it; NaN where there is no value."""

    label: str
    value: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


class Panel(NamedTuple):
    """Axes of their own: lines over the budgets, and levels that depend on no budget, by label."""

    title: str
    label: str
    series: Sequence[Series]
    levels: Sequence[tuple[str, float]] = ()


def tradeoff(panels: Sequence[Panel], budgets: Sequence[str], name: str, alt: str, height: float = 3.2) -> Markup:
    """Return panels side by side over the same budgets, which are evenly spaced in their order."""
    with mpl.rc_context(STYLE):
        figure, every = subplots(1, len(panels), height)
        for axes, panel in zip(every.flat, panels, strict=True):
            _panel(axes, panel, budgets)
        return svg(figure, name, alt)


def _panel(axes: Axes, panel: Panel, budgets: Sequence[str]) -> None:
    x = range(len(budgets))
    for place, series in enumerate(panel.series):
        colour, mark = COLOURS[place % len(COLOURS)], MARKS[place % len(MARKS)]
        axes.plot(x, series.value, color=colour, marker=mark, markersize=4.5, linewidth=1.8, label=series.label)
        if series.low:
            axes.fill_between(x, series.low, series.high, color=colour, alpha=0.14, linewidth=0)
    for label, level in panel.levels:
        axes.axhline(level, color=MUTED, linewidth=1, linestyle="--")
        axes.annotate(label, (0, level), color=MUTED, fontsize=8, xytext=(2, 3), textcoords="offset points")
    axes.set_title(panel.title)
    axes.set_xticks(x, ["\N{INFINITY}" if one == "inf" else one for one in budgets])
    axes.set_xlabel("epsilon")
    axes.set_ylabel(panel.label)
    axes.yaxis.set_major_formatter(number)
    if len(panel.series) > 1:
        axes.legend(loc="best", labelcolor=MUTED, handlelength=1.4, fontsize=8)
