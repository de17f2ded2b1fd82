"""Where the random numbers of a privacy mechanism come from: a ChaCha20 stream under a key of the operating system."""

import hashlib
import json
import math
import os

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms
from numpy.typing import NDArray
from torch import Tensor


class Source:
    """A stream of random numbers: ChaCha20 (RFC 8439) under a 256-bit key.

    `private` tells whether the key came from the operating system. One that is derived from a seed can be replayed by
    whoever knows the seed: what is made with it is NOT PRIVATE, and whoever records a result must say so.
    """

    def __init__(self, key: bytes, private: bool) -> None:
        self.private = private
        self._stream: CipherContext = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()

    @staticmethod
    def system() -> "Source":
        """Return a source whose key nobody knows."""
        return Source(os.urandom(32), True)

    @staticmethod
    def replayable(seed: int, *scope: str | int) -> "Source":
        """Return the source of a seed and a scope, for tests only."""
        text = json.dumps([seed, *scope], separators=(",", ":")).encode()
        return Source(hashlib.blake2b(text, digest_size=32, person=b"fedrec noise").digest(), False)

    def bytes(self, n: int) -> bytes:
        """Return `n` random bytes."""
        return self._stream.update(bytes(n))

    def uniform(self, n: int) -> NDArray[np.float64]:
        """Return numbers [n] that are uniform on the multiples of 2^-53 in (0, 1]."""
        words = np.frombuffer(self.bytes(8 * n), np.uint64) >> np.uint64(11)
        return (words.astype(np.float64) + 1.0) * 2.0**-53

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers in float64 (Box-Muller)."""
        count = math.prod(shape)
        half = (count + 1) // 2
        radius = np.sqrt(-2.0 * np.log(self.uniform(half)))
        angle = 2.0 * np.pi * self.uniform(half)
        both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
        return torch.from_numpy(both.reshape(shape))

    def generator(self) -> np.random.Generator:
        """Return a fast generator seeded from the stream, for draws that no guarantee rests on, such as negatives."""
        return np.random.Generator(np.random.PCG64(int.from_bytes(self.bytes(16), "big")))
