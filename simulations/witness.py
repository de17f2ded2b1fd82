"""A run with a transcript: what the server sent and got is kept, for attacks to read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Message

from clients.node import Node
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data, dataset, tasks_for
from fedrec.experiment.records import Record
from fedrec.federation.codecs import Scope
from fedrec.params import Params
from fedrec.privacy.attacks.table import Case
from fedrec.privacy.attacks.targets import used
from fedrec.privacy.transcript import Transcript
from fedrec.sharing import Broadcast
from fedrec.wire import read_answers, read_call
from server.strategy import Coordinator
from simulations.apps import plan_of
from simulations.engines import InlineGrid
from simulations.engines.nodes import each_alone


@dataclass(frozen=True)
class Witnessed:
    """What was seen of a run, its record, and what the clients kept to themselves, by name: insiders hold it."""

    transcript: Transcript
    record: Record
    private: dict[str, Params]


class WitnessGrid(InlineGrid):
    """An inline grid that keeps what the server sends for training and gets; what many are sent is kept once."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        super().__init__(nodes)
        self.transcript = Transcript()
        self._sent: tuple[ArrayRecord, Params] | None = None

    def _answer(self, message: Message) -> Message:
        reply = super()._answer(message)
        if reply.has_error():
            return reply
        if message.metadata.message_type == "query.join":
            self.transcript.join(read_answers(reply.content).contributions)
        elif message.metadata.message_type == "train":
            self.transcript.train(self._broadcasts(message), read_answers(reply.content).contributions)
        return reply

    def _broadcasts(self, message: Message) -> dict[str, Broadcast]:
        """Return what was sent; its values are those of the message before if they were packed together."""
        record, sent = message.content["shared.0"], read_call(message.content).broadcasts
        assert isinstance(record, ArrayRecord)
        if self._sent is None or self._sent[0] is not record:
            self._sent = (record, next(iter(sent.values())).values)
        return {name: replace(broadcast, values=self._sent[1]) for name, broadcast in sent.items()}


def witness(experiment: Experiment, home: Path | None = None) -> Witnessed:
    """Run an experiment in this process; return what the server saw of it, and what it did not.

    `home` is where ledgers are kept, which a run with a promise of privacy needs. Raises what a run raises.
    """
    grid = WitnessGrid(each_alone(experiment, home))
    record = Coordinator(grid, plan_of(experiment, home)).fit(list(grid.get_node_ids()))
    read, duals = experiment.codec.read, experiment.coupling.duals  # as the server does, which has the codec
    if experiment.codec.active:
        grid.transcript.rounds = [
            replace(r, x=read(r.x, r.z, r.z, duals, Scope(experiment.seed, r.client, r.round)))
            for r in grid.transcript.rounds
        ]
    seen = grid.transcript.without_duals() if experiment.coupling.duals else grid.transcript
    seen.total = dict(record.shared)
    private = {name: dict(party.state.now.private) for name, party in grid.parties.items() if party.joined}
    return Witnessed(seen, record, private)


def case_of(experiment: Experiment, seen: Witnessed, seed: int = 0) -> Case:
    """Return all about a witnessed run, the truth included, for whoever asks the attacks and scores them.

    The frequencies of ratings that adversaries may know are those of the whole dataset.
    """
    whole = dataset(experiment)
    rating = whole.interactions["rating"].dropna().round().astype(int).clip(1, 5)
    prior = np.bincount(rating, minlength=6)[1:].astype(np.float64)
    parts = [used(part, tasks_for(experiment, part)) for part in clients_data(experiment)]
    return Case(experiment, parts, seen.private, whole.users, prior, seed)
