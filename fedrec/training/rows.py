"""Flat rows: ranges of clients that are laid end to end, and the rows of a table that a chunk of them touches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec.data.types import Bools, Ints
from fedrec.distinct import distinct

FEW = 32  # rows of the whole tables for each that is named, from which to sort these is faster than to mark them
LARGE = 2**23  # rows of the whole tables, from which the named ones are searched for rather than looked up


def edges(counts: Ints) -> Ints:
    """Return [0, c_0, c_0 + c_1, ...]."""
    bounds = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=bounds[1:])
    return bounds


def ranges(starts: Ints, counts: Ints) -> Ints:
    """Return starts_0, starts_0 + 1, ... (counts_0 of them), starts_1, ... ."""
    edge = edges(counts)
    rows: Ints = np.arange(edge[-1]) + np.repeat(starts - edge[:-1], counts)
    return rows


@dataclass(frozen=True)
class Touched:
    """The rows of a table that a chunk of clients stacks: ascending, client by client."""

    flat: Ints  # [R] flat rows of the cohort
    owner: Ints  # [R] position of the client in the chunk
    edge: Ints  # [k + 1] the first stacked row of every client
    shift: Ints  # [k] from a flat row to a row of the chunk's whole tables
    rows: Ints  # [R] the stacked rows there, ascending
    place: NDArray[np.int32] | None  # from there to the stacked row; None where they are searched for

    @staticmethod
    def of(starts: Ints, clients: Ints, named: Sequence[tuple[Ints, Ints]] | None) -> Touched:
        """Return the rows named by (flat rows, position of their client) pairs; all rows of the clients with None."""
        counts = starts[clients + 1] - starts[clients]
        edge = edges(counts)
        shift = edge[:-1] - starts[clients]
        if named is None:
            rows = np.arange(edge[-1])
        elif FEW * sum(flat.size for flat, _ in named) < edge[-1]:
            rows = distinct(np.concatenate([(flat + shift[owner]).reshape(-1) for flat, owner in named]))
        else:
            mark: Bools = np.zeros(edge[-1], np.bool_)
            for flat, owner in named:
                mark[flat + shift[owner]] = True
            rows = np.flatnonzero(mark)
        place = None
        if edge[-1] <= max(LARGE, len(rows)):
            place = np.empty(edge[-1], np.int32)
            place[rows] = np.arange(len(rows), dtype=np.int32)
        bounds = np.searchsorted(rows, edge)
        owner = np.repeat(np.arange(len(clients)), np.diff(bounds))
        return Touched(rows - shift[owner], owner, bounds, shift, rows, place)

    def find(self, flat: Ints, owner: Ints) -> Ints:
        """Return the stacked rows of flat rows of the clients `owner`."""
        at = flat + self.shift[owner]
        rows: Ints = np.searchsorted(self.rows, at) if self.place is None else self.place[at].astype(np.int64)
        return rows
