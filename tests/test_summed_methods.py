"""Methods of clients that learn by sums, over Flower: each against a direct solution of what it says it minimises."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.client import Client
from clients.heads import choose_head
from clients.joining import join
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.holdings import clients_data, own_sums, reader
from fedrec.experiment.records import load_params
from fedrec.federation.methods import TABLE
from fedrec.models import SummedRecommender
from fedrec.models.quadratic import Matrix, inputs, penalty, scale
from fedrec.models.summed import unpack
from fedrec.params import Params
from fedrec.sharing import CROSS, GRAM, SCALE, WEIGHT, Broadcast
from simulations.cli import parse
from tests.helpers import experiment, fit

MARKET = {"users": 60, "items": 25, "impressions": 20}


def small(method: str, weight: float = 0.0, **fields: Any) -> Experiment:
    drift = {"drift": {"personal": method, "weight": weight}} if weight else {}
    return experiment(method, **{"model": "slist", "rounds": 1, "market": MARKET, "clients": 3, **drift, **fields})


def best(hessian: Matrix, linear: Matrix, hollow: bool) -> Matrix:
    """Return argmin 1/2 <v, H v> - <L, v> [n, n], with a zero diagonal if it is `hollow`: column by column."""
    if not hollow:
        return np.linalg.solve(hessian, linear)
    found = np.zeros_like(linear)
    for column in range(len(linear)):
        kept = np.arange(len(linear)) != column
        found[kept, column] = np.linalg.solve(hessian[np.ix_(kept, kept)], linear[kept, column])
    return found


class Held:
    """The first client of a run: what it was sent, keeps, and scores with, and its own sums."""

    def __init__(self, e: Experiment) -> None:
        record, _ = fit(e)
        data = clients_data(e)[0]
        client = Client(e, data, "cpu", None)
        state, _ = join(client)
        after, result = choose_head(client, state, Broadcast(1, record.shared, split="validation"))
        assert result is None and after.now.private == state.now.private  # what is given is not chosen
        model = reader(e, data, "test")
        assert isinstance(model, SummedRecommender)
        self.shared, self.config, self.hollow = record.shared, e.quadratic, e.model == "ease"
        params = {**record.shared, **state.now.private}
        self.scores = model.score_all(params, "rank", torch.arange(len(data.users))).numpy()
        self.x = inputs(e.model, e.quadratic, model.placed(model.past), model.catalogue_size)
        self.items, (self.g, self.c) = data.items, unpack(own_sums(e, data))

    def scored(self, weights: Matrix) -> Matrix:
        """Return the scores by weights [n, n]."""
        return np.asarray(self.x @ weights)[:, self.items]

    def solved(self, gram: Matrix, cross: Matrix) -> Matrix:
        """Return what some sums alone give."""
        ridge = np.diag(penalty(self.config, np.diagonal(gram)))
        return best(gram + ridge, cross, self.hollow) * scale(self.config, np.diagonal(gram))


@pytest.mark.parametrize("model", ["slist", "ease"])
def test_dittos_own_model_minimises_its_own_objective_with_a_pull_to_the_shared_one(model: str) -> None:
    """f_i(v) + lambda/2 |v - W|^2 in the metric G + R(G), where f_i has the ridge r = (R(G + w g) - R(G)) / w.

    Its minimiser solves (g + r + lambda (G + R)) v = c + lambda (G + R) W.
    """
    pull = 2.5
    held = Held(small("ditto", pull, model=model))
    gram, cross = unpack(held.shared)
    metric = gram + np.diag(penalty(held.config, np.diagonal(gram)))
    both = np.diagonal(gram) + np.diagonal(held.g) / pull
    ridge = pull * (penalty(held.config, both) - penalty(held.config, np.diagonal(gram)))
    shared = best(metric, cross, held.hollow)
    own = best(held.g + np.diag(ridge) + pull * metric, held.c + pull * metric @ shared, held.hollow)
    np.testing.assert_allclose(held.scores, held.scored(own * scale(held.config, both)), rtol=1e-4, atol=1e-6)
    apart = np.abs(held.scores - held.scored(shared * scale(held.config, np.diagonal(gram))))
    assert apart.max() > 1e-2 * np.abs(held.scores).max()


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("model", ["slist", "ease"])
def test_apfl_mixes_what_its_own_sums_give_with_the_shared_solution(model: str, share: float) -> None:
    held = Held(small("apfl", share, model=model))
    own, shared = held.solved(held.g, held.c), held.solved(*unpack(held.shared))
    expected = held.scored(share * own + (1 - share) * shared)
    np.testing.assert_allclose(held.scores, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("method", "weight", "share"), [("ditto", 3.0, 0.25), ("apfl", 0.4, 0.4)])
def test_of_two_clients_the_pull_is_in_the_metric_of_its_own_sums(method: str, weight: float, share: float) -> None:
    """argmin f_i(v) + lambda/2 |v - W|^2 in the metric of f_i itself is (A_i + lambda W) / (1 + lambda)."""
    held = Held(small(method, weight, clients=2))
    assert not {GRAM, CROSS} & held.shared.keys()
    shared = (held.shared[WEIGHT] * held.shared[SCALE]).numpy()
    expected = held.scored(share * held.solved(held.g, held.c) + (1 - share) * shared)
    np.testing.assert_allclose(held.scores, expected, rtol=1e-4, atol=1e-6)


def kept(home: Path) -> dict[str, Params]:
    return {path.name: load_params(path) for path in sorted((home / "model").glob("client-*"))}


@pytest.mark.parametrize("method", ["ditto", "apfl"])
def test_every_engine_measures_the_same_and_what_is_shared_is_that_of_fedper(method: str, tmp_path: Path) -> None:
    e = small(method, 0.5)
    here, _ = fit(e, tmp_path / "inline")
    there, _ = fit(e.model_copy(update={"engine": "batched"}), tmp_path / "batched")
    assert [row["value"] for row in here.clients] == [row["value"] for row in there.clients]
    for name, value in fit(small("fedper"))[0].shared.items():
        assert torch.equal(here.shared[name], value) and torch.equal(there.shared[name], value)
    heads = kept(tmp_path / "inline")
    assert heads.keys() == kept(tmp_path / "batched").keys() and len(heads) == 3
    given = torch.tensor([0.5 if method == "apfl" else 2.0])
    assert all(params.keys() == {"heads.rank.weight"} for params in heads.values())
    assert all(torch.equal(params["heads.rank.weight"], given) for params in heads.values())


def test_within_a_subspace_dittos_weight_is_given_too() -> None:
    sums = {"kind": "subspace", "k": 4, "passes": 2}
    e = small("ditto", 0.5, sums=sums, rounds=3, eval_every=3)
    state, _ = join(Client(e, clients_data(e)[0], "cpu", None))
    assert float(state.now.private["heads.rank.weight"]) == 2.0
    with pytest.raises(UserError, match=r"apfl needs sums of all pairs of items, but a subspace has none"):
        small("apfl", 0.5, sums=sums, rounds=3, eval_every=3)


def test_the_command_line_gives_a_method_by_sums_a_strength_of_its_scale() -> None:
    by_sums = {name: parse(["--model", "slist", "--method", name]).experiment for name in ("ditto", "apfl", "mr-mtl")}
    assert (by_sums["ditto"].drift.weight, by_sums["ditto"].given_head) == (1.0, 1.0)
    assert (by_sums["apfl"].drift.weight, by_sums["apfl"].given_head) == (0.5, 0.5)
    assert (by_sums["mr-mtl"].coupling.strength, by_sums["mr-mtl"].coupling.rho) == (10.0, 0.0)
    given = parse(["--model", "slist", "--method", "ditto", "--drift.weight", "4"]).experiment
    assert given.given_head == 0.25 and not given.chooses_heads
    assert parse(["--model", "mf", "--method", "ditto"]).experiment.drift.weight == TABLE["ditto"]["drift"]["weight"]
    assert build({"model": "slist", "rounds": 1}).chooses_heads


EXACT = ("local", "pooled", "fedavg", "fedper", "ditto", "apfl", "mr-mtl", "graph", "no-harm")
STEPS = r"but a model by sums is solved for \(take --model mf\)"
REFUSED = {
    "fedrep": rf"phases: private,shared needs steps along gradients, {STEPS}",
    "fedprox": r"coupling.rho: 0.0001 needs rounds that approach a consensus, .*take --method fedavg for fedprox",
    "admm": r"coupling.rho: 0.0001 needs rounds that approach a consensus, .* fedper for admm",
    "scaffold": rf"drift.correction: scaffold needs clients that start from the server's parameters, {STEPS}",
    "fednova": rf"drift.normalise: True needs clients that start from the server's parameters, {STEPS}",
}


@pytest.mark.parametrize("name", [name for name in TABLE if name not in EXACT])
def test_what_needs_steps_or_rounds_is_refused_in_words_that_say_what_to_take(name: str) -> None:
    with pytest.raises(UserError, match=REFUSED.get(name, "take --(model|method)")):
        parse(["--model", "slist", "--method", name, *(["--volunteers", "60"] if name == "agreement" else [])])


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"drift": {"personal": "ditto"}}, r"drift.weight: must be above 0 for ditto by sums, found 0 \(take --method"),
        ({"drift": {"personal": "ditto", "weight": 1}, "share": "all-but-users"}, "needs private heads of a weight"),
        ({"drift": {"personal": "tuned"}}, "tuned needs clients that start from the server's parameters"),
        ({"drift": {"personal": "tests.own_parts:Partly"}}, "needs clients that start from the server's parameters"),
    ],
)
def test_a_head_that_cannot_be_given_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        build({"model": "slist", "rounds": 1, **fields})
