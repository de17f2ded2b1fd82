"""Several tasks in one client, together or one by one: `python -m simulations.studies tasks --model mmoe,ple`."""

from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from fedrec.errors import UserError
from fedrec.experiment.config import Experiment
from fedrec.metrics import Paired, higher_is_better
from fedrec.report.findings import change, label, number
from fedrec.report.several import WORDS, Balance, balance
from fedrec.report.study import Page, Part, forest, seeded
from fedrec.report.verdicts import verdicts
from simulations.baselines import baseline, single_tasks
from simulations.cli import arm as arm_of
from simulations.engines import launch
from simulations.studies.harness import Carry, Findings, Rows, Run, Study, facts
from simulations.studies.options import SEEDS
from simulations.studies.tables import (
    Row,
    band,
    by_arm,
    differences,
    ends,
    measures,
    points,
    ranked,
    read_test,
    records,
    spread,
)

USUAL = "--task click,buy,rating --split random --fractions 0.2,0.2 --rounds 30 --patience 3 --engine inline"
GRID = "lr=0.001,0.003,0.01;l2=0.01,0.1,1"
AGAINST = {"local": "local single-task", "federated": "federated single-task"}
TRIED = ("arm", "part", "options")  # what validation ranks the options by
EVERY = ""  # in the place of a task: all of them in one model
OPTIONS = {
    "model": ("mmoe", "comma-separated bodies; every arm is run with each"),
    "weightings": ("fixed", "comma-separated, of the arms with all tasks in one model"),
    "seeds": (5, SEEDS),
    "tune": ("", "comma-separated other seeds, whose validation chooses every arm's grid point"),
    "grid": (GRID, "what is tried with --tune: FIELD=VALUE,...;FIELD=VALUE,..."),
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
        chosen = dict(self.options)
        fixed = ["--model", self.body, "--weighting.kind", self.weighting, "--seed", str(seed)]

        def arm_on(task: str) -> Experiment:
            e = arm_of([*USUAL.split(), *flags, *fixed, *chosen.get(task, ())])
            return e if self.federated else baseline(e, "local")

        if not self.single:
            return {EVERY: arm_on(EVERY)}
        singles, why = single_tasks(arm_on(EVERY))
        if not singles:
            raise UserError(
                f"task: {self.body} must have tasks to train one by one, {why or 'found no client with two'}"
            )
        return {task: single_tasks(arm_on(task))[0][task] for task in singles}


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
    ranked(tried, *TRIED).drop(columns="seeds").to_csv(home / "tuning.csv", index=False)
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
    seeds = [int(part) for part in text.split(",") if part]
    for seed in seeds:
        if seed < reported:
            raise UserError(f"tune: must be seeds that are not reported, from {reported} on, found {seed}")
    return seeds


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
    rows, rounds = read_test(home), pd.read_csv(home / "rounds.csv")
    rows = rows[(rows["task"] == run.labels["part"]) | (run.labels["part"] == EVERY)]
    took = {"validation": rounds["validation"].max(), "rounds": len(rounds), "seconds": rounds["seconds"].sum()}
    return records(rows.drop(columns=["split", "device"]).assign(**run.labels, **took))


def findings(results: pd.DataFrame, runs: Sequence[Run], options: Namespace) -> Findings:
    """Return what every arm gains against the single-task ones, and its page."""
    rows, about = summary(results), facts(runs)
    if options.tune:
        about["tuned"] = f"on the validation of seeds {options.tune}, {options.grid}"
    for arm in dict.fromkeys(run.about for run in runs):
        about |= {f"{arm.name}{', ' + task if task else ''}": " ".join(words) for task, words in arm.options}
    return Findings(rows, page(rows, options.seeds, about), tables(rows), notes=notes(rows))


def tuned(arms: Sequence[Arm], tried: pd.DataFrame) -> list[Arm]:
    """Return the arms with the options that validation liked best, for every task of a single-task arm its own."""
    best: dict[str, dict[str, tuple[str, ...]]] = {}
    for row in records(ranked(tried, *TRIED)):
        best.setdefault(row["arm"], {}).setdefault(row["part"], tuple(row["options"].split()))
    return [replace(arm, options=tuple(best[arm.name].items())) for arm in arms]


def summary(results: pd.DataFrame) -> list[Row]:
    """Return a row for each task, metric and arm.

    It holds the mean over clients and seeds, the standard deviation over seeds of the clients' mean, and the paired
    differences to the two single-task arms of the same body with Student-t intervals over seeds and their verdicts,
    corrected for the number of arms and tasks whose balance is told, of another metric for the number of arms. A
    client counts where both arms have measured the task.
    """
    several = results.groupby("client")["task"].transform("nunique") > 1
    rows: list[Row] = []
    gaps: dict[str, list[tuple[Row, Paired]]] = {key: [] for key in AGAINST}
    for (task, metric), group in measures(results[several]):
        values, arms = by_arm(group, "arm"), group.drop_duplicates("arm").set_index("arm").to_dict("index")
        for name, scores in values.items():
            others = {f"minus_{key}": f"{single} {arms[name]['body']}" for key, single in AGAINST.items()}
            there = differences(values, name, others)
            multi = not arms[name]["single"]
            rows.append({"task": task, "metric": metric, "arm": name, "multi": multi, **spread(scores), **ends(there)})
            for column, p in there.items():
                gaps[column.removeprefix("minus_")].append((rows[-1], p))
    speaks = {row["task"]: row["metric"] for row in reversed(rows)}
    for key, pairs in gaps.items():
        judged = [row["multi"] and speaks[row["task"]] == row["metric"] for row, _ in pairs]
        family = ["" if t else f"{row['task']}/{row['metric']}" for t, (row, _) in zip(judged, pairs, strict=True)]
        words = verdicts([row["metric"] for row, _ in pairs], [p for _, p in pairs], family)
        for (row, _), word in zip(pairs, words, strict=True):
            row[f"against_{key}"] = WORDS.get(word, word)
    return rows


def balances(rows: Sequence[Row], key: str) -> dict[str, Balance]:
    """Return the balance of every multi-task arm against a single-task one, by the first metric of each task."""
    names: dict[Any, str] = {word: name for name, word in WORDS.items()}
    judged: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["multi"]:
            word = str(row[f"against_{key}"])
            judged.setdefault(row["arm"], {}).setdefault(row["task"], names.get(word, word))
    return {arm: balance(words.items()) for arm, words in judged.items()}


def page(rows: Sequence[Row], seeds: int, facts: dict[str, str]) -> Page:
    """Return the page."""
    notes = [
        f"{arm}, against {AGAINST[key]}: {result.words}."
        for key in ("federated", "local")
        for arm, result in balances(rows, key).items()
        if result.lost
    ]
    words = "; ".join(f"{arm}: {result.words}" for arm, result in balances(rows, "federated").items())
    measures = list(dict.fromkeys((row["task"], row["metric"]) for row in rows))
    return Page(
        "What do several tasks in one model gain or lose?",
        f"Against the same body federated for each task by itself: {words}. A seesaw is a task that loses while "
        "another gains, at 5% over all arms and tasks together (Holm).",
        seeded(seeds, "mean over clients, 95% Student-t intervals over seeds"),
        [part(rows, *measure) for measure in measures],
        facts,
        notes,
    )


def part(rows: Sequence[Row], task: str, metric: str) -> Part:
    """Return the table and the figure of one metric."""
    lines = [row for row in rows if (row["task"], row["metric"]) == (task, metric)]
    words = {"gained": "helped", "lost": "hurt"}
    gains = [
        (row["arm"], *band(row, "minus_federated"), words.get(row["against_federated"], ""))
        for row in lines
        if row["multi"]
    ]
    figure = forest(gains, f"{task}-{metric}", f"{label(metric)} minus federated single-task")
    better = "more" if higher_is_better(metric) else "less"
    return Part(f"{task}: {label(metric)}", [texts(row) for row in lines], f"{better.capitalize()} is better.", figure)


def texts(row: Row) -> dict[str, str]:
    """Return a row as it is printed."""
    cells = {"Arm": row["arm"], "Mean": number(row["mean"], 4), "SD": number(row["sd"], 4)}
    for key, name in AGAINST.items():
        there = f"minus_{key}" in row
        cells[f"Minus {name}"] = f"{change(*band(row, f'minus_{key}'))} {row[f'against_{key}']}" if there else ""
    return cells


def tables(rows: Sequence[Row]) -> list[Part]:
    """Return a short table for the first metric of every task."""
    first = {row["task"]: row["metric"] for row in reversed(rows)}
    return [
        Part(f"{task}: {label(metric)}", [
            {"arm": short(row["arm"]), "mean": f"{row['mean']:.4f}"} | {
                f"minus {short(single)}": change(*band(row, f"minus_{key}")) if f"minus_{key}" in row else ""
                for key, single in AGAINST.items()
            }
            for row in rows if (row["task"], row["metric"]) == (task, metric)
        ])
        for task, metric in reversed(first.items())
    ]  # fmt: skip


def notes(rows: Sequence[Row]) -> list[str]:
    """Return the balance of every multi-task arm in words."""
    return [
        f"{short(arm)}, against {single}: {result.words}"
        for key, single in AGAINST.items()
        for arm, result in balances(rows, key).items()
    ]


def short(arm: str) -> str:
    """Return the name of an arm for the terminal."""
    return arm.replace("federated", "fed.").replace("-task", "")


STUDY = Study("tasks", OPTIONS, plan, measure, findings, refine)
