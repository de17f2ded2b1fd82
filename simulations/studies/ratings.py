"""Error of predicted ratings under user-level privacy: `python -m simulations.studies ratings --data-dir PATH`.

What is shared is a bias for each item. A user's own mean and its ratings stay with it; what counts of it in a round is
a clipped step of the item biases. With a clip that everyone reaches, that is the vector of the user's residuals divided
by its norm. Rounds and step were chosen on synthetic markets by `python -m simulations.studies ratings --choose
--seeds 2`: `CHOSEN` holds what it printed. The noise comes from a secret that no seed replays: runs of one seed differ.
"""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from fedrec.errors import choose
from fedrec.experiment import Experiment
from fedrec.folders import writing
from fedrec.holdings import clients_data, reader
from fedrec.metrics import rmse
from fedrec.records import load_params, slug
from fedrec.scorers import ModelScorer
from simulations.check import check
from simulations.cli import arm, heeded
from simulations.engines import launch
from simulations.studies.options import parsed, parser_of
from simulations.studies.privacy_page import counted
from simulations.studies.ratings_page import show, write_page

OPEN = "inf"  # the same protocol, clip included, without noise
NONE = "none"  # the budget of who shares nothing
MARKET = "--dataset synthetic --market.users 943 --market.items 1682 --market.impressions 300"
# A user rates an item once: the validation part of a billionth is empty, and training has nine tenths.
USUAL = "--task rating --split random --fractions 1e-9,0.1 --model mf --dim 1 --init-std 0"
# Full batches and a rate of 1/2 set a user's bias to its mean residual, exactly; clip and step are one parameter.
PRIVATE = (
    "--privacy.delta 1e-5 --privacy.clip 1 --weights uniform --share item_bias --phases private,shared "
    "--optimiser sgd --lr 0.5 --l2 0 --local-epochs 1 --batch-size 1000000"
)
FIXED = "heads=0,user_table=0,item_table=0"
TRAVEL = (20.0, 30.0, 45.0, 70.0, 100.0, 150.0, 220.0, 320.0)  # rounds times step


@dataclass(frozen=True)
class Choice:
    """What is chosen on the market; `step` is the server's learning rate, or the local one of the item biases."""

    rounds: int
    step: float


@dataclass(frozen=True)
class Line:
    """A setting: its options, in which {rounds} and {step} are to be filled in, and what they are chosen from."""

    words: str
    options: str
    grid: tuple[Choice, ...] = ()
    private: bool = True


GRID = tuple(Choice(rounds, travel / rounds) for rounds in (10, 20) for travel in TRAVEL)
LINES = {
    "users": Line(
        "{count} clients, one for each user; the server adds noise to the sum of all",
        f"{PRIVATE} --partition one-user --engine batched --privacy.unit client --lrs {FIXED},item_bias=100 "
        "--rounds {rounds} --descent.lr {step}",
        GRID,
    ),
    "silos": Line(
        "{count} silos; each adds noise in its own training",
        f"{PRIVATE} --partition users --clients 5 --engine inline --privacy.unit user "
        f"--lrs {FIXED},item_bias={{step}} --rounds {{rounds}}",
        GRID,
    ),
    "silos alone": Line(
        "{count} silos that share nothing",
        "--method local --partition users --clients 5 --engine inline --optimiser adam --local-epochs 1 "
        "--rounds {rounds} --lr {step}",
        tuple(Choice(rounds, 0.01) for rounds in (5, 10, 20, 40)),
        private=False,
    ),
    "users alone": Line(
        "Every user alone: its mean",
        f"--method local --partition one-user --engine batched --optimiser sgd --l2 0 --local-epochs 1 "
        f"--batch-size 1000000 --phases private --lrs {FIXED},item_bias=0 --rounds {{rounds}} --lr {{step}}",
        (Choice(1, 0.5),),
        private=False,
    ),
}
CHOSEN: dict[str, dict[str, Choice]] = {
    "users": {
        "1": Choice(20, 2.25),
        "2": Choice(20, 5.0),
        "4": Choice(10, 22.0),
        "8": Choice(20, 16.0),
        OPEN: Choice(20, 16.0),
    },
    "silos": {
        "1": Choice(20, 1.0),
        "2": Choice(10, 4.5),
        "4": Choice(20, 5.0),
        "8": Choice(10, 15.0),
        OPEN: Choice(20, 16.0),
    },
    "silos alone": {NONE: Choice(5, 0.01)},
    "users alone": {NONE: Choice(1, 0.5)},
}


@dataclass(frozen=True)
class Job:
    """One run of the study."""

    line: str
    epsilon: str
    seed: int
    choice: Choice
    experiment: Experiment


def run(argv: Sequence[str]) -> None:
    """Run every line at every budget and seed, or choose their parameters; every option of a run may be given too."""
    parser = parser_of("ratings")
    parser.add_argument("--epsilon", default="1,2,4,8,inf", help="budgets of a whole run; inf: clipped, without noise")
    parser.add_argument("--lines", default=",".join(LINES), help="comma-separated settings")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each; a seed divides the ratings")
    parser.add_argument("--choose", action="store_true", help="choose rounds and steps on the synthetic market instead")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--out", type=Path, default=Path("runs/study-ratings"), help="a new folder for the results")
    options, flags = parsed(parser, argv)
    names = [choose("lines", name, LINES) for name in options.lines.split(",")]
    budgets, data = options.epsilon.split(","), MARKET if options.choose else "--dataset ml-100k"
    jobs = [
        Job(name, epsilon, seed, choice, experiment_of(name, epsilon, choice, [*data.split(), *flags], seed))
        for name in names
        for epsilon in (budgets if LINES[name].private else [NONE])
        for choice in (LINES[name].grid if options.choose else [chosen(name, epsilon)])
        for seed in range(options.seeds)
    ]
    heeded(flags, [job.experiment for job in jobs])
    for job in jobs:
        check(job.experiment)
    with writing(options.out) as home:
        results = pd.DataFrame(run_all(jobs, options.workers))
        results.to_csv(home / "results.csv", index=False)
        table = summary(results)
        table.to_csv(home / "summary.csv", index=False)
        if options.choose:
            table = best(table)
        else:
            used = {job.line: job.experiment for job in jobs}
            counts = {name: counted(len(clients_data(e))) for name, e in used.items()}
            words = {name: LINES[name].words.format(count=counts[name]) for name in names}
            write_page(home / "report.html", table, words, used)
    show(table)
    print(f"results: {options.out}")


def chosen(line: str, epsilon: str) -> Choice:
    """Return what was chosen for a budget; raises UserError for one that nothing was chosen for."""
    return CHOSEN[line][choose("epsilon", epsilon, CHOSEN[line])]


def experiment_of(line: str, epsilon: str, choice: Choice, flags: Sequence[str], seed: int) -> Experiment:
    """Return the experiment of a line at a budget; it is evaluated once, after its last round."""
    options = LINES[line].options.format(rounds=choice.rounds, step=repr(choice.step))
    budget = [] if epsilon == NONE else ["--privacy.epsilon", epsilon]
    return arm(
        [*USUAL.split(), *options.split(), *budget, *flags, "--seed", str(seed), "--eval-every", str(choice.rounds)]
    )


def run_all(jobs: Sequence[Job], workers: int) -> Iterator[dict[str, str | float]]:
    """Run every job in a pool of processes; yield its row of results."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(run_one, jobs)


def run_one(job: Job) -> dict[str, str | float]:
    """Run one job in this process; return its row of results."""
    import torch

    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        home = Path(folder)
        launch(job.experiment, home)
        record = json.loads((home / "experiment.json").read_text(encoding="utf-8"))
        error, clipped = errors(job.experiment, home)
    about: dict[str, str | float] = {"line": job.line, "epsilon": job.epsilon, **vars(job.choice), "seed": job.seed}
    spent = record["privacy"].get("spent", "")
    return {**about, "rmse": error, "clipped_rmse": clipped, "spent": spent, "seconds": record["seconds"]}


def errors(experiment: Experiment, home: Path) -> tuple[float, float]:
    """Return the RMSE over the test ratings of all clients together: of the scores, and of these clipped to 1 to 5.

    `home` is the folder of a finished run in which clients kept their private parameters.
    """
    shared = load_params(home / "model" / "shared.safetensors")
    scores, targets = [], []
    for data in clients_data(experiment):
        (task,) = experiment.tasks(data.name)
        rows = data.test.take(task.rows(data.test))
        private = load_params(home / "model" / f"client-{slug(data.name)}.safetensors")
        scorer = ModelScorer(reader(experiment, data, "test"), {**shared, **private})
        scores.append(scorer.score(task.name, rows.user, rows.item))
        targets.append(task.target(rows))
    score, target = np.concatenate(scores), np.concatenate(targets)
    return rmse(score, target), rmse(score.clip(1, 5), target)


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each line, budget and choice: the RMSE's mean and sd over the seeds, the clipped one's mean."""
    keys = ["line", "epsilon", "rounds", "step"]
    found = results.groupby(keys, sort=False).agg(
        seeds=("seed", "size"), mean=("rmse", "mean"), sd=("rmse", "std"), clipped=("clipped_rmse", "mean")
    )
    return found.reset_index()


def best(table: pd.DataFrame) -> pd.DataFrame:
    """Return the row with the least mean for each line and budget."""
    rows = table.groupby(["line", "epsilon"], sort=False)["mean"].idxmin()
    return table.loc[rows].reset_index(drop=True)
