"""Rounds that wait for nobody: a buffer of the first answers, what their age costs, and a clock of the clients.

The clock is simulated and seeded. A training that ends on it is computed when it ends, from what its client was sent
when it began: what comes out is the same under every engine, and to the bit.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any

from pydantic import BaseModel, Field

from fedrec.errors import UserError
from fedrec.rng import generator


class Asynchrony(BaseModel, frozen=True, extra="forbid"):
    """When a round ends, and how long clients train on the simulated clock; by default it waits, and nothing is timed.

    With a `buffer` of K a round is the first K answers, whenever their clients began (FedBuff, arXiv 2106.06639): a
    client that has answered waits for the round to end, and then begins again on the Z that it made. With fewer clients
    at once than there are, another begins as soon as one has answered.
    """

    buffer: int = Field(0, ge=0, description="answers that make a round, the first that come (FedBuff); 0: it waits")
    concurrency: int = Field(0, ge=0, description="with a buffer, clients that train at once; 0: all")
    discount: float = Field(
        0.5,
        ge=0,
        allow_inf_nan=False,
        description="with a buffer, exponent a: an answer s rounds old counts (1 + s)^-a",
    )
    spread: float = Field(
        0.0, ge=0, le=10, description="simulated clock: standard deviation of the log of clients' seconds, of median 1"
    )
    jitter: float = Field(0.0, ge=0, le=10, description="the same of the trainings of one client")

    @property
    def timed(self) -> bool:
        """Whether there is a clock."""
        return bool(self.buffer or self.spread or self.jitter)

    def weight(self, age: int) -> float:
        """Return what a change counts that began so many rounds ago (polynomial, arXiv 1903.03934)."""
        return float((1 + age) ** -self.discount)

    def seconds(self, seed: int, client: str, number: int) -> float:
        """Return how long a client trains for the `number`-th time, from 0: lognormal, of median 1."""
        speed = generator(seed, "speed", client).standard_normal() if self.spread else 0.0
        change = generator(seed, "jitter", client, number).standard_normal() if self.jitter else 0.0
        return math.exp(self.spread * speed + self.jitter * change)

    def check(self, clients: int) -> None:
        """Raise UserError if more clients are to answer a round, or to train at once, than there are."""
        for name in ("buffer", "concurrency"):
            if getattr(self, name) > clients:
                raise UserError(
                    f"asynchrony.{name}: must be at most {clients}, the clients, found {getattr(self, name)}"
                )


@dataclass
class Clock:
    """Simulated time in seconds, who is training on it, and since which round."""

    rules: Asynchrony
    clients: Sequence[str]
    seed: int
    now: float = 0.0
    round: int = 0  # rounds that have ended
    begun: dict[str, int] = field(default_factory=dict)  # trainings of each client
    busy: list[tuple[float, int, int]] = field(default_factory=list)  # a heap: end, place of the client, round it began
    idle: list[int] = field(init=False)  # places of clients that may begin

    def __post_init__(self) -> None:
        self.idle = list(range(len(self.clients)))

    def wait(self, drawn: Iterable[str]) -> None:
        """Let clients begin a round together and the slowest end it."""
        self.now += max(map(self.take, drawn), default=0.0)
        self.round += 1

    def fill(self) -> dict[str, int]:
        """Let trainings begin and end until the buffer is full; return its clients, in their order, with their age.

        The age of an answer is the number of rounds that have ended since its client began.
        """
        ages: dict[int, int] = {}
        while len(ages) < self.rules.buffer:
            while self.idle and len(self.busy) < (self.rules.concurrency or len(self.clients)):
                self.begin()
            self.now, place, began = heappop(self.busy)
            ages[place] = self.round - began
        self.round += 1
        self.idle = sorted([*self.idle, *ages])
        return {self.clients[place]: ages[place] for place in sorted(ages)}

    def begin(self) -> None:
        """Let one of the idle clients begin, which the seed draws."""
        drawn = generator(self.seed, "begin", sum(self.begun.values())).integers(len(self.idle))
        place = self.idle.pop(int(drawn))
        heappush(self.busy, (self.now + self.take(self.clients[place]), place, self.round))

    def take(self, client: str) -> float:
        """Return the seconds of a client's next training."""
        number = self.begun.get(client, 0)
        self.begun[client] = number + 1
        return self.rules.seconds(self.seed, client, number)

    @property
    def rounds(self) -> set[int]:
        """The rounds in which the trainings that are under way began."""
        return {began for _, _, began in self.busy}

    def state(self) -> dict[str, Any]:
        """Return what changes from round to round, as JSON can hold it."""
        kept = {"now": self.now, "round": self.round, "begun": self.begun, "idle": self.idle}
        return {**kept, "busy": [list(each) for each in self.busy]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a `state`."""
        self.now, self.round, self.idle = state["now"], state["round"], list(state["idle"])
        self.begun = dict(state["begun"])
        self.busy = [(end, place, began) for end, place, began in state["busy"]]
        heapify(self.busy)
