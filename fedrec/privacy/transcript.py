"""What the server of a run saw: the input of every attack. It holds messages, never a client's data."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from fedrec.parameters import Params
from fedrec.sharing import TABLES, Broadcast, Contribution


@dataclass(frozen=True)
class Exchanged:
    """One client's round as the server saw it: z, which it sent, and what came back (x, or an increment with duals)."""

    round: int
    client: str
    z: Params
    x: Params
    metrics: dict[str, float]

    def update(self) -> Params:
        """Return x - z."""
        return {name: value - self.z[name] for name, value in self.x.items()}


@dataclass
class Transcript:
    """All that the server saw of a run, in its order: what clients joined with, and their rounds of training."""

    joined: dict[str, Contribution] = field(default_factory=dict)
    rounds: list[Exchanged] = field(default_factory=list)

    def join(self, replies: list[Contribution]) -> None:
        """Note what clients joined with."""
        self.joined |= {reply.client: reply for reply in replies}

    def train(self, broadcasts: dict[str, Broadcast], replies: list[Contribution]) -> None:
        """Note a round of training."""
        for reply in replies:
            sent = broadcasts[reply.client]
            self.rounds.append(Exchanged(sent.round, reply.client, sent.values, reply.values, reply.metrics))

    def of(self, client: str) -> Iterator[Exchanged]:
        """Yield the rounds of one client."""
        return (one for one in self.rounds if one.client == client)

    def ids(self, client: str, name: str) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        """Return the global ids of the rows of one of a client's shared tables, as it announced them."""
        return self.joined[client].rows[TABLES[name]]
