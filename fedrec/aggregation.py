"""Server operators over the clients' updates: the weighted mean, each row over the clients that carry it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedrec.data.types import Ints
from fedrec.parameters import Params
from fedrec.sharing import TABLES, ContractError


@dataclass(frozen=True)
class Carrier:
    """What one client carries: the shapes of its shared tensors, and where the rows of its tables lie on the server."""

    client: str
    like: Params  # its shared tensors as it sent them when it joined; names, shapes and dtypes are the contract
    positions: dict[str, Tensor]  # table name -> [rows] index into the server's table
    weight: float  # p_i, before it is normalised over the carriers of a row


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
    return Carrier(client, values, positions, weight)


def alone(carriers: Sequence[Carrier], rows: dict[str, Ints]) -> list[str]:
    """Return the shared tables of which no row is carried by two clients, so that sharing them changes nothing."""
    found = []
    for name in sorted({name for who in carriers for name in who.positions}):
        count = np.zeros(len(rows[TABLES[name]]), dtype=np.int64)
        for who in carriers:
            if name in who.positions:
                count[who.positions[name].numpy()] += 1
        if count.max(initial=0) < 2:
            found.append(name)
    return found


def gather(server: Params, who: Carrier) -> Params:
    """Return the client's part of the server's parameters: its rows of the tables, every other tensor whole."""
    return {
        name: server[name].index_select(0, who.positions[name]) if name in who.positions else server[name]
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
            scaled = who.weight * value.to("cpu", torch.float64)
            if name in who.positions:
                total[name].index_add_(0, who.positions[name], scaled)
                mass[name].index_add_(
                    0, who.positions[name], torch.full((len(value),), who.weight, dtype=torch.float64)
                )
            else:
                total[name] += scaled
                mass[name] += who.weight
    result = dict(previous or {})
    for name, numerator in total.items():
        m = mass[name].reshape(-1, *[1] * (numerator.dim() - 1)) if name in TABLES else mass[name]
        before = result[name].double() if name in result else torch.zeros_like(numerator)
        result[name] = torch.where(m > 0, numerator / m.clamp(min=1e-300), before).to(dtype)
    return {name: result[name] for name in sorted(result)}


def server_shapes(carriers: Sequence[Carrier], previous: Params | None) -> dict[str, tuple[int, ...]]:
    """Return the shape of every shared tensor on the server; raises ContractError if two clients disagree."""
    shapes = {name: tuple(value.shape) for name, value in (previous or {}).items()}
    for who in carriers:
        for name, value in who.like.items():
            rows = int(who.positions[name].max()) + 1 if name in who.positions and len(value) else 0
            if name in TABLES:
                rows = max(rows, shapes[name][0] if name in shapes else 0)
                mine = (rows, *value.shape[1:])
                if name in shapes and shapes[name][1:] != mine[1:]:
                    raise ContractError(
                        f"{name}: must have width {shapes[name][1:]}, found {mine[1:]} from {who.client}"
                    )
                shapes[name] = mine
            elif shapes.setdefault(name, tuple(value.shape)) != tuple(value.shape):
                raise ContractError(
                    f"{name}: must have shape {shapes[name]}, found {tuple(value.shape)} from {who.client}"
                )
    return shapes
