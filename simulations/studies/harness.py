"""One way to compare: what is run, in a pool of processes, and what comes of it, in a folder and on the terminal.

A study is a value: the options of its command line, its runs, what is measured of one, and what all of them show.
"""

import os
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch

from fedrec.errors import UserError
from fedrec.experiment.config import Experiment
from fedrec.experiment.records import write_csv
from fedrec.folders import writing
from fedrec.report.study import Page, Part
from simulations.check import check
from simulations.cli import check_flags
from simulations.studies.options import Options, parse_options
from simulations.studies.tables import Row, print_all

Rows = list[Row]
PAGE = "report.html"


@dataclass(frozen=True)
class Run:
    """One run of a study: the labels that tell it from the others, and what is run.

    `others` are experiments beside the first, for a measure that chooses among them; `about` is what else it must know.
    What is run stays in the study's folder under the name `folder`, if there is one.
    """

    labels: Mapping[str, Any]
    experiment: Experiment
    others: tuple[Experiment, ...] = ()
    about: Any = None
    folder: str = ""


@dataclass(frozen=True)
class Findings:
    """What the runs of a study show: rows of its summary, its page, and what the terminal shows in place of the page's.

    `failed` says what is wrong; the study then ends with status 1.
    """

    summary: Sequence[Row] = ()
    page: Page | None = None
    tables: Sequence[Part] = ()
    heading: str = ""
    notes: Sequence[str] = ()
    failed: str = ""


Carry = Callable[[Sequence[Run]], pd.DataFrame]  # carries runs out, and returns the rows that were measured


@dataclass(frozen=True)
class Study:
    """What is compared, and how.

    `plan` returns the runs that the options ask for, in order, and `refine`, by runs of its own, those in their place.
    `measure` returns the rows of one; the folder that it gets for it is not there yet. It must be a function of a
    module if there are `workers`: it runs in a pool then. `findings` says what all rows show.
    """

    name: str
    options: Options
    plan: Callable[[Namespace], list[Run]]
    measure: Callable[[Run, Path], Rows]
    findings: Callable[[pd.DataFrame, Sequence[Run], Namespace], Findings]
    refine: Callable[[list[Run], Namespace, Carry, Path], list[Run]] | None = None
    workers: int = os.cpu_count() or 1  # processes, as the option says without a value; 0: none, and no such option
    more: str = ""  # said below the options in --help
    fresh: bool = False  # whether every run has a process of its own
    results: str = "results.csv"


def conduct(study: Study, argv: Sequence[str]) -> None:
    """Conduct a study; raises UserError before anything runs, and SystemExit if it has failed."""
    workers = {"workers": (study.workers, "processes")} if study.workers else {}
    options = parse_options(study.name, {**study.options, **workers}, argv, study.more)
    runs = study.plan(options)
    planned = [e for run in runs for e in (run.experiment, *run.others)]
    check_flags(options.flags, planned)
    for experiment in planned:
        if experiment.tracker != "none":
            raise UserError(f"option --tracker: is for a single run, found {experiment.tracker} for a study")
        check(experiment)
    with writing(options.out) as home:
        carry = partial(carry_out, study, options.workers if workers else 0, home)
        if study.refine:
            runs = study.refine(runs, options, carry, home)
        results = carry(runs)
        results.to_csv(home / study.results, index=False)
        findings = study.findings(results, runs, options)
        write(home, findings)
    show(options.out, findings)


def write(home: Path, findings: Findings) -> None:
    """Write the summary and the page of a study into its folder."""
    if findings.summary:
        write_csv(home / "summary.csv", findings.summary)
    if findings.page:
        findings.page.write(home / PAGE)


def show(out: Path, findings: Findings) -> None:
    """Print what a study shows; raises SystemExit if it has failed."""
    page = findings.page or Page("", "", findings.heading, findings.tables, {})
    print_all(findings.heading or page.kicker, findings.tables or page.parts, findings.notes)
    print(f"report: {out / PAGE}" if findings.page else f"results: {out}")
    if findings.failed:
        raise SystemExit(f"failed: {findings.failed}")


def carry_out(study: Study, workers: int, home: Path, runs: Sequence[Run]) -> pd.DataFrame:
    """Carry out runs in so many processes, or (0, 1) in this one; return their rows in the order of the runs."""
    work = partial(perform, study.measure, home)
    carry: Callable[..., Iterable[Rows]] = map
    with ExitStack() as stack:
        if workers > 1 or (workers and study.fresh):
            spawn, tasks = get_context("spawn"), 1 if study.fresh else None
            pool = ProcessPoolExecutor(  # a thread each: there is a process for each processor
                workers, spawn, initializer=torch.set_num_threads, initargs=(1,), max_tasks_per_child=tasks
            )
            carry = stack.enter_context(pool).map
        elif workers:  # to start a process takes seconds
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        return pd.DataFrame([row for rows in carry(work, runs) for row in rows])


def perform(measure: Callable[[Run, Path], Rows], home: Path, run: Run) -> Rows:
    """Carry out one run in this process; return its rows."""
    if run.folder:
        return measure(run, home / run.folder)
    with TemporaryDirectory() as folder:
        return measure(run, Path(folder) / "run")


def facts(runs: Iterable[Run]) -> dict[str, str]:
    """Return the fields in which the experiments of runs agree and that are not at their defaults."""
    dumps = [run.experiment.model_dump(mode="json") for run in runs]
    usual = Experiment().model_dump(mode="json")
    same = {name for name in usual if all(dump[name] == dumps[0][name] for dump in dumps)}
    return {name: str(dumps[0][name]) for name in usual if name in same and dumps[0][name] != usual[name]}
