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

import pandas as pd

from fedrec.errors import UserError, choose
from fedrec.experiment.config import Experiment
from fedrec.experiment.records import versions, write_csv
from fedrec.folders import writing
from fedrec.report import plots
from fedrec.report.study import Page, Part
from simulations.check import client_count
from simulations.cli import parse
from simulations.studies.harness import Findings, show, write
from simulations.studies.options import parse_options
from simulations.studies.runners import LOOP, REFERENCE, RUNNERS, Result, attempted, compare, doubtful
from simulations.studies.tables import Row, records
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
    "that are stacked). There it may be 1e-5, or more if it is at most 1e-8 in float64: at its kink a ReLU makes much "
    "of how a sum is rounded. process-1 and process-2 have so many workers; one-by-one is process-1 without stacking."
)
OPTIONS = {
    "workloads": ("W1,W2", "comma-separated: W1, W2"),
    "runners": (",".join(RUNNERS), "comma-separated; the loop and inline are added"),
    "repeats": (3, "times that every runner runs"),
    "seed": (0, "of the data and of everything else"),
}
SLOW = {("W2", "ray"): 2}  # rounds of what takes so long that it runs once


def run(argv: Sequence[str]) -> None:
    """Run every workload with every runner; exit with status 1 if one fails or has another result."""
    options = parse_options("speed", OPTIONS, argv)
    if options.flags:
        raise UserError(f"option {options.flags[0]}: no such option of the study; its workloads are fixed")
    workloads = [KNOWN[choose("workloads", name, KNOWN)] for name in options.workloads.split(",")]
    chosen = [choose("runners", name, RUNNERS) for name in options.runners.split(",")]
    wrong = study(workloads, chosen, options.repeats, options.seed, options.out)
    if wrong:
        raise SystemExit(f"failed: {'; '.join(wrong)}")


def study(workloads: Sequence[Workload], chosen: Sequence[str], repeats: int, seed: int, out: Path) -> list[str]:
    """Measure workloads into the folder `out`; return what is wrong with the runs, in words."""
    rows: list[Row] = []
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
        wrong += [f"{r['workload']} {r['runner']}: {WRONG}, by {difference(r)}, losses {r['strayed']:.3g}" for r in bad]
        write_csv(home / "results.csv", rows)
        machine = f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}"
        settings = {workload.name: workload.flags for workload in workloads}
        facts = {"machine": machine, "repeats": str(repeats), **settings, "versions": str(versions())}
        page = page_of(table, [*wrong, *notes], facts)
        findings = Findings(table, page, notes=notes)
        write(home, findings)
    show(out, findings)
    return wrong


def runs(workload: Workload, plan: dict[str, Experiment], repeats: int, wrong: list[str]) -> list[Row]:
    """Return a row of results for every run of a workload; `wrong` gets the runs that fail."""
    early = {name: e for name, e in plan.items() if name == REFERENCE or not RUNNERS[name].exact}
    once = {name: e.model_copy(update={"rounds": 1, "eval_every": 1}) for name, e in early.items()}
    first = attempted(once, 0, wrong)
    double = attempted({name: once[name] for name in doubtful(first)}, 0, wrong, double=True)
    results: list[Result] = []
    for repeat in range(repeats):
        slow = {name for name in plan if repeat and (workload.name, name) in SLOW}
        results += attempted({name: e for name, e in plan.items() if name not in slow}, repeat, wrong)
    return compare(results, first, double)


def planned(workload: Workload, names: Sequence[str], path: Path, seed: int, notes: list[str]) -> dict[str, Experiment]:
    """Return the experiment of every runner that can run a workload; `notes` gets what is to be said of others."""
    plan = {}
    for name in names:
        runner, rounds = RUNNERS[name], SLOW.get((workload.name, name), workload.rounds)
        options = replace(workload, rounds=rounds).experiment(path)
        experiment = parse([*options, *runner.flags.split(), "--seed", str(seed)]).experiment
        bare = experiment.engine == "ray" and find_spec("ray") is None
        if bare or client_count(experiment) > runner.most:
            missing = "the package ray is not installed (the extra [ray])"
            why = missing if bare else "it would be a process for each client"
            notes.append(f"{name} was skipped on {workload.name}: {why}")
            continue
        if rounds != workload.rounds:
            notes.append(f"{name} ran once on {workload.name}, for {rounds} of {workload.rounds} rounds")
        plan[name] = experiment
    return plan


def summary(results: pd.DataFrame) -> list[Row]:
    """Return a row for each workload and runner: medians over the repeats, the largest difference."""
    columns = {"repeats": ("repeat", "size")} | {name: (name, "median") for name in MEDIANS}
    largest = ("difference", "difference_in_double", "strayed")
    columns |= {**{name: (name, "max") for name in largest}, "agrees": ("agrees", "all")}
    table = results.groupby(["workload", "runner"], sort=False).agg(**columns).reset_index()
    return records(table.assign(times=table["times"].where(table["agrees"])))


def texts(row: Row) -> dict[str, str]:
    """Return a row as it is printed, by heading."""
    travelled = row["bytes_down"] + row["bytes_up"]
    return {
        "runner": row["runner"],
        "times as fast": f"{row['times']:.3g}" if row["agrees"] else WRONG,
        "seconds a round": f"{row['seconds']:.3g}",
        "start-up, s": f"{row['startup']:.1f}",
        "peak MB": f"{row['megabytes']:.0f}",
        "MB sent a round": "" if math.isnan(travelled) else f"{travelled / 1e6:.1f}",
        "difference": difference(row) if row["difference"] else "none",
    }


def difference(row: Row) -> str:
    """Return how far a result is off, also in float64 if it was run so, in words."""
    fine = row["difference_in_double"]
    return f"{row['difference']:.2g}" + ("" if math.isnan(fine) else f", in float64 {fine:.2g}")


def page_of(table: Sequence[Row], notes: Sequence[str], facts: dict[str, str]) -> Page:
    """Return the page of the study."""
    parts = []
    for name, words in {row["workload"]: KNOWN[row["workload"]].words for row in table}.items():
        lines = [row for row in table if row["workload"] == name]
        right = [row for row in lines if row["agrees"]]
        label = f"times as fast as the sequential loop, {name}"
        runners, times = [str(row["runner"]) for row in right], [row["times"] for row in right]
        figure = plots.bars(runners, times, name, label, f"{label}: {dict(zip(runners, times, strict=True))}")
        parts.append(Part(name, [texts(row) for row in lines], words, figure))
    return Page("How fast is a round?", WORDS, facts["machine"], parts, facts, notes)
