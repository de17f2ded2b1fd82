"""Every random number of the project: a generator derived from the experiment's seed and a scope."""

import hashlib
import json
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]
ENCODE = json.JSONEncoder(separators=(",", ":")).encode


def derive(seed: int, *scope: str | int) -> int:
    """Return a 63-bit seed that depends on `seed` and every part of `scope`, and on nothing else.

    Distinct scopes give independent streams: the scope is hashed (BLAKE2b over its JSON form), so `("a", 12)` and
    `("a1", 2)` do not meet.
    """
    text = ENCODE([seed, *scope]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def generator(seed: int, *scope: str | int) -> np.random.Generator:
    """Return the generator of a scope, for instance `generator(seed, "negatives", client, round)`."""
    return np.random.Generator(np.random.PCG64(derive(seed, *scope)))


def normal_rows(seed: int, *scope: str | int, keys: Sequence[str], width: int) -> NDArray[np.float32]:
    """Return standard normal rows [keys, width], each a function of the seed, the scope and the text of its key alone.

    Where PCG64 starts for a row are 128 bits of BLAKE2b (RFC 7693) of the key's text, under a hash of the rest.
    """
    under = hashlib.blake2b(ENCODE([seed, *scope]).encode()).digest()
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
        high, low, high_inc, low_inc = self.states[number].tolist()
        inc = ((high_inc << 64 | low_inc) << 1 | 1) & WORD
        state = ((high << 64 | low) + inc) * MULTIPLIER + inc & WORD
        found = self.bits.state
        found["state"]["state"], found["state"]["inc"] = state, inc
        found["has_uint32"] = found["uinteger"] = 0
        self.bits.state = found
        return self.rng

    def orders(self, n: Ints, high: Ints, m: int) -> tuple[Ints, Ints]:
        """Return what `permutation(n)` and then `integers(0, high, n * m)` draw of every stream, end to end.

        `n` >= 1 and 1 <= `high` < 2^32 are those of every stream; all draw together, in a fifth of the time. An order
        is Fisher and Yates' from the end, of masked words; an integer is Lemire's (arXiv 1805.10941). A stream of which
        an integer may have been rejected, one in millions, or that needs more words than are there draws by itself.
        """
        longest, place = int(n.max()), np.arange(len(n))
        words = self.words(2 * longest + SPARE + longest * m)
        order, left, used = (
            np.repeat(np.arange(longest)[:, None], len(n), 1),
            (n - 1).astype(np.uint32),
            np.zeros(len(n), np.int64),
        )
        mask = ((1 << np.ceil(np.log2(np.arange(longest) + 1)).astype(np.int64)) - 1).astype(np.uint32)
        for word in words[: 2 * longest + SPARE]:
            drawing = left > 0
            other = word & mask[left]
            here = np.flatnonzero((other <= left) & drawing)
            if not len(here) and not drawing.any():
                break
            used += drawing
            last, other = left[here].astype(np.int64), other[here].astype(np.int64)
            order[last, here], order[other, here] = order[other, here], order[last, here]
            left[here] = last - 1
        row = np.arange(longest * m)[:, None]
        scaled = words[used + row, place] * high.astype(np.uint64)
        inside, asked = np.arange(longest)[:, None] < n, row < n * m
        lost = (left > 0) | (((scaled & LOW) < high.astype(np.uint64)) & asked & (high > 1)).any(0)
        orders, integers = order.T[inside.T], (scaled >> HALF).astype(np.int64).T[asked.T]
        ends = np.cumsum(n)
        for stream in np.flatnonzero(lost).tolist():
            rng, end, count = self[stream], int(ends[stream]), int(n[stream])
            orders[end - count : end] = rng.permutation(count)
            integers[m * (end - count) : m * end] = rng.integers(0, high[stream], count * m)
        return orders, integers

    def words(self, count: int) -> NDArray[np.uint32]:
        """Return the first `count` words of 32 bits of every stream [count, streams]: PCG64 steps, and XSL-RR."""
        high, low, high_inc, low_inc = self.states.T
        high_inc, low_inc = high_inc << ONE | low_inc >> np.uint64(63), low_inc << ONE | ONE
        low = low + low_inc
        high = high + high_inc + (low < low_inc)
        words = np.empty((count + 1, len(high)), np.uint32)
        for place in range(-1, count, 2):
            a, b = low >> HALF, low & LOW
            ad, bc, bd = a * M_0, b * M_1, b * M_0
            middle = (bd >> HALF) + (ad & LOW) + (bc & LOW)
            high = a * M_1 + (ad >> HALF) + (bc >> HALF) + (middle >> HALF) + low * M_HIGH + high * M_LOW + high_inc
            low = low * M_LOW + low_inc
            high += low < low_inc
            if place < 0:
                continue
            turn, mixed = high >> np.uint64(58), high ^ low
            mixed = mixed >> turn | mixed << (np.uint64(64) - turn & np.uint64(63))
            words[place - 1], words[place] = mixed & LOW, mixed >> HALF
        return words[:count]


WORD, MULTIPLIER = 2**128 - 1, 0x2360ED051FC65DA44385DF649FCCF645  # of PCG64
M_HIGH, M_LOW = np.uint64(MULTIPLIER >> 64), np.uint64(MULTIPLIER & 2**64 - 1)
LOW, HALF, ONE = np.uint64(2**32 - 1), np.uint64(32), np.uint64(1)
M_1, M_0 = M_LOW >> HALF, M_LOW & LOW
SPARE = 24  # words beyond two for each row: an order asks for one and a half on average
FEW = 8  # seeds that are not worth it
POOL, WORDS = 4, 8  # of a SeedSequence, and what PCG64 asks of it


def seeded(seeds: NDArray[np.uint64]) -> NDArray[np.uint64]:
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
    states: NDArray[np.uint64] = np.ascontiguousarray(np.stack(words, 1).astype("<u4")).view("<u8")
    return states
