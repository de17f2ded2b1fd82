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

from fedrec.errors import UserError

GRAIN = 2.0**-30  # in standard deviations


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

    def spawn(self) -> "Source":
        """Return a source of its own whose key is drawn here, so that what one draws does not move the other."""
        return Source(self.bytes(32), self.private)

    def bytes(self, n: int) -> bytes:
        """Return `n` random bytes."""
        return self._stream.update(bytes(n))

    def uniform(self, n: int) -> NDArray[np.float64]:
        """Return numbers [n] that are uniform on the multiples of 2^-53 in (0, 1]."""
        words = np.frombuffer(self.bytes(8 * n), np.uint64) >> np.uint64(11)
        return (words.astype(np.float64) + 1.0) * 2.0**-53

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers in float64 (Box-Muller), the largest possible 8.6; see `add_noise`."""
        n = math.prod(shape)
        half = (n + 1) // 2
        words = bytearray(16 * half)
        self._stream.update_into(words, words)
        both = torch.frombuffer(words, dtype=torch.int64) if n else torch.zeros(0, dtype=torch.int64)
        first, second = both[:half], both[half:]
        radius = (first & (2**53 - 1)).double().add_(1.0).mul_(2.0**-53).log_().mul_(-2.0).sqrt_()
        angle = second.double().mul_(math.pi * 2.0**-63)
        return torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)])[:n].view(shape)


def add_noise(total: Tensor, std: float, source: Source) -> Tensor:
    """Return total + std N(0, I) in float64, of which floating-point numbers betray nothing of the total.

    The numbers that a sum of floating-point numbers can be differ between neighbours, and so tell them apart (Mironov,
    "On significance of the least significant bits for differential privacy", 2012; arXiv 2107.10138). Here both terms
    are rounded to multiples of std 2^-30 first, and added as whole numbers: neighbours have the same possible outcomes,
    and each stands for some 2^20 numbers that Box and Muller's method may draw. What it leaves: rounding adds at most
    std 2^-31 sqrt(entries) to the sensitivity, and the tail beyond 8.6 std, of probability 2^-56, is missing. The time
    that it takes does not depend on the total. A `std` of 0 adds nothing.

    Raises UserError for entries beyond 2^20 std: there float64 no longer adds exactly.
    """
    if not std:
        return total.double()
    unit = std * GRAIN
    whole = (total.double() / unit).round_()
    if whole.numel() and not float(whole.abs().amax()) <= 2.0**50:
        raise UserError("total: every entry must be finite and at most 2^20 standard deviations, found otherwise")
    noise = source.normal(*total.shape).mul_(1 / GRAIN).round_()
    return whole.add_(noise.to(whole.device)).mul_(unit)
