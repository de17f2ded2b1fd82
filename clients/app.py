"""The ClientApp: receive, train, reply. Its configuration decides what it shares; the server cannot ask for more."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from clients.about import about
from clients.budget import excess, priced
from clients.client import Client
from clients.device import device_of
from clients.drift import begin, counted
from clients.home import parted, with_home
from clients.memory import Memory
from clients.newcomer import lesson
from clients.private import measured, open_loss, unsaid
from clients.round import first, measure, receive, train
from clients.secure import Envelope, answer_in_secret
from fedrec.channel import keyed
from fedrec.coordination import double
from fedrec.errors import UserError
from fedrec.experiment import Experiment
from fedrec.holdings import clients_data
from fedrec.parameters import Params, add, norm, subtract
from fedrec.personal import personal_model
from fedrec.records import save_client
from fedrec.sharing import Broadcast, ContractError, Contribution
from fedrec.wire import contribution_record, read_broadcast

Read = Callable[[Context], tuple[Experiment, Path | None]]


def discreet(message: Message, context: Context, call: Callable[[Message, Context], Message]) -> Message:
    """Answer with an error instead of raising: its text tells a broken contract, but of anything else only the kind.

    Another exception's text may quote private data; with the traceback it stays in the client's own log.
    """
    try:
        return call(message, context)
    except Exception as error:
        known = isinstance(error, ContractError | UserError)
        if not known:
            logging.getLogger(__name__).exception("%s failed", message.metadata.message_type)
        told = str(error) if known else type(error).__name__
        return Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=told), reply_to=message)


def client_app(read: Read) -> ClientApp:
    """Return the ClientApp; `read` turns its context into the experiment and its own folder."""
    app = ClientApp(mods=[discreet])

    def open_client(context: Context) -> Client:
        torch.set_num_threads(1)  # sums in one order, whatever the engine
        experiment, home = read(context)
        parts = clients_data(experiment)
        index = int(context.node_config["partition-id"])
        if index >= len(parts):
            raise ValueError(f"partition-id: must be below the number of clients {len(parts)}, found {index}")
        device = device_of(str(context.node_config.get("device", experiment.device)), index)
        return Client(experiment, parts[index], device, home)

    @app.query("join")
    def join(message: Message, context: Context) -> Message:
        client = open_client(context)
        shared, private = first(client)
        Memory(context).begin(private, client.link(shared), begin(client))
        rows = keyed(shared, client.data, client.channel)
        examples = 1.0 if client.experiment.silent else float(len(client.data.train))
        reply = Contribution(client.data.name, shared, {"examples": examples}, client.device, rows)
        return Message(contribution_record(reply), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client, memory = open_client(context), Memory(context)
        if client.experiment.secure.active:
            raise ContractError("secure: the answer must go into a secure sum, found a request for it as it is")
        values, _, told = trained(client, memory, read_broadcast(message.content))
        return answer(client, message, values, told)

    answer_in_secret(app, open_client, trained)

    @app.evaluate()
    def evaluation(message: Message, context: Context) -> Message:
        client, memory = open_client(context), Memory(context)
        broadcast = open_broadcast(client, memory, read_broadcast(message.content))
        if not client.experiment.privacy.active:
            return answer(client, message, {}, evaluated(client, memory, broadcast))
        with unsaid(client, broadcast):
            evaluated(client, memory, broadcast)
        return answer(client, message, {}, {})

    return app


def evaluated(client: Client, memory: Memory, broadcast: Broadcast) -> dict[str, float]:
    """Return what a client measures of what it is sent; after the final test it keeps what is its own."""
    final, e = broadcast.split == "test", client.experiment
    private, home = parted(memory.best if final else memory.private)
    model = client.channel.join(with_home(broadcast.values, home), private)
    shared, private = e.sharing().split(personal_model(e.drift, memory.own(final), model))
    found = measure(client, shared, private, "test" if final else "validation")
    if final and client.home is not None:
        own = shared if e.personal or client.newcomer else {}
        save_client(client.home, client.data.name, private, own, found.per_user, about(client, private))
    if e.privacy.active:
        measured(client, broadcast, found.metrics)
    metrics = {"/".join(key): value for key, value in found.metrics.items()}
    if e.budget.active and broadcast.split == "validation":
        metrics[f"{client.data.name}/all/excess"] = excess(client, memory, broadcast.values, e.rounds)
    return metrics


def trained(
    client: Client, memory: Memory, sent: Broadcast, envelope: Envelope | None = None
) -> tuple[Params, Params, dict[str, float]]:
    """Return (values, z, metrics) after a round's training: what it answers, in an envelope if that is to be summed."""
    broadcast = open_broadcast(client, memory, sent)
    if client.newcomer:
        return {}, {}, lesson(client, memory, broadcast)
    private, home = parted(memory.private)
    z, coupling = with_home(broadcast.values, home), client.experiment.coupling
    broadcast = replace(broadcast, values=z)
    if not coupling.duals:
        shared, private, loss, own = train(client, broadcast, private, z, coupling.rho, memory.own())
        kept = envelope.at_home(shared) if envelope else {}
        memory.trained(broadcast.round, {**private, **kept}, None, own)
        return shared, z, {**open_loss(client, loss), **counted(client)}
    link = memory.link.rescaled(broadcast.rho if coupling.balance else coupling.rho)
    mu, told = priced(client, memory, broadcast)
    x, private, loss, own = train(client, broadcast, private, link.anchor(z), link.rho, memory.own(), mu)
    increment, link = link.answer(x, z)
    if envelope:  # what the sum does not take stays owed
        owed = subtract(envelope.travelled(increment), double(increment))
        link = replace(link, sent=add(link.sent, owed))
    memory.trained(broadcast.round, private, link, own, mu)
    gap = {} if envelope else {"gap": norm(subtract(x, z)) ** 2}
    return increment, z, {**open_loss(client, loss), **gap, **told}


def open_broadcast(client: Client, memory: Memory, sent: Broadcast) -> Broadcast:
    """Return the server's message after the memory has followed it: a lost contribution undone, the best state kept."""
    broadcast = receive(client, sent)
    memory.settle(broadcast.seen)
    if broadcast.keep:
        memory.keep()
    return broadcast


def answer(client: Client, message: Message, values: Params, metrics: dict[str, float]) -> Message:
    """Return the client's reply."""
    return Message(
        contribution_record(Contribution(client.data.name, values, metrics, client.device)), reply_to=message
    )
