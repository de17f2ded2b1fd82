"""A silo's training rows by the unit that is protected, an interaction or a user, in blocks of few rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec.data import ClientData, Histories, Interactions, Negatives, excluded
from fedrec.data.split import chance
from fedrec.data.types import Attributes, Bools, Floats, Ints
from fedrec.rng import derive
from fedrec.tasks import Task
from fedrec.training.recipe import Recipe
from fedrec.training.rows import edges, ranges
from fedrec.training.step import Step

LENGTH = 16  # rows of a user's block: few of them are padding, and a block is worth a product of matrices


@dataclass(frozen=True)
class Batch:
    """U units of a step as k blocks: those of a unit lie side by side."""

    step: Step  # [k, 1 + m, L], a block for a client of one user; a row's share is 1 / (rows of its unit)
    owner: torch.Tensor  # [k] 0 .. U - 1
    distinct: bool  # whether no unit names an item twice
    user: torch.Tensor  # [U] every unit's user
    rows: torch.Tensor  # [U] how many rows a unit has
    history: torch.Tensor | None = None  # [k, L, H] what a row's user had liked before it
    keep: torch.Tensor | None = None  # [k, 1 + m, L] 0 where the id of an item is hidden

    def padded(self) -> Step:
        """Return the units as the clients of one step, each with a user of its own.

        They have as many rows as the longest unit; padding repeats the last row of its own. Numbers are in float64.
        """
        unit = torch.arange(len(self.rows), device=self.rows.device)
        row = torch.arange(int(self.rows.max()), device=self.rows.device)
        first = torch.searchsorted(self.owner, unit) * self.step.share.shape[1]
        last = self.rows[:, None] - 1
        place, real = first[:, None] + torch.minimum(row, last), row <= last

        def laid(values: torch.Tensor) -> torch.Tensor:  # [k, L, ...] -> [U, R, ...]
            return values.flatten(0, 1)[place]

        return Step(
            None,
            laid(self.step.item.mT).mT,
            real.double() / self.rows[:, None],
            {name: (laid(scale) * real, laid(target).double()) for name, (scale, target) in self.step.labels.items()},
            None if self.history is None else laid(self.history),
            None if self.keep is None else laid(self.keep.mT).mT,
        )


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
    past: Histories | None  # [b L] of every cell
    hidden: float  # probability that the id of an item is hidden

    @staticmethod
    def of(
        data: ClientData,
        tasks: tuple[Task, ...],
        recipe: Recipe,
        unit: Literal["interaction", "user"],
        past: Histories | None = None,
    ) -> Units:
        """Return a silo's units: its users, with or without training rows, or the rows that a task learns from.

        A user's negatives avoid its own positives, as in plain training. An interaction's come from the whole
        catalogue: avoiding the user's other positives would make its gradient depend on other units. So would what
        users had liked before their rows, `past`, for a model that reads it: raises ValueError for interactions.
        """
        if past and unit != "user":
            raise ValueError("past: must be none for interactions, which are read in the histories of others")
        whose = data.train.user if unit == "user" else np.arange(len(data.train))
        labels = {task.name: label_rows(task, data.train, data.attributes, whose) for task in tasks}
        used = np.flatnonzero(np.logical_or.reduce([mask for mask, _ in labels.values()]))
        if unit == "user":
            used = used[np.argsort(data.train.user[used], kind="stable")]
        train = data.train.take(used)
        if unit == "user":
            owner, size = np.arange(len(data.users)), np.bincount(train.user, minlength=len(data.users))
        else:
            owner, size = train.user, np.ones(len(train), np.int64)
        number = np.repeat(np.arange(len(size)), size)  # [rows] unit
        edge, index, real = blocks(size, LENGTH if unit == "user" else 1)

        def scale(mask: NDArray[np.bool_]) -> Floats:
            total = np.maximum(np.bincount(number, weights=mask, minlength=len(size)), 1.0)
            share: Floats = np.where(real, (mask / total[number])[index], 0.0).astype(np.float32)
            return share

        rank = any(task.kind == "rank" for task in tasks)
        return Units(
            len(size),
            edge,
            owner.astype(np.int64),
            size.astype(np.int64),
            train.user[index],
            train.item[index],
            scale(np.ones(len(train), np.bool_)),
            {name: (scale(mask[used]), y[used].astype(np.float32)[index]) for name, (mask, y) in labels.items()},
            recipe.num_negatives if rank else 0,
            excluded(data, recipe.negatives) if rank and unit == "user" else None,
            len(data.items),
            bool(np.diff(np.sort(number * len(data.items) + train.item)).all()),
            past.at(used[index.reshape(-1)]) if past else None,
            recipe.hidden,
        )

    def batches(self, chosen: Ints, seed: int, cells: int, device: str, most: int = 0) -> Iterator[Batch]:
        """Yield the units `chosen` that have rows in parts of about `cells` cells, with their negatives.

        With `most` above 0 a part has no more units than that, and `cells` counts what pads them to the longest one.

        A negative is a function of the seed, the user, the item and its number: what the other units hold does not
        move it.
        """
        chosen = chosen[self.rows[chosen] > 0]
        for units in self.alike(chosen, cells, most) if most else self.in_order(chosen, cells):
            yield self.batch(units, seed, device)

    def in_order(self, chosen: Ints, cells: int) -> Iterator[Ints]:
        """Yield parts of units of about `cells` cells of their blocks."""
        width = self.user.shape[1] * (1 + self.sampled)
        part = (np.cumsum(np.diff(self.edge)[chosen]) - 1) * width // cells
        yield from np.split(chosen, np.flatnonzero(np.diff(part)) + 1) if len(chosen) else ()

    def alike(self, chosen: Ints, cells: int, most: int) -> Iterator[Ints]:
        """Yield parts of at most `most` units, the longest first, of at most `cells` cells, or of one unit."""
        chosen = chosen[np.argsort(-self.rows[chosen], kind="stable")]
        width = 1 + self.sampled + (self.past.length if self.past else 0)
        while len(chosen):
            count = max(1, min(most, cells // (int(self.rows[chosen[0]]) * width)))
            yield chosen[:count]
            chosen = chosen[count:]

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
        history = None
        if self.past:
            cell = block[:, None] * self.user.shape[1] + np.arange(self.user.shape[1])
            history = placed(self.past.take(cell.reshape(-1)).reshape(*cell.shape, -1))
        return Batch(
            step,
            placed(owner),
            self.distinct and not self.sampled,
            placed(self.owner[chosen]),
            placed(self.rows[chosen]),
            history,
            placed(self.kept(user, item, seed)) if self.hidden else None,
        )

    def kept(self, user: Ints, item: Ints, seed: int) -> Floats:
        """Return 0 where the id of an item [k, 1 + m, L] of users [k, L] is hidden, else 1, each on its own."""
        cell = item[:, :1] * item.shape[1] + np.arange(item.shape[1])[:, None]
        who = np.broadcast_to(user[:, None], cell.shape).reshape(-1)
        u = chance(who, cell.reshape(-1), derive(seed, "hidden"))
        return (u >= self.hidden).astype(np.float32).reshape(cell.shape)

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


def label_rows(task: Task, rows: Interactions, about: Attributes, whose: Ints) -> tuple[Bools, Floats]:
    """Return the rows that a task learns from [n], and its targets [n].

    One of the user's own is asked for the rows of each unit in `whose` [n] by themselves: what it makes of the mean of
    all rows, say, would have one unit's gradient depend on the others.
    """
    if not task.part:
        return task.rows(rows, about), task.target(rows, about)
    mask, target = np.zeros(len(rows), np.bool_), np.zeros(len(rows), np.float32)
    order = np.argsort(whose, kind="stable")
    for index in np.split(order, np.flatnonzero(np.diff(whose[order])) + 1) if len(order) else ():
        part = rows.take(index)
        mask[index], target[index] = task.rows(part), task.target(part)
    return mask, target


def blocks(size: Ints, length: int) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Return the blocks [b, length] of units with `size` [n] rows that lie end to end: (edge [n + 1], rows, real).

    `edge` are the first blocks of the units; `rows` has the last row of a unit in padding, where `real` is false.
    """
    counts, first = -(-size // length), edges(size)[:-1]
    unit = np.repeat(np.arange(len(size)), counts)
    column = (ranges(np.zeros_like(counts), counts) * length)[:, None] + np.arange(length)
    last = size[unit][:, None] - 1
    return edges(counts), first[unit][:, None] + np.minimum(column, last), column <= last
