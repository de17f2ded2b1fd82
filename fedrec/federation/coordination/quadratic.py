"""Coupled quadratics, solved exactly: every coupling, set and budget on W_i, with an optimality gap that is proved.

minimise sum_i p_i f_i(W_i) + h(W) subject to W in C, |W_i| <= radius or |W_i,jk| <= bound, and g_i(W_i) <= b_i,
f_i(W) = 1/2 <W, (G_i + ridge_i) W> - <C_i, W>. Multipliers mu_i of the budgets and nu_i of the balls make it a linear
system (`systems`); they maximise the concave dual by projected Newton steps, exact in its Hessian.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

import fedrec.federation.coordination.systems as systems
from fedrec.errors import UserError
from fedrec.federation.coordination.operators import Ball, Box, Operator, SumTo, Within


@dataclass(frozen=True)
class Objective:
    """f(W) = 1/2 <W, (gram + ridge) W> - <cross, W>, all float64.

    gram [n, n] is positive semidefinite, cross [n, q], and ridge a number or one for each of n rows, [n].
    """

    gram: Tensor
    cross: Tensor
    ridge: Tensor | float

    @property
    def rows(self) -> Tensor:
        """Return the ridge of every row, [n, 1]."""
        return torch.as_tensor(self.ridge, dtype=torch.float64).expand(len(self.gram))[:, None]

    @property
    def modulus(self) -> float:
        """Return what f is strongly convex by, whatever the sums are."""
        return float(self.rows.min())

    def times(self, factor: float) -> "Objective":
        """Return factor f."""
        return Objective(factor * self.gram, factor * self.cross, factor * self.rows[:, 0])

    @property
    def hessian(self) -> Tensor:
        """Return gram + ridge."""
        return self.gram + torch.diag(self.rows[:, 0])

    def gradient(self, w: Tensor) -> Tensor:
        """Return the gradient at W."""
        return self.gram @ w + self.rows * w - self.cross

    def value(self, w: Tensor) -> float:
        """Return f(W)."""
        return float(((self.gram @ w + self.rows * w) / 2 - self.cross).mul(w).sum())


@dataclass(frozen=True)
class Promise:
    """A budget: loss(W_i) <= limit, of a loss that may be the client's own or that of rows held out."""

    loss: Objective
    limit: float


@dataclass(frozen=True)
class Problem:
    """Clients' objectives, weights p_i > 0, a coupling, budgets; `hollow` says that every W_i has a zero diagonal."""

    objectives: tuple[Objective, ...]
    weights: Tensor
    operator: Operator
    promises: tuple[Promise | None, ...]
    hollow: bool = False

    def __post_init__(self) -> None:
        """Refuse what has no exact solution; raises UserError."""
        shapes = {(x.gram.shape, x.cross.shape) for x in self.objectives}
        if len(shapes) != 1 or not len(self.objectives) == len(self.weights) == len(self.promises):
            raise UserError(
                f"sums: must be of one shape for each client, with a weight and a budget or none, found {len(shapes)} "
                f"shapes of {len(self.objectives)} clients, {len(self.weights)} weights, {len(self.promises)} budgets"
            )
        lowest = min(x.modulus for x in self.objectives)
        if not (lowest > 0 and bool((self.weights > 0).all())):
            raise UserError(f"ridge: must be above 0, as every weight, found {lowest} and {float(self.weights.min())}")
        tie = systems.inner(self.operator)
        if isinstance(tie, SumTo) and not isinstance(tie.total, float | int):
            raise UserError("coupling.total: must be a number to be solved from sums, found a tensor")
        if isinstance(tie, SumTo) and self.hollow and tie.total:
            raise UserError(f"coupling.total: must be 0 for parameters with a zero diagonal, found {tie.total}")

    @property
    def offset(self) -> float:
        """Return what every entry of X_0 is."""
        tie = systems.inner(self.operator)
        return float(tie.total) / len(self.objectives) if isinstance(tie, SumTo) else 0.0

    @property
    def convex(self) -> Ball | Box | None:
        """Return the set that every W_i lies in."""
        return self.operator.convex if isinstance(self.operator, Within) else None

    @property
    def span(self) -> Tensor:
        """Return B [clients, r] of the coupling."""
        return systems.span(self.operator, len(self.objectives))

    @property
    def balls(self) -> list[int]:
        """Return the clients whose W_i is to be kept in the ball, one for each that the coupling lets differ."""
        rows = [tuple(row) for row in self.span.tolist()]
        return [rows.index(row) for row in dict.fromkeys(rows)] if isinstance(self.convex, Ball) else []

    @property
    def budgets(self) -> list[int]:
        """Return the clients with a budget."""
        return [i for i, promise in enumerate(self.promises) if promise is not None]


@dataclass(frozen=True)
class Multipliers:
    """mu_i of the budgets, nu_i of |W_i|^2 / 2 <= radius^2 / 2, in units of p_i; lam_i [n, q] of |W_i,jk| <= bound."""

    mu: Tensor
    nu: Tensor
    lam: Tensor | None = None


@dataclass(frozen=True)
class Certificate:
    """What proves a solution: for no choice of W is the objective below `dual`, and at this one it is `primal`.

    `violation` is the largest breach of a constraint and `residual` the gradient of the Lagrangian over the span of the
    coupling, both relative to their scale. The multipliers prove `dual` without the solver: it is the Lagrangian less
    |gradient|^2 / (2 modulus), with the ridge as the modulus of strong convexity.
    """

    primal: float
    dual: float
    violation: float
    residual: float
    scale: float
    multipliers: Multipliers = field(repr=False)

    @property
    def gap(self) -> float:
        """Return primal - dual."""
        return self.primal - self.dual


def values(problem: Problem, w: Tensor) -> tuple[float, float]:
    """Return sum_i p_i f_i(W_i) + h(W), and the size sum_i p_i |f_i(W_i)| + h(W) that its accuracy is relative to."""
    p, q = problem.weights, systems.pull(problem.operator, problem.weights)
    f = [float(a) * one.value(x) for a, one, x in zip(p, problem.objectives, w, strict=True)]
    h = float(torch.tensordot(q, w, 1).mul(w).sum()) / 2
    return sum(f) + h, sum(map(abs, f)) + h


def excesses(problem: Problem, w: Tensor) -> Tensor:
    """Return g_i(W_i) - b_i of every budget, then (|W_i|^2 - radius^2) / 2 of every ball."""
    found = []
    for i, promise in enumerate(problem.promises):
        if promise is not None:
            found.append(promise.loss.value(w[i]) - promise.limit)
    if isinstance(problem.convex, Ball):
        found += [(float(w[i].square().sum()) - problem.convex.radius**2) / 2 for i in problem.balls]
    return torch.tensor(found, dtype=torch.float64)


def scales(problem: Problem, w: Tensor) -> Tensor:
    """Return what an excess is relative to: the size of a budget and of its loss, and the ball's radius^2."""
    found = [max(abs(x.limit), abs(x.loss.value(w[i]))) for i, x in enumerate(problem.promises) if x is not None]
    if isinstance(problem.convex, Ball):
        found += [problem.convex.radius**2 for _ in problem.balls]
    return torch.tensor(found, dtype=torch.float64).clamp(min=1e-300)


def certify(problem: Problem, w: Tensor, multipliers: Multipliers) -> Certificate:
    """Return what multipliers >= 0 prove of any W [clients, n, q]: the gap bounds how far it is from the best."""
    p, b = problem.weights, problem.span
    mu, nu, lam = multipliers.mu.clamp(min=0), multipliers.nu.clamp(min=0), multipliers.lam
    primal, scale = values(problem, w)
    gradient = torch.tensordot(systems.pull(problem.operator, p), w, 1)
    bound, modulus = primal, torch.zeros_like(p)
    excess = excesses(problem, w)
    prices = torch.cat([(p * mu)[problem.budgets], (p * nu)[problem.balls]])
    bound += float(prices @ excess)
    for i, one in enumerate(problem.objectives):
        gradient[i] += p[i] * (one.gradient(w[i]) + nu[i] * w[i])
        modulus[i] = p[i] * (one.modulus + nu[i])
        promise = problem.promises[i]
        if promise is not None:
            gradient[i] += p[i] * mu[i] * promise.loss.gradient(w[i])
            modulus[i] += p[i] * mu[i] * promise.loss.modulus
    if lam is not None and isinstance(problem.convex, Box):
        gradient += lam
        bound += float(lam.mul(w).sum() - problem.convex.bound * lam.abs().sum())
    reduced = torch.tensordot(b.T, gradient, 1)
    if problem.hollow:
        reduced.diagonal(dim1=1, dim2=2).zero_()
    smallest = float(modulus.min() * torch.linalg.eigvalsh(b.T @ b)[0])
    size = max(float((p[i] * one.cross).norm()) for i, one in enumerate(problem.objectives))
    return Certificate(
        primal,
        bound - float(reduced.square().sum()) / (2 * smallest),
        violation(problem, w),
        float(reduced.norm()) / max(size, 1e-300),
        scale,
        Multipliers(mu, nu, lam),
    )


def violation(problem: Problem, w: Tensor) -> float:
    """Return by how much W breaks a constraint at most, relative to the constraint's size."""
    b, size = problem.span, max(float(w.abs().max()), 1e-300)
    off = w - problem.offset
    outside = off - torch.tensordot(b @ torch.linalg.pinv(b), off, 1)
    found = [float(outside.abs().max()) / size, *(excesses(problem, w) / scales(problem, w)).tolist()]
    if isinstance(problem.convex, Box):
        found.append(float(w.abs().max()) / problem.convex.bound - 1)
    if problem.hollow:
        found.append(float(w.diagonal(dim1=1, dim2=2).abs().max()) / size)
    return float(max(0.0, *found))


def parts(problem: Problem, mu: Tensor, nu: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return D_i [n, n] and R_i [n, q] of the Lagrangian under multipliers."""
    d, r = [], []
    for i, (p, one, promise) in enumerate(zip(problem.weights, problem.objectives, problem.promises, strict=True)):
        hessian, linear = one.hessian + float(nu[i]) * torch.eye(len(one.gram), dtype=torch.float64), one.cross
        if promise is not None and float(mu[i]):
            hessian, linear = hessian + mu[i] * promise.loss.hessian, linear + mu[i] * promise.loss.cross
        d.append(p * hessian)
        r.append(p * linear)
    return d, r


def inverse(problem: Problem, d: Sequence[Tensor]) -> systems.Solve:
    """Return R [clients, n, q] -> B (B' (D + Q) B)^-1 B' R, in the subspace of a zero diagonal where there is one."""
    b = problem.span
    by = systems.factor(problem.operator, d, systems.pull(problem.operator, problem.weights))
    if problem.hollow:
        by = systems.hollow(by, b.shape[1], len(d[0]))
    return lambda r: torch.tensordot(b, by(torch.tensordot(b.T, r, 1)), 1)
