"""Quadratic recommenders in a subspace: additive as sums are, exact where the subspace is everything, and no [n, n]."""

import tracemalloc
from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles
from scipy.sparse import csr_array

from fedrec.data.history import Sequences
from fedrec.models.quadratic import KINDS, Matrix, Quadratic, inputs, solve, statistics
from fedrec.models.subspace import LowRank, Projection, act, begin, fit, fit_alone, project
from fedrec.subspace import Subspace, advance, leading, metric, square, triangle

CONFIG = Quadratic(popular=0.5, rare=0.2)
ITEMS = 14


def market(users: int = 40, items: int = ITEMS, seed: int = 0, longest: int = 9) -> Sequences:
    """Return users who walk along the items from where they start, now and then elsewhere."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest, users)
    walks = [(rng.integers(items) + np.cumsum(rng.choice([1, 2, 5], n, p=[0.6, 0.3, 0.1]))) % items for n in lengths]
    return Sequences(np.concatenate([*walks, np.zeros(0, np.int64)]), np.append(0, np.cumsum(lengths)))


def part(sequences: Sequences, first: int, last: int) -> Sequences:
    start = sequences.start[first : last + 1]
    return Sequences(sequences.item[start[0] : start[-1]], start - start[0])


def keys(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def find(config: Subspace, clients: list[tuple[csr_array, csr_array]], n: int) -> tuple[Matrix, Projection]:
    """Return the basis that clients find together, and the sum of their projections on it."""
    basis, diagonal = begin(min(config.k, n), 0, keys(n)), np.sum([gram.diagonal() for gram, _ in clients], 0)
    for number in range(1, config.passes + 1):
        answers = [act(cross, basis, config.transposed(number)) for _, cross in clients]
        basis = advance(config, np.sum(answers, 0), diagonal)
    return basis, reduce(Projection.plus, [project(gram, cross, basis) for gram, cross in clients])


def dense(kind: str, gram: csr_array, cross: csr_array) -> Matrix:
    return solve(kind, CONFIG, gram.toarray(), cross.toarray())


def matrix(found: LowRank) -> Matrix:
    """Return W by what it says of histories of one item."""
    return found.score(csr_array(np.eye(len(found.left))))


@pytest.mark.parametrize("kind", KINDS)
@given(cuts=st.lists(st.integers(0, 40), max_size=3), seed=st.integers(0, 3))
def test_clients_find_what_the_pooled_users_find(kind: str, cuts: list[int], seed: int) -> None:
    sequences, bounds = market(seed=seed), [0, *sorted(cuts), 40]
    config = Subspace(k=4, passes=2)
    clients = [statistics(kind, CONFIG, part(sequences, a, b), ITEMS) for a, b in pairwise(bounds)]
    pooled = statistics(kind, CONFIG, sequences, ITEMS)
    together, alone = find(config, clients, ITEMS), find(config, [pooled], ITEMS)
    np.testing.assert_allclose(
        matrix(fit_alone(kind, CONFIG, *together)), matrix(fit_alone(kind, CONFIG, *alone)), rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("passes", [0, 3])
def test_a_subspace_of_everything_is_the_dense_fit(kind: str, passes: int) -> None:
    sums = statistics(kind, CONFIG, market(), ITEMS)
    basis, total = find(Subspace(k=ITEMS, passes=passes), [sums], ITEMS)
    np.testing.assert_allclose(matrix(fit_alone(kind, CONFIG, basis, total)), dense(kind, *sums), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_item_tells_of_itself_is_bounded_as_in_the_dense_fit(kind: str) -> None:
    """With walks that come back to where they were."""
    bounded = CONFIG.model_copy(update={"repeats": 0.0})
    sums = statistics(kind, bounded, market(longest=60), ITEMS)
    basis, total = find(Subspace(k=ITEMS), [sums], ITEMS)
    expected = solve(kind, bounded, sums[0].toarray(), sums[1].toarray())
    np.testing.assert_allclose(matrix(fit_alone(kind, bounded, basis, total)), expected, rtol=1e-8, atol=1e-8)
    free = bounded.model_copy(update={"repeats": 1.0})
    assert np.abs(expected - matrix(fit_alone(kind, free, basis, total))).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_found_depends_on_the_space_and_not_on_its_basis(kind: str) -> None:
    sums = statistics(kind, CONFIG, market(), ITEMS)
    basis, total = find(Subspace(k=5), [sums], ITEMS)
    turned = basis @ np.random.default_rng(1).standard_normal((5, 5))
    np.testing.assert_allclose(
        matrix(fit_alone(kind, CONFIG, turned, project(*sums, turned))),
        matrix(fit_alone(kind, CONFIG, basis, total)),
        rtol=1e-7,
        atol=1e-9,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_passes_found_is_public_the_next_time(kind: str) -> None:
    """V of a file is made orthonormal: whatever spans what the passes end with, one round has the same W."""
    sums = statistics(kind, CONFIG, market(), ITEMS)
    basis, total = find(Subspace(k=5), [sums], ITEMS)
    rng = np.random.default_rng(1)
    for vectors in (basis, basis @ rng.standard_normal((5, 5)), basis @ rng.standard_normal((5, 9))):
        again = leading(vectors, 8)
        np.testing.assert_allclose(again.T @ again, np.eye(5), atol=1e-12)
        first, last = fit_alone(kind, CONFIG, again, project(*sums, again)), fit_alone(kind, CONFIG, basis, total)
        np.testing.assert_allclose(matrix(first), matrix(last), rtol=0, atol=1e-9 * np.abs(matrix(last)).max())


def test_of_many_public_vectors_the_leading_directions_are_taken() -> None:
    left = np.linalg.qr(np.random.default_rng(0).standard_normal((ITEMS, 4)))[0]
    vectors = left * [3.0, 9.0, 0.0, 1.0]
    np.testing.assert_allclose(np.abs(leading(vectors, 2).T @ left), np.eye(4)[[1, 0]], atol=1e-12)
    assert leading(vectors, 4).shape == (ITEMS, 3)
    assert leading(0 * vectors, 4).shape == (ITEMS, 0)


@given(st.integers(0, 5))
def test_the_fit_has_the_least_objective_of_the_subspace(seed: int) -> None:
    """1/2 <W, (G + ridge) W> - <C, W> rises from W = V A in every direction V dA."""
    plain = Quadratic(popular=0.0, rare=0.0)
    gram, cross = (one.toarray() for one in statistics("slist", plain, market(seed=seed), ITEMS))
    basis, total = find(Subspace(k=4), [(csr_array(gram), csr_array(cross))], ITEMS)
    system = gram + plain.ridge * gram.diagonal().mean() * np.eye(ITEMS)

    def value(w: Matrix) -> float:
        return float((w * (system @ w)).sum() / 2 - (cross * w).sum())

    w = matrix(fit_alone("slist", plain, basis, total))
    rng = np.random.default_rng(seed)
    assert all(value(w) < value(w + 0.01 * basis @ rng.standard_normal((4, ITEMS))) for _ in range(20))


def test_passes_come_to_the_leading_left_directions_of_what_follows_what() -> None:
    """Without damping V spans the leading left singular vectors of C, by orthogonal iteration on C C'."""
    gram, cross = statistics("slit", CONFIG, market(), ITEMS)
    config = Subspace(k=3, passes=61, damping=0.0)
    basis, _ = find(config, [(gram, cross)], ITEMS)
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-12)
    u, values, _ = np.linalg.svd(cross.toarray())
    assert values[3] < 0.97 * values[2], "so that 61 passes suffice"
    assert subspace_angles(basis, u[:, :3]).max() < 1e-3


def test_clients_meet_in_the_rows_of_their_common_items() -> None:
    """What a client answers of the items that it has is all that it answers, and needs no other rows of the basis."""
    rng = np.random.default_rng(0)
    gram, cross = statistics("slist", CONFIG, market(items=9), 9)
    own = np.sort(rng.permutation(ITEMS)[:9])
    wide = [np.zeros((ITEMS, ITEMS)), np.zeros((ITEMS, ITEMS))]
    for full, one in zip(wide, (gram, cross), strict=True):
        full[np.ix_(own, own)] = one.toarray()
    basis = rng.standard_normal((ITEMS, 3))
    for transposed in (False, True):
        answer = act(csr_array(wide[1]), basis, transposed)
        np.testing.assert_allclose(answer[own], act(cross, basis[own], transposed))
        assert not np.delete(answer, own, 0).any()
    here, there = project(gram, cross, basis[own]), project(csr_array(wide[0]), csr_array(wide[1]), basis)
    np.testing.assert_allclose(here.inner, there.inner)
    np.testing.assert_allclose(here.outer, there.outer[own])
    assert here.mass == pytest.approx(there.mass)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_of_weight_0_is_the_shared_model_and_a_heavy_one_is_alone(kind: str) -> None:
    clients = [statistics(kind, CONFIG, market(seed=seed), ITEMS) for seed in (1, 2)]
    basis, total = find(Subspace(k=5), clients, ITEMS)
    own = project(*clients[0], basis)
    shared, alone = (matrix(fit_alone(kind, CONFIG, basis, one)) for one in (total, own))
    np.testing.assert_array_equal(matrix(fit_alone(kind, CONFIG, basis, total.plus(own, 0.0))), shared)
    heavy = matrix(fit_alone(kind, CONFIG, basis, total.plus(own, 1e9)))
    np.testing.assert_allclose(heavy, alone, atol=1e-6)
    assert np.abs(alone - shared).max() > 0.01


def test_a_client_that_leaves_was_never_there() -> None:
    clients = [statistics("slist", CONFIG, market(seed=seed), ITEMS) for seed in (1, 2)]
    basis, total = find(Subspace(k=5), clients, ITEMS)
    left = fit_alone("slist", CONFIG, basis, total.plus(project(*clients[1], basis), -1.0))
    np.testing.assert_allclose(
        matrix(left), matrix(fit_alone("slist", CONFIG, basis, project(*clients[0], basis))), rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_who_liked_anything_is_told_nothing(kind: str) -> None:
    nothing = csr_array((ITEMS, ITEMS))
    basis, total = find(Subspace(k=4), [(nothing, nothing)], ITEMS)
    np.testing.assert_array_equal(matrix(fit_alone(kind, CONFIG, basis, total)), np.zeros((ITEMS, ITEMS)))


def test_a_row_of_the_start_is_of_its_key() -> None:
    np.testing.assert_array_equal(begin(2, 3, ["a", "b", "c"])[1], begin(2, 3, ["b", "c", "d"])[0])


def test_a_client_with_some_of_the_items_fits_its_rows_of_the_whole() -> None:
    """The ridge is of all items, by the metric and the mass; rows that it does not carry are not asked for."""
    sums = statistics("slist", CONFIG, market(), ITEMS)
    basis, total = find(Subspace(k=5), [sums], ITEMS)
    own, weights = np.array([1, 4, 5, 11]), metric(basis, total.diagonal, CONFIG.popular)
    part = Projection(total.inner, total.outer[own], total.diagonal[own], total.mass)
    for kind in KINDS:
        some = matrix(fit(kind, CONFIG, basis[own], weights, part, ITEMS))
        np.testing.assert_allclose(some, matrix(fit_alone(kind, CONFIG, basis, total))[np.ix_(own, own)], atol=1e-12)


def test_a_triangle_is_of_the_square() -> None:
    x = np.random.default_rng(0).standard_normal((5, 5))
    np.testing.assert_array_equal(square(triangle(x + x.T)), x + x.T)


def test_a_large_catalogue_has_nothing_of_its_square() -> None:
    """50,000 items: a matrix [n, n] would be 20 GB; all that is held is below a hundredth of that."""
    n, config = 50_000, Subspace(k=8, passes=2)
    sequences = market(users=4000, items=n, longest=6)
    tracemalloc.start()
    clients = [statistics("slist", CONFIG, part(sequences, a, a + 2000), n) for a in (0, 2000)]
    basis, total = find(config, clients, n)
    scores = fit_alone("slist", CONFIG, basis, total).score(inputs("slist", CONFIG, part(sequences, 0, 50), n))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert scores.shape == (50, n) and np.isfinite(scores).all() and scores.std() > 0
    assert peak < n * n * 8 / 100
