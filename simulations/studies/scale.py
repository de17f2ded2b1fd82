"""How time and memory grow with the number of clients: `python -m simulations.studies scale --clients 500,6040`.

Every client is one user of a synthetic market of 3,706 items, with 166 interactions: a million at 6,040 clients.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from fedrec.errors import UserError
from fedrec.experiment import Experiment
from fedrec.folders import writing
from fedrec.records import write_csv
from fedrec.report import plots
from fedrec.report.study import Part, write_measured
from simulations.check import check
from simulations.cli import arm, heeded
from simulations.studies.measure import Measured, measured
from simulations.studies.methods import facts
from simulations.studies.options import parser_of

USUAL = (
    "--partition one-user --market.users 6040 --market.items 3706 --market.impressions 166 --task click --model mf "
    "--dim 32 --optimiser sgd --lr 0.1 --l2 0 --batch-size 256 --local-epochs 1 --rounds 3"
)
WORDS = (
    "Seconds a round are training, messages and aggregation, the median of the rounds after the first; evaluation is "
    "apart. Interactions are the training rows of all clients. Memory is the sum of the peaks of all processes."
)


class Line(NamedTuple):
    """The straight line seconds = at + slope x interactions by least squares, and how well it fits.

    `squared` is R^2; `ratio` that of the seconds per interaction with most clients to those with fewest: 1 if the time
    is proportional to the interactions, below 1 if a part of it is fixed, above 1 if it grows faster than they do.
    """

    slope: float
    at: float
    squared: float
    ratio: float


def run(argv: Sequence[str]) -> None:
    """Run one experiment with more and more clients; every option of a run may be given too."""
    parser = parser_of("scale")
    parser.add_argument("--clients", default="500,1000,2000,4000,6040", help="numbers of clients, comma-separated")
    parser.add_argument("--repeats", type=int, default=1, help="times that every number runs")
    parser.add_argument("--out", type=Path, default=Path("runs/study-scale"), help="a new folder for the results")
    options, flags = parser.parse_known_args(argv)
    if options.repeats < 1:
        raise UserError(f"repeats: must be at least 1, found {options.repeats}")
    experiments = [experiment(text, flags) for text in options.clients.split(",")]
    with writing(options.out) as home:
        rows = [row(e, repeat) for repeat in range(options.repeats) for e in experiments]
        write_csv(home / "results.csv", rows)
        table = summary(pd.DataFrame(rows))
        line = straight([one["interactions"] for one in table], [one["seconds"] for one in table])
        write_csv(home / "summary.csv", table)
        write_page(home / "report.html", table, line, facts({(str(e.clients), 0): e for e in experiments}))
    show(table, line)
    print(f"report: {options.out / 'report.html'}")


def experiment(clients: str, flags: Sequence[str]) -> Experiment:
    """Return the experiment with so many clients; its engine is `batched` where there is one and none is given."""
    known = get_args(Experiment.model_fields["engine"].annotation)
    engine = ["--engine", "batched" if "batched" in known else "process"]
    e = arm([*USUAL.split(), *engine, *flags, "--clients", clients])
    heeded(flags, [e])
    e = e.model_copy(update={"eval_every": e.rounds})
    if e.rounds < 2:
        raise UserError(f"rounds: must be at least 2, since the first is not counted, found {e.rounds}")
    check(e)
    return e


def row(e: Experiment, repeat: int) -> dict[str, Any]:
    """Run an experiment in a process of its own; return what it took."""

    def read(home: Path, took: Measured) -> dict[str, Any]:
        rounds = pd.read_csv(home / "rounds.csv")
        seconds = float(rounds["seconds"][1:].median())
        sent = float((rounds["bytes_down"] + rounds["bytes_up"])[:-1].median())
        return {
            "clients": e.clients,
            "interactions": took.rows,
            "repeat": repeat,
            "seconds": seconds,
            "startup": took.startup,
            "megabytes": took.megabytes,
            "bytes": sent,
        }

    found: dict[str, Any] = measured(e.model_dump(mode="json"), False, read)
    return found


def summary(results: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a row for each number of clients, ascending: the medians over the repeats."""
    middle = results.drop(columns="repeat").groupby("clients", sort=True).median().reset_index()
    return [{str(name): value for name, value in one.items()} for one in middle.to_dict("records")]


def straight(interactions: Sequence[float], seconds: Sequence[float]) -> Line:
    """Return the straight line through (interactions, seconds), both ascending in the number of clients."""
    x, y = np.asarray(interactions, np.float64), np.asarray(seconds, np.float64)
    if len(x) < 2:
        return Line(float(y[0] / x[0]), 0.0, float("nan"), 1.0)
    slope, at = np.polyfit(x, y, 1)
    spread = float(((y - y.mean()) ** 2).sum())
    squared = 1 - float(((y - at - slope * x) ** 2).sum()) / spread if spread else float("nan")
    return Line(float(slope), float(at), squared, float((y[-1] / x[-1]) / (y[0] / x[0])))


def printed(one: dict[str, Any]) -> dict[str, str]:
    """Return a row of the summary as it is printed, by heading."""
    return {
        "clients": f"{one['clients']:,.0f}",
        "interactions": f"{one['interactions']:,.0f}",
        "seconds a round": f"{one['seconds']:.3g}",
        "µs an interaction": f"{1e6 * one['seconds'] / one['interactions']:.3g}",
        "start-up, s": f"{one['startup']:.1f}",
        "peak MB": f"{one['megabytes']:,.0f}",
        "MB sent a round": f"{one['bytes'] / 1e6:,.0f}",
    }


def told(line: Line) -> str:
    """Return the fit in words."""
    return (
        f"Seconds = {line.at:.3g} + {1e6 * line.slope:.3g} x million interactions, R² = {line.squared:.4f}; an "
        f"interaction takes {line.ratio:.2f} times as long with most clients as with fewest."
    )


def write_page(path: Path, table: Sequence[dict[str, Any]], line: Line, same: dict[str, str]) -> None:
    """Write the page of the study."""
    x, y = [one["interactions"] for one in table], [one["seconds"] for one in table]
    figure = plots.fit(x, y, line.slope, line.at, "scale", ("interactions", "seconds a round"))
    part = Part("Time against interactions", told(line), figure, [printed(one) for one in table])
    write_measured(path, "How far does it scale?", WORDS, f"engine {same.get('engine', 'process')}", [part], [], same)


def show(table: Sequence[dict[str, Any]], line: Line) -> None:
    """Print the summary and the fit."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    rows = [printed(one) for one in table]
    for heading in rows[0]:
        shown.add_column(heading, justify="right")
    for one in rows:
        shown.add_row(*one.values())
    console = Console(markup=False, emoji=False)
    console.print(shown)
    console.print(told(line), highlight=False)
