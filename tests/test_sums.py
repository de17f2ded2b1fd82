"""Learning by sums over Flower: one round is what all data together give; nothing travels but sums and weights."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clients.client import Client
from clients.heads import WEIGHTS, choose_head
from clients.joining import join
from clients.recommend import recommend
from fedrec.data.history import sequences
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.holdings import clients_data, dataset, own_sums, reader
from fedrec.experiment.records import load_params
from fedrec.models import SummedRecommender
from fedrec.models.quadratic import KINDS, inputs, score, solve, statistics
from fedrec.models.summed import pack, unpack
from fedrec.params import Params
from fedrec.sharing import CROSS, GRAM, WEIGHT, Broadcast, ContractError, Contribution
from fedrec.wire import pack as packed
from fedrec.wire import unpack as unpacked
from fedrec.wire.arrays import NONZERO
from server.strategy import Coordinator
from simulations.api import run
from simulations.apps import plan_of
from simulations.baselines import baseline
from simulations.engines import launch
from tests.helpers import FaultyGrid, experiment, fit, shared_by, shared_names
from tests.letters import read_broadcast, read_contribution

MARKET = {"users": 40, "items": 30, "impressions": 20}


def small(**fields: Any) -> Experiment:
    return experiment(**{"model": "slist", "rounds": 1, "market": MARKET, "clients": 5, **fields})


def pooled_sums(e: Experiment) -> tuple[np.ndarray, np.ndarray]:
    """Return G and C over the users of all clients, made at once of their sequences end to end."""
    items, start = [], [0]
    for data in clients_data(e):
        of_client = sequences(data, [data.train], e.seed)
        items.append(data.items[of_client.item])
        start += (of_client.start[1:] + start[-1]).tolist()
    together = type(of_client)(np.concatenate(items), np.array(start))
    gram, cross = statistics(e.model, e.quadratic, together, len(dataset(e).items))
    return gram.toarray(), cross.toarray()


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("model", KINDS)
@pytest.mark.parametrize("fields", [{}, {"clients": 1}, {"participation": 0.4, "rounds": 9, "seed": 4}])
def test_one_round_is_all_data_together(model: str, fields: dict[str, Any]) -> None:
    e = small(model=model, **fields)
    record, _ = fit(e)
    gram, cross = unpack(record.shared)
    everything = pooled_sums(e)
    for here, there in ((gram, everything[0]), (cross, everything[1])):
        assert np.abs(here - there).max() <= len(clients_data(e)) * 2.0**-31 + 1e-12  # what each rounds to its grid
    w = solve(model, e.quadratic, gram, cross)
    assert relative(w, solve(model, e.quadratic, *everything)) < 1e-9


def test_a_lost_answer_is_owed_and_comes_later() -> None:
    """The server took nothing of shop in the first round, and has all in the second; nobody is counted twice."""
    whole, _ = fit(small())
    late, _ = fit(small(dropout="1:shop", rounds=2))
    lost, _ = fit(small(dropout="1:shop"))
    assert relative(unpack(late.shared)[0], unpack(whole.shared)[0]) < 1e-12
    assert relative(unpack(lost.shared)[0], unpack(whole.shared)[0]) > 1e-2


@pytest.mark.parametrize("partition", ["platform", "one-user"])
def test_a_secure_sum_is_the_sum_but_for_its_fixed_point(partition: str) -> None:
    """Of each client an entry is off by at most 2^-(f + 1), with f = 40 binary digits for so few users."""
    clients = {"clients": 5} if partition == "platform" else {"clients": 6, "market": {**MARKET, "users": 6}}
    e = small(partition=partition, **clients)
    plain, _ = fit(e)
    secret, grid = fit(e.model_copy(update={"secure": e.secure.model_copy(update={"active": True})}))
    for here, there in zip(unpack(secret.shared), unpack(plain.shared), strict=True):
        assert np.abs(here - there).max() <= len(clients_data(e)) * 2.0**-41 + 1e-12
    assert not any("shared.0" in m.content for m in grid.received if m.metadata.message_type == "train")


def test_nothing_but_sums_travels_and_heads_stay_at_home(tmp_path: Path) -> None:
    record, grid = fit(small(), tmp_path)
    arrays = shared_names(grid)
    assert arrays == {GRAM, CROSS}
    assert {row["parameter"] for row in record.ledger} == {GRAM, CROSS, "metrics"}
    metrics = {name for m in grid.received for name in read_contribution(m.content).metrics}
    assert {name.rpartition("/")[2] for name in metrics} <= {"examples", "ndcg@10", "hr@10"}


def test_of_two_clients_each_is_sent_weights_alone_unless_they_reveal() -> None:
    """The total less its own is the other's: without `reveal` no message down holds a sum."""
    _, grid = fit(small(clients=2))
    down = [read_broadcast(m.content).values for m in grid.sent if m.metadata.message_type == "evaluate"]
    assert down
    assert all(WEIGHT in values and not {GRAM, CROSS} & values.keys() for values in down)
    e = small(clients=2, reveal=True)
    _, grid = fit(e)
    total = unpack(read_broadcast(grid.sent[-1].content).values)[0]
    own, other = (unpack(own_sums(e, data))[0] for data in clients_data(e))
    assert relative(total - own, other) < 1e-12


def test_a_head_adds_its_own_sums_to_the_total() -> None:
    e = small()
    record, _ = fit(e)
    data = clients_data(e)[0]
    model = reader(e, data, "test")
    assert isinstance(model, SummedRecommender)
    gram, cross = unpack(record.shared)
    own = unpack(own_sums(e, data))
    x = inputs(e.model, e.quadratic, model.placed(model.past), len(gram))
    for w in (0.0, 3.0):
        params = {**record.shared, "heads.rank.weight": torch.tensor([w])}
        scores = model.score_all(params, "rank", torch.arange(len(data.users))).numpy()
        expected = score(e.model, e.quadratic, gram + w * own[0], cross + w * own[1], x)[:, data.items]
        np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-7)


def test_a_client_alone_solves_its_own_sums_and_a_pooled_one_everybodys() -> None:
    e = small(split="random")
    alone, _ = fit(baseline(e, "local"))
    assert not alone.shared
    together, _ = fit(small(split="random", method="fedavg", share="all-but-users"))
    pooled, _ = fit(baseline(e, "pooled"))
    by_client = {row["client"]: row["value"] for row in together.clients if row["split"] == "test"}
    for row in pooled.clients:
        if row["split"] == "test" and row["metric"] == "ndcg@10":
            tests = [r for r in together.clients if r["split"] == "test" and r["metric"] == "ndcg@10"]
            assert {r["client"]: r["value"] for r in tests}[row["client"]] == pytest.approx(row["value"], abs=1e-9)
    assert by_client


@pytest.fixture(scope="module")
def conflicting() -> Experiment:
    """A market in which one platform's users want the opposite of the others', with enough of them to choose by."""
    return build(
        {
            "model": "slist",
            "clients": 3,
            "engine": "inline",
            "market": {"users": 150, "items": 60, "impressions": 40, "conflicting": 1},
        }
    )


def test_a_client_whose_users_are_unlike_the_others_chooses_a_head(conflicting: Experiment) -> None:
    record, _ = fit(conflicting)
    chosen = {}
    for data in clients_data(conflicting):
        client = Client(conflicting, data, "cpu", None)
        state, _ = join(client)
        state, _ = choose_head(client, state, Broadcast(1, record.shared, split="validation"))
        chosen[data.name] = float(state.now.private["heads.rank.weight"])
    assert set(chosen.values()) <= set(WEIGHTS)
    assert max(chosen.values()) > 0


def test_few_users_choose_no_head() -> None:
    e = small(partition="one-user", clients=4, market={**MARKET, "users": 4})
    record, _ = fit(e)
    client = Client(e, clients_data(e)[0], "cpu", None)
    state, _ = join(client)
    assert choose_head(client, state, Broadcast(1, record.shared)) == (state, None)


@pytest.mark.parametrize("engine", ["batched", "process"])
def test_every_engine_gives_the_same_bits(engine: str, tmp_path: Path) -> None:
    first, second = (shared_by(small(engine=name), tmp_path / name) for name in ("inline", engine))
    assert first == second


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"partition": "users"},
        {"sums": {"kind": "subspace", "k": 4, "passes": 1}, "rounds": 2, "eval_every": 2},
        {"model": "ials"},
    ],
)
def test_what_a_node_adds_up_is_in_the_ledger_as_if_it_were_sent(fields: dict[str, Any], tmp_path: Path) -> None:
    for engine in ("inline", "batched"):
        launch(small(engine=engine, **fields), tmp_path / engine)
    first, second = ((tmp_path / engine / "ledger.csv").read_text() for engine in ("inline", "batched"))
    assert first == second


@pytest.mark.parametrize("fields", [{}, {"clients": 2}, {"method": "local"}])
def test_a_finished_run_recommends_what_it_was_evaluated_with(fields: dict[str, Any], tmp_path: Path) -> None:
    """The test item of the users whom a rank metric found stands among what they are recommended."""
    run(model="slist", market=MARKET, engine="inline", compare=False, out=tmp_path / "run", **{"clients": 5, **fields})
    e = build({"model": "slist", "market": MARKET, "engine": "inline", "clients": 5, **fields})
    data = clients_data(e)[0]
    hits = pd.read_parquet(tmp_path / "run" / "users.parquet").query(f"client == '{data.name}' and metric == 'hr@10'")
    found, names = dict(zip(hits["user"], hits["value"], strict=True)), dataset(e).users["key"].to_numpy()[data.users]
    assert found
    for user, hit in list(found.items())[:5]:
        held = data.test.item[(names[data.test.user] == user) & data.test.positive]
        best = recommend(tmp_path / "run", data.name, user, 10).items
        assert bool(np.isin(data.items[held], best).any()) == (hit > 0)


def lie(change: Callable[[Params], Mapping[str, torch.Tensor]]) -> Callable[[Contribution, Message], Contribution]:
    return lambda reply, _: Contribution(reply.client, dict(change(reply.values)), reply.metrics, reply.device)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda v: {**v, GRAM: v[GRAM] * float("nan")}, "finite"),
        (lambda v: {**v, CROSS: v[CROSS][:-1]}, "shape"),
        (lambda v: {GRAM: v[GRAM]}, "must be sent"),
        (lambda v: {**v, CROSS: v[CROSS].float()}, "dtype"),
        (lambda v: {**v, GRAM: v[GRAM] + 1e11}, "norm"),
        (lambda v: {**v, "heads.rank.weight": torch.ones(1)}, "unknown name"),
    ],
)
def test_sums_that_are_none_are_refused(change: Callable[[Params], Params], text: str) -> None:
    e = small()
    grid = FaultyGrid(e, {("shop", "train", 1): lie(change)})
    record = Coordinator(grid, plan_of(e)).fit(list(grid.get_node_ids()))
    (fault,) = record.faults
    assert fault["client"] == "shop"
    assert text in str(fault["text"])
    without, _ = fit(small(dropout="1:shop"))
    assert relative(unpack(record.shared)[0], unpack(without.shared)[0]) < 1e-12


SPARSE = hnp.arrays(
    st.sampled_from([np.float32, np.float64]),
    hnp.array_shapes(min_dims=1, max_dims=2, max_side=9),
    elements=st.sampled_from([0.0, 0.0, 0.0, 0.0, 0.0, 1.5, -2.0]),
)


@given(SPARSE)
def test_sums_come_back_from_their_entries_to_the_bit(value: np.ndarray) -> None:
    name = "sums.x"
    record = packed({name: torch.from_numpy(value.copy())})
    back = unpacked(record)[name].numpy()
    assert back.dtype == value.dtype
    np.testing.assert_array_equal(back, value)
    assert len(record[name].data) <= len(packed({"x": torch.from_numpy(value.copy())})["x"].data)


@pytest.mark.parametrize(
    ("shape", "data", "text"),
    [
        ((4,), b"", "as many entries"),
        ((4,), (1).to_bytes(8, "little"), "as many entries"),
        ((4,), (2).to_bytes(8, "little") + np.array([1, 1], "<i4").tobytes() + bytes(8), "ascending places"),
        ((4,), (1).to_bytes(8, "little") + np.array([4], "<i4").tobytes() + bytes(4), "ascending places"),
        ((4,), (1).to_bytes(8, "little") + np.array([-1], "<i4").tobytes() + bytes(4), "ascending places"),
        ((10**6, 10**6), bytes(8), "at most"),
    ],
)
def test_entries_that_are_none_are_refused(shape: tuple[int, ...], data: bytes, text: str) -> None:
    record = ArrayRecord({"sums.x": Array("float32", shape, NONZERO, data)})
    with pytest.raises(ContractError, match=text):
        unpacked(record)


def test_the_triangle_is_the_whole_matrix() -> None:
    rng = np.random.default_rng(0)
    half = rng.normal(size=(5, 5))
    gram, cross = half + half.T, rng.normal(size=(5, 5))
    back = unpack(pack(gram, cross))
    np.testing.assert_array_equal(back[0], gram)
    np.testing.assert_array_equal(back[1], cross)


@pytest.mark.soak
@pytest.mark.parametrize("engine", ["ray", "superlink"])
@pytest.mark.parametrize("clients", [1, 5])
def test_flowers_own_engines_give_the_same_bits(
    engine: str, clients: int, tmp_path: Path, tries: Callable[[int, int], int]
) -> None:
    tries(0, 1)
    e = small(clients=clients)
    records = []
    for name in ("inline", engine):
        config = tmp_path / f"{name}.json"
        config.write_text(e.model_copy(update={"engine": name}).model_dump_json())
        argv = ["-m", "simulations.run", "--config", str(config), "--no-compare", "--out", str(tmp_path / name)]
        subprocess.run([sys.executable, *argv], check=True, timeout=300)
        records.append((tmp_path / name / "model" / "shared.safetensors").read_bytes())
    assert records[0] == records[1]


@pytest.mark.soak
@pytest.mark.skipif("FEDREC_DATA" not in os.environ, reason="needs the folder of data in FEDREC_DATA")
@pytest.mark.parametrize("engine", ["inline", "process", "batched"])
def test_a_thousand_phones_are_all_data_together(engine: str, tmp_path: Path, tries: Callable[[int, int], int]) -> None:
    """943 clients of one user each: the largest difference of W over the largest |W|, and the same ranking."""
    tries(0, 1)
    folder = Path(os.environ["FEDREC_DATA"]) / "ml-100k"
    e = build({"model": "slist", "dataset": "ml-100k", "data_dir": folder, "partition": "one-user", "engine": engine})
    launch(e, tmp_path / engine)
    gram, cross = unpack(load_params(tmp_path / engine / "model" / "shared.safetensors"))
    here, there = (solve(e.model, e.quadratic, *sums) for sums in ((gram, cross), pooled_sums(e)))
    assert relative(here, there) <= 1e-6
    first = np.argsort(-here, axis=1, kind="stable")[:, :10]
    np.testing.assert_array_equal(first, np.argsort(-there, axis=1, kind="stable")[:, :10])
