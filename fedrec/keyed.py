"""Tables with row keys: which parameters they are, who carries which rows, gather, scatter, the weighted mean.

Numerics over named tensors: who a client is, and what it trains, is not their business.
"""

from collections import UserDict
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec.distinct import distinct
from fedrec.errors import ContractError
from fedrec.params import Params, norm, subtract
from fedrec.sparse import among, plus, zeros

Ints = NDArray[np.int64]
CHUNK = 64
SUMS = "sums."  # before the names of what is summed over users, of which the federation has the total and no mean
GRAM, CROSS = f"{SUMS}gram", f"{SUMS}cross"  # sums over pairs of items, see `fedrec.models.summed`
PAIR = "pair"  # the key space of the items of a client that is sent what is between these alone
# What is keyed by rows, and the key space of the rows: parameters, and the logits on the public probe.
PARAMETERS = {
    "item_table": "item",
    "item_bias": "item",
    "item_sums": "item",
    "user_table": "user",
    "user_bias": "user",
    "user_factors": "user",
}


class Tables(UserDict[str, str]):
    """The key space of the rows of every table by name; a part of a table's path, `item_table.NAME`, is a table too."""

    def __getitem__(self, name: str) -> str:
        return self.data[name.partition(".")[0]]

    def __contains__(self, name: object) -> bool:
        return name in self.data or str(name).partition(".")[0] in self.data


TABLES = Tables({**PARAMETERS, "logits": "probe"})


def select(params: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> Params:
    """Return the rows of every table that `rows` [...] names by key space, and any other parameter whole."""
    return {n: value[rows[TABLES[n]].to(value.device)] if n in TABLES else value for n, value in params.items()}


@dataclass(frozen=True, slots=True)
class Carrier:
    """What one client carries: the shapes of its shared tensors, and where the rows of its tables lie on the server."""

    client: str
    like: Params  # the contract: names, shapes and dtypes of its shared tensors, without their values
    positions: dict[str, Tensor]  # table name -> [rows] index into the server's table
    weight: float  # p_i, before it is normalised over the carriers of a row
    whole: frozenset[str] = frozenset()  # tables of which it carries every row of the server
    own: Tensor | None = None  # mask [n] of the items of which it is sent the pairs; None for all

    def part(self, name: str) -> Tensor | None:
        """Return where its rows of a table lie on the server; None where a tensor is all of the server's."""
        return None if name in self.whole else self.positions.get(name)


def catalogue(rows: Sequence[Mapping[str, Ints]]) -> dict[str, Ints]:
    """Return, per key space, the ascending union of the clients' global row ids: the rows of the server's tables.

    Ids that many clients have in common, as one array, are looked at once.
    """
    columns: dict[str, dict[int, Ints]] = {}
    for ids in {id(ids): ids for ids in rows}.values():
        for space, column in ids.items():
            columns.setdefault(space, {})[id(column)] = column
    return {space: distinct(np.concatenate(list(columns[space].values()))) for space in sorted(columns)}


def carrier(
    client: str, values: Params, rows: Mapping[str, Ints], server_rows: Mapping[str, Ints], weight: float
) -> Carrier:
    """Return what a joining client carries; raises ContractError if a table lacks one row for each id it announced."""
    positions: dict[str, Tensor] = {}
    for name, value in values.items():
        if name in TABLES:
            ids = rows.get(TABLES[name])
            size = len(value) if value.dim() else 0
            if ids is None or not value.dim() or len(ids) != size:
                count = "none" if ids is None else str(len(ids))
                raise ContractError(f"{name}: must come with {size} row ids, found {count}")
            positions[name] = torch.from_numpy(np.searchsorted(server_rows[TABLES[name]], ids))
    whole = frozenset(name for name, places in positions.items() if len(places) == len(server_rows[TABLES[name]]))
    # One zero seen under every index: a thousand copies of a table are not kept for their shapes.
    like = {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in values.items()}
    return Carrier(client, like, positions, weight, whole, paired(client, values, rows))


def paired(client: str, values: Params, rows: Mapping[str, Ints]) -> Tensor | None:
    """Return the mask of the items of which a client is sent the pairs; raises ContractError for others than there are.

    None for a client that has announced none, which is sent all.
    """
    if PAIR not in rows or CROSS not in values:
        return None
    mask, ids = torch.zeros(len(values[CROSS]), dtype=torch.bool), rows[PAIR]
    if len(ids) and ids[-1] >= len(mask):
        raise ContractError(f"rows {PAIR}: must be of the {len(mask)} items of {CROSS}, found {ids[-1]}")
    mask[torch.from_numpy(ids)] = True
    return mask


def alone(carriers: Sequence[Carrier], rows: Mapping[str, Ints]) -> list[str]:
    """Return the shared tables of which no row is carried by two clients, so that sharing them changes nothing.

    Sums over pairs of items are among them if no two clients have an item in common.
    """
    tables = {name: rows[TABLES[name]] for who in carriers for name in who.positions}
    found = [name for name in sorted(tables) if not bool((carried(name, carriers, tables) > 1).any())]
    own = [who.own for who in carriers if who.own is not None]
    apart = len(own) == len(carriers) > 0 and int(torch.stack(own).sum(0).max()) < 2
    return [*found, CROSS, GRAM] if apart else found


def carried(name: str, carriers: Iterable[Carrier], server: Mapping[str, Sized], weigh: bool = False) -> Tensor:
    """Return how many of the clients carry each row [rows] of a table of the server, or any other tensor [1].

    With `weigh` the sum of their weights.
    """
    total = torch.zeros(len(server[name]) if name in TABLES else 1, dtype=torch.float64)
    everything = 0.0
    for who in carriers:
        if name in who.like:
            weight, rows = who.weight if weigh else 1.0, who.part(name)
            if rows is None:
                everything += weight
            else:
                total[rows] += weight
    return total.add_(everything)


def gather(server: Params, who: Carrier) -> Params:
    """Return the client's part of the server's parameters: its rows of the tables, every other tensor whole.

    That is `server` itself for a client that carries all of it: what many clients have in common is not copied. Of what
    a client carries to the server alone the server has nothing for it.
    """
    if who.like.keys() >= server.keys() and who.positions.keys() == who.whole and who.own is None:
        return server
    rows = {name: who.part(name) for name in who.like if name in server}
    found = {n: server[n] if places is None else server[n].index_select(0, places) for n, places in rows.items()}
    if who.own is None:
        return found
    return {n: among(value, who.own) if n in (GRAM, CROSS) else value for n, value in found.items()}


def scatter(values: Mapping[str, Tensor], who: Carrier, server: Params) -> tuple[Params, Params]:
    """Return a client's values at their places on the server in float64, zero elsewhere, and the mask of the places."""
    full = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in server.items()}
    mask = {name: torch.zeros(value.shape, dtype=torch.bool) for name, value in server.items()}
    for name, value in values.items():
        rows = who.part(name)
        full[name][... if rows is None else rows] = value.double()
        mask[name][... if rows is None else rows] = True
    return full, mask


def add_rows(total: Tensor, rows: Tensor | None, value: Tensor) -> Tensor:
    """Return a total with a value added to some of its rows, to all without `rows`; a dense total in its own place."""
    if rows is not None:
        return total.index_add_(0, rows, value)
    return plus(total, value) if total.is_sparse else total.add_(value)


def wide(of_rows: Tensor, value: Tensor) -> Tensor:
    """Return numbers [rows], or [1] for what is no table, so that they are multiplied into a value row by row."""
    return of_rows.reshape(-1, *[1] * (value.dim() - 1)) if value.dim() else of_rows[0]


def mean(
    contributions: Sequence[tuple[Carrier, Params]], previous: Params | None = None, dtype: torch.dtype | None = None
) -> Params:
    """Return z = sum_i p_i x_i / sum_i p_i, each row over the clients that carry it, summed in float64.

    The order of `contributions` fixes the order of the sum. A row that no contribution carries keeps its `previous`
    value (zero without one). Shapes: a table is [server rows, dim], any other tensor has the clients' shape. The type
    is `dtype`, or without it the clients'.
    """
    members = [who for who, _ in contributions]
    if dtype is None and (common := in_common(contributions)) and (previous or common).keys() == common.keys():
        return {name: value + 0.0 for name, value in sorted(common.items())}  # the sum has no -0 either
    shapes = server_shapes(members, previous)
    total = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    types = {
        name: value.dtype for like in (previous or {}, *(who.like for who in members)) for name, value in like.items()
    }
    for who, values in contributions:
        for name, value in values.items():
            total[name] = add_rows(total[name], who.part(name), who.weight * value.to("cpu", torch.float64))
    means = divide(total, members, {**total, **(previous or {})})
    return {name: value.to(dtype or types[name]) for name, value in means.items()}


def in_common(contributions: Sequence[tuple[Carrier, Params]]) -> Params | None:
    """Return what all clients have as one value of single precision, on all rows of the server; None otherwise."""
    ((_, values), *_) = contributions
    alike = all(v is values and who.weight > 0 and who.positions.keys() == who.whole for who, v in contributions)
    return values if alike and all(value.dtype == torch.float32 for value in values.values()) else None


@dataclass(frozen=True)
class Subtotal:
    """What a mean needs of some clients: sum_i p_i x_i in float64, and the gap sum_i |x_i - z_i|^2.

    A table has the rows that these clients carry, see `union`. Of sums over users `counts` has for each client how many
    of the entries that it adds are not zero.
    """

    clients: tuple[str, ...]
    values: Params
    gap: float
    counts: Mapping[str, Sequence[int]] = field(default_factory=dict)


def union(carriers: Sequence[Carrier]) -> dict[str, Tensor]:
    """Return, for each table, the ascending places on the server of the rows that some of the clients carry."""
    places: dict[str, Tensor] = {}
    for name in sorted({name for who in carriers for name in who.positions}):
        holders = [who for who in carriers if name in who.positions]
        whole = next((who for who in holders if name in who.whole), None)
        places[name] = (
            whole.positions[name] if whole else torch.unique(torch.cat([who.positions[name] for who in holders]))
        )
    return places


def sum_type(name: str, value: Tensor) -> torch.dtype:
    """Return the type in which values are added up: float64, of sums over users their own, which fits their size."""
    return value.dtype if name.startswith(SUMS) else torch.float64


def nothing(name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return zeros to add to."""
    return zeros(shape, dtype) if name in (GRAM, CROSS) else torch.zeros(*shape, dtype=dtype)


def nothing_like(like: Params) -> Params:
    """Return zeros to add to, of the names, shapes and dtypes of others."""
    return {name: nothing(name, value.shape, value.dtype) for name, value in like.items()}


def add_among(total: Params, rows: Mapping[str, Tensor], who: Carrier, values: Params, weight: float) -> None:
    """Add a client's values, times a weight, to sums over several clients in place; `rows` is the `union` of these."""
    for name, value in values.items():
        dtype, all_rows = sum_type(name, value), rows.get(name, value)
        scaled = value.to("cpu", dtype) if weight == 1 else weight * value.to("cpu", dtype)
        if name not in total:
            shape = (len(all_rows), *value.shape[1:]) if name in rows else value.shape
            total[name] = nothing(name, shape, dtype)
        part = name in rows and len(value) < len(all_rows)
        places = torch.searchsorted(all_rows, who.positions[name]) if part else None
        total[name] = add_rows(total[name], places, scaled)


def subtotal(contributions: Iterable[tuple[Carrier, Params, Params]], rows: Mapping[str, Tensor]) -> Subtotal:
    """Return the sum of (carrier, x_i, z_i) in their order; `rows` is the `union` of the carriers."""
    total, clients, gap = Params(), [], 0.0
    for who, values, z in contributions:
        clients.append(who.client)
        gap += norm(subtract(values, z)) ** 2
        add_among(total, rows, who, values, who.weight)
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


def total_of(parts: Sequence[Subtotal], carriers: Mapping[str, Carrier], like: Params) -> Params:
    """Return sum_i p_i x_i of sums that were made in one order, in float64; `like` has the server's shapes."""
    total = {name: nothing(name, value.shape, sum_type(name, value)) for name, value in like.items()}
    for part in parts:
        rows = union([carriers[name] for name in part.clients])
        for name, value in part.values.items():
            total[name] = add_rows(total[name], rows.get(name) if len(value) < len(total[name]) else None, value)
    return total


def mean_of(parts: Sequence[Subtotal], carriers: Mapping[str, Carrier], previous: Params) -> Params:
    """Return z = sum_i p_i x_i / sum_i p_i of sums that were made in one order; see `mean`."""
    members = [carriers[name] for part in parts for name in part.clients]
    means = divide(total_of(parts, carriers, previous), members, previous)
    return {name: value.to(previous[name].dtype) for name, value in means.items()}


def divide(total: Params, members: Sequence[Carrier], previous: Params) -> Params:
    """Return sum_i p_i x_i over the sum of the weights of those that carry a row, in float64, by name.

    `previous` stays where nobody does.
    """
    means = {}
    for name, value in sorted(total.items()):
        mass = wide(carried(name, members, total, weigh=True), value)
        means[name] = torch.where(mass > 0, value / mass.clamp(min=1e-300), previous[name].double())
    return means


def server_shapes(carriers: Sequence[Carrier], previous: Params | None) -> dict[str, tuple[int, ...]]:
    """Return the shape of every shared tensor on the server; raises ContractError if two clients disagree."""
    shapes = {name: tuple(value.shape) for name, value in (previous or {}).items()}
    for who in carriers:
        for name, value in who.like.items():
            shape, table = tuple(value.shape), name in TABLES
            if table:
                rows = int(who.positions[name].max()) + 1 if name in who.positions and len(value) else 0
                shape = (max(rows, shapes[name][0] if name in shapes else 0), *shape[1:])
            if name in shapes and shapes[name][table:] != shape[table:]:
                rule = f"must have {'width' if table else 'shape'} {shapes[name][table:]}"
                raise ContractError(f"{name}: {rule}, found {shape[table:]} from {who.client}")
            shapes[name] = shape
    return shapes


def patterns(name: str, carriers: Sequence[Carrier], holders: list[int]) -> list[tuple[list[int], list[Tensor | None]]]:
    """Return, for each set of clients that carry the same rows of a parameter, its members and their local rows."""
    if name not in TABLES:
        return [(holders, [None] * len(holders))]
    size = 1 + max(int(carriers[i].positions[name].max()) if len(carriers[i].positions[name]) else -1 for i in holders)
    local = np.full((len(holders), size), -1, dtype=np.int64)
    for k, i in enumerate(holders):
        where = carriers[i].positions[name].numpy()
        local[k, where] = np.arange(len(where))
    present, pattern = np.unique(local >= 0, axis=1, return_inverse=True)
    groups: list[tuple[list[int], list[Tensor | None]]] = []
    for column in range(present.shape[1]):
        inside = np.flatnonzero(present[:, column])
        rows = np.flatnonzero(pattern == column)
        if len(inside):
            groups.append(([holders[k] for k in inside], [torch.from_numpy(local[k, rows]) for k in inside]))
    return groups
