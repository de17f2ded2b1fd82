"""A coordination problem of one's own: any differentiable losses, without Flower, data or models."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedrec.errors import UserError
from fedrec.federation.coordination.clauses import MEASURED, Clause, read_clause, read_clauses
from fedrec.federation.coordination.halves import Hub, Link, Residuals
from fedrec.federation.coordination.joint import Joint, Verdict
from fedrec.federation.coordination.minimise import LocalSolver, Loss
from fedrec.federation.coordination.operators import Ball, ConvexSet, Mean, Operator, Vectors, Within
from fedrec.federation.coordination.problem import Exchange, Participant, X, check, participants
from fedrec.federation.participation import draw
from fedrec.keyed import Carrier
from fedrec.params import Params, finite, flatten, norm, subtract

CLOSE = 1e-6  # up to which a tie is called met, on the scale of what makes it up


@dataclass(frozen=True)
class Line:
    """One round: the objective sum_i p_i f_i, both residuals, the largest max(f_i - b_i, 0), all mu_i, and rho.

    `prices` are the multipliers of the ties of losses, one after the other.
    """

    objective: float
    primal: float
    dual: float
    violation: float
    multipliers: tuple[float, ...]
    rho: float
    prices: tuple[float, ...] = ()


@dataclass(frozen=True)
class Solution:
    """The state after the rounds, from which `solve` can go on.

    `theta` [n] the local variables, `x` what they exchange, `z` the coupled points, `links` the clients' scaled duals,
    `mu` the multipliers of the budgets, `history` one line for each round. `held` is what the server has of ties by
    name beside V. `converged` says that both residuals came below the `tolerance` that was asked for, relative to Z;
    `verdicts` how every tie stands at the clients' own x_i and f_i.
    """

    theta: list[Tensor]
    x: list[Tensor]
    z: list[Tensor]
    links: list[Link]
    mu: list[float]
    rho: float
    history: list[Line]
    held: Params = field(default_factory=dict)
    converged: bool = False
    tolerance: float = 0.0
    verdicts: tuple[Verdict, ...] = ()
    infeasible: bool = False  # whether the budgets contradict each other

    @property
    def duals(self) -> list[Tensor]:
        """Return the scaled duals u_i; the multipliers of x_i = z_i are rho p_i u_i."""
        return [flatten(_parameters(link.rescale(self.rho).dual)) for link in self.links]

    @property
    def feasible(self) -> bool:
        """Return whether budgets and ties may be met; False where it was proven, see `solve`, that they cannot."""
        return not self.infeasible and all(verdict.verdict != "infeasible" for verdict in self.verdicts)


def solve(
    losses: Sequence[Loss],
    initial: Sequence[Tensor],
    coupling: Operator | str | Sequence[str | Clause],
    *,
    rho: float,
    rounds: int,
    local_solver: LocalSolver,
    participation: float = 1.0,
    exchange: Sequence[Exchange] | None = None,
    weights: Sequence[float] | None = None,
    budgets: Sequence[float | None] | None = None,
    budget_step: float = 1.0,
    alone: Sequence[float] | None = None,
    clients: Sequence[str] | None = None,
    duals: bool = True,
    balance: bool = False,
    seed: int = 0,
    tolerance: float = 0.0,
    state: Solution | None = None,
) -> Solution:
    """Minimise sum_i p_i f_i(theta_i) + h(Z) subject to x_i(theta_i) = z_i, g_j(Z, f) = 0 or <= 0, f_i <= b_i.

    `losses[i]` maps theta_i [d_i] to a scalar; `exchange[i]` is the part of theta_i that is x_i (all of it by default,
    a slice for partial sharing, or several by name) or an affine map to x_i (a matrix for a linear tie, logits for
    output agreement). `coupling` is an operator, or ties as texts (see `clauses`), in which clients go by the names of
    `clients` (client0, client1, ... by default) and the block of all that is exchanged is `x`; a tie of the block
    `harm` counts losses from `alone`. `local_solver(objective, start)` approximates a client's argmin, see `newton`
    and `gradient_steps`. In each round a fraction `participation` of the clients, drawn by `seed`, takes part: with
    duals a random coordinate step of Douglas-Rachford splitting, which converges for every rho > 0
    (arXiv 1404.7536); without, z ties what each client sent last. It ends after so many `rounds`, or when both
    residuals are below the `tolerance`, relative to Z. `state` goes on from an earlier solution, to the bit.
    Everything is float64 on the CPU. Raises UserError if an argument does not fit the others, and if a client's loss
    or variable is not finite.
    """
    clauses, operator = _clauses(coupling), Mean() if isinstance(coupling, str | Sequence) else coupling
    by_name = clauses is not None
    if isinstance(operator, Within) and duals and not operator.exact:
        clauses, operator = [set_clause(operator.convex)], operator.inner
    many = participants(losses, initial, exchange, weights, budgets, budget_step, clients, clauses, alone, rho)
    check(many, rho, rounds, participation, budget_step, tolerance, duals, by_name)
    begun = [t.detach().double() for t in initial]
    first = [
        c.sent(t, _loss(many, i, t, 0) if c.priced else 0.0, {})
        for i, (c, t) in enumerate(zip(many, begun, strict=True))
    ]
    tied = [Link.start(x, rho) for x in first]
    plain = [flatten(_parameters(x)) for x in first]
    now = state or Solution(begun, plain, plain, tied, [0.0] * len(first), rho, [])
    theta, links, mu, history = list(now.theta), list(now.links), list(now.mu), list(now.history)
    x = (
        first
        if state is None
        else [
            c.sent(t, _loss(many, i, t, len(history)) if c.priced else 0.0, {})
            for i, (c, t) in enumerate(zip(many, theta, strict=True))
        ]
    )
    carriers = {c.name: Carrier(c.name, x[i], {}, c.weight) for i, c in enumerate(many)}
    values = {c.name: links[i].sent if duals else x[i] for i, c in enumerate(many)}
    hub: Hub
    if clauses is None:
        hub = Hub(operator, now.rho, carriers, values, duals, balance)
    else:
        hub = Joint(operator, now.rho, carriers, values, duals, balance, clauses=clauses, scale=many[0].scale)
    if state is not None:
        hub.restore(state.held)  # as it was tied, before rho adapted
    settled, enough = 0, 3 if participation == 1 else math.ceil(10 / participation)  # in which nearly all take part
    for number in range(len(history), len(history) + rounds):
        gaps = []
        for i in draw(len(many), participation, seed, number):
            client, z, link = many[i], hub.z[many[i].name], links[i].rescale(hub.rho)
            anchor = link.anchor(z) if duals else z
            theta[i] = local_solver(client.objective(anchor, hub.rho, mu[i]), client.begin(theta[i], z))
            if not finite(theta[i]):
                raise UserError(
                    f"local_solver: must return finite values, found others for client {i} in round {number + 1}"
                )
            value = _loss(many, i, theta[i], number)
            x[i] = client.sent(theta[i], value, anchor)
            mu[i] = client.budget.multiplier(mu[i], value)
            gaps.append(norm(subtract(x[i], z)) ** 2)
            sent = x[i]
            if duals:
                sent, links[i] = link.answer(sent, z)
            hub.absorb(client.name, sent)
        line = _line(many, theta, mu, hub.step(gaps), number)
        if isinstance(hub, Joint):
            line = replace(line, prices=tuple(p for y in hub.prices.values() for p in y.tolist()))
        history.append(line)
        size = tolerance * (1 + math.hypot(*(norm(z) for z in hub.z.values())))
        near = max(line.primal, line.dual / (line.rho or 1.0)) <= size and line.violation <= tolerance
        settled = settled + 1 if near else 0
        if tolerance and settled >= enough:
            break
    told = [
        c.sent(t, _loss(many, i, t, len(history)) if c.priced else 0.0, {})
        for i, (c, t) in enumerate(zip(many, theta, strict=True))
    ]

    def prove(factors: list[float]) -> tuple[list[float], bool]:
        """Return the losses at the least of sum_i a_i f_i over what else ties the clients, and whether it is there."""
        ties = [c for c in clauses or () if not c.of_losses] or Separate() if by_name else coupling
        found = solve(
            losses,
            theta,
            ties,
            rho=hub.rho,
            rounds=max(rounds, 500),
            local_solver=local_solver,
            exchange=exchange,
            weights=factors,
            clients=[c.name for c in many],
            tolerance=1e-9,
        )
        return [_loss(many, i, t, len(history)) for i, t in enumerate(found.theta)], found.converged

    verdicts = _verdicts(hub, many, told, history, prove) if isinstance(hub, Joint) else ()
    grown = [0.0] * len(many)
    if len(history) > 1 and history[-1].violation > CLOSE:
        last, half = history[-1].multipliers, history[len(history) // 2 - 1].multipliers
        grown = [max(a - b, 0.0) for a, b in zip(last, half, strict=True)]
    owed = -sum(a * c.budget.limit for a, c in zip(grown, many, strict=True) if a)
    return Solution(
        theta,
        [flatten(_parameters(one)) for one in x],
        [flatten(_parameters(hub.z[c.name])) for c in many],
        links,
        mu,
        hub.rho,
        history,
        hub.state(),
        bool(tolerance) and settled >= enough and all(v.verdict != "infeasible" for v in verdicts),
        tolerance,
        verdicts,
        above(grown, owed, prove),
    )


def _parameters(x: Params) -> Params:
    return {name: value for name, value in x.items() if name not in MEASURED}


def set_clause(convex: ConvexSet) -> Clause:
    """Return the tie that keeps all that each client exchanges in a set."""
    form, size = ("ball", convex.radius) if isinstance(convex, Ball) else ("box", convex.bound)
    return Clause(f"{X}: {form}({size:g})", (X,), form, (repr(size),))


def _clauses(coupling: Operator | str | Sequence[str | Clause]) -> list[Clause] | None:
    if isinstance(coupling, str):
        return read_clauses(coupling)
    if isinstance(coupling, Sequence):
        return [read_clause(one) if isinstance(one, str) else one for one in coupling]
    return None


def _verdicts(
    hub: Joint,
    clients: Sequence[Participant],
    told: Sequence[Params],
    history: Sequence[Line],
    prove: Callable[[list[float]], tuple[list[float], bool]],
) -> tuple[Verdict, ...]:
    """Return how the ties stand at the clients' own values; of losses that are not met, whether they can be."""
    found = hub.at({c.name: one for c, one in zip(clients, told, strict=True)})
    verdicts, unequal = [], {bound.clause.text: bound.unequal for bound in hub.bounds}
    for verdict, clause in zip(hub.verdicts, hub.clauses, strict=True):
        if clause.text in found:
            g = found[clause.text]
            residual = float((g.clamp(min=0.0) if unequal[clause.text] else g.abs()).max())
            word = "met" if residual <= CLOSE * (1 + abs(clause.constant)) else "violated"
            word = verdict.verdict if verdict.verdict == "infeasible" else word
            verdict = replace(verdict, residual=residual, verdict=word)
        verdicts.append(verdict)
    broken = [v for v, c in zip(verdicts, hub.clauses, strict=True) if c.of_losses and v.verdict == "violated"]
    if broken and len(history) > 1 and above(*growing(hub, clients, history), prove):
        verdicts = [replace(v, verdict="infeasible") if v in broken else v for v in verdicts]
    return tuple(verdicts)


def growing(hub: Joint, clients: Sequence[Participant], history: Sequence[Line]) -> tuple[list[float], float]:
    """Return a_i and b with w'g = sum_i a_i f_i + b, for the weights w by which multipliers of ties still grow."""
    last, before = (torch.tensor(history[k].prices, dtype=torch.float64) for k in (-1, len(history) // 2 - 1))
    factors, constant = dict.fromkeys((c.name for c in clients), 0.0), 0.0
    least = {(c.name, one.block): one.least for c in clients for one in c.priced}
    pairs = [(group.layout, bound) for group in hub.groups for bound in group.bounds if bound.clause.of_losses]
    for (layout, bound), w in zip(pairs, torch.split(last - before, [b.size for _, b in pairs]), strict=True):
        flat = torch.zeros(layout.size, dtype=torch.float64, requires_grad=True)
        value = bound.g(flat) @ (w.clamp(min=0.0) if bound.unequal else w)
        (slope,) = torch.autograd.grad(value, flat)
        constant += float(value.detach())
        for client, name, place, _ in layout.spans():
            factor = slope[place].item() * hub.scale
            factors[client] += factor
            constant -= factor * least[client, name]
    return list(factors.values()), constant


def above(factors: Sequence[float], constant: float, prove: Callable[[list[float]], tuple[list[float], bool]]) -> bool:
    """Return whether min sum_i a_i f_i + b > 0, so that what has these weights cannot all be at most 0 (Farkas).

    `prove` minimises sum_i a_i f_i over what else ties the clients, and returns the f_i and whether it has converged:
    of convex losses, and a_i that are not negative, that is a proof as far as it has come.
    """
    size = sum(abs(a) for a in factors)
    if not size or min(factors) < -1e-9 * size:
        return False
    found, converged = prove([max(a / size, 1e-9) * len(factors) for a in factors])
    return converged and sum(a * f for a, f in zip(factors, found, strict=True)) + constant > 1e-6 * size


@dataclass(frozen=True)
class Separate(Operator):
    """No tie: z_i = v_i."""

    def __call__(self, v: Vectors, p: Tensor, rho: float) -> Vectors:
        """See Operator."""
        return v


def _loss(clients: list[Participant], i: int, theta: Tensor, number: int) -> float:
    """Return f_i(theta); raises UserError if it is not finite, for what is tied to it would not be either."""
    value = float(clients[i].loss(theta))
    if not math.isfinite(value):
        raise UserError(f"losses: must be finite, found {value} for client {i} in round {number + 1}")
    return value


def _line(clients: list[Participant], theta: list[Tensor], mu: list[float], gap: Residuals, number: int) -> Line:
    f = [_loss(clients, i, t, number) for i, t in enumerate(theta)]
    objective = sum(client.weight * value for client, value in zip(clients, f, strict=True))
    violation = max(max(value - client.budget.limit, 0.0) for client, value in zip(clients, f, strict=True))
    return Line(objective, gap.primal, gap.dual, violation, tuple(mu), gap.rho)
