"""Sums over many items: sparse from client to solve and the same to the bit, and a client's own items alone."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.sparse import csr_array, vstack

from fedrec import sparse
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data, own_sums, reader
from fedrec.experiment.records import load_params
from fedrec.federation.coordination.totals import moved
from fedrec.keyed import carrier, gather
from fedrec.models import SummedRecommender, quadratic, summed
from fedrec.models.pairs import from_matrix, from_symmetric, to_matrix
from fedrec.models.quadratic import Quadratic, inputs, score, solve, statistics
from fedrec.models.summed import unpack
from fedrec.params import norm
from fedrec.report import page
from fedrec.sharing import CROSS, GRAM, ContractError
from fedrec.subspace import triangle
from fedrec.wire import pack as packed
from fedrec.wire import read_call
from fedrec.wire import unpack as unpacked
from simulations import check, unlearn
from simulations.baselines import baseline
from simulations.engines import launch
from simulations.run import main as run
from tests.helpers import experiment, fit
from tests.letters import read_broadcast, read_contribution
from tests.test_quadratic import of

MARKET = {"users": 40, "items": 30, "impressions": 20}
MATRIX = hnp.arrays(np.float32, (5, 5), elements=st.sampled_from([0.0, 0.0, 0.0, 1.5, -2.0, 0.1]))
VECTOR = hnp.arrays(np.float32, 9, elements=st.sampled_from([0.0, 0.0, 1.5, -1.5, 0.1]))


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold all sums over pairs as sparse ones, however small."""
    monkeypatch.setattr(sparse, "LARGE", 0)
    monkeypatch.setattr(sparse, "SHARE", 0)


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take any catalogue for one of many items."""
    for module in (quadratic, summed, check):
        monkeypatch.setattr(module, "EXACT", 1)
    monkeypatch.setattr("fedrec.experiment.channel.EXACT", 1)


def small(**fields: Any) -> Experiment:
    return experiment(**{"model": "slist", "rounds": 1, "market": MARKET, "clients": 5, **fields})


def as_sparse(value: np.ndarray) -> torch.Tensor:
    at = np.flatnonzero(value)
    return sparse.from_places(at, torch.from_numpy(value.reshape(-1)[at]), value.shape)


@given(MATRIX)
def test_a_matrix_and_a_triangle_come_back_from_their_entries(matrix: np.ndarray) -> None:
    whole, symmetric = csr_array(matrix), csr_array(matrix + matrix.T)
    half = from_symmetric(symmetric)
    np.testing.assert_array_equal(to_matrix(from_matrix(whole)).toarray(), matrix)
    np.testing.assert_array_equal(half.to_dense().numpy(), triangle(symmetric.toarray()))
    np.testing.assert_array_equal(to_matrix(half).toarray(), symmetric.toarray())
    assert (np.diff(sparse.places(half)) > 0).all()


@given(MATRIX, hnp.arrays(np.bool_, 5))
def test_what_is_between_some_items_is_all_that_is_left(matrix: np.ndarray, mask: np.ndarray) -> None:
    symmetric, there = matrix + matrix.T, mask[:, None] & mask
    halves = (from_symmetric(csr_array(symmetric)), torch.from_numpy(triangle(symmetric)))
    for half in halves:
        found = sparse.among(half, torch.from_numpy(mask)).to_dense().numpy()
        np.testing.assert_array_equal(found, triangle(symmetric * there))
    found = sparse.among(as_sparse(matrix), torch.from_numpy(mask)).to_dense().numpy()
    np.testing.assert_array_equal(found, matrix * there)


@given(VECTOR, VECTOR, st.tuples(st.booleans(), st.booleans()))
def test_sums_of_either_kind_are_the_same_to_the_bit(
    value: np.ndarray, change: np.ndarray, kinds: tuple[bool, bool]
) -> None:
    dense = torch.from_numpy(value), torch.from_numpy(change)
    first, second = (
        as_sparse(v) if kind else torch.from_numpy(v) for v, kind in zip((value, change), kinds, strict=True)
    )
    for scale in (1.0, -1.0):
        found = sparse.plus(first, second, scale)
        assert found.is_sparse == all(kinds)
        assert torch.equal(found.to_dense(), dense[0] + scale * dense[1])
    assert torch.equal(moved(first, second).to_dense(), moved(*dense))
    assert norm({"x": first}) == pytest.approx(norm({"x": dense[0]}))


def test_what_was_taken_out_of_a_sum_leaves_no_entry(always: None) -> None:
    rest = moved(*(as_sparse(np.array(row, np.float32)) for row in ([0.1, 0, 3], [-0.1, 0, 0])))
    assert sparse.places(rest).tolist() == [2]


@given(MATRIX)
def test_entries_come_back_from_a_message_and_from_a_file(matrix: np.ndarray) -> None:
    value, name = as_sparse(matrix), CROSS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "LARGE", 0)
        patch.setattr(sparse, "SHARE", 0)
        back = unpacked(packed({name: value}))[name]
    assert sparse.equal(back, value)
    again = sparse.unflat(
        {key: part.clone() for key, part in sparse.flat({name: value, "x": value.to_dense()}).items()}
    )
    assert sparse.equal(again[name], value)
    assert torch.equal(again["x"], value.to_dense())


def test_a_sum_of_many_pairs_is_dense_however_it_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of all pairs: entries would take more room than they save; and a table of items is never sparse."""
    monkeypatch.setattr(sparse, "LARGE", 100)
    value, table = torch.zeros(20, 20), "item_sums.answer"
    assert unpacked(packed({CROSS: value}))[CROSS].is_sparse
    assert not unpacked(packed({table: value}))[table].is_sparse
    value[:5] = 1.0
    assert not unpacked(packed({CROSS: value}))[CROSS].is_sparse


@pytest.mark.parametrize("fields", [{}, {"participation": 0.4, "rounds": 4, "seed": 4}, {"clients": 2, "reveal": True}])
def test_a_run_of_sparse_sums_is_that_of_dense_ones(fields: dict[str, Any], request: pytest.FixtureRequest) -> None:
    dense, _ = fit(small(**fields))
    request.getfixturevalue("always")
    found, grid = fit(small(**fields))
    sent = [read_broadcast(m.content).values for m in grid.sent if m.metadata.message_type == "train"]
    answers = [read_contribution(m.content).values for m in grid.received if m.metadata.message_type == "train"]
    assert all(value.is_sparse for values in (*sent, *answers, found.shared) for value in values.values())
    for name, value in dense.shared.items():
        assert torch.equal(found.shared[name].to_dense(), value)
    for here, there in zip(found.clients, dense.clients, strict=True):
        assert here == {**there, "value": pytest.approx(there["value"], rel=1e-9)}


def test_sparse_sums_are_added_by_a_node_and_kept_in_files(always: None, tmp_path: Path) -> None:
    first, second = tmp_path / "inline", tmp_path / "batched"
    launch(small(engine="inline"), first, every=1)
    launch(small(engine="batched"), second, every=1)
    here, there = (load_params(home / "model" / "shared.safetensors") for home in (first, second))
    for name, value in here.items():
        assert value.is_sparse
        assert sparse.equal(value, there[name])


def test_a_secure_sum_of_sparse_sums_is_their_sum(always: None) -> None:
    e = small(clients=3, partition="users")
    plain, _ = fit(e)
    secret, _ = fit(e.model_copy(update={"secure": e.secure.model_copy(update={"active": True})}))
    for here, there in zip(unpack(secret.shared), unpack(plain.shared), strict=True):
        assert np.abs(here - there).max() <= 3 * 2.0**-41 + 1e-12


def test_a_client_of_a_large_catalogue_is_sent_what_is_between_its_own_items(many: None) -> None:
    e = small()
    record, grid = fit(e)
    gram, cross = unpack(record.shared)
    calls = [read_call(m.content).broadcasts for m in grid.sent if m.metadata.message_type == "evaluate"]
    broadcasts = {name: sent.values for call in calls for name, sent in call.items()}
    assert min(len(data.items) for data in clients_data(e)) < len(gram)
    for data in clients_data(e):
        sent = broadcasts[data.name]
        own = np.ix_(data.items, data.items)
        for here, there in zip(unpack(sent), (gram, cross), strict=True):
            np.testing.assert_array_equal(here[own], there[own])
            assert np.count_nonzero(here) == np.count_nonzero(there[own])
        model = reader(e, data, "test")
        assert isinstance(model, SummedRecommender)
        x = inputs(e.model, e.quadratic, model.past, len(data.items))
        scores = model.score_all({**sent, "heads.rank.weight": torch.zeros(1)}, "rank", torch.arange(len(data.users)))
        expected = score(e.model, e.quadratic, gram[own], cross[own], x)
        np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def disjoint(tmp_path: Path) -> Path:
    """A table of three platforms that have users in common, and no item."""
    rng, path = np.random.default_rng(0), tmp_path / "table.csv"
    rows = [
        {"user": user, "item": f"{platform}-{item}", "platform": platform, "time": time}
        for platform in ("a", "b", "c")
        for user in range(30)
        for time, item in enumerate(rng.choice(12, 6, replace=False))
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("entries", ["dense", "sparse"])
def test_platforms_without_a_common_item_learn_what_each_learns_alone(
    entries: str, disjoint: Path, many: None, request: pytest.FixtureRequest
) -> None:
    if entries == "sparse":
        request.getfixturevalue("always")
    columns = "user=user,item=item,platform=platform,time=time"
    e = small(method="fedavg", clients=3, dataset="table", data_dir=disjoint, columns=columns)
    together, _ = fit(e)
    alone, _ = fit(baseline(e, "local"))
    tests = [[row for row in record.clients if row["split"] == "test"] for record in (together, alone)]
    values = [{(row["client"], row["metric"]): row["value"] for row in rows} for rows in tests]
    assert values[0] == values[1]
    assert len(values[0]) >= 6
    assert any("sums.cross, sums.gram" in note and "changes nothing" in note for note in together.notes)
    total = unpack(together.shared)[0]
    for data in clients_data(e):
        own = np.ix_(data.items, data.items)
        np.testing.assert_array_equal(total[own], unpack(own_sums(e, data))[0][own])


def test_a_carrier_has_no_item_that_there_is_not() -> None:
    values = {CROSS: torch.zeros(3, 3), GRAM: torch.zeros(6)}
    who = carrier("shop", values, {"pair": np.array([0, 2])}, {}, 1.0)
    sent = gather({CROSS: torch.ones(3, 3), GRAM: torch.ones(6)}, who)
    assert sent[CROSS].to_dense().tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 1]]
    assert sent[GRAM].to_dense().tolist() == [1, 0, 1, 0, 0, 1]
    with pytest.raises(ContractError, match="3 items"):
        carrier("shop", values, {"pair": np.array([0, 3])}, {}, 1.0)


def test_the_most_items_are_those_that_a_client_solves_for(
    disjoint: Path, many: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = "user=user,item=item,platform=platform,time=time"
    e = small(clients=3, dataset="table", data_dir=disjoint, columns=columns)
    monkeypatch.setattr(check, "MOST_ITEMS", 12)
    check.check_sums(e)  # 36 in all
    monkeypatch.setattr(check, "MOST_ITEMS", 11)
    with pytest.raises(UserError, match="over 12 items"):
        check.check_sums(e)


@pytest.mark.parametrize("model", quadratic.KINDS)
def test_a_fit_of_sparse_sums_is_that_of_dense_ones(model: str) -> None:
    e = small(model=model)
    gram, cross = unpack(own_sums(e, clients_data(e)[0]))
    here, there = (solve(model, e.quadratic, *sums) for sums in ((csr_array(gram), csr_array(cross)), (gram, cross)))
    np.testing.assert_array_equal(here, there)


def test_a_client_leaves_a_run_whose_sums_are_sparse(
    always: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "write_report", lambda *_, **__: None)
    options = ["--market.users=40", "--market.items=30", "--clients=4", "--model=slist", "--engine=inline"]
    homes = [tmp_path / name for name in ("run", "fewer", "never")]
    quiet = ["--quiet", "--out"]
    assert run([*options, "--no-compare", *quiet, str(homes[0])]) == 0
    assert unlearn.main([str(homes[0]), "--client", "shop", *quiet, str(homes[1])]) == 0
    assert run([*options, "--without", "shop", "--no-compare", *quiet, str(homes[2])]) == 0
    fewer, never = (load_params(home / "model" / "shared.safetensors") for home in homes[1:])
    assert all(sparse.equal(fewer[name], value) for name, value in never.items())


@pytest.mark.soak
@pytest.mark.skipif("FEDREC_DATA" not in os.environ, reason="needs the folder of data in FEDREC_DATA")
def test_single_precision_is_enough_for_twelve_thousand_items(tries: Callable[[int, int], int]) -> None:
    """Of Beauty 500 rows of W, and what 500 users are recommended, in float32 beside float64."""
    tries(0, 1)
    with gzip.open(Path(os.environ["FEDREC_DATA"]) / "sequences" / "Beauty.txt.gz", "rt") as file:
        users = [[int(item) - 1 for item in line.split()[1:-2]] for line in file]
    config, items, n = Quadratic(), 1 + max(map(max, users)), 500
    gram, cross = statistics("slist", config, of(users), items)
    drawn = np.random.default_rng(0).permutation(items)[:n]
    rows = csr_array((np.ones(n), (np.arange(n), drawn)), shape=(n, items))
    x = csr_array(vstack([rows, inputs("slist", config, of(users[:n]), items)]))
    here, there = (score("slist", config, gram.astype(t), cross.astype(t), x) for t in (np.float32, np.float64))
    difference = np.abs(here[:n] - there[:n]).max() / np.abs(there[:n]).max()
    first = [np.argsort(-scores[n:], axis=1, kind="stable")[:, :10] for scores in (here, there)]
    same = float((first[0] == first[1]).mean())
    print(f"largest difference of W over the largest |W|: {difference:.2g}; first ten places the same: {same:.2%}")
    assert difference < 1e-4
    assert same > 0.99
