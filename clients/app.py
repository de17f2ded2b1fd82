"""The ClientApp: receive, train, reply. Its configuration decides what it shares; the server cannot ask for more."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from clients.about import about
from clients.budget import excess, priced
from clients.device import device_of
from clients.drift import begin, counted, follow, lockstep
from clients.memory import Memory
from clients.private import books, measured, open_loss, protected
from clients.secure import Envelope, answer_in_secret, parted, with_home
from fedrec.channel import Channel, Mapped, channel_of, keyed
from fedrec.coordination import Link, Own, double
from fedrec.data import ClientData
from fedrec.errors import UserError
from fedrec.evaluation import Evaluation, ModelScorer, Split, evaluate, members
from fedrec.experiment import Experiment, clients_data, tasks_for
from fedrec.models import Recommender
from fedrec.parameters import Params, add, finite, norm, subtract, to
from fedrec.personal import personal_model
from fedrec.privacy.differential import private_update
from fedrec.privacy.secret import digest
from fedrec.records import save_client
from fedrec.seeds import generator
from fedrec.sharing import Broadcast, ContractError, Contribution, admit
from fedrec.tasks import Task
from fedrec.training import Beside, local_update
from fedrec.wire import contribution_record, read_broadcast

Read = Callable[[Context], tuple[Experiment, Path | None]]


@dataclass(frozen=True)
class Client:
    """One client as its own configuration describes it."""

    experiment: Experiment
    data: ClientData
    device: str
    home: Path | None  # where it keeps its private files at the end

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of this client."""
        return tasks_for(self.experiment, self.data)

    @cached_property
    def model(self) -> Recommender:
        """The recommender of this client."""
        return self.experiment.recommender(self.data.name)

    @cached_property
    def channel(self) -> Channel:
        """What this client exchanges, and how."""
        return channel_of(self.experiment, self.data)

    @cached_property
    def setting(self) -> tuple[str, str]:
        """All that decides a round beside its inputs: noise may be made again only where nothing differs."""
        return self.experiment.model_dump_json(), self.device

    def start(self) -> Params:
        """Return its initial parameters."""
        private = self.experiment.silent  # the mean of a client's ratings is about its users
        offsets = {task.name: task.prior if private else task.offset(self.data.train) for task in self.tasks}
        return self.model.init(self.experiment.seed, self.data.users, self.data.items, offsets)

    def first(self) -> tuple[Params, Params]:
        """Return (shared, private) as it joins; whoever agrees on logits trains alone first, as in FedMD."""
        start = self.start()  # nobody knows anything yet, and standardised noise is as loud as knowledge
        return self.channel.split(self.update(start, 0, {}, 0.0)[0] if self.experiment.agreement.active else start)

    def shared_like(self) -> Params:
        """Return the names, shapes and dtypes of what it shares, without data."""
        names = [task.name for task in self.tasks]
        shapes = self.model.shapes(len(self.data.users), len(self.data.items), names)
        return self.channel.split(shapes)[0]

    def receive(self, broadcast: Broadcast) -> Broadcast:
        """Return the server's message, admitted against this client's own contract."""
        like, c = self.shared_like(), broadcast.control
        return replace(broadcast, values=admit(broadcast.values, like), control=None if c is None else admit(c, like))

    def link(self, shared: Params) -> Link | None:
        """Return the link of a client that joins with its shared parameters; None without duals."""
        return Link.start(shared, self.experiment.coupling.rho) if self.experiment.coupling.duals else None

    def train(
        self, broadcast: Broadcast, private: Params, anchor: Params, rho: float, own: Own, price: float = 0.0
    ) -> tuple[Params, Params, float, Own]:
        """Return (shared, private, loss, own) after the local training of a round; raises UserError if it diverged.

        It starts from the broadcast and minimises (1 + price) f_i + rho/2 |x_i - anchor|^2.
        """
        number = broadcast.round
        start = self.channel.join(broadcast.values, private)
        apfl, shift = lockstep(self, own), own.shift(broadcast.control)
        if self.experiment.privacy.inside:
            params, loss = self.released(start, number, anchor, rho, shift)
        else:
            params, loss = self.update(start, number, anchor, rho, apfl.step if apfl else None, shift, price)
        shared, private = self.channel.split(params)
        own = follow(self, broadcast, shared, own, apfl)
        return protected(self, number, shared, broadcast.values), private, loss, own

    def update(
        self,
        start: Params,
        number: int,
        anchor: Params,
        mu: float,
        beside: Beside | None = None,
        shift: Params | None = None,
        price: float = 0.0,
    ) -> tuple[Params, float]:
        """Return the parameters after the local training of a round, and the loss; raises UserError if it diverged."""
        e, anchor = self.experiment, to(anchor, self.device)
        pull = None
        if mu and isinstance(self.channel, Mapped):
            pull = self.channel.pull(anchor, mu, generator(e.seed, "pull", self.data.name, number))
        params, loss = local_update(
            self.model,
            to(start, self.device),
            self.data,
            self.tasks,
            replace(e.recipe(), mu=0.0 if pull else mu),
            e.sharing(),
            seed=e.seed,
            scope=(self.data.name, number),
            anchor=None if pull else anchor,
            weight=1.0 + price,
            beside=beside,
            shift=shift and to(shift, self.device),
            pull=pull,
        )
        return self.finite(to(params, "cpu"), number), loss

    def released(
        self, start: Params, number: int, anchor: Params, mu: float, shift: Params | None
    ) -> tuple[Params, float]:
        """Return what `update` does, trained with the noise that lets the shared parameters leave.

        Raises OverBudget, before any training, if the round would exceed what was promised.
        """
        e, own = self.experiment, books(self)
        assert own is not None
        source = own.open(number, digest(*self.setting, number, start, anchor, shift or {}, self.data.train))
        params, loss = private_update(
            self.model,
            to(start, self.device),
            self.data,
            self.tasks,
            replace(e.recipe(), mu=mu),
            e.sharing(),
            own.guarantee.mechanism,
            source,
            seed=e.seed,
            scope=(self.data.name, number),
            anchor=to(anchor, self.device),
            shift=shift and to(shift, self.device),
        )
        return self.finite(to(params, "cpu"), number), loss

    def finite(self, params: Params, number: int) -> Params:
        """Return the parameters; raises UserError if training diverged."""
        if not all(finite(value) for value in params.values()):
            raise UserError(
                f"lr: must be small enough for finite parameters, found {self.experiment.lr} in round {number}"
            )
        return params

    def evaluate(self, shared: Params, private: Params, split: Split) -> Evaluation:
        """Return the metrics of this client's model, or of every member's if it is a pooled one."""
        e, params = self.experiment, to(self.experiment.sharing().join(shared, private), self.device)
        found = [
            evaluate(
                ModelScorer(self.model, part),
                data,
                e.tasks(data.name),
                split,
                metrics=e.metrics,
                candidates=e.candidates,
                seed=e.seed,
            )
            for data, part in members(self.data, params)
        ]
        return Evaluation(
            {key: value for one in found for key, value in one.metrics.items()},
            tuple(part for one in found for part in one.per_user),
        )


def discreet(message: Message, context: Context, call: Callable[[Message, Context], Message]) -> Message:
    """Answer with an error instead of raising: its text tells a broken contract, but of anything else only the kind.

    An exception's text may quote private data; the traceback stays in the client's own log.
    """
    try:
        return call(message, context)
    except Exception as error:
        logging.getLogger(__name__).exception("%s failed", message.metadata.message_type)
        told = str(error) if isinstance(error, ContractError | UserError) else type(error).__name__
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
        shared, private = client.first()
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
        final, e = broadcast.split == "test", client.experiment
        private, home = parted(memory.best if final else memory.private)
        model = client.channel.join(with_home(broadcast.values, home), private)
        shared, private = e.sharing().split(personal_model(e.drift, memory.own(final), model))
        found = client.evaluate(shared, private, "test" if final else "validation")
        if final and client.home is not None:
            own = shared if e.personal else {}
            save_client(client.home, client.data.name, private, own, found.per_user, about(client, private))
        if e.privacy.active:
            measured(client, broadcast, found.metrics)
            return answer(client, message, {}, {})
        metrics = {"/".join(key): value for key, value in found.metrics.items()}
        if e.budget.active and broadcast.split == "validation":
            metrics[f"{client.data.name}/all/excess"] = excess(client, memory, broadcast.values, e.rounds)
        return answer(client, message, {}, metrics)

    return app


def trained(
    client: Client, memory: Memory, sent: Broadcast, envelope: Envelope | None = None
) -> tuple[Params, Params, dict[str, float]]:
    """Return (values, z, metrics) after a round's training: what it answers, in an envelope if that is to be summed."""
    broadcast = open_broadcast(client, memory, sent)
    private, home = parted(memory.private)
    z, coupling = with_home(broadcast.values, home), client.experiment.coupling
    broadcast = replace(broadcast, values=z)
    if not coupling.duals:
        shared, private, loss, own = client.train(broadcast, private, z, coupling.rho, memory.own())
        kept = envelope.at_home(shared) if envelope else {}
        memory.trained(broadcast.round, {**private, **kept}, None, own)
        return shared, z, {**open_loss(client, loss), **counted(client)}
    link = memory.link.rescaled(broadcast.rho if coupling.balance else coupling.rho)
    mu, told = priced(client, memory, broadcast)
    x, private, loss, own = client.train(broadcast, private, link.anchor(z), link.rho, memory.own(), mu)
    increment, link = link.answer(x, z)
    if envelope:  # what the sum does not take stays owed
        owed = subtract(envelope.travelled(increment), double(increment))
        link = replace(link, sent=add(link.sent, owed))
    memory.trained(broadcast.round, private, link, own, mu)
    gap = {} if envelope else {"gap": norm(subtract(x, z)) ** 2}
    return increment, z, {**open_loss(client, loss), **gap, **told}


def open_broadcast(client: Client, memory: Memory, sent: Broadcast) -> Broadcast:
    """Return the server's message after the memory has followed it: a lost contribution undone, the best state kept."""
    broadcast = client.receive(sent)
    memory.settle(broadcast.seen)
    if broadcast.keep:
        memory.keep()
    return broadcast


def answer(client: Client, message: Message, values: Params, metrics: dict[str, float]) -> Message:
    """Return the client's reply."""
    return Message(
        contribution_record(Contribution(client.data.name, values, metrics, client.device)), reply_to=message
    )
