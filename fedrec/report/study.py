"""The pages of studies: what was measured, in tables and figures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from markupsafe import Markup

from fedrec.report import plots
from fedrec.report.findings import DASH, MINUS
from fedrec.report.template import render


def seeded(seeds: int, words: str = "95% intervals over seeds") -> str:
    """Return what the numbers of a study rest on: `5 paired seeds; ` and `words`, or that one seed has no interval."""
    return f"{seeds} paired seeds; {words}" if seeds > 1 else "one seed: no interval"


def interval(row: Mapping[Any, Any], name: str, form: str = "+.4f", ends: tuple[str, str] | None = None) -> str:
    """Return `+.0100 [+.0050, +.0150]` of a row's columns, without brackets where there is no interval.

    The columns are `name`, and `name_low` and `name_high` or `ends`; a dash stands for what was not measured.
    """
    low, high = ends or (f"{name}_low", f"{name}_high")
    value, *band = (float(row[column]) for column in (name, low, high))
    if not math.isfinite(value):
        return DASH
    text = format(value, form) if any(map(math.isnan, band)) else f"{value:{form}} [{band[0]:{form}}, {band[1]:{form}}]"
    return text.replace("-", MINUS)


def forest(gains: Sequence[tuple[object, ...]], name: str, words: str) -> Markup:
    """Return the figure of arms' differences: of each its name, the difference, its interval and the verdict."""
    columns = ["client", "local_difference", "local_low", "local_high", "verdict"]
    return plots.forest(pd.DataFrame(gains, columns=columns), name, words, words)


class Part(NamedTuple):
    """A section of a page of measurements: its rows have the same columns, by heading, as they are printed."""

    title: str
    rows: Sequence[Mapping[str, str]]
    words: str = ""
    figure: Markup | None = None


class Page(NamedTuple):
    """A page of what was measured; `notes` are what a reader must not miss, `about` is the heading of the facts."""

    title: str
    words: str
    kicker: str
    parts: Sequence[Part]
    facts: Mapping[str, str]
    notes: Sequence[str] = ()
    about: str = "What was run"

    def write(self, path: Path) -> None:
        """Write the page."""
        path.write_text(render("study", **self._asdict()), encoding="utf-8")
