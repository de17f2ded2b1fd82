"""What becomes of trained parts: the sum that a mean needs, single clients, and the next private parameters."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedrec.data.types import Ints
from fedrec.keyed import TABLES
from fedrec.params import Params
from fedrec.training.cohort import Cohort
from fedrec.training.moved import Moved
from fedrec.training.rows import edges
from fedrec.training.stacks import Part, Stack, server_rows


@dataclass(frozen=True)
class Sum:
    """sum_i w_i x_i of the shared parameters, float64, on the server's rows; see `keyed.mean`.

    No client's whole table is made: a client's row that it has not touched adds w_i z. `gap` is the primal residual.
    """

    total: Params
    gap: Tensor  # [] sum_i |x_i - z_i|^2 over the clients with a weight

    @staticmethod
    def zero(like: Params) -> Sum:
        """Return the empty sum for the server's shared parameters."""
        total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in like.items()}
        return Sum(total, torch.zeros((), dtype=torch.float64))

    def start(self, cohort: Cohort, shared: Stack, clients: Ints, weight: Tensor) -> None:
        """Add w_i z_i of every table, for `clients` [k] of weights [k] before their training.

        Of the clients that have no row to train on, and will be in no part, also of any other parameter.
        """
        idle = np.flatnonzero(cohort.sizes[clients] == 0)
        for name, total in self.total.items():
            value, w = shared.values[name], weight.to(total)
            if name not in TABLES:
                w = w.index_select(0, on(idle, total))
                total.add_(torch.tensordot(w, shared.at(name, cohort, clients[idle], idle).double(), 1))
                continue
            space = TABLES[name]
            if not shared.each and cohort.server[space] is None:
                total.add_(value.double() * w.sum())
                continue
            flat, owner = whole(cohort, space, clients)
            target = on(server_rows(space, cohort, flat, clients[owner]), total)
            each = w.index_select(0, on(owner, total))[:, None]
            source = on(flat, total) if shared.each else target
            total.index_add_(0, target, value.index_select(0, source).double() * each)

    def add(self, cohort: Cohort, shared: Stack, part: Part, weight: Tensor) -> None:
        """Add w_i (x_i - z_i) of tables and w_i x_i of the others for `weight` [k]; a client of weight 0 adds nothing.

        Not even its NaN.
        """
        for name, total in self.total.items():
            value, w = part.values[name], weight.to(total)
            if name not in TABLES:
                kept = w != 0
                x, z = (v[kept].double() for v in (value, shared.at(name, cohort, part.clients, part.clients)))
                total.add_(torch.tensordot(w[kept], x, 1))
                self.gap.add_((x - z).square().sum().cpu())
                continue
            touched = part.touched[TABLES[name]]
            each = w.index_select(0, on(touched.owner, total))[:, None]
            change = shared.take(name, cohort, part.clients, part.touched).neg_().add_(value)
            if not bool(w.all()):
                change = torch.where(each == 0, 0.0, change)
            self.gap.add_(torch.linalg.vecdot(change, change).sum(dtype=torch.float64).cpu())
            scaled = change.mul_(each.to(change))
            target = on(server_rows(TABLES[name], cohort, touched.flat, part.clients[touched.owner]), total)
            if len(target) < len(total):
                total.index_add_(0, target, scaled.to(total.dtype))
            else:  # single precision within a part, double across parts: up to twice as fast
                made = torch.zeros_like(total, dtype=value.dtype).index_add_(0, target, scaled)
                total.add_(made.to(total.dtype))


def whole(cohort: Cohort, space: str, clients: Ints) -> tuple[Ints, Ints]:
    """Return all flat rows of `clients`, and for each the position of its client."""
    starts = cohort.starts[space]
    counts = starts[clients + 1] - starts[clients]
    owner = np.repeat(np.arange(len(clients)), counts)
    return np.arange(counts.sum()) + (starts[clients] - edges(counts)[:-1])[owner], owner


def on(index: Ints, like: Tensor) -> Tensor:
    """Return an index as a tensor on the device of `like`."""
    return torch.from_numpy(index).to(like.device)


def stack(params: Sequence[Mapping[str, Tensor]]) -> Stack:
    """Return the parameters of all clients of a cohort, in its order, as one stack; of one client they are its own."""
    if len(params) == 1:
        return Stack({name: value if name in TABLES else value[None] for name, value in params[0].items()})
    join = {name: torch.cat if name in TABLES else torch.stack for name in params[0]}
    return Stack({name: join[name]([part[name] for part in params]) for name in params[0]})


def spread(cohort: Cohort, parts: Mapping[int, Mapping[str, Tensor]]) -> Stack:
    """Return a stack of the parameters of some clients by position, zero for the others; all have the same names."""
    first = next(iter(parts.values()))
    if isinstance(first, Piece) and len(parts) == len(cohort) and all(first.beside(p, c) for c, p in parts.items()):
        return first.stack
    full, sizes = dict(parts), {space: np.diff(cohort.starts[space]) for space in ("user", "item")}
    for place in range(len(cohort)) if len(parts) < len(cohort) else ():
        if place not in full:
            full[place] = {
                name: value.new_zeros(()).expand(sizes[TABLES[name]][place], *value.shape[1:])
                if name in TABLES
                else torch.zeros_like(value)
                for name, value in first.items()
            }
    return stack([full[place] for place in range(len(cohort))])


@dataclass(frozen=True, slots=True, eq=False)
class Piece(Mapping[str, Tensor]):
    """One client's parameters where they lie in a stack of each: a tensor is made when it is asked for."""

    cohort: Cohort
    stack: Stack
    position: int

    def __getitem__(self, name: str) -> Tensor:
        """Return one parameter, which shares the memory of the stack."""
        return client(self.cohort, self.stack, self.position)[name]

    def items(self) -> ItemsView[str, Tensor]:
        """Return all of them, found once."""
        return client(self.cohort, self.stack, self.position).items()

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self.stack.values)

    def __len__(self) -> int:
        """Return how many parameters there are."""
        return len(self.stack.values)

    def beside(self, params: Mapping[str, Tensor], position: int) -> bool:
        """Return whether parameters are those at a position of the same stack."""
        return isinstance(params, Piece) and params.stack is self.stack and params.position == position


def client(cohort: Cohort, stack: Stack, position: int) -> Params:
    """Return one client's parameters; they share the memory of a stack of each."""
    return {name: stack.one(name, cohort, position) for name in stack.values}


def client_after(cohort: Cohort, before: Stack, part: Part, j: int) -> Params:
    """Return the parameters of client `part.clients[j]` that `before` holds, after the round; its own memory."""
    params, alone, position = dict[str, Tensor](), len(part.clients) == 1, int(part.clients[j])
    for name, value in client(cohort, before, position).items():
        if name not in TABLES:
            params[name] = part.values[name][j] if alone else part.values[name][j].clone()
            continue
        touched = part.touched[TABLES[name]]
        start, stop = touched.edge[j : j + 2]
        if alone and stop - start == len(value):
            params[name] = part.values[name]
            continue
        rows = touched.flat[start:stop] - cohort.starts[TABLES[name]][position]
        params[name] = value.index_copy(0, on(rows, value), part.values[name][start:stop])
    return params


def moved(cohort: Cohort, base: Params, part: Part, j: int) -> Moved:
    """Return the parameters of client `part.clients[j]` that were `base`, its own rows; they share a part's memory."""
    client, rows, at = int(part.clients[j]), dict[str, Tensor](), dict[str, slice]()
    for space in {TABLES[name] for name in base if name in TABLES}:
        at[space] = slice(*part.touched[space].edge[j : j + 2].tolist())
        local = part.touched[space].flat[at[space]] - cohort.starts[space][client]
        rows[space] = on(local, next(iter(base.values())))
    return Moved(base, rows, {n: part.values[n][at[TABLES[n]] if n in TABLES else j] for n in base})
