"""Server operators over the clients' updates: the weighted mean, each row over the clients that carry it."""

from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import groupby
from types import EllipsisType

import numpy as np
import torch
from torch import Tensor

from fedrec.data.types import Ints
from fedrec.parameters import Params, norm, subtract
from fedrec.sharing import EXAMPLES, TABLES, ContractError, Contribution, admit_first, admit_metrics, admit_rows

CHUNK = 64


@dataclass(frozen=True)
class Carrier:
    """What one client carries: the shapes of its shared tensors, and where the rows of its tables lie on the server."""

    client: str
    like: Params  # the contract: names, shapes and dtypes of its shared tensors, without their values
    positions: dict[str, Tensor]  # table name -> [rows] index into the server's table
    weight: float  # p_i, before it is normalised over the carriers of a row
    whole: frozenset[str] = frozenset()  # tables of which it carries every row of the server

    def at(self, name: str) -> Tensor | EllipsisType:
        """Return where a tensor of its own lies in the server's, as an index."""
        return self.positions.get(name, ...)


def catalogue(rows: Sequence[dict[str, Ints]]) -> dict[str, Ints]:
    """Return, per key space, the ascending union of the clients' global row ids: the rows of the server's tables."""
    spaces = {space for one in rows for space in one}
    return {space: np.unique(np.concatenate([one[space] for one in rows if space in one])) for space in sorted(spaces)}


def carrier(client: str, values: Params, rows: dict[str, Ints], server_rows: dict[str, Ints], weight: float) -> Carrier:
    """Return what a joining client carries; raises ContractError if a table lacks one row for each id it announced."""
    positions: dict[str, Tensor] = {}
    for name, value in values.items():
        if name in TABLES:
            ids = rows.get(TABLES[name])
            size = len(value) if value.dim() else 0
            if ids is None or not value.dim() or len(ids) != size:
                found = "none" if ids is None else str(len(ids))
                raise ContractError(f"{name}: must come with {size} row ids, found {found}")
            positions[name] = torch.from_numpy(np.searchsorted(server_rows[TABLES[name]], ids))
    whole = frozenset(name for name, places in positions.items() if len(places) == len(server_rows[TABLES[name]]))
    # One zero seen under every index: a thousand copies of a table are not kept for their shapes.
    like = {name: value.new_zeros(()).expand(value.shape) for name, value in values.items()}
    return Carrier(client, like, positions, weight, whole)


def admit_start(reply: Contribution) -> Contribution:
    """Return what a client joined with, if its tensors are parameters, its row ids fit them and its examples a number.

    Raises ContractError.
    """
    admit_first(reply.values)
    examples = admit_metrics(reply.metrics, ["examples"]).get("examples", -1.0)
    if not 0 <= examples <= EXAMPLES:
        raise ContractError(f"examples: must be a number from 0 to {EXAMPLES:g}, found {examples}")
    rows = admit_rows(reply.rows)
    carrier(reply.client, reply.values, rows, rows, 1.0)
    return replace(reply, rows=rows)


def alone(carriers: Sequence[Carrier], rows: dict[str, Ints]) -> list[str]:
    """Return the shared tables of which no row is carried by two clients, so that sharing them changes nothing."""
    tables = {name: rows[TABLES[name]] for who in carriers for name in who.positions}
    return [name for name in sorted(tables) if not bool((carried(name, carriers, tables) > 1).any())]


def carried(name: str, carriers: Iterable[Carrier], server: Mapping[str, Sized]) -> Tensor:
    """Return how many of the clients carry each row [rows] of a table of the server, or any other tensor [1]."""
    found = torch.zeros(len(server[name]) if name in TABLES else 1, dtype=torch.float64)
    for who in carriers:
        if name in who.like:
            found[who.at(name)] += 1
    return found


def gather(server: Params, who: Carrier) -> Params:
    """Return the client's part of the server's parameters: its rows of the tables, every other tensor whole.

    That is `server` itself for a client that carries all of it: what many clients have in common is not copied.
    """
    if who.like.keys() == server.keys() and who.positions.keys() == who.whole:
        return server
    return {
        name: server[name].index_select(0, who.positions[name])
        if name in who.positions and name not in who.whole
        else server[name]
        for name in who.like
    }


def mean(
    contributions: Sequence[tuple[Carrier, Params]], previous: Params | None = None, dtype: torch.dtype = torch.float32
) -> Params:
    """Return z = sum_i p_i x_i / sum_i p_i, each row over the clients that carry it, summed in float64.

    The order of `contributions` fixes the order of the sum. A row that no contribution carries keeps its `previous`
    value (zero without one). Shapes: a table is [server rows, dim], any other tensor has the clients' shape.
    """
    total: dict[str, Tensor] = {}
    mass: dict[str, Tensor] = {}
    sizes = server_shapes([who for who, _ in contributions], previous)
    for who, values in contributions:
        for name, value in values.items():
            if name not in total:
                total[name] = torch.zeros(sizes[name], dtype=torch.float64)
                mass[name] = torch.zeros(sizes[name][0] if name in TABLES else (), dtype=torch.float64)
            total[name][who.at(name)] += who.weight * value.to("cpu", torch.float64)
            mass[name][who.at(name)] += who.weight
    result = dict(previous or {})
    for name, numerator in total.items():
        before = result[name] if name in result else torch.zeros_like(numerator)
        result[name] = divided(numerator, mass[name], before).to(dtype)
    return {name: result[name] for name in sorted(result)}


@dataclass(frozen=True)
class Subtotal:
    """What a mean needs of some clients: sum_i p_i x_i in float64, and the gap sum_i |x_i - z_i|^2.

    A table has the rows that these clients carry, see `union`.
    """

    clients: tuple[str, ...]
    values: Params
    gap: float


def union(carriers: Sequence[Carrier]) -> dict[str, Tensor]:
    """Return, for each table, the ascending places on the server of the rows that some of the clients carry."""
    found: dict[str, Tensor] = {}
    for name in sorted({name for who in carriers for name in who.positions}):
        every = [who for who in carriers if name in who.positions]
        whole = next((who for who in every if name in who.whole), None)
        found[name] = (
            whole.positions[name] if whole else torch.unique(torch.cat([who.positions[name] for who in every]))
        )
    return found


def subtotal(contributions: Iterable[tuple[Carrier, Params, Params]], rows: Mapping[str, Tensor]) -> Subtotal:
    """Return the sum of (carrier, x_i, z_i) in their order; `rows` is the `union` of the carriers."""
    total, clients, gap = {}, [], 0.0
    for who, values, z in contributions:
        clients.append(who.client)
        gap += norm(subtract(values, z)) ** 2
        for name, value in values.items():
            scaled = who.weight * value.to("cpu", torch.float64)
            if name not in total:
                total[name] = torch.zeros((len(rows[name]) if name in rows else len(value), *value.shape[1:])).double()
            if name in rows and len(value) < len(rows[name]):
                total[name].index_add_(0, torch.searchsorted(rows[name], who.positions[name]), scaled)
            else:
                total[name] += scaled
    return Subtotal(tuple(clients), total, gap)


def chunks(carriers: Iterable[str]) -> dict[str, int]:
    """Return the chunk of every client in the order of all sums.

    A mean is summed in chunks of consecutive clients, so that it is the same to the bit whoever adds up a chunk.
    """
    return {name: place // CHUNK for place, name in enumerate(carriers)}


def sums(answers: Mapping[str, Params], z: Mapping[str, Params], carriers: Mapping[str, Carrier]) -> list[Subtotal]:
    """Return the sums, chunk by chunk, of what clients answered; `z` is what each was sent."""
    chunk = chunks(carriers)
    groups = groupby((name for name in carriers if name in answers), chunk.__getitem__)
    return [
        subtotal([(carriers[n], answers[n], z[n]) for n in names], union([carriers[n] for n in names]))
        for names in (list(group) for _, group in groups)
    ]


def mean_of(parts: Sequence[Subtotal], carriers: Mapping[str, Carrier], previous: Params) -> Params:
    """Return z = sum_i p_i x_i / sum_i p_i of sums that were made in one order; see `mean`."""
    total: Params = {}
    mass: Params = {}
    for part in parts:
        members = [carriers[name] for name in part.clients]
        rows = union(members)
        for name, value in part.values.items():
            if name not in total:
                total[name] = torch.zeros(previous[name].shape, dtype=torch.float64)
                mass[name] = torch.zeros(len(previous[name]) if name in TABLES else (), dtype=torch.float64)
            whole = name not in rows or len(rows[name]) == len(previous[name])
            total[name] = total[name] + value if whole else total[name].index_add_(0, rows[name], value)
            holders = [who for who in members if name in who.like]
            mass[name] += sum(who.weight for who in holders if name in who.whole or name not in who.positions)
            for who in holders:
                if name in who.positions and name not in who.whole:
                    mass[name][who.positions[name]] += who.weight
    made = {n: divided(value, mass[n], previous[n]).to(previous[n].dtype) for n, value in total.items()}
    result = {**previous, **made}
    return {name: result[name] for name in sorted(result)}


def divided(numerator: Tensor, mass: Tensor, previous: Tensor) -> Tensor:
    """Return numerator / mass row by row in float64; `previous` stays where the mass is 0."""
    m = mass.reshape(-1, *[1] * (numerator.dim() - 1)) if mass.dim() else mass
    return torch.where(m > 0, numerator / m.clamp(min=1e-300), previous.double())


def server_shapes(carriers: Sequence[Carrier], previous: Params | None) -> dict[str, tuple[int, ...]]:
    """Return the shape of every shared tensor on the server; raises ContractError if two clients disagree."""
    shapes = {name: tuple(value.shape) for name, value in (previous or {}).items()}
    for who in carriers:
        for name, value in who.like.items():
            mine, table = tuple(value.shape), name in TABLES
            if table:
                rows = int(who.positions[name].max()) + 1 if name in who.positions and len(value) else 0
                mine = (max(rows, shapes[name][0] if name in shapes else 0), *mine[1:])
            if name in shapes and shapes[name][table:] != mine[table:]:
                rule = f"must have {'width' if table else 'shape'} {shapes[name][table:]}"
                raise ContractError(f"{name}: {rule}, found {mine[table:]} from {who.client}")
            shapes[name] = mine
    return shapes
