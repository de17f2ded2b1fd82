"""Quadratic recommenders in a subspace: W of rank k from sums over users of tables [n, k], and nothing [n, n].

G and C are sums over users, see `fedrec.models.quadratic`, and so is what they make of a matrix V [n, k] that all know.
A few passes V <- orth(D C V), of C and its transpose in turn, find the directions in which histories tell what comes
next: orthogonal iteration (Golub and Van Loan, Matrix Computations, 8.2.4). D = (diagonal of G)^-damping keeps items
that are everywhere from taking them all. Of the last V the sums V'GV [k, k] and V'C [k, n] are all that a fit needs.
"""

from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, Field
from scipy.linalg import cho_factor, cho_solve, qr
from scipy.sparse import csr_array

from fedrec.models.quadratic import Matrix, Quadratic, penalty, scale
from fedrec.rng import normal_rows

SELDOM = 0.1  # of the mean of the diagonal of G is added to it, so that items that hardly occur do not take all of V
JITTER = 1e-12  # of the trace of V'GV, where it may be singular


class Subspace(BaseModel, frozen=True, extra="forbid"):
    """How a subspace is found: a pass is a round, and the fit is one more."""

    k: int = Field(128, ge=1, description="rank of W, columns of the tables that are sent")
    passes: int = Field(4, ge=0, description="rounds of orthogonal iteration; 0 with a basis that is public")
    damping: float = Field(0.6, ge=0, le=2, description="how much the basis turns from frequent items")


def begin(config: Subspace, seed: int, keys: list[str]) -> Matrix:
    """Return the seeded V [n, k] before the first pass: its rows depend on the items' keys alone; k is at most n."""
    width = min(config.k, len(keys))
    return normal_rows(seed, "subspace", keys=keys, width=width).astype(np.float64)


def act(config: Subspace, cross: csr_array, basis: Matrix, done: int) -> Matrix:
    """Return what some users answer in a pass, [n, k], after so many that are done: C V or C'V in turn, at last C V.

    Rows of items that these users do not have are zero, and those of the basis are not looked at.
    """
    return np.asarray((cross.T if (config.passes - done) % 2 == 0 else cross) @ basis)


def advance(config: Subspace, total: Matrix, diagonal: Matrix) -> Matrix:
    """Return the next V [n, k], orthonormal, from the sum of the answers and the diagonal [n] of G."""
    mean = diagonal.mean() or 1.0
    damped = (diagonal / mean + SELDOM) ** -config.damping
    return np.asarray(qr(damped[:, None] * total, mode="economic", overwrite_a=True)[0])


@dataclass(frozen=True)
class Projection:
    """What the fit needs of some users: V'GV [k, k], V'C [k, n] and the diagonal of G [n]."""

    inner: Matrix
    outer: Matrix
    diagonal: Matrix

    def plus(self, other: "Projection", weight: float = 1.0) -> "Projection":
        """Return the sum with others' over the same basis; with a private head, of the total and w times one's own."""
        return Projection(
            self.inner + weight * other.inner,
            self.outer + weight * other.outer,
            self.diagonal + weight * other.diagonal,
        )


def project(gram: csr_array, cross: csr_array, basis: Matrix) -> Projection:
    """Return what some users answer in the last round."""
    return Projection(basis.T @ (gram @ basis), np.asarray((cross.T @ basis).T), gram.diagonal())


@dataclass(frozen=True)
class LowRank:
    """W = left right, [n, k] and [k, n], without `own` [n] on its diagonal."""

    left: Matrix
    right: Matrix
    own: Matrix | None = None

    def score(self, x: csr_array) -> Matrix:
        """Return x W [B, n] of histories x [B, n]."""
        scores = np.asarray((x @ self.left) @ self.right)
        if self.own is not None:
            rows, items = x.nonzero()
            scores[rows, items] -= np.asarray(x[rows, items]) * self.own[items]
        return scores


def fit(kind: str, config: Quadratic, basis: Matrix, sums: Projection) -> LowRank:
    """Return the W of least objective among V A: A = (V'(G + ridge)V)^-1 V'C; where k is n, that of all W.

    Of ease it is the best with zero diagonal for the G of rank k that has the same action on V (Nystroem's, which is
    positive semidefinite): with I - diagonal(P) = (G + ridge)^-1 G, no [n, n] is made either.
    """
    ridge, columns = penalty(config, sums.diagonal), scale(config, sums.diagonal)
    if kind != "ease":
        system = sums.inner + basis.T @ (ridge[:, None] * basis)
        return LowRank(basis, _solve(system, sums.outer * columns))
    left = (sums.outer / ridge).T
    jitter = JITTER * (np.trace(sums.inner) or 1.0)
    right = _solve(sums.inner + jitter * np.eye(len(sums.inner)) + sums.outer @ left, sums.outer)
    own = np.einsum("nk,kn->n", left, right)  # of (G + ridge)^-1 G, from 0 to below 1
    right *= columns / (1 - own)
    return LowRank(left, right, columns * own / (1 - own))


def _solve(system: Matrix, right: Matrix) -> Matrix:
    """Return system^-1 right by Cholesky; the system [k, k] is made symmetric first."""
    return np.asarray(cho_solve(cho_factor((system + system.T) / 2, lower=True), right))
