"""A recommender of transitions from sums with noise: what follows the noise costs nothing.

Item j follows i as often as the sums say, where they are above their noise, and beside that as two items of their
popularity and public classes do. A user is scored by its history, the latest items first, and rare ones more.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array, csr_array, diags_array

from fedrec.data.types import Ints
from fedrec.models.contributions import Values

FLOOR = 0.02  # of the largest popularity: below it noise would weigh an item
LEAST = 1e-3  # of the largest transition between classes


@dataclass(frozen=True)
class Prior:
    """Transitions that popularity [items] and those between public classes [k, k] tell: lift times both items' own."""

    popularity: Values
    classes: Ints  # [items] 0 .. k - 1
    lift: Values  # [k, k]

    @staticmethod
    def of(popularity: Values, classes: Ints, between: Values) -> "Prior":
        """Return the prior of noisy sums; `between` [k, k] of zeros tells nothing."""
        known = np.maximum(between, LEAST * between.max()) if between.max() > 0 else np.ones_like(between)
        share = known.sum(1)[:, None] * known.sum(0) / known.sum()
        return Prior(floored(popularity), classes, known / share)

    def mass(self, among: Ints | slice = slice(None)) -> float:
        """Return the sum over all pairs of some items."""
        size = np.bincount(self.classes[among], self.popularity[among], len(self.lift))
        return float(size @ self.lift @ size)

    def scores(self, x: csr_array) -> Values:
        """Return x [B, items] times the prior, scaled to sum 1."""
        items, k = len(self.popularity), len(self.lift)
        lump = csr_array((self.popularity, (np.arange(items), self.classes)), shape=(items, k))
        return np.asarray((x @ lump).toarray() @ self.lift)[:, self.classes] * (self.popularity / self.mass())


@dataclass(frozen=True)
class Markov:
    """Pairs [items, items], whose sum is their share of all transitions, and `weight` times a prior beside them.

    A history is divided by the popularity and `damping`, so that what everybody has tells less.
    """

    pairs: csr_array
    prior: Prior
    damping: float
    weight: float

    def scores(self, x: csr_array) -> Values:
        """Return the scores [B, items] of decayed histories x [B, items]."""
        rare = csr_array(x @ diags_array(1 / (np.maximum(self.prior.popularity, 0) + self.damping)))
        return np.asarray((rare @ self.pairs).toarray() + self.weight * self.prior.scores(rare))


def floored(popularity: Values) -> Values:
    """Return a noisy popularity [items] without what is below `FLOOR` of its largest, and above 0."""
    return np.maximum(popularity, max(FLOOR * float(popularity.max(initial=0.0)), 1e-12))


def weights(popularity: Values, head: Ints, rarity: float = 0.5) -> Values:
    """Return what the items of a head [m] weigh in a user's contribution: the rarer the more, up to a bound."""
    known = floored(popularity)
    return np.asarray((known[head] / known.max()) ** -rarity)


def pairs(values: Values, noise: float, head: Ints, weight: Values, prior: Prior) -> csr_array:
    """Return the pairs [items, items] of transitions [m, m] with noise of a standard deviation, soft-thresholded at it.

    There are no negative transitions. What is left is freed of its weights, and scaled to what the prior says the head
    has of all transitions.
    """
    items, (row, column) = len(prior.popularity), np.nonzero(values > noise)
    row, column = row[row != column], column[row != column]
    kept = (values[row, column] - noise) / (weight[row] * weight[column])
    total = float(kept.sum())
    scale = prior.mass(head) / prior.mass() / total if total > 0 else 0.0
    return csr_array(coo_array((kept * scale, (head[row], head[column])), shape=(items, items)))
