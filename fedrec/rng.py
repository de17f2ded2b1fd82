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


def streams(seeds: Sequence[int]) -> "Sequence[np.random.Generator] | Streams":
    """Return `generator` of each of several derived seeds, of which only the one that was asked for last is used."""
    return Streams(seeds) if len(seeds) > FEW else [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]


class Streams:
    """Generators of many seeds, of which one is in use at a time: asking for another ends the last.

    They are seeded together, as NumPy seeds PCG64 by a SeedSequence of one number, in a third of the time.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.states = seeded(np.array(seeds, np.uint64))
        self.bits = np.random.PCG64(0)
        self.rng = np.random.Generator(self.bits)

    def __getitem__(self, number: int) -> np.random.Generator:
        """Return the generator of one of the seeds, at its beginning."""
        high, low, high_inc, low_inc = self.states[number]
        inc = ((high_inc << 64 | low_inc) << 1 | 1) & WORD
        state = ((high << 64 | low) + inc) * MULTIPLIER + inc & WORD
        found = self.bits.state
        found["state"]["state"], found["state"]["inc"] = state, inc
        found["has_uint32"] = found["uinteger"] = 0
        self.bits.state = found
        return self.rng


WORD, MULTIPLIER = 2**128 - 1, 0x2360ED051FC65DA44385DF649FCCF645  # of PCG64
FEW = 8  # seeds that are not worth it
POOL, WORDS = 4, 8  # of a SeedSequence, and what PCG64 asks of it


def seeded(seeds: NDArray[np.uint64]) -> list[list[int]]:
    """Return `SeedSequence(seed).generate_state(4, np.uint64)` of every seed.

    That is O'Neill's seed_seq_fe, as it stands in numpy/random/bit_generator.pyx.
    """
    const = 0x43B0D7E5

    def hashed(value: NDArray[np.uint32]) -> NDArray[np.uint32]:
        nonlocal const
        value = value ^ np.uint32(const)
        const = const * 0x931E8875 & 0xFFFFFFFF
        value = value * np.uint32(const)
        return value ^ value >> np.uint32(16)

    low, high = (seeds & np.uint64(0xFFFFFFFF)).astype(np.uint32), (seeds >> np.uint64(32)).astype(np.uint32)
    pool = [hashed(word) for word in (low, high, np.zeros_like(low), np.zeros_like(low))]
    for source in range(POOL):
        for target in range(POOL):
            if source != target:
                mixed = np.uint32(0xCA01F9DD) * pool[target] - np.uint32(0x4973F715) * hashed(pool[source])
                pool[target] = mixed ^ mixed >> np.uint32(16)
    const, words = 0x8B51F9DD, []
    for place in range(WORDS):
        value = pool[place % POOL] ^ np.uint32(const)
        const = const * 0x58F38DED & 0xFFFFFFFF
        value = value * np.uint32(const)
        words.append(value ^ value >> np.uint32(16))
    states: list[list[int]] = np.ascontiguousarray(np.stack(words, 1).astype("<u4")).view("<u8").tolist()
    return states
