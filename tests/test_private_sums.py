"""Private sums: what a user adds is bounded, no less noise leaves than is booked, and what the sums recommend."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import chi2

from fedrec.data.history import Sequences
from fedrec.errors import UserError
from fedrec.models import contributions
from fedrec.models.contributions import (
    GRID,
    class_transitions,
    following,
    gram,
    own_transitions,
    popularity,
    symmetric,
    to_grid,
)
from fedrec.models.contributions import transitions as transitions_of
from fedrec.privacy.accounting import epsilon
from fedrec.privacy.noise import Source
from fedrec.privacy.sums import Release, multiplier, parted

ITEMS, CLASSES = 9, 3
LEVEL = 1e-6
histories = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=30), min_size=1, max_size=4)
heads = st.permutations(range(ITEMS)).flatmap(
    lambda order: st.integers(0, ITEMS).map(lambda m: np.array(order[:m], int))
)
weights = arrays(np.float64, ITEMS, elements=st.floats(1e-3, 1e6))


def sequences(users: list[list[int]]) -> Sequences:
    start = np.cumsum([0, *(len(user) for user in users)])
    return Sequences(np.array([item for user in users for item in user], np.int64), start)


def released(users: list[list[int]], head: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
    """Return every sum that silos release of some users, in steps."""
    mine, weight = sequences(users), weight[: len(head)]
    return {
        "popularity": popularity(mine, ITEMS),
        "gram": gram(mine, head, weight),
        "transitions": transitions_of(mine, head, weight),
        "classes": class_transitions(mine, np.arange(ITEMS) % CLASSES, CLASSES),
    }


# What a user adds: at most norm 1, after rounding, whatever it holds.


@given(arrays(np.float64, st.integers(0, 40), elements=st.floats(allow_nan=True, allow_infinity=True)))
def test_a_vector_on_the_grid_has_at_most_the_norm_1(x: np.ndarray) -> None:
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        steps = to_grid(x)
    assert sum(n * n for n in steps.tolist()) <= GRID**2


@given(arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-6)))
def test_rounding_moves_no_entry_by_a_step(x: np.ndarray) -> None:
    exact = x / np.linalg.norm(x) * GRID
    assert np.abs(to_grid(x) - exact).max() <= 1 + 1e-6


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9, 25, 1000])
def test_equal_entries_are_not_rounded_up(count: int) -> None:
    """1 / sqrt(count) in steps is a whole number for squares: rounding to the nearest would exceed it for others."""
    steps = to_grid(np.ones(count))
    assert int(steps @ steps) <= GRID**2
    assert steps.min() >= GRID / math.sqrt(count) - 1 - 1e-6


@given(histories, heads, weights)
def test_neighbours_differ_by_at_most_the_norm_1(users: list[list[int]], head: np.ndarray, weight: np.ndarray) -> None:
    """Zero-out: one user's history replaced by none."""
    without = released([[], *users[1:]], head, weight)
    for name, total in released(users, head, weight).items():
        change = (total - without[name]).tolist()
        assert sum(n * n for n in change) <= GRID**2, name


@given(histories, heads, weights)
def test_sums_of_silos_are_the_sums_of_all(users: list[list[int]], head: np.ndarray, weight: np.ndarray) -> None:
    parts = [released(part, head, weight) for part in (users[:1], users[1:])]
    for name, total in released(users, head, weight).items():
        assert (total == parts[0][name] + parts[1][name]).all(), name


def test_the_norm_of_what_is_released_of_a_gram_is_that_of_the_matrix() -> None:
    """Of x = (3, 4) / 5: x x' has 9, 12, 16 over 25, and norm 1; off the diagonal sqrt(2) 12 / 25 is released."""
    steps = gram(sequences([[0, 1]]), np.array([0, 1]), np.array([3.0, 4.0]))
    assert np.allclose(steps / GRID, [9 / 25, math.sqrt(2) * 12 / 25, 16 / 25], atol=1e-5)
    assert np.allclose(symmetric(steps / GRID), [[9 / 25, 12 / 25], [12 / 25, 16 / 25]], atol=1e-5)


@given(histories, heads, weights)
def test_a_gram_is_laid_out_as_it_is_read(users: list[list[int]], head: np.ndarray, weight: np.ndarray) -> None:
    m, expected = len(head), np.zeros((len(head), len(head)))
    for user in users:
        x = np.where(np.isin(head, user), weight[:m], 0)
        expected += np.outer(x, x) / max(float(x @ x), 1e-300)
    assert np.allclose(symmetric(gram(sequences(users), head, weight[:m]) / GRID), expected, atol=4 * 2 / GRID)


def test_transitions_are_the_past_of_every_point_times_its_future() -> None:
    """c = sum over points of a f', with a and f the decayed items before and behind it (arXiv 2103.16104)."""
    history = [3, 1, 4, 0, 2]
    expected = np.zeros((5, 5))
    for point in range(1, 5):
        past, future = np.zeros(5), np.zeros(5)
        for place, item in enumerate(history):
            if place < point:
                past[item] = math.exp(-(point - 1 - place) / contributions.PAST)
            else:
                future[item] = math.exp(-(place - point) / contributions.FUTURE)
        expected += np.outer(past, future)
    found = transitions_of(sequences([history]), np.arange(5), np.ones(5)).reshape(5, 5) / GRID
    assert np.allclose(found, expected / np.linalg.norm(expected), atol=2 / GRID)
    own = own_transitions(sequences([history]), 5, np.ones(5)).toarray()
    assert np.allclose(own, expected / np.linalg.norm(expected))
    assert following(np.array([-2, 0])).tolist() == [0, 0]


def test_what_is_not_in_the_head_is_no_part_of_a_history() -> None:
    head = np.array([7, 2])
    found = transitions_of(sequences([[7, 5, 5, 5, 2]]), head, np.ones(2))
    assert (found == transitions_of(sequences([[7, 2]]), head, np.ones(2))).all()
    assert found.tolist() == [0, GRID, 0, 0]


def test_an_item_does_not_follow_itself() -> None:
    assert not transitions_of(sequences([[4, 4, 4]]), np.arange(5), np.ones(5)).any()


# The noise: never less than is booked.

SILOS, SIGMA = 5, 2.0


def drawn(release: Release, silos: int, total: int = 0) -> np.ndarray:
    """Return what some silos with nothing but `total` send together, in units of the norm."""
    source = Source.replayable(0, "sums", release.size, silos)
    parts = [release.share(np.full(release.size, total), source.spawn()) for _ in range(silos)]
    return release.values(np.sum(parts, 0))


def too_quiet(x: np.ndarray, variance: float) -> float:
    """Return how likely normal numbers of a variance are together as small as x."""
    return float(chi2.cdf(float(np.square(x).sum()) / variance, x.size))


def quiet_gram(x: np.ndarray, sigma: float) -> float:
    """Return how likely noise on a gram, of variance sigma^2 on its diagonal and half of it off it, is so small."""
    matrix = symmetric(x)
    off = matrix[np.triu_indices(len(matrix), 1)]
    return 2 * min(too_quiet(np.diagonal(matrix), sigma**2), too_quiet(off, sigma**2 / 2))


def test_a_silo_that_knows_its_own_share_still_faces_the_booked_noise() -> None:
    m = 120
    release = Release(m * (m + 1) // 2, SIGMA, SILOS)
    assert (SILOS - 1) * release.variance >= (SIGMA * GRID) ** 2 + 64
    assert quiet_gram(drawn(release, SILOS - 1), SIGMA) > LEVEL
    assert quiet_gram(drawn(release, SILOS - 2), SIGMA) < LEVEL  # one share less is found out


def test_a_diagonal_with_the_noise_of_other_entries_is_found_out() -> None:
    """A mechanism that draws a symmetric matrix of the off-diagonal's size everywhere has half the variance there."""
    m = 400
    noise = drawn(Release(m * (m + 1) // 2, SIGMA, SILOS), SILOS)
    assert quiet_gram(noise, SIGMA) > LEVEL
    row, column = np.triu_indices(m)
    assert quiet_gram(noise / np.where(row == column, math.sqrt(2), 1.0), SIGMA) < LEVEL
    assert quiet_gram(noise / np.where(row == column, 1.0, math.sqrt(2)), SIGMA) < LEVEL


def test_noise_hides_nothing_of_the_sum_but_itself() -> None:
    release = Release(2000, SIGMA, SILOS)
    assert abs(drawn(release, SILOS, 3 * GRID).mean() - 3 * SILOS) < 6 * SIGMA * math.sqrt(SILOS / (SILOS - 1) / 2000)


@pytest.mark.parametrize("shares", [(1.0,), (0.1, 0.9), (0.3, 0.2, 0.5)])
@pytest.mark.parametrize("budget", [1.0, 8.0])
def test_the_shares_of_a_budget_cost_what_it_is(budget: float, shares: tuple[float, ...]) -> None:
    sigma = multiplier(budget, 1e-5)
    spent = epsilon([Release(10, parted(sigma, share), SILOS).event for share in shares], 1e-5)
    assert 0.998 * budget <= spent <= budget


def test_a_person_of_several_silos_costs_the_square_of_their_number() -> None:
    """Two silos add norm 1 each for the same person, 2 in all: as much as noise of half the size, and each books 2."""
    sigma = multiplier(2.0, 1e-5, overlap=2)
    both = [Release(10, sigma, SILOS, overlap=2).event] * 2
    assert epsilon(both, 1e-5) == pytest.approx(epsilon([Release(10, sigma / 2, SILOS).event], 1e-5), rel=1e-6)
    assert epsilon(both, 1e-5) <= 2.0


def test_too_few_silos_and_too_much_noise_are_refused() -> None:
    with pytest.raises(UserError, match="needs 3 silos, found 2"):
        Release(10, 1.0, 2)
    with pytest.raises(UserError, match=r"privacy\.noise: must be at most"):
        Release(10, 1000.0, 3)
    with pytest.raises(ValueError, match="must have 10 numbers, found"):
        Release(10, 1.0, 3).share(np.zeros(9, np.int64), Source.replayable(0))
