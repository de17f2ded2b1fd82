"""Every random number of the project: a generator derived from the experiment's seed and a scope."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


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


def normal_rows(seed: int, *scope: str | int, keys: Sequence[str], width: int) -> NDArray[np.float32]:
    """Return standard normal rows [keys, width], each a function of the seed, the scope and the text of its key alone.

    Where PCG64 starts for a row are 128 bits of BLAKE2b (RFC 7693) of the key's text, under a hash of the rest.
    """
    under = hashlib.blake2b(json.dumps([seed, *scope], separators=(",", ":")).encode()).digest()
    bits, rows = np.random.PCG64(0), np.empty((len(keys), width), np.float32)
    drawn = np.random.Generator(bits)
    for row, key in zip(rows, keys, strict=True):
        hashed = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16, key=under).digest()
        bits.state = {
            "bit_generator": "PCG64",
            "state": {"state": int.from_bytes(hashed, "big"), "inc": 1},
            "has_uint32": 0,
            "uinteger": 0,
        }
        drawn.standard_normal(out=row, dtype=np.float32)
    return rows
