"""What a round draws before any training: every client's batches, their sampled items, and the ids that are hidden."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedrec.data.types import Floats, Ints
from fedrec.models.content import kept
from fedrec.training.cohort import Cohort
from fedrec.training.recipe import Recipe
from fedrec.training.rows import edges, ranges


@dataclass(frozen=True)
class Drawn:
    """The batches of one phase, client by client and for each client epoch by epoch: M = epochs x training rows."""

    row: Ints  # [M] training row of the cohort
    owner: Ints  # [M] position of its client
    item: Ints  # [M, 1 + m] flat row of the item, and of its sampled items
    keep: Floats | None  # [M, 1 + m] 0 where the id of an item is hidden


def draw(cohort: Cohort, clients: Ints, recipe: Recipe, stream: Callable[[int, int], np.random.Generator]) -> Drawn:
    """Return the batches of a phase for each of `clients`, those with most rows first: a seeded order, fresh negatives.

    `stream` gives the stream of a client, by its position in `clients`, and an epoch. Where one batch holds all rows of
    a client and nothing is sampled, the rows keep their order: it is no part of the result.
    """
    sizes = cohort.sizes[clients]
    counts = np.repeat(sizes, recipe.epochs)
    row = ranges(np.repeat(cohort.starts["train"][clients], recipe.epochs), counts)
    edge, m = edges(counts), recipe.num_negatives if cohort.taken else 0
    r = np.empty((len(row), m), np.int64)
    keep = np.empty((len(row), 1 + m), np.float32) if recipe.hidden else None
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
    item = np.concatenate([cohort.item[row][:, None], sample_items(cohort, clients, row, r, sizes, recipe)], 1)
    return Drawn(row, np.repeat(np.arange(len(clients)), sizes * recipe.epochs), item, keep)


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
