"""Cold items: `python -m simulations.studies cold --seeds 5 --dataset ml-100k --data-dir PATH`, what texts are worth.

Rounds, learning rate and dropout were chosen on the validation of seed 100: `--first-seed 100 --seeds 1 --lr 0.02`.
"""

import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from time import process_time

import numpy as np
import pandas as pd

from clients.recommend import params_of
from fedrec.data import ClientData, Content
from fedrec.data.encoder import PACKAGE
from fedrec.errors import choose
from fedrec.evaluation.evaluate import evaluate
from fedrec.evaluation.scorers import ModelScorer, PopularityScorer, Scorer
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data, item_content, reader
from fedrec.metrics import paired, parse_metric
from fedrec.report.findings import number
from fedrec.report.results import read_clients
from fedrec.report.study import Page, Part, interval, seeded
from simulations.cli import arm as arm_of
from simulations.engines import launch
from simulations.studies.harness import Findings, Rows, Run, Study, facts
from simulations.studies.tables import Row, by_arm, spread

USUAL = (
    "--method fedper --clients 5 --partition users --engine inline --task rank --metrics ndcg@10 "
    "--local-epochs 1 --batch-size 1024"
)
METRIC, IDS = "ndcg@10", "ids alone"
NEW, ALL, KNOWN = "new among new", "new among all", "known among all"
TABLES = {
    NEW: "New items, ranked among one another",
    ALL: "New items, ranked among the whole catalogue",
    KNOWN: "Known items: the last item of every user is held out, and ranked among the whole catalogue",
}
WORDS = (
    "An item that is new is in no row of training, and no negative either: a model would learn that nobody likes it. "
    "What is known of it is its title and its categories. Mean and standard deviation over the seeds, each of which "
    "makes other items new; intervals are of the paired differences to ids alone, at 95%."
)
NOTES = (
    "Ids alone and popularity know nothing of a new item. Where popularity is 0 it is so by the rule that a tie counts "
    "against the item: chance is what they are to be compared with.",
    "Words, or sentences, that are liked are no model of users: a ridge regression of how often items were met, by all "
    "silos together, on the same vectors. What is above it is personal.",
    "Rounds, learning rate and dropout were chosen on the validation of seed 100, the round of a run on its own.",
)
SPLITS = {
    "new-items": "--split new-items --rounds 4 --lr 0.01",
    "leave-one-out": "--split leave-one-out --rounds 10 --lr 0.02",
}
SENTENCES = "--content.kind minilm"
ARMS = {
    IDS: "",
    "hashed words": "--content.kind hashed",
    "hashed words, ids hidden": "--content.kind hashed --content.dropout 0.3",
    "sentences": SENTENCES,
    "sentences, ids hidden": f"{SENTENCES} --content.dropout 0.3",
    "sentences, silos alone": f"{SENTENCES} --content.dropout 0.3 --method local",
}
POPULARITY, CHANCE = "popularity", "chance"
LIKED = {"words that are liked": "hashed", "sentences that are liked": "minilm"}
OPTIONS = {
    "arms": ("", f"arms, joined by ';', ids alone is added [all]: {'; '.join(ARMS)}"),
    "splits": (",".join(SPLITS), "comma-separated splits"),
    "seeds": (5, "paired seeds; each makes other items new"),
    "first-seed": (0, "the first of the seeds"),
}


def plan(options: Namespace) -> list[Run]:
    """Return a run for each split, arm and seed; POPULARITY stands for what is compared with and not trained."""
    return [
        Run({"arm": arm, "split": split, "seed": seed}, experiment_of(arm, split, seed, options.flags))
        for split in [choose("splits", name, SPLITS) for name in options.splits.split(",")]
        for arm in [POPULARITY, *chosen(options.arms)]
        for seed in range(options.first_seed, options.first_seed + options.seeds)
    ]


def chosen(text: str) -> list[str]:
    """Return the arms of a text, ids alone among them; without one all whose packages are installed."""
    if text:
        return list(dict.fromkeys([IDS, *(choose("arms", arm.strip(), ARMS) for arm in text.split(";"))]))
    return [arm for arm, options in ARMS.items() if encoder() or SENTENCES not in options]


def encoder() -> bool:
    """Return whether the packages of the sentence encoder are installed."""
    return find_spec(PACKAGE) is not None and find_spec("tokenizers") is not None


def experiment_of(arm: str, split: str, seed: int, flags: Sequence[str]) -> Experiment:
    """Return the experiment of an arm; what `flags` say holds for all arms."""
    return arm_of([*USUAL.split(), *SPLITS[split].split(), *ARMS.get(arm, "").split(), *flags, "--seed", str(seed)])


def measure(run: Run, home: Path) -> Rows:
    """Return a row for each measure of a run, with its best validation."""
    began, validation = process_time(), float("nan")
    if run.labels["arm"] == POPULARITY:
        values = baselines(run.experiment)
    else:
        launch(run.experiment, home)
        rows = read_clients(home)
        held = rows[rows["split"] == "validation"].groupby("round")["value"].mean()
        validation = float(held.max())
        e = run.experiment
        trained = {
            data.name: ModelScorer(reader(e, data, "test"), params_of(home, e, data)) for data in clients_data(e)
        }
        values = {(run.labels["arm"], name): value for name, value in measured(e, trained).items()}
    about = {"split": run.labels["split"], "seed": run.labels["seed"], "validation": validation}
    seconds = process_time() - began
    return [{"arm": a, "measure": m, "value": v, **about, "seconds": seconds} for (a, m), v in values.items()]


def measured(experiment: Experiment, scorers: dict[str, Scorer] | dict[str, ModelScorer]) -> dict[str, float]:
    """Return the mean over clients of each measure of the experiment's split, given every client's scorer."""
    scores: dict[str, list[float]] = {}
    for data in clients_data(experiment):
        views = {KNOWN: data} if data.new is None else {NEW: data, ALL: replace(data, new=None)}
        for name, view in views.items():
            e, tasks = experiment, experiment.tasks(data.name)
            test = evaluate(
                scorers[data.name], view, tasks, "test", metrics=(METRIC,), candidates=e.candidates, seed=e.seed
            )
            scores.setdefault(name, []).append(test.metrics[data.name, tasks[0].name, METRIC])
    return {name: float(np.mean(values)) for name, values in scores.items()}


def baselines(experiment: Experiment) -> dict[tuple[str, str], float]:
    """Return the measures of what knows no user, by (arm, measure)."""
    parts = clients_data(experiment)
    counted: dict[str, Scorer] = {}
    for data in parts:
        counted[data.name] = PopularityScorer.fit(experiment.tasks(data.name), data.train, len(data.items))
    values = {(POPULARITY, name): value for name, value in measured(experiment, counted).items()}
    for arm, kind in LIKED.items():
        if kind == "hashed" or encoder():
            scorer = liked(experiment.model_copy(update={"content": Content(kind=kind)}))
            everywhere: dict[str, Scorer] = dict.fromkeys(counted, scorer)
            values |= {(arm, name): value for name, value in measured(experiment, everywhere).items()}
    if parts[0].new is not None:
        values[CHANCE, NEW] = float(np.mean([chance(data) for data in parts]))
    return values


def liked(experiment: Experiment, ridge: float = 1.0) -> PopularityScorer:
    """Return the ridge regression w of log(1 + positives of all clients) on the content of what was met in training.

    (C'C + ridge I) w = C'(y - mean y), C [items met, d]; scores are C w. Clients must carry the whole catalogue.
    """
    parts, content = clients_data(experiment), item_content(experiment)[0]
    assert content is not None
    c, count = content.double().numpy(), np.zeros(len(content))
    for data in parts:
        count += np.bincount(data.train.item[data.train.positive], minlength=len(count))
    met = parts[0].offered("train")
    y = np.log1p(count[met])
    w = np.linalg.solve(c[met].T @ c[met] + ridge * np.eye(c.shape[1]), c[met].T @ (y - y.mean()))
    (task,) = experiment.tasks(parts[0].name)
    return PopularityScorer({task.name: (c @ w).astype(np.float32)})


def chance(data: ClientData) -> float:
    """Return the expected NDCG@k of a random order of a client's new test items, the mean over its users.

    Of m relevant among n items each place holds a relevant one with m / n: m / n D(min(k, n)) / D(min(k, m)), where
    D(k) = sum_{i <= k} 1 / log2(1 + i).
    """
    n = int(data.offered("test").sum())
    _, k = parse_metric(METRIC)
    assert k is not None
    m = np.bincount(data.test.user[data.test.positive])
    m = m[m > 0]
    d = np.concatenate([[0], np.cumsum(1 / np.log2(1 + np.arange(1, k + 1)))])
    return float((m / n * d[min(k, n)] / d[np.minimum(k, m)]).mean())


def findings(results: pd.DataFrame, runs: Sequence[Run], options: Namespace) -> Findings:
    """Return what every arm reaches, and its page."""
    rows = summary(results)
    title = "What is a text worth for an item that nobody has met?"
    page = Page(title, WORDS, seeded(options.seeds), parts(rows), facts(runs), NOTES)
    each = results[~results["arm"].isin([*LIKED, CHANCE])].drop_duplicates(["arm", "split", "seed"])
    return Findings(rows, page, notes=[f"{each['seconds'].sum():.0f} s of processors"])


def summary(results: pd.DataFrame) -> list[Row]:
    """Return a row for each measure and arm: mean, sd, the best validation's mean, and the difference to ids alone."""
    rows: list[Row] = []
    for name in TABLES:
        group = results[results["measure"] == name]
        values, held = by_arm(group, "arm"), group.groupby("arm")["validation"].mean()
        for arm, runs in values.items():
            gap = paired(runs, values[IDS])
            row = {"measure": name, "arm": arm, "seeds": len(runs), **spread(runs), "validation": float(held.loc[arm])}
            rows.append({**row, "minus_ids": gap.mean, "low": gap.low, "high": gap.high})
    return rows


def parts(rows: Sequence[Row]) -> list[Part]:
    """Return the tables of the measures that there are."""
    tables = [Part(words, [texts(row) for row in rows if row["measure"] == name]) for name, words in TABLES.items()]
    return [part for part in tables if part.rows]


def texts(row: Row) -> dict[str, str]:
    """Return a row as it is printed, by heading."""
    return {
        "arm": row["arm"],
        METRIC.upper(): number(row["mean"], 4),
        "sd": number(row["sd"], 4),
        "minus ids alone [95%]": "" if row["arm"] == IDS else interval(row, "minus_ids", "+.3f", ("low", "high")),
        "validation": "" if math.isnan(row["validation"]) else number(row["validation"], 4),
    }


STUDY = Study("cold", OPTIONS, plan, measure, findings)
