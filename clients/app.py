"""The ClientApp: a node of one client on Flower, its state in Flower's context."""

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from clients.client import Client, kinds
from clients.device import devices
from clients.node import Node, words
from fedrec.experiment.config import Experiment
from fedrec.experiment.earlier import parties
from fedrec.wire.secure import STAGES

Read = Callable[[Context], tuple[Experiment, Path | None]]


def clients_of(experiment: Experiment, home: Path | None, partitions: Sequence[int], device: str = "") -> list[Client]:
    """Return the clients of some partitions, on a device or, without one, where the experiment says.

    Raises ValueError for a partition that there is not.
    """
    parts, names, kind = parties(experiment), devices(device or experiment.device), kinds(experiment)
    clients: list[Client] = []
    first: dict[Hashable, Client] = {}
    for index in partitions:
        if index >= len(parts):
            raise ValueError(f"partition-id: must be below the number of clients {len(parts)}, found {index}")
        data, where = parts[index], names[index % len(names)]
        client = Client(experiment, data, where, home, first.get(key := (where, kind(data))))
        first.setdefault(key, client)
        clients.append(client)
    return clients


def reply(message: Message, act: Callable[[], RecordDict]) -> Message:
    """Return a node's answer to a message, or the error that its failure is."""
    try:
        return Message(act(), reply_to=message)
    except Exception as error:
        return Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=words(error)), reply_to=message)


def client_app(read: Read) -> ClientApp:
    """Return the ClientApp; `read` turns its context into the experiment and its own folder."""
    app = ClientApp()
    known: dict[tuple[int, str], Client] = {}  # what a client makes of its data, it makes once

    def open_client(context: Context) -> Client:
        experiment, home = read(context)
        key = int(context.node_config["partition-id"]), str(context.node_config.get("device", ""))
        client = known.get(key)
        if client is None or (client.experiment, client.home) != (experiment, home):
            (client,) = clients_of(experiment, home, [key[0]], key[1])
            known[key] = client
        return client

    def act(message: Message, context: Context) -> RecordDict:
        node = Node([open_client(context)])
        node.restore(context.state)
        content = node.answer(message.metadata.message_type, message.content)
        context.state = node.state()
        return content

    def call(message: Message, context: Context) -> Message:
        return reply(message, lambda: act(message, context))

    app.query("join")(call)
    app.train()(call)
    app.evaluate()(call)
    for kind in sorted(STAGES):
        app.train(kind.removeprefix("train."))(call)
    return app
