"""Users by a row or by their last items: `python -m simulations.studies sequences --seeds 5 --dataset ml-100k`.

Matrix factorisation beside the two sequence encoders, each alone and federated, on users' last items and on new users.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from fedrec.experiment import Experiment
from fedrec.folders import writing
from fedrec.metrics import paired
from fedrec.records import write_csv
from fedrec.report.findings import number
from fedrec.report.study import interval, seeded
from simulations.check import check
from simulations.cli import heeded
from simulations.studies.methods import POPULARITY, experiment_of, run_all
from simulations.studies.options import parsed, parser_of
from simulations.studies.published import trained

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


def run(argv: Sequence[str]) -> None:
    """Choose each model's hyper-parameters by validation, run all on paired seeds, and compare them."""
    parser = parser_of("sequences")
    parser.add_argument("--seeds", type=int, default=3, help="paired seeds: 0, 1, ... share data, start and order")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=Path("runs/study-sequences"), help="a new folder for the results")
    options, flags = parsed(parser, argv)
    check(experiment(flags, "sasrec", "federated", SPLITS[1], MODELS["sasrec"][1][0], 0))
    every = [
        experiment(flags, model, way, split, points[0], 0)
        for model, (_, points) in MODELS.items()
        for way in WAYS
        for split in SPLITS
    ]
    heeded(flags, every)
    with writing(options.out) as home:
        choices = {model: chosen(flags, model) for model in MODELS}
        parts = []
        for split in SPLITS:
            runs = {
                (f"{model} {way}", seed): experiment(flags, model, way, split, choices[model], seed)
                for seed in range(options.seeds)
                for model in MODELS
                for way in WAYS
            }
            (home / split).mkdir()
            parts += [found.assign(split=split) for found in run_all(runs, home / split, options.workers)]
        results = pd.concat(parts)
        results.to_csv(home / "results.csv", index=False)
        write_csv(home / "choices.csv", [{"model": model, "options": text} for model, text in choices.items()])
        rows = summary(results)
        write_csv(home / "summary.csv", rows)
    words = seeded(options.seeds, "95% intervals over seeds")
    show(rows, f"NDCG@10, mean over clients; {words}; chosen: {choices}")


def experiment(flags: Sequence[str], model: str, way: str, split: str, choice: str, seed: int) -> Experiment:
    """Return the experiment of a line; the command line's own flags win over the usual ones, and a choice over both."""
    given = [*USUAL.split(), *HISTORY.split(), *MODELS[model][0].split(), *flags, *choice.split()]
    return experiment_of(WAYS[way], [*given, "--split", split, "--seed", str(seed)])


def chosen(flags: Sequence[str], model: str) -> str:
    """Return the choice of a model with the best validation, federated, of known users, on a seed of its own."""
    choices = MODELS[model][1]
    found = [trained(experiment(flags, model, "federated", SPLITS[0], text, CHOOSING)).validation for text in choices]
    return choices[int(np.nanargmax(found))]


def summary(results: pd.DataFrame) -> list[dict[str, str | float]]:
    """Return a row for each split and line: mean and sd over seeds, and its differences with intervals.

    `gain` is federated minus alone; `minus_mf` that to matrix factorisation, and `minus_popularity` that to popularity,
    each of the same way of training.
    """
    rows: list[dict[str, str | float]] = []
    for split, part in results.groupby("split", sort=False):
        by_line = part.groupby(["method", "seed"])["value"].mean()
        values = {line: by_line.loc[line].sort_index().to_numpy(np.float64) for line in dict.fromkeys(part["method"])}
        for line, mine in values.items():
            model, _, way = line.partition(" ")
            row: dict[str, str | float] = {"split": str(split), "method": line, "mean": float(mine.mean())}
            row["sd"] = float(mine.std(ddof=1)) if len(mine) > 1 else float("nan")
            others = {"gain": f"{model} local", "minus_mf": f"mf {way}", "minus_popularity": POPULARITY}
            for name, other in others.items():
                if other in values and other != line and model != POPULARITY:
                    gap = paired(mine, values[other])
                    row |= {name: gap.mean, f"{name}_low": gap.low, f"{name}_high": gap.high}
            rows.append(row)
    return rows


def show(rows: Sequence[dict[str, str | float]], title: str) -> None:
    """Print a summary as a table."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("split", "method", "mean", "sd", "minus alone", "minus mf", "minus popularity"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        gaps = [interval(row, name) if name in row else "" for name in ("gain", "minus_mf", "minus_popularity")]
        table.add_row(str(row["split"]), str(row["method"]), f"{row['mean']:.4f}", number(float(row["sd"]), 4), *gaps)
    Console(width=160).print(table)
