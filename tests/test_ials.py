"""Implicit ALS by sums: the pooled sweep, the objective, its fixed points, and platforms that meet in their users."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array, vstack

from fedrec.models.ials import (
    Ials,
    Tie,
    begin,
    item_sums,
    objective,
    products,
    solve_items,
    solve_users,
    square,
    sweep,
)

SMALL = Ials(d=3, unliked=0.2, ridge=0.05)


def market(users: int = 30, items: int = 12, seed: int = 0) -> csr_array:
    rng = np.random.default_rng(seed)
    return csr_array((rng.random((users, items)) < 0.3).astype(float))


def keys(n: int) -> list[str]:
    return [str(i) for i in range(n)]


@given(st.lists(st.integers(0, 30), max_size=4), st.integers(0, 5))
def test_a_sweep_over_any_partition_of_the_users_is_that_over_all_of_them(cuts: list[int], seed: int) -> None:
    liked, bounds = market(seed=seed), [0, *sorted(cuts), 30]
    parts = [liked[a:b] for a, b in pairwise(bounds)]
    y = begin(SMALL, seed, keys(12))
    np.testing.assert_allclose(sweep(SMALL, parts, y), sweep(SMALL, [liked], y), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("nu", [0.0, 0.5, 1.0])
def test_it_is_alternating_least_squares_row_by_row(nu: float) -> None:
    """The normal equations of the loss, written out for every user and every item with dense weights."""
    config, liked = SMALL.model_copy(update={"nu": nu}), market()
    x, y = liked.toarray(), begin(config, 1, keys(12))
    a, ridge = config.unliked, config.ridge
    p = np.stack(
        [
            np.linalg.solve(y.T @ np.diag(row + a) @ y + ridge * (row.sum() + a * 12) ** nu * np.eye(3), y.T @ row)
            for row in x
        ]
    )
    expected = np.stack(
        [
            np.linalg.solve(p.T @ np.diag(row + a) @ p + ridge * (row.sum() + a * 30) ** nu * np.eye(3), p.T @ row)
            for row in x.T
        ]
    )
    np.testing.assert_allclose(solve_users(config, liked, y), p, rtol=1e-9)
    np.testing.assert_allclose(sweep(config, [liked], y), expected, rtol=1e-9)


def test_every_half_of_a_sweep_lowers_the_objective_until_it_rests() -> None:
    liked, y = market(), begin(SMALL, 0, keys(12))
    values = []
    for _ in range(400):
        p = solve_users(SMALL, liked, y)
        values.append(objective(SMALL, liked, p, y))
        y = solve_items(SMALL, item_sums(liked, p))
        values.append(objective(SMALL, liked, p, y))
    assert np.diff(values).max() < 1e-9 * values[0]
    assert values[-1] < 0.8 * values[0]
    step = 1e-5 * np.random.default_rng(0).standard_normal((2, 30, 3))
    for sign in (1, -1):  # at rest: no direction leads down
        assert objective(SMALL, liked, p + sign * step[0], y) > values[-1]
        assert objective(SMALL, liked, p, y + sign * step[1, :12]) > values[-1]


def test_a_client_without_users_adds_nothing_and_an_item_without_likes_is_zero() -> None:
    liked = market()
    liked = csr_array(liked.toarray() * (np.arange(12) != 4))
    y = begin(SMALL, 0, keys(12))
    with_empty = sweep(SMALL, [liked, liked[:0]], y)
    np.testing.assert_array_equal(with_empty, sweep(SMALL, [liked], y))
    np.testing.assert_allclose(with_empty[4], 0, atol=1e-15)


def test_the_start_of_a_row_is_of_its_key() -> None:
    np.testing.assert_array_equal(begin(SMALL, 3, ["a", "b"])[1], begin(SMALL, 3, ["b", "c"])[0])


def test_a_triangle_is_of_the_square() -> None:
    x = np.random.default_rng(0).standard_normal((4, 5))
    np.testing.assert_array_equal(square(products(x), 5), x[:, :, None] * x[:, None])


def test_platforms_with_the_same_users_and_other_items_agree_on_pooled_factors() -> None:
    """Consensus by ADMM with exact inner solves: at rest all have one P, at which the pooled objective rests too."""
    parts = [market(items=6, seed=1), market(items=9, seed=2)]
    ys = [begin(SMALL, 5, [f"{n}{i}" for i in range(x.shape[1])]) for n, x in enumerate(parts)]
    rho, duals = 1.0, [np.zeros((30, 3))] * 2
    ps = [solve_users(SMALL, x, y) for x, y in zip(parts, ys, strict=True)]
    z = np.sum(ps, 0) / 2
    for _ in range(2000):
        ps = [solve_users(SMALL, x, y, Tie(z - u, rho)) for x, y, u in zip(parts, ys, duals, strict=True)]
        ys = [solve_items(SMALL, item_sums(x, p)) for x, p in zip(parts, ps, strict=True)]
        z = (np.sum(ps, 0) + np.sum(duals, 0)) / 2
        duals = [u + p - z for p, u in zip(ps, duals, strict=True)]
    assert max(np.abs(p - z).max() for p in ps) < 1e-6
    pooled = csr_array(np.hstack([x.toarray() for x in parts]))
    np.testing.assert_allclose(solve_users(SMALL, pooled, np.vstack(ys)), z, atol=1e-5)
    np.testing.assert_allclose(solve_items(SMALL, item_sums(pooled, z)), np.vstack(ys), atol=1e-5)
    assert np.abs(z).max() > 0.05  # not the rest that says nothing


def test_tied_for_ever_users_are_where_they_are_tied() -> None:
    target = np.random.default_rng(0).standard_normal((30, 3))
    found = solve_users(SMALL, market(), begin(SMALL, 0, keys(12)), Tie(target, 1e9))
    np.testing.assert_allclose(found, target, rtol=1e-6, atol=1e-6)


def test_users_twice_are_as_many_users() -> None:
    """Sums count users: the same ones again change the items only by what the ridge weighs."""
    liked, y = market(), begin(SMALL, 0, keys(12))
    config = SMALL.model_copy(update={"nu": 1.0})  # the ridge doubles too
    np.testing.assert_allclose(
        sweep(config, [csr_array(vstack([liked, liked]))], y), sweep(config, [liked], y), rtol=1e-9, atol=1e-13
    )
