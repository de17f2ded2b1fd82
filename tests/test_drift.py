"""Drift correction: personal models, normalised averaging, control variates."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message

from clients.recommend import params_of
from clients.state import Kept, State
from fedrec.errors import UserError
from fedrec.evaluation.evaluate import evaluate
from fedrec.evaluation.scorers import ModelScorer
from fedrec.experiment.holdings import clients_data, initial
from fedrec.experiment.records import write_record
from fedrec.federation.coordination import Control, Drift, Own, control_change, normalise
from fedrec.federation.personal import personal_model
from fedrec.keyed import Carrier, mean
from fedrec.models import Recommender
from fedrec.params import Params, add, clone, mix, norm, subtract
from fedrec.rng import generator
from fedrec.sharing import Broadcast, ContractError, Contribution, Sharing, admit_told
from fedrec.tasks import tasks_of
from fedrec.training.learner import Learner
from fedrec.training.local import local_update, single, update_one
from fedrec.training.losses import batch_loss, steps
from fedrec.training.optimisers import Optimiser
from fedrec.training.recipe import Recipe
from fedrec.training.results import client_after, stack
from fedrec.training.stacks import Terms
from fedrec.wire import ledger
from server.joining import join
from server.strategy import Coordinator
from simulations.apps import plan_of
from simulations.engines.nodes import each_alone
from tests.builders import batches, client, interactions
from tests.helpers import SpyGrid, experiment, fit, results
from tests.letters import broadcast_record, read_broadcast, read_contribution, reason, state_of
from tests.own_parts import Decay
from tests.test_messages import content_bytes
from tests.test_stacking import case, check
from tests.test_transforms import noise


def personal(grid: SpyGrid) -> list[Params]:
    """Return every client's personal parameters after the last round."""
    found = [dict(state_of(node).now.own.personal or {}) for node in grid.nodes.values()]
    return [one for one in found if one is not None]


def local(grid: SpyGrid) -> list[Params]:
    """Return every client's private parameters after the last round."""
    return [dict(state_of(node).now.private) for node in grid.nodes.values()]


def trained(method: str, **fields: Any) -> SpyGrid:
    return fit(experiment(method, **fields))[1]


def last_broadcasts(grid: SpyGrid, kind: str = "train") -> list[Params]:
    """Return what every client was sent last, in the order of the nodes."""
    sent = {m.metadata.dst_node_id: m for m in grid.sent if m.metadata.message_type == kind}
    return [read_broadcast(sent[node].content).values for node in grid.nodes]


def equal(a: Params, b: Params) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "fields",
    [{"drift": Drift(personal="ditto", weight=0.0)}, {"drift": Drift(personal="apfl", weight=1.0)}],
    ids=["ditto-0", "apfl-1"],
)
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_personal_model_without_a_pull_is_a_local_model_to_the_bit(fields: dict[str, Any], optimiser: str) -> None:
    alone = local(trained("local", optimiser=optimiser))
    mine = personal(trained("fedper", optimiser=optimiser, **fields))
    assert len(mine) == 3
    assert all(equal(a, b) for a, b in zip(alone, mine, strict=True))


def test_a_strong_pull_makes_dittos_copy_the_shared_model() -> None:
    # With lambda = 1/lr a step is v <- v - lr g - (v - z) = z - lr g: all of v that is not z is the last small step.
    lr = 1e-5
    grid = trained("ditto", optimiser="sgd", lr=lr, drift=Drift(personal="ditto", weight=1 / lr))
    for z, v in zip(last_broadcasts(grid), personal(grid), strict=True):
        assert norm(subtract(z, v)) < 1e-3 * norm(z)
    free = trained("ditto", drift=Drift(personal="ditto", weight=0.0))
    assert all(norm(subtract(z, v)) > 0.1 * norm(z) for z, v in zip(last_broadcasts(free), personal(free), strict=True))


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_one_step_of_apfl_by_hand(alpha: float) -> None:
    # v moves by -lr alpha f'(alpha v + (1 - alpha) w), and the mixture by alpha times that; f' as a finite difference.
    data, lr = client(interactions([(1, 0)], rating=[5.0]), users=2, items=2), 0.1
    tasks = tasks_of("rating", "films")
    model = Recommender("mf", 1, (4,))
    rng = torch.Generator().manual_seed(0)
    shapes = model.shapes(2, 2, ["rating"])
    v, w = ({name: torch.randn(value.shape, generator=rng) for name, value in shapes.items()} for _ in range(2))
    before, share = clone(v), dict.fromkeys(v, alpha)
    recipe = Recipe(1, 8, Optimiser("sgd", lr))
    (batch,) = batches(data, tasks, recipe, generator(0, "t"))
    half = Terms(personal=stack([v]), share=share)
    one = single(model, data, tasks, recipe, 0)
    after_step = update_one(one, w, recipe, Sharing(()), seed=0, scope=("t",), terms=half).personal
    assert equal(v, before)
    mixed = {name: alpha * v[name] + (1 - alpha) * w[name] for name in v}
    eps, name = 1e-3, "item_table"

    def f(shift: float) -> float:
        moved = {k: x.double() for k, x in mixed.items()}
        moved[name] = moved[name].clone()
        moved[name][0, 0] += shift
        return float(batch_loss(model, moved, tasks, batch, 0.0))

    slope = (f(eps) - f(-eps)) / (2 * eps)
    assert abs(slope) > 1e-3
    assert float(after_step[name][0, 0] - v[name][0, 0]) == pytest.approx(-lr * alpha * slope, rel=1e-3)
    assert torch.equal(after_step[name][1], v[name][1])  # an item that the batch does not touch
    after = mix(share, after_step, w)[name][0, 0] - mixed[name][0, 0]
    assert float(after) == pytest.approx(-lr * alpha**2 * slope, rel=1e-3)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("phases", [("all",), ("private", "shared")])
def test_a_copy_that_is_all_ones_own_is_trained_as_if_it_were_alone(optimiser: Any, phases: Any) -> None:
    """With a share of 1, in lockstep or not, f(v) + lambda/2 |v - z|^2 is a proximal objective of v alone."""
    own = (Decay(0.1),) if optimiser == "sgd" else ()  # which moves the rows that no batch names, as the pull does
    recipe = Recipe(2, 2, Optimiser(optimiser, 0.03), phases, transforms=own)
    c = case(recipe, tasks="rank-bce", share=("item_table",), sizes=(4, 0, 7, 3, 2))
    starts = [add(one, noise(one, number)) for number, one in enumerate(c.starts)]
    terms = Terms(personal=stack(starts), share=dict.fromkeys(starts[0], 1.0), tie=0.5, sent=c.shared)
    together = replace(c, terms=terms).parts()
    check(c, together)
    for part in together:
        for j, place in enumerate(part.clients.tolist()):
            data, z = c.cohort.datas[place], {"item_table": c.starts[place]["item_table"]}
            alone, _ = local_update(c.cohort.model, starts[place], data, c.cohort.tasks, replace(recipe, mu=0.5),
                c.sharing, seed=c.seed, scope=(data.name, 3), anchor=z)  # fmt: skip
            mine = client_after(c.cohort, stack(starts), replace(part, values=part.personal), j)
            assert norm(subtract(alone, starts[place])) > 1e-2
            for name, value in alone.items():
                torch.testing.assert_close(mine[name], value, atol=1e-5, rtol=1e-5)


def test_a_companion_of_ones_own_is_mixed_as_it_says() -> None:
    """With all items from the shared model, and a body of its own; with a share of 1 of all it is Ditto's copy."""
    drift, v, w = Drift(personal='tests.own_parts:Partly{"items": 0}'), {"item_table": 1.0, "body.0": 2.0}, 5.0
    made = personal_model(drift, Own({n: torch.tensor([x]) for n, x in v.items()}), {n: torch.tensor([w]) for n in v})
    assert {name: float(value) for name, value in made.items()} == {"item_table": w, "body.0": 2.0}
    ditto, mine = (
        trained("fedper", drift=Drift(personal=kind, weight=0.01))
        for kind in ("ditto", 'tests.own_parts:Partly{"items": 1}')
    )
    assert all(equal(a, b) for a, b in zip(personal(ditto), personal(mine), strict=True))


@pytest.mark.parametrize("method", ["ditto", "apfl"])
def test_a_personal_model_leaves_the_shared_one_alone_and_never_travels(method: str) -> None:
    seen: list[bytes] = []

    class Watching(SpyGrid):
        def _answer(self, message: Message) -> Message:
            reply = super()._answer(message)
            mine = state_of(self.nodes[message.metadata.dst_node_id]).now.own.personal
            assert mine is not None
            if message.metadata.message_type == "train":
                seen.extend(value.numpy().tobytes() for value in mine.values() if value.numel() > 2)
            return reply

    e = experiment(method)
    grid = Watching(each_alone(e, None))
    record = Coordinator(grid, plan_of(e)).fit(list(grid.get_node_ids()))
    plain, _ = fit(experiment("fedper"))
    assert equal(record.shared, plain.shared)
    assert results(record)[2:] != results(plain)[2:]  # but it is the personal model that is evaluated
    wire = [content_bytes(m) for m in [*grid.sent, *grid.received]]
    assert len(seen) > 10 and not any(data in blob for data in seen if any(data) for blob in wire)
    assert results(record) == results(fit(e)[0])


@pytest.mark.parametrize("method", ["ditto", "apfl"])
def test_a_client_recommends_with_the_personal_model_that_was_tested(method: str, tmp_path: Path) -> None:
    e = experiment(method, rounds=1)
    with_files, grid = fit(e, tmp_path)
    write_record(tmp_path, with_files, e.model_dump(mode="json"), [])
    z = last_broadcasts(grid, "evaluate")
    for i, (data, node) in enumerate(zip(clients_data(e), grid.nodes.values(), strict=True)):
        best = state_of(node).best
        v = dict(best.own.personal or {})
        shared = {**z[i], **best.private}
        expected = v if method == "ditto" else {name: 0.5 * v[name] + 0.5 * shared[name] for name in v}
        assert equal(params_of(tmp_path, e, data), {name: expected[name] for name in params_of(tmp_path, e, data)})
        assert not equal(expected, shared)


def test_the_tuned_copy_is_what_the_last_training_made_and_changes_no_message_but_the_metrics() -> None:
    tuned, plain = (
        fit(experiment("fedper", model="item", share=("item_table",), drift=Drift(personal=kind)))
        for kind in ("tuned", "none")
    )
    kinds: list[list[bytes]] = [
        [content_bytes(m) for m in [*grid.sent, *grid.received] if m.metadata.message_type == "train"]
        for _, grid in (tuned, plain)
    ]
    assert kinds[0] == kinds[1]
    assert results(tuned[0])[2:] != results(plain[0])[2:]
    for message in tuned[1].received:
        if message.metadata.message_type == "evaluate":
            assert not message.content.array_records["shared.0"]
    last = {m.metadata.src_node_id: m for m in tuned[1].received if m.metadata.message_type == "train"}
    for node, mine, z in zip(tuned[1].nodes, personal(tuned[1]), last_broadcasts(tuned[1]), strict=True):
        assert mine.keys() == {"item_table"}
        assert equal(mine, read_contribution(last[node].content).values)
        assert not equal(mine, z)


def test_the_tuned_copy_is_evaluated_with_the_private_head_of_the_same_round(tmp_path: Path) -> None:
    e = experiment("pfedrec", model="item", rounds=3)
    record, grid = fit(e, tmp_path)
    write_record(tmp_path, record, e.model_dump(mode="json"), [])
    for data, node in zip(clients_data(e), grid.nodes.values(), strict=True):
        best, params = state_of(node).best, params_of(tmp_path, e, data)
        assert equal(params, {**(best.own.personal or {}), **best.private})
        model, tasks = e.recommender(data.name), e.tasks(data.name)
        found = evaluate(ModelScorer(model, params), data, tasks, "test", metrics=e.metrics, candidates="full", seed=0)
        told = {(r["task"], r["metric"]): r["value"] for r in record.clients if r["client"] == data.name
                and r["split"] == "test"}  # fmt: skip
        assert told == {(task, metric): value for (_, task, metric), value in found.metrics.items()}


def test_before_any_training_the_tuned_copy_is_the_start() -> None:
    e = experiment("pfedrec", model="item")
    grid = SpyGrid(each_alone(e, None))
    join(Coordinator(grid, plan_of(e)), list(grid.get_node_ids()))
    for data, mine in zip(clients_data(e), personal(grid), strict=True):
        start = initial(e, e.recommender(data.name), data.users, data.items, {"rank": 0.0})
        assert equal(mine, {"item_table": start["item_table"]})


def test_a_lost_round_takes_the_personal_model_back() -> None:
    made = [Kept(number, {}, None, Own({"v": torch.tensor([float(number)])})) for number in range(4)]
    state = State(made[0]).trained(made[1])
    state = state._replace(kept=state.now).trained(made[2]).settled(1)
    assert state.now.own.personal == {"v": torch.tensor([1.0])}
    state = state.trained(made[3])
    assert state.now.own.personal == {"v": torch.tensor([3.0])}
    assert state.best.own.personal == {"v": torch.tensor([1.0])}


@pytest.mark.parametrize("weight", [0.0, 1.5])
def test_the_personal_share_of_apfl_is_a_fraction(weight: float) -> None:
    with pytest.raises(UserError, match=r"drift.*must be above 0 and at most 1 for apfl, found"):
        experiment("apfl", drift={"personal": "apfl", "weight": weight})


def test_fednova_by_hand() -> None:
    # p = (1, 3)/4 and tau = (1, 4) give tau_eff = 13/4. The changes are 1 and 8, per step 1 and 2, so that
    # z+ = 0 + 13/4 (1/4 1 + 3/4 2) = 13/4 7/4 = 91/16, where FedAvg has 1/4 + 6 = 25/4.
    weights, z = {"a": 1.0, "b": 3.0}, {"w": torch.zeros(1)}
    x = {"a": {"w": torch.tensor([1.0])}, "b": {"w": torch.tensor([8.0])}}
    found = normalise(x, {"a": z, "b": z}, {"a": 1, "b": 4}, weights)
    who = {name: Carrier(name, z, {}, p) for name, p in weights.items()}
    assert float(mean([(who[n], found[n]) for n in found])["w"]) == 91 / 16
    assert float(mean([(who[n], x[n]) for n in x])["w"]) == 25 / 4


def test_fednova_is_fedavg_for_equal_steps_and_leaves_a_client_without_steps_where_it_is() -> None:
    z = {"w": torch.tensor([0.3, -2.0])}
    x = {"a": {"w": torch.tensor([1.7, 0.1])}, "b": {"w": torch.tensor([-0.9, 4.0])}}
    equal_steps = normalise(x, {"a": z, "b": z}, {"a": 7, "b": 7}, {"a": 2.0, "b": 5.0})
    assert all(torch.allclose(equal_steps[n]["w"], x[n]["w"].double(), atol=1e-15, rtol=1e-15) for n in x)
    idle = normalise({**x, "b": z}, {"a": z, "b": z}, {"a": 7, "b": 0}, {"a": 2.0, "b": 5.0})
    assert torch.equal(idle["b"]["w"], z["w"].double())
    assert normalise({}, {}, {}, {}) == {}


def test_fednova_end_to_end_is_fedavg_where_steps_are_equal_and_not_where_they_differ() -> None:
    # One batch for each client makes every client's number of steps that of its epochs.
    same, other = (fit(experiment(m, batch_size=10**6, rounds=1))[0].shared for m in ("fednova", "fedper"))
    assert all(torch.allclose(same[n], other[n], atol=1e-7) for n in other)
    a, b = (fit(experiment(m, batch_size=64, rounds=1))[0].shared for m in ("fednova", "fedper"))
    assert norm(subtract(a, b)) > 1e-3 * norm(b)


@pytest.mark.parametrize("batch_size", [7, 64, 10**6])
@pytest.mark.parametrize(("phases", "shared"), [(("all",), 1), (("private", "shared"), 1), (("all", "shared"), 2)])
def test_steps_are_those_that_training_makes_on_what_is_shared(
    batch_size: int, phases: tuple[Any, ...], shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = experiment("fednova", phases=phases, batch_size=batch_size)
    data = clients_data(e)[0]
    tasks, numbers = e.tasks(data.name), []
    model = e.recommender(data.name)
    start = model.init(0, data.users, data.items, {task.name: 0.0 for task in tasks})
    step = Learner.step

    def counted(self: Learner, *args: Any) -> None:
        numbers.append("item_table" in self.names)
        step(self, *args)

    monkeypatch.setattr(Learner, "step", counted)
    local_update(model, start, data, tasks, e.recipe(), e.sharing(), seed=0, scope=("a",))
    assert steps(data, tasks, e.recipe()) == sum(numbers)
    assert sum(numbers) >= shared * e.local_epochs


@pytest.mark.parametrize("told", [-1.0, 0.5, float("nan"), float("inf"), None])
def test_a_number_of_steps_that_is_none_is_refused(told: float | None) -> None:
    metrics = {} if told is None else {"steps": told}
    with pytest.raises(ContractError, match="steps: must be"):
        admit_told(Contribution("films", {}, metrics), frozenset({"steps"}))


def test_steps_are_told_only_where_the_method_needs_them() -> None:
    for method in ("fedper", "ditto", "fednova"):
        told = {name for m in trained(method).received for name in read_contribution(m.content).metrics}
        assert ("steps" in told) == (method == "fednova")


def test_scaffold_knows_one_learning_rate() -> None:
    with pytest.raises(
        UserError, match=r"drift.correction: scaffold needs steps of SGD at one rate, .* found lrs heads=1"
    ):
        experiment("scaffold", optimiser="sgd", lrs="heads=1")


def test_fednova_does_not_go_with_duals() -> None:
    with pytest.raises(UserError, match=r"coupling.duals: .* found drift.normalise True"):
        experiment("fednova", coupling={"duals": True, "rho": 0.1})


SGD = {"optimiser": "sgd", "lr": 10.0}


def quadratics(seed: int, n: int = 4, d: int = 6, condition: float = 20.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A [n, d, d] with eigenvalues from 1/condition to 1, and b [n, d], of f_i = x.A_i x / 2 - b_i.x."""
    rng = generator(seed, "quadratics")
    a, spread = [], torch.logspace(0, -float(np.log10(condition)), d, dtype=torch.float64)
    for _ in range(n):
        q, _ = torch.linalg.qr(torch.from_numpy(rng.standard_normal((d, d))))
        a.append(q @ torch.diag(spread) @ q.T)
    return torch.stack(a), torch.from_numpy(rng.standard_normal((n, d)))


def minimise(
    a: torch.Tensor, b: torch.Tensor, p: list[float], k: int, rounds: int, *, scaffold: bool, sample: int | None = None
) -> torch.Tensor:
    """Return z after rounds of k local gradient steps, by the functions that the clients and the server use."""
    n, lr, rng = len(p), 0.5 / k, generator(0, "sample")
    z = {"x": torch.zeros(a.shape[1], dtype=torch.float64)}
    who = {str(i): Carrier(str(i), z, {}, p[i]) for i in range(n)}
    server = Control(who, lr)
    own = {name: Own(control=clone(z)) for name in who}
    for _ in range(rounds):
        chosen = sorted(rng.permutation(n)[: sample or n].tolist())
        answers = {}
        for i in chosen:
            name, x = str(i), z["x"].clone()
            c = server.part(name)
            shift = own[name].shift(c)
            assert shift is not None
            for _ in range(k):
                x = x - lr * (a[i] @ x - b[i] + (shift["x"] if scaffold else 0.0))
            answers[name] = {"x": x}
            control = own[name].control
            assert control is not None
            own[name] = Own(control=add(control, control_change(c, z, answers[name], k, lr)))
        server.update(answers, dict.fromkeys(answers, z), dict.fromkeys(answers, float(k)))
        z = mean([(who[name], x) for name, x in answers.items()], dtype=torch.float64)
    held = [(who[name], dict(one.control)) for name, one in own.items() if one.control is not None]
    assert not scaffold or torch.allclose(mean(held, dtype=torch.float64)["x"], server.c["x"], atol=1e-9)
    return z["x"]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_scaffold_reaches_the_optimum_of_quadratics_with_any_number_of_steps_and_fedavg_misses_it(
    seed: int, k: int
) -> None:
    a, b = quadratics(seed)
    p = [1.0, 2.0, 3.0, 1.0]
    w = torch.tensor(p, dtype=torch.float64)
    best = torch.linalg.solve((w[:, None, None] * a).sum(0), w @ b)
    assert float((minimise(a, b, p, k, 600, scaffold=True) - best).norm()) < 1e-6
    missed = float((minimise(a, b, p, k, 600, scaffold=False) - best).norm())
    assert missed > 1e-3 if k > 1 else missed < 1e-6  # with one step both are gradient descent


def test_scaffold_with_two_of_four_clients_reaches_the_same_optimum() -> None:
    a, b = quadratics(3)
    best = torch.linalg.solve(a.sum(0), b.sum(0))
    assert float((minimise(a, b, [1.0] * 4, 5, 3000, scaffold=True, sample=2) - best).norm()) < 1e-6


def test_a_change_of_control_by_hand() -> None:
    # (z - x)/(K lr) - c = (1 - 0.4)/(3 * 0.1) - 0.5 = 1.5; without a step there is none.
    c, z, x = ({"w": torch.tensor([value], dtype=torch.float64)} for value in (0.5, 1.0, 0.4))
    assert float(control_change(c, z, x, 3, 0.1)["w"]) == pytest.approx(1.5, abs=1e-12)
    assert float(control_change(c, z, x, 0, 0.1)["w"]) == 0.0


def test_a_row_of_c_is_the_mean_over_the_clients_that_carry_it() -> None:
    like = {"item_table": torch.zeros(2, 1)}
    who = {
        "a": Carrier("a", like, {"item_table": torch.tensor([0, 1])}, 1.0),
        "b": Carrier("b", like, {"item_table": torch.tensor([1, 2])}, 3.0),
    }
    server = Control(who, lr=0.5)
    zero = {"item_table": torch.zeros(2, 1)}
    # Changes of a client: (z - x)/(1 * 0.5) = -2 x, while c is 0; rows 0, 1, 2 have weights (1,0), (1,3)/4, (0,1).
    server.update({"a": {"item_table": torch.ones(2, 1)}}, {"a": zero}, {"a": 1})
    assert server.c["item_table"].reshape(-1).tolist() == [-2.0, -0.5, 0.0]
    assert server.part("b")["item_table"].reshape(-1).tolist() == [-0.5, 0.0]
    assert server.part("b")["item_table"].dtype == torch.float32


def test_scaffold_end_to_end_keeps_c_the_mean_of_the_clients_and_sends_nothing_more_up() -> None:
    e = experiment("scaffold", rounds=4, **SGD)
    grid = SpyGrid(each_alone(e, None))
    coordinator = Coordinator(grid, plan_of(e))
    record = coordinator.fit(list(grid.get_node_ids()))
    names = {m.metadata.src_node_id: read_contribution(m.content).client for m in grid.received}
    held = [
        (coordinator.carriers[names[name]], control)
        for name, node in grid.nodes.items()
        if (control := state_of(node).now.own.control) is not None
    ]
    assert len(held) == 3 and coordinator.control is not None
    total = mean([(who, dict(one)) for who, one in held], dtype=torch.float64)
    assert all(torch.allclose(total[n], coordinator.control.c[n], atol=1e-9) for n in total)
    assert norm(total) > 1e-3
    for message in grid.received:
        assert set(message.content) <= {"shared.0", "rows.0", "metrics", "config"}
    for message in grid.sent:
        assert ("control.0" in message.content) == (message.metadata.message_type == "train")
    down = [row["parameter"] for row in record.ledger if row["direction"] == "down" and row["round"] == 2]
    assert down.count("control:item_table") == 3
    assert not any("control" in str(row["parameter"]) for row in record.ledger if row["direction"] == "up")
    assert results(record) == results(fit(e)[0])
    plain, _ = fit(experiment("fedper", rounds=4, **SGD))
    assert norm(subtract(record.shared, plain.shared)) > 1e-4


def test_the_first_round_of_scaffold_is_that_of_fedavg() -> None:
    a, b = (fit(experiment(m, rounds=1, **SGD))[0].shared for m in ("scaffold", "fedper"))
    assert equal(a, b)  # c_i = c = 0


@pytest.mark.parametrize("method", ["scaffold", "ditto", "apfl"])
def test_a_lost_contribution_is_undone(method: str) -> None:
    e = experiment(method, rounds=2, **SGD)
    grid = trained(method, rounds=2, **SGD)
    for name, node in grid.nodes.items():
        train = [m for m in grid.sent if m.metadata.message_type == "train" and m.metadata.dst_node_id == name][-1]
        after = state_of(node).now.own
        assert not reason(grid._answer(train))  # the server has seen round 1 only, and sends the same again
        again = state_of(node).now.own
        for one, other in ((after.personal, again.personal), (after.control, again.control)):
            assert (one is None) == (other is None)
            assert one is None or other is None or equal(dict(one), dict(other))
    assert e.rounds == state_of(next(iter(grid.nodes.values()))).now.round


@pytest.mark.parametrize(
    ("method", "control", "text"),
    [
        ("scaffold", None, "record control: must be sent, found missing"),
        ("scaffold", {"user_table": torch.zeros(1)}, "user_table: must be a shared parameter"),
        ("fedper", {}, "item_bias: must be sent, found missing"),
    ],
)
def test_a_control_variate_outside_the_contract_is_refused(method: str, control: Params | None, text: str) -> None:
    grid = trained(method, rounds=1, **SGD)
    train = next(m for m in grid.sent if m.metadata.message_type == "train")
    broadcast = replace(read_broadcast(train.content), control=control)
    forged = Message(broadcast_record(broadcast, "films"), train.metadata.dst_node_id, "train", group_id="1")
    assert text in reason(grid._answer(forged))


def test_a_control_variate_without_scaffold_is_refused() -> None:
    with pytest.raises(ContractError, match="record control: must not be sent, found one"):
        Own().shift({"w": torch.zeros(1)})


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "(add --optimiser sgd --lr 10), found optimiser adam"),
        ({**SGD, "phases": ("private", "shared")}, "drift.correction: scaffold needs the one phase all"),
        ({**SGD, "coupling": {"duals": True, "rho": 0.1}}, "found drift.correction scaffold"),
        (
            {**SGD, "coupling": {"kind": "clusters"}},
            "coupling.kind: clusters needs a server that remembers what every client sent last",
        ),
    ],
)
def test_scaffold_is_refused_where_it_does_not_fit(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as error:
        experiment("scaffold", **fields)
    assert text in str(error.value)


@pytest.mark.parametrize("method", ["ditto", "apfl", "fednova", "scaffold"])
def test_messages_hold_only_what_the_contract_allows(method: str) -> None:
    e = experiment(method, **SGD)
    _, grid = fit(e)
    for message in [*grid.sent, *grid.received]:
        for name in ("shared.0", "control.0"):
            held = message.content.array_records.get(name, ArrayRecord())
            assert e.sharing().split({key: torch.zeros(0) for key in held})[1] == {}
        assert set(message.content) <= {"shared.0", "rows.0", "metrics", "config", "control.0"}


def test_a_control_variate_comes_back_from_the_wire_and_is_in_the_ledger() -> None:
    control = {"item_table": torch.tensor([[0.1], [-0.0]])}
    record = broadcast_record(Broadcast(3, {"item_table": torch.ones(2, 1)}, control=control), "films")
    found = read_broadcast(record).control
    assert found is not None and equal(found, control)
    assert [(entry.parameter, entry.rows) for entry in ledger(record, 3, "films", "down")] == [
        ("item_table", 2),
        ("control:item_table", 2),
    ]
    assert read_broadcast(broadcast_record(Broadcast(3, {}), "films")).control is None
