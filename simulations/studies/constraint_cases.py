"""Every form of a tie on random problems: its text, and what it asks as another solver is told of it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedrec.params import Params
from simulations.studies.constraint_problems import HALF, NAMES, Array, Case, Central, Named, Problem, Ties
from simulations.studies.constraint_solvers import by_convex_solver, cp


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
        stiff=3.0,
    ),
    Case("minimax", lambda p: [CONSENSUS, "losses: minimax"], lambda p, t, f: ({}, equal(t), 0), objective="minimax"),
    Case("parity", losses_below("losses: parity(#)", gap), central=parity, between=True, stiff=30.0),
    Case("between", lambda p: [CONSENSUS, between(p)], central=central_between, between=True, stiff=30.0),
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
