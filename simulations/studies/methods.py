"""Methods side by side: `python -m simulations.studies methods --methods local,pooled,fedper --seeds 5`."""

import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from fedrec.errors import UserError, choose
from fedrec.experiment import Experiment
from fedrec.folders import writing
from fedrec.holdings import clients_data
from fedrec.metrics import Paired, higher_is_better, paired
from fedrec.records import write_csv
from fedrec.report.findings import number
from fedrec.report.study import interval, seeded, write_study
from fedrec.report.verdicts import verdicts
from simulations.baselines import baseline, run_popularity
from simulations.check import check
from simulations.cli import arm, heeded
from simulations.closing import SHORT
from simulations.methods import BODY, METHODS
from simulations.studies.options import parser_of

POPULARITY = "popularity"
METHODS_HELP = "comma-separated, each with options of its own after colons; popularity is always added"


def run(argv: Sequence[str]) -> None:
    """Run a set of methods on one experiment with paired seeds, and compare them with training alone."""
    # Some robust rules need more clients than there may be, SCAFFOLD needs sgd, and agreement volunteers.
    chosen = [name for name, method in METHODS.items() if not (method.robust.active or method.agreement.active)]
    usual = [name + (":optimiser=sgd:lr=10" if name == "scaffold" else "") for name in chosen]
    parser = parser_of("methods")
    parser.add_argument("--methods", default=",".join(usual), help=METHODS_HELP)
    parser.add_argument("--seeds", type=int, default=5, help="paired seeds: 0, 1, ... share data, start and order")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--out", type=Path, default=Path("runs/study-methods"), help="a new folder for the results")
    options, flags = parser.parse_known_args(argv)
    names = options.methods.split(",")
    if options.seeds < 1 or options.workers < 1:
        raise UserError(f"seeds, workers: must be at least 1, found {options.seeds}, {options.workers}")
    runs = {
        (name, seed): experiment_of(name, [*flags, "--seed", str(seed)])
        for seed in range(options.seeds)
        for name in names
    }
    heeded(flags, runs.values())
    for experiment in runs.values():
        check(experiment)
    with writing(options.out) as home:
        results = pd.concat(run_all(runs, home, options.workers))
        results.to_csv(home / "results.csv", index=False)
        table = summary(results, [*names, POPULARITY])
        write_csv(home / "summary.csv", table)
        write_study(
            home / "report.html", table, options.seeds, facts(runs), next(iter(runs.values())).negatives == "published"
        )
    show(table, seeded(options.seeds, "the mean over clients, 95% intervals over seeds"))
    print(f"report: {options.out / 'report.html'}")


def experiment_of(text: str, flags: Sequence[str]) -> Experiment:
    """Return the experiment of a method and its own options, such as `scaffold:optimiser=sgd:lr=10`.

    `--share` among the flags is for what is federated: `local` and `pooled` share nothing, and a method whose point is
    to share the heads too, and what else is of tasks, goes on doing so.
    """
    name, *own = text.split(":")
    choose("methods", name, METHODS)
    options = [f"--{one}" for one in own]
    e = arm([*flags, "--method", name, *options])
    heeded(options, [e])
    if name in ("local", "pooled"):
        return baseline(e, name)
    rest = tuple(module for module in METHODS[name].share if module not in (*BODY, *e.share))
    return e.model_copy(update={"share": (*e.share, *rest)}) if rest else e


def facts(runs: dict[tuple[str, int], Experiment]) -> dict[str, str]:
    """Return the fields in which a study's experiments agree and that are not at their defaults."""
    dumps = [e.model_dump(mode="json") for e in runs.values()]
    usual = Experiment().model_dump(mode="json")
    same = {name for name in usual if all(dump[name] == dumps[0][name] for dump in dumps)}
    return {name: str(dumps[0][name]) for name in usual if name in same and dumps[0][name] != usual[name]}


def run_all(runs: dict[tuple[str, int], Experiment], home: Path, workers: int) -> Iterable[pd.DataFrame]:
    """Run every experiment in a pool of processes; return the test rows of each, and of popularity for each seed."""
    jobs = [(name, seed, e, home / f"{name}-{seed}") for (name, seed), e in runs.items()]
    first = next(iter(runs))[0]
    jobs += [(POPULARITY, seed, e, home / f"{POPULARITY}-{seed}") for (name, seed), e in runs.items() if name == first]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(run_one, jobs)


def run_one(job: tuple[str, int, Experiment, Path]) -> pd.DataFrame:
    """Run one experiment in this process; return its test rows with its method and seed."""
    from simulations.apps import apps_for
    from simulations.engines import run_inline

    name, seed, experiment, home = job
    if name == POPULARITY:
        run_popularity(experiment, home)
    else:
        home.mkdir()
        run_inline(*apps_for(experiment, home), len(clients_data(experiment)))
    rows = pd.read_csv(home / "clients.csv")
    return rows[rows["split"] == "test"].assign(method=name, seed=seed)


def summary(results: pd.DataFrame, names: Sequence[str]) -> list[dict[str, str | float]]:
    """Return a row for each method, task and metric.

    It holds the mean over clients and seeds, its paired difference to `local` and to `pooled` with a Student-t interval
    over seeds, the verdict against `local`, corrected for the number of methods, and the share of `pooled` that it
    reaches.
    """
    means = results.groupby(["task", "metric", "method", "seed"])["value"].mean()
    rows: list[dict[str, str | float]] = []
    for task, metric in dict.fromkeys(zip(results["task"], results["metric"], strict=True)):
        gains: dict[str, Paired] = {}
        by_method = {name: means.loc[task, metric, name].sort_index().to_numpy(np.float64) for name in names}
        for name, values in by_method.items():
            row: dict[str, str | float] = {"task": task, "metric": metric, "method": name, "mean": float(values.mean())}
            row["sd"] = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
            for other in ("local", "pooled"):
                if other in by_method and other != name:
                    p = paired(values, by_method[other])
                    gains |= {name: p} if other == "local" else {}
                    row |= {f"minus_{other}": p.mean, f"minus_{other}_low": p.low, f"minus_{other}_high": p.high}
            if "local" in by_method and name != "local":
                row["worst"] = worst_client(results, task, metric, name)
            if "pooled" in by_method:
                row["share_of_pooled"] = float(values.mean() / by_method["pooled"].mean())
            rows.append(row)
        words = dict(zip(gains, verdicts([metric] * len(gains), [*gains.values()], [0] * len(gains)), strict=True))
        for row in rows[-len(by_method) :]:
            if (name := str(row["method"])) in words:
                row["verdict"] = words[name]
    return rows


def worst_client(results: pd.DataFrame, task: str, metric: str, method: str) -> float:
    """Return the least gain of any client against training alone, each client's mean over the seeds."""
    rows = results[(results["task"] == task) & (results["metric"] == metric)]
    clients = rows.pivot_table(index=["client", "seed"], columns="method", values="value")
    gain = (clients[method] - clients["local"]).groupby("client").mean()
    return float(gain.min() if higher_is_better(metric) else gain.max())


def show(rows: Sequence[dict[str, str | float]], title: str) -> None:
    """Print a summary as a table."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for name in ("metric", "method", "mean", "sd", "minus local [95%]", "verdict", "share"):
        table.add_column(name, no_wrap=name != "method", overflow="fold")
    for row in rows:
        gain = interval(row, "minus_local", "+.3f") if "minus_local" in row else ""
        gain = re.sub(r"(?<=[+-])0(?=\.)", "", gain)  # so that a row fits into 80 columns
        share = f"{row['share_of_pooled']:.2f}" if "share_of_pooled" in row else ""
        measure = f"{row['task']} {row['metric']}"
        word = str(row.get("verdict", ""))
        cells = (number(float(row["mean"]), 4), number(float(row["sd"]), 4), gain, SHORT.get(word, word), share)
        table.add_row(measure, str(row["method"]), *cells)
    console = Console(markup=False, emoji=False)
    console.print(table)
    if any(np.isfinite(float(row.get("minus_local_low", "nan"))) for row in rows):
        console.print("Verdicts: 5% over all methods together (Holm); share: of pooled.", highlight=False)
