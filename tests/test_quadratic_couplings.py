"""Coupled quadratics against an interior-point solver, and what a certificate says of them."""

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fedrec.federation.coordination.systems as systems
from fedrec.errors import UserError
from fedrec.federation.coordination.ascent import solve
from fedrec.federation.coordination.operators import (
    Ball,
    Box,
    Clusters,
    Constraint,
    Graph,
    Mean,
    MeanRegularised,
    Mixture,
    Operator,
    SumTo,
    Within,
)
from fedrec.federation.coordination.quadratic import Multipliers, Objective, Problem, Promise, certify, values
from fedrec.rng import generator
from tests.quadratics import cp

CLIENTS = 4
REGULAR: dict[str, Any] = {"static_regularization_constant": 1e-12, "static_regularization_proportional": 1e-18}
RING = ((0, 1), (1, 2), (2, 3), (0, 3))
COUPLINGS: dict[str, Operator] = {
    "consensus": Mean(),
    "clusters": Clusters((0, 1, 0, 1)),
    "mean-regularised": MeanRegularised(2.0),
    "graph": Graph(CLIENTS, RING, 2.0),
    "path": Graph(CLIENTS, RING[:2], 2.0),
    "mixture": Mixture(((1.0, 0.0), (0.7, 0.3), (0.2, 0.9), (0.0, 1.0))),
    "sum": SumTo(0.0),
}
KEPT = ("none", "ball", "box", "no-harm", "held-out", "no-harm in a ball", "no-harm in a box")


def objectives(seed: int, n: int, clients: int = CLIENTS) -> tuple[Objective, ...]:
    """Return the sums of a linear model of clients whose tastes differ."""
    found = []
    for i in range(clients):
        g = generator(seed, "sums", i)
        x = g.normal(size=(2 * n, n))
        y = x @ (np.eye(n) + g.normal(size=(n, n)) / 2)
        found.append(Objective(torch.from_numpy(x.T @ x / n), torch.from_numpy(x.T @ y / n), 0.3))
    return tuple(found)


def alone(one: Objective, hollow: bool = False) -> float:
    """Return the least value of an objective."""
    found = solve(Problem((one,), torch.ones(1).double(), Mean(), (None,), hollow))
    return found.certificate.primal


def problem(coupling: str, kept: str, seed: int = 0, n: int = 5, hollow: bool = False) -> Problem:
    """Return a problem in which what is kept binds.

    A promise is what a client has where it weighs four times as much, so that all can be kept together.
    """
    own, operator = objectives(seed, n), COUPLINGS[coupling]
    weights = torch.from_numpy(generator(seed, "weights").uniform(0.5, 2.0, CLIENTS))
    free = Problem(own, weights, operator, (None,) * CLIENTS, hollow)
    w = solve(free).w
    if "ball" in kept:
        operator = Within(operator, Ball(0.9 * float(w.square().sum((1, 2)).sqrt().max())))
    if "box" in kept:
        operator = Within(operator, Box(0.6 * float(w.abs().max())))
    promises: list[Promise | None] = [None] * CLIENTS
    if "no-harm" in kept or kept == "held-out":
        loss = replace(objectives(seed + 1000, n)[0], ridge=0.0) if kept == "held-out" else own[0]
        more = torch.tensor([4.0, 1.0, 1.0, 1.0]) * weights
        towards = (replace(loss, ridge=0.3), *own[1:])
        w = solve(Problem(towards, more, operator, (None,) * CLIENTS, hollow)).w
        promises[0] = Promise(loss, loss.value(w[0]))
        promises[2] = Promise(own[2], own[2].value(w[2]) + 1.0)  # slack
    return Problem(own, weights, operator, tuple(promises), hollow)


def by_solver(one: Problem) -> list[np.ndarray]:
    """Return the W_i of an interior-point solver, from what each coupling says in the glossary's words."""
    p, m = one.weights.tolist(), len(one.weights)
    w = [cp.Variable(x.cross.shape) for x in one.objectives]

    def root(x: Objective) -> tuple[np.ndarray, np.ndarray]:
        """Return R and S with f(V) = 1/2 |R V - S|^2 - 1/2 |S|^2."""
        r = np.linalg.cholesky(x.hessian.numpy()).T
        return r, np.linalg.solve(r.T, x.cross.numpy())

    def kept(x: Promise, v: object) -> object:
        r, s = root(x.loss)
        return cp.norm(r @ v - s, "fro") <= np.sqrt(2 * x.limit + np.square(s).sum())

    objective = 0
    for a, x, v in zip(p, one.objectives, w, strict=True):
        r, s = root(x)
        objective += a / 2 * cp.sum_squares(r @ v - s)
    tie, rules = systems.inner(one.operator), []
    if isinstance(tie, Mean):
        rules += [v == w[0] for v in w[1:]]
    elif isinstance(tie, Clusters):
        rules += [w[i] == w[k] for i in range(m) for k in range(i) if tie.groups[i] == tie.groups[k]]
    elif isinstance(tie, MeanRegularised):
        centre = sum(a * v for a, v in zip(p, w, strict=True)) / sum(p)
        objective += tie.strength / 2 * sum(a * cp.sum_squares(v - centre) for a, v in zip(p, w, strict=True))
    elif isinstance(tie, Graph):
        objective += tie.strength / 2 * sum(cp.sum_squares(w[i] - w[k]) for i, k in tie.edges)
    elif isinstance(tie, Mixture):
        y = [cp.Variable(w[0].shape) for _ in tie.mixing[0]]
        rules += [v == sum(b * z for b, z in zip(row, y, strict=True)) for v, row in zip(w, tie.mixing, strict=True)]
    elif isinstance(tie, SumTo):
        rules += [sum(w) == tie.total]
    if isinstance(one.convex, Ball):
        rules += [cp.norm(v, "fro") <= one.convex.radius for v in w]
    if isinstance(one.convex, Box):
        rules += [cp.abs(v) <= one.convex.bound for v in w]
    if one.hollow:
        rules += [cp.diag(v) == 0 for v in w]
    rules += [kept(x, v) for x, v in zip(one.promises, w, strict=True) if x is not None]
    return best_of(cp.Problem(cp.Minimize(objective), rules), w)


def best_of(stated: Any, w: Sequence[Any]) -> list[np.ndarray]:
    """Return the best point of several attempts: with cones each stops at an accuracy of its own, short of 1e-11."""
    found = []
    options: dict[str, Any]
    for tight, options in itertools.product((1e-11, 1e-10), ({}, {"equilibrate_enable": False}, REGULAR)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stated.solve(cp.CLARABEL, tol_gap_abs=tight, tol_gap_rel=tight, tol_feas=tight, **options)
        if max([float(np.max(rule.violation())) for rule in stated.constraints], default=0.0) < 1e-10:
            found.append((stated.value, [np.asarray(v.value) for v in w]))
    return min(found, key=lambda one: one[0])[1]


def apart(a: Tensor, b: Sequence[np.ndarray] | Tensor) -> float:
    """Return the largest difference."""
    return float(np.abs(a.numpy() - np.stack([np.asarray(x) for x in b])).max())


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_it_is_the_solution_of_an_interior_point_solver(coupling: str, kept: str) -> None:
    one = problem(coupling, kept)
    found = solve(one)
    assert apart(found.w, by_solver(one)) < 1e-6
    proof = found.certificate
    assert -1e-12 * proof.scale <= proof.gap <= 1e-10 * proof.scale and proof.violation <= 1e-12
    binding = float(proof.multipliers.mu.sum() + proof.multipliers.nu.sum())
    assert (binding > 1e-3) == (kept not in ("none", "box")), "what is kept must bind, else nothing is tested"
    assert (proof.multipliers.lam is not None) == ("box" in kept)
    if "no-harm" in kept and coupling != "mean-regularised":  # whose pull depends on the weights
        assert abs(float(proof.multipliers.mu[0]) - 3) < 1e-6 and not float(proof.multipliers.mu[2])


@pytest.mark.parametrize("kept", ["none", "no-harm in a ball", "no-harm in a box"])
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_with_a_zero_diagonal_too(coupling: str, kept: str) -> None:
    one = problem(coupling, kept, seed=1, n=4, hollow=True)
    found = solve(one)
    assert not bool(found.w.diagonal(dim1=1, dim2=2).any())
    assert apart(found.w, by_solver(one)) < 1e-6 and found.certificate.gap <= 1e-10 * found.certificate.scale


def test_consensus_with_a_zero_diagonal_is_ease() -> None:
    """EASE of the summed statistics: W = 1 - P / diag(P), P = (sum_i G_i + ridge)^-1, where C = G."""
    own = [replace(x, cross=x.gram) for x in objectives(3, 8)]
    w = solve(Problem(tuple(own), torch.ones(CLIENTS).double(), Mean(), (None,) * CLIENTS, True)).w
    p = torch.linalg.inv(torch.stack([x.hessian for x in own]).sum(0))
    ease = -p / p.diagonal()
    ease.fill_diagonal_(0)
    assert apart(w, [ease] * CLIENTS) < 1e-12


@pytest.mark.parametrize("coupling", ["mean-regularised", "graph"])
def test_no_pull_is_alone_and_a_strong_one_consensus(coupling: str) -> None:
    one = problem(coupling, "none", n=6)
    for strength, other in ((0.0, Clusters(tuple(range(CLIENTS)))), (1e7, Mean())):
        w = solve(replace(one, operator=replace(one.operator, strength=strength))).w  # type: ignore[type-var]
        assert apart(w, solve(replace(one, operator=other)).w) < 1e-5 * bool(strength) + 1e-10


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_a_set_or_a_budget_that_does_not_bind_changes_nothing(coupling: str) -> None:
    free = problem(coupling, "none")
    w = solve(free).w
    loose = tuple(Promise(x, x.value(v) + 1) for x, v in zip(free.objectives, w, strict=True))
    for convex in (Ball(1e6), Box(1e6)):
        found = solve(replace(free, operator=Within(free.operator, convex), promises=loose))
        assert torch.equal(found.w, w)
        told = found.certificate.multipliers
        assert not bool(told.mu.any()) and not bool(told.nu.any()) and told.lam is None


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.sampled_from(list(COUPLINGS)), st.sampled_from(KEPT), st.floats(-4, 0))
def test_the_gap_bounds_how_far_any_point_is_from_the_best(seed: int, coupling: str, kept: str, size: float) -> None:
    """Any point of the coupling's span and any multipliers: the dual they prove is not above the least value."""
    one = problem(coupling, kept, seed=seed % 5, n=4)
    best, g = solve(one), generator(seed, "moved")
    y = torch.from_numpy(g.normal(size=(one.span.shape[1], 4, 4)))
    w = best.w + 10**size * torch.tensordot(one.span, y, 1)
    at = best.certificate.multipliers
    mu, nu = at.mu * float(g.uniform(0, 2)), at.nu * float(g.uniform(0, 2))
    lam = None if at.lam is None else at.lam * float(g.uniform(0, 2))
    proof, least = certify(one, w, Multipliers(mu, nu, lam)), best.certificate
    assert proof.dual <= least.primal + 1e-9 * least.scale
    assert proof.gap >= values(one, w)[0] - least.primal - 1e-9 * least.scale
    assert proof.residual > 0


def test_a_point_outside_the_coupling_is_told_by_its_violation() -> None:
    one = problem("consensus", "no-harm in a ball")
    best = solve(one)
    moved = best.w.clone()
    moved[1] += 0.01
    assert certify(one, moved, best.certificate.multipliers).violation > 1e-3
    assert certify(one, best.w * 1.5, best.certificate.multipliers).violation > 0.1


@pytest.mark.parametrize("coupling", ["consensus", "clusters", "mean-regularised", "mixture", "sum"])
@pytest.mark.parametrize("hollow", [False, True])
def test_budgets_that_cannot_be_kept_are_refused(coupling: str, hollow: bool) -> None:
    """What nobody reaches even alone; and, tied to be equal, what each reaches only alone."""
    one = problem(coupling, "none", hollow=hollow)
    below = tuple(Promise(x, alone(x, hollow) - 0.1) for x in one.objectives)
    with pytest.raises(UserError, match=r"^budget: must be one that the clients can keep together, found limits"):
        solve(replace(one, promises=below))
    if coupling in ("consensus", "clusters"):
        own = tuple(Promise(x, alone(x, hollow) + 1e-3) for x in one.objectives)
        with pytest.raises(UserError, match="breaks one by"):
            solve(replace(one, promises=own))


def test_of_what_cannot_be_kept_the_bound_is_true() -> None:
    """Two clients with f = (w -+ 1)^2 / 2 - 1/2 in consensus: the least largest value is 0, at w = 0."""
    one = Objective(torch.zeros(1, 1).double(), torch.ones(1, 1).double(), 1.0)
    other = replace(one, cross=-one.cross)
    with pytest.raises(UserError, match=r"breaks one by 0\.25 or more"):
        solve(Problem((one, other), torch.ones(2).double(), Mean(), (Promise(one, -0.25), Promise(other, -0.25))))


@pytest.mark.parametrize("n", [6, 9])
@pytest.mark.parametrize("strength", [1e-6, 1.0, 1e6])
def test_a_graph_by_iterations_is_the_graph_solved_whole(
    n: int, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    d = [x.hessian for x in objectives(0, n, 6)]
    r = torch.from_numpy(generator(0, "r").normal(size=(6, n, n)))
    for edges in (((0, 1), (1, 2), (2, 3)), tuple((i, (i + 1) % 6) for i in range(6))):
        operator = Graph(6, edges, strength)
        q = systems.pull(operator, torch.ones(6).double())
        x = systems.factor(operator, d, q)(r)
        with monkeypatch.context() as patch:
            patch.setattr(systems, "DIRECT", 0)
            assert apart(systems.factor(operator, d, q)(r), x) < 1e-9
        assert float((systems.applied(d, q, x) - r).abs().max()) < 1e-9 * max(1.0, strength)


def test_what_has_no_exact_solution_is_refused() -> None:
    one = problem("consensus", "none")
    own = Constraint(lambda: None, "mine:Own", ("a",))  # type: ignore[arg-type]
    for changes, text in (
        ({"operator": own}, "coupling.kind: must be mean, clusters"),
        ({"objectives": tuple(replace(x, ridge=0.0) for x in one.objectives)}, "ridge: must be above 0"),
        ({"promises": ()}, "sums: must be of one shape"),
        ({"operator": SumTo(1.0), "hollow": True}, "coupling.total: must be 0"),
    ):
        with pytest.raises(UserError, match=text):
            solve(replace(one, **changes))
