"""The ClientApp: receive, train, reply. Its configuration decides what it shares; the server cannot ask for more."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from clients.client import Client
from clients.device import device_of
from clients.private import unsaid
from clients.round import evaluated, followed, join, receive, trained
from clients.secure import answer_in_secret
from clients.state import load, save
from fedrec.errors import UserError
from fedrec.experiment import Experiment
from fedrec.holdings import clients_data
from fedrec.sharing import ContractError, Contribution
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
    known: dict[int, Client] = {}  # what a client makes of its data, it makes once

    def open_client(context: Context) -> Client:
        torch.set_num_threads(1)  # sums in one order, whatever the engine
        experiment, home = read(context)
        index = int(context.node_config["partition-id"])
        device = device_of(str(context.node_config.get("device", experiment.device)), index)
        one = known.get(index)
        if one is None or (one.experiment, one.device, one.home) != (experiment, device, home):
            parts = clients_data(experiment)
            if index >= len(parts):
                raise ValueError(f"partition-id: must be below the number of clients {len(parts)}, found {index}")
            one = known[index] = Client(experiment, parts[index], device, home)
        return one

    def answer(message: Message, reply: Contribution) -> Message:
        return Message(contribution_record(reply), reply_to=message)

    @app.query("join")
    def joining(message: Message, context: Context) -> Message:
        state, reply = join(open_client(context))
        context.state.pop("secure", None)  # but not which rounds had keys: no round gets a second pair
        save(context, state)
        return answer(message, reply)

    @app.train()
    def training(message: Message, context: Context) -> Message:
        client = open_client(context)
        if client.experiment.secure.active:
            raise ContractError("secure: the answer must go into a secure sum, found a request for it as it is")
        state, reply, _ = trained(client, load(context), read_broadcast(message.content))
        save(context, state)
        return answer(message, reply)

    answer_in_secret(app, open_client, trained)

    @app.evaluate()
    def evaluation(message: Message, context: Context) -> Message:
        client = open_client(context)
        broadcast = receive(client, read_broadcast(message.content))
        state, reply = followed(load(context), broadcast), Contribution(client.data.name, {}, {}, client.device)
        with unsaid(client, broadcast):
            state, reply = evaluated(client, state, broadcast)
        save(context, state)
        return answer(message, reply)

    return app
