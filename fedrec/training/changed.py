"""Shared parameters that every client keeps as its own training left them: the server's but for the rows it touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedrec.data.types import Ints
from fedrec.parameters import Params
from fedrec.sharing import TABLES
from fedrec.training.cohort import Cohort
from fedrec.training.results import client, on
from fedrec.training.rows import edges, ranges
from fedrec.training.stacks import Part, Stack


@dataclass(frozen=True)
class Block:
    """Clients that were trained from one z: their rows of tables that differ from it, and their other parameters.

    It shares the memory of z and of a part, which must not be changed in place. A light one has no rows and no values,
    and trains again to get them; so neither must the private parameters at the start of its round be.
    """

    clients: Ints  # [k] ascending positions in the cohort
    z: Params  # the server's, one dictionary for all blocks of a round
    rows: dict[str, Ints]  # key space -> [R] ascending flat rows
    edge: dict[str, Ints]  # key space -> [k + 1] the first row of every client
    values: Params  # tables [R, d]; any other parameter [k, ...]
    again: Callable[[], Part] | None = None

    @staticmethod
    def of(z: Stack, part: Part) -> Block:
        """Return what a part has of the parameters of `z`, one for all clients; no value is copied."""
        spaces = {TABLES[name] for name in z.values if name in TABLES}
        return Block(
            part.clients,
            z.values,
            {space: part.touched[space].flat for space in spaces},
            {space: part.touched[space].edge for space in spaces},
            {name: part.values[name] for name in z.values},
            part.again,
        )

    @staticmethod
    def still(cohort: Cohort, z: Stack, clients: Ints) -> Block:
        """Return `clients` that have `z`, one for all clients, itself."""
        spaces, none = {TABLES[name] for name in z.values if name in TABLES}, np.zeros(0, np.int64)
        values = {n: v[:0] if n in TABLES else z.at(n, cohort, clients, clients) for n, v in z.values.items()}
        edge = {space: np.zeros(len(clients) + 1, np.int64) for space in spaces}
        return Block(clients, z.values, dict.fromkeys(spaces, none), edge, values)

    def only(self, clients: Ints) -> Block:
        """Return the block with those of its clients that are among `clients`; itself if all are."""
        kept = np.flatnonzero(np.isin(self.clients, clients))
        if len(kept) == len(self.clients):
            return self
        if not self.values:
            return replace(self, clients=self.clients[kept])
        rows, edge, values, index = {}, {}, {}, {}
        for space, bounds in self.edge.items():
            counts = np.diff(bounds)[kept]
            index[space], edge[space] = ranges(bounds[kept], counts), edges(counts)
            rows[space] = self.rows[space][index[space]]
        for name, value in self.values.items():
            values[name] = value.index_select(0, on(index[TABLES[name]] if name in TABLES else kept, value))
        return Block(self.clients[kept], self.z, rows, edge, values, self.again)

    def light(self) -> Block:
        """Return the block without rows and values, if it can be trained again; else itself."""
        return replace(self, rows={}, edge={}, values={}) if self.again else self

    def full(self) -> Block:
        """Return the block with its rows and values."""
        if self.values or not self.again:
            return self
        return Block.of(Stack(self.z, each=False), self.again()).only(self.clients)

    def at(self, name: str, cohort: Cohort, index: Ints, owner: Ints) -> Tensor:
        """Return a copy of flat rows [R] of a table of the clients `owner` [R], all of this block; see `Stack.at`."""
        if name not in TABLES:
            return self.values[name].index_select(0, on(np.searchsorted(self.clients, index), self.values[name]))
        rows = self.rows[TABLES[name]]
        found = Stack(self.z, each=False).at(name, cohort, index, owner)
        place = np.minimum(np.searchsorted(rows, index), max(len(rows) - 1, 0))
        here = np.flatnonzero(rows[place] == index) if len(rows) else place[:0]
        return found.index_copy_(0, on(here, found), self.values[name].index_select(0, on(place[here], found)))

    def own(self, cohort: Cohort, space: str, j: int) -> tuple[Ints, slice]:
        """Return the local rows that client number j of the block has of its own, and where their values are."""
        part = slice(*self.edge[space][j : j + 2].tolist())
        return self.rows[space][part] - cohort.starts[space][self.clients[j]], part


@dataclass(frozen=True)
class Changed:
    """The shared parameters of every client of a cohort after its own last training; never changed in place.

    Memory is that of the rows that clients touched, and of a z for every round that is the last of some client. Where
    each client has a z of its own, a `Stack` and `write` do the same.
    """

    blocks: tuple[Block, ...]  # every client is in one of them

    @staticmethod
    def start(cohort: Cohort, z: Stack) -> Changed:
        """Return the clients before any training: all have `z`, one for all of them."""
        return Changed((Block.still(cohort, z, np.arange(len(cohort))),))

    def trained(self, cohort: Cohort, z: Stack, blocks: Sequence[Block], chosen: Ints) -> Changed:
        """Return the clients after a round from `z` of the clients `chosen`, whose training left `blocks`.

        Of these, who is in no block had no row to train on, and has `z`. All others keep what they had.
        """
        idle = np.setdiff1d(chosen, np.concatenate([np.zeros(0, np.int64), *(block.clients for block in blocks)]))
        return self.put([*blocks, *([Block.still(cohort, z, idle)] if len(idle) else [])])

    def mixed(self, other: Changed, clients: Ints) -> Changed:
        """Return these parameters with those of another for `clients`."""
        return self.put([block.only(clients) for block in other.blocks])

    def put(self, blocks: Iterable[Block]) -> Changed:
        """Return these parameters with those of `blocks` for their clients."""
        new = [block for block in blocks if len(block.clients)]
        taken = np.concatenate([np.zeros(0, np.int64), *(block.clients for block in new)])
        kept = [block.only(np.setdiff1d(block.clients, taken)) for block in self.blocks]
        return Changed((*(block for block in kept if len(block.clients)), *new))

    def light(self) -> Changed:
        """Return the same without rows and values, which `full` trains again, equal bit by bit on a CPU.

        For what is rarely read: the best round, the one before the last. Blocks whose training had other tensors of
        each client beside the private ones, or that were restored, stay as they are.
        """
        return Changed(tuple(block.light() for block in self.blocks))

    def full(self) -> Changed:
        """Return the same with all rows and values."""
        return Changed(tuple(block.full() for block in self.blocks))

    @cached_property
    def places(self) -> dict[int, tuple[Block, int]]:
        """Every client's block and its number there."""
        return {int(c): (block, j) for block in self.blocks for j, c in enumerate(block.clients)}

    def client(self, cohort: Cohort, position: int) -> Params:
        """Return one client's parameters; its own memory. If light, every call trains: take those of `full`."""
        block, j = self.places[position]
        block = block.full()
        found = {name: value[j].clone() for name, value in block.values.items() if name not in TABLES}
        for name, value in client(cohort, Stack(block.z, each=False), position).items():
            if name not in TABLES:
                continue
            rows, part = block.own(cohort, TABLES[name], j)
            found[name] = value.index_copy(0, on(rows, value), block.values[name][part])
        return {name: found[name] for name in block.values}

    def tensors(self) -> dict[str, Tensor]:
        """Return all of it as named tensors, of which `restore` makes it again; no value is copied."""
        found: dict[str, Tensor] = {}
        numbers: dict[int, int] = {}
        for i, block in enumerate(self.full().blocks):
            number = numbers.setdefault(id(block.z), len(numbers))
            found |= {f"z.{number}.{name}": value for name, value in block.z.items()}
            found |= {f"values.{i}.{name}": value for name, value in block.values.items()}
            found |= {f"rows.{i}.{space}": torch.from_numpy(rows) for space, rows in block.rows.items()}
            found |= {f"edge.{i}.{space}": torch.from_numpy(edge) for space, edge in block.edge.items()}
            found[f"clients.{i}.{number}"] = torch.from_numpy(block.clients)
        return found

    @staticmethod
    def restore(tensors: Mapping[str, Tensor]) -> Changed:
        """Return the inverse of `tensors`."""
        parts: dict[str, dict[int, dict[str, Tensor]]] = {}
        for key, value in tensors.items():
            kind, number, name = key.split(".", 2)
            parts.setdefault(kind, {}).setdefault(int(number), {})[name] = value
        z, blocks = parts.get("z", {}), []
        none: dict[int, dict[str, Tensor]] = {}
        for i in sorted(parts["clients"]):
            ((number, clients),) = parts["clients"][i].items()
            rows, edge = (
                {space: value.cpu().numpy() for space, value in parts.get(kind, none).get(i, {}).items()}
                for kind in ("rows", "edge")
            )
            values = parts.get("values", none).get(i, {})
            blocks.append(Block(clients.cpu().numpy(), z.setdefault(int(number), {}), rows, edge, values))
        return Changed(tuple(blocks))
