"""Who takes part in a round: who is drawn, whose answers are lost, how many a round needs, and who joins later."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedrec.errors import UserError, choose
from fedrec.rng import generator

Schedule = dict[int, tuple[str, ...]]  # round -> clients


@dataclass(frozen=True)
class Turnout:
    """The rules of taking part, in the clients' order, which every round has in common.

    A client that is not drawn gets no message. One that drops out got the round's message and trained, but its answer
    is lost: server and client go on as if it had not been drawn. The same holds for an answer that is refused or comes
    after `deadline` seconds (0: none). A round that fewer than the fraction `quorum` of its clients answer fails.
    """

    participation: float = 1.0
    dropout: str = "0"
    deadline: float = 0.0
    quorum: float = 0.5
    seed: int = 0

    def drawn(self, clients: Sequence[str], number: int) -> list[str]:
        """Return the clients of a round from 1, in their order."""
        return [clients[i] for i in draw(len(clients), self.participation, self.seed, number - 1)]

    def lost(self, clients: Sequence[str], number: int) -> frozenset[str]:
        """Return those of all clients whose answers a round loses, if they are drawn."""
        probability, schedule = dropouts(self.dropout)
        chance = generator(self.seed, "dropout", number).random(len(clients)) if probability else [1.0] * len(clients)
        return frozenset(
            c for c, x in zip(clients, chance, strict=True) if x < probability or c in schedule.get(number, ())
        )

    def needed(self, asked: int) -> int:
        """Return how many of the clients that were asked must answer."""
        return math.ceil(self.quorum * asked - 1e-9)

    def check(self, clients: Sequence[str], rounds: int) -> None:
        """Raise UserError if the schedule names no client or round, or the dropouts take a round below the quorum."""
        probability, schedule = dropouts(self.dropout)
        for number, names in schedule.items():
            if not 1 <= number <= rounds:
                raise UserError(f"dropout: must name rounds from 1 to {rounds}, found {number}")
            for name in names:
                choose("dropout", name, clients)
        if not probability and not schedule:
            return
        for number in range(1, rounds + 1):
            asked, lost = self.drawn(clients, number), self.lost(clients, number)
            gone = [name for name in asked if name in lost]
            if len(asked) - len(gone) < self.needed(len(asked)):
                raise UserError(
                    f"dropout: must leave {self.needed(len(asked))} of the {len(asked)} clients of every round (quorum "
                    f"{self.quorum:g}), found {', '.join(gone)} lost in round {number}; lower the quorum (0: a round "
                    "may pass without an answer), or take another seed"
                )


def draw(n: int, participation: float, seed: int, number: int) -> list[int]:
    """Return which of `n` clients take part in round `number`, counted from 0: at least one, in order."""
    order = generator(seed, "participation", number).permutation(n)
    return sorted(order[: max(1, round(participation * n))].tolist())


def dropouts(text: str) -> tuple[float, Schedule]:
    """Return the probability and the schedule of '0.2', '3:films,shop;5:news', or both; raises UserError."""
    probability = 0.0
    schedule: Schedule = {}
    for part in text.split(";") if text else []:
        number, colon, names = part.partition(":")
        try:
            if colon:
                schedule[int(number)] = (*schedule.get(int(number), ()), *names.split(","))
            else:
                probability = float(part)
        except ValueError:
            probability = math.nan
        if not 0 <= probability < 1 or (colon and not all(names.split(","))):
            raise UserError(
                f"dropout: must be a probability below 1 or rounds such as '3:films,shop;5:news', found {part!r}"
            )
    return probability, schedule


def arrivals(text: str, rounds: float = math.inf) -> dict[str, int]:
    """Return the round in which each client joins a run of so many, of 'shop=10;news=12'; raises UserError."""
    joins: dict[str, int] = {}
    for part in text.split(";") if text else []:
        name, equals, number = part.rpartition("=")
        if not (name and equals and number.isdecimal()):
            raise UserError(f"must be clients and rounds such as 'shop=10;news=12', found {part!r}")
        if name in joins:
            raise UserError(f"must name a client once, found {name} twice")
        joins[name] = int(number)
        if not 1 <= joins[name] < rounds:
            raise UserError(f"must join in a round from 1 to {rounds - 1}, found {name}={number}")
    return joins
