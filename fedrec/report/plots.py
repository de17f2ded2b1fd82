"""Figures as inline SVG that takes its colours from the page: of runs, and of what is paid for privacy."""

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

# Drawn in these colours, which become variables of the style sheet, so that light and dark share one figure.
INK, MUTED, GRID, OURS, ALONE, GOOD, BAD, FLAT = (f"#0{i}0{i}0{i}" for i in range(1, 9))
VARIABLES = dict(zip((INK, MUTED, GRID, OURS, ALONE, GOOD, BAD, FLAT),
                     ("ink", "muted", "line", "ours", "alone", "good", "bad", "flat"), strict=True))  # fmt: skip
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "fedrec", "text.parse_math": False, "font.size": 10, "axes.titlesize": 10,
    "axes.edgecolor": GRID, "axes.labelcolor": MUTED, "text.color": INK, "xtick.color": GRID, "ytick.color": GRID,
    "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED, "grid.color": GRID, "axes.grid": True, "grid.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.titlelocation": "left",
    "legend.frameon": False, "axes.titleweight": "bold", "axes.formatter.useoffset": False, "axes.unicode_minus": True,
}  # fmt: skip
COLOURS = {"helped": GOOD, "hurt": BAD}  # what has no interval has no colour either
WIDTH, NARROW = 8.4, 5.6  # inches; what is narrow can be read on a telephone without moving it to and fro


def number(x: float, _: object = None) -> str:
    """Return a tick label without a leading zero."""
    return f"{x:.4g}".replace("0.", ".", 1).replace("-", "\N{MINUS SIGN}") if 0 < abs(x) < 1 else f"{x:g}"


def svg(figure: Figure, name: str, alt: str) -> Markup:
    """Return the figure as an `<svg>` element with a text alternative; the same figure gives the same bytes."""
    FigureCanvasSVG(figure)
    out = io.StringIO()
    with warnings.catch_warnings():
        # The reader's fonts draw the text; it does not matter which scripts the measuring font has.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    # Identifiers are unique in the page only with the figure's name.
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"'?DejaVu Sans'?[^;\"]*", "inherit", text)
    narrow = Markup('class="narrow" ') if figure.get_figwidth() < WIDTH else ""
    head = Markup('<svg role="img" {}aria-label="{}" ').format(narrow, " ".join(alt.split()))
    return head + Markup(re.sub(r'^<svg( width="[^"]*")?( height="[^"]*")?', "", text))


def subplots(rows: int, columns: int, height: float, width: float = WIDTH) -> tuple[Figure, NDArray[Any]]:
    """Return a figure of a page's width, and its axes [rows, columns]."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _ticks(axes: Axes, x: str = "", y: str = "", rounds: bool = False) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.yaxis.set_major_formatter(FuncFormatter(number))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    if rounds:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(number))


def _named(axes: Axes, names: Sequence[str] | pd.Series, label: str) -> None:
    axes.set_yticks(range(len(names)), [shorten(name) for name in names])
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(FuncFormatter(number))
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(label)


def forest(rows: pd.DataFrame, name: str, label: str, alt: str) -> Markup:
    """Return each client's difference against local with its interval; `rows` as in `comparison`."""
    with mpl.rc_context(STYLE):
        figure, ((axes,),) = subplots(1, 1, 0.75 + 0.34 * len(rows), NARROW)
        for place, row in enumerate(rows.itertuples()):
            colour, ends = COLOURS.get(str(row.verdict), FLAT), [row.local_low, row.local_high]
            axes.plot(ends, [place, place], color=colour, linewidth=3, solid_capstyle="round")
            axes.plot([row.local_difference], [place], "o", color=colour, markersize=7)
        axes.axvline(0, color=INK, linewidth=1)
        _named(axes, rows["client"], label)
        return svg(figure, name, alt)


def distribution(differences: pd.Series, better: int, name: str, label: str, alt: str) -> Markup:
    """Return the histogram of the clients' differences against local; `better` is +1 or -1, the sign that is good."""
    values = np.asarray(differences, np.float64)
    values = values[np.isfinite(values)]
    with mpl.rc_context(STYLE):
        figure, ((axes,),) = subplots(1, 1, 2.7)
        reach = max(float(np.abs(values).max(initial=0)), 1e-9)
        # An odd number of bins puts the clients without any difference into a bin of their own.
        counts, edges = np.histogram(values, bins=41, range=(-reach, reach))
        middle = (edges[1:] + edges[:-1]) / 2
        side = np.where(np.arange(41) == 20, 0, np.sign(middle) * better)
        colours = [{1: GOOD, -1: BAD}.get(int(s), FLAT) for s in side]
        axes.bar(middle, counts, width=(edges[1] - edges[0]) * 0.92, color=colours)
        _ticks(axes, label, "clients")
        axes.grid(axis="x", visible=False)
        return svg(figure, name, alt)


def shorten(name: str, most: int = 26) -> str:
    """Return the name, cut where a figure has no room for more."""
    return name if len(name) <= most else name[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def curves(
    ours: pd.DataFrame, local: pd.DataFrame, selected: int | None, names: Sequence[str], name: str, label: str, alt: str
) -> Markup:
    """Return one panel a client: validation by round, with the local baseline; tables of client, round, value."""
    with mpl.rc_context(STYLE):
        columns = 2 if len(names) == 4 else min(3, len(names))
        rows = -(-len(names) // columns)
        figure, panels = subplots(rows, columns, 0.5 + 1.75 * rows)
        for axes, client in zip(panels.flat, names, strict=False):
            for table, colour, who in ((local, ALONE, "alone"), (ours, OURS, "together")):
                line = table[table["client"] == client].set_index("round")["value"]
                axes.plot(line, color=colour, linewidth=1.8, label=who, marker="o", markersize=2)
            chosen = ours[(ours["client"] == client) & (ours["round"] == selected)]
            axes.plot(chosen["round"], chosen["value"], "o", color=OURS, markersize=8, fillstyle="none")
            axes.set_title(shorten(client))
            _ticks(axes, rounds=True)
        for axes in panels.flat[len(names) :]:
            axes.remove()
        figure.suptitle(label, x=0.005, ha="left", color=MUTED, fontsize=10)
        if len(local):
            panels[0, 0].legend(loc="best", labelcolor=MUTED, handlelength=1.2, fontsize=9)
        return svg(figure, name, alt)


def bands(ours: pd.DataFrame, selected: int | None, name: str, label: str, alt: str) -> Markup:
    """Return mean validation over clients by round, with the middle 80% of the clients; client, round, value."""
    grouped = ours.groupby("round")["value"]
    mean, low, high = grouped.mean(), grouped.quantile(0.1), grouped.quantile(0.9)
    with mpl.rc_context(STYLE):
        figure, ((axes,),) = subplots(1, 1, 2.7)
        axes.fill_between(mean.index, low, high, color=OURS, alpha=0.18, linewidth=0)
        axes.plot(mean.index, mean, color=OURS, linewidth=2)
        if selected is not None and selected in mean.index:
            axes.plot([selected], [mean[selected]], "o", color=OURS, markersize=8, fillstyle="none")
        _ticks(axes, "round", label, rounds=True)
        return svg(figure, name, alt)


def line(x: pd.Series, y: pd.Series, selected: int | None, name: str, label: str, alt: str) -> Markup:
    """Return one value by round."""
    with mpl.rc_context(STYLE):
        figure, ((axes,),) = subplots(1, 1, 2.2)
        axes.plot(x, y, color=OURS, linewidth=2, marker="o", markersize=2.5)
        axes.plot(x[x == selected], y[x == selected], "o", color=OURS, markersize=8, fillstyle="none")
        _ticks(axes, "round", label, rounds=True)
        return svg(figure, name, alt)


def stacked(
    x: pd.Series, rows: Sequence[tuple[str, pd.Series, pd.Series]], selected: int | None, name: str, alt: str
) -> Markup:
    """Return a row of two panels by round for each (title, residual, multiplier)."""
    with mpl.rc_context(STYLE):
        figure, panels = subplots(len(rows), 2, 0.3 + 1.75 * len(rows))
        for line, (title, *values) in zip(panels, rows, strict=True):
            for axes, y, label in zip(line, values, ("residual", "multiplier"), strict=True):
                y = y.dropna()
                at = x[y.index]
                if not y.any():  # a line along the axis
                    axes.text(0.5, 0.5, f"{label} 0 in every round", ha="center", color=MUTED, transform=axes.transAxes)
                    axes.axis("off")
                    continue
                axes.plot(at, y, color=OURS, linewidth=1.8, marker="o", markersize=2, clip_on=False)
                chosen = at == selected
                circle = {"color": OURS, "markersize": 8, "fillstyle": "none", "clip_on": False}
                axes.plot(at[chosen], y[chosen], "o", **circle)
                axes.set_ylim(0, 1.1 * float(y.max()))
                _ticks(axes, y=label, rounds=True)
            line[0].set_title(shorten(title, 52))
        for axes in panels[-1]:
            axes.set_xlabel("round")
        return svg(figure, name, alt)


def traffic(table: pd.DataFrame, unit: str, name: str, alt: str) -> Markup:
    """Return the amounts that went up and down by round; `table` has `round`, `up`, `down` in `unit`."""
    with mpl.rc_context(STYLE):
        figure, ((axes,),) = subplots(1, 1, 2.2)
        for column, shift, colour in (("up", -0.2, OURS), ("down", 0.2, ALONE)):
            axes.bar(table["round"] + shift, table[column], width=0.38, color=colour, label=column)
        axes.set_ylim(0, max(table[["up", "down"]].max().max() * 1.25, 1e-9))
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper right", ncols=2, labelcolor=MUTED)
        _ticks(axes, "round", f"{unit} a round", rounds=True)
        return svg(figure, name, alt)


def bars(names: Sequence[str], values: Sequence[float], name: str, label: str, alt: str) -> Markup:
    """Return a bar for each name on a logarithmic scale, with its value; a line stands at 1."""
    with mpl.rc_context(STYLE):
        figure, ((axes,),) = subplots(1, 1, 0.75 + 0.34 * len(names))
        axes.barh(range(len(names)), [value - 1 for value in values], left=1, height=0.62, color=OURS)
        for place, value in enumerate(values):
            text = f" {value:.3g}\N{MULTIPLICATION SIGN} "
            axes.text(value, place, text, va="center", ha="right" if value < 1 else "left", color=INK)
        axes.set(xscale="log", xlim=(min(*values, 1.0) / 2.2, max(*values, 1.0) * 2.2))
        axes.axvline(1, color=INK, linewidth=1)
        _named(axes, names, label)
        return svg(figure, name, alt)


def fit(x: Sequence[float], y: Sequence[float], slope: float, at: float, name: str, labels: tuple[str, str]) -> Markup:
    """Return points (x, y) and the straight line y = at + slope x; `labels` are those of the axes."""
    with mpl.rc_context(STYLE):
        figure, ((axes,),) = subplots(1, 1, 3.0)
        end = max(x) * 1.05
        axes.plot([0, end], [at, at + slope * end], color=ALONE, linewidth=1.5, label="straight line")
        axes.plot(x, y, "o", color=OURS, markersize=6, label="measured")
        axes.set(xlim=(0, end), ylim=(0, max(y) * 1.15))
        axes.legend(loc="upper left", labelcolor=MUTED)
        _ticks(axes, *labels)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        return svg(figure, name, f"{labels[1]} against {labels[0]}, with a straight line")


LINES = (OURS, ALONE, GOOD, BAD, FLAT, INK)
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
        figure, grid = subplots(1, len(panels), height)
        for axes, panel in zip(grid.flat, panels, strict=True):
            _panel(axes, panel, budgets)
        return svg(figure, name, alt)


def _panel(axes: Axes, panel: Panel, budgets: Sequence[str]) -> None:
    x = range(len(budgets))
    for place, series in enumerate(panel.series):
        colour, mark = LINES[place % len(LINES)], MARKS[place % len(MARKS)]
        axes.plot(x, series.value, color=colour, marker=mark, markersize=4.5, linewidth=1.8, label=series.label)
        if series.low:
            axes.fill_between(x, series.low, series.high, color=colour, alpha=0.14, linewidth=0)
    for label, level in panel.levels:
        axes.axhline(level, color=MUTED, linewidth=1, linestyle="--")
        axes.annotate(label, (0, level), color=MUTED, fontsize=8, xytext=(2, 3), textcoords="offset points")
    axes.set(title=panel.title, xlabel="epsilon", ylabel=panel.label)
    axes.set_xticks(x, ["\N{INFINITY}" if eps == "inf" else eps for eps in budgets])
    axes.yaxis.set_major_formatter(number)
    if len(panel.series) > 1:
        axes.legend(loc="best", labelcolor=MUTED, handlelength=1.4, fontsize=8)
