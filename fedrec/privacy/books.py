"""The books of a party that adds noise: what it spent, and the secret that its noise comes from."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedrec.privacy.guarantee import Guarantee
from fedrec.privacy.ledger import Ledger
from fedrec.privacy.noise import Source
from fedrec.privacy.secret import Secret
from fedrec.records import slug


@dataclass(frozen=True)
class Books:
    """What a party keeps about its privacy: what it spent, and the secret that its noise comes from."""

    guarantee: Guarantee
    home: Path
    seed: int

    @cached_property
    def ledger(self) -> Ledger:
        """What was spent, in this run or, in a folder of its own, over several."""
        rule, file = self.guarantee.rule, f"{slug(self.guarantee.who)}.jsonl"
        return Ledger.open((rule.ledger or self.home / "privacy") / file, self.guarantee.who, rule)

    @property
    def secret(self) -> Secret:
        """The secret of the run."""
        return Secret(self.home / "privacy" / f"{slug(self.guarantee.who)}.secret")

    def open(self, number: int, inputs: bytes) -> Source:
        """Book a round on some inputs before anything of it is sent, and return its random numbers.

        Raises OverBudget if the round would exceed the budget.
        """
        g = self.guarantee
        self.ledger.book(number, g.event, g.budget, overlap=g.overlap, inputs=inputs.hex())
        return self.quiet(number, inputs)

    def quiet(self, number: int, inputs: bytes) -> Source:
        """Return the random numbers that go with some inputs, for what nobody is told."""
        if self.guarantee.rule.replay:
            return Source.replayable(self.seed, "privacy", self.guarantee.who, number, inputs[:8].hex())
        return self.secret.source(inputs)
