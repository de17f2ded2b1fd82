"""What an experiment promises: the noise of every client, and what one of its rounds costs."""

import functools
from dataclasses import dataclass, replace

import numpy as np

from fedrec.experiment import Experiment, clients_data
from fedrec.privacy.accounting import Event, affordable, calibrate, epsilon
from fedrec.privacy.differential import Mechanism, private_steps
from fedrec.privacy.rule import Privacy

SERVER = "server"


@dataclass(frozen=True)
class Guarantee:
    """What one party promises: `event` is one of its rounds, `budget` the epsilon of the whole run.

    `overlap` is how many silos hold the same person, the most of anybody: a budget of the whole run counts the rounds
    of all of them.
    """

    who: str
    rule: Privacy
    event: Event
    rounds: int
    budget: float
    overlap: int = 1

    @property
    def mechanism(self) -> Mechanism:
        """The client's DP-SGD."""
        assert self.rule.unit in ("interaction", "user")
        return Mechanism(self.rule.unit, self.rule.clip, self.event.noise, self.rule.rate)

    def spent(self, rounds: int) -> float:
        """Return the epsilon of a number of rounds, for the person that most silos hold."""
        events = (replace(self.event, count=self.event.count * self.overlap * rounds),) if rounds else ()
        return epsilon(events, self.rule.delta)

    def affordable(self, before: tuple[Event, ...] = ()) -> int:
        """Return how many rounds the budget allows after what was spent before, at most those of the run."""
        one = replace(self.event, count=self.event.count * self.overlap)
        earlier = tuple(replace(event, count=event.count * self.overlap) for event in before)
        return affordable(one, self.budget, self.rule.delta, earlier, self.rounds)


@functools.lru_cache(maxsize=4)
def guarantees(e: Experiment) -> dict[str, Guarantee]:
    """Return the guarantee of every party that adds noise: the clients, or the server alone."""
    rule = e.privacy
    if not rule.active:
        return {}
    if rule.unit == "client" and rule.where == "server":
        return {SERVER: _guarantee(e, SERVER, rate=e.participation, count=1, overlap=1)}
    parts, together = clients_data(e), rule.inside and rule.unit == "user" and ";" not in rule.epsilon
    overlap = most_silos([data.users for data in parts]) if together else 1
    count = private_steps(e.recipe(), rule.rate) if rule.inside else 1
    return {data.name: _guarantee(e, data.name, rule.rate, count, overlap) for data in parts}


def _guarantee(e: Experiment, who: str, rate: float, count: int, overlap: int) -> Guarantee:
    rule, budget = e.privacy, e.privacy.budget(who)
    noise = rule.noise
    if noise is None:
        noise = calibrate(budget, rule.delta, rate, count * e.rounds * overlap)
    return Guarantee(who, rule, Event("gaussian", noise, rate, count), e.rounds, budget, overlap)


def most_silos(users: "list[np.ndarray[tuple[int], np.dtype[np.int64]]]") -> int:
    """Return how many silos hold the same person, the most of anybody; `users` are the global ids of every silo."""
    everyone = np.concatenate(users) if users else np.zeros(0, np.int64)
    return int(np.unique(everyone, return_counts=True)[1].max(initial=1))
