"""Everything composes by configuration: all pairs of model, weighting, method and sharing run, or say why not."""

import math
import re
from collections import Counter
from itertools import combinations, product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from fedrec.errors import UserError
from fedrec.experiment.acting import acting
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.needs import UNBUILT, Can
from fedrec.experiment.parts import conflicts_of
from fedrec.models import KINDS
from fedrec.params import covers
from fedrec.sharing import SHARINGS
from simulations.check import check
from simulations.methods import METHODS, usual
from tests.grid import Row, pairs, pairwise_rows
from tests.helpers import fit
from tests.letters import read_contribution

SMALL: dict[str, Any] = {
    "clients": 5,  # Krum needs so many
    "rounds": 1,
    "dim": 2,
    "hidden": (4, 3),
    "experts": 2,
    "market": {"users": 12, "items": 25, "impressions": 12},
    "local_epochs": 1,
    "batch_size": 64,
    "engine": "inline",
}
WEIGHTINGS = {
    **{kind: {"kind": kind} for kind in ("fixed", "uncertainty", "dwa", "rlw", "gls", "gradnorm")},
    **{kind: {"kind": "aggregator", "aggregator": kind} for kind in ("pcgrad", "mgda", "cagrad", "upgrad", "imtlg")},
}
TASKS = [
    ("rank,click,buy", ""),
    ("rank,click,buy", "category"),
    ("rank-bce,click,buy", "price*0.1,brand"),
    ("rank,click,buy", "behaviour"),
]
FACTORS = {
    "model": KINDS,
    "weighting": tuple(WEIGHTINGS),
    "method": tuple(METHODS),
    "share": ("its own", *SHARINGS),
    "protection": ("none", "user", "client", "sum"),
    "task": tuple(f"{pairs},{more}".rstrip(",") for pairs, more in TASKS),
    "items": ("ids", "hashed", "hidden"),
    "users": ("table", "gru4rec", "sasrec"),
}
ITEMS: dict[str, dict[str, Any]] = {
    "ids": {},
    "hashed": {"kind": "hashed", "dim": 4},
    "hidden": {"kind": "hashed", "dim": 4, "dropout": 0.5},
}
PROTECTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "user": {"weights": "uniform", "privacy": {"unit": "user", "epsilon": "8"}},
    "client": {"weights": "uniform", "privacy": {"unit": "client", "epsilon": "8"}},
    "sum": {"secure": {"active": True}},
}


def fields_of(row: Row) -> dict[str, Any]:
    """Return the fields of an experiment with some levels, all others at their defaults."""
    method = row.get("method", "fedper")
    fields = {**METHODS[method].model_dump(), **SMALL, **PROTECTIONS[row.get("protection", "none")]}
    fields |= {"model": row.get("model", "mf"), "weighting": WEIGHTINGS[row.get("weighting", "fixed")]}
    fields |= {"task": row.get("task", "rank,click,buy"), "content": ITEMS[row.get("items", "ids")]}
    fields["sequence"] = {"kind": row.get("users", "table").replace("table", "none"), "history": 3, "blocks": 1}
    if row.get("share", "its own") != "its own":
        fields["share"] = row["share"]
    if method == "agreement":
        fields["volunteers"] = 6
    if method == "scaffold":
        fields |= {"optimiser": "sgd", "lr": 0.1}
    return fields


def made(row: Row) -> Experiment:
    """Return the checked experiment of a row; raises UserError if it is refused."""
    e = build(fields_of(row))
    e = acting(e, usual(e))
    check(e)
    return e


def conflict(row: Row) -> tuple[str, Can | None]:
    """Return the refusal of what parts of a row need and others take away, and the capability; nothing without one."""
    with patch("fedrec.experiment.config.check_parts"):
        e = build(fields_of(row))
    return next(((one.text(e), one.can) for one in conflicts_of(e)), ("", None))


PAIRS = [{a: x, b: y} for a, b in combinations(FACTORS, 2) for x, y in product(FACTORS[a], FACTORS[b])]
CONFLICTS = {frozenset(pair.items()): one for pair in PAIRS if (one := conflict(pair))[0]}
REFUSED = [pair for pair in PAIRS if frozenset(pair.items()) in CONFLICTS]


def reason(row: Row) -> str:
    """Return what the refusal of a row says, or nothing if it must run: what two of its levels need and take away."""
    return next((CONFLICTS[pair][0] for pair in pairs(row) if pair in CONFLICTS), "")


def names(row: Row) -> str:
    """Return how a row is called."""
    return "-".join(row.values()).replace(" ", "-")


ROWS = pairwise_rows(FACTORS, lambda row: bool(reason(row)))


@pytest.mark.parametrize("row", ROWS, ids=names)
def test_every_pair_of_levels_trains_measures_and_sends_only_what_is_shared(row: Row, tmp_path: Path) -> None:
    e = made(row)
    record, grid = fit(e, tmp_path)
    assert all(math.isfinite(float(found["train_loss"])) for found in record.rounds) or e.privacy.active
    assert all(bool(value.isfinite().all()) for value in record.shared.values())
    assert bool(record.shared) == bool(e.share or e.agreement.active)
    heads = {(found["client"], found["task"]) for found in record.clients if math.isfinite(float(found["value"]))}
    assert e.privacy.active or {task for _, task in heads} >= {"rank", "click", "buy"}
    for reply in grid.received:
        if reply.has_content() and not e.secure.active and not e.agreement.active:
            assert all(covers(e.share, name) for name in read_contribution(reply.content).values)


@pytest.mark.parametrize("row", REFUSED, ids=names)
def test_what_does_not_compose_says_why(row: Row) -> None:
    with pytest.raises(UserError) as refused:
        made(row)
    assert str(refused.value) == reason(row)
    assert re.fullmatch(r"[a-z_.]+: \S+ needs .+, but .+, found [a-z_.]+ .+", reason(row))


# How many pairs lack a capability, counted by hand: a table that refuses everything, or nothing, has other numbers.
COUNTS = {
    Can.ROWS: 12,  # 5 robust rules, and agreement, with one noisy mean and with a secure sum
    Can.GRAM: 12,  # 6 aggregators of gradients with these two
    Can.LOSSES: 10,  # every weighting but the fixed one, with noise inside a client
    Can.EXCHANGE: 6,  # local and pooled with the unit user, the unit client and a secure sum
    Can.MEMORY: 6,  # mr-mtl, graph and no-harm with one noisy mean and with a secure sum
    Can.STEPS: 4,  # scaffold and fednova with one noisy mean and with a secure sum
    Can.INCREMENTS: 2,  # admm with one noisy mean, and with a secure sum under weights that change
    Can.USER_SIDE: 2,  # the model item with two sequence encoders
    Can.PAIR_SCORES: 2,  # agreement with these
    Can.UNTOLD: 2,  # the task category with two contents
    Can.VALIDATION: 1,  # no-harm with the unit user
    Can.PARAMETERS: 1,  # agreement with the unit user
    Can.LOCKSTEP: 1,  # apfl with the unit user
}


def test_as_many_pairs_are_refused_as_lack_a_capability() -> None:
    assert Counter(can for _, can in CONFLICTS.values()) == COUNTS
    assert sum(COUNTS.values()) == 61
    assert sum(number for can, number in COUNTS.items() if can in UNBUILT) == 2
    assert all((" (not built), found " in text) == (can in UNBUILT) for text, can in CONFLICTS.values())


def test_the_grid_holds_every_pair_that_is_not_refused() -> None:
    held = set().union(*(pairs(row) for row in ROWS))
    wanted = {frozenset(pair.items()) for pair in PAIRS} - CONFLICTS.keys()
    assert held >= wanted
    assert len(ROWS) < len(FACTORS["model"]) * len(FACTORS["method"]) * 2
