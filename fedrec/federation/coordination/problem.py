"""The clients of a problem of one's own: their losses, what they exchange, and what is promised to them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrec.errors import UserError
from fedrec.federation.coordination.binding import one_sided
from fedrec.federation.coordination.budget import Budget
from fedrec.federation.coordination.clauses import EXPOSURE, HARM, Clause
from fedrec.federation.coordination.minimise import Loss
from fedrec.params import Params

Exchange = slice | Callable[[Tensor], Tensor] | Mapping[str, slice]
X = "x"  # the one parameter of `solve`: what a client exchanges, unless its parts have names


@dataclass(frozen=True)
class Priced:
    """A loss that is exchanged: its block, whether less is no gap, and what it is counted from."""

    block: str
    one_sided: bool
    least: float = 0.0


@dataclass(frozen=True)
class Participant:
    """One client of a problem: its loss, what of theta it exchanges, its weight, and what it is promised."""

    name: str
    loss: Loss
    part: Exchange
    weight: float
    budget: Budget  # infinite where nothing is promised
    priced: tuple[Priced, ...] = ()
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

        Of a loss that is exchanged it is rho s^2/2 (f - t + u)^2 too, t - u being its anchor. The weight of f,
        1 + rho s^2 (f - t + u), may be below 0: what is stated may ask that a client be worse.
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
                total = (1 + whole * (f - sum(around) / len(around))).square() / (2 * whole)
            for point in above:
                total = total + step / 2 * (f - point).clamp(min=0.0).square()
            if rho:
                for name, part in self.exchange(theta).items():
                    total = total + rho / 2 * (part - anchor[name]).square().sum()
            return total if self.budget.limit == math.inf else total + self.budget.term(f, mu) / self.weight

        return value


def check(
    clients: Sequence[Participant],
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


def participants(
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
) -> list[Participant]:
    """Return the clients that arguments of `solve` make; raises UserError where they do not fit each other."""
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
    if not all(0 < w < math.inf for w in p):
        wrong = next(w for w in p if not 0 < w < math.inf)
        raise UserError(f"weights: must be above 0{' and finite' * (not wrong <= 0)}, found {wrong}")
    if any(limit is not None and math.isnan(limit) for limit in limits):
        raise UserError("budgets: must be numbers, found nan")
    blocks = list(dict.fromkeys(c.blocks[0] for c in clauses or () if c.of_losses))
    if EXPOSURE in blocks:
        raise UserError("tie: exposure must be of recommenders, found losses that show nothing")
    if HARM in blocks and alone is None:
        raise UserError("alone: must be given for a tie of harm, the loss of each client by itself, found none")
    budget = [Budget(math.inf if limit is None else limit, step) for limit in limits]
    scale = math.sqrt(step / rho) if blocks and rho > 0 else 1.0
    many = []
    for i, name in enumerate(called):
        priced = tuple(Priced(b, one_sided(clauses or (), name, b), least[i] if b == HARM else 0.0) for b in blocks)
        many.append(Participant(name, losses[i], parts[i], p[i], budget[i], priced, scale))
    return many
