"""Error of predicted ratings under user-level privacy: `python -m simulations.studies ratings --data-dir PATH`.

What is shared is a bias for each item. A user's own mean and its ratings stay with it; what counts of it in a round is
a clipped step of the item biases. With a clip that everyone reaches, that is the vector of the user's residuals divided
by its norm. Rounds and step were chosen on synthetic markets by `python -m simulations.studies ratings --choose
--seeds 2`: `CHOSEN` holds what it printed. The noise comes from a secret that no seed replays: runs of one seed differ.
"""

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from fedrec.errors import choose
from fedrec.evaluation.scorers import ModelScorer
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data, reader
from fedrec.experiment.kept import load_kept
from fedrec.experiment.records import load_params
from fedrec.metrics import rmse
from fedrec.report.findings import number
from fedrec.report.plots import Panel, Series, tradeoff
from fedrec.report.study import Page, Part
from simulations.cli import arm
from simulations.engines import launch
from simulations.studies.harness import Findings, Rows, Run, Study, facts
from simulations.studies.privacy_page import counted
from simulations.studies.tables import records

NONE = "none"  # the budget of who shares nothing
OPEN = "inf"  # the same protocol, clip included, without noise
MARKET = "--dataset synthetic --market.users 943 --market.items 1682 --market.impressions 300"
# A user rates an item once: the validation part of a billionth is empty, and training has nine tenths.
USUAL = "--task rating --split random --fractions 1e-9,0.1 --model mf --dim 1 --init-std 0"
# Full batches and a rate of 1/2 set a user's bias to its mean residual, exactly; clip and step are one parameter.
PRIVATE = (
    "--privacy.delta 1e-5 --privacy.clip 1 --weights uniform --share item_bias --phases private,shared "
    "--optimiser sgd --lr 0.5 --l2 0 --local-epochs 1 --batch-size 1000000"
)
WORDS = (
    "A bias for each item is learned together under user-level differential privacy; a user's own mean stays with it. "
    "Protected is what the server sends out, where every user is a client of a server that it trusts with its update, "
    "or what a silo sends, where silos add the noise. RMSE is over all test ratings together, of scores that are not "
    "clipped: mean and standard deviation over the seeds, each of which divides the ratings anew."
)
NOTE = (
    "Rounds and step were chosen on synthetic markets of the size of MovieLens 100K. At epsilon inf updates are "
    "clipped, but there is no noise and no promise. The numbers of this page were measured on exact test ratings and "
    "are no part of the promise."
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
BUDGETS = ("1", "2", "4", "8", OPEN)
STEPS = {  # rounds and step at each budget
    "users": ((20, 2.25), (20, 5.0), (10, 22.0), (20, 16.0), (20, 16.0)),
    "silos": ((20, 1.0), (10, 4.5), (20, 5.0), (10, 15.0), (20, 16.0)),
}
CHOSEN = {name: dict(zip(BUDGETS, starmap(Choice, steps), strict=True)) for name, steps in STEPS.items()}
CHOSEN |= {"silos alone": {NONE: Choice(5, 0.01)}, "users alone": {NONE: Choice(1, 0.5)}}
OPTIONS = {
    "epsilon": ("1,2,4,8,inf", "budgets of a whole run; inf: clipped, without noise"),
    "lines": (",".join(LINES), "comma-separated settings"),
    "seeds": (5, "runs of each; a seed divides the ratings"),
    "choose": (False, "choose rounds and steps on the synthetic market instead"),
}


def plan(options: Namespace) -> list[Run]:
    """Return a run for each line, budget, choice and seed; raises UserError where nothing was chosen for a budget."""
    names = [choose("lines", name, LINES) for name in options.lines.split(",")]
    data = MARKET if options.choose else "--dataset ml-100k"
    return [
        Run(
            {"line": name, "epsilon": epsilon, **vars(choice), "seed": seed},
            experiment_of(name, epsilon, choice, [*data.split(), *options.flags], seed),
        )
        for name in names
        for epsilon in (options.epsilon.split(",") if LINES[name].private else [NONE])
        for choice in (LINES[name].grid if options.choose else [CHOSEN[name][choose("epsilon", epsilon, CHOSEN[name])]])
        for seed in range(options.seeds)
    ]


def experiment_of(line: str, epsilon: str, choice: Choice, flags: Sequence[str], seed: int) -> Experiment:
    """Return the experiment of a line at a budget; it is evaluated once, after its last round."""
    options = LINES[line].options.format(rounds=choice.rounds, step=repr(choice.step))
    budget = [] if epsilon == NONE else ["--privacy.epsilon", epsilon]
    return arm(
        [*USUAL.split(), *options.split(), *budget, *flags, "--seed", str(seed), "--eval-every", str(choice.rounds)]
    )


def measure(run: Run, home: Path) -> Rows:
    """Return the row of a run: its errors, what it has spent, and its seconds."""
    launch(run.experiment, home)
    record = json.loads((home / "experiment.json").read_text(encoding="utf-8"))
    error, clipped = errors(run.experiment, home)
    spent = record["privacy"].get("spent", "")
    return [{**run.labels, "rmse": error, "clipped_rmse": clipped, "spent": spent, "seconds": record["seconds"]}]


def errors(experiment: Experiment, home: Path) -> tuple[float, float]:
    """Return the RMSE over the test ratings of all clients together: of the scores, and of these clipped to 1 to 5.

    `home` is the folder of a finished run in which clients kept their private parameters.
    """
    shared = load_params(home / "model" / "shared.safetensors")
    scores, targets = [], []
    for data in clients_data(experiment):
        (task,) = experiment.tasks(data.name)
        rows = data.test.take(task.rows(data.test))
        private = load_kept(home, data.name)
        scorer = ModelScorer(reader(experiment, data, "test"), {**shared, **private})
        scores.append(scorer.score(task.name, rows.user, rows.item))
        targets.append(task.target(rows))
    score, target = np.concatenate(scores), np.concatenate(targets)
    return rmse(score, target), rmse(score.clip(1, 5), target)


def findings(results: pd.DataFrame, runs: Sequence[Run], options: Namespace) -> Findings:
    """Return what every line reaches and its page, or the best choices."""
    table = summary(results)
    rows = records(table)
    if options.choose:
        return Findings(rows, tables=[Part("RMSE of ratings", texts(best(table)))])
    used = {run.labels["line"]: run for run in runs}
    counts = {name: counted(len(clients_data(run.experiment))) for name, run in used.items()}
    words = ". ".join(LINES[name].words.format(count=count) for name, count in counts.items()) + "."
    kicker = f"{options.seeds} seeds" if options.seeds > 1 else "one seed: no standard deviation"
    part = Part("Error against the budget", texts(table), words, figure_of(table))
    page = Page("How well are ratings predicted under privacy?", WORDS, kicker, [part], facts(used.values()), [NOTE])
    return Findings(rows, page)


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each line, budget and choice: the RMSE's mean and sd over the seeds, the clipped one's mean."""
    keys = ["line", "epsilon", "rounds", "step"]
    table = results.groupby(keys, sort=False).agg(
        seeds=("seed", "size"), mean=("rmse", "mean"), sd=("rmse", "std"), clipped=("clipped_rmse", "mean")
    )
    return table.reset_index()


def best(table: pd.DataFrame) -> pd.DataFrame:
    """Return the row with the least mean for each line and budget."""
    rows = table.groupby(["line", "epsilon"], sort=False)["mean"].idxmin()
    return table.loc[rows].reset_index(drop=True)


def figure_of(table: pd.DataFrame) -> Markup | None:
    """Return the errors of the private lines against the budget, with a band of one standard deviation, if any is."""
    private, others = table[table["epsilon"] != NONE], table[table["epsilon"] == NONE]
    series = []
    for name, rows in private.groupby("line", sort=False):
        mean, sd = rows["mean"], rows["sd"].fillna(0.0)
        series.append(Series(str(name), mean.tolist(), (mean - sd).tolist(), (mean + sd).tolist()))
    if not series:
        return None
    levels = [(str(row["line"]), float(row["mean"])) for row in records(others)]
    panel = Panel("RMSE of ratings, lower is better", "RMSE", series, levels)
    text = ", ".join(f"{row['line']} at {row['epsilon']} {row['mean']:.3f}" for row in records(table))
    return tradeoff([panel], list(dict.fromkeys(private["epsilon"])), "ratings", f"RMSE against epsilon: {text}", 3.6)


def texts(table: pd.DataFrame) -> list[dict[str, str]]:
    """Return the rows as they are printed, by heading."""
    return [
        {
            "setting": str(row["line"]),
            "epsilon": str(row["epsilon"]),
            "RMSE": number(row["mean"], 4),
            "sd": number(row["sd"], 4),
            "clipped to 1-5": number(row["clipped"], 4),
            "rounds": str(row["rounds"]),
            "step": f"{row['step']:g}",
        }
        for row in records(table)
    ]


STUDY = Study("ratings", OPTIONS, plan, measure, findings)
