"""Sums over pairs of many items as sparse tensors, which travel, and as sparse matrices, which are solved."""

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array, triu
from torch import Tensor

from fedrec.sparse import entries, from_places, pairs, side


def from_matrix(matrix: csr_array) -> Tensor:
    """Return a matrix as a sparse tensor."""
    found = coo_array(tidy(matrix))
    at = found.row.astype(np.int64) * matrix.shape[1] + found.col
    return from_places(at, torch.from_numpy(found.data), matrix.shape)


def from_symmetric(matrix: csr_array) -> Tensor:
    """Return the upper triangle of a symmetric matrix as a sparse tensor."""
    n, found = matrix.shape[0], coo_array(csr_array(triu(tidy(matrix), format="csr")))
    row = found.row.astype(np.int64)
    at = row * n - row * (row - 1) // 2 + found.col - row
    return from_places(at, torch.from_numpy(found.data), (n * (n + 1) // 2,))


def to_matrix(value: Tensor) -> csr_array:
    """Return the matrix of a sparse tensor; of an upper triangle the symmetric one."""
    (row, column), data, n = pairs(value), entries(value).numpy(), side(value)
    upper = csr_array(coo_array((data, (row, column)), shape=(n, n)))
    return upper if value.dim() == 2 else csr_array(upper + triu(upper, 1, format="csr").T)


def tidy(matrix: csr_array) -> csr_array:
    """Return a copy whose entries are in order, once, and none of them zero."""
    found = matrix.copy()
    found.sum_duplicates()
    found.eliminate_zeros()
    return found
