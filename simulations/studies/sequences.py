"""Users by a row or by their last items: `python -m simulations.studies sequences --seeds 5 --dataset ml-100k`.

Matrix factorisation beside the two sequence encoders, each alone and federated, on users' last items and on new users.
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fedrec.experiment.config import Experiment
from fedrec.experiment.records import write_csv
from fedrec.report.findings import number
from fedrec.report.study import Part, interval, seeded
from simulations.studies.harness import Carry, Findings, Run, Study
from simulations.studies.methods import POPULARITY, experiment_of, measure
from simulations.studies.options import SEEDS
from simulations.studies.published import trained
from simulations.studies.tables import Row, by_arm, differences, ends, spread

USUAL = "--clients 5 --partition users --metrics ndcg@10 --engine inline --batch-size 1024 --local-epochs 1 --rounds 10"
# What each is, and its choices; one is taken by the validation of a federated run on a seed of its own.
MODELS = {
    "mf": ("--rounds 30", ("--lr 0.01 --l2 0.01", "--lr 0.01 --l2 0.03")),
    "gru4rec": ("--sequence.kind gru4rec", ("--lr 0.01 --l2 0", "--lr 0.01 --l2 0.003")),
    "sasrec": ("--sequence.kind sasrec --sequence.blocks 1", ("--lr 0.01 --l2 0", "--lr 0.01 --l2 0.003")),
}
HISTORY = "--sequence.history 10"
CHOOSING = 1000  # the seed of the choice, none of those that are reported
SPLITS = ("leave-one-out", "new-users")
WAYS = {"local": "local", "federated": "fedper"}
GAPS = {"gain": "minus alone", "minus_mf": "minus mf", "minus_popularity": "minus popularity"}
OPTIONS = {"seeds": (3, SEEDS)}


def plan(options: Namespace, choices: Mapping[str, str] | None = None) -> list[Run]:
    """Return the runs of every split, seed and line, each model with its choice or the first that it has."""
    choices = choices or {model: points[0] for model, (_, points) in MODELS.items()}
    runs = []
    for split in SPLITS:
        experiments = {
            (f"{model} {way}", seed): experiment(options.flags, model, way, split, choices[model], seed)
            for seed in range(options.seeds)
            for model in MODELS
            for way in WAYS
        }
        first = next(iter(experiments))[0]
        experiments |= {(POPULARITY, seed): experiments[first, seed] for seed in range(options.seeds)}
        runs += [
            Run({"method": line, "seed": seed, "split": split}, e, about=choices, folder=f"{split}/{line}-{seed}")
            for (line, seed), e in experiments.items()
        ]
    return runs


def experiment(flags: Sequence[str], model: str, way: str, split: str, choice: str, seed: int) -> Experiment:
    """Return the experiment of a line; the command line's own flags win over the usual ones, and a choice over both."""
    given = [*USUAL.split(), *HISTORY.split(), *MODELS[model][0].split(), *flags, *choice.split()]
    return experiment_of(WAYS[way], [*given, "--split", split, "--seed", str(seed)])


def refine(runs: list[Run], options: Namespace, carry: Carry, home: Path) -> list[Run]:
    """Return the runs with each model's choice: the best validation of known users, federated, on a seed of its own."""
    choices = {}
    for model, (_, points) in MODELS.items():
        tried = [experiment(options.flags, model, "federated", SPLITS[0], text, CHOOSING) for text in points]
        choices[model] = points[int(np.nanargmax([trained(e).validation for e in tried]))]
    write_csv(home / "choices.csv", [{"model": model, "options": text} for model, text in choices.items()])
    return plan(options, choices)


def findings(results: pd.DataFrame, runs: Sequence[Run], options: Namespace) -> Findings:
    """Return what every line reaches on both splits."""
    rows = summary(results)
    words = seeded(options.seeds, "95% intervals over seeds")
    heading = f"NDCG@10, mean over clients; {words}; chosen: {runs[0].about}"
    return Findings(rows, tables=[Part("", [texts(row) for row in rows])], heading=heading)


def summary(results: pd.DataFrame) -> list[Row]:
    """Return a row for each split and line: mean and sd over seeds, and its differences with intervals.

    `gain` is federated minus alone; `minus_mf` that to matrix factorisation, and `minus_popularity` that to popularity,
    each of the same way of training.
    """
    rows: list[Row] = []
    for split, part in results.groupby("split", sort=False):
        values = by_arm(part, "method")
        for line, scores in values.items():
            model, _, way = line.partition(" ")
            others = dict(zip(GAPS, (f"{model} local", f"mf {way}", POPULARITY), strict=True))
            gaps = differences(values, line, others) if model != POPULARITY else {}
            rows.append({"split": str(split), "method": line, **spread(scores), **ends(gaps)})
    return rows


def texts(row: Row) -> dict[str, str]:
    """Return a row as it is printed, by heading."""
    gaps = {words: interval(row, name) if name in row else "" for name, words in GAPS.items()}
    known = {"split": row["split"], "method": row["method"]}
    return {**known, "mean": f"{row['mean']:.4f}", "sd": number(row["sd"], 4), **gaps}


STUDY = Study("sequences", OPTIONS, plan, measure, findings, refine, workers=1)
