"""Runs to attack, each made once: silos and one-user clients, on the synthetic market and on MovieLens."""

import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from fedrec.data import Market
from fedrec.experiment.config import Experiment, build
from fedrec.params import Params
from fedrec.privacy.attacks.table import ATTACKS, Attack, Case
from fedrec.privacy.transcript import Transcript
from fedrec.rng import derive
from simulations.methods import METHODS
from simulations.witness import Witnessed, case_of, witness

real = pytest.mark.skipif("FEDREC_DATA" not in os.environ, reason="FEDREC_DATA does not name the folder of real data")
ATTACK: dict[str, Attack] = {attack.name: attack for attack in ATTACKS}
STEP: dict[str, Any] = {
    "optimiser": "sgd",
    "lr": 0.1,
    "local_epochs": 1,
    "batch_size": 4096,
}  # one step of SGD on all rows
SILOS: dict[str, Any] = {"partition": "users", "clients": 3}
USERS: dict[str, Any] = {"partition": "one-user", "clients": 30, "rounds": 1}


def market(method: str = "fedper", **fields: Any) -> Experiment:
    """Return a small experiment on one platform of the synthetic market."""
    small = {"market": Market(users=150, items=200, impressions=40), "split": "random", "dim": 8, "rounds": 2}
    return build({**METHODS[method].model_dump(), "engine": "inline", "eval_every": 100, **small, **fields})


def movies(method: str = "fedper", **fields: Any) -> Experiment:
    """Return an experiment on MovieLens 100K."""
    data = {"dataset": "ml-100k", "data_dir": Path(os.environ["FEDREC_DATA"]), "split": "random", "rounds": 1}
    return build({**METHODS[method].model_dump(), "engine": "inline", "eval_every": 100, **data, **fields})


@cache
def attacked(experiment: Experiment) -> tuple[Witnessed, Case]:
    """Return a witnessed run, and all about it."""
    seen = witness(experiment)
    return seen, case_of(experiment, seen)


def noised(values: Params, seed: int) -> Params:
    """Return standard normal numbers in the place of all values."""
    rng = torch.Generator().manual_seed(derive(seed, "noise test"))
    return {name: torch.randn(value.shape, generator=rng) for name, value in values.items()}


def noise(transcript: Transcript, seed: int) -> Transcript:
    """Return a transcript in which clients answered with noise."""
    rounds = [replace(one, x=noised(one.x, derive(seed, "x", n))) for n, one in enumerate(transcript.rounds)]
    return Transcript(transcript.joined, rounds)
