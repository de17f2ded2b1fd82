"""Numbers of arms over seeds, and the tables that show them on the terminal."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from fedrec.errors import UserError
from fedrec.metrics import Paired, Values, paired
from fedrec.report.results import read_clients
from fedrec.report.study import Part
from simulations.closing import STYLE

Row = dict[str, Any]
NUMBER = "0123456789.+-\N{MINUS SIGN}\N{EN DASH}"  # what begins one
ENDS = ("", "_low", "_high")  # of the columns of a mean and its interval
LEAST = 12  # columns for words that must be broken


def records(table: pd.DataFrame) -> list[Row]:
    """Return the rows of a table by column."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def read_test(home: Path) -> pd.DataFrame:
    """Return the test values of the clients of a run, or of a baseline, in a folder."""
    rows = read_clients(home)
    return rows[rows["split"] == "test"]


def by_arm(results: pd.DataFrame, arm: str, value: str = "value") -> dict[str, Values]:
    """Return for each arm, in the order of the results, the mean of its rows of each seed [seeds], by seed."""
    means = results.groupby([arm, "seed"])[value].mean()
    return {name: means.loc[name].sort_index().to_numpy(np.float64) for name in dict.fromkeys(results[arm])}


def measures(results: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """Yield the task and the metric of every measure, in the order of the results, with its rows."""
    for (task, metric), rows in results.groupby(["task", "metric"], sort=False):
        yield (str(task), str(metric)), rows


def spread(values: Values) -> Row:
    """Return the mean and the standard deviation, which one seed does not have, by column."""
    return {"mean": float(values.mean()), "sd": float(values.std(ddof=1)) if len(values) > 1 else float("nan")}


def differences(values: Mapping[str, Values], arm: str, others: Mapping[str, str]) -> dict[str, Paired]:
    """Return how an arm differs from each of the others that is there, itself left out, by their columns' names."""
    there = {name: other for name, other in others.items() if other in values and other != arm}
    return {name: paired(values[arm], values[other]) for name, other in there.items()}


def ends(gaps: Mapping[str, Paired]) -> Row:
    """Return means with their intervals, by column."""
    values = {name: (p.mean, p.low, p.high) for name, p in gaps.items()}
    return {f"{name}{end}": x for name, p in values.items() for end, x in zip(ENDS, p, strict=True)}


def band(row: Row, name: str) -> list[float]:
    """Return the mean and the ends of its interval that `ends` has put into a row."""
    return [row[f"{name}{end}"] for end in ENDS]


def ranked(results: pd.DataFrame, *keys: str) -> pd.DataFrame:
    """Return the mean validation over seeds by some columns, the best first in all but the last."""
    means = results.drop_duplicates([*keys, "seed"]).groupby(list(keys), sort=False)["validation"]
    table = means.agg(validation="mean", seeds="size").reset_index()
    return table.sort_values([*keys[:-1], "validation"], ascending=[True] * (len(keys) - 1) + [False], kind="stable")


def points(grid: str) -> list[tuple[str, ...]]:
    """Return the flags of every point of a grid such as `lr=0.001,0.01;l2=0.1`; raises UserError."""
    axes = []
    for part in grid.split(";"):
        field, equals, values = part.partition("=")
        if not (field and equals and values):
            raise UserError(f"grid: must be FIELD=VALUE,... parts joined by ';', found {part!r}")
        axes.append([(f"--{field}", value) for value in values.split(",")])
    return [tuple(itertools.chain(*point)) for point in itertools.product(*axes)]


def print_all(heading: str, tables: Sequence[Part], notes: Sequence[str]) -> None:
    """Print what a study shows: what its numbers rest on, its tables, and what must not be missed."""
    console = Console(markup=False, emoji=False, highlight=False)
    if heading:
        console.print(heading)
    for part in tables:
        console.print(table_of(part, console.width))
    for note in notes:
        console.print(note)


def table_of(part: Part, width: int) -> Table:
    """Return a table for so many columns: words to the left, numbers to the right and, where that fits, in one line."""
    first, *_ = cells = {name: [row[name] for row in part.rows] for name in part.rows[0]}
    numbers = {name for name, texts in cells.items() if name != first and all(text[:1] in NUMBER for text in texts)}
    widths = {name: max(map(len, (name, *texts))) for name, texts in cells.items()}
    fits = sum(widths[name] if name in numbers else min(widths[name], LEAST) for name in cells) + len(cells) <= width
    padding = (0, 1, 0, 0) if sum(widths.values()) + 2 * len(cells) <= width else (0, 0, 0, 0)
    table = Table(title=part.title, padding=padding, **STYLE)
    for name in cells:
        number = name in numbers
        table.add_column(name, justify="right" if number else "left", no_wrap=fits and number, overflow="fold")
    for row in part.rows:
        table.add_row(*row.values())
    return table
