"""Methods side by side: `python -m simulations.studies methods --methods local,pooled,fedper --seeds 5`."""

import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fedrec.errors import choose
from fedrec.experiment import Experiment
from fedrec.metrics import Paired, higher_is_better, paired
from fedrec.report.findings import number
from fedrec.report.study import Part, interval, seeded, write_study
from fedrec.report.verdicts import verdicts
from fedrec.sharing import SHARINGS
from simulations.baselines import baseline, run_popularity
from simulations.cli import arm, heeded
from simulations.closing import SHORT
from simulations.engines import launch
from simulations.methods import METHODS
from simulations.studies.harness import Findings, Rows, Run, Study, facts
from simulations.studies.options import SEEDS, WORKERS
from simulations.studies.tables import Row, by_arm, ends, measures, records, spread

POPULARITY = "popularity"
# Some robust rules need more clients than there may be, SCAFFOLD needs sgd, and agreement volunteers.
USUAL = [
    name + (":optimiser=sgd:lr=10" if name == "scaffold" else "")
    for name, method in METHODS.items()
    if not (method.robust.active or method.agreement.active)
]
ENGINE = ("--engine", "inline")  # there is a run for each processor
HOLM = "Verdicts: 5% over all methods together (Holm); share: of pooled."
OPTIONS = {
    "methods": (
        ",".join(USUAL),
        "comma-separated, each with options of its own after colons; popularity is added",
    ),
    "seeds": (5, SEEDS),
    "workers": WORKERS,
}


def plan(options: Namespace) -> list[Run]:
    """Return a run for each seed and method, and popularity for each seed."""
    names = list(dict.fromkeys(options.methods.split(",")))
    experiments = {
        (name, seed): experiment_of(name, [*options.flags, "--seed", str(seed)])
        for seed in range(options.seeds)
        for name in names
    }
    experiments |= {(POPULARITY, seed): experiments[names[0], seed] for seed in range(options.seeds)}
    return [Run({"method": name, "seed": seed}, e, folder=f"{name}-{seed}") for (name, seed), e in experiments.items()]


def experiment_of(text: str, flags: Sequence[str]) -> Experiment:
    """Return the experiment of a method and its own options, such as `scaffold:optimiser=sgd:lr=10`.

    `--share` among the flags is for what is federated: `local` and `pooled` share nothing, and a method whose point is
    to share the heads too, and what else is of tasks, goes on doing so.
    """
    name, *own = text.split(":")
    choose("methods", name, METHODS)
    options = [f"--{one}" for one in own]
    e = arm([*ENGINE, *flags, "--method", name, *options])
    heeded(options, [e])
    if name in ("local", "pooled"):
        return baseline(e, name)
    rest = tuple(module for module in METHODS[name].share if module not in (*SHARINGS["shared-body"], *e.share))
    return e.model_copy(update={"share": (*e.share, *rest)}) if rest else e


def measure(run: Run, home: Path) -> Rows:
    """Return the test rows of a run with its labels."""
    train = run_popularity if run.labels["method"] == POPULARITY else launch
    train(run.experiment, home)
    rows = pd.read_csv(home / "clients.csv")
    return records(rows[rows["split"] == "test"].assign(**run.labels))


def findings(results: pd.DataFrame, runs: Sequence[Run], options: Namespace) -> Findings:
    """Return what the methods reach, and the page that compares them."""
    return compared(results, runs, options.seeds, "the mean over clients", facts(runs))


def compared(
    results: pd.DataFrame,
    runs: Sequence[Run],
    seeds: int,
    over: str,
    about: Mapping[str, str],
    notes: Sequence[str] = (),
) -> Findings:
    """Return what methods reach, `over` which clients, and the page that compares them."""
    rows = summary(results)
    sure = any(np.isfinite(row.get("minus_local_low", np.nan)) for row in rows)
    return Findings(
        [Part("", [texts(row) for row in rows])],
        rows,
        lambda path: write_study(path, rows, seeds, about, runs[0].experiment.negatives == "published"),
        seeded(seeds, f"{over}, 95% intervals over seeds"),
        [HOLM] * sure + [*notes],
    )


def summary(results: pd.DataFrame) -> list[Row]:
    """Return a row for each method, task and metric.

    It holds the mean over clients and seeds, its paired difference to `local` and to `pooled` with a Student-t interval
    over seeds, the verdict against `local`, corrected for the number of methods, and the share of `pooled` that it
    reaches.
    """
    rows: list[Row] = []
    for (task, metric), own in measures(results):
        values = by_arm(own, "method")
        gains: dict[str, Paired] = {}
        for name, mine in values.items():
            row: Row = {"task": task, "metric": metric, "method": name, **spread(mine)}
            for other in ("local", "pooled"):
                if other in values and other != name:
                    p = paired(mine, values[other])
                    gains |= {name: p} if other == "local" else {}
                    row |= ends(f"minus_{other}", p)
            if "local" in values and name != "local":
                row["worst"] = worst_client(own, metric, name)
            if "pooled" in values:
                row["share_of_pooled"] = float(mine.mean() / values["pooled"].mean())
            rows.append(row)
        words = dict(zip(gains, verdicts([metric] * len(gains), [*gains.values()], [0] * len(gains)), strict=True))
        for row in rows[-len(values) :]:
            if row["method"] in words:
                row["verdict"] = words[row["method"]]
    return rows


def worst_client(rows: pd.DataFrame, metric: str, method: str) -> float:
    """Return the least gain of any client against training alone, each client's mean over the seeds."""
    clients = rows.pivot_table(index=["client", "seed"], columns="method", values="value")
    gain = (clients[method] - clients["local"]).groupby("client").mean()
    return float(gain.min() if higher_is_better(metric) else gain.max())


def texts(row: Row) -> dict[str, str]:
    """Return a row of the summary as it is printed, by heading."""
    gain = interval(row, "minus_local", "+.3f") if "minus_local" in row else ""
    word = row.get("verdict", "")
    return {
        "metric": f"{row['task']} {row['metric']}",
        "method": row["method"],
        "mean": number(row["mean"], 4),
        "sd": number(row["sd"], 4),
        "minus local [95%]": re.sub(r"(?<=[+-])0(?=\.)", "", gain),  # so that a row fits into 80 columns
        "verdict": SHORT.get(word, word),
        "share": f"{row['share_of_pooled']:.2f}" if "share_of_pooled" in row else "",
    }


STUDY = Study("methods", OPTIONS, plan, measure, findings)
