"""The buffer of a run whose rounds wait for nobody: what its clients began from, and what their answers are by now."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedrec.experiment.records import Row
from fedrec.federation.asynchrony import Clock
from fedrec.keyed import Carrier, gather
from fedrec.params import Params


@dataclass
class Buffer:
    """The clock of a run, and the Z of every round in which a training that is under way began."""

    clock: Clock
    carriers: Mapping[str, Carrier]
    past: dict[int, Params] = field(default_factory=dict)
    ages: dict[str, int] = field(default_factory=dict)  # of the answers of the present round, where it is buffered
    counts: Counter[int] = field(default_factory=Counter)  # how many answers of an age have counted

    def ask(self, drawn: Iterable[str], parts: Mapping[str, Params], z: Params) -> dict[str, Params]:
        """Return the clients whose answers make the next round, with the parts that they began from.

        Without a buffer they are the `drawn`, with their present `parts`.
        """
        if not self.clock.rules.buffer:
            self.clock.wait(drawn := list(drawn))
            return {name: parts[name] for name in drawn}
        number = self.clock.round
        self.past[number] = z
        self.ages = self.clock.fill()
        began = {name: gather(self.past[number - age], self.carriers[name]) for name, age in self.ages.items()}
        self.past = {number: z for number, z in self.past.items() if number in self.clock.rounds}
        return began

    def rebase(self, answers: Mapping[str, Params], parts: Mapping[str, Params], z: Params) -> dict[str, Params]:
        """Return answers as if their clients had begun from the present Z: z - w g with g = part - answer.

        w is what an answer of its age counts. A mean of these moves Z by the mean of the w g, as FedBuff does.
        """
        self.counts.update(self.ages[name] for name in answers if name in self.ages)
        return {
            name: self.renew(name, x, parts[name], z) if self.ages.get(name) else dict(x) for name, x in answers.items()
        }

    def renew(self, client: str, x: Params, part: Params, z: Params) -> Params:
        """Return an old answer on the present Z, in float64."""
        w, now = self.clock.rules.weight(self.ages[client]), gather(z, self.carriers[client])
        return {name: now[name].double() + w * (value.double() - part[name].double()) for name, value in x.items()}

    def row(self, answered: Iterable[str]) -> Row:
        """Return the columns of a round: the simulated seconds so far, and the mean age of the answers."""
        ages = [self.ages[name] for name in answered if name in self.ages]
        mean = {"staleness": sum(ages) / len(ages) if ages else float("nan")} if self.clock.rules.buffer else {}
        return {"clock": self.clock.now, **mean}

    def notes(self) -> list[str]:
        """Return how old the answers were that counted."""
        if not self.counts:
            return []
        text = ", ".join(f"{self.counts[age]} of {age}" for age in sorted(self.counts))
        return [f"staleness of the answers in rounds: {text}"]

    def state(self) -> dict[str, Any]:
        """Return what changes from round to round but for `past`, as JSON can hold it."""
        return {"clock": self.clock.state(), "counts": sorted(self.counts.items())}

    @staticmethod
    def began(state: Mapping[str, Any]) -> list[int]:
        """Return the rounds of whose Z a `state` needs the `past`."""
        return sorted({began for _, _, began in state["clock"]["busy"]})

    def restore(self, state: Mapping[str, Any], past: dict[int, Params]) -> None:
        """Go back to a `state`."""
        self.clock.restore(state["clock"])
        self.counts, self.past = Counter(dict(state["counts"])), past
