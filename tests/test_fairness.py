"""Ties of losses: which rows drive, select and judge, what a weight does, and that every engine does the same."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import clients.priced as priced
from clients.client import Client
from clients.joining import join
from clients.priced import THIRDS, lagrangian, tell, third
from clients.round import measure, selected
from fedrec.data.partition import federation
from fedrec.data.silos import silos_of
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data, dataset
from fedrec.federation.coordination import BudgetRule, Link
from fedrec.params import Params, norm, subtract
from fedrec.sharing import Sharing
from fedrec.training.cohort import Cohort
from fedrec.training.local import local_update, single, update_one
from fedrec.training.stacks import Terms
from server.scores import Score
from simulations.studies.fairness import apart, summary
from tests.helpers import experiment, fit, results, shared_by

PARITY, MINIMAX, HARM = "losses: parity(0.001)", "losses: minimax", "harm: at-most(0)"
FREE = "losses: at-most(1000000)"


def tied(ties: str, method: str = "admm", **fields: Any) -> Experiment:
    """Return a small experiment whose losses are tied."""
    coupling = {"rho": 1e-4, "duals": True, "ties": ties, "step": 30.0, **fields.pop("coupling", {})}
    market = {"users": 60, "items": 40}
    return experiment(method, coupling=coupling, market=market, rounds=3, lr=0.02, **fields)


def first(e: Experiment) -> Client:
    """Return the first client of an experiment."""
    return Client(e, clients_data(e)[0], "cpu", None)


def test_the_thirds_are_disjoint_and_complete_and_depend_on_seed_and_name_alone() -> None:
    for data in clients_data(tied(PARITY)):
        parts = [third(data, 3, purpose).validation for purpose in THIRDS]
        rows = [set(zip(part.user.tolist(), part.item.tolist(), strict=True)) for part in parts]
        whole = set(zip(data.validation.user.tolist(), data.validation.item.tolist(), strict=True))
        assert set.union(*rows) == whole and sum(map(len, rows)) == len(whole)
        assert max(map(len, rows)) - min(map(len, rows)) <= 1
        again = third(replace(data, train=data.train.take(slice(0, 5))), 3, THIRDS[0]).validation
        assert np.array_equal(again.item, parts[0].item)
        other = third(data, 4, THIRDS[0]).validation
        assert not np.array_equal(other.item, parts[0].item)


@pytest.mark.parametrize("judged", ["validation", "training"])
def test_one_third_alone_selects_unless_the_training_rows_judge(judged: str) -> None:
    client = first(tied(FREE, coupling={"judged": judged}))
    chosen, data = selected(client, "validation"), client.data
    expected = third(data, client.experiment.seed, "selects") if judged == "validation" else data
    assert np.array_equal(chosen.validation.item, expected.validation.item)
    assert selected(client, "test") is data
    params = client.start()
    shared, private = client.experiment.sharing().split(params)
    found = measure(client, shared, private, "validation").per_user[0]
    assert set(found.users.tolist()) <= set(data.users[expected.validation.user].tolist())


@pytest.mark.parametrize("pushed", [-50.0, 0.0, 0.02, 50.0])
def test_a_loss_weighs_one_plus_the_multiplier_and_never_less_than_0(pushed: float) -> None:
    """The multiplier is step (v - t), v being what was sent of the loss and t what came back."""
    client = first(tied(PARITY))
    scale, step = client.experiment.coupling.scale, client.experiment.coupling.step
    state, _ = join(client)
    z, _ = client.channel.split(client.start())
    now = scale * priced.loss(client, {**z, **state.now.private}, "drives")
    sent = torch.tensor([scale * 0.7], dtype=torch.float64)
    link = Link({"losses": sent - now}, {"losses": sent}, 1e-4)  # the loss is that of the round before
    target = {"losses": torch.tensor([scale * (0.7 - pushed)])}
    _, told = tell(client, state, z, target, link)
    assert 1 + told.mu == pytest.approx(max(0.0, 1 + step * pushed), abs=1e-3)
    assert float(told.sent["losses"]) == pytest.approx(now, rel=1e-6)


@pytest.mark.parametrize("kind", ["adam", "adagrad", "sgd"])
def test_a_weight_below_1_slows_every_optimiser_and_hastens_none_that_adapts(kind: str) -> None:
    """Of a loss alone half the weight is half the rate, but for what Adam adds to its divisor; no weight, no step."""
    client = first(tied(FREE, optimiser=kind))
    start, data, tasks = client.start(), client.data, client.tasks

    def after(weight: float, times: float) -> Any:
        rule = client.recipe.optimiser
        recipe = replace(client.recipe, optimiser=replace(rule, lr=times * rule.lr))
        args = (client.model, start, data, tasks, recipe, Sharing(()))
        return local_update(*args, seed=1, scope=("a", 1), weight=weight, paced=True)[0]

    assert norm(subtract(after(0.5, 1.0), after(1.0, 0.5))) < 1e-3 * norm(subtract(after(0.5, 1.0), start))
    assert norm(subtract(after(0.5, 1.0), after(1.0, 1.0))) > 0.1 * norm(subtract(after(1.0, 1.0), start))
    assert norm(subtract(after(0.0, 1.0), start)) == 0
    times = 2.0 if kind == "sgd" else 1.0
    assert norm(subtract(after(2.0, 1.0), after(1.0, times))) < 1e-3 * norm(subtract(after(2.0, 1.0), start))


def test_along_the_held_out_loss_a_step_has_the_slope_of_the_lagrangian() -> None:
    """Of all rows in one step: (1 + mu) times the mean loss of both is f_train + mu f_drives."""
    coupling = {"along": "held-out"}
    e = tied(FREE, coupling=coupling, task="rating", optimiser="sgd", l2=0.0, batch_size=10_000, local_epochs=1)
    client, mu = first(e), 0.7
    start, held = client.start(), third(client.data, e.seed, "drives").validation

    def moved(cohort: Cohort, weight: float) -> Params:
        terms = Terms(weight=torch.tensor([weight]), paced=True)
        args = (start, replace(client.recipe, epochs=1), e.sharing())
        return subtract(update_one(cohort, *args, seed=1, scope=("a", 1), terms=terms).params, start)

    both = moved(lagrangian(client, mu), 1 + mu)
    drives = single(client.model, replace(client.data, train=held), client.tasks, client.recipe, e.seed)
    expected = {name: moved(client.cohort, 1.0)[name] + mu * value for name, value in moved(drives, 1.0).items()}
    assert norm(expected) > 1e-3 and norm(subtract(both, expected)) < 1e-4 * norm(expected)
    assert lagrangian(client, 0.0) is client.cohort and lagrangian(client, -0.5) is client.cohort
    plain = first(tied(FREE, coupling={"along": "training"}))
    assert lagrangian(plain, mu) is plain.cohort


@pytest.mark.parametrize(
    ("ties", "method", "kind"),
    [(PARITY, "admm", "mean"), (MINIMAX, "admm", "mean"), (HARM, "mr-mtl", "graph")],
)
def test_a_tie_of_losses_acts_beside_any_coupling(ties: str, method: str, kind: str) -> None:
    coupling = {"kind": kind, "strength": 1e-4}
    free, bound = (fit(tied(text, method, coupling=coupling))[0] for text in (FREE, ties))
    assert [row["objective"] for row in free.rounds] != [row["objective"] for row in bound.rounds]
    assert [row["tie"] for row in bound.ties] == [ties]


@pytest.mark.parametrize("ties", [PARITY, f"{HARM};{PARITY}"])
def test_every_engine_comes_to_the_same(ties: str, tmp_path: Path) -> None:
    e = tied(ties)
    engines = {"inline": {}, "process": {"workers": 2}}
    found = [
        shared_by(e.model_copy(update={"engine": engine, **more}), tmp_path / engine)
        for engine, more in engines.items()
    ]
    assert found[0] == found[1]
    told = [pd.read_csv(tmp_path / engine / "rounds.csv")["tie1_residual"].tolist() for engine in engines]
    assert told[0] == told[1]
    shared_by(e.model_copy(update={"engine": "batched"}), tmp_path / "batched")
    one, many = (pd.read_csv(tmp_path / name / "clients.csv")["value"] for name in ("inline", "batched"))
    assert np.abs(one - many).max() < 1e-5


def test_a_repeated_run_is_the_same_to_the_bit() -> None:
    first_run, again = (fit(tied(f"{HARM};{PARITY}"))[0] for _ in range(2))
    assert results(first_run) == results(again)


def test_a_tolerated_residual_lets_the_better_round_be_chosen() -> None:
    early, late = Score({"a": 0.1}, {"tie": 0.0}), Score({"a": 0.2}, {"tie": 0.004})
    assert not late.beats(early)
    assert replace(late, tolerance=0.005).beats(replace(early, tolerance=0.005))
    assert not replace(late, tolerance=0.003).beats(replace(early, tolerance=0.003))


def solved(a: Sequence[float], honest: bool) -> tuple[float, float]:
    """Return objective and held-out loss where a budget of .2 on |x - a|^2/2 is kept, by the gradient named."""
    rule, c, goal, mu = BudgetRule(limits="0.2", step=0.5), np.array([2.0, 0.0]), np.array(a), 0.0
    for _ in range(2000):
        x = (c + mu * goal) / (2 + mu) if honest else c / (2 + mu)
        held = float(((x - goal) ** 2).sum() / 2)
        mu = rule.multiplier(mu, held - 0.2)
    return float((x**2).sum() + ((x - c) ** 2).sum()) / 2, held


def test_what_a_budget_costs_along_the_training_gradient() -> None:
    """Minimise |x|^2/2 + |x - c|^2/2 where |x - a|^2/2 <= .2 is promised, c = (2, 0), a = (0, .5).

    Without the budget that is 1, at (1, 0). Along (1 + mu) times the gradient of |x|^2/2, which is what clients do, the
    promise costs .375; along the gradient of what is promised .236, as the optimality conditions have it: 2 + mu is the
    root of 5 / .4.
    """
    today, held = solved((0.0, 0.5), honest=False)
    assert held == pytest.approx(0.2, abs=1e-6)
    assert today - 1 == pytest.approx(0.3753, abs=1e-3)
    best, held = solved((0.0, 0.5), honest=True)
    s = (5 / 0.4) ** 0.5
    x = np.array([2 / s, 0.5 * (s - 2) / s])
    assert held == pytest.approx(0.2, abs=1e-6)
    assert best == pytest.approx(float((x**2).sum() + ((x - (2, 0)) ** 2).sum()) / 2, abs=1e-6)
    assert best - 1 == pytest.approx(0.2358, abs=1e-3)


def test_a_promise_that_the_training_gradient_leads_away_from_is_not_kept() -> None:
    """With a = (1, 1) the point 0, to which the training rows lead, is further from a than (1, .5)."""
    assert solved((1.0, 1.0), honest=False)[1] > 0.4
    assert solved((1.0, 1.0), honest=True)[1] == pytest.approx(0.2, abs=1e-6)


USERS = pd.DataFrame(
    {"key": list("abcdefgh"), "age": [20, 20, 21, 30, 31, 40, 41, 60], "job": ["x", "x", "x", "y", "y", "z", "w", ""]}
)


def test_silos_are_ranges_of_numbers_or_values_of_text() -> None:
    everybody = np.arange(8)
    names, silo = silos_of(USERS, everybody, "age", 2, 5)
    assert names == ["age-20-30", "age-31-60"] and silo.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    names, silo = silos_of(USERS, everybody, "job", 3, 5)
    assert names == ["x", "y", "others"] and silo.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    names, silo = silos_of(USERS, everybody[:5], "job", None, 5)
    assert names == ["x", "y"] and silo.tolist() == [0, 0, 0, 1, 1, -1, -1, -1]
    assert "unknown" in silos_of(USERS, everybody, "job", None, 5)[0]


@pytest.mark.parametrize(
    ("column", "count", "text"),
    [("agee", None, r"did you mean 'age'"), ("job", 9, r"^clients: must be at most the number of values of job, 5")],
)
def test_silos_that_cannot_be_are_refused(column: str, count: int | None, text: str) -> None:
    with pytest.raises(UserError, match=text):
        silos_of(USERS, np.arange(8), column, count, 5)


def test_a_federation_by_attribute_parts_the_users() -> None:
    data = dataset(experiment(partition="users", market={"users": 30, "items": 40}))
    told = replace(data, users=data.users.assign(age=np.arange(len(data.users)) % 7))
    parts = federation(told, clients=3, partition="users:age")
    ages = [set(told.users["age"].iloc[part.users]) for part in parts]
    assert len(parts) == 3 and not set.intersection(*ages) and set.union(*ages) == set(range(7))
    assert sum(len(part.users) for part in parts) == len({*data.interactions["user"]})


MORE = {"round": 1, "flag": 0.0, "shown": 0.3}


def test_the_study_counts_violations_of_test_losses() -> None:
    losses = {"shared": [[0.3, 0.5], [0.3, 0.5]], "parity": [[0.4, 0.5], [0.42, 0.5]], "minimax": [[0.4, 0.45]] * 2}
    rows = [
        {"arm": arm, "seed": seed, "client": client, "loss": f, "least": 0.0, "value": 0.1} | MORE
        for arm, seeds in losses.items()
        for seed, both in enumerate(seeds)
        for client, f in zip("ab", both, strict=True)
    ]
    found = {row["arm"]: row for row in summary(pd.DataFrame(rows), dict.fromkeys(losses, 0.06))}
    assert apart(np.array([[0.4, 0.5]]))[0] == pytest.approx(0.05)
    assert found["parity"]["violation"] == pytest.approx((-0.01 - 0.02) / 2)
    assert found["minimax"]["violation"] == pytest.approx(-0.05) and found["minimax"]["broken"] == 0
    assert "violation" not in found["shared"]
