"""Ties of clients by name, bound to what the clients carry: as functions of one vector of all that they touch."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from safetensors.torch import load_file
from torch import Tensor

from fedrec.components import function_of
from fedrec.errors import UserError, choose
from fedrec.federation.coordination.clauses import LINEAR, MINIMAX, Clause
from fedrec.keyed import TABLES, Carrier
from fedrec.params import Params, covers

Function = Callable[[Mapping[str, Params]], Tensor]


@dataclass(frozen=True)
class Bound:
    """A tie that is no closed form: g of the flat vector of all touched entries, and how many numbers it is."""

    clause: Clause
    g: Callable[[Tensor], Tensor]
    size: int
    straight: bool

    @property
    def unequal(self) -> bool:
        """Whether g is to be at most 0, and not 0."""
        return self.clause.inequality or self.clause.form not in ("", LINEAR)


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

    def spans(self) -> Iterator[tuple[str, str, int, int]]:
        """Yield client and parameter, and where its entries begin and end."""
        for (client, name), (offset, shape) in self.places.items():
            yield client, name, offset, offset + math.prod(shape)

    def index(self, client: str, name: str, rows: Tensor | None) -> Tensor:
        """Return the places of a parameter's entries, of a table those of some rows."""
        offset, shape = self.places[client, name]
        every = offset + torch.arange(math.prod(shape)).reshape(shape)
        return (every if rows is None else every[rows]).reshape(-1)


def named(carrier: Carrier, block: str) -> list[str]:
    """Return the parameters of a client that a block covers."""
    return sorted(name for name in carrier.like if covers((block,), name))


def bind(clause: Clause, layout: Layout, carriers: Mapping[str, Carrier], scale: float) -> Bound:
    """Return a tie as a function of the flat vector; raises UserError where it does not fit what is carried."""
    if clause.variables:
        return _equation(clause, layout, carriers, scale)
    if clause.own:
        return _own(clause, layout, carriers, scale)
    if clause.form == LINEAR:
        return _linear(clause, layout, carriers)
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
    if clause.form in ("at-least", "at-most"):
        sign = 1.0 if clause.form == "at-most" else -1.0
        return Bound(clause, lambda z: sign * (z[places] / scale - number), len(places), True)

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


def _linear(clause: Clause, layout: Layout, carriers: Mapping[str, Carrier]) -> Bound:
    """Return sum_i G_i theta_i - c: of a table row by row, with G_i [m, width], else of the whole, G_i [m, entries]."""
    maps = maps_of(clause)
    chosen: list[tuple[str, str]] = []
    for client in (name.removesuffix("/G") for name in maps if name != "c"):
        choose(f"tie {clause.text!r}", client, list(carriers))
        found = [name for block in clause.blocks for name in named(carriers[client], block)]
        if len(found) != 1:
            raise UserError(f"tie {clause.text!r}: must be of one parameter of {client}, found {', '.join(found)}")
        chosen.append((client, found[0]))
    rows = common_rows(clause, chosen, carriers)
    parts = []
    for (client, name), row in zip(chosen, rows, strict=True):
        matrix, shape = maps[f"{client}/G"], carriers[client].like[name].shape
        wide = math.prod(shape[1:]) if row is not None else math.prod(shape)
        if matrix.dim() != 2 or matrix.shape[1] != wide:
            raise UserError(f"tie {clause.text!r}: {client}/G must be [m, {wide}], found {list(matrix.shape)}")
        parts.append((matrix, layout.index(client, name, row).reshape(-1, wide)))
    if len({len(matrix) for matrix, _ in parts}) != 1 or maps["c"].shape != (len(parts[0][0]),):
        sizes = ", ".join(str(list(matrix.shape)) for matrix, _ in parts)
        raise UserError(f"tie {clause.text!r}: every G and c must have as many rows, found {sizes}")

    def g(z: Tensor) -> Tensor:
        """Return the sum over the clients."""
        return (torch.stack([z[index] @ matrix.T for matrix, index in parts]).sum(0) - maps["c"]).reshape(-1)

    return Bound(clause, g, len(parts[0][1]) * len(maps["c"]), True)


def maps_of(clause: Clause) -> dict[str, Tensor]:
    """Return the maps of a file, `CLIENT/G` and c, which is 0 without it; raises UserError for a file of others."""
    (path,) = clause.arguments
    try:
        maps = {name: value.double() for name, value in load_file(path).items()}
    except Exception as error:  # whatever a file may hold
        raise UserError(f"tie {clause.text!r}: {path} must be a safetensors file, found {error}") from None
    names = [name for name in maps if name.endswith("/G")]
    if not names or len(names) < len(maps.keys() - {"c"}) or not all(bool(x.isfinite().all()) for x in maps.values()):
        raise UserError(
            f"tie {clause.text!r}: {path} must hold finite CLIENT/G, and c, found {', '.join(sorted(maps))}"
        )
    return {"c": torch.zeros(len(maps[names[0]]), dtype=torch.float64), **maps}


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
    spaces = {TABLES.get(name, "") for _, name in chosen}
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
    value: Function = function_of("tie", clause.own, "z")
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
        try:
            found = value(named_tensors)
        except Exception as error:  # whatever a user's own function raises
            raise UserError(f"tie {clause.text!r}: {type(error).__name__}: {error}") from None
        if not isinstance(found, Tensor):
            raise UserError(f"tie {clause.text!r}: must return a tensor, found {type(found).__name__}")
        return found.reshape(-1).double()

    first = g(torch.full((layout.size,), 0.5, dtype=torch.float64, requires_grad=True))
    if not first.requires_grad or not len(first):
        raise UserError(f"tie {clause.text!r}: must be made of z by what torch can differentiate, found no slope")
    return Bound(clause, g, len(first), False)


def only(who: Carrier, names: set[str]) -> Carrier:
    """Return a carrier of some parameters alone."""
    like = {name: value for name, value in who.like.items() if name in names}
    positions = {name: value for name, value in who.positions.items() if name in names}
    return replace(who, like=like, positions=positions, whole=who.whole & names)


def touched(clause: Clause, carriers: Mapping[str, Carrier]) -> set[str]:
    """Return the parameters of some clients that a tie names."""
    blocks = [*clause.blocks, *(v.parameter for v in clause.variables if v.parameter)]
    return {name for who in carriers.values() for block in blocks for name in named(who, block)}


def check_blocks(clauses: Sequence[Clause], carriers: Mapping[str, Carrier]) -> None:
    """Raise UserError for a block that nobody shares, or that two closed forms tie."""
    held: dict[str, str] = {}
    for clause in clauses:
        names = touched(clause, carriers)
        for block in (*clause.blocks, *(v.parameter for v in clause.variables if v.parameter)):
            if not any(named(who, block) for who in carriers.values()):
                shared = sorted({name for who in carriers.values() for name in who.like})
                raise UserError(
                    f"tie {clause.text!r}: must name what is shared, found {block!r} of {', '.join(shared)}"
                )
        for name in sorted(names) if clause.closed else ():
            if name in held:
                rule = "may be tied by one closed form (write the other as an equation)"
                raise UserError(f"tie {clause.text!r}: {name} {rule}, found {held[name]!r} too")
            held[name] = clause.text
    if any(c.form == MINIMAX for c in clauses) and sum(c.of_losses for c in clauses) > 1:
        raise UserError("tie: minimax must be the only tie of losses, found others beside it")


def one_sided(clauses: Sequence[Clause], client: str, block: str) -> bool:
    """Return whether all ties of a client's loss only ask it to be small, so that less is no gap to close."""
    here = [c for c in clauses if c.blocks == (block,)]
    for clause in here:
        factors = [v.factor for v in clause.variables if v.client == client]
        if clause.form == "at-most" or (clause.variables and (not factors or (clause.inequality and factors[0] > 0))):
            continue
        return False
    return bool(here)
