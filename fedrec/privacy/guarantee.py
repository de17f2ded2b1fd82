"""What an experiment promises: the noise of every client, what a round costs, and the terms of its secure sums."""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from fedrec.data import ClientData
from fedrec.experiment.config import Experiment
from fedrec.experiment.earlier import earlier, parties
from fedrec.experiment.holdings import clients_data, dataset, item_classes, ordered, reader, tasks_for
from fedrec.experiment.privacy import Privacy
from fedrec.privacy.accounting import Event, Kind, affordable, calibrate, epsilon
from fedrec.privacy.differential import Mechanism, private_steps
from fedrec.privacy.discrete import Distributed
from fedrec.privacy.encoding import Encoding
from fedrec.privacy.plan import Plan
from fedrec.privacy.secure_sum import Terms
from fedrec.privacy.sums import multiplier

SERVER = "server"
PER_USER = 2.0
WIDEST_SUM = 2.0**22  # no entry of a silo with its noise comes near it, which leaves the steps of a grid exact


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
    each: tuple[Event, ...] = ()  # of every round that is booked, where they cost unlike

    def event_of(self, number: int) -> Event:
        """Return what a round costs."""
        return self.each[number - 1] if self.each else self.event

    @property
    def std(self) -> float:
        """The standard deviation sigma C of the noise; 0 without noise, also where nothing is clipped."""
        return self.event.sigma * self.rule.clip if self.event.sigma else 0.0

    @property
    def mechanism(self) -> Mechanism:
        """The client's DP-SGD."""
        assert self.rule.unit in ("interaction", "user")
        return Mechanism(self.rule.unit, self.rule.clip, self.event.sigma, self.rule.rate)

    def affordable(self, before: Iterable[Event] = ()) -> int:
        """Return how many rounds the budget allows after what was spent before, at most those of the run."""
        round_ = self.event.times(self.overlap)
        earlier = [event.times(self.overlap) for event in before]
        if self.each:
            whole = [*earlier, *(event.times(self.overlap) for event in self.each)]
            return self.rounds if math.isinf(self.budget) or epsilon(whole, self.rule.delta) <= self.budget else 0
        return affordable(round_, self.budget, self.rule.delta, earlier, self.rounds * round_.count) // round_.count


@functools.lru_cache(maxsize=4)
def guarantees(e: Experiment) -> dict[str, Guarantee]:
    """Return the guarantee of every party that adds noise: the clients, or the server alone."""
    rule = e.privacy
    if not rule.active:
        return {}
    if rule.trusting:
        return {SERVER: _guarantee(e, SERVER, rate=e.participation, count=1, overlap=1)}
    parts, together = clients_data(e), rule.inside and rule.unit == "user" and ";" not in rule.epsilon
    overlap = most_holders(e) if together else 1
    return {data.name: _guarantee(e, data.name, rule.rate, steps_of(e, data), overlap) for data in parts}


def most_holders(e: Experiment) -> int:
    """Return how many clients hold the same person, the most of anybody."""
    return int(np.unique(clients_data(e).users_of_all(), return_counts=True)[1].max(initial=1))


@functools.lru_cache(maxsize=2)
def sums_plan(e: Experiment) -> Plan:
    """Return the releases of sums over users with noise; raises UserError where a budget or silos do not do."""
    parts, overlap, rule = clients_data(e), most_holders(e), e.privacy
    sigma = rule.noise or multiplier(rule.budget(""), rule.delta, overlap)
    return Plan(int(parts.user_counts().sum()), len(parts), sigma, item_classes(e), overlap, ordered(e))


def steps_of(e: Experiment, data: ClientData) -> int:
    """Return how many noisy steps a client makes in a round: one, to its update, or those of its training."""
    if not e.privacy.inside:
        return 1
    unit = cast("Literal['interaction', 'user']", e.privacy.unit)
    public = Mechanism(unit, e.privacy.clip, 0.0, e.privacy.rate)  # the noise does not matter for its steps
    return private_steps(reader(e, data, "train"), tasks_for(e, data), e.recipe(), e.sharing(), public)


def _guarantee(e: Experiment, who: str, rate: float, count: int, overlap: int) -> Guarantee:
    rule, budget = e.privacy, e.privacy.budget(who)
    if rule.summed:
        plan = sums_plan(e)
        return Guarantee(who, rule, plan.rounds[0], e.rounds, budget, plan.overlap, plan.rounds)
    kind: Kind = "concentrated" if rule.unit == "client" and rule.where == "sum" else "gaussian"  # `privacy.discrete`
    noise = rule.noise
    if noise is None:
        noise = calibrate(budget, rule.delta, rate, count * e.rounds * overlap, kind=kind)
    return Guarantee(who, rule, Event(noise, rate, count, kind), e.rounds, budget, overlap)


def largest_sum(experiment: Experiment) -> float:
    """Return what no entry of a client's sums over users exceeds, of public numbers: how many users each has.

    A user's own entries are from 0 to 2 (`fedrec.models.quadratic`), for it has an item once. Nor does a difference
    from what a client had in a run that is gone on from. In a subspace of n items a row of C has at most sqrt(n) times
    that for its norm, a column of V at most 2 sqrt(n), as it starts, and V'GV of an orthonormal V at most G's trace.
    """
    e = experiment
    parts = [clients_data(e), *([clients_data(earlier(e.start).experiment)] if e.start else [])]
    most = PER_USER * max(int(several.user_counts().max()) for several in parts)
    return most * 2 * len(dataset(e).items) if e.sums.active else most


@functools.lru_cache(maxsize=2)
def terms(experiment: Experiment) -> Terms:
    """Return the terms of an experiment's secure sums; raises UserError where they cannot hold."""
    e = experiment
    names = parties(e).names
    clients = len(names if e.start else e.turnout.drawn(names, 1))
    # Of a noisy sum nobody's share is missing, nor of a change one of two parts, which would tell the other.
    threshold = clients if e.privacy.summed or e.start else e.secure.needed(clients)
    bound = (WIDEST_SUM if e.privacy.summed else largest_sum(e)) if e.by_sums else e.secure.bound
    encoding = Encoding(bound, clients, 1) if e.weights == "uniform" or e.by_sums else Encoding(bound, clients)
    noise = None
    if e.privacy.unit == "client" and e.privacy.where == "sum":
        sigma = min(guarantee.event.sigma for guarantee in guarantees(e).values())
        noise = Distributed(e.privacy.clip, sigma, threshold)
    return Terms(clients, threshold, e.secure.carriers, encoding, noise)
