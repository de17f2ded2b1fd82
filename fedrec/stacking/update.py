"""Local training of many clients as one program: `local_update` of each of them, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fedrec.batches import Recipe
from fedrec.data.types import Ints
from fedrec.parameters import Params
from fedrec.seeds import generator
from fedrec.sharing import TABLES, Sharing
from fedrec.stacking.cohort import Cohort
from fedrec.stacking.draws import Drawn, Touched, draw, ranges
from fedrec.stacking.gradients import loss_and_gradients
from fedrec.stacking.learner import Learner
from fedrec.stacking.schedule import Grid, Schedule
from fedrec.stacking.stacks import NOTHING, Part, Stack, Terms
from fedrec.training import trainable

Scope = tuple[str | int, ...]

CELLS = 2**14  # rows in a step of a chunk
PADDING = 2**11  # cells of a step that may be empty
ROWS = 2**17  # stacked rows of a chunk
DRAWS = 2**23  # items that a chunk draws in all epochs and phases, before it trains: 40 bytes each


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
    terms: Terms = NOTHING,
    chunk: int | None = None,
) -> Iterator[Part]:
    """Yield what `local_update` returns for the clients `chosen` (ascending positions in the cohort), in chunks.

    `scopes[j]` is the scope of client `chosen[j]`. Only the rows that a client's batches name are stacked, unless its
    others move too: under a shift, or a pull to an anchor that is not the start. Clients without a row to train on are
    left out. `chunk` bounds the clients of a part, beside the bounds on the rows of a step and of a chunk's tables.
    """
    size = cohort.sizes[chosen]
    moving = bool(terms.shift or (recipe.mu and terms.anchor and terms.anchor is not shared))
    # What a part keeps to be made again must be small.
    heavy = any(one and one.each for one in (shared, terms.anchor, terms.shift, terms.personal))
    sampled = recipe.num_negatives if cohort.taken else 0
    cells = np.minimum(size, recipe.batch_size) * (1 + sampled)
    items = np.diff(cohort.starts["item"])[chosen]
    rows = items if moving else np.minimum(items, size * recipe.epochs * (1 + sampled * len(recipe.phases)))
    draws = size * recipe.epochs * len(recipe.phases) * (1 + sampled)
    for start, stop in pairwise(cuts(cells[size > 0], rows[size > 0], draws[size > 0], chunk)):
        part = slice(start, stop)
        weight = None if terms.weight is None else terms.weight[part]
        chunk_of = Chunk(cohort, chosen[part], shared, private, recipe, sharing, moving, terms, weight)
        again = None if heavy else partial(chunk_of.train, seed, scopes[part])
        yield replace(chunk_of.train(seed, scopes[part]), again=again)


def cuts(cells: Ints, rows: Ints, draws: Ints, chunk: int | None) -> list[int]:
    """Return the positions between chunks of clients: 0, ..., n.

    Given are every client's cells of a step, rows of its tables, and items that it draws.
    """
    found, width, height, held, drawn = [0], 0, 0, 0, 0
    for position, (cell, row, more) in enumerate(zip(cells.tolist(), rows.tolist(), draws.tolist(), strict=True)):
        count = position - found[-1]
        width, height, held, drawn = max(width, cell), height + row, held + cell, drawn + more
        total = (count + 1) * width
        wide = total > CELLS or total - held > PADDING
        if count and (wide or height > ROWS or drawn > DRAWS or count == chunk):
            found.append(position)
            width, height, held, drawn = cell, row, cell, more
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
        drawn = [self.drawn(seed, scopes, number) for number in range(len(recipe.phases))]
        owner = np.repeat(np.arange(k), self.cohort.sizes[self.clients] * recipe.epochs)
        touched = self.touched(drawn, owner)
        names = sorted([*self.shared.values, *self.private.values])
        params = {name: self.stack(name).take(name, self.cohort, self.clients, touched) for name in names}
        personal = self.fixed(self.terms.personal, names, touched)
        some = params["item_table"]
        total = torch.zeros(k, dtype=torch.float64, device=some.device)
        grid, count = Grid.of(self.cohort.sizes[self.clients], recipe.epochs, recipe.batch_size), 0
        for phase, one in zip(recipe.phases, drawn, strict=True):
            trained = trainable(names, self.cohort.tasks, self.sharing, phase, recipe.optimiser)
            trained += [name for name in (self.terms.shift.values if self.terms.shift else ()) if name not in trained]
            if trained:
                schedule = self.schedule(grid, one, owner, touched, str(some.device))
                self.phase(params, personal, trained, schedule, touched, total)
                count += 1
        steps = count * np.bincount(ranges(np.zeros_like(grid.clients), grid.clients), minlength=k)
        return Part(self.clients, touched, params, total / torch.from_numpy(steps).to(total.device), personal)

    def drawn(self, seed: int, scopes: Sequence[Scope], number: int) -> Drawn:
        """Return the batches of phase `number`."""

        def stream(client: int, epoch: int) -> np.random.Generator:
            return generator(seed, "train", *scopes[client], number, epoch)

        return draw(self.cohort, self.clients, self.recipe, stream)

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
        self,
        params: Params,
        personal: Params,
        names: list[str],
        schedule: Schedule,
        touched: Mapping[str, Touched],
        total: Tensor,
    ) -> None:
        """Train `names` in place, of the personal parameters too if there are any; add all losses to `total` [k].

        A client that has no batch left stands still: it and all behind it have no more steps, so that the others are
        the first rows of every tensor, all at the same step of the optimiser.
        """
        recipe, terms = self.recipe, self.terms
        anchor = self.fixed(terms.anchor if recipe.mu else None, names, touched)
        shift = self.fixed(terms.shift, names, touched)
        weight = None if self.weight is None else self.weight.to(total.device).float()
        w = Learner(params, names, recipe.optimiser, {*anchor, *shift})
        v = Learner(personal, names, recipe.optimiser, ()) if personal else None
        at, k = 0, 0
        for t in range(len(schedule.grid.clients)):
            step = schedule.step(t, at)
            at += step.share.numel()
            if k != len(step.item):
                k = len(step.item)
                ends = {n: int(touched[TABLES[n]].edge[k]) if n in TABLES else k for n in params}
                w.narrow(ends)
                held = None if weight is None else weight[:k]
                if v:
                    v.narrow(ends)
            if v:  # at the w of this step; see `fedrec.personal.Apfl`
                mixed = {name: terms.alpha * v.view[name] + (1 - terms.alpha) * value for name, value in w.view.items()}
                _, grads = loss_and_gradients(self.cohort.model, mixed, self.cohort.tasks, step, recipe.l2, None, names)
                v.step(step, {name: terms.alpha * value for name, value in grads.items()}, {}, t + 1)
            loss, grads = loss_and_gradients(self.cohort.model, w.view, self.cohort.tasks, step, recipe.l2, held, names)
            total[:k] += loss
            more = {name: recipe.mu * (w.view[name] - value[: ends[name]]) for name, value in anchor.items()}
            for name, value in shift.items():
                own = value[: ends[name]]
                more[name] = more[name] + own if name in more else own
            w.step(step, grads, more, t + 1)

    def fixed(self, stack: Stack | None, names: list[str], touched: Mapping[str, Touched]) -> Params:
        """Return the part of a stack that goes with the stacked rows, for those of `names` that it has."""
        return (
            {n: stack.take(n, self.cohort, self.clients, touched) for n in names if n in stack.values} if stack else {}
        )
