"""Many clients of one node as few programs: `clients.round` of each, trained and measured with stacked tensors."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from clients.about import about
from clients.client import Client
from clients.round import begin, finish, followed, receive, told
from clients.state import Party, State
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
from fedrec.sharing import Broadcast, ContractError
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
    """Clients that are trained and measured together."""

    cohort: Cohort
    parties: Sequence[Party]

    @cached_property
    def clients(self) -> list[Client]:
        """The clients, by position."""
        return [party.client for party in self.parties]

    @cached_property
    def places(self) -> dict[str, int]:
        """Every client's position."""
        return {client.data.name: place for place, client in enumerate(self.clients)}

    @property
    def experiment(self) -> Experiment:
        """The experiment that all are of."""
        return self.clients[0].experiment

    def answer(self, kind: str, call: Call) -> Answers:
        """Return what clients answer to what they were sent, nothing if nobody of these was, and who fails."""
        sent, failed = self.open(call)
        found = Answers([])
        if sent:
            found = self.train(sent, call, failed) if kind == "train" else self.evaluate(sent)
        return replace(found, failed={self.clients[place].data.name: text for place, text in failed.items()})

    def open(self, call: Call) -> tuple[dict[int, Broadcast], dict[int, str]]:
        """Return what clients are sent, by ascending position, and why others cannot take it; states have followed.

        What clients of one shape are sent alike is admitted once.
        """
        known: dict[tuple[int, int, int], Broadcast] = {}
        sent: dict[int, Broadcast] = {}
        failed: dict[int, str] = {}
        for place, party in enumerate(self.parties):
            data = party.client.data
            broadcast = call.broadcasts.get(data.name)
            if broadcast is None:
                continue
            key = (id(broadcast), len(data.users), len(data.items))
            try:
                if key not in known:
                    known[key] = receive(party.client, broadcast)
                party.joined = followed(party.state, known[key])
                sent[place] = known[key]
            except ContractError as error:
                failed[place] = str(error)
        return sent, failed

    def train(self, sent: Mapping[int, Broadcast], call: Call, failed: dict[int, str]) -> Answers:
        """Train clients for a round, and return what they answer; note who fails."""
        starts: dict[int, Start] = {}
        for place, broadcast in sent.items():
            try:
                party = self.parties[place]
                party.joined, starts[place] = begin(party.client, party.state, broadcast)
            except ContractError as error:
                failed[place] = str(error)
        if not starts:
            return Answers([])
        training = Training(self, starts, call)
        made = training.run(failed)
        found = Answers([])
        for place, one in made.items():
            party = self.parties[place]
            party.joined, reply = finish(party.client, party.state, starts[place], one)
            found.contributions.append(replace(reply, values={}) if reply.values and training.weight[place] else reply)
        found.subtotals.extend(training.subtotals())
        return found

    def evaluate(self, sent: Mapping[int, Broadcast]) -> Answers:
        """Return the metrics of clients' models; at the test every client writes what it keeps to itself."""
        e, (first, *_), home = self.experiment, sent.values(), self.clients[0].home
        split: Split = "test" if first.split == "test" else "validation"
        kept = [party.state.best if split == "test" else party.state.now for party in self.parties]
        z = self.received({place: broadcast.values for place, broadcast in sent.items()})
        private = spread(self.cohort, {place: one.private for place, one in enumerate(kept)})

        def model_of(place: int) -> Params:
            model = {**sent[place].values, **to(kept[place].private, "cpu")}
            return personal_model(e.drift, kept[place].own, model)

        def asked(place: int) -> ModelScorer:
            return ModelScorer(readers[place], to(model_of(place), self.clients[place].device))

        plain = not e.trains_copies and not self.cohort.model.sequence.active
        readers = {} if plain else {place: reader(e, self.clients[place].data, split) for place in sent}
        evaluations = evaluate_many(
            self.cohort,
            z,
            private,
            split,
            metrics=e.metrics,
            candidates=e.candidates,
            seed=e.seed,
            chosen=np.array(list(sent), dtype=np.int64),
            readers=None if plain else asked,
        )
        found, shelf = Answers([]), list[Keeping]()
        for (place, broadcast), made in zip(sent.items(), evaluations, strict=True):
            one = self.clients[place]
            if split == "test" and home is not None:
                mine, own = e.sharing().split(to(model_of(place), "cpu"))
                copies = mine if e.personal else {}
                shelf.append(Keeping(one.data.name, own, copies, about(one, own), made.per_user))
            self.parties[place].joined, reply = told(one, self.parties[place].state, broadcast, made)
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

    def run(self, failed: dict[int, str]) -> dict[int, Made]:
        """Return what training makes of each client, but of those who fail."""
        e, cohort, starts = self.experiment, self.cohort, self.starts
        held = {place: party.state.now.private for place, party in enumerate(self.program.parties)}
        before = spread(cohort, held)
        private = Stack({name: value.clone() for name, value in before.values.items()})
        tuned = e.drift.personal == "tuned"
        keeps = e.drift.correction != "none" or tuned
        losses = dict.fromkeys(starts, float("nan"))
        x: dict[int, Mapping[str, Tensor]] = {}
        v: dict[int, Params] = {}
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
            write(private, part)
            summed = (self.weight[part.clients] != 0).tolist()
            for j, (place, loss) in enumerate(zip(part.clients.tolist(), part.loss.tolist(), strict=True)):
                losses[place] = loss
                if terms.personal:
                    v[place] = to(client_after(cohort, terms.personal, replace(part, values=part.personal), j), "cpu")
                if summed[j] and not keeps:
                    continue
                if tuned and self.clients[place].device == "cpu":
                    x[place] = moved(cohort, starts[place].z, part, j)
                else:
                    x[place] = to(client_after(cohort, self.z, part, j), "cpu")
        made = {}
        for place, start in starts.items():
            if place not in failed:
                asked, still = keeps or not self.weight[place], Moved.start(start.z) if tuned else start.z
                mine = replace(start.own, personal=v.get(place, start.own.personal)) if v else start.own
                made[place] = Made(
                    losses[place], Piece(cohort, private, place), mine, x.get(place, still) if asked else None
                )
        return made

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
