"""What silos release together under a promise, the model that follows, and a silo's own beside its exact sums."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array, csr_array

from fedrec.data.history import Sequences
from fedrec.data.types import Ints
from fedrec.models.contributions import (
    GRID,
    Values,
    class_transitions,
    gram,
    laid_out,
    own_transitions,
    popularity,
    symmetric,
    transitions,
)
from fedrec.models.markov import Markov, Prior, pairs, weights
from fedrec.models.quadratic import Matrix, Quadratic, score
from fedrec.models.shrinkage import Pairs, shrink_eigenvalues

SHARES = (0.0, 0.03, 0.1, 0.3)  # c of what others released, as a user of theirs counts beside one of a silo's own
RECENT, PRIOR = 10.0, 0.3  # decay of a history that is scored, weight of the prior
DAMPING = 0.1  # of the largest popularity


@dataclass(frozen=True)
class Released:
    """The sums of `users` users: popularity [items], transitions of public classes [k, k] and within a head [m, m].

    `noise` is the standard deviation of an entry of the popularity, and of the pairs; 0 of what is exact. `weight` [m]
    are the weights of the head's items that all users' pairs were normalised with. Pairs are transitions, or, of
    histories that are not `ordered`, the upper triangle of a gram, off its diagonal times sqrt(2).
    """

    users: int
    popularity: Values
    classes: Ints
    between: Values
    head: Ints
    weight: Values
    pairs: Values
    noise: tuple[float, float] = (0.0, 0.0)
    ordered: bool = True

    def model(self, prior_weight: float) -> Markov:
        """Return the model of everybody's transitions, with no one's exact sums."""
        prior = Prior.of(self.popularity, self.classes, self.between)
        kept = pairs(self.pairs, self.noise[1], self.head, self.weight, prior)
        return Markov(kept, prior, max(self.noise[0], 1e-9), prior_weight)

    def unordered(self) -> Pairs:
        """Return the model of everybody's gram, with no one's exact sums."""
        return Pairs.of(self.gram, self.noise[1], self.head, self.weight, self.popularity)

    @property
    def gram(self) -> Values:
        """The symmetric matrix [m, m] of pairs without an order, with their noise."""
        return symmetric(self.pairs[np.triu_indices(len(self.head))])

    def others(self, own: Sequences, exact: "Exact | None" = None) -> "Released":
        """Return the same without a silo's own users, whose part it knows to the step: what it knows of the others."""
        k, m, n = len(self.between), len(self.head), len(self.popularity)
        mine = (transitions if self.ordered else gram)(own, self.head, self.weight) / GRID
        lumped = exact.between if exact else class_transitions(own, self.classes, k).reshape(k, k) / GRID
        return Released(
            self.users - (len(own.start) - 1),
            self.popularity - (exact.popularity if exact else popularity(own, n) / GRID),
            self.classes,
            self.between - lumped,
            self.head,
            self.weight,
            self.pairs - laid_out(mine, m),
            self.noise,
            self.ordered,
        )


@dataclass(frozen=True)
class Exact:
    """A silo's own exact sums over its `users`, which must not leave: of what all release, and of all pairs.

    popularity [items], transitions between public classes [k, k], and transitions of items [items, items] at sum 1.
    """

    users: int
    popularity: Values
    between: Values
    pairs: csr_array

    @staticmethod
    def of(own: Sequences, classes: Ints, items: int) -> "Exact":
        """Return the sums of some users."""
        k, known = int(classes.max(initial=0)) + 1, popularity(own, items) / GRID
        weight = weights(known, np.arange(items))
        lumped = class_transitions(own, classes, k).reshape(k, k) / GRID
        return Exact(len(own.start) - 1, known, lumped, _freed(own_transitions(own, items, weight), weight))


def personal(
    own: Sequences, classes: Ints, released: Released | None, items: int, share: float, exact: Exact | None = None
) -> Markov:
    """Return the model of a silo's own exact sums plus c (noisy total - own), c = `share`.

    With c = 0, or nothing released, that is the silo alone, with the same public classes and settings. The choice of c
    is the silo's, on its own validation, and no part of it leaves. `exact` are the sums of its `own` users, if they are
    made already.
    """
    mine = exact or Exact.of(own, classes, items)
    known, lumped, kept, mass = mine.popularity, mine.between, mine.users * mine.pairs, float(mine.users)
    theirs = released.others(own, mine) if released and share else None
    if theirs:
        known = known + share * np.maximum(theirs.popularity, 0)
        lumped = lumped + share * theirs.between
    prior = Prior.of(known, classes, lumped)
    if theirs:
        found = pairs(theirs.pairs, theirs.noise[1], theirs.head, theirs.weight, prior)
        kept, mass = kept + share * theirs.users * found, mass + share * theirs.users * bool(found.nnz)
    return Markov(csr_array(kept / (mass or 1.0)), prior, DAMPING * float(prior.popularity.max()), PRIOR)


def _freed(values: csr_array, weight: Values) -> csr_array:
    """Return exact transitions [items, items] without their weights, scaled to sum 1."""
    cells = coo_array(values)
    row, column = cells.coords
    data = cells.data / (weight[row] * weight[column])
    return csr_array((data / (data.sum() or 1.0), (row, column)), shape=values.shape)


def personal_gram(own: Sequences, exact: Matrix, released: Released | None, share: float) -> Matrix:
    """Return a silo's own exact gram [n, n] of its `own` users plus c times that of the others, c = `share`.

    Theirs is of the head alone, without its noise and weights, and scaled: a user of theirs has there the trace that
    one of the silo's own has. With c = 0, or nothing released, that is the silo alone.
    """
    users = len(own.start) - 1
    theirs = released.others(own) if released and share and users else None
    if not theirs:
        return exact
    found = shrink_eigenvalues(theirs.gram, theirs.noise[1]) / np.outer(theirs.weight, theirs.weight)
    block = np.ix_(theirs.head, theirs.head)
    size = float(np.trace(found))
    scale = float(np.trace(exact[block])) / users * theirs.users / size if size > 0 else 0.0
    whole = exact.copy()
    whole[block] += (share * scale * found).astype(exact.dtype)
    return whole


def gram_scores(gram: Matrix, x: csr_array) -> Values:
    """Return the scores [B, n] of histories x [B, n] by EASE (arXiv 1905.03375) of a gram [n, n]."""
    return np.asarray(score("ease", Quadratic(), gram, gram, x), np.float64)
