"""Training negatives: items drawn uniformly from outside a user's known positives."""

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from fedrec.data.types import ClientData, Ints
from fedrec.distinct import distinct
from fedrec.errors import choose

Protocol = Literal["train", "published"]


@dataclass(frozen=True)
class Negatives:
    """The items that each user may meet as a negative: all of `n_items` but the user's positives.

    `positives_user` and `positives_item` [n] are pairs of local indices; repeated pairs count once.
    """

    positives_user: Ints
    positives_item: Ints
    n_items: int
    _starts: Ints = field(init=False, repr=False)  # [users + 1]: user u's positives are starts[u] to starts[u + 1]
    _gaps: Ints = field(init=False, repr=False)  # [pairs], sorted: user * n_items + free items below the positive

    def __post_init__(self) -> None:
        """Sort the pairs once, so that a draw is one binary search."""
        pairs = distinct(self.positives_user.astype(np.int64) * self.n_items + self.positives_item)
        user, item = np.divmod(pairs, self.n_items)
        starts = np.concatenate([[0], np.cumsum(np.bincount(user))]).astype(np.int64)
        rank = np.arange(len(pairs)) - starts[user]
        object.__setattr__(self, "_starts", starts)
        object.__setattr__(self, "_gaps", user * self.n_items + item - rank)

    def draw(self, users: Ints, rng: np.random.Generator) -> Ints:
        """Return one negative for every entry of `users` (any shape), uniform over the items the user may meet.

        Exact, without rejection: the r-th item outside sorted positives p_0 < p_1 < ... is r + #{j : p_j - j <= r}.
        A user whose positives are the whole catalogue has no negative: it gets a uniform draw from all items.
        """
        free = self.n_items - self.known(users)
        r = rng.integers(0, np.where(free > 0, free, self.n_items))
        return np.asarray(np.where(free > 0, self.nth(users, r), r), dtype=np.int64)

    def known(self, users: Ints) -> Ints:
        """Return how many positives every user of `users` has."""
        end = len(self._starts) - 1
        count: Ints = self._starts[np.minimum(users + 1, end)] - self._starts[np.minimum(users, end)]
        return count

    def nth(self, users: Ints, r: Ints) -> Ints:
        """Return the r-th item outside the positives of every user of `users`, both of one shape."""
        start = self._starts[np.minimum(users, len(self._starts) - 1)]
        item: Ints = r + np.searchsorted(self._gaps, users * self.n_items + r, side="right") - start
        return item


def excluded(data: ClientData, protocol: Protocol) -> Negatives:
    """Return the negatives of a client under a protocol.

    `train` excludes the training positives only. `published` excludes validation and test positives too, as several
    published federated recommenders do: it leaks the test item, because whatever is never drawn must be a positive.
    Items that are new later are no negatives either: a model must not learn of them that nobody likes them.
    """
    choose("negatives", protocol, get_args(Protocol))
    closed, users = np.flatnonzero(~data.offered("train")), np.arange(len(data.users))
    parts = (data.train,) if protocol == "train" else (data.train, data.validation, data.test)
    user = np.concatenate([np.repeat(users, len(closed)), *(part.user[part.positive] for part in parts)])
    item = np.concatenate([np.tile(closed, len(users)), *(part.item[part.positive] for part in parts)])
    return Negatives(user, item, len(data.items))
