"""Vectors of items from a file, such as those of images, and several modalities joined to one vector per item."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedrec.data.checks import read_csv, reading, refuse
from fedrec.data.types import Floats
from fedrec.errors import UserError
from fedrec.files import regular

LARGEST = 1e30  # squares of larger numbers leave the range of float64 sums that are scaled to float32


def unit_rows(x: NDArray[np.generic]) -> Floats:
    """Return the rows of `x` [n, d] scaled to Euclidean norm 1; a row of zeros stays."""
    rows = np.asarray(x, dtype=np.float64)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norm > 0, norm, 1)).astype(np.float32)


def joined(*modalities: NDArray[np.generic]) -> Floats:
    """Return [n, sum of d_m]: the modalities [n, d_m], the rows of each scaled to norm 1, side by side, at norm 1.

    The cosine of two items is thus the mean of the cosines in every modality, where both items have all of them; an
    item without a modality (a row of zeros) is described by its others alone.
    """
    return unit_rows(np.concatenate([unit_rows(x) for x in modalities], axis=1))


def read_vectors(path: Path, keys: Sequence[str]) -> tuple[Floats, tuple[str, ...]]:
    """Return the vectors of a file [items, d] in the order of the items' `keys`, and notes that count what is missing.

    A CSV (also packed, see `fedrec.files.unpack`) or Parquet file has the column `key` and one column of numbers for
    each dimension, in their order; a safetensors file has one tensor [d] for each item, named by its key. An item that
    the file lacks gets zeros. Raises UserError for a file that cannot be read, a key that is empty or occurs twice, a
    number that is not finite, vectors of unequal length, and where no item is found at all.
    """
    names, rows = _tensors(path) if path.suffix == ".safetensors" else _table(path)
    index = pd.Index(names).get_indexer(pd.Index(list(keys), dtype="str"))
    here = index >= 0
    if not here.any():
        raise UserError(f"{path.name}: key must be that of an item, found none of {len(keys)} items")
    vectors = np.zeros((len(keys), rows.shape[1]), dtype=np.float32)
    vectors[here] = rows[index[here]]
    missing, foreign = int((~here).sum()), len(names) - len(np.unique(index[here]))
    notes = []
    if missing:
        notes.append(f"{path.name}: {missing} of {len(keys)} items have no vector and get zeros")
    if foreign:
        notes.append(f"{path.name}: {foreign} of {len(names)} vectors are of no item and were dropped")
    return vectors, tuple(notes)


def _table(path: Path) -> tuple[list[str], Floats]:
    """Return the keys of a table's rows and their numbers [rows, d]."""
    if path.suffix in (".parquet", ".pq"):
        regular(path, path.name)
        with reading(path, "Parquet"):
            frame = pd.read_parquet(path)
    else:
        with reading(path, "CSV"):
            frame = read_csv(path, ["key"], dtype={"key": "str"})
    if "key" not in frame or frame.shape[1] < 2 or frame.empty:
        text = f"{len(frame)} rows of {', '.join(map(str, frame.columns[:5]))}"
        raise UserError(
            f"{path.name}: must have the column 'key', columns of numbers and at least one row, found {text}"
        )
    key = frame["key"]
    refuse((key.isna() | (key == "")).to_numpy(), key, f"{path.name}, column 'key'", "must not be empty")
    key = key.astype("str")
    refuse(key.duplicated().to_numpy(), key, f"{path.name}, column 'key'", "an item must occur once")
    rows = np.empty((len(frame), frame.shape[1] - 1), dtype=np.float32)
    for dimension, column in enumerate(frame.columns.drop("key")):
        number = pd.to_numeric(frame[column], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        bad = ~(np.abs(number) < LARGEST)
        refuse(bad, frame[column], f"{path.name}, column {str(column)!r}", "must be a finite number")
        rows[:, dimension] = number
    return key.tolist(), rows


def _tensors(path: Path) -> tuple[list[str], Floats]:
    """Return the names of a file's tensors and their numbers [tensors, d]."""
    from safetensors.numpy import load_file

    regular(path, path.name)
    with reading(path, "safetensors"):
        tensors = load_file(path)
    if not tensors:
        raise UserError(f"{path.name}: must hold at least one tensor, found none")
    (d,) = next((x.shape for x in tensors.values() if x.ndim == 1 and x.size), (0,))
    for key, x in tensors.items():
        if x.shape != (d,):
            raise UserError(f"{path.name}, tensor {key!r}: must be a vector as long as the others, found {x.shape}")
        if not (np.abs(x.astype(np.float64)) < LARGEST).all():
            raise UserError(f"{path.name}, tensor {key!r}: must hold finite numbers, found another")
    return list(tensors), np.stack(list(tensors.values())).astype(np.float32)
