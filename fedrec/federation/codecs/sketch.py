"""Sums of entries that public random numbers put together: count sketches, and a projection."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fedrec.federation.codecs.codec import Scope, lost, owed
from fedrec.params import Params
from fedrec.rng import generator


class Hash(NamedTuple):
    """A bucket and a sign for every entry [n], and how many entries every bucket has [width]: equal, but for one."""

    bucket: Tensor
    sign: Tensor
    sizes: Tensor

    def add_up(self, entries: Tensor) -> Tensor:
        """Return the sum [width] of the signed entries [n] of every bucket."""
        sign = self.sign.to(entries.dtype)
        return entries.new_zeros(len(self.sizes)).index_add(0, self.bucket, sign * entries)

    def read(self, sums: Tensor) -> Tensor:
        """Return the signed sum [n] of every entry's bucket."""
        return self.sign.to(sums.dtype) * sums[self.bucket]


@lru_cache(maxsize=16)
def draw_hash(seed: int, name: str, row: int, n: int, width: int) -> Hash:
    """Return the hash of n entries that a seed draws for a row of the sketch of a tensor."""
    rng = generator(seed, name, row)
    bucket = torch.from_numpy(rng.permutation(n)) % width
    sign = torch.from_numpy(rng.integers(0, 2, n)).to(torch.int8) * 2 - 1
    return Hash(bucket, sign, torch.bincount(bucket, minlength=width))


@dataclass(frozen=True)
class CountSketch:
    """Every tensor as a count sketch, of which the largest entries are read (FetchSGD, arXiv 2007.07682).

    A tensor of n entries becomes `sketch` [rows, width], a fraction of the entries, rounded up to the width, and
    `scale` [1]. An entry is the median over the rows of its signed bucket; as many as a row has buckets count, the
    largest in size, the others are 0. All clients of a round hash alike. FetchSGD has the server remember what it did
    not find; here the client owes it, who finds the same. What collides would make that grow without end: the scale is
    the one at which least is left.
    """

    fraction: float
    rows: int = 5
    seed: int = 0

    def at(self, scope: Scope) -> "CountSketch":
        """Return the codec of a round."""
        return replace(self, seed=scope.common)

    def hashes(self, name: str, n: int) -> list[Hash]:
        """Return the hash of every row."""
        width = math.ceil(self.fraction * n / self.rows)
        return [draw_hash(self.seed, name, row, n, width) for row in range(self.rows)]

    def encode(self, change: Params, memory: Params) -> tuple[Params, Params]:
        """See Codec."""
        whole, payload = owed(change, memory), Params()
        for name, value in whole.items():
            flat = value.reshape(-1)
            sketch = torch.stack([h.add_up(flat) for h in self.hashes(name, len(flat))])
            found = self.largest(name, sketch, len(flat))
            square = found.double().square().sum()
            scale = (found.double() @ flat.double() / square if square > 0 else square).reshape(1)
            payload |= {f"sketch.{name}": sketch, f"scale.{name}": scale.to(value.dtype)}
        return payload, lost(self, whole, payload)

    def decode(self, payload: Params, like: Params) -> Params:
        """See Codec."""
        return {
            name: (payload[f"scale.{name}"] * self.largest(name, payload[f"sketch.{name}"], value.numel())).reshape(
                value.shape
            )
            for name, value in like.items()
        }

    def largest(self, name: str, sketch: Tensor, n: int) -> Tensor:
        """Return the entries [n] that a sketch tells, all but the largest 0."""
        rows = [h.read(row) for h, row in zip(self.hashes(name, n), sketch, strict=True)]
        entries = torch.stack(rows).median(0).values
        places = entries.abs().topk(min(sketch.shape[1], n)).indices
        return torch.zeros_like(entries).scatter(0, places, entries[places])


@dataclass(frozen=True)
class Projection:
    """Every tensor in a random subspace that all clients of a round draw alike.

    A tensor of n entries becomes `sums` [width], a fraction of the entries, rounded up: each of the signed entries of a
    bucket over the root of their number. That is an orthogonal projection, and so no longer than the change; `unbiased`
    it is stretched when it is read, so that its mean over the signs is the change.
    """

    fraction: float
    unbiased: bool = False
    seed: int = 0

    def at(self, scope: Scope) -> "Projection":
        """Return the codec of a round."""
        return replace(self, seed=scope.common)

    def hash(self, name: str, n: int) -> Hash:
        """Return the hash of a tensor of n entries."""
        return draw_hash(self.seed, name, 0, n, math.ceil(self.fraction * n))

    def encode(self, change: Params, memory: Params) -> tuple[Params, Params]:
        """See Codec."""
        whole, payload = owed(change, memory), Params()
        for name, value in whole.items():
            h = self.hash(name, value.numel())
            payload[f"sums.{name}"] = h.add_up(value.reshape(-1)) / h.sizes.to(value.dtype).sqrt()
        return payload, lost(self, whole, payload)

    def decode(self, payload: Params, like: Params) -> Params:
        """See Codec."""
        found = Params()
        for name, value in like.items():
            h, sums = self.hash(name, value.numel()), payload[f"sums.{name}"]
            root = h.sizes.to(value.dtype).sqrt()
            found[name] = h.read(sums * root if self.unbiased else sums / root).reshape(value.shape)
        return found
