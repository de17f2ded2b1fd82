"""A subspace V [n, k] that is found by sums: a few passes V <- orth(D C V), of C and its transpose in turn.

That is orthogonal iteration (Golub and Van Loan, Matrix Computations, 8.2.4) on a matrix [n, n] that is a sum over
clients and that nobody makes: each answers with what its own part of it makes of V. Numerics over arrays, whatever is
summed.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from scipy.linalg import qr, svd

Matrix = NDArray[np.floating]
SELDOM = 0.5  # of the mean of a diagonal is added to it, so that rows that are hardly there do not take all of V
ROUNDING = 1e-6  # of the largest size of a direction, below which another is nothing but rounding
LEAST = 1e-3  # of the mean of a diagonal, below which an entry counts as this


class Subspace(BaseModel, frozen=True, extra="forbid"):
    """What travels of sums over pairs of items: all of them, or what they make of a subspace."""

    kind: Literal["dense", "subspace"] = Field("dense", description="sums [n, n], or tables [n, k] for many items")
    k: int = Field(128, ge=1, le=4096, description="columns of the tables")
    passes: int = Field(4, ge=0, le=100, description="rounds that find the subspace, before the one of the sums")
    damping: float = Field(0.9, ge=0, le=2, description="how much the subspace turns from frequent items")
    basis: str = Field(
        "",
        description="a public subspace, of categories, texts, or a file of vectors of items (a column 'key' and "
        "numbers), in the place of one that passes find",
    )
    ridge: float = Field(0.2, gt=0, le=1, description="share of the ridge in a subspace, which is a penalty itself")

    @property
    def active(self) -> bool:
        """Whether tables travel."""
        return self.kind == "subspace"

    @property
    def turns(self) -> int:
        """The passes that are made: none of a public subspace."""
        return 0 if self.basis else self.passes

    @property
    def rounds(self) -> int:
        """The rounds of a run that misses nobody."""
        return self.turns + 1 if self.active else 1

    def transposed(self, number: int) -> bool:
        """Return whether it is C'V that the pass of a round, from 1, asks for: the last pass asks for C V."""
        return (self.turns - number) % 2 == 1


class Search(NamedTuple):
    """What whoever adds up answers is told: how the subspace is found, and the power of its `metric`."""

    subspace: Subspace
    power: float


def advance(config: Subspace, total: Matrix, diagonal: Matrix) -> Matrix:
    """Return the next V [n, k], orthonormal, from the sum of the answers of a pass and a diagonal [n] >= 0.

    D = (diagonal + some of its mean)^-damping keeps rows that are everywhere from taking all of V.
    """
    damped = (diagonal / (diagonal.mean() or 1.0) + SELDOM) ** -config.damping
    return np.asarray(qr(damped[:, None] * total, mode="economic", overwrite_a=True, check_finite=False)[0])


def leading(vectors: Matrix, k: int) -> Matrix:
    """Return an orthonormal V [n, at most k] of the leading directions of the columns of vectors [n, d], float64."""
    left, size, _ = svd(vectors.astype(np.float64), full_matrices=False, check_finite=False)
    return np.asarray(left[:, size > ROUNDING * size[:1].max(initial=0.0)][:, :k])


def relative(diagonal: Matrix, mean: float) -> Matrix:
    """Return the entries [n] of a diagonal in units of a mean, none below `LEAST`; 1 where the mean is 0."""
    return np.maximum(diagonal / mean, LEAST) if mean else np.ones_like(diagonal)


def metric(basis: Matrix, diagonal: Matrix, power: float) -> Matrix:
    """Return V'RV [k, k], R the `relative` diagonal to a power."""
    weights = relative(diagonal, float(diagonal.mean())) ** power
    return np.asarray(basis.T @ (weights[:, None] * basis))


def triangle(matrix: Matrix) -> Matrix:
    """Return the upper triangle [k (k + 1) / 2] by rows of a symmetric matrix [k, k]."""
    return np.concatenate([matrix[:0, 0], *(row[place:] for place, row in enumerate(matrix))])


def square(half: Matrix) -> Matrix:
    """Return the symmetric matrix [k, k] whose upper `triangle` this is."""
    k, start = math.isqrt(2 * len(half)), 0
    full = np.empty((k, k), half.dtype)
    for place in range(k):  # by rows: indices of a large matrix would be larger than it
        row = half[start : start + k - place]
        full[place, place:] = full[place:, place] = row
        start += len(row)
    return full
