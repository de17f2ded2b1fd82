"""How many triples a second one core trains: `python -m simulations.studies triples --runners pooled,stacked,implicit`.

A triple is a user, one of its positives and one sampled item, as implicit counts them: a row with m sampled items is m.
"""

import time
from argparse import Namespace
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix

from fedrec.errors import UserError, choose, one_line
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data
from fedrec.report.study import Page, Part
from simulations.cli import arm
from simulations.studies.harness import Findings, Rows, Run, Study, facts
from simulations.studies.tables import records

IMPLICIT = "implicit"
LEAST = 3  # rounds
RUNNERS = {  # their options, and what they are
    "pooled": ("--method pooled --engine inline", "one model on all clients' rows"),
    "silos": ("--engine inline", "every client's own model, one after the other"),
    "stacked": ("--engine batched", "every client's own model, all in one program"),
    IMPLICIT: ("--method pooled --engine inline", "the package implicit on all clients' rows, one thread"),
}
LOSSES = {"rank": "BPR", "rank-bce": "cross entropy"}
OPTIONS = {
    "runners": ("pooled,silos,stacked", f"comma-separated: {', '.join(RUNNERS)} (which must be installed)"),
    "losses": ("rank,rank-bce", "comma-separated: rank, rank-bce"),
    "repeats": (3, "times that every runner runs, one after the other"),
}
WORDS = (
    "Seconds are those that a core worked for a round's training with its messages and sums, median over the rounds "
    "between the first and the last. Ratios are within a repeat. implicit makes plain stochastic gradient steps, has a "
    "sampled item for each positive, and no clients."
)


def plan(options: Namespace) -> list[Run]:
    """Return the runs of every repeat; raises UserError for one that cannot be."""
    runners = [choose("runners", name, RUNNERS) for name in options.runners.split(",")]
    losses = [choose("losses", name, LOSSES) for name in options.losses.split(",")]
    if IMPLICIT in runners:
        try:
            import_module(f"{IMPLICIT}.bpr")
        except ImportError as error:
            raise UserError(f"runners: {IMPLICIT} needs the package {IMPLICIT}, found: {one_line(error)}") from None
    usual = ["--model", "mf", "--rounds", "4", *options.flags]
    last = arm(usual).rounds
    if last < LEAST:
        raise UserError(f"rounds: must be at least {LEAST}, of which the first and the last do not count, found {last}")
    runs = []
    for repeat in range(options.repeats):
        for loss in losses:
            for name in runners:
                if name == IMPLICIT and loss != "rank":
                    continue
                flags = [*usual, "--eval-every", str(last), "--task", loss, *RUNNERS[name][0].split()]
                runs.append(Run({"runner": name, "loss": loss, "repeat": repeat}, arm(flags)))
    return runs


def measure(run: Run, home: Path) -> Rows:
    """Return how many triples a second of a core's work a run trains."""
    return [{**run.labels, "speed": (by_implicit if run.labels["runner"] == IMPLICIT else by_us)(run.experiment, home)}]


def by_us(e: Experiment, home: Path) -> float:
    """Return the triples a second of a run of ours, in this process."""
    from simulations.engines import launch

    ended: list[float] = []
    launch(e, home, lambda row: ended.append(time.process_time()))
    each = np.diff(ended)[:-1]  # the last round ends with an evaluation
    rows = sum(int(data.train.positive.sum()) for data in clients_data(e))
    return rows * e.local_epochs * e.num_negatives / float(np.median(each))


def by_implicit(e: Experiment, home: Path) -> float:
    """Return the triples a second of implicit on the same rows, with as many factors, in one thread."""
    bpr = import_module("implicit.bpr")
    (data,) = clients_data(e)
    rows = data.train.take(data.train.positive)
    shape = (len(data.users), len(data.items))
    table = coo_matrix((np.ones(len(rows), np.float32), (rows.user, rows.item)), shape).tocsr()
    epochs, began = e.rounds * e.local_epochs * e.num_negatives, time.process_time()
    model = bpr.BayesianPersonalizedRanking(
        factors=int(e.dim),
        learning_rate=e.lr,
        regularization=e.l2,
        iterations=epochs,
        num_threads=1,
        random_state=e.seed,
    )
    model.fit(table, show_progress=False)
    return len(rows) * epochs / (time.process_time() - began)


def findings(results: pd.DataFrame, runs: Sequence[Run], options: Namespace) -> Findings:
    """Return the medians over the repeats, and the ratios to implicit, or to what is pooled."""
    to = IMPLICIT if IMPLICIT in set(results["runner"]) else results["runner"].iloc[0]
    base = results[results["runner"] == to].groupby("repeat")["speed"].first()
    table = results.assign(ratio=results["speed"] / results["repeat"].map(base))
    table = table.groupby(["runner", "loss"], sort=False)[["speed", "ratio"]].median().reset_index()
    rows = records(table)
    lines = [
        {
            "runner": row["runner"],
            "loss": LOSSES[row["loss"]],
            "million triples a second": f"{row['speed'] / 1e6:.2f}",
            f"times {to}": f"{row['ratio']:.2f}",
            "what it is": RUNNERS[row["runner"]][1],
        }
        for row in rows
    ]
    page = Page("How many triples a second?", WORDS, f"{options.repeats} repeats", [Part("", lines)], facts(runs))
    return Findings(rows, page)


STUDY = Study("triples", OPTIONS, plan, measure, findings, workers=0)
