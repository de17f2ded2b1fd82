"""Which host a node is, by the settings of its engine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from flwr.app import RecordDict

from clients.app import client_app
from clients.cohort import Node
from clients.device import devices
from fedrec.errors import UserError
from fedrec.experiment import Experiment, build
from fedrec.holdings import clients_data
from fedrec.parts import asked_to_stack, stacking_refusal
from fedrec.wire import answers_record, read_call
from simulations.engines.host import Host
from simulations.engines.local import identify

MANY = 64  # clients from which they are stacked, unless the experiment says otherwise; on an accelerator all are


class Answering(Protocol):
    """A node that hosts clients."""

    def answer(self, kind: str, content: RecordDict) -> RecordDict:
        """Return what the clients answer to a message of the server."""
        ...

    def state(self) -> RecordDict:
        """Return the private state of all clients."""
        ...

    def restore(self, state: RecordDict) -> None:
        """Go back to a state; the clients must have joined."""
        ...


class StackedHost:
    """Runs its clients as few programs."""

    def __init__(self, clients: Node) -> None:
        identify()
        self.clients, self.state, self.restore = clients, clients.state, clients.restore

    def answer(self, kind: str, content: RecordDict) -> RecordDict:
        """See Answering."""
        if kind == "query.join":
            return answers_record(self.clients.join())
        call = read_call(content)
        return answers_record(self.clients.train(call) if kind == "train" else self.clients.evaluate(call))


def host_of(settings: Mapping[str, Any]) -> Answering:
    """Return the host of some partitions of an experiment.

    `settings`: experiment (its JSON), home (where clients write their files), partitions, device ("": as they like).
    """
    experiment, home = build(settings["experiment"]), Path(settings["home"])
    return hosted(experiment, home, settings["partitions"], settings["device"])


def hosted(experiment: Experiment, home: Path | None, partitions: list[int], device: str) -> Answering:
    """Return the host of some partitions, stacked if they are."""
    parts = clients_data(experiment)
    if stacked(experiment):
        return StackedHost(Node(experiment, [parts[i] for i in partitions], device or "cpu", home))
    app = client_app(lambda _: (experiment, home))
    return Host(app, partitions, len(parts), device)


def stacked(experiment: Experiment) -> bool:
    """Return whether clients train as one program; raises UserError if --stack asks for it and it cannot be."""
    e, wanted, reason = experiment, asked_to_stack(experiment), stacking_refusal(experiment)
    if wanted and reason and e.stack == "yes":
        raise UserError(f"{reason}; take --stack no")
    many = len(clients_data(e)) >= MANY or devices(e.device) != ["cpu"]
    return not (e.pool or reason) and (bool(wanted) or (e.engine == "process" and e.stack == "auto" and many))


def apart(experiment: Experiment) -> str:
    """Return what is to be said of clients that train one at a time though they are asked to as one program."""
    reason = stacking_refusal(experiment) if experiment.engine == "batched" else ""
    return f"{reason}; its clients are trained one at a time" if reason else ""
