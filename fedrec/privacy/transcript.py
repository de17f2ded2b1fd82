"""What the server of a run saw: the input of every attack. It holds messages, never a client's data."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from fedrec.keyed import TABLES
from fedrec.params import Params
from fedrec.sharing import Broadcast, Contribution


@dataclass(frozen=True)
class Exchanged:
    """One client's round as the server saw it: z, which it sent, and x, which came back (see `without_duals`)."""

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
    """All that the server saw of a run, in its order: what clients joined with, and their rounds of training.

    Of a client whose answers are summed in secret it saw no round; `total` is what the server had at the end.
    """

    joined: dict[str, Contribution] = field(default_factory=dict)
    rounds: list[Exchanged] = field(default_factory=list)
    total: Params = field(default_factory=dict)

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
        return (round_ for round_ in self.rounds if round_.client == client)

    def ids(self, client: str, name: str) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        """Return the global ids of the rows of one of a client's shared tables, as it announced them."""
        return self.joined[client].rows[TABLES[name]]

    def without_duals(self) -> "Transcript":
        """Return the transcript of clients that answered with increments of v = x + u, with the x that they tell.

        The server knows z and, as the sum of what came, v. From u+ = u + x - z and v = x + u+, with u = 0 at first,
        follow x = (v - u + z) / 2 and u+; at a rho that does not change.
        """
        v = {name: {k: t.double() for k, t in reply.values.items()} for name, reply in self.joined.items()}
        u = {name: {k: torch.zeros_like(t) for k, t in values.items()} for name, values in v.items()}
        plain = Transcript(self.joined)
        for round_ in self.rounds:
            x = {}
            for name, z in round_.z.items():
                v[round_.client][name] += round_.x[name]
                exact = (v[round_.client][name] - u[round_.client][name] + z) / 2
                u[round_.client][name] += exact - z
                x[name] = exact.to(z.dtype)
            plain.rounds.append(replace(round_, x=x))
        return plain
