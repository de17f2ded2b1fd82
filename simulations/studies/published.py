"""A published method under its own protocol and under ours: `python -m simulations.studies published --seeds 3`.

PFedRec (dual personalisation, arXiv 2301.08143) with the hyper-parameters of its authors' code; only those of the
pooled matrix factorisation are chosen here, on validation.
"""

import json
import math
import os
import resource
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from fedrec.data import pool
from fedrec.evaluation import evaluate
from fedrec.experiment import Experiment
from fedrec.folders import writing
from fedrec.holdings import clients_data, dataset
from fedrec.records import Record, write_csv
from fedrec.report.study import write_protocols
from fedrec.report.tables import LEAKING
from fedrec.scorers import PopularityScorer
from simulations.check import check
from simulations.cli import arm, heeded
from simulations.engines import launch
from simulations.studies.methods import facts
from simulations.studies.options import parsed, parser_of

# A batch of 51 positives with their 204 negatives is one of the authors' 256 rows, and the weight 1/5 makes the sum
# over a positive and its four negatives their mean over rows.
PUBLISHED = (
    "--dataset ml-100k --partition one-user --model item --dim 32 --init-std 1 --task rank-bce*0.2 --num-negatives 4 "
    "--batch-size 51 --local-epochs 1 --rounds 100 --optimiser sgd --lr 0.1 --l2 0 --weights uniform "
    "--metrics hr@10,ndcg@10 --candidates 99 --engine batched"
)
POOLED = "--model mf --init-std 0.1 --task rank-bce --batch-size 1024 --rounds 30 --optimiser adam --lrs= --patience 5"
GRID = tuple(f"--lr {lr} --l2 {l2}" for lr in (0.003, 0.01) for l2 in (0.003, 0.01, 0.03))
ETA = 80  # the item table's rate is 0.1 x items x ETA: lr_eta of the authors' code
PROTOCOLS = ("published", "train")
POPULARITY = "popularity of all users"


class Line(NamedTuple):
    """A line of the study: defaults that the command line may change, what is fixed, and what validation chooses."""

    defaults: str
    fixed: str
    grid: tuple[str, ...] = ("",)


LINES = {
    "PFedRec, dual": Line("", "--method pfedrec"),
    "server table, private head": Line("", "--method pfedrec --drift.personal none"),
    "pooled matrix factorisation": Line(POOLED, "--method pooled", GRID),
    POPULARITY: Line("", "--method local"),
    "local alone": Line("", "--method local"),
    "PFedRec, dual, full ranking": Line("", "--method pfedrec --candidates full"),
}


@dataclass(frozen=True)
class Job:
    """One line under one protocol and seed, and the experiments among which validation chooses."""

    method: str
    protocol: str
    seed: int
    experiments: tuple[Experiment, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of an experiment: the mean over users of each test metric, and its cost."""

    test: dict[str, float]
    validation: float = math.nan
    round: int = 0
    seconds: float = 0.0
    options: str = ""


def run(argv: Sequence[str]) -> None:
    """Run every line of the study under both protocols, and show them side by side."""
    parser = parser_of("published")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, each with one run")
    parser.add_argument("--out", type=Path, default=Path("runs/study-published"), help="a new folder for the results")
    options, flags = parsed(parser, argv)
    jobs = [
        Job(method, protocol, seed, experiments(line, flags, protocol, seed))
        for seed in range(options.seeds)
        for protocol in PROTOCOLS
        for method, line in LINES.items()
    ]
    heeded(flags, [one for job in jobs for one in job.experiments])
    for job in jobs:
        for experiment in job.experiments:
            check(experiment)
    with writing(options.out) as home:
        results = pd.DataFrame(list(run_all(jobs, options.workers)))
        results.to_csv(home / "results.csv", index=False)
        rows = summary(results)
        write_csv(home / "summary.csv", rows)
        first = jobs[0].experiments[0]
        same = facts({(job.method, job.seed): job.experiments[0] for job in jobs if job.method.startswith("PFedRec")})
        write_protocols(home / "report.html", rows, options.seeds, same, first.dataset == "ml-100k")
    several = f"{options.seeds} seeds: mean over users and seeds, sd over seeds"
    show(rows, several if options.seeds > 1 else "one seed: mean over users, no standard deviation")
    print(f"report: {options.out / 'report.html'}")


def experiments(line: Line, flags: Sequence[str], protocol: str, seed: int) -> tuple[Experiment, ...]:
    """Return the experiments of a line: the published settings, the line's own, the command line's, what is fixed."""
    fixed = [*line.fixed.split(), "--negatives", protocol, "--seed", str(seed)]
    usual = [*PUBLISHED.split(), *flags, *fixed]
    rate = ["--lrs", f"item_table={arm(usual).lr * len(dataset(arm(usual)).items) * ETA!r}"]
    given = [*PUBLISHED.split(), *rate, *line.defaults.split(), *flags, *fixed]
    return tuple(arm([*given, *choice.split()]) for choice in line.grid)


def run_all(jobs: Sequence[Job], workers: int) -> Iterable[dict[str, str | float]]:
    """Run every job in a process of its own, so that its memory is its own; yield a row for each of its metrics."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), max_tasks_per_child=1) as processes:
        for rows in processes.map(run_one, jobs):
            yield from rows


def run_one(job: Job) -> list[dict[str, str | float]]:
    """Run a job's experiments in this process, and return the test of the one with the best validation."""
    if job.method == POPULARITY:
        best = popularity(job.experiments[0])
    else:
        found = [trained(e, choice) for e, choice in zip(job.experiments, LINES[job.method].grid, strict=True)]
        best = max(found, key=lambda one: -math.inf if math.isnan(one.validation) else one.validation)
    # The process and the largest of those that its engine has started.
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    megabytes = sum(resource.getrusage(who).ru_maxrss for who in whose) / 1024
    about: dict[str, str | float] = {"protocol": job.protocol, "method": job.method, "seed": job.seed}
    cost = {"validation": best.validation, "round": best.round, "seconds": best.seconds, "megabytes": megabytes}
    return [
        {**about, "metric": name, "value": value, **cost, "options": best.options} for name, value in best.test.items()
    ]


def trained(experiment: Experiment, options: str = "") -> Outcome:
    """Train an experiment with its engine; its files, a tuned item table for each user, are not kept."""
    with TemporaryDirectory() as folder:
        home = Path(folder)
        launch(experiment, home)
        record = json.loads((home / "experiment.json").read_text(encoding="utf-8"))
        rounds, clients = pd.read_csv(home / "rounds.csv"), pd.read_csv(home / "clients.csv")
    chosen = rounds[rounds["round"] == record["selected_round"]]["validation"]
    return Outcome(means(clients), float(chosen.iloc[0]), record["selected_round"], record["seconds"], options)


def means(clients: pd.DataFrame) -> dict[str, float]:
    """Return the mean over clients of every test metric."""
    found = clients[clients["split"] == "test"].groupby("metric", sort=False)["value"].mean()
    return {str(name): float(value) for name, value in found.items()}


def popularity(experiment: Experiment) -> Outcome:
    """Return how all clients fare with the items that most users of all clients have; it needs no negatives.

    Every client carries the whole catalogue, so that its local items are everybody's.
    """
    e, record = experiment, Record()
    parts = clients_data(e)
    everyone = pool(parts)
    for data in parts:
        tasks = e.tasks(data.name)
        scorer = PopularityScorer.fit(tasks, everyone.train, len(everyone.items))
        found = evaluate(scorer, data, tasks, "test", metrics=e.metrics, candidates=e.candidates, seed=e.seed)
        record.score(0, "test", found.metrics, "cpu")
    return Outcome(means(pd.DataFrame(record.clients)))


def summary(results: pd.DataFrame) -> list[dict[str, str | float]]:
    """Return a row for each line, metric and protocol: mean and sd over seeds, and the mean and highest cost."""
    rows: list[dict[str, str | float]] = []
    for (method, metric, protocol), own in results.groupby(["method", "metric", "protocol"], sort=False):
        values = own["value"].to_numpy(np.float64)
        leaking = LEAKING if protocol == "published" and method != POPULARITY else ""
        rows.append(
            {
                "method": str(method),
                "metric": str(metric),
                "protocol": str(protocol),
                "mean": float(values.mean()),
                "sd": float(values.std(ddof=1)) if len(values) > 1 else math.nan,
                "warning": leaking,
                "seconds": float(own["seconds"].mean()),
                "megabytes": float(own["megabytes"].max()),
            }
        )
    return rows


def spread(row: Mapping[str, str | float]) -> str:
    """Return `0.719 ± 0.004`, without the deviation where there is none."""
    sd = float(row["sd"])
    return f"{row['mean']:.3f}" + ("" if math.isnan(sd) else f" ± {sd:.3f}")


def show(rows: Sequence[dict[str, str | float]], title: str) -> None:
    """Print both protocols side by side."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    metrics = list(dict.fromkeys(str(row["metric"]) for row in rows))
    table.add_column("method")
    for protocol in PROTOCOLS:
        for metric in metrics:
            table.add_column(f"{'published' if protocol == 'published' else 'leak-free'} {metric}", justify="right")
    cells = {(row["method"], row["protocol"], row["metric"]): row for row in rows}
    for method in dict.fromkeys(row["method"] for row in rows):
        line = [cells[method, protocol, metric] for protocol in PROTOCOLS for metric in metrics]
        table.add_row(str(method), *(f"{spread(r)}\n{r['warning']}".rstrip() for r in line))
    Console(markup=False, emoji=False).print(table)
