"""Quadratic recommenders in a subspace: W of rank k from sums over users of tables [n, k], and nothing [n, n].

G and C are sums over users, see `fedrec.models.quadratic`, and so is what they make of a matrix V [n, k] that all know.
Passes over C and its transpose in turn find the V in which histories tell what comes next (`fedrec.subspace`); of the
last one the sums V'GV [k, k] and C'V [n, k] are all that a fit needs. Tables have a row for each item, so that clients
with other catalogues meet in the rows that they have in common.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_array

from fedrec.models.quadratic import Matrix, Quadratic
from fedrec.rng import normal_rows
from fedrec.subspace import Subspace, advance, metric, relative

OWN = 0.99  # the most of itself that ease is taken to tell of an item; in all of space it is below 1


@dataclass(frozen=True)
class Projection:
    """What a fit in the span of V needs of some users, with a row for each of n items.

    `inner` [k, k] is V'GV, `outer` [n, k] is C'V, `diagonal` [n] that of G, and `mass` the sum of all its entries, also
    of items that are not among the n.
    """

    inner: Matrix
    outer: Matrix
    diagonal: Matrix
    mass: float

    def plus(self, other: "Projection", weight: float = 1.0) -> "Projection":
        """Return the sum with others' over the same basis; with a private head, of the total and w times one's own."""
        return Projection(
            self.inner + weight * other.inner,
            self.outer + weight * other.outer,
            self.diagonal + weight * other.diagonal,
            self.mass + weight * other.mass,
        )


@dataclass(frozen=True)
class LowRank:
    """W = left right', both [n, k], without `own` [n] on its diagonal."""

    left: Matrix
    right: Matrix
    own: Matrix | None = None

    def score(self, x: csr_array) -> Matrix:
        """Return x W [B, n] of histories x [B, n]."""
        x = x.astype(self.left.dtype)
        scores = np.asarray((x @ self.left) @ self.right.T)
        if self.own is not None:
            rows, items = x.nonzero()
            scores[rows, items] -= np.asarray(x[rows, items]) * self.own[items]
        return scores


def begin(k: int, seed: int, keys: Sequence[str]) -> Matrix:
    """Return the seeded V [n, k] before the first pass, float64: its rows depend on the items' keys alone."""
    return normal_rows(seed, "subspace", keys=keys, width=k).astype(np.float64)


def act(cross: csr_array, basis: Matrix, transposed: bool) -> Matrix:
    """Return what some users answer in a pass, [n, k]: C V, or C'V.

    Rows of items that these users do not have are zero, and those of the basis are not looked at.
    """
    return np.asarray((cross.T if transposed else cross) @ basis)


def project(gram: csr_array, cross: csr_array, basis: Matrix) -> Projection:
    """Return what some users answer in the last round."""
    diagonal = gram.diagonal()
    return Projection(basis.T @ (gram @ basis), act(cross, basis, True), diagonal, float(diagonal.sum()))


def find(config: Subspace, gram: csr_array, cross: csr_array, basis: Matrix) -> Matrix:
    """Return the V [n, k] that some users find by themselves from the one before the first pass."""
    diagonal = gram.diagonal()
    for number in range(1, config.turns + 1):
        basis = advance(config, act(cross, basis, config.transposed(number)), diagonal)
    return basis


def fit(kind: str, config: Quadratic, basis: Matrix, weights: Matrix, sums: Projection, items: int) -> LowRank:
    """Return the W of least objective among V A: A = (V'(G + ridge)V)^-1 V'C; where V is of all items, that of all W.

    `weights` [k, k] is the `fedrec.subspace.metric` of V over all `items`, to the power `config.popular`. Of ease it is
    the best with zero diagonal: W = I - P over its diagonal, where (G + ridge)^-1 G = I - P is of rank k. Of `repeats`
    it is the best V A whose diagonal is at most that, as in `fedrec.models.quadratic.solve`.
    """
    mean = sums.mass / items if sums.mass else 1.0
    system = sums.inner + config.ridge * mean * weights
    factor = cho_factor((system + system.T) / 2, lower=True)
    found = cho_solve(factor, sums.outer.T).T
    if config.repeats is not None:
        unit = cho_solve(factor, basis.T.astype(system.dtype)).T
        above = np.maximum((basis * found).sum(1) - config.repeats, 0)
        found -= unit * np.divide(above, (basis * unit).sum(1), out=above, where=above > 0)[:, None]
    found = found.astype(basis.dtype)
    columns = (relative(sums.diagonal, mean) ** -config.rare).astype(basis.dtype)
    if kind != "ease" or config.repeats is not None:
        return LowRank(basis, found * columns[:, None])
    own = np.minimum((basis * found).sum(1), OWN)
    columns = columns / (1 - own)
    return LowRank(basis, found * columns[:, None], columns * own)


def fit_alone(kind: str, config: Quadratic, basis: Matrix, sums: Projection) -> LowRank:
    """Return the `fit` of users whose items are all items."""
    return fit(kind, config, basis, metric(basis, sums.diagonal, config.popular), sums, len(basis))
