"""How time and memory grow with the number of clients: `python -m simulations.studies scale --clients 500,6040`.

Every client is one user of a synthetic market of 3,706 items, with 166 interactions: a million at 6,040 clients. With
`--data table` it is one of a made-up table of 20,000 items, with about 20: two million at 100,000 clients.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import linregress

from fedrec.errors import UserError, choose
from fedrec.experiment.config import Experiment
from fedrec.report import plots
from fedrec.report.study import Page, Part
from simulations.cli import arm
from simulations.studies.harness import Findings, Rows, Run, Study, facts
from simulations.studies.measure import Measured, measured
from simulations.studies.tables import Row, records

USUAL = (
    "--partition one-user --market.users 6040 --market.items 3706 --market.impressions 166 --task click --model mf "
    "--dim 32 --optimiser sgd --lr 0.1 --l2 0 --batch-size 256 --local-epochs 1 --rounds 3 --engine batched"
)
TABLE = (
    "--dataset simulations.studies.crowd:Crowd --partition one-user --model mf --share item_table,item_bias "
    "--rounds 3 --engine batched"
)
WORDS = (
    "Seconds a round are training, messages and aggregation, the median of the rounds after the first; validation is "
    "apart, and the whole run has the test and the record, too. Interactions are the training rows of all clients. "
    "Memory is the sum of the peaks of all processes."
)
OPTIONS = {
    "clients": ("500,1000,2000,4000,6040", "numbers of clients, comma-separated"),
    "data": ("market", "market, or table: 20,000 items, and about 20 rows of each client"),
    "repeats": (1, "times that every number runs"),
}


class Line(NamedTuple):
    """The straight line seconds = at + slope x interactions by least squares, and how well it fits.

    `squared` is R^2; `ratio` that of the seconds per interaction with most clients to those with fewest: 1 if the time
    is proportional to the interactions, below 1 if a part of it is fixed, above 1 if it grows faster than they do.
    """

    slope: float
    at: float
    squared: float
    ratio: float


def plan(options: Namespace) -> list[Run]:
    """Return a run for each repeat and number of clients."""
    choose("data", options.data, ("market", "table"))
    experiments = [experiment(text, options.flags, options.data == "table") for text in options.clients.split(",")]
    return [Run({"clients": e.clients, "repeat": repeat}, e) for repeat in range(options.repeats) for e in experiments]


def experiment(clients: str, flags: Sequence[str], table: bool = False) -> Experiment:
    """Return the experiment with so many clients, of the market or of a made-up table."""
    usual = [*TABLE.split(), "--dataset.users", clients] if table else USUAL.split()
    e = arm([*usual, *flags, "--clients", clients])
    if e.rounds < 2:
        raise UserError(f"rounds: must be at least 2, since the first is not counted, found {e.rounds}")
    return e.model_copy(update={"eval_every": e.rounds})


def measure(run: Run, home: Path) -> Rows:
    """Run an experiment in a process of its own; return what it took."""

    def read(home: Path, took: Measured) -> Row:
        rounds = pd.read_csv(home / "rounds.csv")
        return {
            "clients": run.labels["clients"],
            "interactions": took.rows,
            "repeat": run.labels["repeat"],
            "seconds": float(rounds["seconds"][1:].median()),
            "startup": took.startup,
            "megabytes": took.megabytes,
            "evaluation": float(rounds["evaluate_seconds"].iloc[-1]),
            "whole": took.seconds,
            "bytes": float((rounds["bytes_down"] + rounds["bytes_up"])[:-1].median()),
        }

    return [measured(run.experiment.model_dump(mode="json"), False, read)]


def findings(results: pd.DataFrame, runs: Sequence[Run], options: Namespace) -> Findings:
    """Return the medians over the repeats for each number of clients, ascending, and the line through them."""
    rows = records(results.drop(columns="repeat").groupby("clients", sort=True).median().reset_index())
    x, y = [row["interactions"] for row in rows], [row["seconds"] for row in rows]
    line, same = straight(x, y), facts(runs)
    figure = plots.fit(x, y, line.slope, line.at, "scale", ("interactions", "seconds a round"))
    part = Part("Time against interactions", [texts(row) for row in rows], in_words(line), figure)
    page = Page("How far does it scale?", WORDS, f"engine {same.get('engine', 'process')}", [part], same)
    return Findings(rows, page, notes=[in_words(line)])


def straight(interactions: Sequence[float], seconds: Sequence[float]) -> Line:
    """Return the straight line through (interactions, seconds), both ascending in the number of clients."""
    x, y = np.asarray(interactions, np.float64), np.asarray(seconds, np.float64)
    if len(x) < 2:
        return Line(float(y[0] / x[0]), 0.0, float("nan"), 1.0)
    fit = linregress(x, y)
    return Line(fit.slope, fit.intercept, fit.rvalue**2, float((y[-1] / x[-1]) / (y[0] / x[0])))


def texts(row: Row) -> dict[str, str]:
    """Return a row as it is printed, by heading."""
    return {
        "clients": f"{row['clients']:,.0f}",
        "interactions": f"{row['interactions']:,.0f}",
        "seconds a round": f"{row['seconds']:.3g}",
        "µs an interaction": f"{1e6 * row['seconds'] / row['interactions']:.3g}",
        "start-up, s": f"{row['startup']:.1f}",
        "validation, s": f"{row['evaluation']:.3g}",
        "whole run, s": f"{row['whole']:.1f}",
        "peak MB": f"{row['megabytes']:,.0f}",
        "MB sent a round": f"{row['bytes'] / 1e6:,.0f}",
    }


def in_words(line: Line) -> str:
    """Return the fit in words."""
    return (
        f"Seconds = {line.at:.3g} + {1e6 * line.slope:.3g} x million interactions, R² = {line.squared:.4f}; an "
        f"interaction takes {line.ratio:.2f} times as long with most clients as with fewest."
    )


STUDY = Study("scale", OPTIONS, plan, measure, findings, workers=0)
