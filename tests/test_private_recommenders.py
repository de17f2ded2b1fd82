"""What is recommended from noisy sums: known answers without noise, and nothing of noise alone."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csr_array

from fedrec.models.markov import Markov, Prior, floored, pairs, weights
from fedrec.models.recipe import MOST, ordered, unordered
from fedrec.models.shrinkage import Pairs, shrink_eigenvalues
from fedrec.rng import generator

squares = st.integers(1, 6).flatmap(lambda m: arrays(np.float64, (m, m), elements=st.floats(-3, 3)))


def wigner(m: int, noise: float, *scope: str | int) -> np.ndarray:
    """Return symmetric noise, of a standard deviation on the diagonal and less by sqrt(2) off it."""
    a = generator(0, "wigner", *scope).normal(size=(m, m)) * noise
    return np.asarray((a + a.T) / 2)


# Eigenvalues.


@given(squares)
@example(np.array([[2e-162]]))  # its square is the smallest number that there is
def test_without_noise_shrinkage_changes_nothing(a: np.ndarray) -> None:
    gram = a @ a.T
    assert np.allclose(shrink_eigenvalues(gram, 0.0), gram, atol=1e-9)


@given(squares, st.floats(0.01, 5))
def test_shrinkage_leaves_a_positive_matrix_that_is_no_larger(a: np.ndarray, noise: float) -> None:
    before, after = np.linalg.eigvalsh(a @ a.T), np.linalg.eigvalsh(shrink_eigenvalues(a @ a.T, noise))
    assert after.min() >= -1e-9
    assert (after <= before + 1e-9).all()


def test_an_eigenvalue_is_shrunk_by_the_known_amount() -> None:
    """m = 2, noise 1: e = 2. Of 2.5 comes y = (2.5 + 1.5) / 2 = 2, and 2 (1 - 1/4) = 1.5 is kept; 2 and -3 are not."""
    assert np.allclose(shrink_eigenvalues(np.diag([2.5, 2.0]), 1.0), np.diag([1.5, 0.0]))
    assert np.allclose(shrink_eigenvalues(np.diag([2.5, -3.0]), 1.0), np.diag([1.5, 0.0]))


def test_nothing_is_left_of_noise_and_of_a_strong_direction_what_is_true() -> None:
    m, noise = 400, 0.5
    assert np.linalg.eigvalsh(wigner(m, noise))[-1] == pytest.approx(noise * np.sqrt(2 * m), rel=0.05)  # the edge
    assert np.abs(shrink_eigenvalues(wigner(m, noise), 1.05 * noise)).max() < 1e-12
    u = np.ones(m) / np.sqrt(m)
    found = shrink_eigenvalues(60 * np.outer(u, u) + wigner(m, noise), noise)
    # Of y = 60 with e = 14.1 the best multiple of the found eigenvector has the length 60 (1 - (e / 120)^2).
    assert np.linalg.eigvalsh(found)[-1] == pytest.approx(60 * (1 - (noise * np.sqrt(2 * m) / 120) ** 2), rel=0.02)
    error = [np.linalg.norm(x - 60 * np.outer(u, u)) for x in (found, 60 * np.outer(u, u) + wigner(m, noise))]
    assert error[0] < error[1] / 4


def test_pairs_without_noise_are_those_of_ease() -> None:
    x = generator(0, "ease").random((30, 5))
    model = Pairs.of(x.T @ x, 0.0, np.arange(5), np.ones(5), np.zeros(5)).model
    for item in range(5):  # the regression of every item on the others
        others = np.delete(np.arange(5), item)
        least = np.linalg.lstsq(x[:, others], x[:, item], rcond=None)[0]
        assert np.allclose(model[others, item], least, atol=1e-6)
    assert not np.diagonal(model).any()


def test_outside_the_head_popularity_decides_below_what_the_head_has() -> None:
    model = Pairs.of(np.array([[2.0, 1.0], [1.0, 2.0]]), 0.1, np.array([3, 1]), np.ones(2), np.array([5.0, 1, 7, 1, 6]))
    scores = model.scores(csr_array(np.array([[0, 0, 0, 1.0, 0]])))[0]
    assert scores[1] > scores[2] > scores[4] > scores[0] > 0


# Transitions.

CLASSES = np.array([0, 0, 1, 1])


def test_a_prior_without_lift_is_popularity() -> None:
    popularity = np.array([1.0, 4.0, 2.0, 3.0])
    prior = Prior.of(popularity, CLASSES, np.zeros((2, 2)))
    assert prior.mass() == pytest.approx(100)
    assert np.allclose(prior.scores(csr_array(np.array([[1.0, 0, 0, 0]]))), popularity / 100)


def test_lift_is_how_much_more_often_classes_follow_than_by_chance() -> None:
    """Of 10 transitions 4 stay in class 0; it has half of all rows and of all columns, so that chance has 2.5."""
    prior = Prior.of(np.ones(4), CLASSES, np.array([[4.0, 1.0], [1.0, 4.0]]))
    assert np.allclose(prior.lift, [[1.6, 0.4], [0.4, 1.6]])
    scores = prior.scores(csr_array(np.array([[1.0, 0, 0, 0]])))
    assert np.allclose(scores, np.array([1.6, 1.6, 0.4, 0.4]) / 16)


def test_scores_of_a_prior_are_a_product_with_its_matrix() -> None:
    rng = generator(0, "prior")
    prior, x = Prior.of(rng.random(4), CLASSES, rng.random((2, 2))), rng.random((3, 4))
    whole = prior.lift[CLASSES][:, CLASSES] * np.outer(prior.popularity, prior.popularity)
    assert prior.mass() == pytest.approx(whole.sum())
    assert prior.mass(np.array([2, 0])) == pytest.approx(whole[np.ix_([0, 2], [0, 2])].sum())
    assert np.allclose(prior.scores(csr_array(x)), x @ whole / whole.sum())


def test_pairs_are_thresholded_freed_of_their_weights_and_scaled_to_the_share_of_the_head() -> None:
    prior = Prior.of(np.array([4.0, 1.0, 3.0, 2.0]), CLASSES, np.zeros((2, 2)))
    head, weight = np.array([0, 2]), np.array([1.0, 2.0])
    found = pairs(np.array([[9.0, 5.0], [4.0, 9.0]]), 1.0, head, weight, prior).toarray()
    kept = np.array([4.0, 3.0]) / 2  # off the diagonal, one noise nearer to 0, over both weights
    assert np.allclose(found[[0, 2], [2, 0]], kept / kept.sum() * (7 / 10) ** 2)
    assert np.count_nonzero(found) == 2


@pytest.mark.parametrize("noise", [3.0, np.inf])
def test_nothing_is_left_of_what_is_below_the_noise(noise: float) -> None:
    prior = Prior.of(np.ones(4), CLASSES, np.zeros((2, 2)))
    found = pairs(np.array([[9.0, 3.0], [-5.0, 9.0]]), noise, np.array([0, 2]), np.ones(2), prior)
    assert found.nnz == 0
    model = Markov(found, prior, 1.0, 0.3)
    assert np.allclose(model.scores(csr_array(np.eye(4))), 0.3 / 2 / 16)  # popularity alone


def test_a_popularity_that_is_all_noise_below_zero_is_no_weight_of_infinity() -> None:
    assert np.isfinite(weights(np.array([-1.0, -2.0]), np.array([0, 1]))).all()
    assert floored(np.array([100.0, 1.0, -5.0])).tolist() == [100, 2, 2]
    assert weights(np.array([100.0, 25.0, -5.0]), np.array([1, 2])).tolist() == pytest.approx([2, 50**0.5])


# Recipes: settings of public numbers.


@pytest.mark.parametrize("users", [1, 100, 943, 6040, 10**6])
@pytest.mark.parametrize("sigma", [0.6, 3.7, 100.0])
def test_the_shares_of_a_recipe_are_the_whole_budget(users: int, sigma: float) -> None:
    for recipe in (ordered(users, sigma, classes=True), ordered(users, sigma, classes=False), unordered(users, sigma)):
        assert recipe.popularity + recipe.classes + recipe.pairs == pytest.approx(1)
        assert min(recipe.popularity, recipe.recent) > 0
        assert (recipe.items > 0) == (recipe.pairs > 0)
        assert recipe.items <= MOST
    assert ordered(users, sigma, classes=False).classes == 0


def test_users_over_sigma_alone_decide() -> None:
    assert ordered(943, 0.6, classes=True) == ordered(9430, 6.0, classes=True)
    assert unordered(943, 0.6) == unordered(9430, 6.0)
