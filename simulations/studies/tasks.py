"""Several tasks in one client, together or one by one: `python -m simulations.studies tasks --model mmoe,ple`."""

import itertools
import os
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from fedrec.errors import UserError
from fedrec.experiment import Experiment
from fedrec.folders import writing
from fedrec.holdings import clients_data
from fedrec.records import write_csv
from simulations.baselines import baseline, single_tasks
from simulations.check import check
from simulations.cli import arm as arm_of
from simulations.cli import heeded
from simulations.studies.methods import facts
from simulations.studies.options import parsed, parser_of
from simulations.studies.tasks_page import show, summary, write_page

USUAL = [
    "--task",
    "click,buy,rating",
    "--split",
    "random",
    "--fractions",
    "0.2,0.2",
    "--rounds",
    "30",
    "--patience",
    "3",
]
GRID = "lr=0.001,0.003,0.01;l2=0.01,0.1,1"
EVERY = ""  # in the place of a task: all of them in one model


@dataclass(frozen=True)
class Arm:
    """A way to train the tasks: alone or federated, all in one model or each in one of its own, with its options.

    `options` holds, by task (`EVERY` for all in one), what tuning chose over the flags.
    """

    body: str
    federated: bool
    single: bool
    weighting: str = "fixed"
    options: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def name(self) -> str:
        """What the arm is called."""
        how = "single-task" if self.single else "multi-task"
        weighed = f" {self.weighting}" if self.weighting != "fixed" else ""
        return f"{'federated' if self.federated else 'local'} {how} {self.body}{weighed}"

    def experiments(self, flags: Sequence[str], seed: int) -> dict[str, Experiment]:
        """Return the experiment of every task, or of all; raises UserError where the tasks cannot be parted."""
        own = dict(self.options)
        fixed = ["--model", self.body, "--weighting.kind", self.weighting, "--seed", str(seed)]

        def made(task: str) -> Experiment:
            e = arm_of([*USUAL, *flags, *fixed, *own.get(task, ())])
            return e if self.federated else baseline(e, "local")

        if not self.single:
            return {EVERY: made(EVERY)}
        found, why = single_tasks(made(EVERY))
        if not found:
            raise UserError(
                f"task: {self.body} must have tasks to train one by one, {why or 'found no client with two'}"
            )
        return {task: single_tasks(made(task))[0][task] for task in found}


class Job(NamedTuple):
    """A run: its arm, its task or `EVERY`, its seed, and the options that are tried."""

    arm: Arm
    task: str
    seed: int
    experiment: Experiment
    options: tuple[str, ...] = ()


def run(argv: Sequence[str]) -> None:
    """Train the tasks of clients together and one by one, alone and federated, with paired seeds."""
    parser = parser_of("tasks")
    parser.add_argument("--model", default="mmoe", help="comma-separated bodies; every arm is run with each")
    parser.add_argument(
        "--weightings", default="fixed", help="comma-separated, of the arms with all tasks in one model"
    )
    parser.add_argument("--seeds", type=int, default=5, help="paired seeds: 0, 1, ... share data, start and order")
    parser.add_argument(
        "--tune", default="", help="comma-separated other seeds, whose validation chooses every arm's grid point"
    )
    parser.add_argument("--grid", default=GRID, help="what is tried with --tune: FIELD=VALUE,...;FIELD=VALUE,...")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--out", type=Path, default=Path("runs/study-tasks"), help="a new folder for the results")
    options, flags = parsed(parser, argv)
    tuned_on, grid = seeds_of(options.tune, options.seeds), points(options.grid)
    arms = arms_of(options.model.split(","), options.weightings.split(","))
    first = jobs_of(arms, flags, [0])
    heeded(flags, [job.experiment for job in first])
    for job in first:
        check(job.experiment)
    with writing(options.out) as home:
        with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
            if tuned_on:
                tried = pd.concat(pool.map(run_one, tried_jobs(arms, flags, tuned_on, grid)))
                write_csv(home / "tuning.csv", chosen_of(tried))
                arms = tuned(arms, tried)
            jobs = jobs_of(arms, flags, range(options.seeds))
            results = pd.concat(pool.map(run_one, jobs))
        results.to_csv(home / "results.csv", index=False)
        rows = summary(results)
        write_csv(home / "summary.csv", rows)
        told = facts({(job.arm.name + job.task, job.seed): job.experiment for job in jobs})
        told |= {"tuned": f"on the validation of seeds {options.tune}, {options.grid}"} if tuned_on else {}
        write_page(home / "report.html", rows, options.seeds, told, {a.name: dict(a.options) for a in arms})
    show(rows, options.seeds)
    print(f"report: {options.out / 'report.html'}")


def arms_of(bodies: Sequence[str], weightings: Sequence[str]) -> list[Arm]:
    """Return the arms: for every body, alone and federated, the tasks one by one and in one model by each weighting."""
    return [
        Arm(body, federated, single, weighting)
        for body in bodies
        for federated in (False, True)
        for single, kinds in ((True, ["fixed"]), (False, weightings))
        for weighting in kinds
    ]


def seeds_of(text: str, reported: int) -> list[int]:
    """Return the seeds to tune on; raises UserError for one that is reported."""
    if not all(part.strip().isdecimal() for part in text.split(",") if text):
        raise UserError(f"tune: must be whole numbers joined by commas, found {text!r}")
    found = [int(part) for part in text.split(",") if part]
    for seed in found:
        if seed < reported:
            raise UserError(f"tune: must be seeds that are not reported, from {reported} on, found {seed}")
    return found


def points(grid: str) -> list[tuple[str, ...]]:
    """Return the flags of every point of a grid such as `lr=0.001,0.01;l2=0.1`; raises UserError."""
    axes = []
    for part in grid.split(";"):
        field, equals, values = part.partition("=")
        if not (field and equals and values):
            raise UserError(f"grid: must be FIELD=VALUE,... parts joined by ';', found {part!r}")
        axes.append([(f"--{field}", value) for value in values.split(",")])
    return [tuple(itertools.chain(*point)) for point in itertools.product(*axes)]


def jobs_of(arms: Sequence[Arm], flags: Sequence[str], seeds: Iterable[int]) -> list[Job]:
    """Return the runs of arms, one seed after the other, so that a process reads its data once."""
    return [
        Job(arm, task, seed, e) for seed in seeds for arm in arms for task, e in arm.experiments(flags, seed).items()
    ]


def tried_jobs(
    arms: Sequence[Arm], flags: Sequence[str], seeds: Sequence[int], grid: Sequence[tuple[str, ...]]
) -> list[Job]:
    """Return the runs of every arm at every point of the grid."""
    return [job._replace(options=point) for point in grid for job in jobs_of(arms, [*flags, *point], seeds)]


def run_one(job: Job) -> pd.DataFrame:
    """Run one experiment in this process; return its test rows of clients with several tasks, and its validation."""
    from simulations.apps import apps_for
    from simulations.engines import run_inline

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        run_inline(*apps_for(job.experiment, home), len(clients_data(job.experiment)))
        rows, rounds = pd.read_csv(home / "clients.csv"), pd.read_csv(home / "rounds.csv")
    rows = rows[(rows["split"] == "test") & ((rows["task"] == job.task) | (job.task == EVERY))]
    about: dict[str, Any] = {
        "arm": job.arm.name, "body": job.arm.body, "federated": job.arm.federated, "single": job.arm.single,
        "part": job.task, "seed": job.seed, "options": " ".join(job.options),
        "validation": rounds["validation"].max(), "rounds": len(rounds), "seconds": rounds["seconds"].sum(),
    }  # fmt: skip
    return rows.drop(columns=["split", "device"]).assign(**about)


def chosen_of(tried: pd.DataFrame) -> list[dict[str, Any]]:
    """Return every arm and task with the options tried and their mean validation over seeds, the best first."""
    keys = ["arm", "part", "options"]
    means = tried.drop_duplicates([*keys, "seed"]).groupby(keys, sort=False)["validation"].mean().reset_index()
    ordered = means.sort_values(["arm", "part", "validation"], ascending=[True, True, False], kind="stable")
    return ordered.to_dict("records")  # type: ignore[return-value]


def tuned(arms: Sequence[Arm], tried: pd.DataFrame) -> list[Arm]:
    """Return the arms with the options that validation liked best, for every task of a single-task arm its own."""
    best: dict[str, dict[str, tuple[str, ...]]] = {}
    for row in chosen_of(tried):
        best.setdefault(row["arm"], {}).setdefault(row["part"], tuple(row["options"].split()))
    return [replace(arm, options=tuple(best[arm.name].items())) for arm in arms]
