"""The point nearest to V that meets constraints: known answers, another solver's, and what nobody can meet."""

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedrec.errors import UserError
from fedrec.federation.coordination.projection import Rows, project
from tests.quadratics import minimise

cp: Any = importlib.import_module("cvxpy")  # it has no types


def rows(g: Callable[[Tensor], Tensor], *inequality: bool, straight: bool = False) -> Rows:
    """Return constraints, of which none is a mere pull."""
    return Rows(g, torch.tensor(inequality), torch.full((len(inequality),), math.inf).double(), straight)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ones(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.float64)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_the_projection_is_the_optimum_by_its_conditions_and_a_convex_solver(seed: int) -> None:
    g = np.random.default_rng(seed)
    a, b, c, d = g.normal(size=(2, 8)), g.normal(size=2) / 2, g.normal(size=(4, 8)), g.normal(size=4) / 2
    v, m = g.normal(size=8), g.uniform(0.5, 2, 8)
    ta, tb, tc, td = map(torch.from_numpy, (a, b, c, d))
    found = project(
        torch.from_numpy(v),
        torch.from_numpy(m),
        rows(lambda z: torch.cat([ta @ z - tb, tc @ z - td, z.square().sum()[None] - 9]), *[False] * 2, *[True] * 5),
    )
    x = cp.Variable(8)
    rules = [a @ x == b, c @ x <= d, cp.sum_squares(x) <= 9]
    problem = cp.Problem(cp.Minimize(cp.sum(cp.multiply(m / 2, cp.square(x - v)))), rules)
    problem.solve(solver=cp.CLARABEL)
    if problem.status == cp.INFEASIBLE:
        assert found.ray is not None
        return
    assert found.ray is None
    minimise(problem.objective.args[0], rules, 1e-12)
    # With a cone it stops short: its point is no better than ours, whose conditions hold and make it the one optimum.
    z, y = found.z.numpy(), found.y.numpy()
    gap, slack = z - v, np.concatenate([c @ z - d, [z @ z - 9]])
    assert float(m @ gap**2 / 2) <= problem.value + 1e-6
    slope = m * gap + a.T @ y[:2] + c.T @ y[2:6] + 2 * y[6] * z
    np.testing.assert_allclose(slope, 0, atol=1e-6 * (1 + np.abs(y).max()))
    np.testing.assert_allclose(a @ z, b, atol=1e-9)
    assert slack.max() < 1e-9 and y[2:].min() >= 0 and np.abs(slack * y[2:]).max() < 1e-6 * (1 + np.abs(y).max())
    np.testing.assert_allclose(z, x.value, atol=2e-3)


def test_the_nearest_orthonormal_columns_are_the_polar_factor() -> None:
    g = torch.Generator().manual_seed(1)
    v = torch.randn(8, 3, generator=g, dtype=torch.float64)
    i = torch.triu_indices(3, 3)

    def gram(z: Tensor) -> Tensor:
        t = z.reshape(8, 3)
        return (t.T @ t - torch.eye(3).double())[i[0], i[1]]

    u, _, w = torch.linalg.svd(v, full_matrices=False)
    found = project(v.reshape(-1), ones(24), rows(gram, *[False] * 6))
    torch.testing.assert_close(found.z.reshape(8, 3), u @ w, atol=1e-9, rtol=0)


def test_outside_a_ball_is_along_the_ray() -> None:
    """|z| >= 2 from (.3, .4): z = 2 (.6, .8), and z - v = 2 y z, so that y = (2 - .5) / 4."""
    found = project(vector(0.3, 0.4), ones(2), rows(lambda z: (4 - z.square().sum())[None], True))
    torch.testing.assert_close(found.z, vector(1.2, 1.6), atol=1e-9, rtol=0)
    assert float(found.y) == pytest.approx(0.375, abs=1e-8)


def test_a_pull_is_a_penalty_and_no_constraint() -> None:
    """min 1/2 |z - v|^2 + s/2 (z_1 - z_2)^2 moves the gap from 1 to 1 / (1 + 2 s)."""
    pull = Rows(lambda z: (z[0] - z[1])[None], torch.tensor([False]), vector(3.0), True)
    found = project(vector(1.0, 0.0), ones(2), pull)
    assert float(found.z[0] - found.z[1]) == pytest.approx(1 / 7, abs=1e-12)
    assert float(found.residual) == 0.0


def test_beside_a_closed_form_the_point_is_that_of_both() -> None:
    """z_1 = z_2 by its closed form, z_1 <= .2 by a multiplier: of v = (1, 2) both are .2, and y = 1 - .2 + 2 - .2."""

    def mean(v: Tensor) -> Tensor:
        return v.mean().expand(2)

    found = project(vector(1.0, 2.0), ones(2), rows(lambda z: z[:1] - 0.2, True, straight=True), mean)
    torch.testing.assert_close(found.z, vector(0.2, 0.2), atol=1e-10, rtol=0)
    assert float(found.y) == pytest.approx(2.6, abs=1e-9)


@pytest.mark.parametrize("beyond", [-1.0, -1e-4, 0.0, 1e-4, 1.0, 95.0])
def test_a_sum_that_a_box_cannot_hold_is_a_contradiction(beyond: float) -> None:
    """Four numbers of at most 1 add up to at most 4."""
    g = torch.Generator().manual_seed(0)
    v = torch.randn(4, 6, generator=g, dtype=torch.float64)

    def both(z: Tensor) -> Tensor:
        t = z.reshape(4, 6)
        return torch.cat([t.sum(0) - (4 + beyond), z - 1, -z - 1])

    found = project(v.reshape(-1), ones(24), rows(both, *[False] * 6, *[True] * 48, straight=True))
    assert (found.ray is not None) == (beyond > 0)
    if found.ray is None:
        assert float(found.residual.max()) < 1e-10
    else:  # w'g is what it is whatever z: its slope vanishes, and so it is above 0 everywhere
        slope = torch.func.vjp(both, found.z)[1](found.ray)[0]
        assert float(slope.abs().max()) < 1e-6 * float(found.ray.abs().max())
        for other in torch.randn(5, 24, generator=g, dtype=torch.float64):
            assert float(found.ray @ both(10 * other)) > 0


def test_a_square_that_is_to_be_negative_is_a_contradiction() -> None:
    found = project(vector(0.3, 0.4), ones(2), rows(lambda z: (z.square().sum() + 1)[None], False))
    assert found.ray is not None and float(found.residual) == pytest.approx(1.0, abs=1e-6)


def test_many_rows_are_met_without_their_jacobian() -> None:
    """x = 2 y + .1 and u <= w + .05, entry by entry, of 20,000 entries: each pair has its closed form."""
    g = torch.Generator().manual_seed(0)
    v = torch.randn(4, 20_000, generator=g, dtype=torch.float64)

    def pairs(z: Tensor) -> Tensor:
        x, y, u, w = z.reshape(4, -1)
        return torch.cat([x - 2 * y - 0.1, u - w - 0.05])

    unequal = torch.cat([torch.zeros(20_000), torch.ones(20_000)]).bool()
    found = project(v.reshape(-1), ones(80_000), Rows(pairs, unequal, torch.full((40_000,), math.inf).double(), True))
    x, y, u, w = v
    excess, over = (x - 2 * y - 0.1) / 5, (u - w - 0.05).clamp(min=0) / 2
    expected = torch.stack([x - excess, y + 2 * excess, u - over, w + over])
    torch.testing.assert_close(found.z.reshape(4, -1), expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(found.y, torch.cat([excess, over]), atol=1e-8, rtol=0)


def test_multipliers_to_begin_with_change_nothing_but_the_way() -> None:
    def g(z: Tensor) -> Tensor:
        return torch.stack([z.square().sum() - 1, z[0] - z[1]])

    cold = project(vector(2.0, 1.0, 0.5), ones(3), rows(g, True, False))
    warm = project(vector(2.0, 1.0, 0.5), ones(3), rows(g, True, False), start=cold.y)
    torch.testing.assert_close(warm.z, cold.z, atol=1e-8, rtol=0)
    assert warm.steps <= cold.steps


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(UserError, match=r"^tie: must be 1 finite numbers, found others"):
        project(vector(-1.0), ones(1), rows(lambda z: z.log(), False))
