"""The server's side of a coupling over rounds: what each client is sent, and what its answers make of Z."""

import math
from collections.abc import Mapping

import torch

from fedrec.federation.coordination.coupling import Coupling
from fedrec.federation.coordination.descent import Descent, Stepped
from fedrec.federation.coordination.factors import Factored, Solver
from fedrec.federation.coordination.halves import Held, Hub, Residuals, Sums, double
from fedrec.federation.coordination.joint import Joint
from fedrec.federation.coordination.solved import Penalty, Solved
from fedrec.federation.coordination.totals import Projected, Total
from fedrec.federation.robust import Robust
from fedrec.keyed import Carrier, gather, mean, mean_of, sums
from fedrec.params import Params
from fedrec.sharing import FACTORS
from fedrec.subspace import Search

Tie = Held | Hub  # what holds Z on the server


class Average(Held):
    """The weighted mean over the clients of the round; nothing of earlier rounds is remembered."""

    additive = True

    def update(self, answers: Mapping[str, Params], gaps: Mapping[str, float], subtotals: Sums = ()) -> Residuals:
        """See Held."""
        place = {name: number for number, name in enumerate(self.carriers)}
        parts = [*sums(answers, {name: self.part(name) for name in answers}, self.carriers), *subtotals]
        parts.sort(key=lambda part: place[part.clients[0]])
        before, self.z = self.z, mean_of(parts, self.carriers, self.z)
        primal = math.fsum(part.gap for part in parts) ** 0.5
        return Residuals(primal, self.rho * self.motion(before, parts) if self.rho else 0.0, self.rho)

    def move(self, change: Params) -> None:
        """See Held."""
        self.z = {name: (value.double() + change[name]).to(value.dtype) for name, value in self.z.items()}

    def motion(self, before: Params, parts: Sums) -> float:
        """Return |Z+ - Z| over the clients of a round."""
        rows = {n: (z.double() - before[n].double()).square().reshape(len(z), -1).sum(1) for n, z in self.z.items()}
        full = {name: float(value.sum()) for name, value in rows.items()}
        squares = []
        for who in (self.carriers[client] for part in parts for client in part.clients):
            parts_of = {name: who.part(name) for name in who.like}
            squares += [full[n] if places is None else float(rows[n][places].sum()) for n, places in parts_of.items()]
        return math.sqrt(math.fsum(squares))


class Consensus(Held):
    """The mean of what all clients sent last, of which the server is told no more than the mean increment.

    Every client counts once; a round moves Z by the sum of its increments over the number of all clients. Z is in
    float64, so that the increments of many rounds add up to what the clients count on.
    """

    def part(self, client: str) -> Params:
        """See Held."""
        like = self.carriers[client].like
        return {name: value.to(like[name].dtype) for name, value in gather(self.z, self.carriers[client]).items()}

    def whole(self) -> Params:
        """See Held."""
        return {name: value.float() for name, value in self.z.items()}

    def move(self, change: Params) -> None:
        """See Held."""
        self.z = {name: value + change[name] for name, value in self.z.items()}


def tie_of(
    coupling: Coupling,
    descent: Descent,
    carriers: dict[str, Carrier],
    values: dict[str, Params],
    seed: int,
    robust: Robust,
    summed: bool = False,
    by_sums: bool = False,
    penalty: Penalty | None = None,
    search: Search | None = None,
    factors: Solver | None = None,
) -> Tie:
    """Return the tie of clients that join with `values`; raises UserError where the coupling does not fit them.

    `summed` says that the server gets sums alone, also of increments; `by_sums` that what clients send are sums of
    which the total is asked for, or, with a `penalty`, the weights that the coupling makes of them, or, with a
    `search`, what they make of a subspace, or, with `factors`, the factors of items.
    """
    if penalty:
        return Solved(0.0, carriers, {}, coupling=coupling, penalty=penalty)
    like = next(iter(values.values()))
    if factors and FACTORS in like:
        z = mean([(carriers[name], {FACTORS: value[FACTORS]}) for name, value in values.items()])
        return Factored(coupling.rho, carriers, z, solver=factors)
    if search:
        z = mean([(carriers[name], value) for name, value in values.items()])
        return Projected(coupling.rho, carriers, z, search=search)
    if by_sums:
        return Total(coupling.rho, carriers, {name: torch.zeros_like(value) for name, value in like.items()})
    operator = coupling.operator(list(carriers))
    if coupling.plain:
        z = mean([(carriers[name], value) for name, value in values.items()])
        if descent.plain and not robust.active:
            return Average(coupling.rho, carriers, z)
        return Stepped(coupling.rho, carriers, z, descent, seed, robust)
    if summed:
        return Consensus(coupling.rho, carriers, double(mean([(carriers[n], value) for n, value in values.items()])))
    hub = (operator, coupling.rho, carriers, values, coupling.duals, coupling.balance)
    if coupling.clauses:
        return Joint(*hub, clauses=coupling.clauses, scale=coupling.scale)
    return Hub(*hub)
