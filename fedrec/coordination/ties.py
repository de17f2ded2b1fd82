"""The server's side of a coupling over rounds: what each client is sent, and what its answers make of Z."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedrec.aggregation import Carrier, gather, mean, mean_of, sums
from fedrec.coordination.coupling import Coupling
from fedrec.coordination.descent import Descent, Stepped
from fedrec.coordination.halves import Hub, Residuals, Sums, double
from fedrec.parameters import Params, norm, subtract
from fedrec.robust import Robust


class Tie(Protocol):
    """Holds Z."""

    additive: bool  # whether it needs no more than the sums of what the clients of a round send

    @property
    def rho(self) -> float:
        """The present penalty."""
        ...

    def part(self, client: str) -> Params:
        """Return a client's z_i, in the dtypes that travel."""
        ...

    def whole(self) -> Params:
        """Return the server's parameters: Z itself, or the mean of personal z_i."""
        ...

    def update(self, answers: Mapping[str, Params], gaps: Mapping[str, float], subtotals: Sums = ()) -> Residuals:
        """Take what the clients of a round sent, and their |x_i - z_i|^2 where they told it; tie anew.

        `subtotals`, of an additive tie alone, are of clients that have no answer of their own.
        """
        ...

    def move(self, change: Params) -> None:
        """Take the mean change of a round that was made elsewhere, so that nobody sees a client's."""
        ...

    def state(self) -> Params:
        """Return everything that it remembers, as named tensors."""
        ...

    def restore(self, state: Params) -> None:
        """Go back to a `state`."""
        ...


@dataclass
class Average:
    """The weighted mean over the clients of the round; nothing of earlier rounds is remembered."""

    additive = True
    rho: float
    carriers: dict[str, Carrier]
    z: Params

    def part(self, client: str) -> Params:
        """See Tie."""
        return gather(self.z, self.carriers[client])

    def whole(self) -> Params:
        """See Tie."""
        return self.z

    def update(self, answers: Mapping[str, Params], gaps: Mapping[str, float], subtotals: Sums = ()) -> Residuals:
        """See Tie."""
        place = {name: number for number, name in enumerate(self.carriers)}
        parts = [*sums(answers, {name: self.part(name) for name in answers}, self.carriers), *subtotals]
        parts.sort(key=lambda part: place[part.clients[0]])
        before, self.z = self.z, mean_of(parts, self.carriers, self.z)
        primal = math.fsum(part.gap for part in parts) ** 0.5
        return Residuals(primal, self.rho * self.moved(before, parts) if self.rho else 0.0, self.rho)

    def move(self, change: Params) -> None:
        """See Tie."""
        self.z = {name: (value.double() + change[name]).to(value.dtype) for name, value in self.z.items()}

    def state(self) -> Params:
        """See Tie."""
        return self.z

    def restore(self, state: Params) -> None:
        """See Tie."""
        self.z = state

    def moved(self, before: Params, parts: Sums) -> float:
        """Return |Z+ - Z| over the clients of a round."""
        rows = {n: (z.double() - before[n].double()).square().reshape(len(z), -1).sum(1) for n, z in self.z.items()}
        full = {name: float(value.sum()) for name, value in rows.items()}
        squares = []
        for who in (self.carriers[client] for part in parts for client in part.clients):
            part = {n: n in who.positions and n not in who.whole for n in who.like}
            squares += [float(rows[n][who.positions[n]].sum()) if some else full[n] for n, some in part.items()]
        return math.sqrt(math.fsum(squares))


@dataclass
class Consensus:
    """The mean of what all clients sent last, of which the server is told no more than the mean increment.

    Every client counts once; a round moves Z by the sum of its increments over the number of all clients.
    """

    additive = False
    rho: float
    carriers: dict[str, Carrier]
    z: Params  # in float64, so that the increments of many rounds add up to what the clients count on

    def part(self, client: str) -> Params:
        """See Tie."""
        like = self.carriers[client].like
        return {name: value.to(like[name].dtype) for name, value in gather(self.z, self.carriers[client]).items()}

    def whole(self) -> Params:
        """See Tie."""
        return {name: value.float() for name, value in self.z.items()}

    def update(self, answers: Mapping[str, Params], gaps: Mapping[str, float], subtotals: Sums = ()) -> Residuals:
        """See Tie."""
        raise TypeError("consensus: must be moved by what was summed, found answers")

    def move(self, change: Params) -> None:
        """See Tie."""
        self.z = {name: value + change[name] for name, value in self.z.items()}

    def state(self) -> Params:
        """See Tie."""
        return self.z

    def restore(self, state: Params) -> None:
        """See Tie."""
        self.z = state


@dataclass
class Coupled:
    """An operator over what all clients sent last; with duals the answers are increments of v_i = x_i + u_i."""

    additive = False
    coupling: Coupling
    hub: Hub

    @property
    def rho(self) -> float:
        """See Tie."""
        return self.hub.rho

    def part(self, client: str) -> Params:
        """See Tie."""
        like = self.hub.carriers[client].like
        return {name: value.to(like[name].dtype) for name, value in self.hub.z[client].items()}

    def whole(self) -> Params:
        """See Tie."""
        return mean([(who, self.hub.z[name]) for name, who in self.hub.carriers.items()])

    def move(self, change: Params) -> None:
        """See Tie."""
        raise TypeError("coupling: must be told what each client sent, found a mean")

    def update(self, answers: Mapping[str, Params], gaps: Mapping[str, float], subtotals: Sums = ()) -> Residuals:
        """See Tie."""
        if not self.coupling.duals:
            gaps = {name: norm(subtract(x, self.part(name))) ** 2 for name, x in answers.items()}
        for name, sent in answers.items():
            if self.coupling.duals:
                self.hub.absorb(name, sent)
            else:
                self.hub.replace(name, sent)
        return self.hub.step(list(gaps.values()), self.coupling.balance)

    def state(self) -> Params:
        """See Tie."""
        rho, parts = torch.tensor(self.hub.rho, dtype=torch.float64), {"v": self.hub.values, "z": self.hub.z}
        return {"rho": rho, **{f"{kind}/{key}": value for kind, one in parts.items() for key, value in spread(one)}}

    def restore(self, state: Params) -> None:
        """See Tie."""
        self.hub.rho = float(state["rho"])
        for kind, parts in (("v", self.hub.values), ("z", self.hub.z)):
            for place, (name, value) in enumerate(parts.items()):
                parts[name] = {key: state[f"{kind}/{place}/{key}"] for key in value}


def spread(parts: Mapping[str, Params]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of all clients under PLACE/NAME, with the client's place in their order."""
    for place, part in enumerate(parts.values()):
        for name, value in part.items():
            yield f"{place}/{name}", value


def tie_of(
    coupling: Coupling,
    descent: Descent,
    carriers: dict[str, Carrier],
    values: dict[str, Params],
    seed: int,
    robust: Robust,
    summed: bool = False,
) -> Tie:
    """Return the tie of clients that join with `values`; raises UserError where the coupling does not fit them.

    `summed` says that the server gets sums alone, also of increments.
    """
    operator = coupling.operator(list(carriers))
    if coupling.plain:
        z = mean([(carriers[name], value) for name, value in values.items()])
        if descent.plain and not robust.active:
            return Average(coupling.rho, carriers, z)
        return Stepped(descent, coupling.rho, seed, carriers, z, robust)
    if summed:
        return Consensus(coupling.rho, carriers, double(mean([(carriers[n], value) for n, value in values.items()])))
    return Coupled(coupling, Hub(operator, coupling.rho, carriers, values))
