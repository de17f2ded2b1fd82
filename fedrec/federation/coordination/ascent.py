"""The solver of coupled quadratics: linear systems, a concave dual in a few multipliers, and a box by splitting."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import fedrec.federation.coordination.systems as systems
from fedrec.errors import UserError
from fedrec.federation.coordination.operators import Ball, Box, Clusters, Mean, Mixture, Operator, SumTo
from fedrec.federation.coordination.quadratic import (
    Certificate,
    Multipliers,
    Objective,
    Problem,
    certify,
    excesses,
    inverse,
    parts,
    scales,
    values,
)

GAP = 1e-10  # of primal and dual, relative to the size of the objective: where the solver stops
ROOM = 1e-12  # by which constraints are tightened, relative to their size, so that rounding breaks none


@dataclass(frozen=True)
class Solution:
    """Every client's W_i, [clients, n, q], and what proves it."""

    w: Tensor
    certificate: Certificate


@dataclass(frozen=True)
class _Point:
    """The minimiser of the Lagrangian under the multipliers t of `excesses`, and the dual there with its gradient."""

    t: Tensor
    w: Tensor
    lam: Tensor | None
    value: float
    slope: Tensor  # p_i (excess + room)
    inverse: systems.Solve


def solve(problem: Problem, most: int = 300) -> Solution:
    """Return the W_i of a problem with their certificate: gap at most 1e-10 of the objective's size, nothing broken.

    Raises UserError where the budgets cannot be kept together, or leave so little room that no multiplier is found.
    """
    t = torch.zeros(len(problem.budgets) + len(problem.balls), dtype=torch.float64)
    point = minimise(problem, t)
    for step in range(most):
        found = certify(problem, point.w, multipliers(problem, point.t, point.lam))
        if found.gap <= GAP * found.scale and found.violation <= ROOM:
            return Solution(point.w, found)
        if step % 5 == 4:
            refuse_impossible(problem, point.t)
        new = ascend(problem, point)
        if new is None:
            break
        point = new
    refuse_impossible(problem, point.t)
    raise UserError(
        "coupling: must leave room to be solved exactly, "
        f"found a gap of {found.gap / found.scale:.1e} and a violation of {found.violation:.1e} after {step + 1} steps"
    )


def multipliers(problem: Problem, t: Tensor, lam: Tensor | None) -> Multipliers:
    """Return the multipliers by client, of t in the order of `excesses`."""
    mu, nu = torch.zeros_like(problem.weights), torch.zeros_like(problem.weights)
    mu[problem.budgets], nu[problem.balls] = t[: len(problem.budgets)], t[len(problem.budgets) :]
    return Multipliers(mu, nu, lam)


def minimise(problem: Problem, t: Tensor) -> _Point:
    """Return the minimiser of the Lagrangian under t >= 0."""
    by = multipliers(problem, t, None)
    d, r = parts(problem, by.mu, by.nu)
    w, lam, back = minimiser(problem, d, r)
    owners = [*problem.budgets, *problem.balls]
    weights = problem.weights[owners]
    slope = weights * (excesses(problem, w) + ROOM / 2 * scales(problem, w))
    return _Point(t, w, lam, values(problem, w)[0] + float(t @ slope), slope, back)


def curvature(problem: Problem, point: _Point) -> Tensor:
    """Return minus the Hessian of the dual, <c_k, K^-1 c_l> of the constraints' gradients c.

    With a box it is that of the entries which the box leaves free, where K has the others free too: not below the true.
    """
    normals = []
    for k, i in enumerate([*problem.budgets, *problem.balls]):
        promise = problem.promises[i] if k < len(problem.budgets) else None
        own = point.w[i] if promise is None else promise.loss.gradient(point.w[i])
        free = 1.0 if point.lam is None else (point.lam[i] == 0).double()
        normals.append((i, problem.weights[i] * own * free))
    rows = []
    for i, normal in normals:
        rhs = torch.zeros_like(point.w)
        rhs[i] = normal
        answer = point.inverse(rhs)
        rows.append([float(answer[k].mul(other).sum()) for k, other in normals])
    found = torch.tensor(rows, dtype=torch.float64)
    return (found + found.T) / 2


def minimiser(
    problem: Problem, d: Sequence[Tensor], r: Sequence[Tensor]
) -> tuple[Tensor, Tensor | None, systems.Solve]:
    """Return argmin 1/2 <W, (D + Q) W> - <R, W> in the coupling and its box, the box's multipliers, and the inverse."""
    rhs = torch.stack(list(r))
    start = torch.full_like(rhs, problem.offset)
    rhs = rhs - torch.stack([a @ x for a, x in zip(d, start, strict=True)])
    back = inverse(problem, d)
    w = start + back(rhs)
    if not isinstance(problem.convex, Box) or float(w.abs().max()) <= problem.convex.bound:
        return w, None, back
    bound, eye = problem.convex.bound, torch.eye(len(d[0]), dtype=torch.float64)
    extremes = torch.linalg.eigvalsh(torch.stack(list(d)).mean(0))
    rho = float((extremes[0] * extremes[-1]).sqrt())
    near = inverse(problem, [x + rho * eye for x in d])
    z, u = w.clamp(-bound, bound), torch.zeros_like(w)
    for _ in range(20_000):
        x = start + near(rhs + rho * (z - u - start))
        mixed = 1.6 * x - 0.6 * z  # over-relaxed
        new = (mixed + u).clamp(-bound, bound)
        u = mixed + u - new
        moved, apart, z = float((new - z).abs().max()), float((x - new).abs().max()), new
        if max(moved, apart) <= 1e-14 * bound:
            break
    return z, rho * u, back


def ascend(problem: Problem, point: _Point) -> _Point | None:
    """Return the next point of projected Newton steps on the dual, with backtracking; None where none is higher."""
    free = (point.t > 0) | (point.slope > 0)
    if not bool(free.any()):
        return None
    direction, whole = torch.zeros_like(point.t), curvature(problem, point)
    while True:
        h = whole[free][:, free]
        h = h + 1e-14 * h.diagonal().max() * torch.eye(len(h), dtype=torch.float64)
        direction[free] = torch.linalg.solve(h, point.slope[free])
        out = free & (point.t == 0) & (direction < 0)
        if not bool(out.any()):
            break
        free, direction = free & ~out, torch.zeros_like(direction)
    step, slack = 1.0, 1e-13 * (abs(point.value) + abs(float(point.t @ point.slope)))
    while step > 1e-10:
        t = (point.t + step * direction).clamp(min=0)
        new = minimise(problem, t)
        if new.value >= point.value + 1e-4 * float(point.slope @ (t - point.t)) - slack:
            return new
        step /= 2
    return None


def refuse_impossible(problem: Problem, t: Tensor) -> None:
    """Raise UserError if the multipliers prove that no W keeps all budgets: min_W sum_k t_k (their excess) > 0."""
    by = multipliers(problem, t / t.sum().clamp(min=1e-300), None)
    inside = [i for i in range(len(problem.weights)) if float(by.mu[i] + by.nu[i]) > 0]
    if not inside:
        return
    losses, limit = [], 0.0
    for i in inside:
        promise, n = problem.promises[i], len(problem.objectives[i].gram)
        loss = Objective(torch.zeros(n, n).double(), torch.zeros_like(problem.objectives[i].cross), 0.0)
        loss = loss if promise is None else promise.loss
        gram, tiny = by.mu[i] * loss.gram, 1e-13 * float(by.mu[i] * loss.gram.diagonal().sum())
        losses.append(Objective(gram, by.mu[i] * loss.cross, by.mu[i] * loss.rows[:, 0] + by.nu[i] + tiny))
        limit += float(problem.weights[i] * by.mu[i]) * (0 if promise is None else promise.limit)
        limit += float(problem.weights[i] * by.nu[i]) * ball_of(problem) ** 2 / 2
    weights = problem.weights[inside]
    tied = Problem(tuple(losses), weights, tied_alone(problem, inside), (None,) * len(inside), problem.hollow)
    least = minimise(tied, torch.zeros(0).double()).value - limit
    if least > 1e-9 * abs(limit):
        raise UserError(
            "budget: must be one that the clients can keep together, found limits of which every choice of "
            f"parameters breaks one by {least / float((weights * (by.mu + by.nu)[inside]).sum()):.3g} or more"
        )


def ball_of(problem: Problem) -> float:
    """Return the radius, 0 without one."""
    return problem.convex.radius if isinstance(problem.convex, Ball) else 0.0


def tied_alone(problem: Problem, members: Sequence[int]) -> Operator:
    """Return what W in C says of some clients alone: nothing where it is only pulled, or another can make up for it."""
    tie = systems.inner(problem.operator)
    if isinstance(tie, Mean | Clusters | Mixture) or (isinstance(tie, SumTo) and len(members) == len(problem.weights)):
        return tie.restrict(members)
    return Clusters(tuple(range(len(members))))
