"""Tables as products of two thin matrices (PowerSGD, arXiv 1905.13727, Algorithm 1)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedrec.federation.codecs.codec import Scope, lost, owed
from fedrec.params import Params
from fedrec.rng import generator

LEFT, RIGHT, WHOLE = "left.", "right.", "whole."


@dataclass(frozen=True)
class LowRank:
    """A tensor [n, ...] as a matrix M [n, d] is P Q': P = orth(M Q), Q = M'P, a step of subspace iteration.

    It goes on from the Q of the client's last change, which it remembers, or from a random one. A tensor becomes `left`
    [n, rank] and `right` [d, rank]; one that these would not be smaller than, as a vector, travels `whole`.
    """

    rank: int
    seed: int = 0

    def at(self, scope: Scope) -> "LowRank":
        """Return the codec of a client and round."""
        return replace(self, seed=scope.own)

    def thin(self, value: Tensor) -> bool:
        """Return whether a tensor is sent as two matrices."""
        return value.dim() > 1 and self.rank * (len(value) + value[0].numel()) < value.numel()

    def encode(self, change: Params, memory: Params) -> tuple[Params, Params]:
        """See Codec."""
        whole, payload, bases = owed(change, memory), Params(), Params()
        for name, value in whole.items():
            if not self.thin(value):
                payload[WHOLE + name] = value
                continue
            m = value.reshape(len(value), -1).double()
            q = memory.get(RIGHT + name)
            if q is None:
                q = torch.from_numpy(generator(self.seed, name).standard_normal((m.shape[1], self.rank)))
            p = torch.linalg.qr(m @ q.double()).Q
            bases[RIGHT + name] = (m.T @ p).to(value.dtype)
            payload |= {LEFT + name: p.to(value.dtype), RIGHT + name: bases[RIGHT + name]}
        return payload, {**lost(self, whole, payload), **bases}

    def decode(self, payload: Params, like: Params) -> Params:
        """See Codec."""
        return {
            name: (payload[LEFT + name] @ payload[RIGHT + name].T).reshape(value.shape)
            if self.thin(value)
            else payload[WHOLE + name]
            for name, value in like.items()
        }
