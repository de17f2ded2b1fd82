"""Strongly convex quadratics f_i = 1/2 (t - c_i)' H_i (t - c_i), what each coupling claims, and a solver's answer."""

import importlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedrec.federation.coordination.minimise import newton
from fedrec.federation.coordination.operators import (
    Clusters,
    Graph,
    LinearTie,
    Mean,
    MeanRegularised,
    Mixture,
    Operator,
    SumTo,
)
from fedrec.federation.coordination.problem import Exchange
from fedrec.federation.coordination.solve import Solution, solve
from fedrec.rng import generator

cp: Any = importlib.import_module("cvxpy")  # it has no types
Array = npt.NDArray[Any]
LAMBDA = 3.0  # strength of the regularised couplings
OPERATORS = ("mean", "clusters", "mean-regularised", "graph", "mixture", "linear", "sum")


@dataclass(frozen=True)
class Claim:
    """What an operator claims to be, in plain matrices: h(Z) = 1/2 Z' Q Z subject to E Z = e, Z stacked."""

    operator: Operator
    q: Array | None = None
    e: tuple[Array, Array] | None = None

    def prox(self, v: Sequence[Tensor], p: Sequence[float], rho: float) -> list[Array]:
        """Return argmin h(Z) + rho/2 sum_i p_i |z_i - v_i|^2 from its optimality conditions, one linear system."""
        metric = np.diag(np.repeat(rho * np.asarray(p), [len(one) for one in v]))
        hessian = metric if self.q is None else metric + self.q
        z = constrained(hessian, metric @ np.concatenate([one.numpy() for one in v]), self.e)
        return np.split(z, np.cumsum([len(one) for one in v])[:-1])


def constrained(hessian: Array, linear: Array, e: tuple[Array, Array] | None) -> Array:
    """Return argmin 1/2 x' H x - l' x subject to E x = e."""
    if e is None:
        return np.linalg.solve(hessian, linear)
    k = len(e[1])
    system = np.block([[hessian, e[0].T], [e[0], np.zeros((k, k))]])
    return np.linalg.solve(system, np.concatenate([linear, e[1]]))[: len(linear)]


def within(basis: Array) -> tuple[Array, Array]:
    """Return (E, 0) with E x = 0 if and only if x is in the range of `basis`; the rows of E are orthonormal."""
    u, s, _ = np.linalg.svd(basis)
    rows = u[:, int((s > 1e-10 * s[0]).sum()) :].T
    return rows, np.zeros(len(rows))


def claim(name: str, seed: int, p: Sequence[float], d: int, members: Sequence[int] | None = None) -> Claim:
    """Return the claim of an operator over len(p) clients with vectors of length d, or over some of them only."""
    g, n = generator(seed, "claim", name), len(p)
    groups, mixing, maps = np.arange(n) % 2, g.normal(size=(n, 2)), g.normal(size=(n, d, 2))
    ring = [(i, (i + 1) % n) for i in range(n)] + [(0, 2)]
    inside = list(range(n)) if members is None else list(members)
    p, each, size = np.asarray(p)[inside].tolist(), np.eye(d), len(inside)
    if name == "mean":
        return Claim(Mean(), e=within(np.kron(np.ones((size, 1)), each)))
    if name == "clusters":
        groups = groups[inside]
        return Claim(Clusters(tuple(groups.tolist())), e=within(np.kron(np.eye(2)[groups], each)))
    if name == "mean-regularised":
        return Claim(MeanRegularised(LAMBDA), LAMBDA * np.kron(np.diag(p) - np.outer(p, p) / sum(p), each))
    if name == "graph":
        edges = tuple((inside.index(i), inside.index(k)) for i, k in ring if i in inside and k in inside)
        rows = [np.eye(size)[i] - np.eye(size)[k] for i, k in edges]  # of the incidence matrix: Lap = D' D
        lap = sum((np.outer(row, row) for row in rows), np.zeros((size, size)))
        return Claim(Graph(size, edges, LAMBDA), LAMBDA * np.kron(lap, each))
    if name == "mixture":
        own = mixing[inside]
        return Claim(Mixture(tuple(map(tuple, own.tolist()))), e=within(np.kron(own, each)))
    if name == "linear":
        return Claim(
            LinearTie(tuple(torch.from_numpy(maps[i]) for i in inside)), e=within(np.concatenate(maps[inside]))
        )
    assert name == "sum"
    return Claim(SumTo(1.5), e=(np.kron(np.ones((1, size)), each), np.full(d, 1.5)))


@dataclass(frozen=True)
class Quadratic:
    """A loss with its Hessian and minimiser."""

    hessian: Tensor
    centre: Tensor

    def __call__(self, theta: Tensor) -> Tensor:
        gap = theta - self.centre
        return gap @ self.hessian @ gap / 2


def quadratic(g: np.random.Generator, d: int, condition: float) -> Quadratic:
    """Return a random loss whose Hessian has eigenvalues from 1 to `condition`."""
    q, _ = np.linalg.qr(g.normal(size=(d, d)))
    hessian = q * np.geomspace(1, condition, d) @ q.T
    return Quadratic(torch.from_numpy((hessian + hessian.T) / 2), torch.from_numpy(g.normal(size=d)))


def wide(g: np.random.Generator, rows: int, d: int) -> Array:
    """Return a random matrix with singular values from 1/2 to 1."""
    u, _ = np.linalg.qr(g.normal(size=(rows, rows)))
    v, _ = np.linalg.qr(g.normal(size=(d, rows)))
    return np.asarray(u * np.linspace(0.5, 1, rows) @ v.T)


@dataclass(frozen=True)
class Problem:
    """min sum_i p_i f_i(theta_i) + h(X) subject to x_i = A_i theta_i, |x_i| <= radius, |x_ij| <= bound, f_i <= b_i."""

    losses: Sequence[Quadratic]
    p: Sequence[float]
    claim: Claim
    maps: Sequence[Array]  # A_i
    exchange: Sequence[Exchange] | None = None
    radius: float | None = None
    bound: float | None = None
    budgets: Sequence[float | None] | None = None
    operator: Operator | None = None  # if it is not the claim's own

    @property
    def rho(self) -> float:
        """The rule of all tests: sqrt(mu L) of the Hessians' extreme eigenvalues mu and L; here |A_i| <= 1."""
        values = np.concatenate([np.linalg.eigvalsh(f.hessian.numpy()) for f in self.losses])
        return math.sqrt(values.min() * values.max())

    def start(self) -> list[Tensor]:
        """Return zeros."""
        return [torch.zeros_like(f.centre) for f in self.losses]

    def run(self, rounds: int, state: Solution | None = None, **options: Any) -> Solution:
        """Return our solution after so many rounds with exact local solves, unless `options` say otherwise."""
        options = {"rho": self.rho, "local_solver": newton(), **options}
        return solve(
            list(self.losses),
            self.start(),
            self.operator or self.claim.operator,
            rounds=rounds,
            exchange=self.exchange,
            weights=self.p,
            budgets=self.budgets,
            state=state,
            **options,
        )

    def solved(self, tolerance: float = 1e-8, most: int = 5000, **options: Any) -> Solution:
        """Return our solution: rounds until both residuals are below `tolerance`, which knows nothing of the answer."""
        state: Solution | None = None
        while state is None or len(state.history) < most:
            state = self.run(25, state, **options)
            last = state.history[-1]
            if max(last.primal, last.dual / last.rho, last.violation) < tolerance:
                break
        return state

    def by_solver(self) -> tuple[list[Array], list[float]]:
        """Return the theta_i of an interior-point solver, and its multipliers of the budgets (0 without one)."""
        theta = [cp.Variable(len(f.centre)) for f in self.losses]
        f: list[Any] = []
        for t, loss in zip(theta, self.losses, strict=True):
            root = np.linalg.cholesky(loss.hessian.numpy()).T
            f.append(cp.sum_squares(root @ t - root @ loss.centre.numpy()) / 2)
        parts = [a @ t for a, t in zip(self.maps, theta, strict=True)]
        x, (q, e) = cp.hstack(parts), (self.claim.q, self.claim.e)
        objective = sum(p * one for p, one in zip(self.p, f, strict=True))
        objective += 0 if q is None else cp.quad_form(x, cp.psd_wrap(q)) / 2
        constraints = [] if e is None else [e[0] @ x == e[1]]
        constraints += [] if self.radius is None else [cp.norm(part) <= self.radius for part in parts]
        constraints += [] if self.bound is None else [cp.abs(x) <= self.bound]
        limits = {i: f[i] <= b for i, b in enumerate(self.budgets or []) if b is not None}
        minimise(objective, [*constraints, *limits.values()], 1e-9 if limits else 1e-11)
        mu = [float(np.sum(limits[i].dual_value)) if i in limits else 0.0 for i in range(len(f))]
        return [np.asarray(t.value) for t in theta], mu

    def by_elimination(self) -> list[Array]:
        """Return the theta_i from the optimality conditions, one linear system; for equalities alone."""
        sizes, rows = [a.shape[1] for a in self.maps], [len(a) for a in self.maps]
        columns, lines = np.cumsum([0, *sizes]), np.cumsum([0, *rows])
        hessian, linear, a = np.zeros((sum(sizes), sum(sizes))), np.zeros(sum(sizes)), np.zeros((sum(rows), sum(sizes)))
        for i, (p, f) in enumerate(zip(self.p, self.losses, strict=True)):
            here = slice(columns[i], columns[i + 1])
            hessian[here, here], linear[here] = p * f.hessian.numpy(), p * (f.hessian @ f.centre).numpy()
            a[lines[i] : lines[i + 1], here] = self.maps[i]
        q, e = self.claim.q, self.claim.e
        hessian = hessian if q is None else hessian + a.T @ q @ a
        return np.split(constrained(hessian, linear, None if e is None else (e[0] @ a, e[1])), columns[1:-1])


def minimise(objective: Any, constraints: list[Any], tight: float = 1e-11) -> None:
    """Solve a problem of the convex solver, its tolerances at `tight`."""
    problem = cp.Problem(cp.Minimize(objective), constraints)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # with cones it stops at its own accuracy, short of what is asked
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=tight, tol_gap_rel=tight, tol_feas=tight)
    assert problem.status in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE), problem.status


def apart(a: Sequence[Tensor], b: Sequence[Array] | Sequence[Tensor]) -> float:
    """Return the largest difference of any coordinate."""
    return max(float(np.abs(x.numpy() - np.asarray(y)).max()) for x, y in zip(a, b, strict=True))


def problem(name: str, seed: int, n: int, d: int, condition: float, even: bool = False) -> Problem:
    """Return a random problem: an operator on the whole theta_i, or `partial` sharing, `linear` maps, `outputs`."""
    g = generator(seed, "problem", n, d)
    losses = [quadratic(g, d, condition) for _ in range(n)]
    p = [1.0] * n if even else g.uniform(0.5, 2, n).tolist()
    if name == "partial":  # the first half of theta_i; the rest is private
        half = d // 2
        return Problem(losses, p, claim("mean", seed, p, half), [np.eye(d)[:half]] * n, [slice(0, half)] * n)
    if name == "linear":  # A_i theta_i = B_i y
        return mapped(losses, p, claim("linear", seed, p, 4), [wide(g, 4, d) for _ in range(n)])
    if name == "outputs":  # linear models of different dimension that agree on four public items
        losses = [quadratic(g, max(d - i, 5), condition) for i in range(n)]
        return mapped(losses, p, claim("mean", seed, p, 4), [wide(g, 4, len(f.centre)) for f in losses])
    return Problem(losses, p, claim(name, seed, p, d), [np.eye(d)] * n)


def mapped(losses: Sequence[Quadratic], p: Sequence[float], claim: Claim, maps: Sequence[Array]) -> Problem:
    """Return a problem in which client i exchanges A_i theta_i."""
    return Problem(losses, p, claim, maps, [torch.from_numpy(a).__matmul__ for a in maps])
