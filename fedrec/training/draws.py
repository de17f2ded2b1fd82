"""What a round draws before any training: every client's batches, their sampled items, and the ids that are hidden."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedrec.data.types import Floats, Ints
from fedrec.models.content import kept
from fedrec.rng import Streams, streams
from fedrec.training.cohort import Cohort
from fedrec.training.recipe import Recipe
from fedrec.training.rows import edges, ranges

STREAMS, WORDS = 2**13, 2**22  # of which as many, and of as many words at the most, are drawn together
WORTH = 2**7  # streams that are


@dataclass(frozen=True)
class Drawn:
    """The batches of one phase, client by client and for each client epoch by epoch: M = epochs x training rows."""

    row: Ints  # [M] training row of the cohort
    owner: Ints  # [M] position of its client
    item: Ints  # [M, 1 + m] flat row of the item, and of its sampled items
    keep: Floats | None  # [M, 1 + m] 0 where the id of an item is hidden


@dataclass
class Ahead:
    """What single users draw in a phase before their chunks are trained, many at a time: see `Streams.orders`.

    `seeds` gives the seeds of a client, by its position in `clients`, one for each epoch.
    """

    cohort: Cohort
    clients: Ints
    recipe: Recipe
    seeds: Callable[[int], Sequence[int]]
    here: range = range(0)  # whose draws are at hand
    edge: Ints = field(default_factory=lambda: np.zeros(1, np.int64))  # [clients here + 1] the first row of each
    orders: tuple[Ints, Ints] | None = None

    def of(self, start: int, stop: int) -> tuple[Ints, Ints] | None:
        """Return the orders [M] and integers [M, m] of some clients, or nothing if they draw one by one."""
        recipe, m = self.recipe, self.recipe.num_negatives
        if start not in self.here or stop > self.here.stop:
            size = self.cohort.sizes[self.clients[start:stop]]
            each = recipe.epochs * int(size[0]) * (2 + m)
            count = max(min(STREAMS // recipe.epochs, WORDS // each), stop - start)
            self.here = range(start, min(start + count, len(self.clients)))
            self.edge = edges(self.cohort.sizes[self.clients[start : self.here.stop]] * recipe.epochs)
            self.orders = self.drawn(m)
        if self.orders is None:
            return None
        rows = slice(*self.edge[[start - self.here.start, stop - self.here.start]])
        return self.orders[0][rows], self.orders[1][rows]

    def drawn(self, m: int) -> tuple[Ints, Ints] | None:
        """Return what all who are here draw, or nothing where that is not worth it."""
        cohort, epochs, here = self.cohort, self.recipe.epochs, self.clients[self.here.start : self.here.stop]
        single = bool((np.diff(cohort.starts["user"])[here] == 1).all())
        if cohort.taken is None or self.recipe.hidden or not single or len(here) * epochs < WORTH:
            return None
        many = streams([seed for position in self.here for seed in self.seeds(position)])
        assert isinstance(many, Streams)
        high = cohort.bound[cohort.starts["train"][here]]
        order, r = many.orders(np.repeat(cohort.sizes[here], epochs), np.repeat(high, epochs), m)
        return order, r.reshape(-1, m)


def draw(
    cohort: Cohort,
    clients: Ints,
    recipe: Recipe,
    stream: Callable[[int, int], np.random.Generator],
    ahead: tuple[Ints, Ints] | None = None,
) -> Drawn:
    """Return the batches of a phase for each of `clients`, those with most rows first: a seeded order, fresh negatives.

    `stream` gives the stream of a client, by its position in `clients`, and an epoch; `ahead` has what they draw, where
    that was done. Where one batch holds all rows of a client and nothing is sampled, the rows keep their order: it is
    no part of the result.
    """
    sizes = cohort.sizes[clients]
    counts = np.repeat(sizes, recipe.epochs)
    first, m = np.repeat(cohort.starts["train"][clients], recipe.epochs), recipe.num_negatives if cohort.taken else 0
    if ahead is not None:
        row, r, keep = np.repeat(first, counts) + ahead[0], ahead[1], None
    else:
        row, r = ranges(first, counts), np.empty((counts.sum(), m), np.int64)
        keep = np.empty((len(row), 1 + m), np.float32) if recipe.hidden else None
        draw_each(cohort, clients, recipe, stream, row, r, keep)
    item = np.concatenate([cohort.item[row][:, None], sample_items(cohort, clients, row, r, sizes, recipe)], 1)
    return Drawn(row, np.repeat(np.arange(len(clients)), sizes * recipe.epochs), item, keep)


def draw_each(
    cohort: Cohort,
    clients: Ints,
    recipe: Recipe,
    stream: Callable[[int, int], np.random.Generator],
    row: Ints,
    r: Ints,
    keep: Floats | None,
) -> None:
    """Draw, one after the other, orders into `row` [M], integers into `r` [M, m], and what is hidden into `keep`."""
    sizes, m = cohort.sizes[clients], r.shape[1]
    edge = edges(np.repeat(sizes, recipe.epochs))
    # The larger clients come first: only they have several batches, and an order.
    ordered = len(clients) if m or recipe.hidden else int(np.searchsorted(-sizes, -recipe.batch_size))
    same = (np.diff(cohort.starts["user"])[clients] == 1).tolist()  # whether one bound is that of all rows
    for position in range(ordered):
        for epoch in range(recipe.epochs):
            start, stop = edge[position * recipe.epochs + epoch : position * recipe.epochs + epoch + 2]
            rng = stream(position, epoch)
            row[start:stop] = row[start] + rng.permutation(stop - start)
            if m:
                high = cohort.bound[row[start]] if same[position] else np.repeat(cohort.bound[row[start:stop]], m)
                r[start:stop] = rng.integers(0, high, (stop - start) * m).reshape(-1, m)
            if keep is not None:
                keep[start:stop] = kept(stop - start, 1 + m, recipe.hidden, rng)


def sample_items(cohort: Cohort, clients: Ints, row: Ints, r: Ints, sizes: Ints, recipe: Recipe) -> Ints:
    """Return the flat items [M, m] of the draws r [M, m]: see `Negatives.draw`."""
    if cohort.taken is None:
        return r
    if cohort.free:
        start, item = cohort.free
        place = start[cohort.user[row]][:, None] + r
        local: Ints = item.take(place, mode="clip").astype(np.int64)
    else:
        local = cohort.taken.nth(np.repeat(cohort.user[row], r.shape[1]).reshape(r.shape), r)
    crowded = cohort.crowded[row]
    if crowded.any():
        local = np.where(crowded[:, None], r, local)
    return local + np.repeat(cohort.starts["item"][clients], sizes * recipe.epochs)[:, None]
