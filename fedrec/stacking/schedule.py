"""The steps of a phase: at step t, every client that is not yet done is at its own t-th batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedrec.data.types import Floats, Ints
from fedrec.stacking.cohort import edges
from fedrec.stacking.draws import ranges
from fedrec.stacking.gradients import Step


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

    def scale(self, mask: Floats) -> Floats:
        """Return mask / (its sum over the batch), 0 for padding, for a mask [M, T] of the drawn rows."""
        held = mask[self.index] * (self.share > 0)[:, None]
        total = np.maximum(np.add.reduceat(held, self.batch), 1.0)
        found: Floats = held / np.repeat(total, np.diff([*self.batch, len(held)]), axis=0)
        return found


@dataclass(frozen=True)
class Schedule:
    """The steps of one phase on a device."""

    grid: Grid
    tasks: tuple[str, ...]
    user: Tensor | None  # [cells] stacked rows; None with one user for each client
    item: Tensor  # [cells, 1 + m] stacked rows
    share: Tensor  # [cells]
    scale: tuple[Tensor, ...]  # for each task [cells]
    target: tuple[Tensor, ...]

    @staticmethod
    def of(
        grid: Grid, tasks: Sequence[str], user: Ints | None, item: Ints, mask: Floats, target: Floats, device: str
    ) -> Schedule:
        """Return the steps of drawn rows: `user` [M], `item` [M, 1 + m], `mask` and `target` [M, T]."""
        index = torch.from_numpy(grid.index)

        def placed(values: Ints | Floats) -> Tensor:
            return torch.from_numpy(values).index_select(0, index).to(device)

        share, rows = torch.from_numpy(grid.share).to(device), None if user is None else placed(user)
        scale = by_task(grid.scale(mask), device)
        return Schedule(grid, tuple(tasks), rows, placed(item), share, scale, by_task(target[grid.index], device))

    def step(self, t: int, start: int) -> Step:
        """Return step t = 0, 1, ..., whose first cell is `start`."""
        k, length = int(self.grid.clients[t]), int(self.grid.length[t])
        cells = slice(start, start + k * length)
        item = self.item[cells].view(k, length, -1).mT.contiguous()
        user = None if self.user is None else self.user[cells].view(k, 1, length).expand(item.shape)
        labels = {
            name: (scale[cells].view(k, length), target[cells].view(k, length))
            for name, scale, target in zip(self.tasks, self.scale, self.target, strict=True)
        }
        return Step(user, item, self.share[cells].view(k, length), labels)


def by_task(values: Floats, device: str) -> tuple[Tensor, ...]:
    """Return the columns of values [cells, T]."""
    return torch.from_numpy(np.ascontiguousarray(values.T)).to(device).unbind(0)
