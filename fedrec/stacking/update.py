"""Local training of many clients as one program: `local_update` of each of them, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fedrec.data.types import Ints
from fedrec.parameters import Params
from fedrec.sharing import TABLES, Sharing
from fedrec.stacking.cohort import Cohort
from fedrec.stacking.draws import Drawn, Scope, Touched, draw, ranges
from fedrec.stacking.gradients import loss_and_gradients, scatter
from fedrec.stacking.schedule import Grid, Schedule
from fedrec.training import Recipe, trainable

CELLS = 2**14  # rows in a step of a chunk
PADDING = 2**11  # cells of a step that may be empty
ROWS = 2**17  # stacked rows of a chunk


@dataclass(frozen=True)
class Stack:
    """Parameters of the clients of a cohort: one value for `each`, or one for all of them.

    Each: tables are flat [rows of all clients, d], any other parameter is [n, ...]. One for all: a table is the
    server's, of which a client has the rows that its cohort names.
    """

    values: Params
    each: bool = True

    def take(self, name: str, cohort: Cohort, clients: Ints, touched: Mapping[str, Touched]) -> Tensor:
        """Return a copy of one parameter for `clients`: the touched rows of a table, [k, ...] of any other one."""
        if name not in TABLES:
            return self.at(name, cohort, clients, np.arange(0))
        rows = touched[TABLES[name]]
        return self.at(name, cohort, rows.flat, clients[rows.owner])

    def at(self, name: str, cohort: Cohort, index: Ints, owner: Ints) -> Tensor:
        """Return a copy of flat rows [R] of a table of the clients `owner` [R]; of any other parameter of each client.

        `index` [R] are the flat rows of a table, else the clients.
        """
        value = self.values[name].detach()
        if name not in TABLES and not self.each:
            return value.expand(len(index), *value.shape).clone()
        if name in TABLES and not self.each:
            index = server_rows(TABLES[name], cohort, index, owner)
        return value.index_select(0, torch.from_numpy(index).to(value.device))


def server_rows(space: str, cohort: Cohort, flat: Ints, owner: Ints) -> Ints:
    """Return the rows of the server's tables that flat rows of the clients `owner` are."""
    rows = cohort.server[space]
    found: Ints = flat - cohort.starts[space][owner] if rows is None else rows[flat]
    return found


@dataclass(frozen=True)
class Part:
    """What some clients of a cohort have after a round; the rows that are not `touched` are as they were."""

    clients: Ints  # [k] positions in the cohort
    touched: dict[str, Touched]  # by key space
    values: Params  # tables: touched rows [R, d]; any other parameter [k, ...]
    loss: Tensor  # [k] float64: the mean training loss over the batches of each


@dataclass(frozen=True)
class Terms:
    """What a client's objective has beside its loss, for every client of a cohort; see `local_update`."""

    anchor: Stack | None = None
    shift: Stack | None = None
    weight: Tensor | None = None  # [chosen]


def train(
    cohort: Cohort,
    shared: Stack,
    private: Stack,
    recipe: Recipe,
    sharing: Sharing,
    *,
    seed: int,
    chosen: Ints,
    scopes: Sequence[Scope],
    terms: Terms = Terms(),
    chunk: int | None = None,
) -> Iterator[Part]:
    """Yield what `local_update` returns for the clients `chosen` (ascending positions in the cohort), in chunks.

    `scopes[j]` is the scope of client `chosen[j]`. Only the rows that a client's batches name are stacked, unless its
    others move too: under a shift, or a pull to an anchor that is not the start. Clients without a row to train on are
    left out. `chunk` bounds the clients of a part, beside the bounds on the rows of a step and of a chunk's tables.
    """
    size = cohort.sizes[chosen]
    moving = bool(terms.shift or (recipe.mu and terms.anchor and terms.anchor is not shared))
    sampled = recipe.num_negatives if cohort.taken else 0
    cells = np.minimum(size, recipe.batch_size) * (1 + sampled)
    items = np.diff(cohort.starts["item"])[chosen]
    rows = items if moving else np.minimum(items, size * recipe.epochs * (1 + sampled * len(recipe.phases)))
    for start, stop in pairwise(cuts(cells[size > 0], rows[size > 0], chunk)):
        part = slice(start, stop)
        weight = None if terms.weight is None else terms.weight[part]
        chunk_of = Chunk(cohort, chosen[part], shared, private, recipe, sharing, moving, terms, weight)
        yield chunk_of.train(seed, scopes[part])


def cuts(cells: Ints, rows: Ints, chunk: int | None) -> list[int]:
    """Return the positions between chunks of clients: 0, ..., n."""
    found, width, height, held = [0], 0, 0, 0
    for position, (cell, row) in enumerate(zip(cells.tolist(), rows.tolist(), strict=True)):
        count = position - found[-1]
        width, height, held = max(width, cell), height + row, held + cell
        total = (count + 1) * width
        if count and (total > CELLS or total - held > PADDING or height > ROWS or count == chunk):
            found.append(position)
            width, height, held = cell, row, cell
    return [*found, len(cells)] if len(cells) else [0]


@dataclass(frozen=True)
class Chunk:
    """Clients that are trained together, those with most training rows first; all have some."""

    cohort: Cohort
    clients: Ints
    shared: Stack
    private: Stack
    recipe: Recipe
    sharing: Sharing
    moving: bool  # whether untouched rows of shared tables move
    terms: Terms
    weight: Tensor | None

    def train(self, seed: int, scopes: Sequence[Scope]) -> Part:
        """Return the clients after the round."""
        recipe, k = self.recipe, len(self.clients)
        drawn = [draw(self.cohort, self.clients, recipe, seed, scopes, number) for number in range(len(recipe.phases))]
        owner = np.repeat(np.arange(k), self.cohort.sizes[self.clients] * recipe.epochs)
        touched = self.touched(drawn, owner)
        names = sorted([*self.shared.values, *self.private.values])
        params = {name: self.stack(name).take(name, self.cohort, self.clients, touched) for name in names}
        some = params["item_table"]
        total = torch.zeros(k, dtype=torch.float64, device=some.device)
        grid, count = Grid.of(self.cohort.sizes[self.clients], recipe.epochs, recipe.batch_size), 0
        for phase, one in zip(recipe.phases, drawn, strict=True):
            trained = trainable(names, self.cohort.tasks, self.sharing, phase)
            trained += [name for name in (self.terms.shift.values if self.terms.shift else ()) if name not in trained]
            if trained:
                schedule = self.schedule(grid, one, owner, touched, str(some.device))
                self.phase(params, trained, schedule, touched, total)
                count += 1
        steps = count * np.bincount(ranges(np.zeros_like(grid.clients), grid.clients), minlength=k)
        return Part(self.clients, touched, params, total / torch.from_numpy(steps).to(total.device))

    def stack(self, name: str) -> Stack:
        """Return where a parameter comes from."""
        return self.shared if name in self.shared.values else self.private

    def touched(self, drawn: Sequence[Drawn], owner: Ints) -> dict[str, Touched]:
        """Return the rows that the phases name, by key space; all of them where untouched ones move."""
        whole = {TABLES[name] for name in self.shared.values if name in TABLES} if self.moving else set()
        named = {
            "user": [(self.cohort.user[one.row], owner) for one in drawn[:1]],  # every epoch meets every row
            "item": [(one.item, owner[:, None]) for one in drawn],
        }
        return {
            space: Touched.of(self.cohort.starts[space], self.clients, None if space in whole else pairs)
            for space, pairs in named.items()
        }

    def schedule(self, grid: Grid, drawn: Drawn, owner: Ints, touched: Mapping[str, Touched], device: str) -> Schedule:
        """Return the steps of a phase."""
        users, labels, tasks = touched["user"], self.cohort.labels, [task.name for task in self.cohort.tasks]
        alone = self.cohort.model.kind == "item" or bool((np.diff(users.edge) == 1).all())
        user = None if alone else users.find(self.cohort.user[drawn.row], owner)
        item = touched["item"].find(drawn.item, owner[:, None])
        mask, target = (np.stack([labels[name][i][drawn.row] for name in tasks], 1) for i in (0, 1))
        return Schedule.of(grid, tasks, user, item, mask, target, device)

    def phase(
        self, params: Params, names: list[str], schedule: Schedule, touched: Mapping[str, Touched], total: Tensor
    ) -> None:
        """Train `names` in place, and add the losses of all steps to `total` [k].

        A client that has no batch left stands still: it and all behind it have no more steps, so that the others are
        the first rows of every tensor, all at the same step of the optimiser.
        """
        recipe, terms = self.recipe, self.terms
        state = recipe.optimiser.start({name: params[name] for name in names})
        anchor = self.fixed(terms.anchor if recipe.mu else None, names, touched)
        shift = self.fixed(terms.shift, names, touched)
        weight = None if self.weight is None else self.weight.to(total.device).float()
        at, k = 0, 0
        # Gradients of tables: zero again after every step, which touches few rows.
        tables, plain = [name for name in names if name in TABLES], recipe.optimiser.kind == "sgd"
        direct = {name for name in tables if plain and name not in anchor and name not in shift}
        empty = {name: torch.zeros_like(params[name]) for name in tables if name not in direct}
        for t in range(len(schedule.grid.clients)):
            step = schedule.step(t, at)
            at += step.share.numel()
            if k != len(step.item):
                k = len(step.item)
                ends = {n: int(touched[TABLES[n]].edge[k]) if n in TABLES else k for n in params}
                view = {name: value[: ends[name]] for name, value in params.items()}
                now = {name: [part[: ends[name]] for part in parts] for name, parts in state.items()}
                held = None if weight is None else weight[:k]
            loss, grads = loss_and_gradients(self.cohort.model, view, self.cohort.tasks, step, recipe.l2, held, names)
            total[:k] += loss
            into = {n: empty[n][: ends[n]] if n in empty else None for n in tables}
            filled = scatter(step, view, grads, into, recipe.optimiser.rate)
            for name in grads.keys() & anchor.keys():
                grads[name] = grads[name] + recipe.mu * (view[name] - anchor[name][: ends[name]])
            for name in shift:
                grads[name] = grads[name] + shift[name][: ends[name]]
            recipe.optimiser.step(view, grads, now, t + 1)
            for value, index in filled:
                value.index_fill_(0, index, 0.0)

    def fixed(self, stack: Stack | None, names: list[str], touched: Mapping[str, Touched]) -> Params:
        """Return the part of a stack that goes with the stacked rows, for those of `names` that it has."""
        return (
            {n: stack.take(n, self.cohort, self.clients, touched) for n in names if n in stack.values} if stack else {}
        )
