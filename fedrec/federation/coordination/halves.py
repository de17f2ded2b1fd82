"""The two halves of a coupling: what a client adds to its objective and sends, and how the server ties it.

client:  theta_i ~ argmin p_i f_i + rho_i/2 |x_i - z_i + u_i|^2 ;  u_i += x_i - z_i ;  send v_i = x_i + u_i
server:  Z = prox_{h/rho}(V)

with rho_i = rho p_i: a client minimises f_i + rho/2 |x_i - z_i + u_i|^2, and the server's metric has the weights p_i.
The scaled dual u_i stays with the client; v_i travels as an increment of what the server has already, so that a
round without a client leaves both sides in agreement. Without duals (u_i = 0) v_i is x_i itself.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedrec.federation.coordination.balancing import Balancing
from fedrec.federation.coordination.balls import shrink
from fedrec.federation.coordination.operators import (
    Box,
    Clusters,
    Mean,
    Operator,
    Vectors,
    Within,
    above,
    proximal_point,
)
from fedrec.keyed import Carrier, Subtotal, gather, mean, patterns
from fedrec.params import Params, add, flatten, norm, subtract, unflatten

Sums = Sequence[Subtotal]


@dataclass(frozen=True)
class Link:
    """What a client remembers of its tie: the scaled dual u_i, the v_i that the server holds, and the rho of u_i."""

    dual: Params
    sent: Params
    rho: float

    @staticmethod
    def start(x: Params, rho: float) -> "Link":
        """Return the link of a client that has joined with x: u_i = 0, v_i = x_i."""
        return Link({n: torch.zeros_like(v, dtype=torch.float64) for n, v in x.items()}, double(x), rho)

    def rescale(self, rho: float) -> "Link":
        """Return the link under another rho: the dual rho u_i stays, so u_i is scaled by old/new."""
        if rho == self.rho:
            return self
        return Link({name: value * (self.rho / rho) for name, value in self.dual.items()}, self.sent, rho)

    def anchor(self, z: Params) -> Params:
        """Return z_i - u_i, the point that the proximal term rho/2 |x_i - (z_i - u_i)|^2 pulls x_i to."""
        return {name: (value.double() - self.dual[name]).to(value.dtype) for name, value in z.items()}

    def answer(self, x: Params, z: Params) -> tuple[Params, "Link"]:
        """Return the increment of v_i to send, in x's dtype, and the link after it.

        u_i+ = u_i + x_i - z_i and v_i = x_i + u_i+. What the increment loses by rounding stays owed: `sent` is the sum
        of the increments as they travelled.
        """
        dual = add(self.dual, subtract(double(x), double(z)))
        increment = {n: (x[n].double() + dual[n] - self.sent[n]).to(x[n].dtype) for n in x}
        return increment, Link(dual, add(self.sent, double(increment)), self.rho)


@dataclass(frozen=True)
class Residuals:
    """|X - Z| over the clients that answered, rho |Z+ - Z|, and the rho that they were measured under."""

    primal: float
    dual: float
    rho: float


class Untold:
    """What a tie says of itself that has no prices, proof or constraints by name."""

    def charge(self, over: Mapping[str, float]) -> dict[str, float]:
        """Return the prices after clients were told to be so far above their budgets, where it is the tie that asks."""
        return {}

    def certificate(self) -> dict[str, Any]:
        """Return what proves Z the best there is, as JSON can hold it; nothing where it is approached by rounds."""
        return {}

    def columns(self, broken: Mapping[str, float] = MappingProxyType({})) -> dict[str, float]:
        """Return what a round's row says of the constraints that it ties by, given by how much they are broken."""
        return {}

    def broken(self, losses: Mapping[tuple[str, str], float]) -> dict[str, float]:
        """Return by how much Z breaks each constraint, given the clients' losses by (client, block)."""
        return {}

    def verdict_rows(self, broken: Mapping[str, float]) -> list[dict[str, Any]]:
        """Return how each constraint stands, as JSON can hold it."""
        return []


@dataclass
class Held(Untold):
    """A tie whose Z is one set of parameters, of which a client is sent its part; `rho` is the present penalty."""

    additive: ClassVar[bool] = False  # whether it needs no more than the sums of what the clients of a round send
    rho: float
    carriers: dict[str, Carrier]
    z: Params
    number: int = field(default=0, init=False)  # the round that it ties

    def part(self, client: str) -> Params:
        """Return a client's z_i, in the dtypes that travel."""
        return gather(self.z, self.carriers[client])

    def whole(self) -> Params:
        """Return the server's parameters: Z itself, or the mean of personal z_i."""
        return self.z

    def update(self, answers: Mapping[str, Params], gaps: Mapping[str, float], subtotals: Sums = ()) -> Residuals:
        """Take what the clients of a round sent, and their |x_i - z_i|^2 where they told it; tie anew.

        `subtotals`, of an additive tie alone, are of clients that have no answer of their own.
        """
        raise TypeError("tie: must be moved by what was summed, found answers")

    def move(self, change: Params) -> None:
        """Take the mean change of a round that was made elsewhere, so that nobody sees a client's."""
        raise TypeError("tie: must be told what each client sent, found a mean")

    def state(self) -> Params:
        """Return everything that it remembers, as named tensors."""
        return self.z

    def restore(self, state: Params) -> None:
        """Go back to a `state`."""
        self.z = state


@dataclass
class Hub(Untold):
    """The server half: it remembers V and ties it by an operator.

    `values` are the v_i that the clients joined with. Every client has a weight p_i in its carrier. With `duals` the
    answers are increments of v_i = x_i + u_i; with `balance` rho adapts, and `balancing` is how far it has. Raises
    UserError for a rho that is not finite and >= 0, or a weight that is not finite and > 0.
    """

    additive: ClassVar[bool] = False
    operator: Operator
    rho: float
    carriers: dict[str, Carrier]
    values: dict[str, Params]
    duals: bool = True
    balance: bool = False
    balancing: Balancing = field(default_factory=Balancing)
    z: dict[str, Params] = field(init=False)
    number: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        above("rho", self.rho, strict=False)
        for who in self.carriers.values():
            above(f"weight of {who.client}", who.weight)
        self.values = {name: double(value) for name, value in self.values.items()}
        self.z = self.tie()

    def part(self, client: str) -> Params:
        """See Held."""
        return {name: value.to(self.carriers[client].like[name].dtype) for name, value in self.z[client].items()}

    def whole(self) -> Params:
        """See Held."""
        types = {name: value.dtype for who in self.carriers.values() for name, value in who.like.items()}
        z = mean([(who, self.z[name]) for name, who in self.carriers.items()], dtype=torch.float64)
        return {name: value.to(types[name]) for name, value in z.items()}

    def move(self, change: Params) -> None:
        """See Held."""
        raise TypeError("coupling: must be told what each client sent, found a mean")

    def update(self, answers: Mapping[str, Params], gaps: Mapping[str, float], subtotals: Sums = ()) -> Residuals:
        """See Held."""
        if not self.duals:
            gaps = {name: norm(subtract(x, self.part(name))) ** 2 for name, x in answers.items()}
        for name, sent in answers.items():
            self.absorb(name, sent)
        return self.step(list(gaps.values()))

    def state(self) -> Params:
        """See Held; the tensors of all clients are under KIND/PLACE/NAME, with the client's place in their order."""
        params = {"rho": torch.tensor(self.rho, dtype=torch.float64)}
        if self.balance:
            params["balancing"] = self.balancing.state()
        for kind, parts in (("v", self.values), ("z", self.z)):
            for place, part in enumerate(parts.values()):
                params |= {f"{kind}/{place}/{name}": value for name, value in part.items()}
        return params

    def restore(self, state: Params) -> None:
        """See Held."""
        self.rho = float(state["rho"])
        if self.balance:
            self.balancing = Balancing.restore(state["balancing"])
        for kind, parts in (("v", self.values), ("z", self.z)):
            for place, (name, value) in enumerate(parts.items()):
                parts[name] = {key: state[f"{kind}/{place}/{key}"] for key in value}

    def absorb(self, client: str, sent: Params) -> None:
        """Add a client's increment to its v_i; without duals what was sent is v_i."""
        self.values[client] = add(self.values[client], double(sent)) if self.duals else double(sent)

    def step(self, squared_gaps: Sequence[float]) -> Residuals:
        """Tie V anew; `squared_gaps` are the |x_i - z_i|^2 of the clients that answered."""
        before, self.z = self.z, self.tie()
        primal, moved = math.sqrt(math.fsum(squared_gaps)), distance(self.z, before)
        residuals = Residuals(primal, self.rho * moved, self.rho)
        if self.balance:
            self.balancing = self.balancing.hear(squared_gaps, moved)
            if self.balancing.due(len(self.carriers)):
                zero = {name: {n: torch.zeros_like(t) for n, t in z.items()} for name, z in self.z.items()}
                tension, size = distance(self.values, self.z), distance(self.z, zero)
                factor, self.balancing = self.balancing.judge(tension, size)
                self.rho *= factor
        return residuals

    def tie(self) -> dict[str, Params]:
        """Return every client's z_i."""
        names = list(self.carriers)
        z = tie(self.operator, list(self.carriers.values()), [self.values[name] for name in names], self.rho)
        return dict(zip(names, z, strict=True))


def tie(operator: Operator, carriers: Sequence[Carrier], v: Sequence[Params], rho: float) -> list[Params]:
    """Return every client's z_i for its v_i; each row of a table is tied over the clients that carry it."""
    if isinstance(operator, Within):
        first = carriers[0]
        same = all(
            who.like.keys() == first.like.keys()
            and all(torch.equal(first.positions[name], who.positions[name]) for name in first.positions)
            for who in carriers
        )
        if operator.exact and not same:
            return within(operator, carriers, tie(operator.inner, carriers, v, rho))
        flat: Vectors = proximal_point(
            lambda w: [
                flatten(part)
                for part in tie(operator.inner, carriers, [unflatten(a, b) for a, b in zip(w, v, strict=True)], rho)
            ],
            operator.convex,
            [flatten(part) for part in v],
            operator.exact,
            operator.iterations,
            operator.tolerance,
        )
        return [unflatten(x, like) for x, like in zip(flat, v, strict=True)]
    if isinstance(operator, Mean):
        z = mean(list(zip(carriers, v, strict=True)), dtype=torch.float64)
        return [gather(z, who) for who in carriers]
    z_i: list[Params] = [{} for _ in carriers]
    for name in sorted({name for who in carriers for name in who.like}):
        holders = [i for i, who in enumerate(carriers) if name in who.like]
        for members, rows in patterns(name, carriers, holders):
            weights = torch.tensor([carriers[i].weight for i in members], dtype=torch.float64)
            blocks = [rows_of(v[i][name], r) for i, r in zip(members, rows, strict=True)]
            tied = operator.restrict(members)([block.reshape(-1) for block in blocks], weights, rho)
            for i, r, block, value in zip(members, rows, blocks, tied, strict=True):
                if r is None:
                    z_i[i][name] = value.reshape(block.shape)
                else:
                    z_i[i].setdefault(name, torch.zeros_like(v[i][name])).index_copy_(0, r, value.reshape(block.shape))
    return [{name: part[name] for name in who.like} for part, who in zip(z_i, carriers, strict=True)]


def within(operator: Within, carriers: Sequence[Carrier], z: list[Params]) -> list[Params]:
    """Return the nearest z_i to consensus `z` that are consensus row by row, each client's in the convex set."""
    if isinstance(operator.convex, Box):
        return [{name: operator.convex(value) for name, value in part.items()} for part in z]
    groups = operator.inner.groups if isinstance(operator.inner, Clusters) else [0] * len(carriers)
    blocks: list[tuple[str, list[int], list[Tensor | None]]] = []  # rows that the same clients hold alike
    for group in sorted({*groups}):
        inside = [i for i, other in enumerate(groups) if other == group]
        for name in sorted({name for i in inside for name in carriers[i].like}):
            holders = [i for i in inside if name in carriers[i].like]
            blocks += [(name, members, rows) for members, rows in patterns(name, carriers, holders)]
    squares = [rows_of(z[members[0]][name], rows[0]).square().sum() for name, members, rows in blocks]
    member = torch.zeros(len(blocks), len(carriers), dtype=torch.float64)
    for place, (_, members, _) in enumerate(blocks):
        member[place, members] = 1.0
    weights = torch.tensor([who.weight for who in carriers], dtype=torch.float64)
    factors = shrink(torch.stack(squares), member @ weights, member, operator.convex.radius)
    z = [{name: value.clone() for name, value in part.items()} for part in z]
    for factor, (name, members, rows) in zip(factors, blocks, strict=True):
        for i, r in zip(members, rows, strict=True):
            z[i][name] = z[i][name] * factor if r is None else z[i][name].index_copy_(0, r, z[i][name][r] * factor)
    return z


def rows_of(value: Tensor, rows: Tensor | None) -> Tensor:
    """Return some rows of a tensor, or all of it."""
    return value if rows is None else value.index_select(0, rows)


def distance(a: Mapping[str, Params], b: Mapping[str, Params]) -> float:
    """Return |A - B| over all clients."""
    return math.hypot(*(norm(subtract(a[name], b[name])) for name in a))


def double(params: Params) -> Params:
    """Return the same values in float64, on the CPU."""
    return {name: value.detach().to("cpu", torch.float64) for name, value in params.items()}
