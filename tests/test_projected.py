"""Sums in a subspace over Flower: what the pooled users find, in tables that have rows for items and nothing [n, n]."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import ArrayRecord

from fedrec.data.history import sequences
from fedrec.errors import UserError
from fedrec.experiment.choice import describe
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.holdings import clients_data, keys, reader
from fedrec.experiment.records import Record
from fedrec.models import ProjectedRecommender
from fedrec.models.projected import typed
from fedrec.models.quadratic import Matrix, statistics
from fedrec.models.subspace import Projection, begin, find, fit, project
from fedrec.params import Params
from fedrec.privacy.guarantee import largest_sum
from fedrec.sharing import ANSWER, BASIS, DIAGONAL, EXTENT, INNER, RIDGE
from fedrec.subspace import metric, square
from fedrec.wire import unpack as unpacked
from simulations.baselines import baseline
from simulations.check import check
from simulations.cli import parse
from simulations.engines import launch
from simulations.run import main
from tests.helpers import experiment, shared_by
from tests.helpers import fit as fit_over_flower

MARKET = {"users": 40, "items": 30, "impressions": 20}
SHARED = {ANSWER, BASIS, DIAGONAL, EXTENT, INNER, RIDGE}


def small(k: int = 5, passes: int = 3, **fields: Any) -> Experiment:
    sums = {"kind": "subspace", "k": k, "passes": passes}
    usual = {"model": "slist", "market": MARKET, "clients": 5, "rounds": passes + 1, "eval_every": passes + 1}
    return experiment(**{**usual, "sums": sums, **fields})


def public(basis: str | Path, k: int = 5, **fields: Any) -> Experiment:
    """Return an experiment of one round in a public subspace."""
    sums = {"kind": "subspace", "k": k, "basis": str(basis)}
    return small(**{"sums": sums, "rounds": 1, "eval_every": 1, **fields})


def pooled(e: Experiment) -> tuple[Any, Any]:
    """Return G and C over the users of all clients, made at once, over the items that some client carries."""
    carried = np.unique(np.concatenate([data.items for data in clients_data(e)]))
    items, start = [], [0]
    for data in clients_data(e):
        of_client = sequences(data, [data.train], e.seed)
        items.append(np.searchsorted(carried, data.items[of_client.item]))
        start += (of_client.start[1:] + start[-1]).tolist()
    together = type(of_client)(np.concatenate(items), np.array(start))
    return statistics(e.model, e.quadratic, together, len(carried))


def weights(e: Experiment, basis: Matrix, sums: Projection, ridge: Matrix, items: int) -> Matrix:
    """Return W [n, n] of a fit."""
    config = e.quadratic.model_copy(update={"ridge": e.sums.ridge * e.quadratic.ridge})
    found = fit(e.model, config, basis, ridge, sums, items)
    return found.left @ found.right.T


def weights_of(e: Experiment, shared: Params) -> Matrix:
    """Return W [n, n] of what a run shares."""
    value = {name: one.numpy().astype(np.float64) for name, one in shared.items()}
    sums = Projection(square(value[INNER]), value[ANSWER], value[DIAGONAL], float(value[EXTENT][1]))
    return weights(e, value[BASIS], sums, square(value[RIDGE]), int(value[EXTENT][0]))


@pytest.mark.parametrize("model", ["ease", "slist", "slit"])
@pytest.mark.parametrize("fields", [{}, {"clients": 1}, {"partition": "one-user", "clients": 12}])
def test_clients_find_what_the_pooled_users_find(model: str, fields: dict[str, Any]) -> None:
    """But for the rounding of tables to float32, which turns V by as much."""
    e = small(model=model, **fields)
    record, _ = fit_over_flower(e)
    assert record.shared.keys() == SHARED
    gram, cross = pooled(e)
    names = [str(key) for key in keys(e)[1][record.rows["item"]]]
    basis = find(e.sums, gram, cross, begin(e.sums.k, e.seed, names))
    sums = project(gram, cross, basis)
    expected = weights(e, basis, sums, metric(basis, sums.diagonal, e.quadratic.popular), len(basis))
    np.testing.assert_allclose(weights_of(e, record.shared), expected, atol=1e-4 * np.abs(expected).max())


def test_the_sums_are_those_of_the_last_basis_whoever_was_missed() -> None:
    """A client that was missed in a pass turns nothing then; one that was missed in the last round owes its sums."""
    e = small(dropout="2:shop;4:films", rounds=5, eval_every=5)
    record, _ = fit_over_flower(e)
    gram, cross = pooled(e)
    basis = record.shared[BASIS].numpy().astype(np.float64)
    sums = project(gram, cross, basis)
    np.testing.assert_allclose(basis.T @ basis, np.eye(5), atol=1e-6)
    np.testing.assert_allclose(square(record.shared[INNER].numpy()), sums.inner, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(record.shared[ANSWER].numpy(), sums.outer, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(record.shared[DIAGONAL].numpy(), sums.diagonal, rtol=1e-6)
    without, _ = fit_over_flower(small(dropout="2:shop;4:films"))
    assert float((without.shared[INNER] - record.shared[INNER]).abs().max()) > 1e-2


def test_a_message_has_rows_for_the_items_of_its_client_and_nothing_of_their_square() -> None:
    e = small()
    record, _ = fit_over_flower(e)
    size = {data.name: len(data.items) for data in clients_data(e)}
    assert len(set(size.values())) > 1 or max(size.values()) < MARKET["items"]
    widest = max(int(row["bytes"]) for row in record.ledger if row["parameter"] in SHARED)
    assert widest <= 4 * e.sums.k * max(size.values()) + 200
    assert {row["parameter"] for row in record.ledger} == {*SHARED, "metrics", "rows:item"}


@pytest.mark.parametrize(
    "e",
    [
        small(partition="users", dropout="2:silo-1;4:silo-3", rounds=5, eval_every=5),
        public("texts", partition="users", model="ease"),
    ],
)
def test_a_secure_sum_is_the_sum_but_for_its_fixed_point(e: Experiment) -> None:
    """Nobody's answer to any pass is seen, and whoever is missed is owed as in the open."""
    plain, _ = fit_over_flower(e)
    secret, grid = fit_over_flower(e.model_copy(update={"secure": e.secure.model_copy(update={"active": True})}))
    expected = weights_of(e, plain.shared)
    np.testing.assert_allclose(weights_of(e, secret.shared), expected, atol=1e-5 * np.abs(expected).max())
    assert not any("shared.0" in m.content for m in grid.received if m.metadata.message_type == "train")


def test_no_entry_of_a_clients_sums_comes_near_the_bound_of_a_secure_sum() -> None:
    e = small(partition="users")
    _, grid = fit_over_flower(e)
    largest = max(
        float(np.abs(value.numpy()).max())
        for message in grid.received
        for part in message.content.values()
        if isinstance(part, ArrayRecord)
        for value in unpacked(part).values()
        if value.is_floating_point() and value.numel()
    )
    assert 1 < largest < largest_sum(e) / 2


@pytest.mark.parametrize("engine", ["batched", "process"])
def test_every_engine_gives_the_same_bits(engine: str, tmp_path: Path) -> None:
    first, second = (shared_by(small(engine=name), tmp_path / name) for name in ("inline", engine))
    assert first == second


def test_a_head_adds_its_own_sums_within_the_subspace() -> None:
    e = small()
    record, _ = fit_over_flower(e)
    data = clients_data(e)[0]
    model = reader(e, data, "test")
    assert isinstance(model, ProjectedRecommender)
    rows = np.searchsorted(record.rows["item"], data.items)
    part = {n: v[torch.from_numpy(rows)] if n.startswith("item_sums") else v for n, v in record.shared.items()}
    shared, own = model.read(part), model.read({**part, "heads.rank.weight": torch.tensor([2.0])})
    value = {name: one.numpy().astype(np.float64) for name, one in part.items()}
    total = Projection(square(value[INNER]), value[ANSWER], value[DIAGONAL], float(value[EXTENT][1]))
    added = total.plus(project(*model.ready, value[BASIS]), 2.0)
    expected = weights(e, value[BASIS], added, square(value[RIDGE]), int(value[EXTENT][0]))
    assert own.found is not None and shared.found is not None
    np.testing.assert_allclose(own.found.left @ own.found.right.T, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(own.found.right - shared.found.right).max() > 1e-3


def values_of(record: Record) -> dict[str, float]:
    """Return the first metric of every client's test."""
    rows = [row for row in record.clients if row["split"] == "test" and row["metric"] == "ndcg@10"]
    return {str(row["client"]): float(row["value"]) for row in rows}


def test_a_client_alone_finds_its_own_subspace_and_a_pooled_one_everybodys() -> None:
    """The pooled client, which has it all to itself, comes to the test values of the federation without heads."""
    e = small(split="random")
    together, _ = fit_over_flower(small(split="random", method="fedavg", share="all-but-users"))
    pooled, _ = fit_over_flower(baseline(e, "pooled"))
    alone, _ = fit_over_flower(baseline(e, "local"))
    assert not alone.shared
    assert values_of(together) == pytest.approx(values_of(pooled), abs=1e-6)
    assert values_of(alone) != pytest.approx(values_of(pooled), abs=1e-2)


def written(path: Path, keys: Sequence[str], vectors: Matrix) -> Path:
    """Return a file of vectors of items."""
    pd.DataFrame(vectors).assign(key=keys).to_csv(path, index=False)
    return path


def test_what_the_passes_found_needs_one_round_when_it_is_public(tmp_path: Path) -> None:
    """But for the rounding of tables to float32."""
    e = small()
    found, _ = fit_over_flower(e)
    names = [str(key) for key in keys(e)[1][found.rows["item"]]]
    path = written(
        tmp_path / "basis.csv", names, found.shared[BASIS].numpy() @ np.random.default_rng(0).normal(size=(5, 6))
    )
    once, _ = fit_over_flower(public(path))
    assert {row["round"] for row in once.ledger} == {0, 1}
    expected = weights_of(e, found.shared)
    np.testing.assert_allclose(weights_of(e, once.shared), expected, atol=1e-5 * np.abs(expected).max())


def test_what_is_public_of_items_is_a_subspace_for_clients_alone_and_together() -> None:
    e = public("categories", k=6, split="random")
    together, _ = fit_over_flower(public("categories", k=6, split="random", method="fedavg", share="all-but-users"))
    pooled, _ = fit_over_flower(baseline(e, "pooled"))
    alone, _ = fit_over_flower(baseline(e, "local"))
    v = together.shared[BASIS].numpy()
    np.testing.assert_allclose(v.T @ v, np.eye(v.shape[1]), atol=1e-5)
    assert values_of(together) == pytest.approx(values_of(pooled), abs=1e-6)
    assert values_of(alone) != pytest.approx(values_of(pooled), abs=1e-2)


def test_a_client_whose_items_tell_less_apart_has_fewer_directions(tmp_path: Path) -> None:
    """The films have one vector, which the shop's items do not."""
    e = small()
    films, everything = clients_data(e)[0], keys(e)[1]
    vectors = np.random.default_rng(0).normal(size=(len(everything), 4))
    vectors[films.items] = [1.0, 0, 0, 0]
    e = baseline(public(written(tmp_path / "v.csv", [str(key) for key in everything], vectors)), "local")
    model = reader(e, clients_data(e)[0], "test")
    assert isinstance(model, ProjectedRecommender)
    assert model.own()[BASIS].shape == (len(films.items), 1)
    assert torch.isfinite(model.score_all(model.own(), "rank", torch.arange(3))).all()


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ({}, "no such file"),
        ({"nobody": 1.0}, "key must be that of an item, found none"),
        ({"FIRST": 0.0}, "must tell items apart, found nothing of"),
        ({"FIRST": math.nan}, "must be a finite number"),
    ],
)
def test_a_file_that_is_no_subspace_is_refused_in_one_line(
    rows: dict[str, float], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    e, path = small(), tmp_path / "v.csv"
    names = [str(keys(e)[1][0]) if name == "FIRST" else name for name in rows]
    if rows:
        written(path, names, np.array([[value, value] for value in rows.values()]))
    market = [f"--market.{name}={value}" for name, value in MARKET.items()]
    line = ["--model", "slist", "--model.sums", "subspace", "--model.basis", str(path), "--clients", "5", *market]
    assert main([*line, "--out", str(tmp_path / "run")]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: sums.basis: ") and text in shown.lower(), shown
    assert shown.count("\n") == 1


def test_a_file_is_found_from_anywhere_and_what_it_lacks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "v.csv", [str(key) for key in keys(small())[1][:9]], np.eye(9))
    monkeypatch.chdir(tmp_path)
    e = parse(["--model", "slist", "--sums.kind", "subspace", "--sums.basis", "v.csv"]).experiment
    assert (e.sums.basis, e.rounds, e.eval_every) == (str(tmp_path / "v.csv"), 1, 1)
    assert "public subspace of v.csv" in describe(e)
    with pytest.raises(UserError, match=r"^option --sums\.passes: acts only with .* passes find"):
        parse(["--model", "slist", "--sums.kind", "subspace", "--sums.basis", "texts", "--sums.passes", "2"])
    launch(public(tmp_path / "v.csv", k=9), tmp_path / "run")
    notes = json.loads((tmp_path / "run" / "experiment.json").read_text())["data"]["notes"]
    assert f"v.csv: {MARKET['items'] - 9} of {MARKET['items']} items have no vector and get zeros" in notes


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"rounds": 3}, "must be at least 4"),
        ({"coupling": {"kind": "clusters", "groups": "films,shop"}}, "sums of all pairs of items"),
        ({"budget": {"margin": 0.1}}, "sums of all pairs of items"),
        ({"secure": {"active": True}}, "clients with other catalogues"),
        ({"clients": 2}, "reveal"),
        ({"clients": 2, "sums": {}, "rounds": 1, "quadratic": {"repeats": 0.5}}, "quadratic.repeats"),
    ],
)
def test_what_does_not_go_with_it_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        check(small(**fields))


def test_rounds_follow_from_the_passes() -> None:
    e = build({"model": "slist", "sums": {"kind": "subspace", "passes": 2}})
    assert (e.rounds, e.eval_every) == (3, 3)


def test_tables_travel_in_single_and_what_is_small_in_double_precision() -> None:
    one = np.ones((2, 2))
    assert typed(BASIS, one).dtype == typed(ANSWER, one).dtype == typed(DIAGONAL, one).dtype == torch.float32
    assert typed(INNER, one).dtype == typed(RIDGE, one).dtype == torch.float64
