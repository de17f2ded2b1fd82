"""Codecs: what happens to a client's change before it travels, and how the server reads it again."""

import math
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from pydantic import BaseModel, Field

from fedrec.components import PartText, make, one_of, read
from fedrec.errors import UserError
from fedrec.params import Params, add
from fedrec.sharing import ContractError, admit

KINDS = ("identity", "top-k")


class Codec(Protocol):
    """Encodes changes of named tensors; the form of a payload is a function of the form of the change alone."""

    def encode(self, change: Params, memory: Params) -> tuple[Params, Params]:
        """Return the payload, and what the client remembers for its next change; `memory` is empty at first."""
        ...

    def decode(self, payload: Params, like: Params) -> Params:
        """Return a change with the names, shapes and dtypes of `like`, which holds zeros."""
        ...


@dataclass(frozen=True)
class TopK:
    """The largest entries of every tensor in size; the others are added to the next change (arXiv 1809.07599, Alg. 1).

    A tensor [n, ...] becomes `values` and `places`, int32, of the fraction of its entries, rounded up.
    """

    fraction: float

    def encode(self, change: Params, memory: Params) -> tuple[Params, Params]:
        """See Codec."""
        payload, rest = Params(), Params()
        for name, value in change.items():
            owed = (value + memory[name] if name in memory else value).reshape(-1)
            places = owed.abs().topk(math.ceil(self.fraction * len(owed))).indices.sort().values
            payload |= {f"values.{name}": owed[places], f"places.{name}": places.int()}
            rest[name] = owed.index_fill(0, places, 0.0).reshape(value.shape)
        return payload, rest

    def decode(self, payload: Params, like: Params) -> Params:
        """See Codec."""
        return {
            name: value.reshape(-1)
            .scatter(0, payload[f"places.{name}"].long(), payload[f"values.{name}"])
            .reshape(value.shape)
            for name, value in like.items()
        }


class Coding(BaseModel, frozen=True, extra="forbid"):
    """Which codec the answers to training travel in; the default is none, they travel as they are."""

    kind: Annotated[PartText, one_of("codec.kind")] = Field(
        "identity", description="what clients' changes are encoded by: " + ", ".join(KINDS)
    )
    fraction: float = Field(0.01, gt=0, le=1, description="top-k: fraction of the entries of a tensor that is sent")

    @property
    def active(self) -> bool:
        """Whether answers are encoded."""
        return self.kind != "identity"

    @property
    def codec(self) -> Codec:
        """The codec; raises UserError for one that cannot be made."""
        codec: Codec = make("codec.kind", self.kind) if read(self.kind).own else TopK(self.fraction)
        return codec

    def check(self) -> None:
        """Raise UserError for a codec that fails on a small change, or makes of it what cannot travel or be kept."""
        like = {"change": torch.ones(4, 2)}
        try:
            payload, memory = self.encode(like, {})
            for name, value in [*payload.items(), *memory.items(), *self.decode(payload, like).items()]:
                if value.numpy().dtype.kind not in "fiu" or (not value.dim() and name in memory):
                    raise TypeError(f"{name} of {value.dtype} with shape {list(value.shape)}")
        except Exception as error:
            rule = f"codec.kind: {read(self.kind).use} must make numbers of a change [4, 2], and remember tensors"
            raise UserError(f"{rule}, found {type(error).__name__}: {error}") from None

    def form(self, like: Params) -> Params:
        """Return a payload of changes `like` these."""
        return self.codec.encode(zeros(like), {})[0]

    def encode(self, change: Params, memory: Params) -> tuple[Params, Params]:
        """Return the payload of a change, and what to remember; raises ContractError for one of another form."""
        payload, rest = self.codec.encode(change, memory)
        return admit(payload, self.form(change)), rest

    def decode(self, payload: Params, like: Params) -> Params:
        """Return the change that a payload stands for, admitted as it came and as it is read; raises ContractError."""
        payload = admit(payload, self.form(like))
        try:
            change = self.codec.decode(payload, zeros(like))
        except Exception as error:  # whatever numbers that no client of ours sends make it raise
            what = f"codec {read(self.kind).use}: must be able to decode what is sent"
            raise ContractError(f"{what}, found {type(error).__name__}: {error}") from None
        return admit(change, like)

    def read(self, received: Params, z: Params, like: Params, increments: bool) -> Params:
        """Return what a client that was sent z answered: x, or an increment; raises ContractError."""
        if not self.active:
            return admit(received, like)
        change = self.decode(received, like)
        return change if increments else add(z, change)


def zeros(like: Params) -> Params:
    """Return zeros of the same names, shapes and dtypes."""
    return {name: value.new_zeros(value.shape) for name, value in like.items()}
