"""Attacks on sums: an exact one tells a user's items, its pairs and who is in it; a private one tells nothing of it."""

from functools import cache
from statistics import NormalDist

import numpy as np
import pytest

from fedrec.data.history import Sequences
from fedrec.models.contributions import GRID, gram, symmetric
from fedrec.privacy.attacks.scores import judge, violates
from fedrec.privacy.attacks.sums import item_scores, membership_scores, pair_scores, recovery
from fedrec.privacy.noise import Source
from fedrec.privacy.sums import Release, multiplier
from fedrec.rng import generator

ITEMS, USERS, SILOS = 40, 300, 5
HEAD, WEIGHT = np.arange(ITEMS), np.ones(ITEMS)


@cache
def users() -> tuple[Sequences, ...]:
    """Return users with 3 to 11 items, rare ones too."""
    rng = generator(0, "attacked sums")
    sets = [rng.choice(ITEMS, rng.integers(3, 12), replace=False) for _ in range(USERS)]
    return tuple(Sequences(items.astype(np.int64), np.array([0, len(items)])) for items in sets)


@cache
def steps(user: int) -> np.ndarray:
    return gram(users()[user], HEAD, WEIGHT)


def seen(total: np.ndarray, epsilon: float, *scope: int) -> np.ndarray:
    """Return what the server gets of the sum of a silo and the shares of the others."""
    release, source = Release(len(total), multiplier(epsilon, 1e-5), SILOS), Source.replayable(0, "attacked", *scope)
    shares = [release.share(0 * total, source.spawn()) for _ in range(SILOS)]
    return release.values(np.sum([total, *shares], axis=0))


def truth(user: int) -> tuple[np.ndarray, np.ndarray]:
    has = np.isin(HEAD, users()[user].item)
    return has, np.outer(has, has)[np.triu_indices(ITEMS, 1)]


def recovered(epsilon: float | None) -> np.ndarray:
    """Return the mean F1 of items and of pairs over one-user clients whose own sum the server has, and their errors."""
    found = []
    for user in range(100):
        left = steps(user) / GRID if epsilon is None else seen(steps(user), epsilon, user)
        has, pairs = truth(user)
        matrix = symmetric(left)
        chance = has.mean(), pairs.mean()
        found.append([recovery(item_scores(matrix), has), recovery(pair_scores(matrix), pairs), *chance])
    return np.array(found)


def test_an_exact_sum_of_one_user_tells_its_items_and_pairs() -> None:
    assert recovered(None)[:, :2].min() == 1


@pytest.mark.parametrize("epsilon", [1.0, 2.0])
def test_of_a_private_sum_items_and_pairs_are_guessed_as_at_random(epsilon: float) -> None:
    """By chance the share of targets that are in is right: within 4 standard errors over 100 users."""
    found = recovered(epsilon)
    beyond = found[:, :2] - found[:, 2:]
    error = beyond.std(0) / np.sqrt(len(beyond))
    assert (np.abs(beyond.mean(0)) < 4 * error).all(), beyond.mean(0)


def told(epsilon: float | None, trials: int) -> tuple[np.ndarray, np.ndarray]:
    """Return membership scores and the truth: half of the users are in a sum of which all others are known."""
    scores, coins = [], generator(0, "coins").random(trials) < 0.5
    others = np.sum([steps(user) for user in range(100, USERS)], axis=0)
    for trial, inside in enumerate(coins):
        user = trial % 100
        total = others + steps(user) * inside
        view = total / GRID if epsilon is None else seen(total, epsilon, trial, 1)
        scores.append(membership_scores(view, others / GRID, [steps(user) / GRID])[0])
    return np.array(scores), coins


def test_an_exact_sum_tells_who_is_in_it() -> None:
    assert judge(*told(None, 100)).auc == 1


def test_of_a_private_sum_membership_is_near_chance_and_within_the_promise() -> None:
    """The attack is the best there is, so that its AUC is Phi(1 / (sigma sqrt(2))), .575 at epsilon 1."""
    result = judge(*told(1.0, 600))
    expected = NormalDist().cdf(1 / (multiplier(1.0, 1e-5) * np.sqrt(2 * SILOS / (SILOS - 1))))
    assert expected < 0.57
    assert result.auc_low <= expected <= result.auc_high
    assert not violates(result, 1.0, 1e-5)


def test_a_sum_with_too_little_noise_is_found_out() -> None:
    assert violates(judge(*told(60.0, 600)), 1.0, 1e-5)


def test_recovery_has_known_answers() -> None:
    has = np.array([True, False, True, False])
    assert recovery(np.array([4.0, 3.0, 2.0, 1.0]), has) == 0.5
    assert recovery(np.array([4.0, 1.0, 2.0, 1.0]), has) == 1
    with pytest.raises(ValueError, match="must have a target"):
        recovery(np.zeros(4), np.zeros(4, np.bool_))
