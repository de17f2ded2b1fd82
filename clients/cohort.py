"""Many clients of one node as few programs: `clients.round` of each, what they have in common once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from clients.about import about
from clients.client import Client
from clients.joining import Together
from clients.private import open_loss
from clients.round import begin, finish, receive, selected, told
from clients.stacked import Training, received
from clients.state import Party, State, unseen
from clients.states import Snapshots, States
from clients.training import Start
from fedrec.data.types import Ints
from fedrec.evaluation.cohort import evaluate_many
from fedrec.evaluation.evaluate import Split
from fedrec.evaluation.scorers import ModelScorer
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import keys, reader
from fedrec.experiment.kept import Keeping, keep
from fedrec.federation.personal import personal_model
from fedrec.params import Params, to
from fedrec.sharing import Broadcast, ContractError, Contribution
from fedrec.training.cohort import Cohort, groups
from fedrec.training.moved import Moved
from fedrec.training.results import Piece
from fedrec.training.stacks import Stack
from fedrec.wire import Answers, Call

BLOCK = 2**15  # clients that are measured at a time, to bound the memory of what each measures and keeps


def programs(parties: Sequence[Party], start: Sequence[Params], rows: Mapping[str, Ints]) -> list["Program"]:
    """Return the programs of clients that have joined with these parameters, of which the server has these rows."""
    if parties[0].client.experiment.drift.personal == "tuned":
        for party, values in zip(parties, start, strict=True):
            party.joined = unmoved(party.state, values)
    e = parties[0].client.experiment
    datas, models, tasks = zip(*((one.client.data, one.client.model, one.client.tasks) for one in parties), strict=True)
    cohorts = groups(datas, models, tasks, e.negatives, rows, seed=e.seed)
    return [Program(one, [parties[m] for m in one.members]) for one in cohorts]


def unmoved(state: State, start: Params) -> State:
    """Return the state of a client that joins whose tuned copy is what it joins with, which all may share."""
    own = replace(state.now.own, personal=Moved.start(start))
    return state._replace(now=state.now._replace(own=own))


@dataclass
class Program:
    """Clients that are trained and measured together, and whose states lie together."""

    cohort: Cohort
    parties: Sequence[Party]
    lying: States | None = field(default=None, init=False)

    @cached_property
    def clients(self) -> list[Client]:
        """The clients, by position."""
        return [party.client for party in self.parties]

    @cached_property
    def names(self) -> list[str]:
        """Their names."""
        return [client.data.name for client in self.clients]

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """The numbers of their users and of their items."""
        edges = (self.cohort.starts[space] for space in ("user", "item"))
        return list(zip(*(np.diff(edge).tolist() for edge in edges), strict=True))

    @cached_property
    def places(self) -> dict[str, int]:
        """Every client's position."""
        return {name: place for place, name in enumerate(self.names)}

    @cached_property
    def judging(self) -> Cohort:
        """The cohort with what its clients measure a validation on."""
        datas = tuple(selected(client, "validation") for client in self.clients)
        same = all(one is client.data for one, client in zip(datas, self.clients, strict=True))
        return self.cohort if same else replace(self.cohort, datas=datas)

    @property
    def experiment(self) -> Experiment:
        """The experiment that all are of."""
        return self.clients[0].experiment

    @property
    def states(self) -> States:
        """The states of all; one that was set by itself is put among the others."""
        if self.lying is None or any(party.among is not self.lying for party in self.parties):
            self.lying = self.gathered()
            for place, party in enumerate(self.parties):
                party.lie(self.lying, place)
        return self.lying

    def gathered(self) -> States:
        """Return the states that all have, as those of one program."""
        many, device = self.parties[0].among, self.clients[0].device
        if isinstance(many, Together) and all(party.among is many for party in self.parties):
            private = many.private(np.array([party.place for party in self.parties]))
            return States.start(self.cohort, private.to(device))
        return States.of(self.cohort, [party.state for party in self.parties])

    @property
    def alike(self) -> bool:
        """Whether a round begins alike for all: nothing has a part in it that only one client remembers."""
        e = self.experiment
        remembers = e.coupling.duals or e.budget.active or e.trains_copies or e.codec.active or e.weighting.active
        return not (remembers or e.drift.correction != "none")

    def answer(self, kind: str, call: Call) -> Answers:
        """Return what clients answer to what they were sent, nothing if nobody of these was, and who fails."""
        sent, failed = self.open(call)
        found = Answers([])
        if sent:
            found = self.train(sent, call, failed) if kind == "train" else self.evaluate(sent)
        return replace(found, failed={self.names[place]: text for place, text in failed.items()})

    def open(self, call: Call) -> tuple[dict[int, Broadcast], dict[int, str]]:
        """Return what clients are sent, by ascending position, and why others cannot take it; states have followed.

        What clients of one shape are sent alike is admitted once.
        """
        known: dict[tuple[int, int, int], Broadcast | str] = {}
        sent: dict[int, Broadcast] = {}
        failed: dict[int, str] = {}
        taken: dict[int, list[int]] = {}
        states = self.states
        for place, (name, shape) in enumerate(zip(self.names, self.sizes, strict=True)):
            broadcast = call.broadcasts.get(name)
            if broadcast is None:
                continue
            key = (id(broadcast), *shape)
            if key not in known:
                try:
                    known[key] = receive(self.clients[place], broadcast)
                except ContractError as error:
                    known[key] = str(error)
            found = known[key]
            if isinstance(found, str):
                failed[place] = found
                continue
            sent[place] = found
            taken.setdefault(id(found), []).append(place)
        for places in taken.values():
            broadcast = sent[places[0]]
            for place in states.follow(np.array(places), broadcast.seen, broadcast.keep).tolist():
                failed[place] = unseen(broadcast.seen, int(states.now.round[place]))
                del sent[place]
        return sent, failed

    def train(self, sent: Mapping[int, Broadcast], call: Call, failed: dict[int, str]) -> Answers:
        """Train clients for a round, and return what they answer; note who fails."""
        starts = self.begin(sent, failed)
        if not starts:
            return Answers([])
        chunks = call.chunks.items()
        weights = {self.places[name]: weight for name, (_, weight) in chunks if self.places.get(name) in starts}
        training = Training(self.cohort, self.clients, self.states.now.private, starts, weights)
        training.run(failed)
        order = [(self.places[name], name) for name in call.broadcasts if name in self.places]
        return Answers(self.finish(training, failed), training.subtotals(order))

    def begin(self, sent: Mapping[int, Broadcast], failed: dict[int, str]) -> dict[int, Start]:
        """Return where clients start, one value for all that start alike; note who fails."""
        starts: dict[int, Start] = {}
        known: dict[int, Start | str] = {}
        alike, states = self.alike, self.states
        for place, broadcast in sent.items():
            found = known.get(id(broadcast))
            if found is None:
                try:
                    state, found = begin(self.clients[place], states.at(place), broadcast)
                    states.limits[place] = state.limits
                except ContractError as error:
                    found = str(error)
                if alike:
                    known[id(broadcast)] = found
            if isinstance(found, str):
                failed[place] = found
            else:
                starts[place] = found
        return starts

    def finish(self, training: Training, failed: Mapping[int, str]) -> list[Contribution]:
        """Return what clients answer after training, which they remember."""
        e, states = self.experiment, self.states
        links, owns, mu = list(states.now.links), list(states.now.owns), states.now.mu.copy()
        alone = not self.alike or e.drift.counted  # whether the answer of one that is summed must be made by itself
        summed, losses, done, replies = (training.weight != 0).tolist(), training.losses.tolist(), [], []
        for place, start in training.starts.items():
            if place in failed:
                continue
            done.append(place)
            client = self.clients[place]
            if summed[place] and not alone:
                metrics = open_loss(client, losses[place])
                replies.append(Contribution(self.names[place], {}, metrics, client.device))
                continue
            after, reply = finish(client, states.at(place), start, training.made(place))
            links[place], owns[place], mu[place] = after.now.link, after.now.own, after.now.mu
            replies.append(replace(reply, values={}) if reply.values and summed[place] else reply)
        if done:
            number = np.full(len(mu), next(iter(training.starts.values())).sent.round)
            states.train(np.array(done), Snapshots(self.cohort, number, training.private, mu, links, owns))
        return replies

    def evaluate(self, sent: Mapping[int, Broadcast]) -> Answers:
        """Return the metrics of clients' models; at the test every client writes what it keeps to itself."""
        (first, *_), places, found = sent.values(), list(sent), Answers([])
        split: Split = "test" if first.split == "test" else "validation"
        kept = self.states.best if split == "test" else self.states.now
        parts = {place: broadcast.values for place, broadcast in sent.items()}
        z = received(self.cohort, parts, self.clients[0].device, self.experiment.coupling.personal)
        for start in range(0, len(places), BLOCK):
            block = {place: sent[place] for place in places[start : start + BLOCK]}
            found.contributions.extend(self.measure(block, split, z, kept))
        return found

    def measure(self, sent: Mapping[int, Broadcast], split: Split, z: Stack, kept: Snapshots) -> list[Contribution]:
        """Return what some clients measure of the server's parameters with what they have `kept`."""
        e, home, states = self.experiment, self.clients[0].home, self.states

        def private_of(place: int) -> Piece:
            return Piece(self.cohort, kept.private, place)

        def model_of(place: int) -> Params:
            return personal_model(e.drift, kept.owns[place], {**sent[place].values, **to(private_of(place), "cpu")})

        def asked(place: int) -> ModelScorer:
            return ModelScorer(readers[place], to(model_of(place), self.clients[place].device))

        plain = not e.trains_copies and not self.cohort.model.sequence.active
        readers = {} if plain else {place: reader(e, self.clients[place].data, split) for place in sent}
        evaluations = evaluate_many(
            self.judging if split == "validation" else self.cohort,
            z,
            kept.private,
            split,
            metrics=e.metrics,
            candidates=e.candidates,
            seed=e.seed,
            chosen=np.array(list(sent), dtype=np.int64),
            readers=None if plain else asked,
        )
        replies, shelf = list[Contribution](), list[Keeping]()
        at_rest = kept.private.to("cpu")
        tells, personal = not (e.privacy.active or e.budget.active or e.coupling.priced), e.personal
        sharing = e.sharing()
        for (place, broadcast), made in zip(sent.items(), evaluations, strict=True):
            one = self.clients[place]
            if split == "test" and home is not None:
                copies, own = Params(), at_rest.held_by(self.cohort, place)
                if personal:
                    copies, own = sharing.split(to(model_of(place), "cpu"))
                shelf.append(Keeping(one.data.name, own, copies, about(one, own), made.per_user))
            if tells:
                metrics = {"/".join(key): value for key, value in made.metrics.items()}
                replies.append(Contribution(self.names[place], {}, metrics, one.device))
                continue
            state, reply = told(one, states.at(place), broadcast, made)
            states.limits[place] = state.limits
            replies.append(reply)
        if home is not None and shelf:
            keep(home, shelf, keys(e))
        return replies
