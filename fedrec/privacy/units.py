"""A silo's training rows by the unit that is protected, an interaction or a user, in blocks of few rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec.batches import Recipe
from fedrec.data import ClientData, Negatives, excluded
from fedrec.data.split import chance
from fedrec.data.types import Floats, Ints
from fedrec.stacking.cohort import edges
from fedrec.stacking.draws import ranges
from fedrec.stacking.gradients import Step
from fedrec.tasks import Task

LENGTH = 16  # rows of a user's block: few of them are padding, and a block is worth a product of matrices


@dataclass(frozen=True)
class Batch:
    """U units of a step as k blocks: those of a unit lie side by side."""

    step: Step  # [k, 1 + m, L], a block for a client of one user; a row's share is 1 / (rows of its unit)
    owner: torch.Tensor  # [k] 0 .. U - 1
    distinct: bool  # whether no unit names an item twice
    user: torch.Tensor  # [U] every unit's user
    rows: torch.Tensor  # [U] how many rows a unit has


@dataclass(frozen=True)
class Units:
    """All units of a silo, b blocks of L cells; a unit may have none. Padding repeats a row of its unit and weighs 0.

    The weights are those of `batch_loss` on the rows of one unit: a user's loss is what it would be as a client.
    """

    count: int
    edge: Ints  # [count + 1]: unit u's blocks are edge[u] to edge[u + 1]
    owner: Ints  # [count] the unit's user
    rows: Ints  # [count] the unit's training rows
    user: Ints  # [b, L]
    item: Ints  # [b, L]
    share: Floats  # [b, L]
    labels: Mapping[str, tuple[Floats, Floats]]  # task -> (1 / (rows of the unit and task), target) [b, L]
    sampled: int  # negatives of a row
    taken: Negatives | None  # what they avoid; None: nothing
    items: int
    distinct: bool  # whether no unit has two rows of an item

    @staticmethod
    def of(data: ClientData, tasks: tuple[Task, ...], recipe: Recipe, unit: Literal["interaction", "user"]) -> Units:
        """Return a silo's units: its users, with or without training rows, or the rows that a task learns from.

        A user's negatives avoid its own positives, as in plain training. An interaction's come from the whole
        catalogue: avoiding the user's other positives would make its gradient depend on other units.
        """
        train = data.train.take(np.logical_or.reduce([task.rows(data.train) for task in tasks]))
        if unit == "user":
            train = train.take(np.argsort(train.user, kind="stable"))
            owner, size = np.arange(len(data.users)), np.bincount(train.user, minlength=len(data.users))
        else:
            owner, size = train.user, np.ones(len(train), np.int64)
        number = np.repeat(np.arange(len(size)), size)  # [rows] unit
        edge, index, real = blocks(size, LENGTH if unit == "user" else 1)

        def scale(mask: NDArray[np.bool_]) -> Floats:
            total = np.maximum(np.bincount(number, weights=mask, minlength=len(size)), 1.0)
            found: Floats = np.where(real, (mask / total[number])[index], 0.0).astype(np.float32)
            return found

        rank = any(task.kind == "rank" for task in tasks)
        return Units(
            len(size),
            edge,
            owner.astype(np.int64),
            size.astype(np.int64),
            train.user[index],
            train.item[index],
            scale(np.ones(len(train), np.bool_)),
            {t.name: (scale(t.rows(train)), t.target(train).astype(np.float32)[index]) for t in tasks},
            recipe.num_negatives if rank else 0,
            excluded(data, recipe.negatives) if rank and unit == "user" else None,
            len(data.items),
            bool(np.diff(np.sort(number * len(data.items) + train.item)).all()),
        )

    def batches(self, chosen: Ints, seed: int, cells: int, device: str) -> Iterator[Batch]:
        """Yield the units `chosen` that have rows in parts of about `cells` cells, with their negatives.

        A negative is a function of the seed, the user, the item and its number: what the other units hold does not
        move it.
        """
        chosen = chosen[self.rows[chosen] > 0]
        width = self.user.shape[1] * (1 + self.sampled)
        part = (np.cumsum(np.diff(self.edge)[chosen]) - 1) * width // cells
        for units in np.split(chosen, np.flatnonzero(np.diff(part)) + 1) if len(chosen) else ():
            yield self.batch(units, seed, device)

    def batch(self, chosen: Ints, seed: int, device: str) -> Batch:
        """Return the units `chosen`, which all have rows, with the negatives of a seed."""
        counts = np.diff(self.edge)[chosen]
        block = ranges(self.edge[chosen], counts)

        def placed(values: Ints | Floats) -> torch.Tensor:
            return torch.from_numpy(values).to(device)

        user, item = self.user[block], self.item[block, None]
        if self.sampled:
            item = np.concatenate([item, self.negatives(user, item, seed)], 1)
        step = Step(
            None,
            placed(item),
            placed(self.share[block]),
            {name: (placed(scale[block]), placed(target[block])) for name, (scale, target) in self.labels.items()},
        )
        owner = np.repeat(np.arange(len(chosen)), counts)
        return Batch(
            step,
            placed(owner),
            self.distinct and not self.sampled,
            placed(self.owner[chosen]),
            placed(self.rows[chosen]),
        )

    def negatives(self, user: Ints, item: Ints, seed: int) -> Ints:
        """Return the negatives [k, m, L] of users [k, L] and their items [k, 1, L]."""
        number = np.arange(self.sampled)[:, None]
        cell = item * self.sampled + number
        shape, cell = cell.shape, cell.reshape(-1)
        who = np.broadcast_to(user[:, None], shape).reshape(-1)
        u = chance(who, cell, seed)
        free = self.items - (self.taken.known(who) if self.taken else 0)
        r = (u * np.where(free > 0, free, self.items)).astype(np.int64)
        if self.taken:
            r = np.where(free > 0, self.taken.nth(who, r), r)
        return r.reshape(shape)


def blocks(size: Ints, length: int) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Return the blocks [b, length] of units with `size` [n] rows that lie end to end: (edge [n + 1], rows, real).

    `edge` are the first blocks of the units; `rows` has the last row of a unit in padding, where `real` is false.
    """
    counts, first = -(-size // length), edges(size)[:-1]
    unit = np.repeat(np.arange(len(size)), counts)
    column = (ranges(np.zeros_like(counts), counts) * length)[:, None] + np.arange(length)
    last = size[unit][:, None] - 1
    return edges(counts), first[unit][:, None] + np.minimum(column, last), column <= last
