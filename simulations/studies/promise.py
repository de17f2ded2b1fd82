"""What a promise of privacy costs, in parts: `python -m simulations.studies promise --seeds 10`.

With `--choose` it chooses what a promise sets where the user gives nothing, on validation and seeds of their own.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fedrec.experiment.config import Experiment, build
from fedrec.experiment.holdings import clients_data, tasks_for
from fedrec.experiment.records import CLIPPED, PLAIN, UNCLIPPED
from fedrec.metrics import paired
from fedrec.report.results import read_clients
from fedrec.report.study import Page, Part, interval, seeded
from simulations.cli import parse
from simulations.engines import launch
from simulations.promises import stages, without_promise
from simulations.studies.harness import Findings, Rows, Run, Study, facts
from simulations.studies.tables import Row, by_arm, ends, points, ranked, records

USUAL = "--clients 4 --privacy.unit user --privacy.epsilon 4 --engine inline"
CHOOSING = 100  # the first seed of a choice; none from here on is reported
GRID = (
    "optimiser=sgd;lr=0.5,1,2,4;l2=0,0.01,0.03,0.1;privacy.clip=1,2;local-epochs=1;privacy.rate=1|"
    "optimiser=sgd;lr=1;l2=0.03;privacy.clip=1;local-epochs=2,3;privacy.rate=1|"
    "optimiser=sgd;lr=1,3;l2=0.03,0.06;privacy.clip=0.1,0.3;rounds=20,60|"
    "optimiser=sgd;lr=0.3,0.5;l2=0.01,0.03;privacy.clip=1;local-epochs=1;privacy.rate=0.2|"
    "optimiser=adam;lr=0.01,0.03;l2=0.03,0.1;rounds=20,60;privacy.clip=1;local-epochs=1"
)
SAME, PRIVATE = "same training", "private"
STEPS = {  # what a step of the split is: after, before
    "the private path alone": (SAME, PLAIN),
    "batches, weights and training": (UNCLIPPED, PLAIN),
    "clipping": (CLIPPED, UNCLIPPED),
    "noise": (PRIVATE, CLIPPED),
    "all together": (PRIVATE, PLAIN),
}
WORDS = (
    "NOT PRIVATE but for the last: plain is the same method without a promise; same training is the private path "
    "without clip and noise under plain's own optimiser and number of passes, at the rate that draws plain's batch; "
    "unclipped has all that the promise sets, without clip and noise; clipped adds the clip, and private the noise."
)
OPTIONS = {
    "seeds": (10, "paired seeds, from 0 on; those of a choice from 100 on"),
    "choose": (False, "choose what a promise sets, by validation"),
    "grid": (GRID, "of a choice: FIELD=VALUE,... joined by ';', grids by '|'"),
}


def plan(options: Namespace) -> list[Run]:
    """Return the runs of the split, or, of a choice, those of every point of the grids."""
    flags = [*USUAL.split(), *options.flags]
    if not options.choose:
        return arms(flags, options.seeds)
    grid = [point for part in options.grid.split("|") for point in points(part)]
    return [
        Run({"name": " ".join(point), "seed": seed}, once(parse([*flags, *point, "--seed", str(seed)]).experiment))
        for seed in range(CHOOSING, CHOOSING + options.seeds)
        for point in grid
    ]


def once(e: Experiment) -> Experiment:
    """Return a run under a promise that is evaluated once, after its last round, which is the one that is kept."""
    return e.model_copy(update={"eval_every": e.rounds})


def arms(flags: Sequence[str], seeds: int) -> list[Run]:
    """Return the runs of the split, for every seed."""
    runs = []
    for seed in range(seeds):
        e = parse([*flags, "--seed", str(seed)]).experiment
        steps = stages(e) | {PRIVATE: e}
        if e.privacy.inside:
            steps[SAME] = same_training(e)
        runs += [Run({"name": name, "seed": seed}, arm if name == PLAIN else once(arm)) for name, arm in steps.items()]
    return runs


def same_training(e: Experiment) -> Experiment:
    """Return the private path without clip and noise, trained as the run without a promise is, with as many passes.

    Its rate draws on average as many rows as that run's batch has; which looks at the data, and is no setting for a
    promise. In a pass a user is drawn once, where in a plain one its rows lie in several batches, each of which moves
    the user's own row.
    """
    rows = np.mean(
        [
            np.logical_or.reduce([task.rows(data.train, data.attributes) for task in tasks_for(e, data)]).sum()
            for data in clients_data(e)
        ]
    )
    plain = build(without_promise(e))
    fields = {**plain.model_dump(), "weights": "uniform", "patience": 0}
    rate = min(1.0, plain.batch_size / float(rows))
    bare = {"unit": e.privacy.unit, "noise": 0.0, "clip": float("inf"), "rate": rate}
    return build({**fields, "privacy": bare})


def measure(run: Run, home: Path) -> Rows:
    """Return the means over the clients of a run's first metric."""
    e = run.experiment
    launch(e, home)
    rows = read_clients(home)
    rows = rows[rows["metric"] == next(m for m in (*e.metrics, "auc", "rmse") if (rows["metric"] == m).any())]
    held = rows[rows["split"] == "validation"].groupby("round")["value"].mean()
    test = float(rows.loc[rows["split"] == "test", "value"].mean())
    # Under a promise the last round is the one that is kept.
    return [{**run.labels, "test": test, "validation": float(held.iloc[-1])}]


def findings(results: pd.DataFrame, runs: Sequence[Run], options: Namespace) -> Findings:
    """Return the steps from plain to private and their page, or the best points of the grids."""
    if options.choose:
        ordered = records(ranked(results, "name").rename(columns={"name": "options"}))
        title = f"validation, the mean over clients and {options.seeds} seeds from {CHOOSING} on"
        best = [{"options": row["options"], "validation": f"{row['validation']:.4f}"} for row in ordered[:15]]
        return Findings(ordered, tables=[Part("", best)], heading=title)
    rows = summary(results)
    page = Page(
        "What does a promise of privacy cost, and why?",
        WORDS,
        seeded(options.seeds, "means over clients and seeds, 95% intervals over seeds"),
        [Part("From plain to private", [texts(row) for row in rows])],
        facts(run for run in runs if run.labels["name"] == PRIVATE),
    )
    return Findings(rows, page)


def summary(results: pd.DataFrame) -> list[Row]:
    """Return a row for each step of the split: both means over clients and seeds, and their difference over seeds."""
    values, rows = by_arm(results, "name", "test"), []
    for step, (after, before) in STEPS.items():
        if after in values and before in values:
            gap = paired(values[after], values[before])
            row = {"step": step, "before": float(values[before].mean()), "after": float(values[after].mean())}
            rows.append(row | ends({"change": gap}) | {"seeds": gap.n})
    return rows


def texts(row: Row) -> dict[str, str]:
    """Return a step of the split as it is printed."""
    after, before = STEPS[str(row["step"])]
    names = f"{before} to {after}"
    share = f"{float(row['after']) / float(row['before']) - 1:+.1%}"
    cells = {"step": str(row["step"]), "runs": names, "before": f"{row['before']:.4f}", "after": f"{row['after']:.4f}"}
    return {**cells, "change [95%]": interval(row, "change"), "relative": share}


STUDY = Study("promise", OPTIONS, plan, measure, findings)
