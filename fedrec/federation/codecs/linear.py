"""Linear codecs on one vector that many clients add up: payloads of a round add to the payload of the sum."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec.federation.codecs.codec import Codec, Scope
from fedrec.federation.codecs.coding import Coding

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Squeeze:
    """The linear codec of a round on vectors [n], or none, with which they stay as they are."""

    codec: Codec | None
    n: int

    @staticmethod
    def of(coding: Coding, seed: int, number: int, n: int) -> "Squeeze":
        """Return what an experiment's codec makes of vectors [n] in a round, for clients and server alike."""
        return Squeeze(coding.at(Scope(seed, "", number)) if coding.active else None, n)

    @property
    def size(self) -> int:
        """The length of what is added up."""
        return len(self.encode(np.zeros(self.n)))

    def encode(self, entries: Vector) -> Vector:
        """Return the payload of a vector."""
        if self.codec is None:
            return entries
        (payload,) = self.codec.encode({"sum": torch.from_numpy(entries)}, {})[0].values()
        return np.asarray(payload.numpy())

    def decode(self, payload: Vector) -> Vector:
        """Return the vector [n] that a payload, or a sum of some, stands for."""
        if self.codec is None:
            return payload
        like = {"sum": torch.zeros(self.n, dtype=torch.float64)}
        (name,) = self.codec.encode(like, {})[0]
        return np.asarray(self.codec.decode({name: torch.from_numpy(payload)}, like)["sum"].numpy())
