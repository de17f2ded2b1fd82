"""What others make of coordination problems, and how far our answer is from theirs.

A case is convex, and is handed to an interior-point solver, or not, and is handed to sequential quadratic programming
from the point that the ties led to. Neither knows anything of the code that is judged.
"""

import importlib
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from fedrec.errors import UserError
from fedrec.federation.coordination.minimise import newton
from fedrec.federation.coordination.solve import Solution, solve
from simulations.studies.constraint_problems import (
    NAMES,
    WIDTH,
    Array,
    Case,
    Multipliers,
    Problem,
    draw,
)


def cp() -> Any:
    """Return the convex solver; raises UserError without it."""
    try:
        return importlib.import_module("cvxpy")
    except ImportError:
        raise UserError("studies constraints: needs cvxpy (pip install 'fedrec[test]'), found none") from None


@dataclass(frozen=True)
class Answer:
    """The theta [n, d] of another solver, and its multipliers by tie."""

    theta: Array
    multipliers: Multipliers = field(default_factory=dict)


def by_convex_solver(case: Case, p: Problem) -> Answer:
    """Return the answer of an interior-point solver."""
    assert case.claims
    c = cp()
    theta = [c.Variable(WIDTH) for _ in NAMES]
    f = []
    for t, loss in zip(theta, p.losses, strict=True):
        root = np.linalg.cholesky(loss.hessian).T
        f.append(c.sum_squares(root @ t - root @ loss.centre) / 2 + loss.least)
    named, others, more = case.claims(p, theta, f)
    objective = sum(w * x for w, x in zip(p.weights, f, strict=True)) + more
    if case.objective == "minimax":
        objective = sum(p.weights) * c.maximum(*f)
    flat = [one for several in named.values() for one in (several if isinstance(several, list) else [several])]
    problem = c.Problem(c.Minimize(objective), [*flat, *others])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for tight in (1e-12, 1e-10, 1e-8):  # with cones it may stop short of what is asked
            with suppress(c.SolverError):
                problem.solve(solver=c.CLARABEL, tol_gap_abs=tight, tol_gap_rel=tight, tol_feas=tight)
                break
    if problem.status not in (c.OPTIMAL, c.OPTIMAL_INACCURATE):
        raise ArithmeticError(problem.status)
    duals = {
        tie: np.concatenate([np.atleast_1d(one.dual_value).reshape(-1) for one in (s if isinstance(s, list) else [s])])
        for tie, s in named.items()
    }
    return Answer(np.stack([t.value for t in theta]), duals)


def by_general_solver(case: Case, p: Problem, start: Array) -> Answer:
    """Return the answer of sequential quadratic programming from a start, its multipliers by least squares."""
    assert case.central
    central = case.central

    def total(theta: Tensor) -> Tensor:
        rows = theta.reshape(len(NAMES), WIDTH)
        return torch.stack([w * f(t) for w, f, t in zip(p.weights, p.losses, rows, strict=True)]).sum()

    def slope(function: Callable[[Tensor], Tensor], x: Array) -> Array:
        return np.asarray(torch.func.jacrev(function)(torch.from_numpy(x)).numpy())

    ties = central(p, torch.from_numpy(start))
    rules: list[dict[str, Any]] = []
    for tie, (_, unequal) in ties.items():

        def g(theta: Tensor, tie: str = tie) -> Tensor:
            return central(p, theta.reshape(len(NAMES), WIDTH))[tie][0]

        def minus(x: Array, g: Callable[[Tensor], Tensor] = g) -> Array:
            return -np.asarray(g(torch.from_numpy(x)).numpy())

        def minus_slope(x: Array, g: Callable[[Tensor], Tensor] = g) -> Array:
            return -slope(g, x)

        rules.append({"type": "ineq" if unequal else "eq", "fun": minus, "jac": minus_slope})
    found = minimize(
        lambda x: float(total(torch.from_numpy(x))),
        start.reshape(-1),
        jac=lambda x: slope(total, x),
        constraints=rules,
        method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-15},
    )
    x = found.x
    active, owners = [], []
    for (tie, (_, unequal)), rule in zip(ties.items(), rules, strict=True):
        value = -rule["fun"](x)
        for row, (gap_, normal) in enumerate(zip(value, -rule["jac"](x), strict=True)):
            if not unequal or gap_ > -1e-6:
                active.append(normal)
                owners.append((tie, row))
    multipliers = {tie: np.zeros(len(g)) for tie, (g, _) in ties.items()}
    if active:
        y = np.linalg.lstsq(np.stack(active).T, -slope(total, x), rcond=None)[0]
        for (tie, row), value in zip(owners, y, strict=True):
            multipliers[tie][row] = value
    return Answer(x.reshape(len(NAMES), WIDTH), multipliers)


def by_levels(p: Problem, start: Array) -> Answer:
    """Return the minimax of clients that agree: min t with f_i(z) <= t, by sequential quadratic programming."""

    def f(x: Array) -> Array:
        return np.array([float(loss(torch.from_numpy(x[:-1]))) for loss in p.losses])

    def slopes(x: Array) -> Array:
        return np.stack([loss.hessian @ (x[:-1] - loss.centre) for loss in p.losses])

    z, (ones, last) = start.mean(0), (np.ones((len(NAMES), 1)), np.eye(WIDTH + 1)[-1])
    found = minimize(
        lambda x: float(x[-1]),
        np.append(z, f(np.append(z, 0.0)).max()),
        jac=lambda _: last,
        constraints=[
            {"type": "ineq", "fun": lambda x: x[-1] - f(x), "jac": lambda x: np.hstack([-slopes(x), ones])},
        ],
        method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-15},
    )
    active = f(found.x) > found.x[-1] - 1e-7
    rows = np.vstack([slopes(found.x)[active].T, np.ones(active.sum())])
    total = np.append(np.zeros(WIDTH), sum(p.weights))
    y = np.zeros(len(NAMES))
    y[active] = np.linalg.lstsq(rows, total, rcond=None)[0]
    return Answer(np.stack([found.x[:-1]] * len(NAMES)), {"losses: minimax": y})


class Gap(NamedTuple):
    """How far a solution is from another solver's: coordinates, and multipliers relative to the largest.

    `lowest` is the least weight that a client's loss has in the other's, p_i + sum_j lambda_j dg_j/df_i, where losses
    are tied to each other.
    """

    primal: float
    multiplier: float
    lowest: float = math.inf


def far(case: Case, p: Problem, theta: Array, multipliers: Mapping[str, Array]) -> Gap:
    """Return how far a solution is from another solver's."""
    answer = by_convex_solver(case, p) if case.claims else by_general_solver(case, p, theta)
    if case.objective:  # at a cone an interior point stops short
        answer = by_levels(p, answer.theta)
    elif case.claims and case.central:
        answer = by_general_solver(case, p, answer.theta)
    known = {tie: y for tie, y in multipliers.items() if tie in answer.multipliers}
    lowest = math.inf
    if case.between:  # rows of f - mean f add up to 0: what is unique is what the losses weigh
        tie = next(tie for tie in answer.multipliers if tie.startswith("losses"))
        more = weighed(tie, answer.multipliers[tie])
        answer.multipliers[tie], lowest = more, float((np.array(p.weights) + more).min())
        known = {name: weighed(name, y) if name == tie else y for name, y in known.items()}
    each = [
        float(np.abs(y - answer.multipliers[tie]).max() / (1 + np.abs(answer.multipliers[tie]).max()))
        for tie, y in known.items()
    ]
    return Gap(float(np.abs(theta - answer.theta).max()), max(each, default=0.0), lowest)


def weighed(tie: str, y: Array) -> Array:
    """Return what the multipliers of a tie of losses to each other add to the weight of each f."""
    n = len(NAMES)
    if len(y) == 2 * n:
        one = y[:n] - y[n:]
        return np.asarray(one - one.mean())
    more = np.zeros(n)
    for place, sign in ((1, 1.0), (3, -1.0)):
        more[NAMES.index(tie.split()[place])] += sign * float(y[0])
    return more


def solved(case: Case, p: Problem, participation: float, rounds: int, seed: int) -> Solution:
    """Return our solution."""
    return solve(
        list(p.losses),
        [torch.zeros(WIDTH, dtype=torch.float64)] * len(NAMES),
        case.ties(p),
        rho=case.stiff * p.rho,
        rounds=rounds,
        local_solver=newton(),
        participation=participation,
        exchange=case.exchange,
        weights=p.weights,
        clients=NAMES,
        seed=seed,
        tolerance=1e-9,
    )


def contradicted(case: Case, seed: int, participation: float, rounds: int) -> Solution:
    """Return what becomes of ties that contradict each other; a few hundred rounds tell."""
    return solved(case, draw(seed), participation, min(rounds, 400), seed)
