"""Everything composes by configuration: all pairs of model, weighting, method and sharing run, or say why not."""

import math
import re
from itertools import combinations, product
from pathlib import Path
from typing import Any, get_args

import pytest

from fedrec.acting import acting
from fedrec.errors import UserError
from fedrec.experiment import Experiment, build
from fedrec.models import Kind
from fedrec.parameters import covers
from fedrec.sharing import SHARINGS
from fedrec.wire import read_contribution
from simulations.check import check
from simulations.methods import METHODS, usual
from tests.grid import Row, pairs, pairwise_rows
from tests.helpers import fit

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
    "model": get_args(Kind),
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


STACKABLE = ("mf", "mlp", "item")
ROBUST = ("median", "trimmed-mean", "krum", "multi-krum", "clipped")
SEES_ROWS = ("fedmgda", "pcgrad", "mgda", "cagrad", "imtl-g", "upgrad")
PERSONAL = ("mr-mtl", "graph", "no-harm")


def reason(row: Row) -> str:
    """Return what the refusal of a row must say, or nothing if it must run: the table of what does not compose."""
    method, model, weighting = row.get("method", ""), row.get("model", ""), row.get("weighting", "fixed")
    share, protection = row.get("share", "its own"), row.get("protection", "none")
    content, users = row.get("items", "ids") != "ids", row.get("users", "table") != "table"
    if model == "item" and users:
        return "model: must have a user side for the sequence encoder"
    if users and (method == "agreement" or protection == "user"):
        return "sequence.kind: must be none for"
    if content and "category" in row.get("task", ""):
        return "content.kind: must be none for the task category"
    if method == "agreement" and share != "its own":
        return "agreement: shares logits only"
    if weighting != "fixed" and method in ("ditto", "apfl"):
        return "weighting.kind: must be fixed for a client that trains a second model"
    if protection == "user" and model and model not in STACKABLE:
        return "model: must be one of mf, mlp, item for privacy inside a client"
    if protection == "user" and content:
        return "content: must be none with noise inside a silo"
    if protection == "user" and row.get("task", "rank,click,buy") != "rank,click,buy":
        return "task: must have one score for privacy inside a client"
    if protection == "user" and weighting != "fixed":
        return "weighting.kind: must be fixed with noise inside a silo"
    if protection != "none" and (method in ("pooled", "agreement") or (method == "local" and share == "its own")):
        of_sums = "sums what is shared" if method == "local" else "the server sees no more than a sum"
        of_noise = "protects what is shared" if method == "local" else "protects parameters that clients share"
        return f"secure: {of_sums}" if protection == "sum" else f"privacy: {of_noise}"
    if protection in ("user", "client") and method == "no-harm":
        return "budget: must be none under privacy"
    if protection == "user" and method == "apfl":
        return "drift.personal"
    if protection == "client" and method in (*ROBUST, *SEES_ROWS, *PERSONAL, "admm", "fednova", "scaffold"):
        return "privacy: what is released of whole clients is one noisy mean"
    if protection == "sum" and method in (*ROBUST, *SEES_ROWS, *PERSONAL, "fednova", "scaffold"):
        return "secure: the server sees no more than a sum"
    if protection == "sum" and method == "admm":
        return "weights: must be uniform for secure sums with duals"
    return ""


def names(row: Row) -> str:
    """Return how a row is called."""
    return "-".join(row.values()).replace(" ", "-")


ROWS = pairwise_rows(FACTORS, lambda row: bool(reason(row)))
REFUSED = [
    {a: x, b: y}
    for a, b in combinations(FACTORS, 2)
    for x, y in product(FACTORS[a], FACTORS[b])
    if reason({a: x, b: y})
]


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
    with pytest.raises(UserError, match=reason(row)) as refused:
        made(row)
    assert re.search(r"^[a-z_.]+( [a-z]+)?: ", str(refused.value))


def test_the_grid_holds_every_pair_that_is_not_refused() -> None:
    held = set().union(*(pairs(row) for row in ROWS))
    wanted = {
        frozenset(((a, x), (b, y)))
        for a, b in combinations(FACTORS, 2)
        for x, y in product(FACTORS[a], FACTORS[b])
        if not reason({a: x, b: y})
    }
    assert held >= wanted
    assert len(ROWS) < len(FACTORS["model"]) * len(FACTORS["method"]) * 2
