"""What a promise of privacy costs, in parts: `python -m simulations.studies promise --seeds 10`.

With `--choose` it chooses what a promise sets where the user gives nothing, on validation and seeds of their own.
"""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from fedrec.experiment import Experiment, build
from fedrec.folders import writing
from fedrec.holdings import clients_data, tasks_for
from fedrec.metrics import paired
from fedrec.records import CLIPPED, PLAIN, UNCLIPPED, Row, write_csv
from fedrec.report.study import Part, interval, seeded, write_measured
from simulations.check import check
from simulations.cli import parse
from simulations.promises import stages, without_promise
from simulations.studies.methods import facts
from simulations.studies.options import parsed, parser_of
from simulations.studies.tasks import points

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


class Job(NamedTuple):
    """One run: its name, its seed, what is run."""

    name: str
    seed: int
    experiment: Experiment


def run(argv: Sequence[str]) -> None:
    """Measure what a promise costs with paired seeds, or choose what it sets; every option of a run may be given."""
    parser = parser_of("promise")
    parser.add_argument("--seeds", type=int, default=10, help="paired seeds, from 0 on; those of a choice from 100 on")
    parser.add_argument("--choose", action="store_true", help="choose what a promise sets, by validation")
    parser.add_argument("--grid", default=GRID, help="of a choice: FIELD=VALUE,... joined by ';', grids by '|'")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--out", type=Path, default=Path("runs/study-promise"), help="a new folder for the results")
    options, flags = parsed(parser, argv)
    flags = [*USUAL.split(), *flags]
    jobs = choices(options.grid, flags, options.seeds) if options.choose else arms(flags, options.seeds)
    for job in jobs:
        check(job.experiment)
    with writing(options.out) as home:
        results = pd.DataFrame(run_all(jobs, options.workers))
        results.to_csv(home / "results.csv", index=False)
        rows = ranked(results) if options.choose else summary(results)
        write_csv(home / "summary.csv", rows)
        if not options.choose:
            same = facts({(job.name, job.seed): job.experiment for job in jobs if job.name == PRIVATE})
            part = Part("From plain to private", "", None, [cells(row) for row in rows])
            title, kicker = "What does a promise of privacy cost, and why?", kicker_of(options.seeds)
            write_measured(home / "report.html", title, WORDS, kicker, [part], [], same)
    show([chosen(row) for row in rows[:15]] if options.choose else [cells(row) for row in rows], options)
    print(f"results: {options.out}")


def kicker_of(seeds: int) -> str:
    """Return what the numbers of the split rest on."""
    return seeded(seeds, "means over clients and seeds, 95% intervals over seeds")


def choices(grid: str, flags: Sequence[str], seeds: int) -> list[Job]:
    """Return the runs of every point of the grids."""
    every = [point for part in grid.split("|") for point in points(part)]
    return [
        Job(" ".join(point), seed, once(parse([*flags, *point, "--seed", str(seed)]).experiment))
        for seed in range(CHOOSING, CHOOSING + seeds)
        for point in every
    ]


def once(e: Experiment) -> Experiment:
    """Return a run under a promise that is evaluated once, after its last round, which is the one that is kept."""
    return e.model_copy(update={"eval_every": e.rounds})


def arms(flags: Sequence[str], seeds: int) -> list[Job]:
    """Return the runs of the split, for every seed."""
    jobs = []
    for seed in range(seeds):
        e = parse([*flags, "--seed", str(seed)]).experiment
        found = stages(e) | {PRIVATE: e}
        if e.privacy.inside:
            found[SAME] = same_training(e)
        jobs += [Job(name, seed, one if name == PLAIN else once(one)) for name, one in found.items()]
    return jobs


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


def run_all(jobs: Sequence[Job], workers: int) -> Iterator[Row]:
    """Run every job in a pool of processes; yield its row of results."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(run_one, jobs)


def run_one(job: Job) -> Row:
    """Run one experiment in this process; return the means over the clients of its first metric."""
    import torch

    from simulations.apps import apps_for
    from simulations.engines import run_inline

    torch.set_num_threads(1)
    e = job.experiment
    with TemporaryDirectory() as folder:
        run_inline(*apps_for(e, Path(folder)), len(clients_data(e)))
        rows = pd.read_csv(Path(folder) / "clients.csv")
    rows = rows[rows["metric"] == next(m for m in (*e.metrics, "auc", "rmse") if (rows["metric"] == m).any())]
    held = rows[rows["split"] == "validation"].groupby("round")["value"].mean()
    return {
        "name": job.name,
        "seed": job.seed,
        "test": float(rows.loc[rows["split"] == "test", "value"].mean()),
        "validation": float(held.iloc[-1]),  # under a promise the last round is the one that is kept
    }


def summary(results: pd.DataFrame) -> list[Row]:
    """Return a row for each step of the split: both means over clients and seeds, and their difference over seeds."""
    values = {
        str(name): part.sort_values("seed")["test"].to_numpy(np.float64) for name, part in results.groupby("name")
    }
    rows: list[Row] = []
    for step, (after, before) in STEPS.items():
        if after in values and before in values:
            gap = paired(values[after], values[before])
            row: Row = {"step": step, "before": float(values[before].mean()), "after": float(values[after].mean())}
            row |= {"change": gap.mean, "change_low": gap.low, "change_high": gap.high, "seeds": gap.n}
            rows.append(row)
    return rows


def cells(row: Mapping[str, str | int | float]) -> dict[str, str]:
    """Return a step of the split as it is printed."""
    after, before = STEPS[str(row["step"])]
    names = f"{before} to {after}"
    share = f"{float(row['after']) / float(row['before']) - 1:+.1%}"
    found = {"step": str(row["step"]), "runs": names, "before": f"{row['before']:.4f}", "after": f"{row['after']:.4f}"}
    return {**found, "change [95%]": interval(row, "change"), "relative": share}


def ranked(results: pd.DataFrame) -> list[Row]:
    """Return every point of the grids with its mean validation over the seeds, the best first."""
    means = results.groupby("name", sort=False)["validation"].agg(["mean", "size"]).reset_index()
    ordered = means.sort_values("mean", ascending=False, kind="stable")
    return [{"options": r["name"], "validation": r["mean"], "seeds": r["size"]} for r in ordered.to_dict("records")]


def chosen(row: Mapping[str, str | int | float]) -> dict[str, str]:
    """Return a point of the grids as it is printed."""
    return {"options": str(row["options"]), "validation": f"{row['validation']:.4f}"}


def show(rows: Sequence[Mapping[str, str]], options: argparse.Namespace) -> None:
    """Print the table."""
    title = f"validation, the mean over clients and {options.seeds} seeds from {CHOOSING} on"
    title = title if options.choose else kicker_of(options.seeds)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="left" if name in ("step", "runs", "options") else "right")
    for row in rows:
        table.add_row(*row.values())
    Console(highlight=False).print(table)
