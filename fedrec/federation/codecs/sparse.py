"""Some entries as they are: the largest, or some that are drawn."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from fedrec.federation.codecs.codec import Scope, lost, owed
from fedrec.params import Params
from fedrec.rng import generator


@dataclass(frozen=True)
class TopK:
    """The largest entries of every tensor in size; the others are added to the next change (arXiv 1809.07599, Alg. 1).

    A tensor [n, ...] becomes `values` and `places`, int32, of the fraction of its entries, rounded up.
    """

    fraction: float

    def encode(self, change: Params, memory: Params) -> tuple[Params, Params]:
        """See Codec."""
        payload, rest = Params(), Params()
        for name, value in owed(change, memory).items():
            flat = value.reshape(-1)
            places = flat.abs().topk(math.ceil(self.fraction * len(flat))).indices.sort().values
            payload |= {f"values.{name}": flat[places], f"places.{name}": places.int()}
            rest[name] = flat.index_fill(0, places, 0.0).reshape(value.shape)
        return payload, rest

    def decode(self, payload: Params, like: Params) -> Params:
        """See Codec."""
        return {
            name: value.reshape(-1)
            .scatter(0, payload[f"places.{name}"].long(), payload[f"values.{name}"])
            .reshape(value.shape)
            for name, value in like.items()
        }


@dataclass(frozen=True)
class RandomK:
    """Entries of every tensor that all clients of a round draw alike, so that places need not travel.

    A tensor of n entries becomes `values`, the fraction of its entries, rounded up. `unbiased` ones count n/k times, so
    that the mean over the places is the change.
    """

    fraction: float
    unbiased: bool = False
    seed: int = 0

    def at(self, scope: Scope) -> "RandomK":
        """Return the codec of a round."""
        return replace(self, seed=scope.common)

    def places(self, name: str, n: int) -> Tensor:
        """Return the places of the entries that are sent, ascending."""
        return draw_places(self.seed, name, n, math.ceil(self.fraction * n))

    def encode(self, change: Params, memory: Params) -> tuple[Params, Params]:
        """See Codec."""
        whole = owed(change, memory)
        payload = {
            f"values.{name}": value.reshape(-1)[self.places(name, value.numel())] for name, value in whole.items()
        }
        return payload, lost(self, whole, payload)

    def decode(self, payload: Params, like: Params) -> Params:
        """See Codec."""
        found = Params()
        for name, value in like.items():
            values = payload[f"values.{name}"]
            weight = value.numel() / max(len(values), 1) if self.unbiased else 1.0
            places = self.places(name, value.numel())
            found[name] = value.reshape(-1).scatter(0, places, weight * values).reshape(value.shape)
        return found


@lru_cache(maxsize=16)
def draw_places(seed: int, name: str, n: int, k: int) -> Tensor:
    """Return k of n places, ascending, int64."""
    return torch.from_numpy(generator(seed, name).choice(n, k, replace=False, shuffle=False)).sort().values
