"""Quadratic recommenders: a matrix W between items, fitted in closed form to sums over users.

A user with history x [n] is scored by x W. Some users' objective in W is 1/2 <W, G W> - <C, W>, so the sums G and C of
all users are all that a fit needs. They are plain sums: of any partition of the users they add up to the whole.

ease: x reconstructs x without its own weight, G = C = X'X (arXiv 1905.03375). slit: the decayed past of every point
between two items of a user tells the decayed future, G = S'S and C = S'T. slist: both, in shares (arXiv 2103.16104).
"""

from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.sparse import coo_array, csc_array, csr_array, diags_array

from fedrec.data.history import Sequences
from fedrec.data.types import Ints
from fedrec.errors import UserError, choose

Kind = Literal["ease", "slist", "slit"]
KINDS: tuple[str, ...] = get_args(Kind)
Matrix = NDArray[np.floating]
Sums: TypeAlias = Matrix | csr_array  # [n, n], of many items sparse
Values = NDArray[np.float64]
EXACT = 5000  # items up to which a fit has float64
COLUMNS = 1024  # of W that are solved for at a time, to bound memory
BATCH = 4_000_000  # pairs of positions that are added at a time, to bound memory


class Quadratic(BaseModel, frozen=True, extra="forbid"):
    """What a quadratic recommender weighs; the defaults are of validation on films, music and two shops.

    With k items between, or behind in a history that is scored, an item weighs exp(-k / past), or (1 + k)^-exponent.
    """

    past: float = Field(1.0, gt=0, description="slist, slit: decay of the items before a point of a history, in items")
    future: float = Field(0.75, ge=0, le=4, description="slist, slit: exponent of the items behind it")
    recent: float = Field(0.75, ge=0, le=4, description="exponent of the items of a history that is scored")
    whole: float = Field(0.4, ge=0, le=1, description="slist: share of whole histories beside transitions")
    length: float = Field(0.25, ge=0, le=2, description="users weigh 1 / (their number of items)^this")
    ridge: float = Field(3.0, gt=0, description="weight of |W|^2, in units of the mean of the diagonal of G")
    popular: float = Field(0.25, ge=0, le=1, description="an item's ridge grows as its diagonal of G to this power")
    rare: float = Field(0.15, ge=0, le=1, description="an item's scores shrink as its diagonal of G to this power")


def precision(items: int) -> type[np.floating]:
    """Return the type that a fit over so many items has: float64 up to `EXACT`, then float32."""
    return np.float64 if items <= EXACT else np.float32


def statistics(kind: str, config: Quadratic, sequences: Sequences, items: int) -> tuple[csr_array, csr_array]:
    """Return G and C [items, items] of some users, float64; those of a union of users are the sums.

    Raises UserError for an unknown kind.
    """
    choose("model", kind, KINDS)
    lengths = np.diff(sequences.start)
    weight = np.maximum(lengths, 1.0) ** -config.length
    histories = _histories(np.repeat(np.sqrt(weight), lengths), sequences, items)
    whole = csr_array(histories.T @ histories)
    if kind == "ease":
        return whole, whole
    gram, cross = _transitions(config, weight, sequences, items)
    share = config.whole if kind == "slist" else 0.0
    return csr_array(share * whole + (1 - share) * gram), csr_array(share * whole + (1 - share) * cross)


def inputs(kind: str, config: Quadratic, sequences: Sequences, items: int) -> csr_array:
    """Return the histories [users, items] that are scored: the last item has 1, earlier ones less."""
    behind = 1.0 + _following(sequences)
    return _histories(np.asarray(behind**-config.recent), sequences, items)


def penalty(config: Quadratic, diagonal: Matrix) -> Matrix:
    """Return the ridge [n] of every item, from the diagonal [n] of G alone; above 0."""
    mean = diagonal.mean() or 1.0
    return np.asarray(config.ridge * mean * np.maximum(diagonal / mean, 1e-3) ** config.popular, dtype=diagonal.dtype)


def scale(config: Quadratic, diagonal: Matrix) -> Matrix:
    """Return what the column [n] of every item in C is multiplied by, from the diagonal [n] of G alone."""
    mean = diagonal.mean() or 1.0
    return np.asarray(np.maximum(diagonal / mean, 1e-3) ** -config.rare, dtype=diagonal.dtype)


def solve(kind: str, config: Quadratic, gram: Sums, cross: Sums) -> Matrix:
    """Return W [n, n], of the type of G: (G + ridge) W = C times `scale`; of ease the best with zero diagonal.

    Beside what is given it holds two matrices [n, n]. Raises UserError unless G + ridge is positive definite.
    """
    n, dtype = gram.shape[0], gram.dtype
    factor, weights = _factor(config, gram), np.empty(gram.shape, dtype)
    right = cross if isinstance(cross, np.ndarray) else csc_array(cross)
    for start in range(0, n, COLUMNS):
        width = min(COLUMNS, n - start)
        part = np.eye(n, width, -start, dtype) if kind == "ease" else right[:, start : start + width]
        block = np.asfortranarray(part if isinstance(part, np.ndarray) else part.toarray(), dtype)
        weights[:, start : start + width] = cho_solve((factor, True), block, overwrite_b=True, check_finite=False)
    if kind == "ease":
        weights /= -np.diagonal(weights).copy()
        np.fill_diagonal(weights, 0)
    weights *= scale(config, gram.diagonal())
    return weights


def score(kind: str, config: Quadratic, gram: Sums, cross: Sums, x: csr_array) -> Matrix:
    """Return the scores x W [B, n] of histories x [B, n], without W where that costs less; raises as `solve`."""
    if kind == "ease" or 2 * x.shape[0] >= x.shape[1]:
        return np.asarray(x.astype(gram.dtype) @ solve(kind, config, gram, cross))
    right = x.astype(gram.dtype).toarray().T
    half = cho_solve((_factor(config, gram), True), right, overwrite_b=True, check_finite=False)
    scores = np.asarray(half.T @ cross)
    scores *= scale(config, gram.diagonal())
    return scores


def _factor(config: Quadratic, gram: Sums) -> Matrix:
    """Return the lower Cholesky factor [n, n] of G + ridge; above its diagonal is anything."""
    system = np.array(gram, order="F") if isinstance(gram, np.ndarray) else gram.toarray(order="F")
    system[np.diag_indices_from(system)] += penalty(config, gram.diagonal())
    try:
        return np.asarray(cho_factor(system, lower=True, overwrite_a=True, check_finite=False)[0])
    except LinAlgError:
        raise UserError(f"quadratic.ridge: must make the sums positive definite, found {config.ridge}") from None


def _histories(weight: Values, sequences: Sequences, items: int) -> csr_array:
    """Return the weights [total] of users' items as rows [users, items]; an item that repeats has the sum."""
    shape = (len(sequences.start) - 1, items)
    rows = csr_array((weight, sequences.item, sequences.start), shape=shape, copy=True)
    rows.sum_duplicates()
    return rows


def _transitions(config: Quadratic, weight: Values, sequences: Sequences, items: int) -> tuple[csr_array, csr_array]:
    """Return (1 - a^2) S'S and (1 - a^2) S'T of all points between two items of a user of some `weight` [users].

    With a = exp(-1 / past), the point before position t has a^(t - 1 - i) at the positions i < t in S, and
    (1 + j - t)^-future at the positions j >= t in T. Summed over t, positions i <= j of l add (1 - a^2) S'S =
    a^(j - i) - a^(l - 1 - i) a^(l - 1 - j): what depends on the distance alone, as all of S'T does, and histories as
    they end. The factor keeps the diagonal near the number of users.
    """
    lengths = np.diff(sequences.start)
    a, distance = np.exp(-1 / config.past), np.arange(lengths.max(initial=1))
    near = a**distance
    through = (1 - a**2) * np.append(0.0, np.convolve(near, (1.0 + distance) ** -config.future)[: len(near) - 1])
    weights = np.repeat(weight, lengths)
    upper, cross = _by_distance((near, through), weights, sequences, items)
    ended = _histories(np.sqrt(weights) * a ** _following(sequences), sequences, items)
    own = diags_array(np.bincount(sequences.item, weights, items).astype(np.float64))
    return csr_array(upper + upper.T + own - ended.T @ ended), cross


def _by_distance(
    kernels: tuple[Values, ...], weights: Values, sequences: Sequences, items: int
) -> tuple[csr_array, ...]:
    """Return for each kernel [reach] the sum [items, items] of kernel[j - i] weights[i] over users' positions i < j."""
    left = np.arange(len(sequences.item))
    following, found, waiting = _following(sequences), [], 0
    totals = [csr_array((items, items)) for _ in kernels]
    for distance in range(1, len(kernels[0])):
        left = left[following[left] >= distance]
        found.append((distance, left))
        waiting += len(left)
        if waiting > BATCH or distance == len(kernels[0]) - 1:
            row = sequences.item[np.concatenate([first for _, first in found])]
            column = sequences.item[np.concatenate([first + d for d, first in found])]
            for k, kernel in enumerate(kernels):
                value = np.concatenate([kernel[d] * weights[first] for d, first in found])
                totals[k] = totals[k] + _summed(value, row, column, items)
            found, waiting = [], 0
    return tuple(totals)


def _summed(value: Values, row: Ints, column: Ints, items: int) -> csr_array:
    """Return the sum [items, items] of values at rows and columns, which may repeat."""
    if items**2 > 2 * len(value):
        return csr_array(coo_array((value, (row, column)), shape=(items, items)))
    return csr_array(np.bincount(row * items + column, value, items**2).reshape(items, items))


def _following(sequences: Sequences) -> Ints:
    """Return how many items of the same user follow every one [total]."""
    ends = np.repeat(sequences.start[1:], np.diff(sequences.start))
    return np.asarray(ends - 1 - np.arange(len(sequences.item)))
