"""Private sums over Flower: two booked rounds of a secure sum, of which the server sees noisy totals alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.heads import OF_NOISY
from fedrec.data.history import sequences
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.holdings import clients_data
from fedrec.models.contributions import GRID, popularity
from fedrec.models.noisy import BETWEEN, PAIRS, POPULARITY, PUBLIC
from fedrec.privacy.account import account
from fedrec.privacy.guarantee import sums_plan
from server.faults import ClientFailure
from tests.helpers import experiment, fit

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
