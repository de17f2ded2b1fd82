"""Private sums over Flower: two booked rounds of a secure sum, of which the server sees noisy totals alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from clients.heads import OF_NOISY
from fedrec.data.history import sequences
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.holdings import clients_data, reader
from fedrec.experiment.records import CLOSED
from fedrec.models.contributions import GRID, popularity
from fedrec.models.noisy import ALONE, BETWEEN, PAIRS, POPULARITY, PUBLIC
from fedrec.privacy.account import account
from fedrec.privacy.guarantee import sums_plan
from server.faults import ClientFailure
from simulations.baselines import run_alone
from simulations.run import main
from tests.helpers import experiment, fit, shared_by

MARKET = {"users": 160, "items": 30, "impressions": 20}


def private(**fields: Any) -> Experiment:
    rule = {"unit": "user", "where": "sum", "epsilon": "8", **fields.pop("privacy", {})}
    usual = {"model": "slist", "clients": 4, "partition": "users", "market": MARKET, "rounds": 2}
    return experiment(**{**usual, "privacy": rule, "secure": {"active": True}, **fields})


def test_two_rounds_release_noisy_totals_and_spend_the_budget(tmp_path: Path) -> None:
    e = private()
    record, grid = fit(e, tmp_path)
    assert set(record.shared) == {POPULARITY, BETWEEN, PAIRS, PUBLIC}
    plan = sums_plan(e)
    users, first, second, square = record.shared[PUBLIC].tolist()
    assert users == 160
    assert first >= plan.first.sigma**2 * 4 / 3  # four shares, of which any three are what is booked
    assert second >= plan.second[-1].sigma ** 2 * 4 / 3
    assert square == pytest.approx(plan.sigma**2)
    parts = clients_data(e)
    exact = sum(popularity(sequences(d, [d.train], e.seed), 30) for d in parts) / GRID
    noise = (record.shared[POPULARITY].numpy() - exact) / first**0.5
    assert 0.5 < noise.std() < 1.6  # of 30 normal numbers
    told = account(e, tmp_path)
    assert 7.98 <= float(told["spent"]) <= 8
    assert [party["rounds"] for party in told["parties"]] == [2] * 4
    assert "users / sigma" in told["words"]
    assert not any("shared.0" in m.content for m in grid.received if m.metadata.message_type == "train")
    assert {row["parameter"] for row in record.ledger if row["direction"] == "down"} >= {POPULARITY, PAIRS}


def test_pairs_without_an_order_are_released_and_booked_as_those_with_one(tmp_path: Path) -> None:
    e = private(model="ease")
    record, _ = fit(e, tmp_path)
    plan = sums_plan(e)
    m, (users, _, square, _) = plan.recipe.items, record.shared[PUBLIC].tolist()
    assert (users, m) == (160, 30)
    assert square == pytest.approx(4 * plan.second[0].variance / GRID**2)
    total = np.rint(record.shared[POPULARITY].numpy() * GRID).astype(np.int64)
    exact = sum(plan.exact(sequences(d, [d.train], e.seed), total)[0] for d in clients_data(e)) / GRID
    noise = (record.shared[PAIRS].numpy()[np.triu_indices(m)] - exact) / square**0.5
    assert 0.85 < noise.std() < 1.15  # of 465 normal numbers
    assert not record.shared[PAIRS].tril(-1).any() and not record.shared[BETWEEN].any()
    assert 7.98 <= float(account(e, tmp_path)["spent"]) <= 8


def test_without_a_share_of_the_others_ease_is_that_of_the_client_alone() -> None:
    """A client that has nothing but its own exact sums scores as it does without any promise."""
    e, plain = private(model="ease"), private(model="ease", privacy={"unit": "none", "where": "server", "epsilon": ""},
                                              secure={}, rounds=1)  # fmt: skip
    for data in clients_data(e):
        noisy, exact = reader(e, data, "test"), reader(plain, data, "test")
        found = noisy.read({"heads.rank.weight": torch.tensor([ALONE])}).score_all({}, "rank", torch.arange(40))
        expected = exact.read({}).score_all({}, "rank", torch.arange(40))
        assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("engine", ["process", "batched"])
def test_every_engine_releases_the_same_totals(engine: str, tmp_path: Path) -> None:
    e = private(privacy={"replay": True})
    other = e.model_copy(update={"engine": engine, "workers": int(engine == "process")})
    assert shared_by(other, tmp_path / engine) == shared_by(e, tmp_path / "inline")
    one, two = (pd.read_csv(tmp_path / name / "clients.csv").drop(columns="device") for name in (engine, "inline"))
    pd.testing.assert_frame_equal(one, two)


def test_of_clients_of_one_user_each_the_unit_client_is_the_user(tmp_path: Path) -> None:
    phones = {"partition": "one-user", "clients": 6, "market": {**MARKET, "users": 6}}
    e = private(**phones, privacy={"unit": "client"})
    assert e == private(**phones)
    record, _ = fit(e, tmp_path)
    assert record.shared[PUBLIC][0] == 6
    assert account(e, tmp_path)["unit"] == "user"


def test_beside_private_sums_stands_their_own_model_alone_and_the_strongest_closed_form(tmp_path: Path) -> None:
    words = "--model slist --clients 4 --partition users --market.users 60 --market.items 30 --engine inline --compare "
    words += "--secure.active --privacy.unit user --privacy.where sum --privacy.epsilon 8"
    assert main([*words.split(), "--out", str(tmp_path / "run")]) == 0
    folders = {path.parent.relative_to(tmp_path / "run" / "baselines").as_posix()
               for path in (tmp_path / "run" / "baselines").rglob("clients.csv")}  # fmt: skip
    assert folders == {"local", "popularity", "popularity/own", f"{CLOSED}/slist-local", f"{CLOSED}/slist-pooled"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Alone is this run&#39;s own model" in page and "Not run" not in page
    assert "each client alone with the closed form slist" in page
    run_alone(private(privacy={"epsilon": "1"}), tmp_path / "less")
    run_alone(private(privacy={"epsilon": "8"}), tmp_path / "more")
    less, more = ((tmp_path / name / "clients.csv").read_text() for name in ("less", "more"))
    assert less == more  # nothing of the others is in it


def test_a_missing_answer_ends_the_release_without_a_sum(tmp_path: Path) -> None:
    """Without the share of one the noise of the rest would be less than is booked."""
    with pytest.raises(ClientFailure):
        fit(private(dropout="1:silo-1"), tmp_path)


def test_to_be_alone_is_among_what_a_client_chooses_from() -> None:
    assert max(OF_NOISY) == 1e9
    assert min(OF_NOISY) > 0


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"model": "mf", "weights": "uniform"}, "sums over users"),
        ({"secure": {"active": False}}, "secure sums to add noise in"),
        ({"participation": 0.5}, "the answers of all clients"),
        ({"rounds": 1}, "two rounds"),
        ({"privacy": {"noise": 0, "epsilon": ""}}, "must be above 0 in sums over users"),
        ({"privacy": {"epsilon": "2;silo-1=1"}}, "more than one epsilon"),
        ({"privacy": {"unit": "client"}}, "updates that one norm bounds"),
        ({"privacy": {"unit": "interaction"}}, "is for the unit client, or sum for the unit user"),
    ],
)
def test_what_no_promise_is_for_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        private(**fields)


def test_two_silos_are_too_few() -> None:
    with pytest.raises(UserError, match="needs 3"):
        sums_plan(private(clients=2)).events  # noqa: B018


def test_a_model_by_sums_takes_two_rounds_under_a_promise() -> None:
    rule = {"unit": "user", "where": "sum", "epsilon": "8"}
    assert build({"model": "slist", "privacy": rule, "secure": {"active": True}}).rounds == 2
    assert build({"model": "slist"}).rounds == 1
    assert np.isfinite(sums_plan(private()).sigma)
