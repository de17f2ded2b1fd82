"""The books of a party that adds noise: what it spent, and the secret that its noise comes from."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedrec.errors import UserError
from fedrec.experiment.records import slug
from fedrec.folders import make_private, once
from fedrec.privacy.accounting import Event
from fedrec.privacy.guarantee import Guarantee
from fedrec.privacy.ledger import Ledger, Note
from fedrec.privacy.noise import Source
from fedrec.privacy.secret import Secret, stream


@dataclass(frozen=True)
class Books:
    """What a party keeps about its privacy in its own folder; `home` is that of the run."""

    guarantee: Guarantee
    home: Path
    seed: int

    @cached_property
    def ledger(self) -> Ledger:
        """What was spent: in this run, or in a folder that outlives it."""
        g = self.guarantee
        note = Note(g.who, g.rule.unit, g.rule.delta, g.rule.clip, g.event.rate, g.rule.replay)
        return Ledger((g.rule.ledger or self.home / "privacy") / f"{slug(g.who)}.jsonl", note)

    @property
    def secret(self) -> Secret:
        """The secret of the run."""
        return Secret(self.home / "privacy" / f"{slug(self.guarantee.who)}.secret")

    @property
    def run(self) -> str:
        """The name of the run in ledgers that it shares with others; it stays when the run is resumed."""
        path = self.home / "privacy" / "run"
        make_private(path.parent)
        return once(path, os.urandom(8).hex().encode()).decode()

    def open(self, number: int, inputs: bytes, twice: Event | None = None) -> Source:
        """Book a round on some inputs before anything of it is sent, and return its random numbers.

        `twice` is what the round costs if the run has made it already, on other inputs. Raises OverBudget if it would
        exceed the budget, and UserError when the secret of the run is no more.
        """
        g = self.guarantee
        name, source = self.stream(number, inputs)
        event = g.event_of(number)
        if twice:
            booked = [entry for entry in self.ledger.entries if (entry.run, entry.round) == (self.run, number)]
            event = next((entry.event for entry in booked if entry.inputs == name), twice if booked else event)
        self.ledger.book(number, event, g.budget, self.run, name, g.overlap)
        return source

    def quiet(self, number: int, inputs: bytes) -> Source:
        """Return the random numbers that go with some inputs, for what nobody is told; raises as `open` does."""
        return self.stream(number, inputs)[1]

    def stream(self, number: int, inputs: bytes) -> tuple[str, Source]:
        """Return the name in the ledger of some inputs under the secret, and the random numbers that go with them."""
        secret = self.secret
        if self.guarantee.rule.replay and not secret.marker.exists():
            return inputs.hex(), Source.replayable(self.seed, "privacy", self.guarantee.who, number)
        if self.spent() and not secret.path.exists() and not secret.marker.exists():
            raise UserError(
                f"privacy: the secret of {self.guarantee.who!r} must be there once rounds are booked, found no "
                f"{secret.path.name}; start a new run"
            )
        return stream(secret.key(), inputs)

    def left(self) -> int:
        """Return how many rounds the budget allows a run that has this folder, with those that it has made."""
        others = [entry.event for entry in self.ledger.entries if entry.run != self.run]
        return self.guarantee.affordable(others)

    def spent(self) -> int:
        """Return how many rounds this run has booked."""
        return sum(entry.run == self.run for entry in self.ledger.entries)
