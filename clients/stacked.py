"""Many clients of one node as one program: what `clients.app` does for each of them, with stacked tensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from flwr.app import RecordDict

from clients.about import about
from clients.budget import excess
from clients.client import Client
from clients.crowd import NOTHING, Crowd, Kept
from clients.drift import begin
from clients.private import measured
from clients.round import first as begin_with
from clients.stacked_round import Remembered, Round
from fedrec.aggregation import catalogue
from fedrec.channel import keyed
from fedrec.data import ClientData
from fedrec.experiment import Experiment
from fedrec.holdings import tasks_for
from fedrec.parameters import Params, same, to
from fedrec.personal import personal_model
from fedrec.records import save_client, slug, write_users
from fedrec.sharing import Broadcast, Contribution
from fedrec.training.changed import Changed
from fedrec.training.cohort import groups
from fedrec.training.evaluation import evaluate_many
from fedrec.training.results import client, stack
from fedrec.training.stacks import Stack
from fedrec.wire import Answers, Call


class StackedClients:
    """The clients of a node, trained and evaluated as few programs: one for each model and list of tasks.

    A `frugal` one keeps less: what is not read in every round is trained again when it is, to the bit on a CPU. That is
    for runs without checkpoints, which read everything.
    """

    def __init__(
        self,
        experiment: Experiment,
        parts: Sequence[ClientData],
        device: str,
        home: Path | None,
        frugal: bool = False,
    ) -> None:
        torch.set_num_threads(1)
        self.frugal = frugal
        self.experiment, self.home = experiment, home
        self.clients = [Client(experiment, data, device, home) for data in parts]
        self.crowds: list[Crowd] = []

    def join(self) -> Answers:
        """Begin every client's memory; return what they join with."""
        e, private = self.experiment, []
        found: list[Contribution] = []
        for one in self.clients:
            shared, own = begin_with(one)
            if found and same(found[-1].values, shared):
                shared = found[-1].values
            private.append(own)
            metrics = {"examples": 1.0 if e.privacy.active else float(len(one.data.train))}
            rows = keyed(shared, one.data, one.channel)
            found.append(Contribution(one.data.name, shared, metrics, one.device, rows))
        datas, models = [one.data for one in self.clients], [one.model for one in self.clients]
        tasks = [tasks_for(e, data) for data in datas]
        self.crowds = []
        for cohort in groups(datas, models, tasks, e.negatives, catalogue([one.rows for one in found])):
            mine = [self.clients[member] for member in cohort.members]
            held = stack([to(private[member], mine[0].device) for member in cohort.members])
            start = [begun(one, found[m].values) for one, m in zip(mine, cohort.members, strict=True)]
            crowd = Crowd(cohort, tuple(mine), held, start, frugal=self.frugal)
            first = {place: found[m].values for place, m in enumerate(cohort.members)}
            if changed(e):
                one_z = crowd.received(first, personal=False)
                crowd.tuned = crowd.before_tuned = crowd.best_tuned = Changed.start(cohort, one_z)
            self.crowds.append(crowd)
        return Answers(found)

    def train(self, call: Call) -> Answers:
        """Let clients train for a round."""
        found = Answers([])
        for crowd in self.crowds:
            sent, failed = self.opened(crowd, call)
            if sent:
                one = Round(crowd, self.experiment, call, sent, failed)
                one.train()
                merge(found, one.finish())
            merge(found, failures(crowd, failed))
        return found

    def evaluate(self, call: Call) -> Answers:
        """Let clients evaluate what they are sent."""
        found = Answers([])
        for crowd in self.crowds:
            sent, failed = self.opened(crowd, call)
            if sent:
                merge(found, self.evaluated(crowd, sent))
            merge(found, failures(crowd, failed))
        return found

    def opened(self, crowd: Crowd, call: Call) -> tuple[dict[int, Broadcast], dict[int, str]]:
        """Return what the clients of a crowd are sent, by ascending position, and why some cannot take it."""
        sent = {crowd.places[name]: b for name, b in call.broadcasts.items() if name in crowd.places}
        sent = {place: sent[place] for place in sorted(sent)}
        failed = dict(crowd.admitted(list(sent), list(sent.values())))
        rest = [place for place in sent if place not in failed]
        failed |= crowd.open(rest, [sent[place] for place in rest])
        return {place: b for place, b in sent.items() if place not in failed}, failed

    def evaluated(self, crowd: Crowd, sent: Mapping[int, Broadcast]) -> Answers:
        """Return the metrics of clients' models; at the test every client writes what it keeps to itself."""
        e, first = self.experiment, next(iter(sent.values()))
        final = first.split == "test"
        private = crowd.best_private if final else crowd.private
        z: Stack | Changed = crowd.received({p: b.values for p, b in sent.items()}, e.coupling.personal)
        if tuned := crowd.best_tuned if final else crowd.tuned:
            z = tuned.full()
        elif e.drift.personal != "none":
            z, private = self.own_models(crowd, sent, private, final)
        evaluations = evaluate_many(
            crowd.cohort,
            z,
            private,
            "test" if final else "validation",
            metrics=e.metrics,
            candidates=e.candidates,
            seed=e.seed,
            chosen=np.array(list(sent), dtype=np.int64),
        )
        if final and self.home is not None:
            every = [part for made in evaluations for part in made.per_user]
            write_users(self.home, every, f"with-{slug(crowd.clients[next(iter(sent))].data.name)}")
        found = Answers([])
        for (place, broadcast), made in zip(sent.items(), evaluations, strict=True):
            one = crowd.clients[place]
            if final and self.home is not None:
                self.save(crowd, place, z, private)
            metrics = {"/".join(key): value for key, value in made.metrics.items()}
            if e.privacy.active:
                measured(one, broadcast, made.metrics)
                metrics = {}
            if e.budget.active and not final:
                over = excess(one, Remembered(crowd, place), broadcast.values, e.rounds)
                metrics[f"{one.data.name}/all/excess"] = over
            found.contributions.append(Contribution(one.data.name, {}, metrics, one.device))
        return found

    def own_models(
        self, crowd: Crowd, sent: Mapping[int, Broadcast], private: Stack, final: bool
    ) -> tuple[Stack, Stack]:
        """Return the stacks of the models that clients recommend with, where these are their own."""
        e, models = self.experiment, {}
        for place, broadcast in sent.items():
            own = crowd.best_own[place] if final else crowd.now[place].own
            kept = to(client(crowd.cohort, private, place), "cpu")
            models[place] = e.sharing().split(personal_model(e.drift, own, {**broadcast.values, **kept}))
        return crowd.spread({p: m[0] for p, m in models.items()}), crowd.spread({p: m[1] for p, m in models.items()})

    def save(self, crowd: Crowd, place: int, z: Stack | Changed, private: Stack) -> None:
        """Write what a client keeps to itself at the end of a run."""
        one, e = crowd.clients[place], self.experiment
        assert self.home is not None
        kept = to(client(crowd.cohort, private, place), "cpu")
        mine = z.client(crowd.cohort, place) if isinstance(z, Changed) else client(crowd.cohort, z, place)
        own = to(mine, "cpu") if e.personal else {}
        save_client(self.home, one.data.name, kept, own, (), about(one, kept))

    def state(self) -> RecordDict:
        """Return the private state of all clients."""
        return RecordDict({k: v for n, crowd in enumerate(self.crowds) for k, v in crowd.state(str(n)).items()})

    def restore(self, state: RecordDict) -> None:
        """Go back to a state; the clients must have joined."""
        for number, crowd in enumerate(self.crowds):
            crowd.restore(state, str(number))


def begun(one: Client, shared: Params) -> Kept:
    """Return what a client remembers when it joins."""
    link = one.link(shared)
    own = NOTHING if changed(one.experiment) else begin(one)
    return Kept(0, link, own) if link or own.personal is not None or own.control is not None else Kept()


def changed(e: Experiment) -> bool:
    """Return whether clients recommend with shared parameters of their own that are the server's but for some rows."""
    return e.drift.personal == "tuned" and not e.coupling.personal


def failures(crowd: Crowd, failed: Mapping[int, str]) -> Answers:
    """Return the answer of clients that failed."""
    return Answers([], [], {crowd.clients[place].data.name: text for place, text in failed.items()})


def merge(found: Answers, more: Answers) -> None:
    """Add the answers of another crowd."""
    found.contributions.extend(more.contributions)
    found.subtotals.extend(more.subtotals)
    found.failed.update(more.failed)
