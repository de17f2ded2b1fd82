"""Exposure: what a client shows of its tail, and ties of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.client import Client
from clients.exposure import POPULAR, Pull, shown_by
from clients.round import selected
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data, dataset
from fedrec.federation.coordination.clauses import read_clause
from fedrec.params import Params
from simulations.check import check
from tests.helpers import experiment, fit, results, same
from tests.test_resume import Killed, into, until

TIE = "exposure: parity(0.001)"


def tied(ties: str = TIE, **fields: Any) -> Experiment:
    """Return a small run whose clients' exposure is tied."""
    return experiment("admm", **{"coupling": {"rho": 1e-4, "duals": True, "ties": ties}, **fields})


def exposures(e: Experiment) -> dict[str, float]:
    """Return what every client tells of its exposure in the last round."""
    rows = [row for row in fit(e)[0].clients if row["metric"] == "exposure"]
    return {str(row["client"]): float(row["value"]) for row in rows}


def test_the_share_is_that_of_the_softmax_by_hand() -> None:
    e = tied()
    client = Client(e, clients_data(e)[0], "cpu", None)
    shown, params = shown_by(client), client.start()
    counts = np.bincount(client.data.train.item, minlength=len(client.data.items))
    tail = set(range(len(counts))) - set(np.argsort(-counts, kind="stable")[: int(np.ceil(POPULAR * len(counts)))])
    assert set(shown.group.tolist()) == {int(place) for place in tail}
    total = 0.0
    for user in shown.users.tolist():
        scores = client.model.score_all(params, "rank", torch.tensor([user]))[0].double().numpy()
        weights = np.exp(scores - scores.max())
        total += weights[sorted(tail)].sum() / weights.sum()
    assert float(shown.share(params)) == pytest.approx(total / len(shown.users), abs=1e-6)


def test_the_term_is_what_autograd_makes_of_it() -> None:
    """Along its slope the term falls, and its value is step/2 (e - goal)^2."""
    e = tied()
    client = Client(e, clients_data(e)[0], "cpu", None)
    shown, params = shown_by(client), client.start()
    share = float(shown.share(params))
    term = Pull(shown, share - 0.1, 4.0)
    assert float(term(params)) == pytest.approx(0.02, abs=1e-6)
    leaf: Params = {name: value.clone().requires_grad_(True) for name, value in params.items()}
    slope = torch.autograd.grad(term(leaf), list(leaf.values()), allow_unused=True)
    moved = {
        name: value if g is None else value - 10 * g for (name, value), g in zip(params.items(), slope, strict=True)
    }
    assert float(term(moved)) < float(term(params))


def test_parity_brings_exposures_together_and_a_bound_lifts_them() -> None:
    free = exposures(tied("exposure: at-most(2)", rounds=8))
    even = exposures(tied(rounds=8))
    spread = [max(found.values()) - min(found.values()) for found in (free, even)]
    assert spread[1] < 0.7 * spread[0]
    assert max(free.values()) < 0.4
    assert min(exposures(tied("exposure: at-least(0.8)", rounds=8)).values()) > 0.7


def test_a_category_is_a_group_and_an_unknown_one_is_refused() -> None:
    texts = dataset(tied()).items["categories"].tolist()
    data, name = clients_data(tied())[0], texts[0].split("|")[0]
    e = tied(coupling={"rho": 1e-4, "duals": True, "ties": TIE, "shown": name})
    expected = [place for place, item in enumerate(data.items.tolist()) if name in texts[item].split("|")]
    assert expected and shown_by(Client(e, data, "cpu", None)).group.tolist() == expected
    wrong = tied(coupling={"rho": 1e-4, "duals": True, "ties": TIE, "shown": "Dramma"})
    with pytest.raises(UserError, match=r"coupling.shown: must be one of .*found 'Dramma'"):
        check(wrong)


def test_exposure_alone_takes_no_rows_from_the_validation() -> None:
    """It is of users and scores; thirds are of ties of losses."""
    e = tied()
    client = Client(e, clients_data(e)[0], "cpu", None)
    assert selected(client, "validation") is client.data
    both = tied(f"{TIE};losses: parity(0.01)")
    assert len(selected(replace(client, experiment=both), "validation").validation) < len(client.data.validation)


@pytest.mark.parametrize("text", ["losses: at-least(0.3)", "exposure: minimax"])
def test_forms_that_would_train_for_worse_are_none(text: str) -> None:
    with pytest.raises(UserError, match="must be one of"):
        read_clause(text)


@pytest.mark.parametrize("engine", ["batched", "process"])
def test_every_engine_does_the_same(engine: str, tmp_path: Path) -> None:
    """To the bit: what shows its exposure is trained by itself under every engine."""
    whole = into(tmp_path / "inline", tied())
    other = into(tmp_path / engine, tied(engine=engine))
    one, two = ((home / "clients.csv").read_text() for home in (whole, other))
    assert one == two and "exposure" in one


def test_a_run_that_is_broken_off_goes_on(tmp_path: Path) -> None:
    e = tied(rounds=3)
    whole = into(tmp_path / "whole", e)
    with pytest.raises(Killed):
        into(tmp_path / "broken", e, on_round=until(2), every=1)
    same(whole, into(tmp_path / "broken", e, every=1))


def test_losses_and_exposure_are_tied_together() -> None:
    e = tied(f"{TIE};losses: parity(0.01)")
    first, second = (fit(e)[0] for _ in range(2))
    assert results(first) == results(second)
    assert {row["metric"] for row in first.clients} >= {"losses", "exposure"}


def test_who_does_not_rank_shows_nothing() -> None:
    with pytest.raises(UserError, match="tie: exposure must be of clients that rank, found films with click"):
        check(tied(task="click"))
