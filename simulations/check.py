"""Checks that an experiment can run, before anything is started or written."""

from collections.abc import Sequence
from importlib.util import find_spec
from multiprocessing import current_process

import numpy as np
from pydantic import BaseModel

from clients.device import devices
from clients.exposure import group_of, ranked
from fedrec.components import per_client, require
from fedrec.data import ClientData, Clients
from fedrec.errors import UserError, choose
from fedrec.experiment.acting import refuse
from fedrec.experiment.channel import Both, Logits, channel_of
from fedrec.experiment.config import Experiment
from fedrec.experiment.earlier import check_start
from fedrec.experiment.holdings import (
    PAIR,
    clients_data,
    dataset,
    reader,
    tasks_for,
    tasks_of_all,
    unlike,
    weights_sent,
)
from fedrec.experiment.origins import portable
from fedrec.experiment.records import natural
from fedrec.federation.coordination.clauses import EXPOSURE
from fedrec.federation.coordination.systems import span
from fedrec.files import largest
from fedrec.models.quadratic import EXACT, precision
from fedrec.params import covers
from fedrec.privacy.gradients import check_units
from fedrec.privacy.guarantee import terms
from fedrec.sharing import BYTES, MODULES
from simulations.engines.nodes import stacked
from simulations.methods import usual

MOST_ITEMS, MOST_BYTES = 15_000, 8e9  # of sums that are learnt from without being asked for
Shapes = dict[str, tuple[tuple[int, ...], str]]  # of a shared parameter, and the first client that has it


def check_sums(experiment: Experiment, named: bool = False) -> None:
    """Raise UserError if nobody asked for sums over pairs of items, and those that a client solves would be too large.

    Of a model that somebody has `named` they may be as many as the clients are. Of a catalogue of many a client solves
    for its own items alone.
    """
    if experiment.sums.active:
        return
    whole, parts = len(dataset(experiment).items), clients_data(experiment)
    apart = whole > EXACT and not weights_sent(experiment)
    items, clients = int(parts.item_counts().max()) if apart else whole, len(parts)
    size = clients * items * (3 * items + 1) // 2 * np.dtype(precision(whole)).itemsize
    if items > MOST_ITEMS or (size > MOST_BYTES and not named):
        raise UserError(f"the sums of {clients:,} clients over {items:,} items would be {size / 1e9:,.0f} GB")


def check(experiment: Experiment) -> None:
    """Raise UserError if the data, the tasks, the sharing, parts of the user's own or the device do not fit."""
    devices(experiment.device)
    if experiment.engine == "ray":
        require_ray("engine: ray")
    if experiment.engine == "process" and current_process().daemon:
        raise UserError("engine: process needs a process that may start others, found a daemon; take inline or batched")
    told_whole(experiment, Experiment)
    for field, text in experiment.own_parts:
        portable(field, text, experiment.engine)
        require(field, text)
    if experiment.codec.active:
        experiment.codec.check()
    refuse(experiment, usual(experiment))
    check_start(experiment)
    parts = clients_data(experiment)
    check_names(experiment, parts)
    for name in experiment.privacy.budgets.keys() - {""}:
        choose("privacy.epsilon", name, parts.names)
    check_tasks(experiment, parts)
    shapes: Shapes = {}
    names = [name for data in unlike(experiment, parts) for name in agree(experiment, data, shapes)]
    experiment.sharing().check(names)
    for module, _ in experiment.recipe().optimiser.lrs:
        if not any(covers((module,), name) for name in names):
            choose("lrs", module, MODULES)
    if told_apart(experiment, parts):
        raise UserError(
            "sums.kind: must be dense of two clients: a total tells the other's sums (or add --reveal), found subspace"
        )
    if experiment.quadratic.repeats is not None and weights_sent(experiment):
        raise UserError(
            "quadratic.repeats: must be left out where the server solves for weights, of coupled clients, under a "
            f"budget or of two (or add --reveal), found {experiment.quadratic.repeats:g}"
        )
    check_message(experiment)
    stacked(experiment)
    present = cohort(experiment, list(parts.names))
    clients = sorted(present, key=lambda name: (natural(name), name))
    if experiment.weighs:
        span(experiment.coupling.exact(clients), len(clients))
        check_room(len(clients), len(dataset(experiment).items))
    else:
        experiment.coupling.operator(clients)
    experiment.turnout.check(clients, experiment.rounds)
    if experiment.secure.active:
        check_secure(experiment, clients)
    experiment.asynchrony.check(len(clients))
    experiment.robust.check(experiment.asynchrony.buffer or len(experiment.turnout.drawn(clients, 1)))


def check_room(clients: int, items: int) -> None:
    """Raise UserError if the server cannot hold every client's sums, and what it makes of them."""
    size = 8 * 6 * clients * items**2
    if size > largest():
        raise UserError(
            f"coupling: must be of clients whose sums, [{items}, {items}] of each, fit into {largest():,} bytes with "
            f"what is made of them, found {size:,} of {clients} clients (the total alone takes --coupling.kind mean)"
        )


def told_whole(value: BaseModel, kind: type[BaseModel], field: str = "experiment") -> None:
    """Raise UserError for a value that its record does not tell: one of a subclass, whose code another would not run.

    A worker process, and whoever repeats the run, has the record alone.
    """
    if type(value) is not kind:
        raise UserError(
            f"{field}: must be of the class {kind.__name__} itself, since its record says nothing of another, found "
            f"{type(value).__qualname__}; give a part of your own by path, as in docs/extending.md"
        )
    for name, info in kind.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            told_whole(getattr(value, name), info.annotation, name)


def require_ray(thing: str) -> None:
    """Raise UserError if Ray, on which Flower's simulation runtime runs, is not installed."""
    if find_spec("ray") is None:
        raise UserError(f"{thing} needs the package ray, found none installed; install fedrec with the extra [ray]")


def cohort(experiment: Experiment, clients: list[str]) -> list[str]:
    """Return the clients that are no newcomers; raises UserError if there are none, or a newcomer is no client."""
    for name in experiment.arrivals:
        choose("newcomers", name, clients)
    present = [name for name in clients if name not in experiment.arrivals]
    if not present:
        raise UserError(f"newcomers: must leave a client for them to join, found all {len(clients)}")
    return present


def check_secure(experiment: Experiment, clients: list[str]) -> None:
    """Raise UserError if the terms of a secure sum cannot hold, or the dropouts take a round below its threshold.

    In a subspace clients must have one catalogue, so that all of them carry every row.
    """
    agreed = terms(experiment)
    if experiment.by_sums and experiment.sums.active:
        parts = clients_data(experiment)
        least, every = int(parts.item_counts().min()), len(parts.catalogue())
        if least < every:
            raise UserError(
                "sums.kind: must be dense of clients with other catalogues under secure sums, where an item that few "
                f"carry tells of them, found subspace of {every} items, of which one has {least}"
            )
    if experiment.dropout == "0":
        return
    for number in range(1, experiment.rounds + 1):
        asked, lost = experiment.turnout.drawn(clients, number), experiment.turnout.lost(clients, number)
        left = sum(name not in lost for name in asked)
        if left < agreed.threshold:
            raise UserError(
                f"dropout: must leave the secure sums {agreed.threshold} of the {len(asked)} clients of every round, "
                f"found {left} in round {number}"
            )


def check_message(experiment: Experiment) -> None:
    """Raise UserError if no message could hold the sums over pairs of items that a client sends."""
    e, whole = experiment, len(dataset(experiment).items)
    items = int(clients_data(e).item_counts().max()) if whole > EXACT and not e.secure.active else whole
    size = items * (3 * items + 1) // 2 * np.dtype(precision(whole)).itemsize
    if e.adds_up and e.share and not (e.pool or e.sums.active or e.privacy.summed) and size > BYTES:
        raise UserError(
            f"sums.kind: must be subspace of {items:,} items, whose sums over pairs are {size / 1e9:,.1f} GB of a "
            f"client, with at most {BYTES / 1e9:,.1f} in a message, found dense"
        )


def told_apart(e: Experiment, parts: Sequence[ClientData]) -> bool:
    """Return whether a total in a subspace would tell each of two clients the other's sums, which it may not."""
    return e.adds_up and e.sums.active and bool(e.share) and not e.reveal and len(parts) == PAIR


def check_names(experiment: Experiment, parts: Clients) -> None:
    """Raise UserError if a client is named that is not there."""
    members = parts[0].members
    known = set(members.names if isinstance(members, Clients) else parts.names)
    for text in (experiment.task, experiment.model, str(experiment.dim)):
        for client in per_client(text).keys() - {"*"}:
            if client not in known:
                raise UserError(f"client {client!r}: must be one of {', '.join(sorted(known)[:20])}, found in {text!r}")


def check_tasks(experiment: Experiment, parts: Clients) -> None:
    """Raise UserError if a client does not have the label of its task, or nobody has a training row for a task."""
    own = any(task.part for task in tasks_of_all(experiment, parts))
    for data in parts if own else unlike(experiment, parts):
        for task in tasks_for(experiment, data):
            if task.attribute:
                task.usual(data.attributes)
            target = task.target(data.train, data.attributes)
            if task.part:
                task.measured(np.zeros(len(target[:2]), np.float32), target[:2])
        if experiment.privacy.inside:
            check_units(reader(experiment, data, "train"), tasks_for(experiment, data))
        if EXPOSURE in experiment.coupling.priced:
            ranked(tasks_for(experiment, data), data)
            group_of(experiment, data)
        agreed = experiment.agreement.task
        if experiment.agreement.active and agreed not in [task.name for task in tasks_for(experiment, data)]:
            raise UserError(f"agreement.task: every client must have the task {agreed}, found none in {data.name}")
    missing = {task.name: None for task in tasks_of_all(experiment, parts)}
    for data in parts:
        for task in tasks_for(experiment, data):
            if task.name in missing and task.rows(data.train, data.attributes).any():
                del missing[task.name]
        if not missing:
            return
    raise UserError(f"task {next(iter(missing))}: a client that has it must have a training row for it, found none")


def agree(experiment: Experiment, data: ClientData, shapes: Shapes) -> list[str]:
    """Return the names of a client's parameters; raises UserError if one that it shares has another shape elsewhere.

    `shapes` gathers the shape of every shared parameter.
    """
    tasks = [task.name for task in tasks_for(experiment, data)]
    like = reader(experiment, data, "train").shapes(1, 1, tasks)
    channel = channel_of(experiment, data)
    if isinstance(channel, Logits):
        return list(like)
    sharing = channel.sharing if isinstance(channel, Both) else channel
    for name, value in sharing.split(like)[0].items():
        shape, other = shapes.setdefault(name, (tuple(value.shape), data.name))
        if shape != tuple(value.shape):
            raise UserError(
                f"share: {name} must have one shape to be shared, found {list(value.shape)} in {data.name} "
                f"and {list(shape)} in {other}; give them one model, or share less, or add --method agreement"
            )
    return list(like)


def client_count(experiment: Experiment) -> int:
    """Return the number of Flower clients."""
    return len(clients_data(experiment))
