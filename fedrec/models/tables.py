"""How the rows of a table start: each a function of the seed and its global id alone."""

import functools

import numpy as np

from fedrec.data.types import Floats, Ints
from fedrec.rng import generator

BLOCK = 64


@functools.lru_cache(maxsize=1024)
def table_block(seed: int, name: str, block: int, dim: int) -> Floats:
    """Return the standard normal block [BLOCK, dim] of a table, kept for the process: one-user clients share most."""
    rows: Floats = generator(seed, "init", name, block).standard_normal((BLOCK, dim), dtype=np.float32)
    rows.flags.writeable = False
    return rows


def table_rows(seed: int, name: str, ids: Ints, dim: int, std: float = 0.1) -> Floats:
    """Return the initial rows [len(ids), dim] of a table, each a function of (seed, name, global id) alone.

    Rows are drawn in blocks of ids, so that clients with different catalogues start from the same row without either of
    them drawing the whole table.
    """
    blocks, position = np.unique(ids // BLOCK, return_inverse=True)
    drawn = [table_block(seed, name, int(b), dim) for b in blocks]
    values = np.concatenate(drawn) if drawn else np.zeros((0, dim), np.float32)
    rows: Floats = values.take(position * BLOCK + ids % BLOCK, axis=0) * np.float32(std)
    return rows
