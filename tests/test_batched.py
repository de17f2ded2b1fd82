"""The engine `batched`: what clients become as one program is what they become one after the other."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from clients.app import clients_of
from clients.node import Node
from fedrec.errors import UserError
from fedrec.experiment.holdings import clients_data
from fedrec.experiment.kept import OWN, PRIVATE, describe_clients, load_kept, places
from fedrec.experiment.records import load_params
from fedrec.params import Params
from fedrec.sharing import Broadcast
from fedrec.wire import Call
from simulations.check import check
from simulations.engines import launch
from simulations.engines.nodes import apart, slow
from simulations.methods import METHODS
from tests.helpers import experiment

# BPR does not see some parameters, whose gradients are rounding noise that adaptive optimisers amplify.
TASKS = "rank-bce,click*0.5;shop=rating"
NEEDS: dict[str, dict[str, Any]] = {
    "scaffold": {"optimiser": "sgd", "lr": 1.0},
    "krum": {"clients": 5},
    "multi-krum": {"clients": 5},
    "pfedrec": {"model": "item", "optimiser": "sgd", "lrs": "item_table=1,heads=0.1"},
}
REFUSED = {"agreement": "agreement.items"}
STACKED = [name for name in METHODS if name not in REFUSED and name != "pooled"]
ONE_USER: dict[str, Any] = {
    "partition": "one-user",
    "clients": 70,
    "market": {"users": 70, "items": 30, "impressions": 8},
}


def into(home: Path, method: str, **fields: Any) -> Path:
    home.mkdir()
    launch(experiment(method, **{"task": TASKS, **fields}), home)
    return home


def everything(home: Path) -> dict[tuple[str, str], Params]:
    """Return the parameters of a run: the shared ones, and what each client keeps, in a file of its own or of many."""
    found = {("server", "shared"): load_params(home / "model" / "shared.safetensors")}
    for client in [str(one["name"]) for one in describe_clients(home)]:
        kinds = [kind for kind in (PRIVATE, OWN) if any(places(home, client, kind))]
        found |= {(client, kind): load_kept(home, client, kind) for kind in kinds}
    return found


def near(a: Path, b: Path, largest: float = 1e-5) -> None:
    """Assert that two runs have the same record, and parameters and residuals up to float tolerance."""
    mine, others = everything(a), everything(b)
    assert mine.keys() == others.keys()
    for name, x in mine.items():
        y = others[name]
        assert x.keys() == y.keys()
        for key, value in x.items():
            assert torch.allclose(value, y[key], rtol=0, atol=largest), (name, key, (value - y[key]).abs().max())
    one, other = (pd.read_csv(home / "clients.csv") for home in (a, b))
    pd.testing.assert_frame_equal(one.drop(columns="value"), other.drop(columns="value"))
    told = one["split"] == "train"
    pd.testing.assert_frame_equal(one[told][["value"]], other[told][["value"]], atol=1e-4)
    assert (a / "ledger.csv").read_text() == (b / "ledger.csv").read_text()
    assert (a / "faults.csv").read_text() == (b / "faults.csv").read_text()
    columns = ["clients", "train_loss", "objective", "primal_residual", "dual_residual"]
    pd.testing.assert_frame_equal(
        pd.read_csv(a / "rounds.csv")[columns], pd.read_csv(b / "rounds.csv")[columns], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("method", STACKED)
def test_every_method_gives_what_inline_gives(method: str, tmp_path: Path) -> None:
    fields = NEEDS.get(method, {})
    a = into(tmp_path / "inline", method, **fields)
    near(a, into(tmp_path / "batched", method, **fields, engine="batched"))


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "mf;shop=mlp", "share": ("item_table",)},
        {"participation": 0.6, "dropout": "0.2", "quorum": 0.0, "rounds": 4},
        {"coupling": {"rho": 1e-2}, "participation": 0.6},
        {"coupling": {"kind": "clusters", "groups": "films,shop", "rho": 1e-3, "duals": True, "balance": True}},
        {"share": ("user_table", "item_table", "heads"), "optimiser": "adagrad"},
        ONE_USER,
        {**ONE_USER, "participation": 0.5, "share": ("item_table", "body"), "model": "mlp"},
        {**ONE_USER, "coupling": {"rho": 1e-3, "duals": True}},
        {**ONE_USER, "candidates": 9},
        {
            "model": "ple",
            "task": "rank-bce,click,buy",
            "hidden": (6, 4),
            "experts": 2,
            "optimiser": "sgd",
            "lr": 0.3,
        },
        {"sequence": {"kind": "sasrec", "history": 4}, "rounds": 1, "optimiser": "sgd", "lr": 0.1},
        {"content": {"kind": "hashed", "dim": 8}, "split": "new-items", "optimiser": "sgd", "lr": 0.3},
        {**ONE_USER, "task": "rank-bce,category", "optimiser": "sgd", "lr": 0.3},
        {**ONE_USER, "task": "behaviour", "model": "mlp", "optimiser": "sgd", "lr": 0.3},
    ],
    ids=[
        *("unlike", "turnout", "prox", "clusters", "wide", "one-user", "one-user-mlp", "one-user-admm", "candidates"),
        *("body", "sequence", "content", "about-items", "classes"),
    ],
)
def test_whatever_is_shared_and_whoever_takes_part(fields: dict[str, Any], tmp_path: Path) -> None:
    a = into(tmp_path / "inline", "fedper", **fields)
    near(a, into(tmp_path / "batched", "fedper", **fields, engine="batched"))


def test_stacked_workers_give_what_inline_gives(tmp_path: Path) -> None:
    fields = {**ONE_USER, "clients": 130, "market": {"users": 130, "items": 30, "impressions": 8}}
    a = into(tmp_path / "inline", "fedper", **fields)
    near(a, into(tmp_path / "process", "fedper", **fields, engine="process", workers=2))


@pytest.mark.parametrize("method", ["admm", "ditto", "scaffold", "fedper", "pfedrec", "no-harm"])
def test_a_run_that_is_broken_off_goes_on_to_the_bit(method: str, tmp_path: Path) -> None:
    e = experiment(method, task=TASKS, rounds=3, engine="batched", **NEEDS.get(method, {}))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    launch(e, whole)

    class Killed(Exception):
        pass

    def kill(row: Any) -> None:
        if row["round"] == 2:
            raise Killed

    with pytest.raises(Killed):
        launch(e, broken, kill, every=1)
    launch(e, broken, every=1)
    near(whole, broken, 0.0)


def test_a_client_that_diverges_is_left_out_of_the_sum(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"task": "rank-bce;shop=rating", "optimiser": "sgd", "lr": 10.0}
    fields |= {"rounds": 1, "quorum": 0.0}
    a = into(tmp_path / "inline", "fedper", **fields)
    b = into(tmp_path / "batched", "fedper", **fields, engine="batched")
    faults = pd.read_csv(a / "faults.csv")
    assert {(row.client, row.kind) for row in faults.itertuples()} == {("shop", "error")}, "nobody has diverged"
    near(a, b, 1e-3)


@pytest.mark.parametrize("method", REFUSED)
def test_what_cannot_be_stacked_is_trained_one_client_at_a_time_and_says_so(method: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"volunteers": 10, "rounds": 1, "task": "rank"} if method == "agreement" else {"rounds": 1}
    e = experiment(method, engine="batched", **fields)
    assert re.match(
        f"engine: batched needs .* found {REFUSED[method]} .*; its clients are trained one at a time", apart(e)
    )
    with pytest.raises(UserError, match=f"^engine: .* found {REFUSED[method]} .*; take --stack no"):
        check(e.model_copy(update={"engine": "process", "stack": "yes"}))
    inline, batched = (into(tmp_path / engine, method, **fields, engine=engine) for engine in ("inline", "batched"))
    near(inline, batched, 0.0)


def test_a_message_with_which_one_client_cannot_begin_is_a_failure_of_that_one_alone() -> None:
    e = experiment("scaffold", **NEEDS["scaffold"])
    node = Node(clients_of(e, None, range(len(clients_data(e)))), stacked=True)
    joined = node.join().contributions
    sent = {
        reply.client: Broadcast(1, reply.values, control={n: torch.zeros_like(v) for n, v in reply.values.items()})
        for reply in joined
    }
    lacking = joined[0].client
    answers = node.as_programs("train", Call({**sent, lacking: replace(sent[lacking], control=None)}))
    assert answers.failed == {lacking: "record control: must be sent, found missing"}
    assert {reply.client for reply in answers.contributions} == sent.keys() - {lacking}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"engine": "inline"}, True),
        ({"engine": "superlink"}, True),
        ({"engine": "process", "stack": "no"}, True),
        ({"engine": "process"}, False),
        ({"engine": "batched"}, False),
        ({"engine": "inline", "model": "slist"}, False),
        ({"engine": "inline", "device": "cpu"}, False),
    ],
)
def test_an_accelerator_that_trains_one_client_at_a_time_is_named_with_what_was_measured(
    fields: dict[str, Any], said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    text = slow(experiment("fedper", **{"device": "cuda", **fields}))
    assert bool(text) == said
    assert not said or re.match(
        r"cuda:0 trains one client at a time: on one H100 a round took 2.0 times .* --engine", text
    )


def test_a_node_computes_in_float32() -> None:
    torch.backends.cudnn.allow_tf32 = True
    Node([])
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"
