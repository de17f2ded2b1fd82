"""Rounds that wait against rounds of the first answers: `python -m simulations.studies async --buffers 5,10`.

All arms of a seed have the same data and the same clients of the same speeds: what they differ in is for whom the
server waits, and that a buffer, which takes less time, may have more trainings. Time is that of the simulated clock;
each arm validates once for as many trainings as there are clients.
"""

import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fedrec.errors import UserError
from fedrec.experiment.config import Experiment
from fedrec.metrics import paired
from fedrec.report import plots
from fedrec.report.findings import DASH, number
from fedrec.report.study import Page, Part, interval, seeded
from simulations.check import client_count
from simulations.cli import arm
from simulations.engines import launch
from simulations.studies.harness import Findings, Rows, Run, Study, facts
from simulations.studies.options import SEEDS
from simulations.studies.tables import Row, read_test, records, spread

SHARE = 0.95  # of what the rounds of all reach, in the mean of the clients' validation
USUAL = ("--engine", "inline", "--patience", "0", "--asynchrony.spread", "1")
WORDS = (
    "Seconds are simulated: clients' speeds are lognormal, and a training of the median client takes one. “Waits” is "
    "a round that ends when the slowest of all clients has answered, “waits for x%” one of so many that are drawn, "
    f"“first K” a buffer of K answers (FedBuff), discounted by their age. The time is that to {SHARE:.0%} of the best "
    "validation of “waits”; its ratio to the time of “waits” is the geometric mean over seeds."
)
OPTIONS = {
    "buffers": ("5,10", "comma-separated: answers that make a round"),
    "drawn": ("0.25", "comma-separated: fractions of the clients that rounds which wait are drawn of; all is added"),
    "longer": (2.0, "trainings of a buffer, as a multiple of those of the rounds of all"),
    "seeds": (5, SEEDS),
}


def plan(options: Namespace) -> list[Run]:
    """Return a run for each seed and way to wait; raises UserError for a number that is none."""
    runs = []
    if not options.longer > 0:
        raise UserError(f"longer: must be above 0, found {options.longer:g}")
    for seed in range(options.seeds):
        for name, flags in arms(options).items():
            e = arm([*USUAL, *options.flags, *flags, "--seed", str(seed)])
            runs.append(
                Run({"arm": name, "seed": seed}, as_long(e, options.longer), folder=f"{name.replace(' ', '-')}-{seed}")
            )
    return runs


def arms(options: Namespace) -> dict[str, list[str]]:
    """Return the flags of every way to wait, the rounds of all first."""
    found = {"waits": list[str]()}
    for text in filter(None, options.drawn.split(",")):
        found[f"waits for {fraction(text):.0%}"] = ["--participation", text]
    for text in filter(None, options.buffers.split(",")):
        found[f"first {text}"] = ["--asynchrony.buffer", text]
    return found


def fraction(text: str) -> float:
    """Return a fraction as it is written; raises UserError if it is none."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise UserError(f"drawn: must be fractions between 0 and 1, joined by commas, found {text!r}")
    return value


def as_long(e: Experiment, longer: float) -> Experiment:
    """Return an experiment with the trainings and validations of the rounds of all, with a buffer `longer` times."""
    clients = client_count(e)
    rounds = e.rounds * longer if e.asynchrony.buffer else e.rounds
    each = e.asynchrony.buffer or max(1, round(e.participation * clients))
    return e.model_copy(
        update={"rounds": max(1, int(rounds * clients / each)), "eval_every": max(1, e.eval_every * clients // each)}
    )


def measure(run: Run, home: Path) -> Rows:
    """Return the rounds of a run that were validated, and what its test came to, with its labels."""
    launch(run.experiment, home)
    rounds, test = pd.read_csv(home / "rounds.csv"), read_test(home)
    kept = rounds.reindex(columns=["round", "clock", "clients", "staleness", "validation"])
    kept["staleness"] = kept["staleness"].expanding().mean()
    reached = float(test[test["metric"] == run.experiment.metrics[0]]["value"].mean())
    return records(kept[kept["validation"].notna()].assign(test=reached, **run.labels))


def findings(results: pd.DataFrame, runs: Sequence[Run], options: Namespace) -> Findings:
    """Return how long every way takes, and the page that compares them."""
    rows = summary(results)
    fast = {str(row["arm"]): 1 / row["ratio"] for row in rows if math.isfinite(row["ratio"])}
    figure = plots.bars([*fast], [*fast.values()], "async", "times as fast as waiting for all", "times as fast")
    metric = runs[0].experiment.metrics[0]
    page = Page(
        "What does it cost to wait for the slowest?",
        WORDS,
        seeded(options.seeds, "95% intervals over seeds"),
        [Part(f"Time to {SHARE:.0%}", [texts(row, metric) for row in rows], figure=figure)],
        facts(runs),
    )
    return Findings(rows, page)


def summary(results: pd.DataFrame) -> list[Row]:
    """Return a row for each way to wait: means over seeds, and the ratio of its time to that of the rounds of all."""
    goal = SHARE * results[results["arm"] == "waits"].groupby("seed")["validation"].max()
    times = {name: hits(rows, goal) for name, rows in results.groupby("arm", sort=False)}
    found: list[Row] = []
    for name, rows in results.groupby("arm", sort=False):
        last, best = rows.groupby("seed").last(), rows.groupby("seed")["validation"].max()
        ratio = paired(np.log(times[name]), np.log(times["waits"]))
        found.append(
            {
                "arm": name,
                "seconds": float(last["clock"].mean()),
                "validation": float(best.mean()),
                **spread(last["test"].to_numpy(np.float64)),
                "staleness": float(last["staleness"].mean()),
                "time": float(np.nanmean(times[name])) if np.isfinite(times[name]).any() else math.nan,
                "reached": int(np.isfinite(times[name]).sum()),
                "seeds": len(last),
                "ratio": math.exp(ratio.mean),
                "ratio_low": math.exp(ratio.low),
                "ratio_high": math.exp(ratio.high),
            }
        )
    return found


def hits(rows: pd.DataFrame, goal: pd.Series) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the seconds after which each seed's validation was first at its goal [seeds]; NaN if it never was."""
    there = rows[rows["validation"] >= rows["seed"].map(goal)]
    return there.groupby("seed")["clock"].min().reindex(goal.index).to_numpy(np.float64)


def texts(row: Row, metric: str) -> dict[str, str]:
    """Return a row as it is printed, by heading."""
    return {
        "Rounds": row["arm"],
        f"Test {metric}": number(row["mean"], 4),
        "Validation": number(row["validation"], 4),
        "Staleness": DASH if math.isnan(row["staleness"]) else f"{row['staleness']:.1f}",
        "All seconds": f"{row['seconds']:.0f}",
        f"To {SHARE:.0%}": DASH if math.isnan(row["time"]) else f"{row['time']:.1f}",
        "Ratio": interval(row, "ratio", ".2f"),
        "Seeds": f"{row['reached']} of {row['seeds']}",
    }


STUDY = Study("async", OPTIONS, plan, measure, findings)
