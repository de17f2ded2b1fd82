"""What a round touches: the rows that every client's batches and sampled items name, drawn before any training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fedrec.batches import Recipe
from fedrec.data.types import Bools, Ints
from fedrec.stacking.cohort import Cohort, edges


@dataclass(frozen=True)
class Drawn:
    """The batches of one phase, client by client and for each client epoch by epoch: M = epochs x training rows."""

    row: Ints  # [M] training row of the cohort
    item: Ints  # [M, 1 + m] flat row of the item, and of its sampled items


def draw(cohort: Cohort, clients: Ints, recipe: Recipe, stream: Callable[[int, int], np.random.Generator]) -> Drawn:
    """Return the batches of a phase that `batches` yields for each of `clients`, those with most rows first.

    `stream` gives the stream of a client, by its position in `clients`, and an epoch. Where one batch holds all rows of
    a client and nothing is sampled, the rows keep their order: it is no part of the result.
    """
    sizes = cohort.sizes[clients]
    counts = np.repeat(sizes, recipe.epochs)
    row = ranges(np.repeat(cohort.starts["train"][clients], recipe.epochs), counts)
    edge, m = edges(counts), recipe.num_negatives if cohort.taken else 0
    r = np.empty((len(row), m), np.int64)
    # The larger clients come first: only they have several batches, and an order.
    ordered = len(clients) if m else int(np.searchsorted(-sizes, -recipe.batch_size))
    for position in range(ordered):
        for epoch in range(recipe.epochs):
            start, stop = edge[position * recipe.epochs + epoch : position * recipe.epochs + epoch + 2]
            rng = stream(position, epoch)
            row[start:stop] = row[start] + rng.permutation(stop - start)
            if m:
                high = np.repeat(cohort.bound[row[start:stop]], m)
                r[start:stop] = rng.integers(0, high).reshape(-1, m)
    return Drawn(row, np.concatenate([cohort.item[row][:, None], sampled(cohort, clients, row, r, sizes, recipe)], 1))


def sampled(cohort: Cohort, clients: Ints, row: Ints, r: Ints, sizes: Ints, recipe: Recipe) -> Ints:
    """Return the flat items [M, m] of the draws r [M, m]: see `Negatives.draw`."""
    if cohort.taken is None:
        return r
    user = np.repeat(cohort.user[row], r.shape[1]).reshape(r.shape)
    local = np.where(cohort.crowded[row][:, None], r, cohort.taken.nth(user, r))
    return local + np.repeat(cohort.starts["item"][clients], sizes * recipe.epochs)[:, None]


def ranges(starts: Ints, counts: Ints) -> Ints:
    """Return starts_0, starts_0 + 1, ... (counts_0 of them), starts_1, ... ."""
    edge = edges(counts)
    found: Ints = np.arange(edge[-1]) + np.repeat(starts - edge[:-1], counts)
    return found


@dataclass(frozen=True)
class Touched:
    """The rows of a table that a chunk of clients stacks: ascending, client by client."""

    flat: Ints  # [R] flat rows of the cohort
    owner: Ints  # [R] position of the client in the chunk
    edge: Ints  # [k + 1] the first stacked row of every client
    shift: Ints  # [k] from a flat row to a row of the chunk's whole tables
    place: Ints  # from there to the stacked row

    @staticmethod
    def of(starts: Ints, clients: Ints, named: Sequence[tuple[Ints, Ints]] | None) -> Touched:
        """Return the rows named by (flat rows, position of their client) pairs; all rows of the clients with None."""
        counts = starts[clients + 1] - starts[clients]
        edge = edges(counts)
        shift = edge[:-1] - starts[clients]
        mark: Bools = np.full(edge[-1], named is None)
        for flat, owner in named or ():
            mark[flat + shift[owner]] = True
        rows = np.flatnonzero(mark)
        place = np.empty(edge[-1], np.int64)
        place[rows] = np.arange(len(rows))
        bounds = np.searchsorted(rows, edge)
        owner = np.repeat(np.arange(len(clients)), np.diff(bounds))
        return Touched(rows - shift[owner], owner, bounds, shift, place)

    def find(self, flat: Ints, owner: Ints) -> Ints:
        """Return the stacked rows of flat rows of the clients `owner`."""
        found: Ints = self.place[flat + self.shift[owner]]
        return found
