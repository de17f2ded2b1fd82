"""The page and the terminal table of the ratings study."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from fedrec.experiment import Experiment
from fedrec.report.findings import number
from fedrec.report.study import Part, write_measured
from fedrec.report.tradeoff import Panel, Series, tradeoff
from simulations.studies.methods import facts

NONE = "none"
WORDS = (
    "A bias for each item is learned together under user-level differential privacy; a user's own mean stays with it. "
    "Protected is what the server sends out, where every user is a client of a server that it trusts with its update, "
    "or what a silo sends, where silos add the noise. RMSE is over all test ratings together, of scores that are not "
    "clipped: mean and standard deviation over the seeds, each of which divides the ratings anew."
)
CHOSEN = (
    "Rounds and step were chosen on synthetic markets of the size of MovieLens 100K. At epsilon inf updates are "
    "clipped, but there is no noise and no promise. The numbers of this page were measured on exact test ratings and "
    "are no part of the promise."
)


def write_page(path: Path, table: pd.DataFrame, words: Mapping[str, str], used: Mapping[str, Experiment]) -> None:
    """Write the page; `table` has a row for each line and budget, `words` describes the lines."""
    private = table[table["epsilon"] != NONE]
    budgets = list(dict.fromkeys(private["epsilon"]))
    series = [lines_of(private[private["line"] == name], name) for name in dict.fromkeys(private["line"])]
    levels = [(str(row["line"]), float(row["mean"])) for _, row in table[table["epsilon"] == NONE].iterrows()]
    figure = None
    if series:
        panel = Panel("RMSE of ratings, lower is better", "RMSE", series, levels)
        figure = tradeoff([panel], budgets, "ratings", f"RMSE against epsilon: {summary(table)}", 3.6)
    parts = [Part("Error against the budget", ". ".join(words.values()) + ".", figure, cells(table))]
    seeds = int(table["seeds"].max())
    same = facts({(name, 0): e for name, e in used.items()})
    write_measured(
        path,
        "How well are ratings predicted under privacy?",
        WORDS,
        f"{seeds} seeds" if seeds > 1 else "one seed: no standard deviation",
        parts,
        [CHOSEN],
        same,
    )


def lines_of(rows: pd.DataFrame, name: str) -> Series:
    """Return a line over the budgets with a band of one standard deviation."""
    mean, sd = rows["mean"], rows["sd"].fillna(0.0)
    return Series(name, mean.tolist(), (mean - sd).tolist(), (mean + sd).tolist())


def summary(table: pd.DataFrame) -> str:
    """Return the means in words, for who does not see the figure."""
    return ", ".join(f"{row['line']} at {row['epsilon']} {row['mean']:.3f}" for _, row in table.iterrows())


def cells(table: pd.DataFrame) -> list[dict[str, str]]:
    """Return the rows as they are printed, by heading."""
    return [
        {
            "setting": str(row["line"]),
            "epsilon": str(row["epsilon"]),
            "RMSE": number(row["mean"], 4),
            "sd": number(row["sd"], 4),
            "clipped to 1-5": number(row["clipped"], 4),
            "rounds": str(row["rounds"]),
            "step": f"{row['step']:g}",
        }
        for _, row in table.iterrows()
    ]


def show(table: pd.DataFrame) -> None:
    """Print the table."""
    rows = cells(table)
    shown = Table(title="RMSE of ratings", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in rows[0]:
        shown.add_column(heading, justify="left" if heading == "setting" else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row.values())
    Console(markup=False, emoji=False).print(shown)
