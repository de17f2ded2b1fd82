"""The page and the terminal tables of the study of cold items."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from fedrec.experiment import Experiment
from fedrec.report.findings import number
from fedrec.report.study import Part, interval, seeded, write_measured
from simulations.studies.methods import facts

METRIC, IDS = "ndcg@10", "ids alone"
NEW, ALL, KNOWN = "new among new", "new among all", "known among all"
TABLES = {
    NEW: "New items, ranked among one another",
    ALL: "New items, ranked among the whole catalogue",
    KNOWN: "Known items: the last item of every user is held out, and ranked among the whole catalogue",
}
WORDS = (
    "An item that is new is in no row of training, and no negative either: a model would learn that nobody likes it. "
    "What is known of it is its title and its categories. Mean and standard deviation over the seeds, each of which "
    "makes other items new; intervals are of the paired differences to ids alone, at 95%."
)
NOTES = (
    "Ids alone and popularity know nothing of a new item. Where popularity is 0 it is so by the rule that a tie counts "
    "against the item: chance is what they are to be compared with.",
    "Words, or sentences, that are liked are no model of users: a ridge regression of how often items were met, by all "
    "silos together, on the same vectors. What is above it is personal.",
    "Rounds, learning rate and dropout were chosen on the validation of seed 100, the round of a run on its own.",
)


def write_page(path: Path, table: pd.DataFrame, seeds: int, used: Sequence[Experiment]) -> None:
    """Write the page; `table` has a row for each measure and arm."""
    title = "What is a text worth for an item that nobody has met?"
    same = facts({("", number): e for number, e in enumerate(used)})
    write_measured(path, title, WORDS, seeded(seeds), parts(table), NOTES, same)


def parts(table: pd.DataFrame) -> list[Part]:
    """Return the tables of the measures that there are."""
    found = [Part(words, "", None, cells(table, name)) for name, words in TABLES.items()]
    return [part for part in found if part.rows]


def cells(table: pd.DataFrame, measure: str) -> list[dict[str, str]]:
    """Return the rows of a measure as they are printed, by heading."""
    return [
        {
            "arm": str(row["arm"]),
            METRIC.upper(): number(row["mean"], 4),
            "sd": number(row["sd"], 4),
            "minus ids alone [95%]": "" if row["arm"] == IDS else interval(row, "minus_ids", "+.3f", ("low", "high")),
            "validation": "" if np.isnan(row["validation"]) else number(row["validation"], 4),
        }
        for row in table[table["measure"] == measure].to_dict("records")
    ]


def show(table: pd.DataFrame) -> None:
    """Print the tables."""
    for part in parts(table):
        print_part(part)


def print_part(part: Part) -> None:
    """Print a table."""
    shown = Table(title=part.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in part.rows[0]:
        shown.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    for row in part.rows:
        shown.add_row(*row.values())
    Console(markup=False, emoji=False).print(shown)
