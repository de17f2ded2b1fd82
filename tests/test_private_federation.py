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
from fedrec.data.layouts.movielens import movielens
from fedrec.data.partition import federation
from fedrec.data.release_years import GROUPS, year_groups
from fedrec.data.store import Clients
from fedrec.data.types import ClientData, Ints
from fedrec.models.contributions import GRID, gram, popularity, symmetric
from fedrec.models.markov import Markov
from fedrec.models.released import RECENT, SHARES, Released, gram_scores, personal, personal_gram
from fedrec.models.shrinkage import Pairs
from fedrec.privacy.accounting import epsilon
from fedrec.privacy.discrete import Integers
from fedrec.privacy.noise import Source
from fedrec.privacy.plan import Plan
from fedrec.privacy.sums import multiplier
from fedrec.rng import generator
from tests.test_private_sums import LEVEL, quiet_gram

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


# Pairs without an order.


def unordered_plan(sigma: float) -> Plan:
    return Plan(500, 5, sigma, 0 * CLASSES, ordered=False)


@cache
def unordered(sigma: float) -> Released:
    return unordered_plan(sigma).carry_out(silos(), Source.replayable(0, "unordered"))


def test_a_gram_is_booked_as_the_whole_budget() -> None:
    sigma = multiplier(2.0, 1e-5)
    plan = Plan(2000, 5, sigma, 0 * CLASSES, ordered=False)
    assert 0.998 * 2 <= epsilon(plan.events, 1e-5) <= 2
    assert [event.sigma for event in plan.rounds] == pytest.approx([sigma / 0.1**0.5, sigma / 0.9**0.5])
    assert plan.second[0].size == 30 * 31 // 2  # each pair once


def test_without_noise_a_gram_is_that_of_all_and_its_model_is_ease_of_it() -> None:
    """x x' of every user, x its items of the head by their weights, at norm 1; EASE: -P_ij / P_jj of the inverse P."""
    seen, expected = unordered(1e-4), np.zeros((30, 30))
    for own in silos():
        for first, last in zip(own.start[:-1], own.start[1:], strict=True):
            x = np.where(np.isin(seen.head, own.item[first:last]), seen.weight, 0.0)
            expected += np.outer(x, x) / (x @ x)
    assert np.abs(seen.gram - expected).max() < 0.01
    inverse = np.linalg.inv(expected + 1e-4 / 0.9**0.5 * (5 / 4) ** 0.5 * 30**0.5 * np.eye(30))
    ease = -inverse / np.diagonal(inverse)
    np.fill_diagonal(ease, 0)
    x = csr_array(np.eye(30))
    scores = np.zeros((30, 30))
    scores[np.ix_(seen.head, seen.head)] = seen.weight[:, None] * ease / seen.weight
    found = seen.unordered().scores(x)
    assert isinstance(seen.unordered(), Pairs)
    assert np.abs(found - scores).max() < 0.01 * np.abs(scores).max()


def test_what_a_silo_knows_of_the_gram_of_others_is_their_sum() -> None:
    seen = unordered(1e-4)
    expected = sum(symmetric(gram(own, seen.head, seen.weight) / GRID) for own in silos()[1:])
    assert np.abs(seen.others(silos()[0]).gram - expected).max() < 0.01


def test_noise_on_a_gram_is_what_is_booked_on_its_diagonal_and_off_it() -> None:
    """Read without its sqrt(2), or with the noise of other entries on its diagonal, it is found out."""
    plan = Plan(10_000, 5, 2.0, np.zeros(400, np.int64), ordered=False)
    seen = plan.carry_out([EMPTY] * 5, Source.replayable(0, "noise of a gram"))
    (release,) = plan.second
    sigma = release.sigma * (5 / 4) ** 0.5  # five shares, of which four are what is booked
    assert seen.noise[1] == pytest.approx(sigma, rel=1e-6)
    row, column = np.triu_indices(400)
    steps = seen.pairs[row, column]
    assert quiet_gram(steps, sigma) > LEVEL
    assert np.allclose(seen.gram, symmetric(steps))
    assert quiet_gram(steps / np.where(row == column, 2**0.5, 1.0), sigma) < LEVEL
    assert quiet_gram(steps / np.where(row == column, 1.0, 2**0.5), sigma) < LEVEL


def test_a_share_of_nothing_is_the_silo_alone_and_a_large_one_the_model_of_all() -> None:
    own, exact = silos()[0], np.zeros((30, 30))
    for one in silos():
        for first, last in zip(one.start[:-1], one.start[1:], strict=True):
            mine = np.isin(np.arange(30), one.item[first:last]) * 1.0
            exact += np.outer(mine, mine) * (one is own)
    assert (personal_gram(own, exact, unordered(1e-4), 0.0) == exact).all()
    assert (personal_gram(own, exact, None, 0.3) == exact).all()
    whole = personal_gram(own, exact, unordered(1e-4), 1.0)
    assert np.trace(whole) == pytest.approx(5 * np.trace(exact), rel=1e-6)  # four silos as large beside it
    assert np.isfinite(gram_scores(personal_gram(own, exact, unordered(50.0), 0.3), csr_array(np.eye(30)))).all()


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
def films(count: int, seed: int) -> tuple[Clients, list[Sequences], Ints]:
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


SHORT = pytest.mark.xfail(strict=True, reason="+.0028, +.0055 and +.0069 at epsilon 2, 4 and 8 over five seeds")


@real
@pytest.mark.soak
@pytest.mark.parametrize(
    ("budget", "least"),
    [(1.0, 0.002), *(pytest.param(*asked, marks=SHORT) for asked in ((2.0, 0.003), (4.0, 0.006), (8.0, 0.009)))],
)
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
