"""Every random number of the project: a generator derived from the experiment's seed and a scope."""

import hashlib
import json

import numpy as np


def derive(seed: int, *scope: str | int) -> int:
    """Return a 63-bit seed that depends on `seed` and every part of `scope`, and on nothing else.

    Distinct scopes give independent streams: the scope is hashed (BLAKE2b over its JSON form), so `("a", 12)` and
    `("a1", 2)` do not meet.
    """
    text = json.dumps([seed, *scope], separators=(",", ":")).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def generator(seed: int, *scope: str | int) -> np.random.Generator:
    """Return the generator of a scope, for instance `generator(seed, "negatives", client, round)`."""
    return np.random.Generator(np.random.PCG64(derive(seed, *scope)))
