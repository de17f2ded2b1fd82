"""Ranks by how often items were liked, without a score for every user and item."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedrec.data.types import Ints
from fedrec.evaluation.asked import Asked
from fedrec.metrics import alike


@dataclass(frozen=True)
class Counts:
    """How often items were liked, in lists by which clients recommend; an item that is not named has 0."""

    of: Ints  # [clients] the list of each
    width: int  # above every item
    keys: Ints  # [n] list x width + item, ascending
    times: Ints  # [n] above 0

    @staticmethod
    def count(of: Ints, number: Ints, item: Ints, width: int) -> Counts:
        """Count the `item`s [m] of the lists `number` [m]."""
        keys, times = np.unique(number * width + item, return_counts=True)
        return Counts(of, max(width, 1), keys, times)

    def at(self, client: Ints, item: Ints) -> Ints:
        """Return how often items [m] of the catalogues of clients [m] were liked."""
        key = self.of[client] * self.width + item
        place = np.minimum(np.searchsorted(self.keys, key), max(len(self.keys) - 1, 0))
        found: Ints = np.where(self.keys[place] == key, self.times[place], 0) if len(self.keys) else np.zeros_like(key)
        return found

    def ranks(self, asked: Asked, at: Ints) -> Ints:
        """Return the ranks [R] of the held-out positives of the users `at` among whole catalogues, user by user.

        They are those of `metrics.ranks` of the counts.
        """
        owner, (row, item), (met, known) = asked.owner[at], asked.relevant.take(at), asked.known.take(at)
        times, most = self.at(owner[row], item), int(self.times.max(initial=0)) + 1
        ahead = asked.items[owner[row]]  # where the item has 0
        some = times > 0
        listed = self.keys // self.width * most + self.times
        ahead[some] = from_there(listed, self.of[owner[row[some]]], times[some], most)
        ahead -= from_there(met * most + self.at(owner[met], known), row, times, most)
        ranks: Ints = 1 + ahead - (alike(row, times) if len(row) else 0)
        return ranks


def from_there(keys: Ints, group: Ints, value: Ints, most: int) -> Ints:
    """Return how many of the `keys`, group x most + value, are of a `group` [m] and at least of a `value` [m]."""
    ordered = np.sort(keys)
    first, last = np.searchsorted(ordered, group * most + value), np.searchsorted(ordered, (group + 1) * most)
    counted: Ints = last - first
    return counted
