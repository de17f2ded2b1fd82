"""The books of a party that adds noise: what it spent, and the secret that its noise comes from."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedrec.privacy.guarantee import Guarantee
from fedrec.privacy.ledger import Ledger, Note
from fedrec.privacy.noise import Source
from fedrec.privacy.secret import Secret
from fedrec.records import slug


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
        return identity(self.home / "privacy" / "run")

    def open(self, number: int, inputs: bytes) -> Source:
        """Book a round on some inputs before anything of it is sent, and return its random numbers.

        Raises OverBudget if the round would exceed the budget.
        """
        g = self.guarantee
        self.ledger.book(number, g.event, g.budget, self.run, inputs.hex(), g.overlap)
        return self.quiet(number, inputs)

    def quiet(self, number: int, inputs: bytes) -> Source:
        """Return the random numbers that go with some inputs, for what nobody is told."""
        if self.guarantee.rule.replay:
            return Source.replayable(self.seed, "privacy", self.guarantee.who, number)
        return self.secret.source(inputs)

    def left(self) -> int:
        """Return how many rounds the budget allows a run that has this folder, with those that it has made."""
        others = [entry.event for entry in self.ledger.entries if entry.run != self.run]
        return self.guarantee.affordable(others)

    def spent(self) -> int:
        """Return how many rounds this run has booked."""
        return sum(entry.run == self.run for entry in self.ledger.entries)


def identity(path: Path) -> str:
    """Return the random name in a file, which the first call writes whole."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_name(f".{path.name}.{os.getpid()}")
        own.write_text(os.urandom(8).hex(), encoding="ascii")
        try:
            os.link(own, path)  # fails if another process was first
        except FileExistsError:
            pass
        finally:
            own.unlink()
    return path.read_text(encoding="ascii")
