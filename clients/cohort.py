"""Many clients of one node as few programs: `clients.round` of each, trained and measured with stacked tensors."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from clients.about import about
from clients.client import Client
from clients.joining import Together
from clients.private import open_loss
from clients.round import begin, finish, receive, told
from clients.state import Party, State, unseen
from clients.states import Snapshots, States
from clients.training import Made, Start
from fedrec.data.types import Ints
from fedrec.evaluation.cohort import evaluate_many
from fedrec.evaluation.evaluate import Split
from fedrec.evaluation.scorers import ModelScorer
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import keys, reader
from fedrec.experiment.kept import Keeping, keep
from fedrec.federation.personal import personal_model
from fedrec.federation.proportion import large, size, too_far
from fedrec.keyed import TABLES, Subtotal
from fedrec.params import LARGEST, Params, finite, to
from fedrec.sharing import Broadcast, ContractError, Contribution
from fedrec.training.cohort import Cohort, groups
from fedrec.training.moved import Moved
from fedrec.training.results import Piece, Sum, client_after, moved, spread, whole, write
from fedrec.training.stacks import Part, Stack, Terms
from fedrec.training.update import train
from fedrec.wire import Answers, Call


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
            return States.start(self.cohort, Stack(to(private, device)))
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
        training = Training(self, starts, call)
        training.run(failed)
        return Answers(self.finish(training, failed), training.subtotals())

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

    def finish(self, training: "Training", failed: Mapping[int, str]) -> list[Contribution]:
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
        e, (first, *_), home, states = self.experiment, sent.values(), self.clients[0].home, self.states
        split: Split = "test" if first.split == "test" else "validation"
        kept = states.best if split == "test" else states.now
        z = self.received({place: broadcast.values for place, broadcast in sent.items()})

        def model_of(place: int) -> Params:
            mine = kept.at(place)
            assert mine is not None
            return personal_model(e.drift, mine.own, {**sent[place].values, **to(mine.private, "cpu")})

        def asked(place: int) -> ModelScorer:
            return ModelScorer(readers[place], to(model_of(place), self.clients[place].device))

        plain = not e.trains_copies and not self.cohort.model.sequence.active
        readers = {} if plain else {place: reader(e, self.clients[place].data, split) for place in sent}
        evaluations = evaluate_many(
            self.cohort,
            z,
            kept.private,
            split,
            metrics=e.metrics,
            candidates=e.candidates,
            seed=e.seed,
            chosen=np.array(list(sent), dtype=np.int64),
            readers=None if plain else asked,
        )
        found, shelf = Answers([]), list[Keeping]()
        tells = not (e.privacy.active or e.budget.active)
        for (place, broadcast), made in zip(sent.items(), evaluations, strict=True):
            one = self.clients[place]
            if split == "test" and home is not None:
                mine, own = e.sharing().split(to(model_of(place), "cpu"))
                copies = mine if e.personal else {}
                shelf.append(Keeping(one.data.name, own, copies, about(one, own), made.per_user))
            if tells:
                metrics = {"/".join(key): value for key, value in made.metrics.items()}
                found.contributions.append(Contribution(self.names[place], {}, metrics, one.device))
                continue
            state, reply = told(one, states.at(place), broadcast, made)
            states.limits[place] = state.limits
            found.contributions.append(reply)
        if home is not None and shelf:
            keep(home, shelf, keys(e))
        return found

    def received(self, parts: Mapping[int, Params]) -> Stack:
        """Return the z_i of some clients as one stack: the server's rows once, unless every client has its own z_i."""
        cohort, device, (first, *others) = self.cohort, self.clients[0].device, parts.values()
        if self.experiment.coupling.personal:
            return Stack(to(spread(cohort, parts).values, device))
        server = {name: cohort.server[TABLES[name]] for name in first if name in TABLES}
        alike = all(other is first or all(other[n] is v for n, v in first.items()) for other in others)
        if alike and all(rows is None for rows in server.values()):
            return Stack(to(first, device), each=False)
        made: Params = {}
        for name, like in first.items():
            rows = server.get(name)
            if rows is None:
                made[name] = like
                continue
            starts = cohort.starts[TABLES[name]]
            made[name] = like.new_zeros((int(rows.max()) + 1, *like.shape[1:]))
            for place, part in parts.items():
                mine = torch.from_numpy(rows[starts[place] : starts[place + 1]])
                made[name].index_copy_(0, mine, part[name])
        return Stack(to(made, device), each=False)


class Training:
    """One round of training of a program: sums where the server needs no more, every client's own x_i elsewhere."""

    def __init__(self, program: Program, starts: Mapping[int, Start], call: Call) -> None:
        self.program, self.starts, self.call = program, starts, call
        self.cohort, self.clients, self.experiment = program.cohort, program.clients, program.experiment
        self.weight = np.zeros(len(self.cohort))
        for name, (_, weight) in call.chunks.items():
            if program.places.get(name) in starts:
                self.weight[program.places[name]] = weight
        self.z = program.received({place: start.z for place, start in starts.items()})
        self.total = Sum.zero(self.z.values) if self.weight.any() else None
        drift = self.experiment.drift
        self.keeps = drift.correction != "none" or drift.personal == "tuned"  # whether every x_i is asked for
        self.private = program.states.now.private
        self.losses = np.full(len(self.cohort), np.nan)
        self.x: dict[int, Mapping[str, Tensor]] = {}
        self.v: dict[int, Params] = {}  # personal models

    def run(self, failed: dict[int, str]) -> None:
        """Train the clients; note who fails."""
        e, cohort, starts = self.experiment, self.cohort, self.starts
        before, tuned = self.program.states.now.private, e.drift.personal == "tuned"
        self.private = Stack({name: value.clone() for name, value in before.values.items()})
        terms, rho = self.terms()
        weight = torch.from_numpy(self.weight)
        if self.total:
            chosen = np.array(list(starts), dtype=np.int64)
            self.total.start(cohort, self.z, chosen, weight[torch.from_numpy(chosen)])
        for part in self.parts(before, rho, terms):
            failed |= self.diverged(part) | self.disproportionate(part)
            if self.total:
                self.leave_out(failed)
                self.total.add(cohort, self.z, part, weight[torch.from_numpy(part.clients)])
            write(self.private, part)
            self.losses[part.clients] = part.loss.cpu().numpy()
            single = (
                np.ones(len(part.clients), np.bool_) if self.keeps or terms.personal else self.weight[part.clients] == 0
            )
            for j in np.flatnonzero(single).tolist():
                place = int(part.clients[j])
                if terms.personal:
                    self.v[place] = to(
                        client_after(cohort, terms.personal, replace(part, values=part.personal), j), "cpu"
                    )
                if self.weight[place] and not self.keeps:
                    continue
                if tuned and self.clients[place].device == "cpu":
                    self.x[place] = moved(cohort, starts[place].z, part, j)
                else:
                    self.x[place] = to(client_after(cohort, self.z, part, j), "cpu")

    def made(self, place: int) -> Made:
        """Return what training made of a client."""
        start, tuned = self.starts[place], self.experiment.drift.personal == "tuned"
        own = replace(start.own, personal=self.v.get(place, start.own.personal)) if self.v else start.own
        asked, still = self.keeps or not self.weight[place], Moved.start(start.z) if tuned else start.z
        x = self.x.get(place, still) if asked else None
        return Made(float(self.losses[place]), Piece(self.cohort, self.private, place), own, x)

    def parts(self, private: Stack, mu: float, terms: Terms) -> Iterator[Part]:
        """Train clients, chunk by chunk."""
        e = self.experiment
        scopes = [(self.clients[place].data.name, start.sent.round) for place, start in self.starts.items()]
        return train(
            self.cohort,
            self.z,
            private,
            replace(self.clients[0].recipe, mu=mu),
            e.sharing(),
            seed=e.seed,
            chosen=np.array(list(self.starts), dtype=np.int64),
            scopes=scopes,
            terms=terms,
        )

    def terms(self) -> tuple[Terms, float]:
        """Return what the clients minimise beside their loss, and the rho of its proximal term."""
        e, starts = self.experiment, self.starts
        first = next(iter(starts.values()))
        anchor, shift, weight, personal = self.z if first.rho else None, None, None, None
        if first.link:
            anchor = self.spread({place: start.anchor for place, start in starts.items()})
        if first.shift:
            shift = self.spread({place: start.shift for place, start in starts.items() if start.shift})
        if e.budget.active:
            weight = torch.tensor([1.0 + start.mu for start in starts.values()])
        if e.drift.second:
            personal = self.spread({p: start.own.personal for p, start in starts.items() if start.own.personal})
        share = e.drift.shares(personal.values if personal else ())
        return Terms(anchor, shift, weight, personal, share, e.drift.pull, self.z), first.rho

    def spread(self, parts: Mapping[int, Mapping[str, Tensor]]) -> Stack:
        """Return a stack of tensors of some clients where they train."""
        return Stack(to(spread(self.cohort, parts).values, self.clients[0].device))

    def diverged(self, part: Part) -> dict[int, str]:
        """Return the clients of a part whose parameters are not finite, and why they fail."""
        made = [*part.values.items(), *part.personal.items()]
        if all(finite(value) for _, value in made):
            return {}
        good = np.ones(len(part.clients), dtype=np.bool_)
        for name, value in made:
            sound = (value.abs() <= LARGEST).reshape(len(value), -1).all(1).cpu().numpy()
            np.logical_and.at(good, part.touched[TABLES[name]].owner if name in TABLES else np.arange(len(good)), sound)
        rule = f"lr: must be small enough for finite parameters, found {self.experiment.lr} in round"
        return {place: f"{rule} {self.starts[place].sent.round}" for place in part.clients[~good].tolist()}

    def disproportionate(self, part: Part) -> dict[int, str]:
        """Return the clients of a part that would be summed, and whose change is out of all proportion."""
        shared = {name: part.values[name] for name in self.total.total} if self.total else {}
        if not large(shared, {}, increments=True):
            return {}
        squares = torch.zeros(len(part.clients), dtype=torch.float64)
        for name, value in shared.items():
            if name in TABLES:
                owner = torch.from_numpy(part.touched[TABLES[name]].owner)
                change = value - self.z.take(name, self.cohort, part.clients, part.touched)
                squares.index_add_(0, owner, change.double().square().sum(1).cpu())
            else:
                change = value - self.z.at(name, self.cohort, part.clients, part.clients)
                squares += change.double().square().reshape(len(value), -1).sum(1).cpu()
        sizes = zip(part.clients.tolist(), squares.sqrt().tolist(), strict=True)
        changes = {place: size for place, size in sizes if self.weight[place]}
        return too_far(changes, {place: size(self.starts[place].z) for place in changes})

    def leave_out(self, failed: Collection[int]) -> None:
        """Take clients that failed out of the sum that they were to be in."""
        for place in failed:
            if self.total and self.weight[place]:
                self.total.start(self.cohort, self.z, np.array([place]), torch.tensor([-self.weight[place]]))
            self.weight[place] = 0.0

    def subtotals(self) -> list[Subtotal]:
        """Return the sum over clients, on the rows that they carry; nothing if there are none."""
        inside = np.flatnonzero(self.weight)
        summed = set(inside.tolist())
        if not (self.total and len(inside)):
            return []
        values = {}
        for name, value in self.total.total.items():
            server = self.cohort.server[TABLES[name]] if name in TABLES else None
            if server is not None:
                flat, _ = whole(self.cohort, TABLES[name], inside)
                value = value.index_select(0, torch.from_numpy(np.unique(server[flat])).to(value.device))
            values[name] = value.cpu()
        order = [name for name in self.call.broadcasts if self.program.places.get(name) in summed]
        return [Subtotal(tuple(order), values, float(self.total.gap))]
