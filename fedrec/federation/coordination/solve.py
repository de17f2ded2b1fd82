"""A coordination problem of one's own: any differentiable losses, without Flower, data or models."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrec.errors import UserError
from fedrec.federation.coordination.budget import Budget
from fedrec.federation.coordination.halves import Hub, Link, Residuals
from fedrec.federation.coordination.operators import Operator
from fedrec.federation.participation import draw
from fedrec.keyed import Carrier
from fedrec.params import finite, norm, subtract

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


Exchange = slice | Callable[[Tensor], Tensor]
X = "x"  # the one parameter of `solve`: what a client exchanges


@dataclass(frozen=True)
class Line:
    """One round: the objective sum_i p_i f_i, both residuals, the largest max(f_i - b_i, 0), all mu_i, and rho."""

    objective: float
    primal: float
    dual: float
    violation: float
    multipliers: tuple[float, ...]
    rho: float


@dataclass(frozen=True)
class Solution:
    """The state after the rounds, from which `solve` can go on.

    `theta` [n] the local variables, `x` what they exchange, `z` the coupled points, `links` the clients' scaled duals,
    `mu` the multipliers of the budgets, `history` one line for each round.
    """

    theta: list[Tensor]
    x: list[Tensor]
    z: list[Tensor]
    links: list[Link]
    mu: list[float]
    rho: float
    history: list[Line]

    @property
    def duals(self) -> list[Tensor]:
        """Return the scaled duals u_i; the multipliers of x_i = z_i are rho p_i u_i."""
        return [link.dual[X] for link in self.links]

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
class _Client:
    loss: Loss
    part: Exchange
    weight: float
    budget: Budget  # infinite where nothing is promised

    def exchange(self, theta: Tensor) -> Tensor:
        return theta[self.part] if isinstance(self.part, slice) else self.part(theta)

    def begin(self, theta: Tensor, z: Tensor) -> Tensor:
        """Return where a round's local training starts: at the z it received, where x is a part of theta."""
        if not isinstance(self.part, slice):
            return theta
        theta = theta.clone()
        theta[self.part] = z
        return theta

    def objective(self, anchor: Tensor, rho: float, mu: float) -> Loss:
        """Return f + rho/2 |x(theta) - anchor|^2 plus the budget's term over p, which is 1/p of the client's share."""

        def value(theta: Tensor) -> Tensor:
            f = self.loss(theta)
            tied = f + rho / 2 * (self.exchange(theta) - anchor).square().sum() if rho else f
            return tied if self.budget.limit == math.inf else tied + self.budget.term(f, mu) / self.weight

        return value


def solve(
    losses: Sequence[Loss],
    initial: Sequence[Tensor],
    coupling: Operator,
    *,
    rho: float,
    rounds: int,
    local_solver: LocalSolver,
    participation: float = 1.0,
    exchange: Sequence[Exchange] | None = None,
    weights: Sequence[float] | None = None,
    budgets: Sequence[float | None] | None = None,
    budget_step: float = 1.0,
    duals: bool = True,
    balance: bool = False,
    seed: int = 0,
    state: Solution | None = None,
) -> Solution:
    """Minimise sum_i p_i f_i(theta_i) + h(Z) subject to x_i(theta_i) = z_i, Z in C, and f_i(theta_i) <= b_i.

    `losses[i]` maps theta_i [d_i] to a scalar; `exchange[i]` is the part of theta_i that is x_i (all of it by default,
    a slice for partial sharing) or an affine map to x_i (a matrix for a linear tie, logits for output agreement).
    `local_solver(objective, start)` approximates a client's argmin, see `newton` and `gradient_steps`. In each round a
    fraction `participation` of the clients, drawn by `seed`, takes part: with duals a random coordinate step of
    Douglas-Rachford splitting, which converges for every rho > 0 (arXiv 1404.7536); without, z ties what each client
    sent last. `state` goes on from an earlier solution, to the bit. Everything is float64 on the CPU.
    Raises UserError if an argument does not fit the others, and if a client's loss or variable is not finite.
    """
    clients = _clients(losses, initial, exchange, weights, budgets, budget_step)
    if not rho > 0 and (duals or any(not isinstance(client.part, slice) for client in clients)):
        raise UserError(f"rho: must be above 0 with duals or a map as exchange, found {rho}")
    begun = [t.detach().double() for t in initial]
    first = [client.exchange(t).detach() for client, t in zip(clients, begun, strict=True)]
    tied = [Link.start({X: t}, rho) for t in first]
    now = state or Solution(begun, first, first, tied, [0.0] * len(first), rho, [])
    theta, x, links, mu, history = list(now.theta), list(now.x), list(now.links), list(now.mu), list(now.history)
    carriers = {str(i): Carrier(str(i), {X: x[i]}, {}, client.weight) for i, client in enumerate(clients)}
    values = {str(i): {X: links[i].sent[X] if duals else x[i]} for i in range(len(x))}
    hub = Hub(coupling, now.rho, carriers, values, duals, balance)
    if state is not None:
        hub.z = {str(i): {X: z} for i, z in enumerate(state.z)}  # as it was tied, before rho adapted
    for number in range(len(history), len(history) + rounds):
        gaps = []
        for i in draw(len(clients), participation, seed, number):
            client, z, link = clients[i], hub.z[str(i)], links[i].rescale(hub.rho)
            anchor = link.anchor(z) if duals else z
            theta[i] = local_solver(client.objective(anchor[X], hub.rho, mu[i]), client.begin(theta[i], z[X]))
            x[i] = client.exchange(theta[i]).detach()
            if not finite(theta[i]):
                raise UserError(
                    f"local_solver: must return finite values, found others for client {i} in round {number + 1}"
                )
            mu[i] = client.budget.multiplier(mu[i], _loss(clients, i, theta[i], number))
            gaps.append(norm(subtract({X: x[i]}, z)) ** 2)
            sent = {X: x[i]}
            if duals:
                sent, links[i] = link.answer(sent, z)
            hub.absorb(str(i), sent)
        history.append(_line(clients, theta, mu, hub.step(gaps), number))
    return Solution(theta, x, [hub.z[str(i)][X] for i in range(len(x))], links, mu, hub.rho, history)


def _clients(
    losses: Sequence[Loss],
    initial: Sequence[Tensor],
    exchange: Sequence[Exchange] | None,
    weights: Sequence[float] | None,
    budgets: Sequence[float | None] | None,
    step: float,
) -> list[_Client]:
    n = len(losses)
    parts: Sequence[Exchange] = [slice(None)] * n if exchange is None else exchange
    p = [1.0] * n if weights is None else weights
    limits = [None] * n if budgets is None else budgets
    for name, value in {"initial": initial, "exchange": parts, "weights": p, "budgets": limits}.items():
        if len(value) != n:
            raise UserError(f"{name}: must have one entry for each of the {n} losses, found {len(value)}")
    if not all(w > 0 for w in p):
        raise UserError(f"weights: must be above 0, found {min(p)}")
    budget = [Budget(math.inf if limit is None else limit, step) for limit in limits]
    return [_Client(*row) for row in zip(losses, parts, p, budget, strict=True)]


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
