"""A coordination problem of one's own: any differentiable losses, without Flower, data or models."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedrec.errors import UserError
from fedrec.federation.coordination.binding import one_sided
from fedrec.federation.coordination.budget import Budget
from fedrec.federation.coordination.clauses import HARM, LOSSES, Clause, read_clause, read_clauses
from fedrec.federation.coordination.halves import Hub, Link, Residuals
from fedrec.federation.coordination.joint import Joint, Verdict
from fedrec.federation.coordination.operators import Mean, Operator, Vectors
from fedrec.federation.participation import draw
from fedrec.keyed import Carrier
from fedrec.params import Params, finite, flatten, norm, subtract

Loss = Callable[[Tensor], Tensor]
LocalSolver = Callable[[Loss, Tensor], Tensor]  # (objective, start) -> approximate minimiser


def gradient_steps(steps: int, lr: float) -> LocalSolver:
    """Return a local solver of so many gradient steps of size `lr`."""

    def run(objective: Loss, start: Tensor) -> Tensor:
        theta = start.detach()
        for _ in range(steps):
            leaf = theta.clone().requires_grad_(True)
            (g,) = torch.autograd.grad(objective(leaf), leaf)
            theta = theta - lr * g
        return theta

    return run


def newton(steps: int = 50, tolerance: float = 1e-12) -> LocalSolver:
    """Return a local solver by Newton's method with backtracking, for strongly convex objectives.

    It stops when a step is below `tolerance` relative to theta, or the gradient below `tolerance` of the first: after
    one step for a quadratic.
    """

    def run(objective: Loss, start: Tensor) -> Tensor:
        theta, first = start.detach(), 0.0
        for _ in range(steps):
            leaf = theta.clone().requires_grad_(True)
            value = objective(leaf)
            (g,) = torch.autograd.grad(value, leaf, create_graph=True)
            size = float(g.detach().norm())
            if size <= tolerance * first:
                break
            first = first or size
            identity = torch.eye(len(theta), dtype=theta.dtype)
            (hessian,) = torch.autograd.grad(g, leaf, identity, is_grads_batched=True)
            step = torch.linalg.solve(hessian, g.detach())
            t, before, slope = 1.0, float(value.detach()), float(g.detach() @ step)
            slack = 1e-14 * (1 + abs(before))  # where rounding can tell
            while t > 1e-10 and float(objective(theta - t * step)) > before - 1e-4 * t * slope + slack:  # Armijo
                t /= 2
            theta = theta - t * step
            if float(step.norm()) <= tolerance * (1 + float(theta.norm())):
                break
        return theta

    return run


Exchange = slice | Callable[[Tensor], Tensor] | Mapping[str, slice]
X = "x"  # the one parameter of `solve`: what a client exchanges, unless its parts have names
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

    @property
    def duals(self) -> list[Tensor]:
        """Return the scaled duals u_i; the multipliers of x_i = z_i are rho p_i u_i."""
        return [flatten(_parameters(link.rescale(self.rho).dual)) for link in self.links]

    @property
    def feasible(self) -> bool:
        """Return whether the budgets can be met as far as the rounds tell: False if the violation does not vanish.

        A multiplier grows by its step times the violation. Budgets that can be met have finite multipliers, so their
        growth dies out; of others one grows for ever by about as much in every round. So False means that every round
        of the last half broke a budget by more than 1e-6, and that a multiplier grew in the last quarter by at least
        0.9 of its growth in the quarter before. That is evidence, not proof: a problem that converges slower than
        0.9 in a quarter of the rounds needs more of them. Under eight rounds tell nothing.
        """
        quarter = len(self.history) // 4
        if quarter < 2 or min(line.violation for line in self.history[-2 * quarter :]) <= 1e-6:
            return True
        first, middle, last = (self.history[-1 - k * quarter].multipliers for k in (2, 1, 0))
        return not any(c - b >= 0.9 * (b - a) > 0 for a, b, c in zip(first, middle, last, strict=True))


@dataclass(frozen=True)
class _Priced:
    """A loss that is exchanged: its block, whether less is no gap, and what it is counted from."""

    block: str
    one_sided: bool
    least: float = 0.0


@dataclass(frozen=True)
class _Client:
    name: str
    loss: Loss
    part: Exchange
    weight: float
    budget: Budget  # infinite where nothing is promised
    priced: tuple[_Priced, ...] = ()
    scale: float = 1.0

    def exchange(self, theta: Tensor) -> Params:
        """Return x(theta), without losses."""
        if isinstance(self.part, Mapping):
            return {name: theta[where] for name, where in self.part.items()}
        return {X: theta[self.part] if isinstance(self.part, slice) else self.part(theta)}

    def sent(self, theta: Tensor, value: float, anchor: Params) -> Params:
        """Return x(theta) and what is sent of the loss f(theta): of a one-sided tie no less than its anchor."""
        x = {name: part.detach() for name, part in self.exchange(theta).items()}
        for one in self.priced:
            told = torch.tensor([(value - one.least) * self.scale], dtype=torch.float64)
            x[one.block] = torch.maximum(told, anchor[one.block]) if one.one_sided and one.block in anchor else told
        return x

    def begin(self, theta: Tensor, z: Params) -> Tensor:
        """Return where a round's local training starts: at the z it received, where x is a part of theta."""
        if isinstance(self.part, slice | Mapping):
            theta = theta.clone()
            for name, where in ({X: self.part} if isinstance(self.part, slice) else self.part).items():
                theta[where] = z[name]
        return theta

    def objective(self, anchor: Params, rho: float, mu: float) -> Loss:
        """Return f + rho/2 |x(theta) - anchor|^2 plus the budget's term over p, which is 1/p of the client's share.

        Of a loss that is exchanged it is rho s^2/2 (f - t + u)^2 too, t - u being its anchor, as far as f's weight
        1 + rho s^2 (f - t + u) is above 0: no client is trained to be worse.
        """
        step = rho * self.scale**2
        points = [float(anchor[one.block]) / self.scale + one.least for one in self.priced]
        above = [point for one, point in zip(self.priced, points, strict=True) if one.one_sided]
        around = [point for one, point in zip(self.priced, points, strict=True) if not one.one_sided]

        def value(theta: Tensor) -> Tensor:
            f = self.loss(theta)
            total = f
            if around:
                whole = step * len(around)
                total = (1 + whole * (f - sum(around) / len(around))).clamp(min=0.0).square() / (2 * whole)
            for point in above:
                total = total + step / 2 * (f - point).clamp(min=0.0).square()
            if rho:
                for name, part in self.exchange(theta).items():
                    total = total + rho / 2 * (part - anchor[name]).square().sum()
            return total if self.budget.limit == math.inf else total + self.budget.term(f, mu) / self.weight

        return value


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
    clauses = _clauses(coupling)
    many = _clients(losses, initial, exchange, weights, budgets, budget_step, clients, clauses, alone, rho)
    _check(many, rho, rounds, participation, budget_step, tolerance, duals, bool(clauses))
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
        assert not isinstance(coupling, str | Sequence)
        hub = Hub(coupling, now.rho, carriers, values, duals, balance)
    else:
        hub = Joint(Mean(), now.rho, carriers, values, duals, balance, clauses=clauses, scale=many[0].scale)
    if state is not None:
        hub.restore(state.held)  # as it was tied, before rho adapted
    settled, enough = 0, math.ceil(3 / participation)
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
    verdicts = _verdicts(hub, many, told, history, theta, local_solver, rounds) if isinstance(hub, Joint) else ()
    return Solution(
        theta,
        [flatten(_parameters(one)) for one in x],
        [flatten(_parameters(hub.z[c.name])) for c in many],
        links,
        mu,
        hub.rho,
        history,
        hub.state(),
        bool(tolerance) and settled >= enough,
        tolerance,
        verdicts,
    )


def _parameters(x: Params) -> Params:
    return {name: value for name, value in x.items() if name not in (LOSSES, HARM)}


def _clauses(coupling: Operator | str | Sequence[str | Clause]) -> list[Clause] | None:
    if isinstance(coupling, str):
        return read_clauses(coupling)
    if isinstance(coupling, Sequence):
        return [read_clause(one) if isinstance(one, str) else one for one in coupling]
    return None


def _verdicts(
    hub: Joint,
    clients: Sequence[_Client],
    told: Sequence[Params],
    history: Sequence[Line],
    theta: Sequence[Tensor],
    local_solver: LocalSolver,
    rounds: int,
) -> tuple[Verdict, ...]:
    """Return how the ties stand at the clients' own values; of losses that are not met, whether they can be."""
    found = hub.at({c.name: one for c, one in zip(clients, told, strict=True)})
    verdicts = []
    for verdict, clause in zip(hub.verdicts, hub.clauses, strict=True):
        if clause.text in found:
            g = found[clause.text]
            residual = float((g.clamp(min=0.0) if clause.inequality or clause.form else g.abs()).max())
            word = "met" if residual <= CLOSE * (1 + abs(clause.constant)) else "violated"
            word = verdict.verdict if verdict.verdict == "infeasible" else word
            verdict = replace(verdict, residual=residual, verdict=word)
        verdicts.append(verdict)
    broken = [v for v, c in zip(verdicts, hub.clauses, strict=True) if c.of_losses and v.verdict == "violated"]
    if broken and len(history) > 1 and contradict(hub, clients, history, theta, local_solver, rounds):
        verdicts = [replace(v, verdict="infeasible") if v in broken else v for v in verdicts]
    return tuple(verdicts)


def contradict(
    hub: Joint,
    clients: Sequence[_Client],
    history: Sequence[Line],
    theta: Sequence[Tensor],
    local_solver: LocalSolver,
    rounds: int,
) -> bool:
    """Return whether the ties of losses contradict each other: min_theta w'g > 0 for the weights w that still grow.

    Of convex losses, and ties that ask each of them to be small, that is a proof (Farkas), as far as the rounds that
    minimise it have come.
    """
    last, before = (torch.tensor(history[k].prices, dtype=torch.float64) for k in (-1, len(history) // 2 - 1))
    w, factors, constant = last - before, dict.fromkeys((c.name for c in clients), 0.0), 0.0
    least = {(c.name, one.block): one.least for c in clients for one in c.priced}
    pairs = [(group.layout, bound) for group in hub.groups for bound in group.bounds if bound.clause.of_losses]
    for (layout, bound), mine in zip(pairs, torch.split(w, [bound.size for _, bound in pairs]), strict=True):
        flat = torch.zeros(layout.size, dtype=torch.float64, requires_grad=True)
        value = bound.g(flat) @ (mine.clamp(min=0.0) if bound.unequal else mine)
        (slope,) = torch.autograd.grad(value, flat)
        constant += float(value.detach())
        for client, name, place, _ in layout.spans():
            factor = slope[place].item() * hub.scale
            factors[client] += factor
            constant -= factor * least[client, name]
    size = sum(abs(a) for a in factors.values())
    if not size or min(factors.values()) < -1e-9 * size:
        return False
    ties = [c for c in hub.clauses if not c.of_losses]
    found = solve(
        [c.loss for c in clients],
        list(theta),
        ties or Separate(),
        rho=hub.rho,
        rounds=max(rounds, 200),
        local_solver=local_solver,
        exchange=[c.part for c in clients],
        weights=[max(factors[c.name] / size, 1e-9) * len(clients) for c in clients],
        clients=[c.name for c in clients],
        tolerance=1e-9,
    )
    least_value = sum(factors[c.name] * float(c.loss(t)) for c, t in zip(clients, found.theta, strict=True)) + constant
    return found.converged and least_value > 1e-6 * size


@dataclass(frozen=True)
class Separate(Operator):
    """No tie: z_i = v_i."""

    def __call__(self, v: Vectors, p: Tensor, rho: float) -> Vectors:
        """See Operator."""
        return v


def _check(
    clients: Sequence[_Client],
    rho: float,
    rounds: int,
    participation: float,
    budget_step: float,
    tolerance: float,
    duals: bool,
    by_name: bool,
) -> None:
    """Raise UserError for a number that is none of its kind."""
    if not (math.isfinite(rho) and rho >= 0):
        raise UserError(f"rho: must be a finite number from 0, found {rho}")
    if not rho > 0 and (duals or any(callable(client.part) for client in clients)):
        raise UserError(f"rho: must be above 0 with duals or a map as exchange, found {rho}")
    if by_name and not duals:
        raise UserError("duals: must be kept for ties by name, found none")
    if rounds < 0:
        raise UserError(f"rounds: must be at least 0, found {rounds}")
    for name, value, most in (("participation", participation, 1.0), ("budget_step", budget_step, math.inf)):
        if not 0 < value <= most or math.isinf(value):
            raise UserError(f"{name}: must be above 0{' and at most 1' * (most == 1)}, found {value}")
    if not 0 <= tolerance < 1:
        raise UserError(f"tolerance: must be from 0 and below 1, found {tolerance}")


def _clients(
    losses: Sequence[Loss],
    initial: Sequence[Tensor],
    exchange: Sequence[Exchange] | None,
    weights: Sequence[float] | None,
    budgets: Sequence[float | None] | None,
    step: float,
    names: Sequence[str] | None,
    clauses: Sequence[Clause] | None,
    alone: Sequence[float] | None,
    rho: float,
) -> list[_Client]:
    n = len(losses)
    parts: Sequence[Exchange] = [slice(None)] * n if exchange is None else exchange
    p = [1.0] * n if weights is None else weights
    limits = [None] * n if budgets is None else budgets
    called = [f"client{i}" for i in range(n)] if names is None else names
    least = [0.0] * n if alone is None else alone
    given = {"initial": initial, "exchange": parts, "weights": p, "budgets": limits, "clients": called, "alone": least}
    for name, value in given.items():
        if len(value) != n:
            raise UserError(f"{name}: must have one entry for each of the {n} losses, found {len(value)}")
    if not n or len({*called}) != n:
        raise UserError(f"clients: must be one or more, each with a name of its own, found {', '.join(called)}")
    if not all(w > 0 and math.isfinite(w) for w in p):
        raise UserError(f"weights: must be above 0 and finite, found {min(p)}")
    if any(limit is not None and math.isnan(limit) for limit in limits):
        raise UserError("budgets: must be numbers, found nan")
    blocks = list(dict.fromkeys(c.blocks[0] for c in clauses or () if c.of_losses))
    if HARM in blocks and alone is None:
        raise UserError("alone: must be given for a tie of harm, the loss of each client by itself, found none")
    budget = [Budget(math.inf if limit is None else limit, step) for limit in limits]
    scale = math.sqrt(step / rho) if blocks and rho > 0 else 1.0
    many = []
    for i, name in enumerate(called):
        priced = tuple(_Priced(b, one_sided(clauses or (), name, b), least[i] if b == HARM else 0.0) for b in blocks)
        many.append(_Client(name, losses[i], parts[i], p[i], budget[i], priced, scale))
    return many


def _loss(clients: list[_Client], i: int, theta: Tensor, number: int) -> float:
    """Return f_i(theta); raises UserError if it is not finite, for what is tied to it would not be either."""
    value = float(clients[i].loss(theta))
    if not math.isfinite(value):
        raise UserError(f"losses: must be finite, found {value} for client {i} in round {number + 1}")
    return value


def _line(clients: list[_Client], theta: list[Tensor], mu: list[float], gap: Residuals, number: int) -> Line:
    f = [_loss(clients, i, t, number) for i, t in enumerate(theta)]
    objective = sum(client.weight * value for client, value in zip(clients, f, strict=True))
    violation = max(max(value - client.budget.limit, 0.0) for client, value in zip(clients, f, strict=True))
    return Line(objective, gap.primal, gap.dual, violation, tuple(mu), gap.rho)
