"""Entries of few bits: whole multiples of a scale, packed into bytes."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedrec.federation.codecs.codec import Scope, lost, owed
from fedrec.params import Params
from fedrec.rng import generator

FINE, RANGE = 8, 255  # steps in a factor of 2 between the scales of blocks, and the most of them: 32 factors of 2


@dataclass(frozen=True)
class Quantised:
    """Every entry is a whole number from -L to L, L = 2^(bits-1) - 1, times a scale, the largest entry over L.

    A tensor of n entries becomes `levels`, uint8 [n bits / 8], and `scale`, float32 [1]. With a `block`, not 0, so many
    entries in their order have a scale of their own, the largest in the block over L, rounded up to the tensor's times
    2^(-ranges/8), uint8 [blocks]. Entries are rounded to the nearest level; `unbiased` ones up or down at random, so
    that the mean is the entry (QSGD, arXiv 1610.02132).
    """

    bits: int = 8
    block: int = 32
    unbiased: bool = False
    seed: int = 0

    def at(self, scope: Scope) -> "Quantised":
        """Return the codec of a client and round."""
        return replace(self, seed=scope.own)

    def encode(self, change: Params, memory: Params) -> tuple[Params, Params]:
        """See Codec."""
        whole, payload, most = owed(change, memory), Params(), 2 ** (self.bits - 1) - 1
        for name, value in whole.items():
            flat = value.reshape(-1)
            largest = self.blocks(flat).abs().amax(1)
            scale = (largest.max() / most).float().reshape(1)
            payload[f"scale.{name}"] = scale
            if self.block:
                part = (FINE * torch.log2(scale * most / largest)).nan_to_num(0.0, RANGE, 0.0)
                payload[f"ranges.{name}"] = part.floor().clamp(0, RANGE).to(torch.uint8)
            steps = self.steps(payload, name, flat)
            ratio = torch.where(steps > 0, flat / steps, 0.0)
            if self.unbiased:
                ratio = (ratio + torch.from_numpy(generator(self.seed, name).random(len(flat)))).floor()
            levels = ratio.round().clamp(-most, most).to(torch.int16) + most
            payload[f"levels.{name}"] = pack_bits(levels.to(torch.uint8), self.bits)
        return payload, lost(self, whole, payload)

    def decode(self, payload: Params, like: Params) -> Params:
        """See Codec."""
        most, found = 2 ** (self.bits - 1) - 1, Params()
        for name, value in like.items():
            levels = unpack_bits(payload[f"levels.{name}"], self.bits, value.numel()).to(value.dtype) - most
            found[name] = (levels * self.steps(payload, name, value.reshape(-1))).reshape(value.shape)
        return found

    def blocks(self, flat: Tensor) -> Tensor:
        """Return entries [n] in their blocks [blocks, size], the last one filled with zeros."""
        size = self.size(len(flat))
        return torch.nn.functional.pad(flat, (0, -len(flat) % size)).view(-1, size)

    def steps(self, payload: Params, name: str, like: Tensor) -> Tensor:
        """Return the scale of every entry `like` these [n]."""
        scale = payload[f"scale.{name}"]
        if self.block:
            scale = scale * torch.exp2(payload[f"ranges.{name}"].float() / -FINE)
        return scale.to(like.dtype).repeat_interleave(self.size(len(like)))[: len(like)]

    def size(self, n: int) -> int:
        """Return the number of entries in a block of n."""
        return max(min(self.block or n, n), 1)


def pack_bits(levels: Tensor, bits: int) -> Tensor:
    """Return numbers [n] below 2^bits, uint8, as bytes [ceil(n bits / 8)], the first in the lowest bits."""
    apart = np.unpackbits(levels.numpy()[:, None], axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(apart, bitorder="little"))


def unpack_bits(packed: Tensor, bits: int, n: int) -> Tensor:
    """Return the inverse of `pack_bits` for n numbers."""
    apart = np.unpackbits(packed.numpy(), count=n * bits, bitorder="little").reshape(n, bits)
    return torch.from_numpy(np.packbits(apart, axis=1, bitorder="little")[:, 0])
