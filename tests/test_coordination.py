"""Coordination problems of quadratics against a convex solver: couplings, sets, budgets; the adaptive penalty."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedrec.errors import UserError
from fedrec.federation.coordination.minimise import newton
from fedrec.federation.coordination.operators import Ball, Box, Mean, Within
from fedrec.federation.coordination.solve import solve
from tests.quadratics import OPERATORS, Problem, Quadratic, apart, problem

SIZES = [(0, 4, 6, 10.0, True), (1, 6, 16, 100.0, False), (2, 8, 50, 1000.0, False)]  # seed, n, d, condition, p_i = 1


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"n{size[1]}-d{size[2]}")
@pytest.mark.parametrize("name", [*OPERATORS, "partial", "outputs"])
def test_the_solution_is_that_of_a_convex_solver(name: str, size: tuple[int, int, int, float, bool]) -> None:
    p = problem(name, *size)
    found, (reference, _) = p.solved(), p.by_solver()
    assert apart(found.theta, reference) < 1e-6
    assert apart(found.theta, p.by_elimination()) < 1e-6
    assert apart(found.x, found.z) < 1e-7


def bounded(name: str, size: tuple[int, int, int, float, bool]) -> Problem:
    """Return a problem with a set that cuts off the free solution."""
    p = problem(name, *size)
    free = p.by_elimination()
    if name == "graph":
        bound = 0.5 * max(float(np.abs(x).max()) for x in free)
        return replace(p, bound=bound, operator=Within(p.claim.operator, Box(bound)))
    radius = 0.7 * max(float(np.linalg.norm(x)) for x in free)
    return replace(p, radius=radius, operator=Within(p.claim.operator, Ball(radius)))


@pytest.mark.parametrize(
    ("name", "size"),
    [*(("mean", size) for size in SIZES), *((n, s) for n in ("mean-regularised", "graph") for s in SIZES[:2])],
)
def test_a_convex_set_is_met(name: str, size: tuple[int, int, int, float, bool]) -> None:
    p = bounded(name, size)
    found, (reference, _) = p.solved(), p.by_solver()
    assert apart(found.theta, reference) < 1e-5
    assert apart(found.theta, p.by_elimination()) > 1e-2, "the set must bind"


def budgeted(size: tuple[int, int, int, float, bool], boost: float) -> Problem:
    """Return consensus in which clients 0 and 1 are promised what they get if they weigh `boost` times as much.

    Client 2's budget has slack.
    """
    p = problem("mean", *size)
    better = replace(p, p=[w * boost if i < 2 else w for i, w in enumerate(p.p)]).by_elimination()
    limits = [1.02 * float(f(torch.from_numpy(better[0]))) for f in p.losses]
    return replace(p, budgets=[limits[0], limits[1], 2 * limits[2], *[None] * (len(limits) - 3)])


@pytest.mark.parametrize("size", [(5, 5, 8, 10.0, True), (1, 6, 16, 100.0, False)], ids=["n5-d8", "n6-d16"])
def test_multipliers_are_the_solvers(size: tuple[int, int, int, float, bool]) -> None:
    p = budgeted(size, 2.0)
    found, (reference, mu) = p.solved(1e-9, 1500, balance=True, budget_step=1.0), p.by_solver()
    assert max(mu) > 0.1, "a budget must bind"
    assert np.allclose(found.mu, mu, rtol=0, atol=1e-4)
    assert apart(found.theta, reference) < 1e-4
    f = [float(loss(t)) for loss, t in zip(p.losses, found.theta, strict=True)]
    for value, limit, price in zip(f, p.budgets or [], found.mu, strict=True):
        assert (price == 0.0) if limit is None else abs(price * (value - limit)) < 1e-6 * value
    assert found.history[-1].violation < 1e-6
    assert found.history[-1].multipliers == tuple(found.mu)
    assert found.feasible


@pytest.mark.parametrize("step", [0.03, 3.0])
def test_budgets_that_no_consensus_meets_are_infeasible(step: float) -> None:
    """Every client alone reaches f_i = 0, but no common theta is at 2% of the consensus's losses for all."""
    p = problem("mean", *SIZES[0])
    common = torch.from_numpy(p.by_elimination()[0])
    found = replace(p, budgets=[0.02 * float(f(common)) for f in p.losses]).run(100, budget_step=step)
    assert not found.feasible
    early, late = found.history[49], found.history[99]
    assert late.violation > 0.9 * early.violation > 0.1
    assert max(late.multipliers) > 1.5 * max(early.multipliers)


def test_the_smallest_feasible_budget_in_closed_form() -> None:
    """t^2/2 <= b and (t - 2)^2/2 <= b: both hold for some t if and only if b >= 1/2 (t = 1)."""
    losses = [Quadratic(torch.eye(1, dtype=torch.float64), torch.tensor([c], dtype=torch.float64)) for c in (0.0, 2.0)]
    start = [torch.zeros(1), torch.zeros(1)]
    for limit, feasible in ((0.45, False), (0.55, True)):
        found = solve(
            losses, start, Mean(), rho=1.0, rounds=200, local_solver=newton(), budgets=[limit, limit], budget_step=1.0
        )
        assert found.feasible is feasible
    assert found.history[-1].violation < 1e-6


def test_a_budget_that_binds_nobody_changes_nothing() -> None:
    p = problem("mean", *SIZES[0])
    free = p.run(30)
    slack = replace(p, budgets=[1e3] * 4).run(30)
    assert slack.mu == [0.0] * 4
    assert apart(slack.z, free.z) < 1e-12


@pytest.mark.parametrize("bad", [1e-3, 1e3])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_residual_balancing_mends_a_bad_rho_whatever_the_scale_of_the_losses(bad: float, scale: float) -> None:
    p = problem("mean", *SIZES[0])
    p = replace(p, losses=[Quadratic(scale * f.hessian, f.centre) for f in p.losses])
    answer = p.by_elimination()
    fixed, adapted = (p.run(150, rho=bad * p.rho, balance=balance) for balance in (False, True))
    assert apart(fixed.theta, answer) > 1e-2
    assert apart(adapted.theta, answer) < 1e-6
    assert 0.05 < adapted.rho / p.rho < 20
    assert adapted.history[0].rho == bad * p.rho != adapted.history[-1].rho


def test_balancing_leaves_the_answer_of_operators_that_depend_on_rho() -> None:
    p = problem("graph", *SIZES[0])
    assert apart(p.run(150, rho=1e-3 * p.rho, balance=True).theta, p.by_elimination()) < 1e-6


def test_arguments_that_do_not_fit_are_refused() -> None:
    p = problem("outputs", *SIZES[0])
    with pytest.raises(UserError, match=r"^rho: must be above 0 with duals or a map as exchange, found 0"):
        p.run(1, rho=0.0, duals=False)
    with pytest.raises(UserError, match=r"^budgets: must have one entry for each of the 4 losses, found 1"):
        replace(p, budgets=[1.0]).run(1)
    with pytest.raises(UserError, match=r"^weights: must be above 0, found 0"):
        replace(p, p=[1.0, 0.0, 1.0, 1.0]).run(1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_rounds_by_name(bad: float) -> None:
    """Client 1's loss turns bad in round 3; what is tied to it would follow."""
    calls = [0]

    def turning(theta: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return (theta - 1).square().sum() + (
            bad if calls[0] > 4 else 0.0
        )  # a round asks twice: after it, and for its line

    losses = [lambda theta: theta.square().sum(), turning]
    start = [torch.zeros(2, dtype=torch.float64)] * 2
    with pytest.raises(UserError, match=rf"^losses: must be finite, found {bad} for client 1 in round 3$"):
        solve(losses, start, Mean(), rho=1.0, rounds=5, local_solver=lambda loss, theta: theta)
    with pytest.raises(
        UserError, match=r"^local_solver: must return finite values, found others for client 0 in round 1$"
    ):
        solve(losses, start, Mean(), rho=1.0, rounds=5, local_solver=lambda loss, theta: theta * bad)
