"""Implicit ALS over Flower: sweeps by sums are those over all users together, and users' factors stay at home."""

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
from flwr.app import Message
from scipy.sparse import csr_array, vstack

import fedrec
from clients.recommend import recommend
from fedrec.data.history import sequences
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.holdings import clients_data, dataset, keys, reader
from fedrec.experiment.records import Record
from fedrec.models import FactorRecommender
from fedrec.models.factors import OWN_FACTORS
from fedrec.models.ials import begin, item_sums, objective, solve_items, solve_users, sweep
from fedrec.models.quadratic import Matrix
from fedrec.params import Params
from fedrec.sharing import COUNT, EVERYTHING, FACTORS, FIRST, LIKES, OF_ITEMS, OF_USERS, SECOND, USERS, Contribution
from server.strategy import Coordinator
from simulations.api import run
from simulations.apps import plan_of
from simulations.baselines import baseline
from simulations.check import check
from tests.helpers import FaultyGrid, experiment, fit, shared_by, shared_names
from tests.letters import read_broadcast

MARKET = {"users": 40, "items": 30, "impressions": 20}


def small(sweeps: int = 3, **fields: Any) -> Experiment:
    """Return a small experiment whose last sweep counts, unless it is evaluated more often."""
    ials = {"d": 4, "unliked": 0.2, "ridge": 0.05, **fields.pop("ials", {})}
    usual = {"model": "ials", "market": MARKET, "clients": 5, "rounds": sweeps, "eval_every": sweeps}
    return experiment(**{**usual, "ials": ials, **fields})


def liked_by(e: Experiment) -> tuple[dict[str, csr_array], list[str]]:
    """Return what the users of every client like, over the items that some client carries, and the items' keys."""
    carried, found = np.unique(np.concatenate([data.items for data in clients_data(e)])), {}
    for data in clients_data(e):
        met = sequences(data, [data.train], e.seed)
        rows = csr_array(
            (np.ones(len(met.item)), np.searchsorted(carried, data.items[met.item]), met.start),
            shape=(len(data.users), len(carried)),
        )
        found[data.name] = csr_array((rows.toarray() > 0).astype(float))
    return found, [str(key) for key in keys(e)[1][carried]]


def pooled(e: Experiment, sweeps: int) -> Matrix:
    """Return the item factors after sweeps over the users of all clients at once."""
    liked, names = liked_by(e)
    everybody, factors = csr_array(vstack(list(liked.values()))), begin(e.ials, e.seed, names)
    for _ in range(sweeps):
        factors = sweep(e.ials, [everybody], factors)
    return factors


def same_factors(record: Record, expected: Matrix) -> None:
    found = record.shared[FACTORS].numpy()
    assert np.abs(found - expected).max() <= 1e-9 * np.abs(expected).max()
    triangle = (expected.T @ expected)[np.triu_indices(expected.shape[1])]
    np.testing.assert_allclose(record.shared[EVERYTHING].numpy(), triangle, rtol=1e-7, atol=1e-12)
    assert float(record.shared[COUNT]) == len(expected)


@pytest.mark.parametrize(
    "fields", [{}, {"clients": 1}, {"partition": "one-user", "clients": 12, "market": {**MARKET, "users": 12}}]
)
def test_sweeps_of_clients_are_those_over_all_users_together(fields: dict[str, Any]) -> None:
    e = small(**fields)
    record, _ = fit(e)
    assert record.shared.keys() == set(OF_ITEMS)
    same_factors(record, pooled(e, 3))
    assert np.abs(pooled(e, 3) - pooled(e, 2)).max() > 1e-3


def test_clients_that_have_some_of_the_items_each_still_solve_for_all() -> None:
    e = small(partition="platform")
    assert min(len(data.items) for data in clients_data(e)) < len(liked_by(e)[1])
    same_factors(fit(e)[0], pooled(e, 3))


def test_the_round_is_chosen_on_validation() -> None:
    e = small(sweeps=6, eval_every=1)
    record, _ = fit(e)
    scores = [float(row["validation"]) for row in record.rounds]
    assert record.selected_round == 1 + int(np.argmax(scores))
    same_factors(record, pooled(e, record.selected_round))


def with_lost(e: Experiment, client: str, lost: int) -> tuple[Matrix, list[float]]:
    """Return the factors where one client is missing in a round, with its users as they were, and the objectives."""
    liked, names = liked_by(e)
    everybody, factors = csr_array(vstack(list(liked.values()))), begin(e.ials, e.seed, names)
    users: dict[str, Matrix] = {}
    values = []
    for number in range(1, e.rounds + 1):
        for name, rows in liked.items():
            if (name, number) != (client, lost):
                users[name] = solve_users(e.ials, rows, factors)
        together = np.concatenate([users[name] for name in liked])
        values.append(objective(e.ials, everybody, together, factors))
        factors = solve_items(e.ials, item_sums(everybody, together))
        values.append(objective(e.ials, everybody, together, factors))
    return factors, values


def test_who_is_missing_counts_with_what_it_told_last() -> None:
    """Its users' factors are then as old as its answer, and what is minimised does not grow all the same."""
    e = small(dropout="2:shop")
    expected, values = with_lost(e, "shop", 2)
    same_factors(fit(e)[0], expected)
    assert np.diff(values).max() <= 1e-12 * values[0]
    assert np.abs(expected - pooled(e, 3)).max() > 1e-4  # and not as if it had been there


def test_items_of_who_is_yet_to_be_heard_stay_as_they_start() -> None:
    """With zeros in their place its users would have no factors, and the items none for ever."""
    e = small(dropout="1:shop", sweeps=1)
    first, _ = fit(e)
    liked, names = liked_by(e)
    others = csr_array(vstack([rows for name, rows in liked.items() if name != "shop"]))
    shop = next(data for data in clients_data(e) if data.name == "shop")
    mine = np.isin(first.rows["item"], shop.items)
    unknown = np.asarray(others.sum(0) == 0)
    start = begin(e.ials, e.seed, names)
    expected = solve_items(e.ials, item_sums(others, solve_users(e.ials, others, start)))
    expected[unknown & mine] = start[unknown & mine]
    np.testing.assert_allclose(first.shared[FACTORS].numpy(), expected, rtol=1e-7, atol=1e-10)


def test_the_items_that_one_client_alone_has_are_learnt_when_it_comes_late() -> None:
    """Two platforms with nothing in common, of which one is not heard in the first round."""
    e = small(sweeps=2, clients=2, dropout="0.01")
    name = clients_data(e)[0].name
    record, _ = fit(e.model_copy(update={"dropout": f"1:{name}"}))
    expected = with_heard_late(e, name)
    np.testing.assert_allclose(record.shared[FACTORS].numpy(), expected, rtol=1e-6, atol=1e-9)


def with_heard_late(e: Experiment, late: str) -> Matrix:
    """Return the factors where a client is first heard in the second of two rounds."""
    liked, names = liked_by(e)
    start = begin(e.ials, e.seed, names)
    others = csr_array(vstack([rows for name, rows in liked.items() if name != late]))
    first = solve_items(e.ials, item_sums(others, solve_users(e.ials, others, start)))
    unknown = np.asarray(others.sum(0) == 0)
    first[unknown] = start[unknown]
    everybody = csr_array(vstack(list(liked.values())))
    return sweep(e.ials, [everybody], first)


def test_one_node_for_all_clients_gives_the_same_bits(tmp_path: Path) -> None:
    e = small(dropout="2:shop")
    engines = ("inline", "batched")
    first, second = (shared_by(e.model_copy(update={"engine": name}), tmp_path / name) for name in engines)
    assert first == second


def test_nothing_but_sums_leaves_a_client_and_nothing_but_items_comes() -> None:
    record, grid = fit(small())
    told = [row for row in record.ledger if row["direction"] == "up" and row["round"]]
    down = [row["parameter"] for row in record.ledger if row["direction"] == "down" and row["round"]]
    assert {row["parameter"] for row in told} - {"metrics"} == {*OF_ITEMS, *OF_USERS}
    assert {*down} - {"metrics"} == {*OF_ITEMS}
    assert {row["bytes"] for row in told if row["parameter"] in OF_ITEMS} == {8}  # no entry
    arrays = shared_names(grid)
    assert OWN_FACTORS not in arrays and not any(name.startswith("heads.") for name in arrays)
    sent = [read_broadcast(m.content).values for m in grid.sent if m.metadata.message_type == "train"]
    assert sent and all(values.keys() == {*OF_ITEMS} for values in sent)


def part_of(e: Experiment, record: Record, number: int = 0) -> tuple[FactorRecommender, Params]:
    """Return the model of a client as it is tested, and what it is sent in the end."""
    data = clients_data(e)[number]
    model = reader(e, data, "test")
    assert isinstance(model, FactorRecommender)
    rows = torch.from_numpy(np.searchsorted(record.rows["item"], data.items))
    return model, {n: v[rows] if n == FACTORS else v for n, v in record.shared.items()}


def test_a_head_is_between_the_shared_item_factors_and_those_of_its_own_users() -> None:
    e = small()
    record, _ = fit(e)
    model, part = part_of(e, record)
    shared = model.read(part).found
    own = model.read({**part, "heads.rank.weight": torch.tensor([3.0])}).found
    assert own is not None and shared is not None
    learnt, y = model.liked(model.learnt), part[FACTORS].numpy()
    of_all = pooled(e, 3)
    everything = of_all.T @ of_all
    users = dense_users(e, learnt.toarray(), y, everything, len(of_all))
    alone = solve_items(e.ials, item_sums(learnt, users))
    expected = (y + 3 * alone) / 4
    np.testing.assert_allclose(own[1], expected, rtol=1e-6, atol=1e-9)
    changed = everything + expected.T @ expected - y.T @ y
    known = model.liked(model.past).toarray()
    np.testing.assert_allclose(own[0], dense_users(e, known, expected, changed, len(of_all)), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(shared[0], dense_users(e, known, y, everything, len(of_all)), rtol=1e-5, atol=1e-8)
    assert np.abs(own[1] - shared[1]).max() > 1e-2


def dense_users(e: Experiment, liked: Matrix, y: Matrix, everything: Matrix, items: int) -> Matrix:
    """Return the factors of users by their normal equations, where some of all items are seen."""
    a, found = e.ials.unliked, []
    for row in liked:
        ridge = e.ials.ridge * (row.sum() + a * items) ** e.ials.nu
        system = y.T @ (row[:, None] * y) + a * everything + ridge * np.eye(y.shape[1])
        found.append(np.linalg.solve(system, y.T @ row))
    return np.stack(found)


def values_of(record: Record) -> dict[str, float]:
    """Return the first metric of every client's test."""
    rows = [row for row in record.clients if row["split"] == "test" and row["metric"] == "ndcg@10"]
    return {str(row["client"]): float(row["value"]) for row in rows}


def test_a_client_alone_sweeps_over_its_own_users_and_a_pooled_one_over_everybodys() -> None:
    """The pooled client comes to the test values of the federation without heads, in the same round."""
    e = small(split="random", eval_every=1)
    together, _ = fit(small(split="random", eval_every=1, method="fedavg", share="all-but-users"))
    everybody, _ = fit(baseline(e, "pooled"))
    alone, _ = fit(baseline(e, "local"))
    assert not alone.shared
    assert together.selected_round == everybody.selected_round
    assert values_of(together) == pytest.approx(values_of(everybody), abs=1e-9)
    assert values_of(alone) != pytest.approx(values_of(together), abs=1e-2)


@pytest.mark.parametrize("fields", [{}, {"clients": 2}, {"method": "local"}, {"method": "pooled"}])
def test_a_finished_run_recommends_what_it_was_evaluated_with(fields: dict[str, Any], tmp_path: Path) -> None:
    """The test item of the users whom a rank metric found stands among what they are recommended."""
    about: dict[str, Any] = {"model": "ials", "ials": {"d": 4}, "rounds": 2, "market": MARKET, "engine": "inline"}
    about |= {"clients": 5, **fields}
    run(compare=False, out=tmp_path / "run", **about)
    e = build({**about, "method": "fedper"})
    data = clients_data(e)[0]
    hits = pd.read_parquet(tmp_path / "run" / "users.parquet").query(f"client == '{data.name}' and metric == 'hr@10'")
    found, names = dict(zip(hits["user"], hits["value"], strict=True)), dataset(e).users["key"].to_numpy()[data.users]
    assert found
    for user, hit in list(found.items())[:5]:
        held = data.test.item[(names[data.test.user] == user) & data.test.positive]
        best = recommend(tmp_path / "run", data.name, user, 10).items
        assert bool(np.isin(data.items[held], best).any()) == (hit > 0)
    assert fedrec.load_run(tmp_path / "run").model(data.name).params[FACTORS].shape[1] == 4


def lie(change: Callable[[Params], Mapping[str, torch.Tensor]]) -> Callable[[Contribution, Message], Contribution]:
    return lambda reply, _: Contribution(reply.client, dict(change(reply.values)), reply.metrics, reply.device)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda v: {**v, SECOND: v[SECOND] * float("nan")}, "finite"),
        (lambda v: {**v, FIRST: v[FIRST][:-1]}, "shape"),
        (lambda v: {**v, SECOND: v[SECOND][:, :-1]}, "shape"),
        (lambda v: {n: x for n, x in v.items() if n != LIKES}, "must be sent"),
        (lambda v: {**v, FIRST: v[FIRST].float()}, "dtype"),
        (lambda v: {**v, SECOND: v[SECOND] + 1e11}, "norm"),
        (lambda v: {**v, OWN_FACTORS: torch.ones(1, 4, dtype=torch.float64)}, "unknown name"),
    ],
)
def test_sums_that_are_none_are_refused(change: Callable[[Params], Params], text: str) -> None:
    e = small()
    grid = FaultyGrid(e, {("shop", "train", 2): lie(change)})
    record = Coordinator(grid, plan_of(e)).fit(list(grid.get_node_ids()))
    (fault,) = record.faults
    assert fault["client"] == "shop"
    assert text in str(fault["text"])
    same_factors(record, with_lost(small(dropout="2:shop"), "shop", 2)[0])


def test_fewer_than_no_likes_count_as_none() -> None:
    """What is within the contract but of no users moves the factors, and leaves them numbers."""
    e = small(sweeps=1)
    grid = FaultyGrid(e, {("shop", "train", 1): lie(lambda v: {**v, LIKES: -9 * v[LIKES], USERS: -99 * v[USERS]})})
    record = Coordinator(grid, plan_of(e)).fit(list(grid.get_node_ids()))
    assert not record.faults
    assert bool(torch.isfinite(record.shared[FACTORS]).all())


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"coupling": {"kind": "clusters", "groups": "films,shop"}}, "sums of all pairs of items"),
        ({"budget": {"margin": 0.1}}, "sums of all pairs of items"),
        ({"secure": {"active": True}}, "sums of all pairs of items"),
        ({"codec": {"kind": "top-k"}}, "steps along gradients"),
        ({"drift": {"personal": "ditto", "weight": 1.0}}, "it is of users' factors"),
        ({"share": "item_sums"}, "its sums to be what is shared"),
        ({"share": "embeddings,user_factors"}, "its sums to be what is shared"),
        ({"task": "rating"}, "the one task rank"),
        ({"privacy": {"unit": "user", "where": "sum", "epsilon": "8"}, "secure": {"active": True}}, "sums"),
    ],
)
def test_what_does_not_go_with_it_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        check(small(**fields))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"sums": {"kind": "subspace", "passes": 1}}, "sums.kind: acts only with"),
        ({"quadratic": {"ridge": 1.0}}, "quadratic.ridge: acts only with"),
        ({"clients": 2, "reveal": True}, "reveal: acts only with"),
    ],
)
def test_what_cannot_act_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        check(build({"model": "ials", "market": MARKET, "engine": "inline", **fields}))


def test_its_options_are_those_of_its_model_and_of_no_other() -> None:
    e = build({"model": "ials"})
    assert (e.rounds, e.eval_every) == (8, 1)
    with pytest.raises(UserError, match=r"ials\.d: acts only with model ials"):
        check(build({"model": "slist", "ials": {"d": 3}, "market": MARKET}))


@pytest.mark.soak
@pytest.mark.parametrize("engine", ["process", "ray", "superlink"])
def test_other_engines_give_the_same_bits(engine: str, tmp_path: Path, tries: Callable[[int, int], int]) -> None:
    tries(0, 1)
    records = []
    for name in ("inline", engine):
        config = tmp_path / f"{name}.json"
        config.write_text(small(dropout="2:shop").model_copy(update={"engine": name}).model_dump_json())
        argv = ["-m", "simulations.run", "--config", str(config), "--no-compare", "--out", str(tmp_path / name)]
        subprocess.run([sys.executable, *argv], check=True, timeout=300)
        records.append((tmp_path / name / "model" / "shared.safetensors").read_bytes())
    assert records[0] == records[1]


@pytest.mark.soak
@pytest.mark.skipif("FEDREC_DATA" not in os.environ, reason="needs the folder of data in FEDREC_DATA")
def test_five_silos_of_films_are_all_films_together(tries: Callable[[int, int], int]) -> None:
    tries(0, 1)
    folder = Path(os.environ["FEDREC_DATA"]) / "ml-100k"
    e = build(
        {"model": "ials", "dataset": "ml-100k", "data_dir": folder, "clients": 5, "partition": "users"}
        | {"engine": "inline", "ials": {"d": 16}, "rounds": 4, "eval_every": 4}
    )
    same_factors(fit(e)[0], pooled(e, 4))
