"""Coordination problems with known answers: random quadratics, every form of a tie, and what others make of it.

A case is convex, and is handed to an interior-point solver, or not, and is handed to sequential quadratic programming
from the point that the ties led to. Neither knows anything of the code that is judged.
"""

import importlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from fedrec.errors import UserError
from fedrec.federation.coordination.minimise import newton
from fedrec.federation.coordination.problem import Exchange
from fedrec.federation.coordination.solve import Solution, solve
from fedrec.params import Params
from fedrec.rng import generator

NAMES = ("films", "shop", "news", "books")
WIDTH, HALF, CONDITION = 6, 3, 10.0
STIFF = 30.0  # times rho
Array = NDArray[np.float64]
Multipliers = dict[str, Array]
Named = Mapping[str, Params]


@dataclass(frozen=True)
class Quadratic:
    """f(t) = 1/2 (t - c)' H (t - c) + least."""

    hessian: Array
    centre: Array
    least: float = 0.0

    def __call__(self, theta: Tensor) -> Tensor:
        """Return f."""
        gap = theta - torch.from_numpy(self.centre)
        return gap @ torch.from_numpy(self.hessian) @ gap / 2 + self.least


@dataclass(frozen=True)
class Problem:
    """Losses and weights, and the numbers that the ties of a case are made with."""

    losses: Sequence[Quadratic]
    weights: Sequence[float]
    numbers: Array  # [4], from 0 to 1
    free: Sequence[Array] = ()  # the minimiser of every loss alone

    @property
    def rho(self) -> float:
        """sqrt(mu L) of the Hessians' extreme eigenvalues."""
        values = np.concatenate([np.linalg.eigvalsh(f.hessian) for f in self.losses])
        return math.sqrt(values.min() * values.max())


Ties = list[str]
Claims = Callable[[Problem, Sequence[Any], Sequence[Any]], tuple[dict[str, Any], list[Any], Any]]
Central = Callable[[Problem, Tensor], dict[str, tuple[Tensor, bool]]]  # theta [n, d] -> by tie: g, whether at most 0


@dataclass(frozen=True)
class Case:
    """A form of tie: its texts, and what it claims, to a convex solver or to a general one.

    `claims` returns constraints by the tie whose multiplier they have, others, and what is added to the objective.
    """

    name: str
    ties: Callable[[Problem], Ties]
    claims: Claims | None = None
    central: Central | None = None
    blocks: bool = False  # whether theta is exchanged as two blocks, a and b
    objective: str = ""  # minimax: what is minimised in the place of the sum
    between: bool = False  # whether it ties losses to each other: rho must outdo what weights below 0 take away

    @property
    def exchange(self) -> list[Exchange] | None:
        """What the clients exchange."""
        return [{"a": slice(0, HALF), "b": slice(HALF, WIDTH)}] * len(NAMES) if self.blocks else None


def draw(seed: int) -> Problem:
    """Return a random problem of four clients."""
    g = generator(seed, "constraints")
    losses = []
    for _ in NAMES:
        q, _r = np.linalg.qr(g.normal(size=(WIDTH, WIDTH)))
        hessian = q * np.geomspace(1, CONDITION, WIDTH) @ q.T
        losses.append(Quadratic((hessian + hessian.T) / 2, g.normal(size=WIDTH)))
    return Problem(losses, g.uniform(0.5, 2, len(NAMES)).tolist(), g.uniform(size=4), [f.centre for f in losses])


def vector(z: Named, client: str) -> Tensor:
    """Return a client's blocks as one vector."""
    return torch.cat([z[client][name] for name in sorted(z[client])])


def norms(z: Named) -> Tensor:
    """Return what is 0 where the first two clients' vectors are equally long."""
    return (vector(z, "films").square().sum() - vector(z, "shop").square().sum()) / 2


def orthogonal(z: Named) -> Tensor:
    """Return what is 0 where the first two clients' vectors are orthogonal."""
    return vector(z, "films") @ vector(z, "shop")


def trusted(z: Named) -> Tensor:
    """Return what is at most 0 where news is within 1 of films."""
    return ((vector(z, "films") - vector(z, "news")).square().sum() - 1.0) / 2


def of_two_blocks(z: Named) -> Tensor:
    """Return what is at most 0 where the norms of films' two blocks have a product of at most 1."""
    x = vector(z, "films")
    return x[:HALF].square().sum() * x[HALF:].square().sum() / 2 - 0.5


NORMS, ORTHOGONAL, TRUSTED, BLOCKS = (
    f"{blocks}: {__name__}:{name}"
    for blocks, name in (("x", "norms"), ("x", "orthogonal"), ("x", "trusted <= 0"), ("a+b", "of_two_blocks <= 0"))
)


def equal(t: Sequence[Any]) -> list[Any]:
    """Return that all are equal."""
    return [one == t[0] for one in t[1:]]


def cp() -> Any:
    """Return the convex solver; raises UserError without it."""
    try:
        return importlib.import_module("cvxpy")
    except ImportError:
        raise UserError("studies constraints: needs cvxpy (pip install 'fedrec[test]'), found none") from None


def level(p: Problem) -> float:
    """Return a bound of losses that binds: between what consensus gives each and what it costs to be even."""
    common = consensus_of(p)
    f = [float(loss(torch.from_numpy(common))) for loss in p.losses]
    return float(np.max(f) - (0.15 + 0.1 * p.numbers[0]) * (np.max(f) - np.mean(f)))


def consensus_of(p: Problem) -> Array:
    """Return the minimiser of the weighted sum."""
    hessian = sum(w * f.hessian for w, f in zip(p.weights, p.losses, strict=True))
    linear = sum(w * f.hessian @ f.centre for w, f in zip(p.weights, p.losses, strict=True))
    return np.asarray(np.linalg.solve(hessian, linear))


def gap(p: Problem) -> float:
    """Return a width of parity that binds: a part of what the losses differ by under consensus."""
    f = [float(loss(torch.from_numpy(consensus_of(p)))) for loss in p.losses]
    return float((0.3 + 0.4 * p.numbers[1]) * np.abs(np.array(f) - np.mean(f)).max())


CONSENSUS = "x: consensus"
AT_MOST = "losses: at-most(#)"
HALVES = "x: films = 2*shop + 0.1"
LESS = "x: news - books <= 0.05"
BALL = "x: ball(0.4)"


def text(form: str, value: float) -> str:
    """Return a tie with a number."""
    return form.replace("#", repr(round(float(value), 6)))


def number(tie: str) -> float:
    """Return the last number of a tie."""
    return float(tie.replace(")", " ").replace("(", " ").split()[-1])


def losses_below(form: str, size: Callable[[Problem], float]) -> Callable[[Problem], Ties]:
    """Return the ties of consensus and of losses."""
    return lambda p: [CONSENSUS, text(form, size(p))]


def parity(p: Problem, theta: Tensor) -> dict[str, tuple[Tensor, bool]]:
    """Return |f_i - mean f| - eps of both signs."""
    tie = text("losses: parity(#)", gap(p))
    f = torch.stack([loss(t) for loss, t in zip(p.losses, theta, strict=True)])
    apart = f - f.mean()
    return {tie: (torch.cat([apart, -apart]) - number(tie), True), CONSENSUS: (together(theta), False)}


def between(p: Problem) -> str:
    """Return a tie between two losses that binds."""
    f = [float(loss(torch.from_numpy(consensus_of(p)))) for loss in p.losses]
    high, low = (0, 1) if f[0] > f[1] else (1, 0)
    return text(f"losses: {NAMES[high]} <= {NAMES[low]} + #", (0.3 + 0.4 * p.numbers[2]) * (f[high] - f[low]))


def central_between(p: Problem, theta: Tensor) -> dict[str, tuple[Tensor, bool]]:
    """Return f_high - f_low - c."""
    tie = between(p)
    high, low = (NAMES.index(tie.split()[k]) for k in (1, 3))
    g = p.losses[high](theta[high]) - p.losses[low](theta[low]) - number(tie)
    return {tie: (g.reshape(1), True), CONSENSUS: (together(theta), False)}


def together(theta: Tensor) -> Tensor:
    """Return what is 0 where all rows are equal."""
    return (theta[1:] - theta[:1]).reshape(-1)


def by_name(theta: Tensor) -> dict[str, Params]:
    """Return rows [n, d] as the clients' named blocks."""
    return {name: {"x": t} for name, t in zip(NAMES, theta, strict=True)}


def central_trusted(p: Problem, theta: Tensor) -> dict[str, tuple[Tensor, bool]]:
    """Return the trust region, and the equation beside it."""
    return {
        TRUSTED: (trusted(by_name(theta)).reshape(1), True),
        HALVES: (theta[0] - 2 * theta[1] - 0.1, False),
    }


def central_own(tie: str, function: Callable[[Named], Tensor], inequality: bool) -> Central:
    """Return a function as a general solver asks for it."""
    return lambda p, theta: {tie: (function(by_name(theta)).reshape(1), inequality)}


def central_ball(p: Problem, theta: Tensor) -> dict[str, tuple[Tensor, bool]]:
    """Return a ball of each client's vector, as steep at its edge as a norm, and an inequality."""
    return {
        BALL: ((theta.square().sum(1) - 0.4**2) / 0.8, True),
        LESS: (theta[2] - theta[3] - 0.05, True),
    }


def central_two(p: Problem, theta: Tensor) -> dict[str, tuple[Tensor, bool]]:
    """Return the two ties of blocks."""
    return {
        BLOCKS: (of_two_blocks(by_name(theta)).reshape(1), True),
        "b: consensus": (together(theta[:, HALF:]), False),
    }


def least_worst(p: Problem) -> float:
    """Return the least that the largest loss can be under consensus."""
    theta = by_convex_solver(next(case for case in CASES if case.objective), p).theta
    return max(float(f(torch.from_numpy(t))) for f, t in zip(p.losses, theta, strict=True))


def tight(form: str, factor: float) -> Callable[[Problem], Ties]:
    """Return the ties of consensus and of losses that are at most a multiple of the least that they can be."""
    return lambda p: [CONSENSUS, text(form, factor * least_worst(p))]


def pulled(p: Problem, t: Sequence[Any], strength: float) -> Any:
    """Return strength/2 sum_i p_i |t_i - mean|^2 with the weighted mean."""
    mean = sum(w * x for w, x in zip(p.weights, t, strict=True)) / sum(p.weights)
    return strength / 2 * sum(w * cp().sum_squares(x - mean) for w, x in zip(p.weights, t, strict=True))


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
        rho=(STIFF if case.between else 1.0) * p.rho,
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


CASES = (
    Case("consensus", lambda p: [CONSENSUS], lambda p, t, f: ({}, equal(t), 0)),
    Case(
        "clusters",
        lambda p: ["x: clusters(films+books, shop+news)"],
        lambda p, t, f: ({}, [t[0] == t[3], t[1] == t[2]], 0),
    ),
    Case("sum", lambda p: ["x: sum(0.5)"], lambda p, t, f: ({}, [sum(t) == 0.5], 0)),
    Case("mean-regularised", lambda p: ["x: mean-regularised(3)"], lambda p, t, f: ({}, [], pulled(p, t, 3.0))),
    Case(
        "graph",
        lambda p: ["x: graph(2, films~shop, shop~news:0.5)"],
        lambda p, t, f: ({}, [], cp().sum_squares(t[0] - t[1]) + cp().sum_squares(t[1] - t[2]) / 2),
    ),
    Case("equation", lambda p: [HALVES], lambda p, t, f: ({HALVES: t[0] - 2 * t[1] == 0.1}, [], 0)),
    Case("inequality", lambda p: [LESS], lambda p, t, f: ({LESS: t[2] - t[3] <= 0.05}, [], 0)),
    Case(
        "ball",
        lambda p: [BALL, LESS],
        lambda p, t, f: ({BALL: [cp().norm(x) <= 0.4 for x in t], LESS: t[2] - t[3] <= 0.05}, [], 0),
        central_ball,
    ),
    Case(
        "box",
        lambda p: ["x: box(0.4)", HALVES],
        lambda p, t, f: ({HALVES: t[0] - 2 * t[1] == 0.1}, [cp().abs(x) <= 0.4 for x in t], 0),
    ),
    Case(
        "several",
        lambda p: ["a: consensus", "b: films + shop = 0.3", "b: news <= 2*books", "b: ball(0.8)"],
        lambda p, t, f: (
            {
                "b: films + shop = 0.3": t[0][HALF:] + t[1][HALF:] == 0.3,
                "b: news <= 2*books": t[2][HALF:] - 2 * t[3][HALF:] <= 0,
                "b: ball(0.8)": [cp().norm(x[HALF:]) <= 0.8 for x in t],
            },
            equal([x[:HALF] for x in t]),
            0,
        ),
        blocks=True,
    ),
    Case(
        "trust region",
        lambda p: [TRUSTED, HALVES],
        lambda p, t, f: (
            {TRUSTED: (cp().sum_squares(t[0] - t[2]) - 1) / 2 <= 0, HALVES: t[0] - 2 * t[1] == 0.1},
            [],
            0,
        ),
        central_trusted,
    ),
    Case(
        "budgets",
        losses_below(AT_MOST, level),
        lambda p, t, f: (
            {text(AT_MOST, level(p)): [x <= number(text("(#)", level(p))) for x in f]},
            equal(t),
            0,
        ),
    ),
    Case(
        "tight budgets",
        tight(AT_MOST, 1.03),
        lambda p, t, f: (
            {tight(AT_MOST, 1.03)(p)[1]: [x <= number(tight(AT_MOST, 1.03)(p)[1]) for x in f]},
            equal(t),
            0,
        ),
    ),
    Case("minimax", lambda p: [CONSENSUS, "losses: minimax"], lambda p, t, f: ({}, equal(t), 0), objective="minimax"),
    Case("parity", losses_below("losses: parity(#)", gap), central=parity, between=True),
    Case("between", lambda p: [CONSENSUS, between(p)], central=central_between, between=True),
    Case("equal norms", lambda p: [NORMS], central=central_own(NORMS, norms, False)),
    Case("orthogonal", lambda p: [ORTHOGONAL], central=central_own(ORTHOGONAL, orthogonal, False)),
    Case(
        "two blocks",
        lambda p: [BLOCKS, "b: consensus"],
        central=central_two,
        blocks=True,
    ),
)
# Cases that nobody can meet: what is asked of them is to be called so.
CONTRADICTIONS = (
    Case("sum beyond a box", lambda p: ["x: sum(100)", "x: box(1)"]),
    Case("two equations", lambda p: ["x: films = shop + 1", "x: shop = films"]),
    Case("far within a trust region", lambda p: [TRUSTED, "x: films = news + 2"]),
    Case("losses below the least", tight(AT_MOST, 0.8)),
    Case("losses just below the least", tight(AT_MOST, 0.98)),
)
