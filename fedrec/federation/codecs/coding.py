"""Which codec answers travel in, as configuration, and what is admitted of what it makes."""

from typing import Annotated

import torch
from pydantic import BaseModel, Field

from fedrec.components import PartText, make, one_of, read
from fedrec.errors import UserError
from fedrec.federation.codecs.codec import NOWHERE, Codec, Scope, zeros
from fedrec.federation.codecs.lowrank import LowRank
from fedrec.federation.codecs.quantise import Quantised
from fedrec.federation.codecs.sketch import CountSketch, Projection
from fedrec.federation.codecs.sparse import RandomK, TopK
from fedrec.params import Params, add
from fedrec.sharing import ContractError, admit

KINDS = ("identity", "quantised", "top-k", "random-k", "low-rank", "count-sketch", "projection")
LINEAR = ("random-k", "projection")  # a sum of the payloads of a round decodes to the sum of the changes


class Coding(BaseModel, frozen=True, extra="forbid"):
    """Which codec the answers to training travel in; the default is none, they travel as they are.

    With `feedback` a client remembers what its payloads lack and adds it to its next change. Without it that is lost,
    and codecs that can be are unbiased instead: the mean over their random numbers is the change.
    """

    kind: Annotated[PartText, one_of("codec.kind")] = Field(
        "identity", description="what clients' changes are encoded by: " + ", ".join(KINDS)
    )
    fraction: float = Field(
        0.01,
        gt=0,
        le=1,
        description="top-k, random-k: fraction of the entries of a tensor that is sent; count-sketch, projection: "
        "numbers that are sent for each entry",
    )
    bits: int = Field(8, ge=2, le=8, description="quantised: bits of an entry")
    block: int = Field(
        32, ge=0, le=2**31, description="quantised: entries that have a scale in common; 0: a whole tensor"
    )
    rank: int = Field(2, ge=1, le=4096, description="low-rank: columns of the two matrices that a table is sent as")
    hashes: int = Field(5, ge=1, le=99, description="count-sketch: rows of the sketch")
    feedback: bool = Field(True, description="what a payload lacks is added to the client's next change")

    @property
    def active(self) -> bool:
        """Whether answers are encoded."""
        return self.kind != "identity"

    @property
    def linear(self) -> bool:
        """Whether a sum of a round's payloads decodes to the sum of the changes."""
        return self.kind in LINEAR

    @property
    def codec(self) -> Codec:
        """The codec; raises UserError for one that cannot be made."""
        unbiased = not self.feedback
        match self.kind:
            case "quantised":
                return Quantised(self.bits, self.block, unbiased)
            case "top-k":
                return TopK(self.fraction)
            case "random-k":
                return RandomK(self.fraction, unbiased)
            case "low-rank":
                return LowRank(self.rank)
            case "count-sketch":
                return CountSketch(self.fraction, self.hashes)
            case "projection":
                return Projection(self.fraction, unbiased)
        codec: Codec = make("codec.kind", self.kind)
        return codec

    def at(self, scope: Scope) -> Codec:
        """Return the codec of a client and round."""
        codec = self.codec
        bound: Codec = codec.at(scope) if hasattr(codec, "at") else codec
        return bound

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

    def form(self, like: Params, scope: Scope = NOWHERE) -> Params:
        """Return a payload of changes `like` these."""
        return self.at(scope).encode(zeros(like), {})[0]

    def encode(self, change: Params, memory: Params, scope: Scope = NOWHERE) -> tuple[Params, Params]:
        """Return the payload of a change, and what to remember; raises ContractError for one of another form."""
        payload, rest = self.at(scope).encode(change, memory)
        kept = rest if self.feedback else {name: value for name, value in rest.items() if name not in change}
        return admit(payload, self.form(change, scope)), kept

    def decode(self, payload: Params, like: Params, scope: Scope = NOWHERE) -> Params:
        """Return the change that a payload stands for, admitted as it came and as it is read; raises ContractError."""
        payload = admit(payload, self.form(like, scope))
        try:
            change = self.at(scope).decode(payload, zeros(like))
        except Exception as error:  # whatever numbers that no client of ours sends make it raise
            what = f"codec {read(self.kind).use}: must be able to decode what is sent"
            raise ContractError(f"{what}, found {type(error).__name__}: {error}") from None
        return admit(change, like)

    def read(self, received: Params, z: Params, like: Params, increments: bool, scope: Scope = NOWHERE) -> Params:
        """Return what a client that was sent z answered: x, or an increment; raises ContractError."""
        if not self.active:
            return admit(received, like)
        change = self.decode(received, like, scope)
        return change if increments else add(z, change)
