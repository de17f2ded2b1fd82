"""What small experiments come to, by number; `python -m tests.golden.record` writes anew what is kept of them."""

import csv
import json
import math
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedrec.experiment.records import load_params
from simulations.cli import parse
from simulations.engines import launch

KEPT = Path(__file__).with_name("values.json")
USUAL = (
    "--market.users 60 --market.items 80 --seed 7 --rounds 2 --dim 8 --lr 0.02 --local-epochs 1 --engine inline"
    " --no-compare --quiet"
)
EXPERIMENTS = {
    "fedper": "--method fedper --rounds 3",
    "clusters": "--method admm --coupling.kind clusters --coupling.groups films,books;shop,news",
    "graph-duals": "--method graph --coupling.duals --coupling.rho 0.01",
    "no-harm": "--method no-harm --budget.margin 0.02",
    "scaffold-turnout": "--method scaffold --optimiser sgd --lr 1 --participation 0.6 --dropout 0.3 --quorum 0",
    "fedadam": "--method fedadam",
    "cagrad": "--method cagrad --participation 0.6",
    "ditto-mlp": "--method ditto --model mlp --hidden 8,4 --task rating",
    "ple": "--method fedrep --model ple --task click,buy --hidden 8,4 --experts 2",
    "gru4rec": "--sequence.kind gru4rec",
    "content": "--content.kind hashed --split new-items",
    "one-user": "--method pfedrec --model item --partition one-user --task rank-bce --clients 20 --optimiser sgd",
    "median": "--method median --partition users --clients 4",
    "secure": "--method admm --secure.active --weights uniform",
    "private": "--method fedrep --privacy.unit user --privacy.epsilon 4 --privacy.replay --weights uniform",
}
REPORTED = ("train_loss", "objective", "primal_residual", "dual_residual", "rho", "validation", "clients")
# How far a number may be from what is kept, by kind: what other processors add up in another order, and no more. Of
# rounds it is a part of the number, of the sums of tensors a part of their norm.
LIMITS = {"metric": 1e-5, "round": 1e-4, "norm": 1e-3, "sum": 1e-3}
Outcome = dict[str, float]  # kind/... -> number


def outcome(flags: str) -> Outcome:
    """Return what comes of an experiment: its test metrics, its rounds, and the norm and a weighted sum of tensors."""
    command, found = parse([*shlex.split(USUAL), *shlex.split(flags)]), Outcome()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        launch(command.experiment, home)
        for row in csv.DictReader((home / "clients.csv").read_text().splitlines()):
            if row["split"] == "test" and row["value"]:
                found[f"metric/{row['client']}/{row['task']}/{row['metric']}"] = float(row["value"])
        for row in csv.DictReader((home / "rounds.csv").read_text().splitlines()):
            told = {key: row[key] for key in REPORTED if row.get(key) not in (None, "", "nan")}
            found |= {f"round/{row['round']}/{key}": float(value) for key, value in told.items()}
        for path in sorted((home / "model").glob("*.safetensors")):
            for name, value in sorted(load_params(path).items()):
                flat = value.double().numpy().ravel()
                found[f"norm/{path.stem}/{name}"] = float(np.linalg.norm(flat))
                found[f"sum/{path.stem}/{name}"] = float(flat @ np.sin(np.arange(1, len(flat) + 1)))
    return found


def moved(kept: Mapping[str, float], found: Mapping[str, float]) -> list[str]:
    """Return a line for every number that is not what is kept, for every one that is missing, and every new one."""
    lines = [f"{key}: must be in both" for key in sorted(kept.keys() ^ found.keys())]
    for key in sorted(kept.keys() & found.keys()):
        kind, _, rest = key.partition("/")
        scale = {"metric": 1.0, "sum": kept.get(f"norm/{rest}", 1.0)}.get(kind, abs(kept[key]))
        gap = abs(found[key] - kept[key])
        if not gap <= LIMITS[kind] * max(scale, 1e-6) or math.isnan(gap):
            lines.append(f"{key}: must be {kept[key]!r}, found {found[key]!r}")
    return lines


def main() -> None:
    """Write what all experiments come to."""
    every = {name: {k: float(f"{v:.9g}") for k, v in outcome(flags).items()} for name, flags in EXPERIMENTS.items()}
    KEPT.write_text(json.dumps(every, indent=0, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
