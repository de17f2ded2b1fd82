"""Ties of clients by name, bound to what the clients carry: closed forms block by block, all else by one projection."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import fedrec.federation.coordination.operators as operators
from fedrec.components import function_of
from fedrec.errors import UserError, choose
from fedrec.federation.coordination.clauses import HARM, LOSSES, Clause
from fedrec.federation.coordination.coupling import edges_of
from fedrec.federation.coordination.halves import Hub, double, tie
from fedrec.federation.coordination.operators import Operator
from fedrec.federation.coordination.projection import Projection, Rows, project
from fedrec.keyed import TABLES, Carrier
from fedrec.params import Params, covers

MET = 1e-6  # a residual up to it, on the scale of what makes it up, is none
Function = Callable[[Mapping[str, Params]], Tensor]


@dataclass(frozen=True)
class Verdict:
    """How a tie stands: its residual, the size of its multipliers, and what is said of it.

    `weights` [m] are the multipliers themselves where they are few.
    """

    tie: str
    residual: float
    multiplier: float
    verdict: str
    weights: tuple[float, ...] = ()

    def row(self) -> dict[str, Any]:
        """Return it as a row of the record."""
        return {**vars(self), "weights": list(self.weights)}


@dataclass(frozen=True)
class Bound:
    """A tie that is no closed form: g of the flat vector of all touched entries, and how many numbers it is."""

    clause: Clause
    g: Callable[[Tensor], Tensor]
    size: int
    straight: bool


@dataclass(frozen=True)
class Layout:
    """Where the touched entries of every client lie in one vector, client by client."""

    places: Mapping[tuple[str, str], tuple[int, torch.Size]]  # (client, parameter) -> offset, shape
    size: int

    @staticmethod
    def of(touched: Mapping[str, Sequence[str]], carriers: Mapping[str, Carrier]) -> "Layout":
        """Return the layout of the touched parameters of every client."""
        places, offset = {}, 0
        for client, names in touched.items():
            for name in names:
                shape = carriers[client].like[name].shape
                places[client, name] = offset, shape
                offset += math.prod(shape)
        return Layout(places, offset)

    def flat(self, values: Mapping[str, Params]) -> Tensor:
        """Return the vector of the clients' values."""
        parts = [values[client][name].reshape(-1) for client, name in self.places]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def unflat(self, vector: Tensor) -> dict[str, Params]:
        """Return the inverse of `flat`, of the touched parameters alone."""
        found: dict[str, Params] = {client: {} for client, _ in self.places}
        for (client, name), (offset, shape) in self.places.items():
            found[client][name] = vector[offset : offset + math.prod(shape)].reshape(shape)
        return found

    def index(self, client: str, name: str, rows: Tensor | None) -> Tensor:
        """Return the places of a parameter's entries, of a table those of some rows."""
        offset, shape = self.places[client, name]
        every = offset + torch.arange(math.prod(shape)).reshape(shape)
        return (every if rows is None else every[rows]).reshape(-1)


def named(carrier: Carrier, block: str) -> list[str]:
    """Return the parameters of a client that a block covers."""
    return sorted(name for name in carrier.like if covers((block,), name))


@dataclass
class Joint(Hub):
    """The server half of a list of ties: it remembers V and makes of it the nearest Z that meets them all.

    A block that no tie names is tied by `operator`, one that ties name by these alone.
    """

    clauses: Sequence[Clause] = ()
    scale: float = 1.0  # of the losses, which travel times it
    verdicts: list[Verdict] = field(default_factory=list, init=False)
    _y: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """See Hub."""
        self.closed = [(c, operator_of(c, list(self.carriers))) for c in self.clauses if c.closed]
        self.worst = [c for c in self.clauses if c.form == "minimax"]
        others = [c for c in self.clauses if not c.closed and c.form != "minimax"]
        check_blocks(self.clauses, self.carriers)
        touched = {
            client: sorted({name for c in others for block in blocks_of(c) for name in named(who, block)})
            for client, who in self.carriers.items()
        }
        self.layout = Layout.of(touched, self.carriers)
        self.bounds = [bind(c, self.layout, self.carriers, self.scale) for c in others]
        self.metric = torch.cat(
            [
                torch.full((math.prod(shape),), self.carriers[client].weight, dtype=torch.float64)
                for (client, _), (_, shape) in self.layout.places.items()
            ]
            or [torch.zeros(0, dtype=torch.float64)]
        )
        super().__post_init__()

    def resolved(self, v: Mapping[str, Params]) -> dict[str, Params]:
        """Return what the closed forms make of V, block by block; entries that none of them ties stay."""
        found = {client: dict(values) for client, values in v.items()}
        tied = {
            name
            for c in self.clauses
            for block in blocks_of(c)
            for who in self.carriers.values()
            for name in named(who, block)
        }
        parts: list[tuple[Operator, set[str]]] = [
            (operator, {n for block in c.blocks for who in self.carriers.values() for n in named(who, block)})
            for c, operator in self.closed
        ]
        free = {name for who in self.carriers.values() for name in who.like} - tied - {LOSSES, HARM}
        for operator, names in [(self.operator, free), *parts]:
            members = {client: who for client, who in self.carriers.items() if names & who.like.keys()}
            inside = [only(who, names) for who in members.values()]
            some = [{name: v[client][name] for name in who.like} for client, who in zip(members, inside, strict=True)]
            if inside:
                for client, z in zip(members, tie(operator, inside, some, self.rho), strict=True):
                    found[client] |= z
        for clause in self.worst:
            self.even(clause, found)
        return found

    def even(self, clause: Clause, found: dict[str, Params]) -> None:
        """Let the losses be those of min P max_i t_i - sum_i p_i t_i + rho/2 sum_i p_i (t_i - v_i)^2, P = sum_i p_i.

        t_i = min(v_i + 1/rho, t), with t such that the multipliers lambda_i = rho p_i (v_i + 1/rho - t)_+ add up to P.
        """
        block = clause.blocks[0]
        p = torch.tensor([who.weight for who in self.carriers.values()], dtype=torch.float64)
        rho = self.rho * self.scale**2
        raised = torch.cat([z[block].reshape(-1) for z in found.values()]).double() / self.scale + 1 / rho
        order = raised.argsort(descending=True)
        mass, weighed = p[order].cumsum(0), (p * raised)[order].cumsum(0)
        levels = (weighed - p.sum() / rho) / mass  # t if so many of the largest are above it
        t = levels.max()
        for z, low in zip(found.values(), torch.minimum(raised, t), strict=True):
            z[block] = (low * self.scale).reshape(z[block].shape)
        self._weights = rho * p * (raised - t).clamp(min=0.0)

    def tie(self) -> dict[str, Params]:
        """See Hub."""
        shift = {
            client: {name: torch.zeros_like(x) for name, x in part.items()} for client, part in self.values.items()
        }

        def resolve(flat: Tensor) -> Tensor:
            """Return what the closed forms make of the touched entries."""
            part = self.layout.unflat(flat)
            return self.layout.flat(self.resolved({c: {**shift[c], **part.get(c, {})} for c in shift}))

        z = self.resolved(self.values)
        found: Projection | None = None
        if self.bounds:
            rows = Rows(
                lambda flat: torch.cat([bound.g(flat) for bound in self.bounds]),
                torch.cat([torch.full((b.size,), b.clause.inequality or b.clause.form != "") for b in self.bounds]),
                torch.full((sum(b.size for b in self.bounds),), math.inf, dtype=torch.float64),
                all(b.straight for b in self.bounds),
            )
            tangled = any(blocks_meet(c, b.clause, self.carriers) for c, _ in self.closed for b in self.bounds)
            flat = self.layout.flat(self.values)
            found = project(flat, self.rho * self.metric, rows, resolve if tangled else None, self._y)
            self._y = torch.zeros_like(found.y) if found.ray is not None else found.y
            for client, part in self.layout.unflat(found.z).items():
                z[client] |= part
        self.verdicts = self.judge(found)
        return z

    def at(self, values: Mapping[str, Params]) -> dict[str, Tensor]:
        """Return g of every tie that is no closed form, by its text, at some values of the clients."""
        flat = self.layout.flat({client: double(part) for client, part in values.items()})
        return {bound.clause.text: bound.g(flat).detach() for bound in self.bounds}

    @property
    def prices(self) -> dict[str, Tensor]:
        """The multipliers of the ties of losses, by their text."""
        found: dict[str, Tensor] = {}
        offset = 0
        for bound in self.bounds:
            y = (
                torch.zeros(bound.size, dtype=torch.float64)
                if self._y is None
                else self._y[offset : offset + bound.size]
            )
            offset += bound.size
            if bound.clause.of_losses:
                found[bound.clause.text] = y
        return found

    def judge(self, found: Projection | None) -> list[Verdict]:
        """Return how every tie stands after a projection."""
        by_clause: dict[str, Verdict] = {}
        offset = 0
        for bound in self.bounds:
            assert found is not None
            here = slice(offset, offset + bound.size)
            offset += bound.size
            residual, y = float(found.residual[here].max()) if bound.size else 0.0, found.y[here]
            blamed = found.ray is not None and float(found.ray[here].abs().max()) > 1e-6
            word = "met" if residual <= MET * (1 + abs(bound.clause.constant)) else "violated"
            few = tuple(y.tolist()) if bound.size <= 64 else ()
            by_clause[bound.clause.text] = Verdict(
                bound.clause.text, residual, float(y.norm()), "infeasible" if blamed else word, few
            )
        for clause in self.worst:
            by_clause[clause.text] = Verdict(
                clause.text, 0.0, float(self._weights.norm()), "met", tuple(self._weights.tolist())
            )
        for clause, _ in self.closed:
            by_clause[clause.text] = Verdict(clause.text, 0.0, math.nan, "met")
        return [by_clause[clause.text] for clause in self.clauses]

    def state(self) -> Params:
        """See Held."""
        return super().state() | ({} if self._y is None else {"y": self._y})

    def restore(self, state: Params) -> None:
        """See Held."""
        super().restore(state)
        self._y = state.get("y")


def only(who: Carrier, names: set[str]) -> Carrier:
    """Return a carrier of some parameters alone."""
    like = {name: value for name, value in who.like.items() if name in names}
    positions = {name: value for name, value in who.positions.items() if name in names}
    return replace(who, like=like, positions=positions, whole=who.whole & names)


def blocks_of(clause: Clause) -> list[str]:
    """Return the blocks of a tie, and the parameters that an equation names."""
    return [*clause.blocks, *(v.parameter for v in clause.variables if v.parameter)]


def blocks_meet(one: Clause, other: Clause, carriers: Mapping[str, Carrier]) -> bool:
    """Return whether two ties have a parameter in common."""
    names = [
        {name for who in carriers.values() for block in blocks_of(c) for name in named(who, block)}
        for c in (one, other)
    ]
    return bool(names[0] & names[1])


def check_blocks(clauses: Sequence[Clause], carriers: Mapping[str, Carrier]) -> None:
    """Raise UserError for a block that nobody shares, or that two closed forms tie."""
    held: dict[str, str] = {}
    for clause in clauses:
        for block in blocks_of(clause):
            names = {name for who in carriers.values() for name in named(who, block)}
            if not names:
                shared = sorted({name for who in carriers.values() for name in who.like})
                raise UserError(
                    f"tie {clause.text!r}: must name what is shared, found {block!r} of {', '.join(shared)}"
                )
            for name in sorted(names) if clause.closed or clause.form == "minimax" else ():
                if name in held:
                    rule = "may be tied by one closed form (write the other as an equation)"
                    raise UserError(f"tie {clause.text!r}: {name} {rule}, found {held[name]!r} too")
                held[name] = clause.text
    if any(c.form == "minimax" for c in clauses) and sum(c.of_losses for c in clauses) > 1:
        raise UserError("tie: minimax must be the only tie of losses, found others beside it")


def operator_of(clause: Clause, clients: Sequence[str]) -> Operator:
    """Return the operator of a closed form over the clients in their order; raises UserError."""
    if clause.form == "clusters":
        cluster: dict[str, int] = {}
        for number, group in enumerate(clause.arguments):
            for name in (part.strip() for part in group.split("+")):
                choose(f"tie {clause.text!r}", name, clients)
                if name in cluster:
                    raise UserError(f"tie {clause.text!r}: a client may be in one group, found {name!r} twice")
                cluster[name] = number
        return operators.Clusters(tuple(cluster.get(name, len(clients) + i) for i, name in enumerate(clients)))
    if clause.form == "mean-regularised":
        return operators.MeanRegularised(clause.numbers()[0])
    if clause.form == "graph":
        edges = tuple(edges_of(",".join(clause.arguments[1:]), clients))
        return operators.Graph(len(clients), edges, clause.numbers()[0])
    if clause.form == "sum":
        return operators.SumTo(clause.numbers()[0])
    return operators.Mean()


def bind(clause: Clause, layout: Layout, carriers: Mapping[str, Carrier], scale: float) -> Bound:
    """Return a tie as a function of the flat vector; raises UserError where it does not fit what is carried."""
    if clause.variables:
        return _equation(clause, layout, carriers, scale)
    if clause.own or clause.function:
        return _own(clause, layout, carriers, scale)
    names = [(client, name) for client, who in carriers.items() for b in clause.blocks for name in named(who, b)]
    if clause.form == "ball":
        radius, groups = (
            clause.numbers()[0],
            [
                torch.cat([layout.index(client, name, None) for who, name in names if who == client])
                for client in dict.fromkeys(who for who, _ in names)
            ],
        )
        # As steep at its edge as |z| - r, and smooth at 0.
        return Bound(
            clause,
            lambda z: torch.stack([(z[places].square().sum() - radius**2) / (2 * radius) for places in groups]),
            len(groups),
            False,
        )
    places = torch.cat([layout.index(client, name, None) for client, name in names])
    (number,) = clause.numbers()
    if clause.form == "box":
        return Bound(clause, lambda z: torch.cat([z[places] - number, -z[places] - number]), 2 * len(places), True)
    if clause.form == "at-most":
        return Bound(clause, lambda z: z[places] / scale - number, len(places), True)

    def apart(z: Tensor) -> Tensor:
        """Return |f_i - mean f| - eps, of both signs."""
        gap = (z[places] - z[places].mean()) / scale
        return torch.cat([gap - number, -gap - number])

    return Bound(clause, apart, 2 * len(places), True)


def _equation(clause: Clause, layout: Layout, carriers: Mapping[str, Carrier], scale: float) -> Bound:
    factors: list[tuple[float, Tensor]] = []
    clients = {v.client for v in clause.variables}
    for name in clients:
        choose(f"tie {clause.text!r}", name, list(carriers))
    free = [v.client for v in clause.variables if not v.parameter]
    every = [named(carriers[c], b) for b in clause.blocks for c in free]
    names: list[str] = sorted({name for part in every for name in part}) if free else [""]
    parts: dict[int, list[Tensor]] = {}
    for name in names:
        chosen = [(v.client, v.parameter or name) for v in clause.variables]
        rows = common_rows(clause, chosen, carriers)
        found = [layout.index(client, n, r) for (client, n), r in zip(chosen, rows, strict=True)]
        if len({len(index) for index in found}) > 1:
            shapes = ", ".join(f"{client}.{n} {list(carriers[client].like[n].shape)}" for client, n in chosen)
            raise UserError(f"tie {clause.text!r}: must be of blocks of one shape, found {shapes}")
        for place, index in enumerate(found):
            parts.setdefault(place, []).append(index)
    unit = 1 / scale if clause.of_losses else 1.0
    factors = [(v.factor * unit, torch.cat(parts[place])) for place, v in enumerate(clause.variables)]

    def g(z: Tensor) -> Tensor:
        """Return sum_i factor_i variable_i + constant."""
        total = factors[0][0] * z[factors[0][1]]
        for factor, index in factors[1:]:
            total = total + factor * z[index]
        return total + clause.constant

    return Bound(clause, g, len(factors[0][1]), True)


def common_rows(
    clause: Clause, chosen: Sequence[tuple[str, str]], carriers: Mapping[str, Carrier]
) -> list[Tensor | None]:
    """Return which rows of each table all the others carry too, in one order; None for what is no table."""
    for client, name in chosen:
        if name not in carriers[client].like:
            raise UserError(
                f"tie {clause.text!r}: {client} must share {name}, found {', '.join(carriers[client].like)}"
            )
    places = [carriers[client].positions.get(name) for client, name in chosen]
    spaces = {TABLES[name] if name in TABLES else "" for _, name in chosen}
    if len(spaces) > 1:
        raise UserError(f"tie {clause.text!r}: must be of tables of one kind, found {', '.join(n for _, n in chosen)}")
    if any(place is None for place in places):
        return [None] * len(chosen)
    keys = [place.tolist() for place in places if place is not None]
    both = sorted(set(keys[0]).intersection(*keys[1:]))
    if not both:
        raise UserError(f"tie {clause.text!r}: must be of rows that {len(chosen)} clients carry, found none in common")
    found: list[Tensor | None] = []
    for key in keys:
        where = {row: place for place, row in enumerate(key)}
        found.append(torch.tensor([where[row] for row in both]))
    return found


def _own(clause: Clause, layout: Layout, carriers: Mapping[str, Carrier], scale: float) -> Bound:
    value: Function = clause.function or function_of("tie", clause.own, "z")
    names = {client: sorted(n for b in clause.blocks for n in named(who, b)) for client, who in carriers.items()}
    index: dict[str, dict[str, tuple[Tensor, list[int]]]] = {client: {} for client in names if names[client]}
    for name in sorted({n for part in names.values() for n in part}):
        members = [client for client in index if name in names[client]]
        rows = common_rows(clause, [(client, name) for client in members], carriers)
        for client, row in zip(members, rows, strict=True):
            shape = list(carriers[client].like[name].shape)
            index[client][name] = layout.index(client, name, row), shape if row is None else [len(row), *shape[1:]]
    unit = 1 / scale if clause.of_losses else 1.0

    def g(z: Tensor) -> Tensor:
        """Return what the user's function makes of named tensors."""
        named_tensors = {
            client: {name: (unit * z[places]).reshape(shape) for name, (places, shape) in parts.items()}
            for client, parts in index.items()
        }
        found = value(named_tensors)
        if not isinstance(found, Tensor):
            raise UserError(f"tie {clause.text!r}: must return a tensor, found {type(found).__name__}")
        return found.reshape(-1).double()

    try:
        size = len(g(torch.full((layout.size,), 0.5, dtype=torch.float64)))
    except UserError:
        raise
    except Exception as error:  # whatever a user's own function raises
        raise UserError(f"tie {clause.text!r}: {type(error).__name__}: {error}") from None
    return Bound(clause, g, size, False)


def one_sided(clauses: Sequence[Clause], client: str, block: str) -> bool:
    """Return whether all ties of a client's loss only ask it to be small, so that less is no gap to close."""
    here = [c for c in clauses if c.blocks == (block,)]
    for clause in here:
        factors = [v.factor for v in clause.variables if v.client == client]
        if clause.form == "at-most" or (clause.variables and (not factors or (clause.inequality and factors[0] > 0))):
            continue
        return False
    return bool(here)
