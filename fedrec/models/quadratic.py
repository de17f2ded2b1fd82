"""Quadratic recommenders: a matrix W between items, fitted in closed form to sums over users.

A user with history x [n] is scored by x W. Some users' objective in W is 1/2 <W, G W> - <C, W>, so the sums G and C of
all users are all that a fit needs. They are plain sums: of any partition of the users they add up to the whole.

ease: x reconstructs x without its own weight, G = C = X'X (arXiv 1905.03375). slit: the decayed past of every point
between two items of a user tells the decayed future, G = S'S and C = S'T. slist: both, in shares (arXiv 2103.16104).
"""

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from scipy.sparse import coo_array, csr_array

from fedrec.data.history import Sequences
from fedrec.errors import UserError, choose

Kind = Literal["ease", "slist", "slit"]
KINDS: tuple[str, ...] = get_args(Kind)
Matrix = NDArray[np.floating]
Values = NDArray[np.float64]
EXACT = 5000  # items up to which a fit has float64
TOGETHER = 4096  # items up to which users' sums are added in a dense matrix


class Quadratic(BaseModel, frozen=True, extra="forbid"):
    """What a quadratic recommender weighs. Decays are in items: one that is `decay` items away has the weight 1/e."""

    past: float = Field(10.0, gt=0, description="slist, slit: decay of the items before a point of a history")
    future: float = Field(1.0, gt=0, description="slist, slit: decay of the items behind it")
    recent: float = Field(10.0, gt=0, description="slist, slit: decay of a history that is scored, from its end")
    whole: float = Field(0.5, ge=0, le=1, description="slist: share of whole histories beside transitions")
    length: float = Field(0.0, ge=0, le=2, description="users weigh 1 / (their number of items)^this")
    ridge: float = Field(1.0, gt=0, description="weight of |W|^2, in units of the mean of the diagonal of G")
    popular: float = Field(0.0, ge=0, le=1, description="an item's ridge grows as its diagonal of G to this power")
    rare: float = Field(0.0, ge=0, le=1, description="an item's scores shrink as its diagonal of G to this power")


def precision(items: int) -> type[np.floating]:
    """Return the type that a fit over so many items has: float64 up to `EXACT`, then float32."""
    return np.float64 if items <= EXACT else np.float32


def statistics(kind: str, config: Quadratic, sequences: Sequences, items: int) -> tuple[csr_array, csr_array]:
    """Return G and C [items, items] of some users, float64; those of a union of users are the sums.

    Raises UserError for an unknown kind.
    """
    choose("model", kind, KINDS)
    share = {"ease": 1.0, "slist": config.whole, "slit": 0.0}[kind]
    lengths = np.diff(sequences.start)
    weight = np.maximum(lengths, 1.0) ** (-config.length / 2)
    whole = _histories(np.repeat(weight, lengths), sequences, items)
    if share == 1:
        gram = csr_array(whole.T @ whole)
        return gram, gram
    gram, cross = _transitions(config, sequences, items)
    if share == 0:
        return gram, cross
    both = csr_array(whole.T @ whole)
    return csr_array(share * both + (1 - share) * gram), csr_array(share * both + (1 - share) * cross)


def inputs(kind: str, config: Quadratic, sequences: Sequences, items: int) -> csr_array:
    """Return the histories [users, items] that are scored: 1 for every item, or less the longer ago it was."""
    lengths = np.diff(sequences.start)
    ago = np.repeat(sequences.start[1:], lengths) - 1 - np.arange(len(sequences.item))
    return _histories(np.exp(-ago / config.recent) if kind != "ease" else np.ones(len(ago)), sequences, items)


def penalty(kind: str, config: Quadratic, gram: Matrix) -> Matrix:
    """Return the ridge [n] of every item, from the diagonal of G alone; above 0."""
    diagonal = np.diagonal(gram)
    mean = diagonal.mean() or 1.0
    return np.asarray(config.ridge * mean * np.maximum(diagonal / mean, 1e-3) ** config.popular, dtype=gram.dtype)


def scale(kind: str, config: Quadratic, gram: Matrix) -> Matrix:
    """Return what the column [n] of every item in C is multiplied by, from the diagonal of G alone."""
    diagonal = np.diagonal(gram)
    mean = diagonal.mean() or 1.0
    return np.asarray(np.maximum(diagonal / mean, 1e-3) ** -config.rare, dtype=gram.dtype)


def solve(kind: str, config: Quadratic, gram: Matrix, cross: Matrix) -> Matrix:
    """Return W [n, n], of the type of G: (G + ridge) W = C times `scale`; of ease the best with zero diagonal."""
    factor = _factor(kind, config, gram)
    if kind == "ease":
        inverse = torch.cholesky_inverse(factor).numpy()
        weights = -inverse / np.diagonal(inverse)
        np.fill_diagonal(weights, 0)
    else:
        weights = torch.cholesky_solve(torch.from_numpy(np.asarray(cross, gram.dtype)), factor).numpy()
    return np.asarray(weights * scale(kind, config, gram))


def score(kind: str, config: Quadratic, gram: Matrix, cross: Matrix, x: csr_array) -> Matrix:
    """Return the scores x W [B, n] of histories x [B, n], without W where that costs less."""
    if kind == "ease" or x.shape[0] >= x.shape[1]:
        return np.asarray(x.astype(gram.dtype) @ solve(kind, config, gram, cross))
    right = torch.from_numpy(x.T.toarray().astype(gram.dtype))
    half = torch.cholesky_solve(right, _factor(kind, config, gram)).numpy()
    return np.asarray(half.T @ cross * scale(kind, config, gram))


def _factor(kind: str, config: Quadratic, gram: Matrix) -> torch.Tensor:
    """Return the lower factor [n, n] of G + ridge."""
    system = np.array(gram)
    system[np.diag_indices_from(system)] += penalty(kind, config, gram)
    factor, failed = torch.linalg.cholesky_ex(torch.from_numpy(system))
    if failed:
        raise UserError(f"quadratic.ridge: must make the sums positive definite, found {config.ridge}")
    return torch.as_tensor(factor)


def _histories(weight: Values, sequences: Sequences, items: int) -> csr_array:
    """Return the weights [total] of users' items as rows [users, items]; an item that repeats has the sum."""
    shape = (len(sequences.start) - 1, items)
    rows = csr_array((weight, sequences.item, sequences.start), shape=shape, copy=True)
    rows.sum_duplicates()
    return rows


def _transitions(config: Quadratic, sequences: Sequences, items: int) -> tuple[csr_array, csr_array]:
    """Return S'S and S'T of all points between two items of a user.

    The point before position t has exp((i + 1 - t) / past) at the positions i < t in S, and exp((t - j) / future) at
    the positions j >= t in T. Summed over t both are geometric series, in closed form for every pair of positions.
    """
    lengths = np.diff(sequences.start)
    longest = int(lengths.max(initial=0))
    a, b = np.exp(-1 / config.past), np.exp(-1 / config.future)
    away = np.arange(longest)
    near = a**away
    # sum of a^(2 k) for k < m, and of a^k b^(d - 1 - k) for k < d
    series = np.concatenate([[0.0], np.cumsum(a ** (2 * away))])
    through = np.concatenate([[0.0], np.convolve(near, b**away)[: max(longest - 1, 0)]]) if longest else away
    # by the distance j - i of positions, then from the end
    sums = [_Sum(items), _Sum(items)]
    distance = away[None] - away[:, None]
    decay, ahead = near[np.abs(distance)], np.where(distance > 0, through[np.maximum(distance, 0)], 0.0)
    left = longest - 1 - np.maximum(away[:, None], away[None])
    for first, length in zip(sequences.start, lengths, strict=False):
        if length < 2:
            continue
        item, weight = sequences.item[first : first + length], float(length) ** -config.length
        sums[0].add(item, weight * decay[:length, :length] * series[left[-length:, -length:]])
        sums[1].add(item, weight * ahead[:length, :length])
    return sums[0].total(), sums[1].total()


class _Sum:
    """A sum of blocks over items; dense where there are few of them."""

    def __init__(self, items: int) -> None:
        self.dense = np.zeros((items, items)) if items <= TOGETHER else None
        self.items, self.parts = items, [(np.zeros(0), np.zeros(0, np.int64))]

    def add(self, item: NDArray[np.int64], block: Values) -> None:
        """Add a block [k, k] at the rows and columns `item` [k]."""
        if self.dense is None:
            self.parts.append((block.ravel(), (item[:, None] * self.items + item).ravel()))
        elif len(np.unique(item)) == len(item):
            self.dense[item[:, None], item] += block
        else:
            np.add.at(self.dense, (item[:, None], item), block)

    def total(self) -> csr_array:
        """Return the sum."""
        if self.dense is not None:
            return csr_array(self.dense)
        value, place = (np.concatenate(parts) for parts in zip(*self.parts, strict=True))
        shape = (self.items, self.items)
        total = csr_array(coo_array((value, np.divmod(place, self.items)), shape=shape))
        total.eliminate_zeros()
        return total
