"""The steps of a phase: at step t, every client that is not yet done is at its own t-th batch.

Shapes: k clients, L rows each (padded), m sampled items for a row, H items of a history, C classes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedrec.data import Histories
from fedrec.data.types import Bools, Floats, Ints
from fedrec.training.draws import Drawn
from fedrec.training.recipe import Batch
from fedrec.training.rows import Touched, edges, ranges

SMALL = 2**10  # rows of a client whose grid is kept


@dataclass(frozen=True)
class Step:
    """One minibatch of each of k clients; sampled items lie behind the rows' own.

    `user` is None where every client has one user, whose row is then the client's number.
    """

    user: Tensor | None  # [k, L] rows of the stacked user table
    item: Tensor  # [k, 1 + m, L] rows of the stacked item table
    share: Tensor  # [k, L] 1 / (rows of the batch), 0 for padding
    labels: dict[str, tuple[Tensor, Tensor]]  # task -> weight / (its rows), 0 for others [k, L], and target [k, L(, C)]
    history: Tensor | None = None  # [k, L, H] rows of the stacked item table, -1 in front where there are fewer
    keep: Tensor | None = None  # [k, 1 + m, L] 0 where the id of an item is hidden
    weights: Mapping[str, Tensor] = field(default_factory=dict)  # task -> what a row weighs [k, L]; empty: 1

    @property
    def batch(self) -> Batch:
        """The minibatch of the one client that there is."""
        (item,), keep = self.item, None if self.keep is None else self.keep[0].T
        user = torch.zeros_like(item[0]) if self.user is None else self.user[0]
        labels = {name: ((scale[0] > 0).to(scale), target[0]) for name, (scale, target) in self.labels.items()}
        negative = item[1:].T if len(item) > 1 else None
        weights = {name: value[0] for name, value in self.weights.items()} or None
        history = None if self.history is None else self.history[0]
        return Batch(user, item[0], negative, labels, history, keep, weights=weights)


@dataclass(frozen=True)
class Grid:
    """Where the rows of all steps lie: step by step a block of `clients` x `length` cells, one after the other.

    Clients are ordered by their number of steps, so that those of a step are the first of them.
    """

    clients: Ints  # [steps], descending
    length: Ints  # [steps] rows of the longest batch of a step
    index: Ints  # [cells] position among the drawn rows; padding repeats the last row of the same batch
    share: Floats  # [cells] 1 / (rows of the batch), 0 for padding
    batch: Ints  # [batches] the first cell of every batch

    @staticmethod
    def of(sizes: Ints, epochs: int, batch_size: int) -> Grid:
        """Return the grid of clients with `sizes` [k] rows, descending, drawn client by client and epoch by epoch."""
        if len(sizes) == 1 and sizes[0] * epochs <= SMALL:
            return grid_of_one(int(sizes[0]), epochs, batch_size)
        return Grid.laid(sizes, epochs, batch_size)

    @staticmethod
    def laid(sizes: Ints, epochs: int, batch_size: int) -> Grid:
        """Return what `of` does, anew."""
        passes = -(-sizes // batch_size)
        clients = np.searchsorted(-epochs * passes, -np.arange(1, epochs * passes[0] + 1), side="right")
        t, c = np.repeat(np.arange(len(clients)), clients), ranges(np.zeros_like(clients), clients)
        epoch, number = np.divmod(t, passes[c])
        count = np.minimum(batch_size, sizes[c] - number * batch_size)
        first = (edges(sizes * epochs)[:-1])[c] + epoch * sizes[c] + number * batch_size
        length = np.maximum.reduceat(count, edges(clients)[:-1])
        wide = np.repeat(length, clients)
        column, rows = ranges(np.zeros_like(wide), wide), np.repeat(count, wide)
        index = np.repeat(first, wide) + np.minimum(column, rows - 1)
        share = np.where(column < rows, 1.0 / rows, 0.0).astype(np.float32)
        return Grid(clients, length, index, share, edges(wide)[:-1])

    def scale(self, mask: Bools) -> Floats:
        """Return mask / (its sum over the batch), 0 for padding [cells], for a mask [M] of the drawn rows."""
        held = mask[self.index] * (self.share > 0)
        total = np.maximum(np.add.reduceat(held, self.batch, dtype=np.float32), 1.0)
        scale: Floats = held / np.repeat(total, np.diff([*self.batch, len(held)]))
        return scale


@functools.lru_cache(maxsize=512)
def grid_of_one(size: int, epochs: int, batch_size: int) -> Grid:
    """Return the grid of one client: many have as many rows, and all have the same in every round."""
    return Grid.laid(np.array([size]), epochs, batch_size)


@dataclass(frozen=True)
class Past:
    """What the users of drawn rows had liked before, read step by step: [cells, H] would be large."""

    histories: Histories  # of the cohort's training rows, flat items
    row: Ints  # [cells] training row of the cohort
    owner: Ints  # [cells] position of the client in the chunk
    touched: Touched

    @staticmethod
    def of(histories: Histories, drawn: Drawn, index: Ints, touched: Touched) -> Past:
        """Return the histories of the drawn rows at `index` [cells]."""
        return Past(histories, drawn.row[index], drawn.owner[index], touched)

    def take(self, cells: slice, device: str) -> Tensor:
        """Return the stacked rows [n, H] of what was liked before the rows of some cells; -1 where there are fewer."""
        flat = self.histories.take(self.row[cells])
        rows: Ints = np.full(flat.shape, -1, np.int64)
        row, column = np.nonzero(flat >= 0)
        rows[row, column] = self.touched.find(flat[row, column], self.owner[cells][row])
        return torch.from_numpy(rows).to(device)


@dataclass(frozen=True)
class Schedule:
    """The steps of one phase on a device."""

    grid: Grid
    user: Tensor | None  # [cells]
    item: Tensor  # [cells, 1 + m]
    share: Tensor  # [cells]
    labels: Mapping[str, tuple[Tensor, Tensor]]  # task -> (weight * scale [cells], target [cells(, C)])
    keep: Tensor | None = None  # [cells, 1 + m]
    past: Past | None = None
    weights: Mapping[str, Tensor] = field(default_factory=dict)  # task -> [cells]

    def __iter__(self) -> Iterator[Step]:
        """Yield the steps."""
        clients, lengths = self.grid.clients.tolist(), self.grid.length.tolist()
        sizes = [k * length for k, length in zip(clients, lengths, strict=True)]
        labels = {name: [torch.split(part, sizes) for part in parts] for name, parts in self.labels.items()}
        item, share = torch.split(self.item, sizes), torch.split(self.share, sizes)
        user, keep = (None if column is None else torch.split(column, sizes) for column in (self.user, self.keep))
        weights = {name: torch.split(column, sizes) for name, column in self.weights.items()}
        start = 0
        for t, (k, length) in enumerate(zip(clients, lengths, strict=True)):
            rows = slice(start, start + k * length)
            yield Step(
                None if user is None else user[t].view(k, length),
                item[t].view(k, length, -1).mT.contiguous(),
                share[t].view(k, length),
                {
                    name: (a[t].view(k, length), b[t].view(k, length, *b[t].shape[1:]))
                    for name, (a, b) in labels.items()
                },
                None if self.past is None else self.past.take(rows, str(self.item.device)).view(k, length, -1),
                None if keep is None else keep[t].view(k, length, -1).mT,
                {name: w[t].view(k, length) for name, w in weights.items()},
            )
            start = rows.stop
