"""Canaries: data and nothing else, the same public numbers whatever the coins, and a known movement when clipped."""

import numpy as np
import pytest
import torch

from fedrec.data import ClientData
from fedrec.errors import UserError
from fedrec.models import Recommender
from fedrec.params import Params
from fedrec.privacy.canaries import Canaries, directions, moves_of, plant, project
from fedrec.privacy.differential import Mechanism, private_update
from fedrec.privacy.noise import Source
from fedrec.privacy.transcript import Transcript
from fedrec.sharing import Broadcast, Contribution, Sharing
from fedrec.tasks import parse_task
from fedrec.training.losses import batch_loss
from fedrec.training.optimisers import Optimiser
from fedrec.training.recipe import Recipe
from tests.builders import batches
from tests.privacy.trials import silo

MIDDLE, M = 3.0, 60
TASKS, MODEL, SHARING = (parse_task("rating"),), Recommender("mf", 4), Sharing(("item_table", "item_bias"))


def planted(seed: int = 0, size: float = 8.0) -> tuple[ClientData, ClientData, Canaries]:
    """Return a silo's data, the same with canaries, and these."""
    data, users, items = silo()
    return data, *plant(data, M, users=users, items=items, middle=MIDDLE, size=size, seed=seed)


def start(data: ClientData) -> Params:
    """Return the parameters that training starts from."""
    return MODEL.init(0, data.users, data.items, {"rating": MIDDLE})


def test_canaries_change_nothing_of_what_was_there_and_nothing_public_tells_their_coins() -> None:
    data, one, canaries = planted(0)
    _, two, others = planted(1)
    assert (canaries.coins != others.coins).any()
    for whole in (one, two):
        assert np.array_equal(whole.users, one.users) and np.array_equal(whole.items, one.items)
        assert (np.diff(whole.users) > 0).all() and (np.diff(whole.items) > 0).all()
        assert whole.validation is data.validation and whole.test is data.test
        for name in ("user", "item", "rating", "positive", "time"):
            old, new = getattr(data.train, name), getattr(whole.train, name)
            assert np.array_equal(old, new[: len(old)], equal_nan=name == "rating")
    assert np.array_equal(planted(0)[2].coins, canaries.coins)


def test_a_canary_that_is_in_rates_its_own_two_items_and_one_that_is_out_nothing() -> None:
    data, whole, canaries = planted()
    rows = whole.train.take(np.arange(len(data.train), len(whole.train)))
    assert len(rows) == 2 * canaries.coins.sum()
    user, item = whole.users[rows.user], whole.items[rows.item]
    for number, (who, items) in enumerate(zip(canaries.users, canaries.items, strict=True)):
        mine = user == who
        assert set(item[mine]) == (set(items) if canaries.coins[number] else set())
        assert list(rows.rating[mine]) == ([MIDDLE + 8, MIDDLE - 8] if canaries.coins[number] else [])
    assert len(np.unique(canaries.items)) == 2 * M
    assert canaries.items.min() > data.items.max() and canaries.users.min() > data.users.max()


def test_coins_are_fair_and_apart_from_each_other() -> None:
    data, users, items = silo()
    coins = plant(data, 20_000, users=users, items=items, middle=3, size=1, seed=3)[1].coins
    assert abs(coins.mean() - 0.5) < 4 * 0.5 / 20_000**0.5
    assert abs(np.corrcoef(coins[1:], coins[:-1])[0, 1]) < 4 / 20_000**0.5


def test_ids_that_are_taken_are_refused() -> None:
    data, _, items = silo()
    with pytest.raises(UserError, match=f"free from user {data.users[-1]}"):
        plant(data, 2, users=int(data.users[-1]), items=items, middle=3, size=1, seed=0)


def test_a_canary_is_silent_in_what_all_items_share() -> None:
    data, whole, canaries = planted()
    rows = np.flatnonzero(whole.train.user == len(data.users) + np.flatnonzero(canaries.coins)[0])
    one = ClientData("one", whole.users, whole.items, whole.train.take(rows), data.validation, data.test)
    params = {name: value.requires_grad_(True) for name, value in start(whole).items()}
    (batch,) = batches(one, TASKS, Recipe(1, 9, Optimiser("sgd", 1.0)), np.random.default_rng(0))
    batch_loss(MODEL, params, TASKS, batch, 0.0).backward()  # type: ignore[no-untyped-call]
    grad = {name: value.grad for name, value in params.items()}
    loud = float(grad["item_bias"].norm())  # type: ignore[union-attr]
    assert loud > 8
    for name in ("heads.rating.bias", "user_bias"):
        assert float(grad[name].norm()) < 0.02 * loud  # type: ignore[union-attr]


def rounds(noise: float, count: int = 4) -> tuple[Transcript, Canaries, Params, ClientData, float]:
    """Return the transcript of private training with canaries, and how far a clipped gradient moves a row."""
    _, data, canaries = planted()
    mechanism, lr = Mechanism("user", 0.5, noise, 1.0), 20.0
    recipe = Recipe(1, 1, Optimiser("sgd", lr), ("shared",))
    params = start(data)
    shared = SHARING.split(params)[0]
    found = Transcript({data.name: Contribution(data.name, shared, rows={"item": data.items})})
    source = Source.replayable(0, "canaries")
    for number in range(1, count + 1):
        now = SHARING.join(found.rounds[-1].x if found.rounds else shared, SHARING.split(params)[1])
        new, _ = private_update(
            MODEL, now, data, TASKS, recipe, SHARING, mechanism, source, seed=0, scope=(data.name, number)
        )
        sent = Broadcast(number, SHARING.split(now)[0])
        found.train({data.name: sent}, [Contribution(data.name, SHARING.split(new)[0])])
    return found, canaries, params, data, lr * 0.5 / len(data.users)


def test_without_noise_a_canary_moves_exactly_by_the_clip_in_its_direction_and_stays_so() -> None:
    transcript, canaries, params, data, unit = rounds(0.0)
    units = dict.fromkeys(SHARING.modules, unit)
    along = directions(canaries, params, "rating", units)
    movement = moves_of(transcript, data.name, canaries, units)
    told, reach = project(movement, along)
    assert told.shape == (4, M) and np.allclose(reach, 1)
    assert np.allclose(told[:, canaries.coins], 1, atol=1e-3)
    assert not told[:, ~canaries.coins].any()
    length = np.sqrt(sum(np.square(rows).sum((2, 3)) for rows in movement.values()))
    assert np.allclose(length[:, canaries.coins], 1, atol=1e-3), "nothing beside the direction"


def test_what_is_not_released_is_no_part_of_the_direction() -> None:
    transcript, canaries, params, data, unit = rounds(0.0, 1)
    along = directions(canaries, params, "rating", SHARING.modules)
    told, reach = project(moves_of(transcript, data.name, canaries, {"item_bias": unit}), along)
    assert ((reach > 0.8) & (reach < 1)).all()
    assert np.allclose(told[0, canaries.coins], reach[canaries.coins], atol=1e-3)


def test_with_noise_canaries_are_independent_of_each_other() -> None:
    transcript, canaries, params, data, unit = rounds(1.0, 40)
    units = dict.fromkeys(SHARING.modules, unit)
    told = project(moves_of(transcript, data.name, canaries, units), directions(canaries, params, "rating", units))[0]
    rest = told - canaries.coins  # noise alone: N(0, 1), a correlation between two canaries is N(0, 1 / 40)
    apart = np.asarray(np.corrcoef(rest.T))[np.triu_indices(M, 1)]
    assert np.isclose(rest.std(), 1, atol=0.06)
    assert abs(np.square(apart).mean() * 39 - 1) < 0.15


def test_a_model_without_item_biases_is_refused() -> None:
    _, data, canaries = planted()
    params = Recommender("mlp", 4).init(0, data.users, data.items, {"rating": MIDDLE})
    with pytest.raises(UserError, match="matrix factorisation"):
        directions(canaries, params, "rating", ["item_table"])


def test_the_direction_is_that_of_the_gradient() -> None:
    _, data, canaries = planted()
    params = start(data)
    along = directions(canaries, params, "rating", ("item_table", "item_bias"))
    first = len(data.users) - M
    p = params["user_table"][first].double()
    assert torch.allclose(along["item_table"][0, 0] / along["item_bias"][0, 0], p)
    assert torch.allclose(along["item_table"][0, 1], -along["item_table"][0, 0])
    whole = sum(value.square().sum((1, 2)) for value in along.values())
    assert torch.allclose(torch.as_tensor(whole), torch.ones(M, dtype=torch.float64))
