"""What users had liked before: the local items that a sequence encoder reads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedrec.data.split import concatenate, order_of
from fedrec.data.types import ClientData, Interactions, Ints


@dataclass(frozen=True)
class Histories:
    """The last `length` items that were liked before each of n rows.

    `liked` holds items user by user in their order, and -1 behind the last; row r has seen `start[r]` to `end[r]`.
    """

    liked: Ints
    start: Ints  # [n]
    end: Ints  # [n]
    length: int

    def at(self, rows: Ints) -> "Histories":
        """Return the histories of some rows, which may repeat."""
        return replace(self, start=self.start[rows], end=self.end[rows])

    def take(self, rows: Ints) -> Ints:
        """Return the items [len(rows), length], the latest last; -1 in front where there are fewer."""
        place = self.end[rows, None] + np.arange(-self.length, 0)
        return np.asarray(self.liked[np.where(place >= self.start[rows, None], place, -1)], dtype=np.int64)


@dataclass(frozen=True)
class Sequences:
    """What users liked, in order: user u (local) liked the local items `item[start[u]:start[u + 1]]`, latest last."""

    item: Ints  # [total]
    start: Ints  # [users + 1]


def sequences(data: ClientData, known: Sequence[Interactions], seed: int) -> Sequences:
    """Return what every user of a client liked of what is `known`, in the order of `before`."""
    _, rows = _in_order(data, concatenate(known), seed)
    count = np.bincount(rows.user[rows.positive], minlength=len(data.users))
    return Sequences(rows.item[rows.positive], np.append(0, np.cumsum(count)))


def before(data: ClientData, length: int, seed: int) -> Histories:
    """Return what the users of a client's training rows liked in training strictly before each of them.

    The order is the split's: by time, ties as `fedrec.data.split.ordered` has them under the seed, whatever the order
    of the rows. What is held out is in no history.
    """
    order, rows = _in_order(data, data.train, seed)
    seen: Ints = np.cumsum(rows.positive) - rows.positive  # positives of all users before the row
    start: Ints = np.empty_like(seen)
    end: Ints = np.empty_like(seen)
    _, first, user = np.unique(rows.user, return_index=True, return_inverse=True)
    start[order], end[order] = seen[first][user], seen
    return Histories(_liked(rows), start, end, length)


def latest(data: ClientData, known: Sequence[Interactions], length: int, seed: int) -> Histories:
    """Return what every user of a client liked last of what is `known`; row u is the user's."""
    _, rows = _in_order(data, concatenate(known), seed)
    count = np.bincount(rows.user[rows.positive], minlength=len(data.users))
    end = np.cumsum(count)
    return Histories(_liked(rows), end - count, end, length)


def _in_order(data: ClientData, rows: Interactions, seed: int) -> tuple[Ints, Interactions]:
    """Return the order of a client's rows, user by user as global ids ascend with local ones, and the rows in it."""
    order = order_of(replace(rows, user=data.users[rows.user], item=data.items[rows.item]), seed)
    return order, rows.take(order)


def _liked(rows: Interactions) -> Ints:
    return np.append(rows.item[rows.positive], -1)
