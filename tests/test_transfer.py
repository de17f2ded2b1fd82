"""AITM, STAR and task embeddings: the papers' formulas by hand, the calibrator, and what travels of a platform."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fedrec.models import Recommender
from fedrec.models.bodies import SPREAD
from fedrec.models.layers import mlp
from fedrec.models.transfer import chain, excess, star, task_embedding
from fedrec.params import Params, covers
from fedrec.sharing import SHARINGS, Sharing
from fedrec.tasks import parse_task
from fedrec.training.local import held_out_loss, local_update
from fedrec.training.losses import batch_loss
from fedrec.training.optimisers import Optimiser
from fedrec.training.recipe import Batch, Recipe
from tests.builders import batches, client, interactions
from tests.helpers import experiment, fit
from tests.test_bodies import ITEM, OFFSETS, USER, column, noisy, pairs, relu_layer, topped

LINE = ("view", "click", "buy")


def entries(params: Params, name: str) -> np.ndarray:
    return params[name].double().numpy()


def transferred(params: Params, x: np.ndarray) -> dict[str, np.ndarray]:
    """Return z_t of every task of the line, one inner product after the other."""
    q = {task: relu_layer(params, f"body.{task}.1", relu_layer(params, f"body.{task}.0", x)) for task in LINE}
    found = {"view": q["view"]}
    for origin, to in (("view", "click"), ("click", "buy")):
        path = f"transfer.{to}.{origin}"
        scores, values = [], []
        for u in (relu_layer(params, f"{path}.carry", found[origin]), q[to]):
            key, query = entries(params, f"{path}.key.weight") @ u, entries(params, f"{path}.query.weight") @ u
            scores.append(math.exp(sum(a * b for a, b in zip(key, query, strict=True)) / math.sqrt(len(u))))
            values.append(entries(params, f"{path}.value.weight") @ u)
        found[to] = (scores[0] * values[0] + scores[1] * values[1]) / sum(scores)
    return found


@pytest.mark.parametrize("task", ["rank", *LINE])
def test_aitm_attends_to_what_the_behaviour_before_carries_over_and_to_its_own(task: str) -> None:
    model = Recommender("aitm", 3, (6, 5, 4))
    params = noisy(model, tasks=["rank", *LINE])
    for score, u, i in zip(pairs(model, params, task).tolist(), USER.tolist(), ITEM.tolist(), strict=True):
        x = column(params, u, i)
        if task == "rank":
            h = relu_layer(params, "body.rank.1", relu_layer(params, "body.rank.0", x))
        else:
            h = transferred(params, x)[task]
        assert score == pytest.approx(topped(params, task, h), abs=1e-5)


def test_a_behaviour_moves_what_is_before_it_in_the_chain_and_nothing_behind() -> None:
    model = Recommender("aitm", 3, (6, 4))
    params = {n: v.requires_grad_() for n, v in noisy(model, tasks=["rank", *LINE]).items() if n[:4] != "user"}
    params |= {"user_table": torch.randn(4, 3, generator=torch.Generator().manual_seed(1))}
    user, item = torch.arange(4).repeat_interleave(7), torch.arange(7).repeat(4)
    names = [name for name in params if covers(("body", "transfer"), name)]
    for task, before in {"rank": {"rank"}, "view": {"view"}, "click": {"view", "click"}, "buy": set(LINE)}.items():
        loss = pairs(model, params, task, user, item).square().sum()
        grads = torch.autograd.grad(loss, [params[name] for name in names], allow_unused=True)
        moved = {name for name, grad in zip(names, grads, strict=True) if grad is not None and grad.any()}
        assert moved == {name for name in names if name.split(".")[1] in before}


def test_the_chain_is_in_its_own_order_and_a_link_is_named_after_both_of_its_ends() -> None:
    assert chain(["buy", "rank", "like", "click"]) == ["click", "like", "buy"]
    model = Recommender("aitm", 3, (6, 4))
    links = [{n.rpartition(".")[0] for n in model.shapes(1, 1, tasks) if n.startswith("transfer.")} for tasks in TWO]
    assert {name.split(".")[1:3] == ["buy", "view"] for name in links[0]} == {True}
    assert {tuple(name.split(".")[1:3]) for name in links[1]} == {("click", "view"), ("buy", "click")}


TWO = (("buy", "view", "rating"), ("view", "buy", "click"))


def test_what_two_chains_have_in_common_starts_the_same() -> None:
    model = Recommender("aitm", 3, (6, 4))
    few, many = (model.init(3, np.arange(2), np.arange(5), dict.fromkeys(tasks, 0.1)) for tasks in (LINE[1:], LINE))
    assert few.keys() <= many.keys() and any(name.startswith("transfer.buy.click") for name in few)
    assert all(torch.equal(few[name], many[name]) for name in few)


def test_the_calibrator_is_what_later_chances_exceed_earlier_ones_by() -> None:
    # Rows: 1/2, 3/4, 3/5 exceed by 1/4 once; 4/5, 1/2, 1/5 never; 1/5, 1/2, 4/5 by 3/10 twice.
    chances = torch.tensor([[0.5, 0.75, 0.6], [0.8, 0.5, 0.2], [0.2, 0.5, 0.8]], dtype=torch.float64)
    logits = chances.logit().requires_grad_()
    found = excess(logits.unbind(1))
    assert found.tolist() == pytest.approx([0.25, 0, 0.6])
    (grad,) = torch.autograd.grad(found.sum(), logits)
    # d P / d y = P (1 - P): up for the later, down for the earlier, and both for what is in the middle.
    assert grad.flatten().tolist() == pytest.approx([-0.25, 0.1875, 0, 0, 0, 0, -0.16, 0.25 - 0.25, 0.16])


BOTH = tuple(map(parse_task, ("rank", "click", "buy*2")))


def batch_of(rows: int) -> Batch:
    g = torch.Generator().manual_seed(3)
    user, item = torch.randint(4, (rows,), generator=g), torch.randint(7, (rows,), generator=g)
    labels = {task.name: (torch.ones(rows), torch.randint(2, (rows,), generator=g).float()) for task in BOTH}
    return Batch(user, item, torch.randint(7, (rows, 2), generator=g), labels)


def test_the_calibrator_stands_beside_the_losses_with_its_weight() -> None:
    batch, found = batch_of(9), {}
    plain = Recommender("aitm", 3, (6, 4))
    params = noisy(plain)
    click, buy = (pairs(plain, params, task, batch.user, batch.item) for task in ("click", "buy"))
    params["heads.buy.bias"] += (click - buy).median() + 1e-3  # so that some rows exceed and some do not
    for weight in (0.0, 0.6, 3.0):
        model = Recommender("aitm", 3, (6, 4), calibration=weight)
        found[weight] = float(batch_loss(model, params, BOTH, batch, 0.1))
    click, buy = (pairs(plain, params, task, batch.user, batch.item).sigmoid() for task in ("click", "buy"))
    over = [max(b - c, 0) for c, b in zip(click.tolist(), buy.tolist(), strict=True)]
    assert 0 < sum(value > 0 for value in over) < 9
    beyond = sum(over) / 9
    assert found[0.6] - found[0.0] == pytest.approx(0.6 * beyond, rel=1e-4)
    assert found[3.0] - found[0.0] == pytest.approx(3.0 * beyond, rel=1e-4)
    assert not Recommender("esmm", 3, calibration=0.6).calibrated
    assert experiment(model="aitm", task="click,buy", calibration=3).recommender("films") == Recommender(
        "aitm", 4, (8, 4), calibration=3
    )


def test_training_follows_the_calibrator_and_the_held_out_loss_is_without_it() -> None:
    rows = [(u, i) for u in range(4) for i in range(7)]
    labels = {"click": [False] * 28, "buy": [True] * 28}  # the wrong way round: only the calibrator is against it
    data = client(interactions(rows, **labels), interactions(rows, **labels), users=4, items=7)
    tasks, recipe = tuple(map(parse_task, ("click", "buy"))), Recipe(5, 14, Optimiser("adam", 0.02))
    left, losses = {}, set()
    for weight in (0.0, 20.0):
        model = Recommender("aitm", 3, (6, 4), calibration=weight)
        params = noisy(model, tasks=["click", "buy"])
        losses.add(held_out_loss(model, params, data, tasks, recipe, seed=0))
        params, _ = local_update(model, params, data, tasks, recipe, Sharing(()), seed=0, scope=("c", 1))
        whole = next(batches(data, tasks, Recipe(1, 28, recipe.optimiser), np.random.default_rng(0)))
        logits = [pairs(model, params, task, whole.user, whole.item) for task in ("click", "buy")]
        left[weight] = float(excess(logits).mean())
    assert left[20.0] < 0.1 < 0.5 < left[0.0]
    assert len(losses) == 1 and all(map(math.isfinite, losses))


@pytest.mark.parametrize("task", OFFSETS)
def test_star_multiplies_the_weights_and_adds_the_biases_of_centre_and_platform(task: str) -> None:
    model = Recommender("star", 3, (6, 5, 4))
    params = noisy(model)
    for score, u, i in zip(pairs(model, params, task).tolist(), USER.tolist(), ITEM.tolist(), strict=True):
        h = column(params, u, i)
        for layer in (0, 1):
            weights = [entries(params, f"{part}.{layer}.weight") for part in ("body", "domain")]
            biases = [entries(params, f"{part}.{layer}.bias") for part in ("body", "domain")]
            out = []
            for to in range(len(biases[0])):
                terms = [weights[0][to, n] * weights[1][to, n] * h[n] for n in range(len(h))]
                out.append(max(sum(terms) + biases[0][to] + biases[1][to], 0.0))
            h = np.array(out)
        assert score == pytest.approx(topped(params, task, h), abs=1e-5)


def test_star_starts_as_a_shared_bottom_which_is_the_centre() -> None:
    model, plain = Recommender("star", 3, (6, 5, 4)), Recommender("shared-bottom", 3, (6, 5, 4))
    params, centre = (one.init(2, np.arange(4), np.arange(7), OFFSETS) for one in (model, plain))
    own = {name: value for name, value in params.items() if name not in centre}
    assert {name.split(".")[0] for name in own} == {"domain"}
    assert all(value.eq(float(name.endswith("weight"))).all() for name, value in own.items())
    for task in OFFSETS:
        assert torch.equal(pairs(model, params, task), pairs(plain, centre, task))
    moved = params | {"domain.0.bias": params["domain.0.bias"] + 1}
    assert not torch.equal(star(moved, torch.ones(1, 6), ["rank"])[0], star(params, torch.ones(1, 6), ["rank"])[0])


def tops(share: str, model: str, task: str = "rank,click,buy") -> set[str]:
    """Return the modules that travel in a run."""
    e = experiment(model=model, task=task, share=share, experts=2, rounds=1, local_epochs=1)
    _, grid = fit(e)
    found: set[str] = set()
    for message in [*grid.sent, *grid.received]:
        if message.has_content():
            for record in message.content.array_records.values():
                found |= {name.split(".")[0] for name in record}
    return found & {"item_table", "user_table", "body", "domain", "transfer", "tasks", "towers", "heads"}


@pytest.mark.parametrize("share", [*SHARINGS, "shared-body,domain"])
def test_what_is_of_one_platform_travels_by_its_own_name_only(share: str) -> None:
    found = tops(share, "star")
    assert ("domain" in found) == ("domain" in share)
    assert ("body" in found) == (share != "embeddings")


@pytest.mark.parametrize(("model", "module"), [("aitm", "transfer"), ("task-embedding", "tasks")])
def test_links_and_task_vectors_are_private_beside_a_shared_body(model: str, module: str) -> None:
    assert tops("shared-body", model) == {"item_table", "body"}
    assert tops("all-but-towers", model) == {"item_table", "body", module}


@pytest.mark.parametrize("task", OFFSETS)
def test_a_tasks_layers_are_its_mixture_of_the_basis(task: str) -> None:
    model = Recommender("task-embedding", 3, (6, 5, 4), experts=3)
    params = noisy(model)
    s = entries(params, f"tasks.{task}.weight")
    for score, u, i in zip(pairs(model, params, task).tolist(), USER.tolist(), ITEM.tolist(), strict=True):
        h = column(params, u, i)
        for layer in (0, 1):
            out = np.zeros(len(params[f"body.basis.0.{layer}.bias"]))
            for k in range(3):
                path = f"body.basis.{k}.{layer}"
                out += s[k] * (entries(params, f"{path}.weight") @ h + entries(params, f"{path}.bias"))
            h = np.maximum(out, 0)
        assert score == pytest.approx(topped(params, task, h), abs=1e-5)


def test_tasks_at_one_point_are_one_task_and_at_a_corner_one_network_of_the_basis() -> None:
    params = noisy(Recommender("task-embedding", 3, (6, 5, 4), experts=3))
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(4))
    one, two, other = task_embedding(
        params | {"tasks.buy.weight": params["tasks.rank.weight"]}, x, ["rank", "buy", "click"]
    )
    assert torch.equal(one, two) and not torch.allclose(one, other)
    (corner,) = task_embedding(params | {"tasks.buy.weight": torch.tensor([0.0, 1.0, 0.0])}, x, ["buy"])
    assert torch.allclose(corner, mlp(params, "body.basis.1", x), atol=1e-6)


def test_tasks_start_near_one_another_and_their_layers_as_wide_as_any() -> None:
    model = Recommender("task-embedding", 32, (128, 4), experts=16)
    params = model.init(0, np.arange(1), np.arange(1), OFFSETS)
    points = [params[f"tasks.{task}.weight"] for task in OFFSETS]
    assert all(float(torch.linalg.norm(s)) == pytest.approx(1, abs=3 * SPREAD) for s in points)
    for n, one in enumerate(points):
        for other in points[:n]:
            assert 0 < float(torch.linalg.norm(one - other)) < 4 * SPREAD
    basis = torch.stack([params[f"body.basis.{k}.0.weight"] for k in range(16)])
    composed: Tensor = torch.tensordot(points[0], basis, 1)
    assert float(composed.var()) == pytest.approx(2 / 64, rel=0.1)
