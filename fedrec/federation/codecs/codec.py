"""What a codec is, what both sides of one draw their random numbers from, and what those that owe have in common."""

from typing import NamedTuple, Protocol

from fedrec.params import Params, subtract
from fedrec.rng import derive


class Scope(NamedTuple):
    """Whose change of which round travels: what client and server draw a codec's random numbers from."""

    seed: int
    client: str
    round: int

    @property
    def common(self) -> int:
        """The seed that all clients of a round have in common."""
        return derive(self.seed, "codec", self.round)

    @property
    def own(self) -> int:
        """The seed of this client alone."""
        return derive(self.seed, "codec", self.round, self.client)


NOWHERE = Scope(0, "", 0)


class Codec(Protocol):
    """Encodes changes of named tensors; the form of a payload is a function of the form of the change alone.

    One that draws random numbers has also `at(scope)`, which returns the codec of one client and round.
    """

    def encode(self, change: Params, memory: Params) -> tuple[Params, Params]:
        """Return the payload, and what the client remembers for its next change; `memory` is empty at first.

        What is still owed of a tensor is remembered under its name.
        """
        ...

    def decode(self, payload: Params, like: Params) -> Params:
        """Return a change with the names, shapes and dtypes of `like`, which holds zeros."""
        ...


def owed(change: Params, memory: Params) -> Params:
    """Return a change and what is owed of earlier ones (error feedback, arXiv 1901.09847, Algorithm 2)."""
    return {name: value + memory[name] if name in memory else value for name, value in change.items()}


def zeros(like: Params) -> Params:
    """Return zeros of the same names, shapes and dtypes."""
    return {name: value.new_zeros(value.shape) for name, value in like.items()}


def lost(codec: Codec, whole: Params, payload: Params) -> Params:
    """Return what the payload of a change lacks of it."""
    return subtract(whole, codec.decode(payload, zeros(whole)))
