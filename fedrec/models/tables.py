"""How the rows of a table start: each a function of the seed, the table and its key as text alone."""

import functools

import numpy as np

from fedrec.data.types import Floats, Keys
from fedrec.rng import normal_rows

BLOCK = 64


@functools.lru_cache(maxsize=1024)
def table_block(seed: int, name: str, keys: tuple[str, ...], dim: int) -> Floats:
    """Return standard normal rows [keys, dim] of a table, kept for the process: one-user clients share most."""
    rows = normal_rows(seed, "init", name, keys=keys, width=dim)
    rows.flags.writeable = False
    return rows


def table_rows(seed: int, name: str, keys: Keys, dim: int, std: float = 0.1) -> Floats:
    """Return the initial rows [len(keys), dim] of a table, each a function of (seed, name, key as text) alone.

    A node that knows no more than its own rows starts them as any other does, whatever their order and number.
    """
    texts = tuple(map(str, keys.tolist()))
    drawn = [table_block(seed, name, texts[place : place + BLOCK], dim) for place in range(0, len(texts), BLOCK)]
    values = np.concatenate(drawn) if drawn else np.zeros((0, dim), np.float32)
    return values * np.float32(std)
