"""Loss weighting: known answers, references, and that its state stays at home and comes back to the bit."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clients.client import Client
from clients.state import Kept, Party, State, restore, saved
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data
from fedrec.experiment.parts import stacking_refusal
from fedrec.federation.coordination import Own
from fedrec.models import Recommender
from fedrec.params import Params
from fedrec.rng import generator
from fedrec.sharing import Sharing
from fedrec.tasks import parse_task
from fedrec.training.conflict import combine, weights_of
from fedrec.training.local import local_update
from fedrec.training.optimisers import Optimiser
from fedrec.training.recipe import Recipe
from fedrec.training.weighting import Weigher, Weighting, balanced, drawn, dynamic, geometric, variances_gradient
from server.strategy import Coordinator
from simulations.apps import plan_of
from simulations.engines.nodes import each_alone
from tests.builders import client, interactions
from tests.helpers import SpyGrid, experiment, fit, same
from tests.letters import read_contribution, state_of
from tests.test_messages import content_bytes
from tests.test_resume import Killed, into, until

SGD = Optimiser("sgd", 0.05)
AGGREGATORS = ("pcgrad", "mgda", "cagrad", "upgrad", "imtlg")
RULES = [Weighting(kind=kind) for kind in ("uncertainty", "dwa", "rlw", "gls", "gradnorm")]
RULES += [Weighting(kind="aggregator", aggregator=name) for name in AGGREGATORS]
RULES += [Weighting(kind=f"tests.own_parts:{name}") for name in ("Worst", "Levelled")]
LOSSES = st.lists(st.floats(0.01, 100), min_size=3, max_size=3)


def name_of(rule: Weighting) -> str:
    return rule.aggregator if rule.kind == "aggregator" else rule.kind


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def weigher(rule: Weighting, tasks: int, seed: int = 0) -> Weigher:
    made = Weigher(rule, SGD, rule.start(tasks))
    made.epoch(generator(seed, "weights"), first=True)
    return made


def parts_of(x: Tensor, tasks: int, seed: int = 0) -> list[Tensor]:
    """Return the positive losses 1 + |A_t x - b_t|^2 of random A_t, b_t."""
    rng = generator(seed, "parts")
    a, b = (torch.from_numpy(rng.standard_normal(size)) for size in ((tasks, 3, len(x)), (tasks, 3)))
    return [1 + (m @ x - v).square().sum() for m, v in zip(a, b, strict=True)]


def followed(made: Weigher, x: Tensor, parts: list[Tensor], name: str = "body.0.weight") -> Tensor:
    """Return the gradient of a step in x, the one parameter."""
    return torch.autograd.grad(made.loss(parts, [True] * len(parts), {name: x}, [name], 1), x)[0]


@settings(deadline=None, max_examples=25)
@given(st.lists(LOSSES, min_size=1, max_size=6))
def test_dwa_weighs_as_torchjd_does(epochs: list[list[float]]) -> None:
    """With two batches in every epoch, from the first epoch to the one after the last."""
    from torchjd.scalarization import DWA

    reference, made = DWA(), weigher(Weighting(kind="dwa"), 3)
    for losses in [*epochs, [1.0, 2.0, 3.0]]:
        made.epoch(generator(0), first=False)
        for scale in (0.5, 1.5):
            x, y = (scale * vector(*losses)).requires_grad_(True), (scale * vector(*losses)).requires_grad_(True)
            mine = torch.autograd.grad(made.loss(list(x), [True] * 3, {}, [], 1), x)[0]
            (expected,) = torch.autograd.grad(reference(y), y)
            torch.testing.assert_close(mine, expected)
        made.ended()
        reference.step()


def test_dwa_by_hand_and_a_task_that_an_epoch_does_not_meet() -> None:
    """Rates 1/2 and 2: w_t = 2 / (1 + exp((r_s - r_t) / 2)). An absent task keeps the two epochs that met it."""
    expected = [2 / (1 + math.exp((2 - 0.5) / 2)), 2 / (1 + math.exp((0.5 - 2) / 2))]
    assert dynamic(vector(4, 1), vector(2, 2)).tolist() == pytest.approx(expected)
    assert dynamic(vector(0, 1), vector(3, 1)).tolist() == [1, 1]
    made = Weigher(Weighting(kind="dwa"), SGD, {"older": vector(4, 1), "newer": vector(2, 2)})
    made.epoch(generator(0), first=True)
    for loss in (1.0, 5.0):
        made.loss([torch.tensor(loss), torch.tensor(0.0)], [True, False], {}, [], 1)
    made.ended()
    assert [made.state[name].tolist() for name in ("older", "newer")] == [[2, 1], [3, 2]]


def test_gradnorm_balances_gradients_of_very_different_scale() -> None:
    """Two tasks 1/2 s_t |x - b_t|^2, s = (1, 300), equally hard from x = 0: the norms of w_t g_t come within 5%.

    x stays at 0, where both losses keep their initial values, so that r_t = 1 and the targets are equal norms.
    """
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    made = weigher(Weighting(kind="gradnorm"), 2)
    b, scale = torch.eye(2, dtype=torch.float64), vector(1, 300)

    def parts() -> list[Tensor]:
        return [s / 2 * (x - row).square().sum() for s, row in zip(scale, b, strict=True)]

    for t in range(800):
        made.loss(parts(), [True, True], {"user_table": x}, ["user_table"], t + 1)
    norms = torch.stack([torch.autograd.grad(part, x)[0].norm() for part in parts()])
    assert float(norms[1] / norms[0]) == pytest.approx(300)
    first, second = (made.state["weights"] * norms).tolist()
    assert abs(first / second - 1) < 0.05
    assert float(made.state["weights"].sum()) == pytest.approx(2)


def test_gradnorm_lets_a_task_that_learns_slowly_have_the_longer_gradient() -> None:
    """With L / L(0) of 1 and 1/2, r = (4/3, 2/3), and the targets 1.54 G and 0.54 G cannot both be met.

    Where both tasks are below theirs, the longer gradient grows faster: at rest G_0 = r_0^alpha G, G_1 what is left.
    """
    w, target = torch.ones(2, dtype=torch.float64), (4 / 3) ** 1.5
    for _ in range(2000):
        w = balanced(w, vector(3, 5), vector(1, 2), vector(1, 4))
    assert 3 * w[0] / (5 * w[1]) == pytest.approx(target / (2 - target), rel=0.05)


def test_gradnorm_looks_at_the_body_where_there_is_one() -> None:
    x, table = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    made = weigher(Weighting(kind="gradnorm"), 2)
    parts = [x.sum() + 100 * table.sum(), x.sum()]
    made.loss(parts, [True, True], {"body.0.bias": x, "item_table": table}, ["body.0.bias", "item_table"], 1)
    assert made.state["weights"].tolist() == [1, 1]
    assert made.state["initial"].tolist() == [202, 2]


@pytest.mark.parametrize("kind", ["sgd", "adam", "adagrad"])
def test_log_variances_come_to_rest_at_the_logarithm_of_the_loss(kind: Any) -> None:
    """d/ds (exp(-s) L + s) = 1 - exp(-s) L = 0 at s = log L; a task without a row stays where it is."""
    rule, losses = Weighting(kind="uncertainty"), vector(0.3, 5.0, 7.0)
    made = Weigher(rule, Optimiser(kind, 0.05 if kind != "adagrad" else 0.5), rule.start(3))
    made.epoch(generator(0), first=True)
    for t in range(3000):
        made.loss(list(losses), [True, True, False], {}, [], t + 1)
    assert made.state["log_variances"].tolist() == pytest.approx([math.log(0.3), math.log(5), 0], abs=1e-3)


def test_uncertainty_is_twice_torchjds() -> None:
    from torchjd.scalarization import UW

    reference, s, losses = UW(2).double(), vector(0.4, -1.2), vector(3.0, 0.2).requires_grad_(True)
    with torch.no_grad():
        reference.log_var.copy_(s)
    by_loss, by_s = torch.autograd.grad(reference(losses), [losses, reference.log_var])
    made = Weigher(Weighting(kind="uncertainty"), SGD, {"log_variances": s})
    made.epoch(generator(0), first=True)
    mine = torch.autograd.grad(made.loss(list(losses), [True, True], {}, [], 1), losses)[0]
    torch.testing.assert_close(mine, 2 * by_loss)
    torch.testing.assert_close(variances_gradient(s, losses.detach()), 2 * by_s)
    torch.testing.assert_close(made.state["log_variances"], s - 0.05 * 2 * by_s)
    assert s.tolist() == [0.4, -1.2], "what the client remembers of the round before must not change"


@given(st.integers(0, 2**62), st.integers(1, 6))
def test_random_weights_sum_to_the_tasks_and_depend_on_seed_and_scope_alone(seed: int, tasks: int) -> None:
    one = drawn(tasks, generator(seed, "weights", "films", 1))
    assert float(one.sum()) == pytest.approx(tasks)
    assert torch.equal(one, drawn(tasks, generator(seed, "weights", "films", 1)))
    normal = np.exp(generator(seed, "weights", "films", 1).standard_normal(tasks))
    np.testing.assert_allclose(one.numpy(), tasks * normal / normal.sum())
    if tasks > 1:
        assert not torch.equal(one, drawn(tasks, generator(seed, "weights", "films", 2)))


def test_random_weights_do_not_depend_on_the_losses() -> None:
    found = []
    for scale in (1.0, 1e3):
        made, losses = weigher(Weighting(kind="rlw"), 3), (scale * vector(1, 2, 3)).requires_grad_(True)
        found.append(torch.autograd.grad(made.loss(list(losses), [True] * 3, {}, [], 1), losses)[0])
    assert torch.equal(*found)


@settings(deadline=None, max_examples=25)
@given(LOSSES)
def test_the_gls_gradient_is_that_of_the_geometric_mean(losses: list[float]) -> None:
    """d/dL_t (prod L)^(1/T) = (prod L)^(1/T) / (T L_t)."""
    x = vector(*losses).requires_grad_(True)
    mean = math.prod(losses) ** (1 / 3)
    assert float(geometric(x.detach())) == pytest.approx(mean)
    mine = torch.autograd.grad(weigher(Weighting(kind="gls"), 3).loss(list(x), [True] * 3, {}, [], 1), x)[0]
    assert mine.tolist() == pytest.approx([mean / (3 * loss) for loss in losses])


def test_a_loss_of_zero_or_a_task_without_rows_leaves_gls_finite() -> None:
    x = vector(0, 2, 3).requires_grad_(True)
    made = weigher(Weighting(kind="gls"), 3)
    assert torch.autograd.grad(made.loss(list(x), [True] * 3, {}, [], 1), x)[0].isfinite().all()
    mean = made.loss(list(x), [False, True, True], {}, [], 1)
    assert float(mean.detach()) == pytest.approx(6**0.5)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000))
@pytest.mark.parametrize("method", AGGREGATORS)
def test_an_aggregator_is_that_of_the_stacked_gradients_and_a_head_gets_its_own(method: Any, seed: int) -> None:
    rng = generator(seed, "aggregator")
    tables = {n: torch.from_numpy(rng.standard_normal(s)) for n, s in (("body.0.weight", (2, 2)), ("item_table", (3,)))}
    heads = {f"heads.{t}.weight": torch.from_numpy(rng.standard_normal(2)) for t in "abc"}
    params: Params = {name: value.requires_grad_(True) for name, value in {**heads, **tables}.items()}
    x, names = torch.cat([value.reshape(-1) for value in tables.values()]), list(params)
    parts = [p * (1 + h.square().sum()) for p, h in zip(parts_of(x, 3, seed), heads.values(), strict=True)]
    rows = [torch.autograd.grad(part, list(tables.values()), retain_graph=True) for part in parts]
    g = torch.stack([torch.cat([value.reshape(-1) for value in row]) for row in rows])
    own = [torch.autograd.grad(p, h, retain_graph=True)[0] for p, h in zip(parts, heads.values(), strict=True)]
    w = weights_of(g @ g.T, method, torch.ones(3), order=generator(seed, "weights"))
    made = weigher(Weighting(kind="aggregator", aggregator=method), 3, seed)
    found = dict(
        zip(
            names,
            torch.autograd.grad(made.loss(parts, [True] * 3, params, names, 1), list(params.values())),
            strict=True,
        )
    )
    mine = torch.cat([found[name].reshape(-1) for name in tables])
    torch.testing.assert_close(mine, 3 * combine(g, w))
    for name, value in zip(heads, own, strict=True):
        torch.testing.assert_close(found[name], value)


def test_without_conflict_pcgrad_is_the_sum_and_with_one_neither_loss_climbs() -> None:
    x, rule = torch.zeros(2, dtype=torch.float64, requires_grad=True), Weighting(kind="aggregator")
    plain = followed(weigher(rule, 2), x, [x[0].clone(), x[1].clone()])
    assert plain.tolist() == [1, 1]
    d = followed(weigher(rule, 2), x, [x[0] + 0, x[1] - 3 * x[0]])
    assert float(d[0]) > -1e-12
    assert float(d[1] - 3 * d[0]) > -1e-12


def test_a_task_without_rows_does_not_hold_back_the_others() -> None:
    """MGDA with a zero gradient among the rows would be zero."""
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    made = weigher(Weighting(kind="aggregator", aggregator="mgda"), 2)
    loss = made.loss([x.square().sum(), x.sum() * 0], [True, False], {"item_table": x}, ["item_table"], 1)
    assert torch.autograd.grad(loss, x)[0].tolist() == [2, 2]


@pytest.mark.parametrize("rule", RULES, ids=name_of)
@pytest.mark.parametrize("seed", range(3))
def test_one_task_alone_is_followed_in_the_direction_of_its_loss(rule: Weighting, seed: int) -> None:
    x = torch.ones(4, dtype=torch.float64, requires_grad=True)
    (part,) = parts_of(x, 1, seed)
    (g,) = torch.autograd.grad(part, x, retain_graph=True)
    d = followed(weigher(rule, 1, seed), x, [part])
    assert float(d @ g / (d.norm() * g.norm())) == pytest.approx(1)
    assert float(d.norm() / g.norm()) == pytest.approx(1.5 if rule.aggregator == "cagrad" else 1)


def test_a_weighting_of_ones_own_sees_the_gradients_in_what_tasks_share_and_remembers() -> None:
    """Gradients of one length, whatever the losses' scales; and weights exp(rate t L_t) over their mean."""
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    d = followed(weigher(Weighting(kind="tests.own_parts:Levelled"), 3), x, [*(vector(0.2, 3, 50) * x.square())])
    assert d.tolist() == pytest.approx([float(d[0])] * 3) and float(d[0]) > 0
    made, losses = weigher(Weighting(kind='tests.own_parts:Worst{"rate": 0.5}'), 3), vector(0.3, 2.0, 1.0)
    for t in (1, 2):
        w = torch.exp(0.5 * t * losses)
        assert float(made.loss([*losses], [True] * 3, {}, [], t)) == pytest.approx(float((w / w.mean()) @ losses))
    with pytest.raises(
        UserError, match=r"weighting.kind: Upwards must return a weight of every loss \[3\], found \[1\]"
    ):
        weigher(Weighting(kind='tests.own_parts:Upwards{"few": true}'), 3).loss([*losses], [True] * 3, {}, [], 1)


USERS, ITEMS = 6, 8


def update(rule: Weighting | None, tasks: Sequence[str], epochs: int = 2) -> tuple[Params, float, Weigher | None]:
    """Return what a small client trains to, with ratings for some of its rows only."""
    rng = generator(3, "small")
    pairs = [divmod(int(x), ITEMS) for x in rng.permutation(USERS * ITEMS)[:30]]
    rating = np.where(rng.random(30) < 0.2, rng.integers(1, 6, 30), np.nan).tolist()
    data = client(interactions(pairs, rating, click=(rng.random(30) < 0.5).tolist()), users=USERS, items=ITEMS)
    made = tuple(parse_task(text) for text in tasks)
    model = Recommender("mlp", 3, (4, 2))
    start = model.init(0, np.arange(USERS), np.arange(ITEMS), {task.name: 0.5 for task in made})
    used = Weigher(rule, SGD, rule.start(len(made))) if rule else None
    share = Sharing(("item_table", "body"))
    recipe = Recipe(epochs, 4, SGD, ("private", "shared"), l2=0.01)
    params, loss = local_update(model, start, data, made, recipe, share, seed=0, scope=("films", 1), weigher=used)
    return params, loss, used


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_local_training_with_batches_that_lack_a_task_is_finite_repeatable_and_not_the_plain_one(
    rule: Weighting,
) -> None:
    plain = update(None, ("rank", "rating", "click*0.5"))[0]
    one, two = (update(rule, ("rank", "rating", "click*0.5")) for _ in range(2))
    assert all(torch.equal(one[0][name], two[0][name]) for name in plain)
    assert all(value.isfinite().all() for value in one[0].values())
    assert not all(torch.equal(one[0][name], plain[name]) for name in plain)
    assert one[2] is not None
    assert all(value.isfinite().all() and value.any() for value in one[2].state.values())


def test_dwa_knows_nothing_of_two_epochs_before_it_has_seen_them() -> None:
    """One epoch of either phase is trained with weights of 1, so that the result is the plain one up to rounding."""
    plain, found = update(None, ("rank", "click"), 1), update(Weighting(kind="dwa"), ("rank", "click"), 1)
    for name, value in plain[0].items():
        torch.testing.assert_close(found[0][name], value)
    assert found[1] == pytest.approx(plain[1])


TASKS = "rank,click*0.5;shop=rating,rank"


def trained(e: Experiment) -> tuple[SpyGrid, list[Params]]:
    """Run an experiment inline; return its grid and every state of a weighting that any client has had."""
    states: list[Params] = []

    class Watching(SpyGrid):
        def _answer(self, message: Message) -> Message:
            reply = super()._answer(message)
            states.append(dict(state_of(self.nodes[message.metadata.dst_node_id]).now.own.weighting or {}))
            return reply

    grid = Watching(each_alone(e, None))
    Coordinator(grid, plan_of(e)).fit(list(grid.get_node_ids()))
    return grid, states


def keys(message: Message) -> set[tuple[str, str]]:
    return {(name, key) for name, record in message.content.items() for key in record}


@pytest.mark.parametrize("kind", ["uncertainty", "dwa", "gradnorm"])
def test_nothing_of_the_weighting_is_in_any_message(kind: str) -> None:
    grid, states = trained(experiment("fedper", task=TASKS, weighting={"kind": kind}))
    plain, none = trained(experiment("fedper", task=TASKS))
    assert not any(none)
    start = Weighting(kind=kind).start(2)
    entries = {
        np.float64(x).astype(dtype).tobytes() if dtype else repr(x).encode()
        for state in states
        for name, value in state.items()
        if not torch.equal(value, start[name])
        for x in value.tolist()
        if x not in (0.0, 1.0)
        for dtype in (np.float64, None)
    }
    assert len(entries) > 12
    for mine, other in zip([*grid.sent, *grid.received], [*plain.sent, *plain.received], strict=True):
        assert keys(mine) == keys(other)
        blob = content_bytes(mine)
        assert not any(name.encode() in blob for name in (*start, "weighting"))
        assert not any(entry in blob for entry in entries)


@pytest.mark.parametrize(
    ("method", "rule"),
    [("fedper", RULES[0]), ("fedrep", RULES[4]), ("admm", RULES[5])],
    ids=["fedper", "fedrep", "admm"],
)
def test_worker_processes_train_what_one_program_does(method: str, rule: Weighting, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"task": TASKS, "weighting": rule.model_dump()}
    inline = into(tmp_path / "inline", experiment(method, **fields))
    processes = into(tmp_path / "process", experiment(method, engine="process", workers=1, **fields))
    same(inline, processes, but=("engine", "workers"))


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_every_kind_is_chosen_by_configuration(rule: Weighting) -> None:
    fields: dict[str, Any] = {"rounds": 2, "task": TASKS}
    found = fit(experiment("fedper", weighting=rule.model_dump(), **fields))[0].rounds
    plain = fit(experiment("fedper", **fields))[0].rounds
    assert all(math.isfinite(float(row["train_loss"])) for row in found)
    assert found[-1]["train_loss"] != plain[-1]["train_loss"]


@pytest.mark.parametrize("kind", ["uncertainty", "dwa", "gradnorm"])
def test_a_run_that_is_broken_off_ends_as_if_it_had_not_been(kind: str, tmp_path: Path) -> None:
    e = experiment("admm", rounds=3, task=TASKS, weighting={"kind": kind})
    whole, broken = into(tmp_path / "whole", e), tmp_path / "broken"
    with pytest.raises(Killed):
        into(broken, e, on_round=until(3), every=1)
    same(whole, into(broken, e, every=1))


def test_the_state_goes_back_with_a_lost_contribution_and_on_from_round_to_round() -> None:
    start, later = (Own(weighting={"weights": weights}) for weights in (vector(1, 1), vector(0.5, 1.5)))
    (data, *_) = clients_data(e := experiment("fedper"))
    party = Party(Client(e, data, "cpu", None), State(Kept(0, {}, own=start)).trained(Kept(1, {}, own=later)))
    restore({"films": party}, saved({"films": party}))
    found = party.state.settled(0).now.own.weighting
    assert found is not None
    assert found["weights"].tolist() == [1, 1]
    _, states = trained(experiment("fedper", rounds=3, task="rank,click", weighting={"kind": "gradnorm"}))
    assert len({tuple(state["weights"].tolist()) for state in states}) == 1 + 3 * 3  # the start, 3 clients, 3 rounds


@pytest.mark.parametrize(("method", "kind"), [("ditto", "dwa"), ("ditto", "uncertainty"), ("apfl", "gradnorm")])
def test_a_second_model_has_weights_of_its_own(method: str, kind: str) -> None:
    rule = {"kind": kind}
    _, states = trained(experiment(method, rounds=3, task="rank,click", weighting=rule))
    for state in states[-3:]:
        names = {name for name in state if not name.startswith("copy.")}
        assert state.keys() == names | {f"copy.{name}" for name in names}
        assert any(not torch.equal(state[name], state[f"copy.{name}"]) for name in names)
    # What is shared is trained as if there were no second model.
    fields: dict[str, Any] = {"rounds": 3, "task": "rank,click", "weighting": rule}
    plain, weighted = (trained(experiment(m, **fields))[0] for m in ("fedper", method))
    sent = [
        [read_contribution(m.content).values for m in grid.received if m.metadata.message_type == "train"]
        for grid in (plain, weighted)
    ]
    assert len(sent[0]) == 9
    assert all(torch.equal(a[name], b[name]) for a, b in zip(*sent, strict=True) for name in a)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"privacy": {"unit": "user", "epsilon": "8"}, "weights": "uniform"},
            r"weighting.kind: dwa needs the losses of single tasks.* found privacy.unit user",
        ),
    ],
)
def test_what_a_weighting_cannot_go_with_is_refused(fields: dict[str, Any], text: str) -> None:
    experiment("fedper", **fields)
    with pytest.raises(UserError, match=text):
        experiment("fedper", weighting={"kind": "dwa"}, **fields)


def test_stacked_training_is_refused_with_its_reason() -> None:
    assert stacking_refusal(experiment("fedper")) == ""
    several = experiment("fedper", weighting={"kind": "gls"}, task="rank,click")
    assert stacking_refusal(several).startswith("weighting.kind: gls needs the losses of single tasks")
