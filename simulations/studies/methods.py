"""Methods side by side: `python -m simulations.studies methods --methods local,pooled,fedper --seeds 5`."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fedrec.errors import choose
from fedrec.experiment.config import Experiment
from fedrec.metrics import higher_is_better
from fedrec.report.findings import change, label, number
from fedrec.report.study import Page, Part, forest, seeded
from fedrec.report.tables import LEAKING
from fedrec.report.verdicts import verdicts
from fedrec.sharing import SHARINGS
from simulations.baselines import baseline, run_popularity
from simulations.cli import arm, check_flags
from simulations.closing import SHORT, gap
from simulations.engines import launch
from simulations.methods import METHODS
from simulations.studies.harness import Findings, Rows, Run, Study, facts
from simulations.studies.options import SEEDS
from simulations.studies.tables import Row, band, by_arm, differences, ends, measures, read_test, records, spread

POPULARITY = "popularity"
# Some robust rules need more clients than there may be, SCAFFOLD needs sgd, and agreement volunteers.
USUAL = [
    name + (":optimiser=sgd:lr=10" if name == "scaffold" else "")
    for name, method in METHODS.items()
    if not (method.robust.active or method.agreement.active)
]
GAPS = {"minus_local": "local", "minus_pooled": "pooled"}
ENGINE = ("--engine", "inline")  # there is a run for each processor
HOLM = "Verdicts: 5% over all methods together (Holm); share: of pooled."
WORDS = (
    "For a seed, all methods have the same data, start and order; validation chooses the round. Popularity is what the "
    "training rows of all clients say of each item: counted for this page, sent to nobody, not private."
)
VERDICTS = (
    "Each method minus training alone, the mean over clients, with its interval over seeds where there are several. "
    "Verdicts: 5% over all methods of the table together (Holm). “Unclear after Holm”: the interval excludes 0, but no "
    "longer when corrected."
)
OPTIONS = {
    "methods": (
        ",".join(USUAL),
        "comma-separated, each with options of its own after colons; popularity is added",
    ),
    "seeds": (5, SEEDS),
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
    name, *words = text.split(":")
    choose("methods", name, METHODS)
    options = [f"--{word}" for word in words]
    e = arm([*ENGINE, *flags, "--method", name, *options])
    check_flags(options, [e])
    if name in ("local", "pooled"):
        return baseline(e, name)
    rest = tuple(module for module in METHODS[name].share if module not in (*SHARINGS["shared-body"], *e.share))
    return e.model_copy(update={"share": (*e.share, *rest)}) if rest else e


def measure(run: Run, home: Path) -> Rows:
    """Return the test rows of a run with its labels."""
    train = run_popularity if run.labels["method"] == POPULARITY else launch
    train(run.experiment, home)
    return records(read_test(home).assign(**run.labels))


def findings(
    results: pd.DataFrame,
    runs: Sequence[Run],
    options: Namespace,
    over: str = "the mean over clients",
    about: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Findings:
    """Return what methods reach, `over` which clients, and the page that compares them; `about` are its facts."""
    rows = summary(results)
    sure = any(np.isfinite(row.get("minus_local_low", np.nan)) for row in rows)
    leaking = f"{LEAKING}: " * (runs[0].experiment.negatives == "published")
    page = Page(
        f"{leaking}Which way of working together pays?",
        WORDS,
        seeded(options.seeds, f"{over}, 95% intervals over seeds"),
        [part(rows, *measure) for measure in dict.fromkeys((row["task"], row["metric"]) for row in rows)],
        about or facts(runs),
    )
    return Findings(rows, page, [Part("", [brief(row) for row in rows])], notes=[HOLM] * sure + [*notes])


def summary(results: pd.DataFrame) -> list[Row]:
    """Return a row for each method, task and metric.

    It holds the mean over clients and seeds, its paired difference to `local` and to `pooled` with a Student-t interval
    over seeds, the verdict against `local`, corrected for the number of methods, and the share of `pooled` that it
    reaches.
    """
    rows: list[Row] = []
    for (task, metric), group in measures(results):
        values, clients = by_arm(group, "method"), group.pivot_table("value", ["client", "seed"], "method")
        gaps = {name: differences(values, name, GAPS) for name in values}
        gains = {name: pairs["minus_local"] for name, pairs in gaps.items() if "minus_local" in pairs}
        words = dict(zip(gains, verdicts([metric] * len(gains), [*gains.values()], [0] * len(gains)), strict=True))
        for name, scores in values.items():
            row: Row = {"task": task, "metric": metric, "method": name, **spread(scores), **ends(gaps[name])}
            if name in gains:  # of any client, each the mean over the seeds
                gain = (clients[name] - clients["local"]).groupby("client").mean()
                least = gain.min() if higher_is_better(metric) else gain.max()
                row |= {"worst": float(least), "verdict": words[name]}
            if "pooled" in values:
                row["share_of_pooled"] = float(scores.mean() / values["pooled"].mean())
            rows.append(row)
    return rows


def part(rows: Sequence[Row], task: str, metric: str) -> Part:
    """Return the table and the figure of one metric."""
    lines = [row for row in rows if (row["task"], row["metric"]) == (task, metric)]
    gains = [(row["method"], *band(row, "minus_local"), row["verdict"]) for row in lines if "verdict" in row]
    figure = forest(gains, f"{task}-{metric}", f"{label(metric)} minus alone") if gains else None
    return Part(f"{task}: {label(metric)}", [texts(row) for row in lines], VERDICTS, figure)


def texts(row: Row) -> dict[str, str]:
    """Return a row as it is printed, by heading."""
    return {
        "Method": row["method"],
        "Mean": number(row["mean"]),
        "SD": number(row["sd"]),
        "Minus alone": change(*band(row, "minus_local")) if "minus_local" in row else "",
        "Verdict": row.get("verdict", ""),
        "Minus pooled": change(*band(row, "minus_pooled")) if "minus_pooled" in row else "",
        "Of pooled": f"{row['share_of_pooled']:.0%}" if "share_of_pooled" in row else "",
        "Worst client": change(row["worst"]) if "worst" in row else "",
    }


def brief(row: Row) -> dict[str, str]:
    """Return a row of the summary for the terminal, where it fits into 80 columns."""
    shown = texts(row)
    return {
        "metric": f"{row['task']} {row['metric']}",
        "method": row["method"],
        "mean": number(row["mean"], 4),
        "sd": number(row["sd"], 4),
        "minus local [95%]": gap(*band(row, "minus_local")) if "minus_local" in row else "",
        "verdict": SHORT.get(shown["Verdict"], shown["Verdict"]),
        "share": shown["Of pooled"],
    }


STUDY = Study("methods", OPTIONS, plan, measure, findings)
