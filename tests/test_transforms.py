"""Local transforms: each is what autograd makes of it, in the order of the chain, for one client as for many."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from fedrec.errors import UserError
from fedrec.models import Recommender
from fedrec.params import Params, norm, subtract
from fedrec.tasks import parse_task
from fedrec.training.local import local_update
from fedrec.training.optimisers import Optimiser
from fedrec.training.recipe import Recipe
from fedrec.training.transforms import Context, State, Transform
from tests.builders import by_autograd
from tests.own_parts import Clip, Curv, Decay
from tests.test_stacking import SHARES, case, check
from tests.test_training import BODY, ITEMS, RATING, SGD, small, start

MODEL, TASKS = Recommender("mf", 3), (parse_task("rank-bce"), RATING)
PLAIN = Recipe(2, 7, SGD, num_negatives=2)


def noise(like: Params, seed: int) -> Params:
    """Return values of the shapes of others."""
    rng = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(value.shape, generator=rng) for name, value in like.items()}


def both(recipe: Recipe, masks: Params | None = None, **given: Any) -> tuple[Params, Params]:
    """Return what training makes of a start, and what autograd makes of it."""
    params = start(MODEL, TASKS)
    usual: dict[str, Any] = {"seed": 3, "scope": ("films", 1), **given}
    mine, _ = local_update(MODEL, params, small(), TASKS, recipe, BODY, own=masks, **usual)
    return mine, by_autograd(MODEL, params, small(), TASKS, recipe, BODY, masks=masks, **usual)[0]


SHARED = BODY.split(start(MODEL, TASKS))[0]
HALF = {"item_table": (torch.arange(ITEMS) % 2).float()[:, None].expand(ITEMS, 3)}
CASES: dict[str, tuple[Recipe, dict[str, Any]]] = {
    "proximal": (replace(PLAIN, mu=0.7), {"anchor": noise(SHARED, 0)}),
    "shift": (PLAIN, {"shift": noise(SHARED, 1)}),
    "proximal and shift": (replace(PLAIN, mu=0.7), {"anchor": noise(SHARED, 0), "shift": noise(SHARED, 1)}),
    "mask": (replace(PLAIN, phases=("private",)), {"masks": HALF}),
    "own": (replace(PLAIN, transforms=(Curv(5.0),)), {}),
    "own, proximal and shift": (
        replace(PLAIN, mu=0.7, transforms=(Curv(5.0), Decay(0.3))),
        {"anchor": noise(SHARED, 0), "shift": noise(SHARED, 1)},
    ),
    "own and mask": (replace(PLAIN, phases=("private",), transforms=(Decay(0.3),)), {"masks": HALF}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("optimiser", ["sgd", "adagrad"])
def test_a_transform_is_what_autograd_makes_of_it(name: str, optimiser: Any) -> None:
    recipe, given = CASES[name]
    recipe = replace(recipe, optimiser=Optimiser(optimiser, 0.05))
    mine, other = both(recipe, **given)
    for key, value in other.items():
        torch.testing.assert_close(mine[key], value, atol=1e-5, rtol=1e-5)
    without, _ = both(replace(recipe, mu=0.0, transforms=()))
    assert norm(subtract(mine, without)) > 1e-3
    if "masks" in given:
        rows = (mine["item_table"] != start(MODEL, TASKS)["item_table"]).any(1)
        assert not rows[::2].any() and rows[1::2].any()


@dataclass(frozen=True)
class Times(Decay):
    """g weight."""

    def update(self, grads: Params, state: State, params: Params, ctx: Context) -> tuple[Params, State]:
        """See Decay."""
        return {name: self.weight * g for name, g in grads.items()}, state


def test_transforms_follow_one_another_in_order() -> None:
    """One step of SGD from x along 2 (g + x), or 2 g + x: what lies between them is lr x."""
    one = Recipe(1, 1000, SGD)
    x, a = start(MODEL, TASKS), both(replace(one, transforms=(Decay(1.0), Times(2.0))))[0]
    b = both(replace(one, transforms=(Times(2.0), Decay(1.0))))[0]
    for name, value in x.items():
        torch.testing.assert_close(b[name] - a[name], SGD.lr * value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("own", [(Curv(5.0),), (Decay(0.3),), (Curv(5.0), Decay(0.3))], ids=["curv", "decay", "both"])
@pytest.mark.parametrize("share", [SHARES[0], SHARES[3]], ids=["items", "users"])
def test_clients_that_train_together_are_each_what_autograd_makes_of_it(
    share: tuple[str, ...], own: tuple[Transform, ...], optimiser: Any
) -> None:
    """Also of the rows that no batch of theirs names, shared or not."""
    recipe = Recipe(2, 5, Optimiser(optimiser, 0.03), num_negatives=2, transforms=own)
    more: dict[str, Any] = {"anchored": "elsewhere", "shifted": True} if share == SHARES[0] else {}
    c = case(recipe, tasks="rank-bce", share=share, ragged=True, sizes=(9, 0, 30, 17, 1), **more)
    for chunk in (None, 1, 2):
        check(c, c.parts(chunk=chunk))


def test_a_transform_can_tell_whose_a_row_is() -> None:
    recipe = Recipe(2, 5, SGD, num_negatives=2, transforms=(Clip(),))
    c = case(recipe, tasks="rank-bce", sizes=(9, 0, 30, 17, 4))
    together, alone = c.after(c.parts()), c.after(c.parts(chunk=1))
    free = replace(c, recipe=replace(recipe, transforms=()))
    for place, (params, _) in alone.items():
        for name, value in params.items():
            torch.testing.assert_close(together[place][0][name], value, atol=1e-5, rtol=1e-5)
    assert norm(subtract(free.after(free.parts())[0][0], alone[0][0])) > 1e-3


@dataclass(frozen=True)
class Vandal(Decay):
    """Changes what it is given."""

    def update(self, grads: Params, state: State, params: Params, ctx: Context) -> tuple[Params, State]:
        """Return g + 1, in place, also of the next step's."""
        return {name: g.add_(1.0) for name, g in grads.items()}, state


def test_a_transform_that_works_in_place_adds_up_nothing() -> None:
    c = case(Recipe(2, 5, SGD, transforms=(Vandal(),)), tasks="rank-bce")
    check(c, c.parts())


@dataclass(frozen=True)
class Wrong(Decay):
    """Loses a gradient, or its shape."""

    shape: bool = False

    def update(self, grads: Params, state: State, params: Params, ctx: Context) -> tuple[Params, State]:
        """See Decay."""
        name = min(grads)
        return {**grads, name: grads[name][:1, None]} if self.shape else {n: grads[n] for n in {*grads} - {name}}, state


@pytest.mark.parametrize("shape", [False, True])
def test_a_gradient_that_is_missing_or_of_another_shape_is_named(shape: bool) -> None:
    data, recipe = small(), replace(PLAIN, transforms=(Wrong(shape=shape),))
    with pytest.raises(UserError, match=r"transform: Wrong must return every gradient in its shape, found others: "):
        local_update(MODEL, start(MODEL, TASKS), data, TASKS, recipe, BODY, seed=0, scope=("x",))


def test_a_row_that_nobody_trains_is_where_it_was_without_a_transform_that_moves_it() -> None:
    """Decay moves all items of a client, Curv those alone that a batch names."""
    data = small(n=3)
    named = np.unique(data.train.item)
    for own, moved in ((Curv(5.0), False), (Decay(0.3), True)):
        recipe, x = Recipe(1, 8, SGD, transforms=(own,)), start(MODEL, (RATING,))
        found, _ = local_update(MODEL, x, data, (RATING,), recipe, BODY, seed=0, scope=("x",))
        rest = np.setdiff1d(np.arange(ITEMS), named)
        assert bool((found["item_table"][rest] != x["item_table"][rest]).any()) == moved
