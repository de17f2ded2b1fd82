"""Several tasks in one client, together or one by one: `python -m simulations.studies tasks --model mmoe,ple`."""

from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from fedrec.errors import UserError
from fedrec.experiment import Experiment
from fedrec.records import write_csv
from simulations.baselines import baseline, single_tasks
from simulations.cli import arm as arm_of
from simulations.engines import launch
from simulations.studies.harness import Carry, Findings, Rows, Run, Study, facts
from simulations.studies.options import SEEDS, WORKERS
from simulations.studies.tables import Row, points, records
from simulations.studies.tasks_page import notes, page, summary, tables

USUAL = "--task click,buy,rating --split random --fractions 0.2,0.2 --rounds 30 --patience 3 --engine inline"
GRID = "lr=0.001,0.003,0.01;l2=0.01,0.1,1"
EVERY = ""  # in the place of a task: all of them in one model
OPTIONS = {
    "model": ("mmoe", "comma-separated bodies; every arm is run with each"),
    "weightings": ("fixed", "comma-separated, of the arms with all tasks in one model"),
    "seeds": (5, SEEDS),
    "tune": ("", "comma-separated other seeds, whose validation chooses every arm's grid point"),
    "grid": (GRID, "what is tried with --tune: FIELD=VALUE,...;FIELD=VALUE,..."),
    "workers": WORKERS,
}


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
            e = arm_of([*USUAL.split(), *flags, *fixed, *own.get(task, ())])
            return e if self.federated else baseline(e, "local")

        if not self.single:
            return {EVERY: made(EVERY)}
        found, why = single_tasks(made(EVERY))
        if not found:
            raise UserError(
                f"task: {self.body} must have tasks to train one by one, {why or 'found no client with two'}"
            )
        return {task: single_tasks(made(task))[0][task] for task in found}


def plan(options: Namespace) -> list[Run]:
    """Return the runs of every arm, one seed after the other; raises UserError for what cannot be tuned."""
    seeds_of(options.tune, options.seeds)
    points(options.grid)
    arms = arms_of(options.model.split(","), options.weightings.split(","))
    return runs_of(arms, options.flags, range(options.seeds))


def refine(runs: list[Run], options: Namespace, carry: Carry, home: Path) -> list[Run]:
    """Return the runs of every arm with what was chosen for it on the seeds to tune on, if there are any."""
    if not options.tune:
        return runs
    arms, seeds = list(dict.fromkeys(run.about for run in runs)), seeds_of(options.tune, options.seeds)
    tried = carry(
        [run for point in points(options.grid) for run in runs_of(arms, [*options.flags, *point], seeds, point)]
    )
    write_csv(home / "tuning.csv", chosen_of(tried))
    return runs_of(tuned(arms, tried), options.flags, range(options.seeds))


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


def runs_of(arms: Sequence[Arm], flags: Sequence[str], seeds: Iterable[int], tried: Sequence[str] = ()) -> list[Run]:
    """Return the runs of arms, one seed after the other, so that a process reads its data once."""
    return [
        Run(
            {"arm": arm.name, "body": arm.body, "federated": arm.federated, "single": arm.single, "part": task,
             "seed": seed, "options": " ".join(tried)},
            e,
            about=arm,
        )
        for seed in seeds for arm in arms for task, e in arm.experiments(flags, seed).items()
    ]  # fmt: skip


def measure(run: Run, home: Path) -> Rows:
    """Return the test rows of clients with several tasks, with the run's validation."""
    launch(run.experiment, home)
    rows, rounds = pd.read_csv(home / "clients.csv"), pd.read_csv(home / "rounds.csv")
    rows = rows[(rows["split"] == "test") & ((rows["task"] == run.labels["part"]) | (run.labels["part"] == EVERY))]
    took = {"validation": rounds["validation"].max(), "rounds": len(rounds), "seconds": rounds["seconds"].sum()}
    return records(rows.drop(columns=["split", "device"]).assign(**run.labels, **took))


def findings(results: pd.DataFrame, runs: Sequence[Run], options: Namespace) -> Findings:
    """Return what every arm gains against the single-task ones, and its page."""
    rows, told = summary(results), facts(runs)
    if options.tune:
        told["tuned"] = f"on the validation of seeds {options.tune}, {options.grid}"
    for arm in dict.fromkeys(run.about for run in runs):
        told |= {f"{arm.name}{', ' + task if task else ''}": " ".join(found) for task, found in arm.options}
    shown = page(rows, options.seeds, told)
    return Findings(tables(rows), rows, shown.write, shown.kicker, notes(rows))


def chosen_of(tried: pd.DataFrame) -> list[Row]:
    """Return every arm and task with the options tried and their mean validation over seeds, the best first."""
    keys = ["arm", "part", "options"]
    means = tried.drop_duplicates([*keys, "seed"]).groupby(keys, sort=False)["validation"].mean().reset_index()
    ordered = means.sort_values(["arm", "part", "validation"], ascending=[True, True, False], kind="stable")
    return records(ordered)


def tuned(arms: Sequence[Arm], tried: pd.DataFrame) -> list[Arm]:
    """Return the arms with the options that validation liked best, for every task of a single-task arm its own."""
    best: dict[str, dict[str, tuple[str, ...]]] = {}
    for row in chosen_of(tried):
        best.setdefault(row["arm"], {}).setdefault(row["part"], tuple(row["options"].split()))
    return [replace(arm, options=tuple(best[arm.name].items())) for arm in arms]


STUDY = Study("tasks", OPTIONS, plan, measure, findings, refine)
