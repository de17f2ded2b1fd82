"""Large sums that are nearly all zero, as the entries that are not: sums over pairs of many items.

They are coalesced COO tensors, of a matrix [n, n] or of the upper triangle [n (n + 1) / 2] by rows of a symmetric one.
Whatever takes sums takes either kind, and what is added in either is the same to the bit.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]
LARGE = 2**20  # entries from which a tensor may be sparse
SHARE = 8  # it is if fewer than one of so many is not zero
PLACES, SHAPE = "/places", "/shape"  # behind the name of a sparse tensor in a file


def thin(size: int, count: int) -> bool:
    """Return whether a tensor of some size is held as its entries that are not zero, of which there are `count`."""
    return size >= LARGE and SHARE * count < size


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a sum over nobody."""
    if thin(math.prod(shape), 0):
        return from_places(np.zeros(0, np.int64), torch.zeros(0, dtype=dtype), shape)
    return torch.zeros(*shape, dtype=dtype)


def entries(value: Tensor) -> Tensor:
    """Return the entries to look at: of a sparse tensor those that it has [k], any other itself."""
    return value.coalesce().values() if value.is_sparse else value


def plus(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """Return a + scale * b, sparse if both are."""
    if a.is_sparse and b.is_sparse:
        return torch.add(a, b, alpha=scale).coalesce()
    return scale * b + a if a.is_sparse else a + scale * b


def equal(a: Tensor, b: Tensor) -> bool:
    """Return whether shapes, kinds and all entries are equal; of one tensor, which many are sent, nothing is read."""
    if a is b:
        return True
    if not (a.is_sparse and b.is_sparse):
        return a.is_sparse == b.is_sparse and torch.equal(a, b)
    return a.shape == b.shape and all(map(torch.equal, (a.indices(), a.values()), (b.indices(), b.values())))


def places(value: Tensor) -> Ints:
    """Return where the entries of a sparse tensor lie [k], ascending in C order."""
    index = value.coalesce().indices().numpy()
    return np.asarray(index[0] * value.shape[1] + index[1] if len(index) == 2 else index[0])


def from_places(at: Ints, values: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the sparse tensor of one or two dimensions with `values` [k] `at` ascending places [k] in C order."""
    index = np.stack(np.divmod(at, shape[1])) if len(shape) == 2 else at[None]
    return torch.sparse_coo_tensor(
        torch.from_numpy(index), values, tuple(shape), check_invariants=False, is_coalesced=True
    )


def pairs(value: Tensor) -> tuple[Ints, Ints]:
    """Return the rows [k] and the columns [k] of the entries of a sparse matrix, or of an upper triangle."""
    at = places(value)
    if value.dim() == 2:
        row, column = np.divmod(at, value.shape[1])
        return row, column
    n = side(value)
    start = np.arange(n) * n - np.arange(n) * (np.arange(n) - 1) // 2
    row = np.searchsorted(start, at, side="right") - 1
    return row, row + at - start[row]


def side(value: Tensor) -> int:
    """Return the n of a matrix [n, n], or of its upper triangle."""
    return len(value) if value.dim() == 2 else math.isqrt(2 * len(value))


def among(value: Tensor, mask: Tensor) -> Tensor:
    """Return the entries between items of a mask [n], of a matrix or an upper triangle."""
    value = value.coalesce() if value.is_sparse else value.to_sparse()
    kept = mask.numpy()
    row, column = pairs(value)
    here = np.flatnonzero(kept[row] & kept[column])
    return from_places(places(value)[here], value.values()[torch.from_numpy(here)], value.shape)


def flat(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as a file can hold them: of a sparse one its entries, their places and its shape."""
    found: dict[str, Tensor] = {}
    for name, value in params.items():
        found[name] = entries(value)
        if value.is_sparse:
            found |= {name + PLACES: torch.from_numpy(places(value)), name + SHAPE: torch.tensor(value.shape)}
    return found


def unflat(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the inverse of `flat`."""
    return {
        name: from_places(params[name + PLACES].numpy(), value, params[name + SHAPE].tolist())
        if name + SHAPE in params
        else value
        for name, value in params.items()
        if not name.endswith((PLACES, SHAPE))
    }
