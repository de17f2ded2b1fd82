"""Couplings of clients that learn by sums, over Flower: each is sent the weights that solve the joint problem."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedrec.data import ClientData
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data, own_sums
from fedrec.federation.coordination.operators import Operator
from fedrec.federation.coordination.quadratic import Objective, Problem
from fedrec.federation.coordination.solved import WEIGHT
from fedrec.models.quadratic import penalty
from fedrec.models.summed import unpack
from server.strategy import Coordinator
from simulations.apps import plan_of
from simulations.engines.nodes import each_alone
from tests.helpers import SpyGrid, experiment
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
    return experiment(model=model, market=MARKET, coupling=coupling, rounds=1, split="random", **fields)


def in_order(e: Experiment) -> list[ClientData]:
    """Return the clients' data in the server's order."""
    return sorted(clients_data(e), key=lambda data: data.name)


def sums_of(e: Experiment) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return every client's G_i and C_i."""
    return [unpack(own_sums(e, data)) for data in in_order(e)]


def stated(e: Experiment, operator: Operator) -> Problem:
    """Return the joint problem in words of its own: the ridge of the total, shared as the traces of G_i are."""
    sums = sums_of(e)
    total = sum(gram for gram, _ in sums)
    ridge = penalty(e.quadratic, np.diagonal(total))
    objectives = tuple(
        Objective(torch.from_numpy(g), torch.from_numpy(c), torch.from_numpy(ridge * np.trace(g) / np.trace(total)))
        for g, c in sums
    )
    return Problem(objectives, torch.ones(len(sums)).double(), operator, (None,) * len(sums), e.model == "ease")


def unit_of(e: Experiment) -> float:
    """Return the mean of the diagonal of a client's G, over clients, in which a strength counts."""
    return float(np.mean([np.diagonal(gram).mean() for gram, _ in sums_of(e)]))


def weights(e: Experiment) -> tuple[Tensor, dict[str, Any]]:
    """Return what every client is sent in the end, and the certificate of the record."""
    grid = SpyGrid(each_alone(e, None))
    server = Coordinator(grid, plan_of(e))
    record = server.fit(list(grid.get_node_ids()))
    return torch.stack([server.parts[data.name][WEIGHT] for data in in_order(e)]), record.certificate


@pytest.mark.parametrize("model", ["slist", "ease"])
@pytest.mark.parametrize("name", COUPLINGS)
def test_what_clients_are_sent_is_the_solution_of_an_interior_point_solver(name: str, model: str) -> None:
    e = small(COUPLINGS[name], model)
    found, proof = weights(e)
    scaled = e.coupling.model_copy(update={"strength": e.coupling.strength * unit_of(e)})
    operator = scaled.exact([data.name for data in in_order(e)])
    assert float(found.abs().max()) > 0.01 and apart(found, by_solver(stated(e, operator))) < 1e-6
    assert abs(proof["relative_gap"]) <= 1e-10 and proof["violation"] <= 1e-12 and proof["residual"] < 1e-10
