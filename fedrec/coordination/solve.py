"""A coordination problem of one's own: any differentiable losses, without Flower, data or models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedrec.aggregation import Carrier
from fedrec.coordination.budget import Budget
from fedrec.coordination.halves import Hub, Link, Residuals
from fedrec.coordination.operators import Operator
from fedrec.seeds import generator

Loss = Callable[[Tensor], Tensor]
LocalSolver = Callable[[Loss, Tensor], Tensor]  # (objective, start) -> approximate minimiser
X = "x"  # the one parameter of `solve`: what a client exchanges


@dataclass(frozen=True)
class Solution:
    """The state after the rounds, from which `solve` can go on.

    `theta` [n] the local variables, `x` what they exchange, `z` the coupled points, `links` the clients' duals, `mu` the
    multipliers of the budgets, `history` one line of residuals and violation for each round.
    """

    theta: list[Tensor]
    x: list[Tensor]
    z: list[Tensor]
    links: list[Link]
    mu: list[float]
    sent: list[Tensor]
    rho: float
    rounds: int
    history: list["Line"] = field(default_factory=list)

    @property
    def duals(self) -> list[Tensor]:
        """Return the scaled duals u_i."""
        return [link.dual[X] for link in self.links]

    @property
    def feasible(self) -> bool:
        """Return whether the last round met every budget, to 1e-6 of the largest multiplier's scale."""
        return not self.history or self.history[-1].violation <= 1e-6


@dataclass(frozen=True)
class Line:
    """One round: the objective sum p_i f_i, both residuals, the largest budget violation max(f_i - b_i, 0), and rho."""

    objective: float
    primal: float
    dual: float
    violation: float
    rho: float


def solve(
    losses: Sequence[Loss],
    initial: Sequence[Tensor],
    coupling: Operator,
    *,
    rho: float,
    rounds: int,
    local_solver: LocalSolver,
    participation: float = 1.0,
    exchange: Sequence[Callable[[Tensor], Tensor]] | None = None,
    weights: Sequence[float] | None = None,
    budgets: Sequence[float | None] | None = None,
    budget_step: float = 1.0,
    duals: bool = True,
    balance: bool = False,
    seed: int = 0,
    state: Solution | None = None,
) -> Solution:
    """Minimise sum_i p_i f_i(theta_i) + h(Z) subject to x_i(theta_i) = z_i, Z in C, and f_i(theta_i) <= b_i.

    `losses[i]` maps theta_i [d_i] to a scalar; `exchange[i]` maps it to x_i (the whole of theta_i by default; a slice for
    partial sharing, a matrix product for a linear tie, logits for output agreement). `local_solver(objective, start)`
    approximates a client's argmin, see `newton` and `gradient_steps`. In each round a fraction `participation` of the
    clients, drawn by `seed`, takes part. `state` goes on from an earlier solution, to the bit. Everything is float64.
    """
    n = len(losses)
    maps = list(exchange) if exchange is not None else [lambda theta: theta] * n
    p = list(weights) if weights is not None else [1.0] * n
    budget = [Budget(b, budget_step) if b is not None else None for b in budgets or [None] * n]
    if state is None:
        theta = [one.detach().double() for one in initial]
        x = [m(t).detach() for m, t in zip(maps, theta, strict=True)]
        links = [Link.start({X: one}, rho) for one in x]
        state = Solution(theta, x, x, links, [0.0] * n, x, rho, 0)
    carriers = {str(i): Carrier(str(i), {X: state.x[i]}, {}, p[i]) for i in range(n)}
    hub = Hub(coupling, state.rho, carriers, {str(i): {X: state.sent[i]} for i in range(n)})
    theta, links, mu, x = list(state.theta), list(state.links), list(state.mu), list(state.x)
    history = list(state.history)
    for number in range(state.rounds, state.rounds + rounds):
        chosen = sorted(
            generator(seed, "participation", number).permutation(n)[: max(1, round(participation * n))].tolist()
        )
        gaps = []
        for i in chosen:
            z, link = {X: hub.z[str(i)][X]}, links[i].rescaled(hub.rho)
            anchor = link.anchor(z)[X] if duals else z[X]
            theta[i] = local_solver(_objective(losses[i], maps[i], anchor, hub.rho, p[i], mu[i], budget[i]), theta[i])
            x[i] = maps[i](theta[i]).detach()
            limit = budget[i]
            if limit is not None:
                mu[i] = limit.multiplier(mu[i], float(losses[i](theta[i])))
            gaps.append(float((x[i] - z[X]).square().sum()))
            if duals:
                increment, links[i] = link.answer({X: x[i]}, z)
                hub.absorb(str(i), increment)
            else:
                hub.replace(str(i), {X: x[i]})
        history.append(_line(losses, theta, p, budget, hub.step(gaps, balance)))
    z_now, sent = ([d[str(i)][X] for i in range(n)] for d in (hub.z, hub.values))
    return replace(
        state,
        theta=theta,
        x=x,
        z=z_now,
        links=links,
        mu=mu,
        sent=sent,
        rho=hub.rho,
        rounds=state.rounds + rounds,
        history=history,
    )


def _objective(
    loss: Loss,
    exchange: Callable[[Tensor], Tensor],
    anchor: Tensor,
    rho: float,
    p: float,
    mu: float,
    budget: Budget | None,
) -> Loss:
    """Return p f + rho p/2 |x(theta) - anchor|^2, plus the budget's term."""

    def objective(theta: Tensor) -> Tensor:
        f = loss(theta)
        value = p * f + rho * p / 2 * (exchange(theta) - anchor).square().sum()
        return value if budget is None else value + budget.term(f, mu)

    return objective


def _line(
    losses: Sequence[Loss], theta: list[Tensor], p: list[float], budgets: list[Budget | None], found: Residuals
) -> Line:
    values = [float(loss(t).detach()) for loss, t in zip(losses, theta, strict=True)]
    over = [max(f - b.limit, 0.0) for f, b in zip(values, budgets, strict=True) if b is not None]
    objective = sum(weight * f for weight, f in zip(p, values, strict=True))
    return Line(objective, found.primal, found.dual, max(over, default=0.0), found.rho)


def gradient_steps(steps: int, lr: float) -> LocalSolver:
    """Return a local solver of so many gradient steps of size `lr` from the client's last theta."""

    def run(objective: Loss, start: Tensor) -> Tensor:
        theta = start.detach().clone()
        for _ in range(steps):
            theta.requires_grad_(True)
            (g,) = torch.autograd.grad(objective(theta), theta)
            theta = (theta - lr * g).detach()
        return theta

    return run


def newton(steps: int = 50, tolerance: float = 1e-13) -> LocalSolver:
    """Return a local solver by Newton's method with backtracking: exact in one step for a quadratic."""

    def run(objective: Loss, start: Tensor) -> Tensor:
        theta = start.detach().clone()
        for _ in range(steps):
            leaf = theta.clone().requires_grad_(True)
            value = objective(leaf)
            (g,) = torch.autograd.grad(value, leaf)
            if float(g.norm()) <= tolerance * (1 + float(theta.norm())):
                break
            hessian = torch.autograd.functional.hessian(objective, theta)  # type: ignore[no-untyped-call]
            step = torch.linalg.solve(hessian, g)
            t, slope = 1.0, float(g @ step)
            while t > 1e-10 and float(objective(theta - t * step)) > float(value) - 1e-4 * t * slope:
                t /= 2
            theta = theta - (t if t > 1e-10 else 1.0) * step
        return theta.detach()

    return run
