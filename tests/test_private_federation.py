"""A private federation of sums, end to end without a wire: two noisy sums, the model that follows, and silos' own."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from scipy.sparse import csr_array

from fedrec.data.history import Sequences, sequences
from fedrec.data.movielens import movielens
from fedrec.data.partition import federation
from fedrec.data.release_years import GROUPS, year_groups
from fedrec.data.types import ClientData, Ints
from fedrec.models.contributions import GRID, popularity
from fedrec.models.markov import Markov
from fedrec.models.released import RECENT, SHARES, Released, personal
from fedrec.privacy.accounting import epsilon
from fedrec.privacy.discrete import Integers
from fedrec.privacy.noise import Source
from fedrec.privacy.plan import Plan
from fedrec.privacy.sums import multiplier
from fedrec.rng import generator

real = pytest.mark.skipif("FEDREC_DATA" not in os.environ, reason="FEDREC_DATA does not name the folder of real data")
BUDGETS = (1.0, 2.0, 4.0, 8.0)
CLASSES = np.arange(30) % 3


@cache
def silos() -> tuple[Sequences, ...]:
    """Return five silos of 100 users over 30 items, of which every user reads a run of neighbours in their order."""
    rng, result = generator(0, "runs"), []
    for _ in range(5):
        starts, length = rng.integers(0, 30, 100), rng.integers(4, 9, 100)
        items = np.concatenate([(first + np.arange(n)) % 30 for first, n in zip(starts, length, strict=True)])
        result.append(Sequences(items, np.append(0, np.cumsum(length))))
    return tuple(result)


def plan_of(sigma: float) -> Plan:
    return Plan(500, 5, sigma, CLASSES)


@cache
def released(sigma: float) -> Released:
    return plan_of(sigma).carry_out(silos(), Source.replayable(0, "federation"))


def test_what_is_booked_is_the_whole_budget() -> None:
    sigma = multiplier(2.0, 1e-5)
    events = Plan(2000, 5, sigma, CLASSES).events
    assert len(events) == 3
    assert 0.998 * 2 <= epsilon(events, 1e-5) <= 2


def test_a_person_of_two_silos_has_one_budget_over_both() -> None:
    sigma = multiplier(2.0, 1e-5, overlap=2)
    events = Plan(2000, 5, sigma, CLASSES, overlap=2).events
    assert 0.998 * 2 <= epsilon([*events, *events], 1e-5) <= 2


def test_little_noise_leaves_the_sums_of_all() -> None:
    seen = released(0.01)
    exact = np.sum([popularity(own, 30) for own in silos()], axis=0)
    assert np.allclose(seen.popularity, exact / GRID, atol=0.5)
    model = seen.model(0.3)
    scores = model.scores(csr_array(np.eye(30)))
    ahead = (scores.argmax(1) - np.arange(30)) % 30
    assert set(ahead) <= {1, 2, 3}  # a run goes on


EMPTY = Sequences(np.zeros(0, np.int64), np.zeros(1, np.int64))


def test_what_a_silo_knows_of_the_others_is_their_sum() -> None:
    """With its own users taken away to the step, what is left is as if they had never been."""
    whole, keys = plan_of(2.0), [Source.replayable(0, "others", silo).bytes(32) for silo in range(5)]

    def total(own: tuple[Sequences, ...], first: Integers | None = None) -> Integers:
        sources = [Source(key, False) for key in keys]
        if first is None:
            parts = [whole.popularity(one, source) for one, source in zip(own, sources, strict=True)]
        else:
            parts = [whole.transitions(one, first, source) for one, source in zip(own, sources, strict=True)]
        return np.asarray(np.sum(parts, axis=0), np.int64)

    with_it, without = silos(), (EMPTY, *silos()[1:])
    first = total(with_it)
    others = whole.released(first, total(with_it, first)).others(silos()[0])
    assert np.allclose(others.popularity * GRID, total(without), atol=1e-3)
    second = whole.released(first, total(without, first))
    assert np.allclose(others.between, second.between)
    assert np.allclose(others.pairs, second.pairs)
    assert others.users == 400


def test_a_share_of_nothing_is_the_silo_alone() -> None:
    own, x = silos()[0], csr_array(np.eye(30))
    alone = personal(own, CLASSES, None, 30, 0.3).scores(x)
    assert (personal(own, CLASSES, released(2.0), 30, 0.0).scores(x) == alone).all()
    assert np.abs(personal(own, CLASSES, released(2.0), 30, 0.3).scores(x) - alone).max() > 0


def test_a_large_share_of_sums_without_noise_is_the_model_of_all() -> None:
    """A silo of nobody has what the others have together, whatever its share."""
    seen = released(0.01)
    whole = personal(EMPTY, CLASSES, seen, 30, 1.0).scores(csr_array(np.eye(30)))
    ahead = (whole.argmax(1) - np.arange(30)) % 30
    assert set(ahead) <= {1, 2, 3}


def test_sums_of_noise_alone_make_a_model_of_finite_numbers() -> None:
    nobody = Plan(500, 5, 2.0, CLASSES).carry_out([EMPTY] * 5, Source.system())
    assert np.isfinite(nobody.model(0.3).scores(csr_array(np.eye(30)))).all()
    for share in SHARES:
        assert np.isfinite(personal(EMPTY, CLASSES, nobody, 30, share).scores(csr_array(np.eye(30)))).all()


def test_release_years_make_groups_of_alike_size() -> None:
    titles = [f"Film {n} ({1900 + n})" for n in range(80)]
    assert np.bincount(year_groups(titles)).tolist() == [10] * GROUPS
    assert (np.diff(year_groups(titles)) >= 0).all()
    assert year_groups([*titles[:40], *["Film"] * 41]).tolist() == [0] * 81
    assert year_groups(["Film (1990)", "Film 1991", "Film (1999) "]).tolist()[1] == 0
    assert year_groups([]).tolist() == []


# The numbers of MovieLens 100K.


def places(
    model: Markov, recent: float, data: ClientData, split: Literal["validation", "test"], seed: int
) -> np.ndarray:
    """Return the rank (from 0) of every user's held-out item among all items that it is not known to have."""
    known = data.known(split)
    history = sequences(data, known, seed)
    length = np.diff(history.start)
    ago = np.repeat(history.start[1:], length) - 1 - np.arange(len(history.item))
    x = csr_array((np.exp(-ago / recent), history.item, history.start), shape=(len(length), len(data.items)))
    scores = model.scores(x)
    for rows in known:
        scores[rows.user, rows.item] = -np.inf
    asked = data.validation if split == "validation" else data.test
    user, row = np.unique(asked.user, return_index=True)
    found = scores[user, asked.item[row]][:, None]
    return np.asarray((scores[user] > found).sum(1) + ((scores[user] == found).sum(1) - 1) / 2)


def ndcg(rank: np.ndarray) -> np.ndarray:
    return np.where(rank < 10, 1 / np.log2(rank + 2), 0.0)


@cache
def films(count: int, seed: int) -> tuple[tuple[ClientData, ...], list[Sequences], Ints]:
    dataset = movielens(Path(os.environ["FEDREC_DATA"]) / "ml-100k")
    parts = federation(dataset, clients=count, seed=seed)
    return parts, [sequences(data, [data.train], seed) for data in parts], year_groups(list(dataset.items["title"]))


@cache
def private(count: int, seed: int, budget: float) -> tuple[Plan, Released]:
    parts, own, classes = films(count, seed)
    plan = Plan(sum(len(data.users) for data in parts), count, multiplier(budget, 1e-5), classes)
    return plan, plan.carry_out(own, Source.replayable(seed, "private", count, int(budget)))


@real
@pytest.mark.soak
@pytest.mark.parametrize(("budget", "least"), [(1.0, 0.053), (2.0, 0.052), (4.0, 0.058), (8.0, 0.064)])
def test_private_sums_of_five_silos_are_above_popularity(
    budget: float, least: float, tries: Callable[[int, int], int]
) -> None:
    """Popularity has .041; five silos, five seeds of split and noise, mean NDCG@10 of all users."""
    found = []
    for seed in range(tries(0, 5)):
        plan, seen = private(5, seed, budget)
        model = seen.model(plan.recipe.prior)
        found += [ndcg(places(model, plan.recipe.recent, data, "test", seed)) for data in films(5, seed)[0]]
    assert np.concatenate(found).mean() >= least


def value(model: Markov, data: ClientData, seed: int) -> float:
    """Return the mean gain of all places, by which a silo chooses on its validation."""
    return float((1 / np.log2(places(model, RECENT, data, "validation", seed) + 2)).mean())


@cache
def gains(count: int, seed: int) -> dict[float, np.ndarray]:
    """Return the NDCG@10 of every user by budget, less that of its silo alone with the same settings."""
    parts, own, classes = films(count, seed)
    result: dict[float, list[np.ndarray]] = {budget: [] for budget in BUDGETS}
    for data, mine in zip(parts, own, strict=True):
        alone = personal(mine, classes, None, len(classes), 0.0)
        before, least = ndcg(places(alone, RECENT, data, "test", seed)), value(alone, data, seed)
        for budget in BUDGETS:
            seen = private(count, seed, budget)[1]
            options = [personal(mine, classes, seen, len(classes), share) for share in SHARES[1:]]
            values = [least, *(value(model, data, seed) for model in options)]
            best = [alone, *options][int(np.argmax(values))]
            result[budget].append(ndcg(places(best, RECENT, data, "test", seed)) - before)
    return {budget: np.concatenate(found) for budget, found in result.items()}


@real
@pytest.mark.soak
@pytest.mark.parametrize(("budget", "least"), [(1.0, 0.002), (2.0, 0.003), (4.0, 0.006), (8.0, 0.009)])
def test_twenty_silos_gain_by_private_sums_beside_their_own(
    budget: float, least: float, tries: Callable[[int, int], int]
) -> None:
    change = np.concatenate([gains(20, seed)[budget] for seed in range(tries(0, 5))])
    error = change.std() / np.sqrt(len(change))
    assert change.mean() >= least, f"{change.mean():+.4f} +- {1.96 * error:.4f}"


@real
@pytest.mark.soak
@pytest.mark.parametrize("budget", BUDGETS)
def test_five_silos_lose_nothing_to_speak_of(budget: float, tries: Callable[[int, int], int]) -> None:
    change = np.concatenate([gains(5, seed)[budget] for seed in range(tries(0, 5))])
    assert change.mean() >= -0.003
