"""Many clients of one node as few programs: `clients.round` of each, trained and measured with stacked tensors."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from flwr.app import RecordDict
from torch import Tensor

from clients.about import about
from clients.client import Client
from clients.round import begin, finish, followed, join, receive, told
from clients.state import State, read_states, records
from clients.training import Made, Start
from fedrec.data import ClientData
from fedrec.evaluation import Split
from fedrec.experiment import Experiment
from fedrec.holdings import reader
from fedrec.keyed import TABLES, Subtotal, catalogue
from fedrec.node_evaluation import evaluate_many
from fedrec.parameters import LARGEST, Params, finite, norm, same, to
from fedrec.personal import personal_model
from fedrec.proportion import large, too_far
from fedrec.records import save_client, slug, write_users
from fedrec.scorers import ModelScorer
from fedrec.sharing import Broadcast, ContractError, Contribution
from fedrec.training.cohort import Cohort, groups
from fedrec.training.moved import Moved
from fedrec.training.results import Sum, moved, pieces, spread, trained, whole, write
from fedrec.training.stacks import Part, Stack, Terms
from fedrec.training.update import train
from fedrec.wire import Answers, Call


class Node:
    """The clients of a node, trained and evaluated as few programs: one for each model and list of tasks."""

    def __init__(self, experiment: Experiment, parts: Sequence[ClientData], device: str, home: Path | None) -> None:
        torch.set_num_threads(1)
        self.clients = [Client(experiment, data, device, home) for data in parts]
        self.programs: list[Program] = []

    def join(self) -> Answers:
        """Begin every client's state; return what they join with, equal tensors once."""
        states, replies = zip(*(join(one) for one in self.clients), strict=True)
        found = [replies[0]]
        for reply in replies[1:]:
            before = found[-1].values
            found.append(replace(reply, values=before) if same(before, reply.values) else reply)
        if self.clients[0].experiment.drift.personal == "tuned":
            states = tuple(unmoved(*pair) for pair in zip(states, found, strict=True))
        e, rows = self.clients[0].experiment, catalogue([reply.rows for reply in found])
        datas, models, tasks = zip(*((one.data, one.model, one.tasks) for one in self.clients), strict=True)
        cohorts = groups(datas, models, tasks, e.negatives, rows, seed=e.seed)
        self.programs = [Program(one, [self.clients[m] for m in one.members]) for one in cohorts]
        for program in self.programs:
            program.states = [states[m] for m in program.cohort.members]
        return Answers(found)

    def train(self, call: Call) -> Answers:
        """Let clients train for a round."""
        return self.each(call, lambda program, sent, failed: program.train(sent, call, failed))

    def evaluate(self, call: Call) -> Answers:
        """Let clients evaluate what they are sent."""
        return self.each(call, lambda program, sent, failed: program.evaluate(sent))

    def each(self, call: Call, act: Callable[["Program", dict[int, Broadcast], dict[int, str]], Answers]) -> Answers:
        """Return what all programs answer that have clients to whom something was sent, and who fails."""
        found = Answers([])
        for program in self.programs:
            sent, failed = program.open(call)
            if sent:
                answers = act(program, sent, failed)
                found.contributions.extend(answers.contributions)
                found.subtotals.extend(answers.subtotals)
            found.failed.update({program.clients[place].data.name: text for place, text in failed.items()})
        return found

    def state(self) -> RecordDict:
        """Return the private state of all clients."""
        return records([state for program in self.programs for state in program.states])

    def restore(self, state: RecordDict) -> None:
        """Go back to a state; the clients must have joined."""
        states = read_states(state, self.clients[0].device)
        for program in self.programs:
            program.states, states = states[: len(program.states)], states[len(program.states) :]


def unmoved(state: State, reply: Contribution) -> State:
    """Return the state of a client that joins whose tuned copy is what it joins with, which all may share."""
    own = replace(state.now.own, personal=Moved.start(reply.values))
    return replace(state, now=replace(state.now, own=own))


@dataclass
class Program:
    """Clients that are trained and measured together."""

    cohort: Cohort
    clients: Sequence[Client]
    states: list[State] = field(default_factory=list)

    @cached_property
    def places(self) -> dict[str, int]:
        """Every client's position."""
        return {client.data.name: place for place, client in enumerate(self.clients)}

    @property
    def experiment(self) -> Experiment:
        """The experiment that all are of."""
        return self.clients[0].experiment

    def open(self, call: Call) -> tuple[dict[int, Broadcast], dict[int, str]]:
        """Return what clients are sent, by ascending position, and why others cannot take it; states have followed.

        What clients of one shape are sent alike is admitted once.
        """
        known: dict[tuple[int, int, int], Broadcast | str] = {}
        found: dict[int, Broadcast] = {}
        failed: dict[int, str] = {}
        for place, broadcast in sorted((self.places[n], b) for n, b in call.broadcasts.items() if n in self.places):
            one = self.clients[place]
            key = (id(broadcast), len(one.data.users), len(one.data.items))
            if key not in known:
                try:
                    known[key] = receive(one, broadcast)
                except ContractError as error:
                    known[key] = str(error)
            admitted = known[key]
            if isinstance(admitted, str):
                failed[place] = admitted
                continue
            try:
                self.states[place] = followed(self.states[place], admitted)
                found[place] = admitted
            except ContractError as error:
                failed[place] = str(error)
        return found, failed

    def train(self, sent: Mapping[int, Broadcast], call: Call, failed: dict[int, str]) -> Answers:
        """Train clients for a round, and return what they answer; note who fails."""
        starts: dict[int, Start] = {}
        for place, broadcast in sent.items():
            try:
                self.states[place], starts[place] = begin(self.clients[place], self.states[place], broadcast)
            except ContractError as error:
                failed[place] = str(error)
        if not starts:
            return Answers([])
        training = Training(self, starts, call)
        made = training.run(failed)
        found = Answers([])
        for place, one in made.items():
            self.states[place], reply = finish(self.clients[place], self.states[place], starts[place], one)
            found.contributions.append(replace(reply, values={}) if training.weight[place] and reply.values else reply)
        found.subtotals.extend(training.subtotals())
        return found

    def evaluate(self, sent: Mapping[int, Broadcast]) -> Answers:
        """Return the metrics of clients' models; at the test every client writes what it keeps to itself."""
        e, (first, *_), home = self.experiment, sent.values(), self.clients[0].home
        split: Split = "test" if first.split == "test" else "validation"
        kept = [state.best if split == "test" else state.now for state in self.states]
        z = self.received({place: broadcast.values for place, broadcast in sent.items()})
        private = spread(self.cohort, {place: one.private for place, one in enumerate(kept)})

        def model_of(place: int) -> Params:
            model = {**sent[place].values, **to(kept[place].private, "cpu")}
            return personal_model(e.drift, kept[place].own, model)

        def asked(place: int) -> ModelScorer:
            return ModelScorer(readers[place], to(model_of(place), self.clients[place].device))

        plain = e.drift.personal == "none" and not self.cohort.model.sequence.active
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
        if split == "test" and home is not None:
            every = [part for made in evaluations for part in made.per_user]
            write_users(home, every, f"with-{slug(self.clients[next(iter(sent))].data.name)}")
        found = Answers([])
        for (place, broadcast), made in zip(sent.items(), evaluations, strict=True):
            one = self.clients[place]
            if split == "test" and home is not None:
                mine, own = e.sharing().split(to(model_of(place), "cpu"))
                save_client(home, one.data.name, own, mine if e.personal else {}, (), about(one, own))
            self.states[place], reply = told(one, self.states[place], broadcast, made)
            found.contributions.append(reply)
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
        held = {place: state.now.private for place, state in enumerate(self.program.states)}
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
        for part in self.parts(list(starts), self.z, before, rho, terms):
            failed |= self.diverged(part) | self.disproportionate(part)
            if self.total:
                self.leave_out(failed)
                self.total.add(cohort, self.z, part, weight[torch.from_numpy(part.clients)])
            write(private, part)
            for j, (place, loss) in enumerate(zip(part.clients.tolist(), part.loss.tolist(), strict=True)):
                losses[place] = loss
                if terms.personal:
                    v[place] = to(trained(cohort, terms.personal, replace(part, values=part.personal), j), "cpu")
                if self.weight[place] and not keeps:
                    continue
                if tuned and self.clients[place].device == "cpu":
                    x[place] = moved(cohort, starts[place].z, part, j)
                else:
                    x[place] = to(trained(cohort, self.z, part, j), "cpu")
        own = pieces(cohort, private)
        made = {}
        for place, start in starts.items():
            if place not in failed:
                asked, still = keeps or not self.weight[place], Moved.start(start.z) if tuned else start.z
                mine = replace(start.own, personal=v.get(place, start.own.personal)) if v else start.own
                made[place] = Made(losses[place], own[place], mine, x.get(place, still) if asked else None)
        return self.copies(made) if e.drift.personal == "ditto" else made

    def parts(self, places: Sequence[int], shared: Stack, private: Stack, mu: float, terms: Terms) -> Iterator[Part]:
        """Train clients, chunk by chunk."""
        e = self.experiment
        scopes = [(self.clients[place].data.name, self.starts[place].sent.round) for place in places]
        return train(
            self.cohort,
            shared,
            private,
            replace(e.recipe(), mu=mu),
            e.sharing(),
            seed=e.seed,
            chosen=np.array(places, dtype=np.int64),
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
        if e.drift.personal == "apfl":
            personal = self.spread({p: start.own.personal for p, start in starts.items() if start.own.personal})
        return Terms(anchor, shift, weight, personal, e.drift.weight), first.rho

    def spread(self, parts: Mapping[int, Mapping[str, Tensor]]) -> Stack:
        """Return a stack of tensors of some clients where they train."""
        return Stack(to(spread(self.cohort, parts).values, self.clients[0].device))

    def copies(self, made: Mapping[int, Made]) -> dict[int, Made]:
        """Return the same with Ditto's copies, trained on f_i + lambda/2 |v - z|^2; see `clients.training.train`."""
        e, copies = self.experiment, {place: one.own.personal or {} for place, one in made.items()}
        if not copies:
            return {}
        split = {place: e.sharing().split(v) for place, v in copies.items()}
        shared, private = (self.spread({place: both[i] for place, both in split.items()}) for i in (0, 1))
        before = Stack({**shared.values, **private.values})
        terms = Terms(self.spread({place: self.starts[place].z for place in made}))
        for part in self.parts(list(made), shared, private, e.drift.weight, terms):
            for j, place in enumerate(part.clients.tolist()):
                copies[place] = to(trained(self.cohort, before, part, j), "cpu")
        return {place: replace(one, own=replace(one.own, personal=copies[place])) for place, one in made.items()}

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
        return too_far(changes, {place: norm(self.starts[place].z) for place in changes})

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
