"""Couplings of clients that learn by sums, over Flower: each is sent the weights that solve the joint problem."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clients.client import Client
from clients.promise import judge_of
from fedrec.data import ClientData
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.holdings import clients_data, own_sums
from fedrec.federation.coordination.ascent import solve as quadratic
from fedrec.federation.coordination.operators import Mean, Operator
from fedrec.federation.coordination.quadratic import Objective, Problem, Promise
from fedrec.models.quadratic import penalty, scale, solve
from fedrec.models.summed import unpack
from fedrec.sharing import WEIGHT
from server.strategy import Coordinator
from simulations.apps import plan_of
from simulations.check import check
from simulations.engines.nodes import each_alone
from tests.helpers import SpyGrid, experiment
from tests.letters import read_broadcast, read_contribution
from tests.test_quadratic_couplings import apart, by_solver

NAMES = ["films", "shop", "news"]
MARKET = {"users": 80, "items": 8, "impressions": 6}
COUPLINGS: dict[str, dict[str, Any]] = {
    "consensus in a ball": {"radius": 0.2},
    "consensus in a box": {"bound": 0.05},
    "clusters": {"kind": "clusters", "groups": "films,news"},
    "mean-regularised": {"kind": "mean-regularised", "strength": 2.0},
    "mean-regularised in a ball": {"kind": "mean-regularised", "strength": 2.0, "radius": 0.2},
    "graph": {"kind": "graph", "strength": 2.0, "edges": "films~shop"},
    "mixture": {"kind": "mixture", "mixing": "1,0;0.5,0.5;0,1"},
    "sum": {"kind": "sum", "total": 0.0},
}


def small(coupling: dict[str, Any], model: str = "slist", **fields: Any) -> Experiment:
    return experiment(model=model, market=MARKET, coupling=coupling, split="random", **{"rounds": 1, **fields})


def in_order(e: Experiment) -> list[ClientData]:
    """Return the clients' data in the server's order."""
    return sorted(clients_data(e), key=lambda data: data.name)


def sums_of(e: Experiment) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return every client's G_i and C_i."""
    return [unpack(own_sums(e, data)) for data in in_order(e)]


def stated(e: Experiment, operator: Operator) -> Problem:
    """Return the joint problem in words of its own: the ridge of the total, shared as the traces of G_i are."""
    sums = sums_of(e)
    total = np.sum([gram for gram, _ in sums], axis=0)
    ridge = penalty(e.quadratic, np.diagonal(total))
    objectives = tuple(
        Objective(torch.from_numpy(g), torch.from_numpy(c), torch.from_numpy(ridge * np.trace(g) / np.trace(total)))
        for g, c in sums
    )
    return Problem(objectives, torch.ones(len(sums)).double(), operator, (None,) * len(sums), e.model == "ease")


def unit_of(e: Experiment) -> float:
    """Return the mean of the diagonal of a client's G, over clients, in which a strength counts."""
    return float(np.mean([np.diagonal(gram).mean() for gram, _ in sums_of(e)]))


def finished(e: Experiment) -> Coordinator:
    """Return the server after a run."""
    grid = SpyGrid(each_alone(e, None))
    server = Coordinator(grid, plan_of(e))
    server.fit(list(grid.get_node_ids()))
    return server


def weights(e: Experiment) -> tuple[Tensor, dict[str, Any]]:
    """Return what every client is sent in the end, and the certificate of the record."""
    server = finished(e)
    return torch.stack([server.parts[data.name][WEIGHT] for data in in_order(e)]), server.record.certificate


@pytest.mark.parametrize("model", ["slist", "ease"])
@pytest.mark.parametrize("name", COUPLINGS)
def test_what_clients_are_sent_is_the_solution_of_an_interior_point_solver(name: str, model: str) -> None:
    e = small(COUPLINGS[name], model)
    found, proof = weights(e)
    scaled = e.coupling.model_copy(update={"strength": e.coupling.strength * unit_of(e)})
    operator = scaled.exact([data.name for data in in_order(e)])
    assert float(found.abs().max()) > 0.01 and apart(found, by_solver(stated(e, operator))) < 1e-6
    assert (max(proof["multipliers_ball"].values()) > 0.01) == ("ball" in name)
    assert abs(proof["relative_gap"]) <= 1e-10 and proof["violation"] <= 1e-12 and proof["residual"] < 1e-10


def test_sums_alone_go_up_and_weights_alone_come_down() -> None:
    e = small(COUPLINGS["mean-regularised"])
    grid = SpyGrid(each_alone(e, None))
    Coordinator(grid, plan_of(e)).fit(list(grid.get_node_ids()))
    trained = [one for one in grid.received if one.metadata.message_type == "train"]
    up = {name for reply in trained for name in read_contribution(reply.content).values}
    sent = [one for one in grid.sent if one.metadata.message_type != "query.join"]
    down = {name for one in sent for name in read_broadcast(one.content).values}
    assert len(trained) == 3
    assert up == {"sums.cross", "sums.gram"} and down == {"sums.scale", "sums.weight"}


@pytest.mark.parametrize("model", ["slist", "ease"])
def test_consensus_in_a_ball_that_does_not_bind_is_what_the_total_gives(model: str) -> None:
    e = small({"radius": 1e6}, model)
    found, proof = weights(e)
    sums = sums_of(e)
    gram, cross = (np.sum(parts, axis=0) for parts in zip(*sums, strict=True))
    total = solve(model, e.quadratic, gram, cross) / scale(e.quadratic, np.diagonal(gram))
    assert apart(found, np.stack([total] * len(sums))) < 1e-10 and not any(proof["multipliers_ball"].values())


def test_no_pull_is_every_client_alone_under_its_share_of_the_ridge() -> None:
    e = small({"kind": "graph", "strength": 0.0})
    found, _ = weights(e)
    alone = [torch.linalg.solve(one.hessian, one.cross) for one in stated(e, Mean()).objectives]
    assert apart(found, alone) < 1e-10 and apart(found, [found[0]] * 3) > 0.01


def test_a_client_that_is_missed_in_a_round_is_there_after_the_next() -> None:
    """Rounds in which clients are missed end where one round with all does, to the bit."""
    whole = finished(small(COUPLINGS["graph"]))
    late = finished(small(COUPLINGS["graph"], rounds=6, participation=0.7))
    assert min(int(row["clients"]) for row in late.record.rounds) < 3 and set(late.seen.values()) != {1}
    for name in NAMES:
        assert torch.equal(whole.tie.part(name)[WEIGHT], late.tie.part(name)[WEIGHT])


PROMISED: dict[str, Any] = {
    "coupling": {"kind": "mean-regularised", "strength": 20.0},
    "budget": {"margin": 0.0, "confidence": 1.0, "step": 100.0},
    "market": {"users": 200, "items": 8, "impressions": 6, "conflicting": 1},
    "split": "new-users",
}


def test_prices_are_the_multipliers_of_what_they_keep() -> None:
    """W under prices mu solves min sum_i f_i + h with f_i(W_i) at most what it is, by multipliers mu."""
    e = experiment(model="slist", rounds=4, **PROMISED)
    found, proof = weights(e)
    mu = torch.tensor([proof["multipliers_budget"][data.name] for data in in_order(e)]).double()
    assert float(mu.max()) > 0.05 and proof["relative_gap"] <= 1e-10
    operator = e.coupling.model_copy(update={"strength": 20.0 * unit_of(e)}).exact(NAMES)
    free = stated(e, operator)
    kept = tuple(
        Promise(one, one.value(w)) if price else None
        for one, w, price in zip(free.objectives, found, mu.tolist(), strict=True)
    )
    assert apart(found, by_solver(replace(free, promises=kept))) < 1e-6
    assert apart(quadratic(replace(free, promises=kept)).certificate.multipliers.mu, mu.tolist()) < 1e-6


def test_a_promise_is_judged_by_rows_that_were_not_learnt_from() -> None:
    """Of new users the sums of a judge are those of their whole histories."""
    e = experiment(model="ease", rounds=2, **PROMISED)
    data = clients_data(e)[0]
    judge = judge_of(Client(e, data, "cpu", None))
    asked = np.unique(data.validation.user[data.validation.positive])
    assert int(judge.size.sum()) == len(asked)
    liked = np.concatenate(
        [part.take(part.positive & np.isin(part.user, asked)).item for part in (data.support, data.validation)]
    )
    assert sum(gram.diagonal().sum() for gram, _ in judge.sums) == pytest.approx(len(liked))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"coupling": {"kind": "linear"}}, "linear needs"),
        ({"coupling": {"rho": 1e-4, "duals": True}}, "by sums it is reached in one"),
        ({"coupling": {"kind": "linear", "rho": 1e-4}}, "linear needs"),
        ({"coupling": {"kind": "graph", "rho": 1e-4}}, "a model by sums is solved for"),
        (
            {"coupling": {"kind": "clusters"}, "secure": {"active": True}, "weights": "uniform"},
            "sees no more than a sum",
        ),
        ({"coupling": {"kind": "mixture", "mixing": "1,0"}}, "coupling.mixing: must have 3 rows"),
        (
            {"budget": {"limits": "0.1"}, "privacy": {"unit": "client", "epsilon": "8"}, "weights": "uniform"},
            "budget.limits",
        ),
    ],
)
def test_what_sums_cannot_be_tied_by_is_refused_before_anything_runs(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        check(build({"model": "slist", "clients": 3, "engine": "inline", "rounds": 1, **fields}))


def test_sums_that_a_server_cannot_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    e = small(COUPLINGS["graph"])
    check(e)
    monkeypatch.setattr("simulations.check.largest", lambda: 8 * 6 * 3 * 8**2 - 1)
    with pytest.raises(UserError, match=r"coupling: must be of clients whose sums, \[8, 8\] of each, fit into 9,215"):
        check(e)
