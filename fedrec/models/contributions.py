"""What users add to sums under a promise: each a vector of norm 1, in whole steps (`to_grid`).

They are normalised rather than clipped, so that the norm of all is used. A user without what a sum is about adds
nothing. What a user adds is a function of its own history and of what is public or released already: the head, and the
weights of its items. So every sum moves by at most GRID, in the Euclidean norm, where one user is taken out.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from fedrec.data.history import Sequences
from fedrec.data.types import Ints

Values = NDArray[np.float64]
Integers = NDArray[np.int64]
GRID = 2**18  # the norm 1 in steps
PAST, FUTURE = 5.0, 1.0  # decays of what comes before a point of a history, and behind it
LONGEST = 1000  # items of a history, the last ones: its pairs are laid out one user at a time
TOGETHER = 100  # users whose pairs are added at a time


class Part(NamedTuple):
    """What one user adds: the values at some places of a sum, each place once."""

    place: Ints
    value: Values


def to_grid(x: Values) -> Integers:
    """Return a user's contribution [P] at norm 1 as whole steps, rounded towards zero: their norm is at most GRID.

    Rounding towards zero makes no entry larger, so that the norm stays below that of what is rounded; how float64
    divides is checked on the whole numbers themselves, whose squares int64 adds exactly. A vector without a norm, or
    whose norm is not finite, contributes nothing.
    """
    size = float(np.linalg.norm(x))
    if not (math.isfinite(size) and size > 0 and np.isfinite(x).all()):
        return np.zeros(len(x), np.int64)
    unit = x / size
    while True:
        steps = np.trunc(unit * GRID).astype(np.int64)
        if int(steps @ steps) <= GRID**2:
            return np.asarray(steps)
        unit *= 1 - 2.0**-40


def popularity(sequences: Sequences, items: int) -> Integers:
    """Return the sum over users [items] of h / |h|, with h = 1 for every item that a user has."""
    mine = (np.unique(history) for history in _histories(sequences))
    return _added((Part(items_, np.ones(len(items_))) for items_ in mine), items)


def gram(sequences: Sequences, head: Ints, weight: Values) -> Integers:
    """Return the sum over users [m (m + 1) / 2] of x x' with |x| = 1, x = `weight` [m] on a user's items of the head.

    It is the upper triangle by rows, off the diagonal times sqrt(2): the norm of what is released is then that of the
    whole matrix, |x|^2 = 1. Noise of one size on all of it is, of the matrix, that much on the diagonal and less by
    sqrt(2) off it.
    """
    m = len(head)

    def parts() -> Iterator[Part]:
        for history in _among(sequences, head):
            mine = np.unique(history)
            row, column = (mine[index] for index in np.triu_indices(len(mine)))
            place = row * m - row * (row - 1) // 2 + column - row
            yield Part(place, weight[row] * weight[column] * np.where(row == column, 1.0, np.sqrt(2.0)))

    return _added(parts(), m * (m + 1) // 2)


def symmetric(values: Values) -> Values:
    """Return the matrix [m, m] of a `gram` [m (m + 1) / 2], with or without noise."""
    m = round((np.sqrt(8 * len(values) + 1) - 1) / 2)
    upper = np.zeros((m, m))
    upper[np.triu_indices(m)] = values
    above = np.triu(upper, 1) / np.sqrt(2.0)
    return np.asarray(above + above.T + np.diag(np.diagonal(upper)))


def laid_out(values: Values, m: int) -> Values:
    """Return values of pairs [m m], or of a `gram`'s upper triangle, as a matrix [m, m], below which is 0."""
    if len(values) == m * m:
        return values.reshape(m, m)
    matrix = np.zeros((m, m))
    matrix[np.triu_indices(m)] = values
    return matrix


def transitions(sequences: Sequences, head: Ints, weight: Values) -> Integers:
    """Return the sum over users [m m] of their transitions within the head, times `weight` [m] of both, at norm 1.

    Of a history, less all that is not in the head, item j follows i by as much as the decayed past of all points
    between the two tells the decayed future, A'F (arXiv 2103.16104). An item does not follow itself.
    """
    m = len(head)
    return _added((_pairs(history, m, weight, same=False) for history in _among(sequences, head)), m * m)


def class_transitions(sequences: Sequences, classes: Ints, count: int) -> Integers:
    """Return the sum over users [count count] of their transitions between public `classes` [items], at norm 1."""
    ones = np.ones(count)
    return _added((_pairs(classes[h], count, ones, same=True) for h in _histories(sequences)), count * count)


def own_transitions(sequences: Sequences, items: int, weight: Values) -> csr_array:
    """Return what `transitions` does of all items [items, items], exact and with no promise: it must not leave."""
    total, parts = csr_array((items, items)), list[Part]()
    for history in _histories(sequences):
        part = _pairs(history, items, weight, same=False)
        parts.append(Part(part.place, part.value / (np.linalg.norm(part.value) or 1.0)))
        if len(parts) == TOGETHER:
            total, parts = total + _matrix(parts, items), []
    return csr_array(total + _matrix(parts, items))


def following(distance: Ints) -> Values:
    """Return how much of a transition there is between items that are so far apart; none where it is not above 0.

    The sum over the points between i and j of a^(points back to i) b^(points on to j), a and b the decays.
    """
    a, b, d = np.exp(-1 / PAST), np.exp(-1 / FUTURE), np.maximum(distance, 0)
    return np.asarray((a**d - b**d) / (a - b))


def _pairs(history: Ints, m: int, weight: Values, same: bool) -> Part:
    """Return the transitions [m m] of a history of numbers below m, with those of a number to itself or without."""
    step = np.arange(len(history))
    value = following(step - step[:, None]) * weight[history] * weight[history][:, None]
    if not same:
        value[history == history[:, None]] = 0
    place, cell = np.unique((history[:, None] * m + history)[value > 0], return_inverse=True)
    return Part(place, np.bincount(cell, value[value > 0], len(place)).astype(np.float64))


def _matrix(parts: list[Part], items: int) -> csr_array:
    """Return the sum of parts as a matrix [items, items]."""
    row, column = np.divmod(np.concatenate([np.zeros(0, np.int64), *(part.place for part in parts)]), items)
    value = np.concatenate([np.zeros(0), *(part.value for part in parts)])
    return csr_array((value, (row, column)), shape=(items, items))


def _histories(sequences: Sequences) -> Iterator[Ints]:
    for first, last in zip(sequences.start[:-1], sequences.start[1:], strict=True):
        yield sequences.item[max(first, last - LONGEST) : last]


def _among(sequences: Sequences, head: Ints) -> Iterator[Ints]:
    """Yield the last items of every user that are in the head, as places in it."""
    size = int(max(sequences.item.max(initial=-1), head.max(initial=-1))) + 1
    at = np.full(size, -1)
    at[head] = np.arange(len(head))
    found = at[sequences.item]
    start = np.concatenate([[0], np.cumsum(found >= 0)])[sequences.start]
    yield from _histories(Sequences(found[found >= 0], start))


def _added(parts: Iterator[Part], size: int) -> Integers:
    """Return the sum [size] of what users add, each at norm 1."""
    total = np.zeros(size, np.int64)
    for part in parts:
        total[part.place] += to_grid(part.value)
    return total
