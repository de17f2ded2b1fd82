"""How fast every engine runs two workloads: `python -m simulations.studies speed --repeats 3`.

Beside the engines runs a plain sequential loop in PyTorch. Each run has a fresh process on one thread. In every repeat
all runners run one after the other, and ratios are between runs of one repeat, so that a machine that is busy at times
slows both. A runner whose result differs from that of `inline` has no ratio, and the study fails.
"""

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from fedrec.errors import UserError, choose
from fedrec.experiment import Experiment
from fedrec.folders import writing
from fedrec.records import versions, write_csv
from fedrec.report import plots
from fedrec.report.study import Part, write_measured
from simulations.check import client_count
from simulations.cli import parse
from simulations.studies.options import parser_of
from simulations.studies.runners import LOOP, REFERENCE, RUNNERS, Result, attempted, compared
from simulations.studies.workloads import W1, W2, Workload

KNOWN = {workload.name: workload for workload in (W1, W2)}
WRONG = "WRONG RESULT"
MEDIANS = ("times", "seconds", "startup", "megabytes", "bytes_down", "bytes_up")
WORDS = (
    "Seconds a round are training, messages and aggregation; evaluation is apart. Start-up is from the start of the "
    "process to the end of the first round. Memory is the sum of the peaks of all processes of a run, a shared library "
    "counted in each. Every process has one thread; 'times as fast' is against a plain sequential PyTorch loop of the "
    "same repeat, median over repeats. The difference is the largest of a shared parameter to the engine inline: after "
    "the last round where it must be none, after the first where sums are made in another order (the loop, clients "
    "that are stacked). process-1 and process-2 have so many workers; one-by-one is process-1 without stacking."
)
SLOW = {("W2", "ray"): 2}  # rounds of what takes so long that it runs once


def run(argv: Sequence[str]) -> None:
    """Run every workload with every runner; exit with status 1 if one fails or has another result."""
    parser = parser_of("speed")
    parser.add_argument("--workloads", default="W1,W2", help="comma-separated: W1, W2")
    parser.add_argument("--runners", default=",".join(RUNNERS), help="comma-separated; the loop and inline are added")
    parser.add_argument("--repeats", type=int, default=3, help="times that every runner runs")
    parser.add_argument("--seed", type=int, default=0, help="of the data and of everything else")
    parser.add_argument("--out", type=Path, default=Path("runs/study-speed"), help="a new folder for the results")
    options, extra = parser.parse_known_args(argv)
    if extra:
        raise UserError(f"option {extra[0]}: no such option of the study; its workloads are fixed")
    workloads = [KNOWN[choose("workloads", name, KNOWN)] for name in options.workloads.split(",")]
    chosen = [choose("runners", name, RUNNERS) for name in options.runners.split(",")]
    if options.repeats < 1:
        raise UserError(f"repeats: must be at least 1, found {options.repeats}")
    wrong = study(workloads, chosen, options.repeats, options.seed, options.out)
    if wrong:
        raise SystemExit(f"failed: {'; '.join(wrong)}")


def study(workloads: Sequence[Workload], chosen: Sequence[str], repeats: int, seed: int, out: Path) -> list[str]:
    """Measure workloads into the folder `out`; return what is wrong with the runs, in words."""
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    notes: list[str] = []
    with writing(out) as home:
        for workload in workloads:
            path = home / f"{workload.name}.csv"
            workload.table(seed).to_csv(path, index=False)
            plan = planned(workload, list(dict.fromkeys((REFERENCE, LOOP, *chosen))), path, seed, notes)
            rows += [{"workload": workload.name, **row} for row in runs(workload, plan, repeats, wrong)]
        if not rows:
            raise SystemExit(f"failed: {'; '.join(wrong)}")
        table = summary(pd.DataFrame(rows))
        bad = [row for row in table if not row["agrees"]]
        wrong += [f"{r['workload']} {r['runner']}: {WRONG}, by {r['difference']:.3g}, {r['strayed']:.3g}" for r in bad]
        write_csv(home / "results.csv", rows)
        write_csv(home / "summary.csv", table)
        write_page(home / "report.html", table, [*wrong, *notes], facts(repeats, workloads))
    show(table, notes)
    print(f"report: {out / 'report.html'}")
    return wrong


def runs(workload: Workload, plan: dict[str, Experiment], repeats: int, wrong: list[str]) -> list[dict[str, Any]]:
    """Return a row of results for every run of a workload; `wrong` gets the runs that fail."""
    early = {name: e for name, e in plan.items() if name == REFERENCE or not RUNNERS[name].exact}
    first = attempted({n: e.model_copy(update={"rounds": 1, "eval_every": 1}) for n, e in early.items()}, 0, wrong)
    results: list[Result] = []
    for repeat in range(repeats):
        slow = {name for name in plan if repeat and (workload.name, name) in SLOW}
        results += attempted({name: e for name, e in plan.items() if name not in slow}, repeat, wrong)
    return compared(results, first)


def planned(workload: Workload, names: Sequence[str], path: Path, seed: int, notes: list[str]) -> dict[str, Experiment]:
    """Return the experiment of every runner that can run a workload; `notes` gets what is to be said of others."""
    found = {}
    for name in names:
        runner = RUNNERS[name]
        engine = runner.flags.split()[1]
        if engine not in get_args(Experiment.model_fields["engine"].annotation):
            notes.append(f"{name} was skipped on {workload.name}: this version has no engine {engine!r}")
            continue
        if engine == "ray" and find_spec("ray") is None:
            notes.append(f"{name} was skipped on {workload.name}: the package ray is not installed (the extra [ray])")
            continue
        rounds = SLOW.get((workload.name, name), workload.rounds)
        options = replace(workload, rounds=rounds).experiment(path)
        experiment = parse([*options, *runner.flags.split(), "--seed", str(seed)]).experiment
        if client_count(experiment) > runner.most:
            notes.append(f"{name} was skipped on {workload.name}: it would be a process for each client")
            continue
        if rounds != workload.rounds:
            notes.append(f"{name} ran once on {workload.name}, for {rounds} of {workload.rounds} rounds")
        found[name] = experiment
    return found


def summary(results: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a row for each workload and runner: medians over the repeats, the largest difference."""
    rows = []
    for (workload, runner), own in results.groupby(["workload", "runner"], sort=False):
        middle = {name: float(own[name].median()) for name in MEDIANS}
        bad = not own["agrees"].all()
        rows.append(
            {
                "workload": workload,
                "runner": runner,
                "repeats": len(own),
                **middle,
                "times": math.nan if bad else middle["times"],
                **{name: float(own[name].max()) for name in ("difference", "strayed")},
                "agrees": not bad,
            }
        )
    return rows


def printed(row: dict[str, Any]) -> dict[str, str]:
    """Return a row of the summary as it is printed, by heading."""
    travelled = row["bytes_down"] + row["bytes_up"]
    return {
        "runner": row["runner"],
        "times as fast": f"{row['times']:.3g}" if row["agrees"] else WRONG,
        "seconds a round": f"{row['seconds']:.3g}",
        "start-up, s": f"{row['startup']:.1f}",
        "peak MB": f"{row['megabytes']:.0f}",
        "MB sent a round": "" if math.isnan(travelled) else f"{travelled / 1e6:.1f}",
        "difference": f"{row['difference']:.1g}" if row["difference"] else "none",
    }


def write_page(path: Path, table: Sequence[dict[str, Any]], notes: Sequence[str], told: dict[str, str]) -> None:
    """Write the page of the study."""
    parts = []
    for name, words in {row["workload"]: KNOWN[row["workload"]].words for row in table}.items():
        own = [row for row in table if row["workload"] == name]
        right = [row for row in own if row["agrees"]]
        label = f"times as fast as the sequential loop, {name}"
        runners, times = [str(row["runner"]) for row in right], [row["times"] for row in right]
        figure = plots.bars(runners, times, name, label, f"{label}: {dict(zip(runners, times, strict=True))}")
        parts.append(Part(name, words, figure, [printed(row) for row in own]))
    write_measured(path, "How fast is a round?", WORDS, told["machine"], parts, notes, told)


def facts(repeats: int, workloads: Sequence[Workload]) -> dict[str, str]:
    """Return what a reader must know to measure again."""
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}"
    settings = {workload.name: workload.flags for workload in workloads}
    return {"machine": machine, "repeats": str(repeats), **settings, "versions": str(versions())}


def show(table: Sequence[dict[str, Any]], notes: Sequence[str]) -> None:
    """Print the summary of every workload."""
    console = Console(markup=False, emoji=False)
    for name in dict.fromkeys(row["workload"] for row in table):
        shown = Table(title=name, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        rows = [printed(row) for row in table if row["workload"] == name]
        for heading in rows[0]:
            shown.add_column(heading, justify="left" if heading == "runner" else "right")
        for row in rows:
            shown.add_row(*row.values())
        console.print(shown)
    for note in notes:
        console.print(note, highlight=False, markup=False)
