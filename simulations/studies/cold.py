"""Cold items: `python -m simulations.studies cold --seeds 5 --dataset ml-100k --data-dir PATH`, what texts are worth.

Rounds, learning rate and dropout were chosen on the validation of seed 100: `--first-seed 100 --seeds 1 --lr 0.02`.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import numpy as np
import pandas as pd

from clients.recommend import params_of
from fedrec.data import ClientData, Content
from fedrec.data.encoder import PACKAGE
from fedrec.errors import choose
from fedrec.evaluation import evaluate
from fedrec.experiment import Experiment
from fedrec.folders import writing
from fedrec.holdings import clients_data, item_content, reader
from fedrec.metrics import paired, parse_metric
from fedrec.scorers import ModelScorer, PopularityScorer, Scorer
from simulations.check import check
from simulations.cli import arm as arm_of
from simulations.cli import heeded
from simulations.engines import launch
from simulations.studies.cold_page import ALL, IDS, KNOWN, METRIC, NEW, TABLES, show, write_page
from simulations.studies.options import parsed, parser_of

USUAL = (
    "--method fedper --clients 5 --partition users --engine inline --task rank --metrics ndcg@10 "
    "--local-epochs 1 --batch-size 1024"
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


@dataclass(frozen=True)
class Job:
    """One run of the study; `arm` POPULARITY stands for what is compared with and not trained."""

    arm: str
    split: str
    seed: int
    experiment: Experiment


def run(argv: Sequence[str]) -> None:
    """Run every arm on both splits with paired seeds; every option of a run may be given too."""
    parser = parser_of("cold")
    parser.add_argument("--arms", default="", help=f"arms, joined by ';', ids alone is added [all]: {'; '.join(ARMS)}")
    parser.add_argument("--splits", default=",".join(SPLITS), help="comma-separated splits")
    parser.add_argument("--seeds", type=int, default=5, help="paired seeds; each makes other items new")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--out", type=Path, default=Path("runs/study-cold"), help="a new folder for the results")
    options, flags = parsed(parser, argv)
    arms = chosen(options.arms)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    jobs = [
        Job(arm, choose("splits", split, SPLITS), seed, experiment_of(arm, split, seed, flags))
        for split in options.splits.split(",")
        for arm in [POPULARITY, *arms]
        for seed in seeds
    ]
    heeded(flags, [job.experiment for job in jobs])
    for job in jobs[:: len(seeds)]:  # one seed of each; and the texts are encoded once, before there are many processes
        check(job.experiment)
    with writing(options.out) as home:
        results = pd.DataFrame(run_all(jobs, options.workers))
        results.to_csv(home / "results.csv", index=False)
        table = summary(results)
        table.to_csv(home / "summary.csv", index=False)
        write_page(home / "report.html", table, len(seeds), [job.experiment for job in jobs])
    show(table)
    each = results[~results["arm"].isin([*LIKED, CHANCE])].drop_duplicates(["arm", "split", "seed"])
    print(f"{each['seconds'].sum():.0f} s of processors")
    print(f"report: {options.out / 'report.html'}")


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


def run_all(jobs: Sequence[Job], workers: int) -> Iterator[dict[str, str | float]]:
    """Run every job in a pool of processes; yield its rows of results."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for rows in pool.map(run_one, jobs):
            yield from rows


def run_one(job: Job) -> list[dict[str, str | float]]:
    """Run one job in this process; return a row for each measure, with the best validation of the run."""
    import torch

    torch.set_num_threads(1)
    began, validation = process_time(), float("nan")
    if job.arm == POPULARITY:
        found = baselines(job.experiment)
    else:
        with TemporaryDirectory() as folder:
            launch(job.experiment, Path(folder))
            rows = pd.read_csv(Path(folder) / "clients.csv")
            held = rows[rows["split"] == "validation"].groupby("round")["value"].mean()
            validation = float(held.max())
            found = {(job.arm, name): value for name, value in tested(job.experiment, Path(folder)).items()}
    about: dict[str, str | float] = {"split": job.split, "seed": job.seed, "validation": validation}
    seconds = process_time() - began
    return [{"arm": a, "measure": m, "value": v, **about, "seconds": seconds} for (a, m), v in found.items()]


def tested(experiment: Experiment, home: Path) -> dict[str, float]:
    """Return what a finished run reaches on its test data by measure: the mean over clients."""
    scorers = {
        data.name: ModelScorer(reader(experiment, data, "test"), params_of(home, experiment, data))
        for data in clients_data(experiment)
    }
    return measured(experiment, scorers)


def measured(experiment: Experiment, scorers: dict[str, Scorer] | dict[str, ModelScorer]) -> dict[str, float]:
    """Return the mean over clients of each measure of the experiment's split, given every client's scorer."""
    found: dict[str, list[float]] = {}
    for data in clients_data(experiment):
        views = {KNOWN: data} if data.new is None else {NEW: data, ALL: replace(data, new=None)}
        for name, view in views.items():
            e, tasks = experiment, experiment.tasks(data.name)
            made = evaluate(
                scorers[data.name], view, tasks, "test", metrics=(METRIC,), candidates=e.candidates, seed=e.seed
            )
            found.setdefault(name, []).append(made.metrics[data.name, tasks[0].name, METRIC])
    return {name: float(np.mean(values)) for name, values in found.items()}


def baselines(experiment: Experiment) -> dict[tuple[str, str], float]:
    """Return the measures of what knows no user, by (arm, measure)."""
    parts = clients_data(experiment)
    counted: dict[str, Scorer] = {}
    for data in parts:
        counted[data.name] = PopularityScorer.fit(experiment.tasks(data.name), data.train, len(data.items))
    found = {(POPULARITY, name): value for name, value in measured(experiment, counted).items()}
    for arm, kind in LIKED.items():
        if kind == "hashed" or encoder():
            scorer = liked(experiment.model_copy(update={"content": Content(kind=kind)}))
            everywhere: dict[str, Scorer] = dict.fromkeys(counted, scorer)
            found |= {(arm, name): value for name, value in measured(experiment, everywhere).items()}
    if parts[0].new is not None:
        found[CHANCE, NEW] = float(np.mean([chance(data) for data in parts]))
    return found


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


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each measure and arm: mean, sd, the best validation's mean, and the difference to ids alone."""
    rows = []
    for measure in [name for name in TABLES if name in set(results["measure"])]:
        values = results[results["measure"] == measure].pivot_table(
            index="seed", columns="arm", values="value", sort=False
        )
        held = results[results["measure"] == measure].groupby("arm")["validation"].mean()
        for arm in map(str, values):
            mine = values[arm].to_numpy(np.float64)
            gap = paired(mine, values[IDS].to_numpy(np.float64))
            sd = float(mine.std(ddof=1)) if len(mine) > 1 else float("nan")
            rows.append((measure, arm, len(mine), mine.mean(), sd, float(held.loc[arm]), gap.mean, gap.low, gap.high))
    names = ("measure", "arm", "seeds", "mean", "sd", "validation", "minus_ids", "low", "high")
    return pd.DataFrame(rows, columns=list(names))
