"""A client's round as functions of its state: what it begins with, what its training makes, and how it ends.

`begin` and `finish` are of one client. Between them its training runs alone (`clients.training`), or as a part of a
program that trains many (`clients.cohort`).
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from clients.about import about
from clients.budget import excess, priced
from clients.client import Client
from clients.heads import choose_head
from clients.home import parted, with_home
from clients.newcomer import fit_message, lesson
from clients.priced import judged, tell, third
from clients.private import measured, open_loss, protected, unsaid
from clients.promise import excess_of_weights
from clients.secure import Envelope
from clients.state import Kept, State
from clients.training import Made, Start, train
from fedrec.data import ClientData
from fedrec.evaluation.evaluate import Evaluation, Split, blocks, evaluate_all, held_out, members
from fedrec.evaluation.scorers import ModelScorer
from fedrec.experiment.folding import fold_in
from fedrec.experiment.holdings import keys, reader
from fedrec.experiment.kept import Keeping, Shelf, keep
from fedrec.federation.codecs import Scope
from fedrec.federation.coordination import Link, Own, control_change, double
from fedrec.federation.personal import personal_model
from fedrec.params import Params, add, norm, subtract, to
from fedrec.privacy.guarantee import steps_of
from fedrec.sharing import Broadcast, ContractError, Contribution, admit, admit_round
from fedrec.training.losses import steps

ITEMS = 2**20  # of members that are measured together: each has its rows of the tables


def receive(client: Client, broadcast: Broadcast) -> Broadcast:
    """Return the server's message, admitted against this client's own contract."""
    admit_round(broadcast.round, client.experiment.rounds)
    if client.newcomer:
        return fit_message(client, broadcast)
    if broadcast.rows:
        raise ContractError(f"record rows: must not be sent but to newcomers, found {', '.join(broadcast.rows)}")
    if client.experiment.coupling.balance and not 0 < broadcast.rho < math.inf:
        raise ContractError(f"rho: must be above 0 and finite where it adapts, found {broadcast.rho}")
    like, c = client.received_like, broadcast.control
    values = admit(broadcast.values, like)
    targets = {block: values.pop(block) for block in client.experiment.coupling.priced}
    return replace(broadcast, values=values, targets=targets, control=None if c is None else admit(c, like))


def followed(state: State, broadcast: Broadcast) -> State:
    """Return the state after it has followed the server: a lost contribution undone, the best round kept."""
    state = state.settled(broadcast.seen)
    return state._replace(kept=state.now) if broadcast.keep else state


def begin(client: Client, state: State, broadcast: Broadcast) -> tuple[State, Start]:
    """Return the state and the start of a round's training, for a message that was received and followed."""
    (_, private, link, own, _), coupling = state.now, client.experiment.coupling
    z = with_home(broadcast.values, private)
    shift, rho, anchor = own.shift(broadcast.control), coupling.rho, z
    if link is None:
        return state, Start(broadcast, z, private, own, link, rho, anchor, shift)
    link = link.rescale(broadcast.rho if coupling.balance else rho)
    state, mu, told = priced(client, state, broadcast)
    if coupling.priced:
        state, of_losses = tell(client, state, z, broadcast.targets, link)
        sent, mu, term = of_losses
        return state, Start(broadcast, z, private, own, link, link.rho, link.anchor(z), shift, mu, told, sent, term)
    return state, Start(broadcast, z, private, own, link, link.rho, link.anchor(z), shift, mu, told)


def finish(
    client: Client, state: State, start: Start, made: Made, envelope: Envelope | None = None
) -> tuple[State, Contribution]:
    """Return the state after a round and what the client answers, in an envelope if that is to be summed in secret.

    Without an x in what was `made` it is part of a sum, and its metrics are the answer.
    """
    number, metrics, values = start.sent.round, open_loss(client, made.loss), Params()
    own, private, link = made.own, made.private, start.link
    if made.x is not None:
        x = arrived = protected(client, number, dict(made.x), start.z)
        if link is None:
            values = x
            private = {**private, **(envelope.at_home(x) if envelope else {})}
            if envelope and client.experiment.codec.active:
                values, memory = envelope.owe(subtract(x, start.z), dict(own.memory or {}))
                own = replace(own, memory=memory if client.experiment.codec.feedback else None)
        else:
            x, z = {**x, **start.priced}, {**start.z, **start.sent.targets}
            values, link = link.answer(x, z)
            if envelope:  # what the sum does not take stays owed
                owed = subtract(envelope.travelled(values), double(values))
                link = replace(link, sent=add(link.sent, owed))
            else:
                metrics["gap"] = norm(subtract(x, z)) ** 2
        if client.experiment.codec.active and not envelope:
            values, own, link = encoded(client, number, values, start.z, own, link)
            if own.control is not None:
                arrived = client.experiment.codec.read(values, start.z, start.z, False, scope_of(client, number))
        own = after(client, start, made.x, arrived, own)
    metrics |= start.told if link else counted(client)
    reply = Contribution(client.data.name, values, metrics, client.device)
    return state.trained(Kept(number, private, link, own, start.mu)), reply


def encoded(
    client: Client, number: int, values: Params, z: Params, own: Own, link: Link | None
) -> tuple[Params, Own, Link | None]:
    """Return the payload of what a client answers in a round, and what it remembers of it.

    Under duals the tie itself owes what the payload loses of an increment, and the codec remembers nothing.
    """
    codec, scope = client.experiment.codec, scope_of(client, number)
    if link is None:
        payload, memory = codec.encode(subtract(values, z), dict(own.memory or {}), scope)
        return payload, replace(own, memory=memory or None), None
    payload, _ = codec.encode(values, {}, scope)
    lost = subtract(double(values), double(codec.decode(payload, values, scope)))
    return payload, own, replace(link, sent=subtract(link.sent, lost))


def scope_of(client: Client, number: int) -> Scope:
    """Return what a client's codec draws from in a round."""
    return Scope(client.experiment.seed, client.data.name, number)


def after(client: Client, start: Start, x: Mapping[str, Tensor], arrived: Params, own: Own) -> Own:
    """Return what is a client's own after training to `x`: x itself if it is tuned, and under SCAFFOLD c_i+.

    That the server makes too, of what has `arrived`.
    """
    if own.control is not None and start.sent.control is not None:
        count = counted(client)["steps"]
        change = control_change(start.sent.control, start.z, arrived, count, client.experiment.lr)
        own = replace(own, control=add(own.control, change))
    return replace(own, personal=x) if client.experiment.drift.personal == "tuned" else own


def counted(client: Client) -> dict[str, float]:
    """Return the metric that tells the server the number of local steps, if the method needs it."""
    e = client.experiment
    if not e.drift.counted:
        return {}
    if e.privacy.inside:  # the number of interactions is nobody's business
        return {"steps": float(steps_of(e, client.data))}
    return {"steps": float(steps(client.data, client.tasks, client.recipe))}


def trained(
    client: Client, state: State, sent: Broadcast, envelope: Envelope | None = None
) -> tuple[State, Contribution, Params]:
    """Return the state after a round's training, what the client answers, and the z that it started from."""
    broadcast = receive(client, sent)
    state = followed(state, broadcast)
    if client.newcomer:
        kept, loss = lesson(client, state.now, broadcast)
        return state.trained(kept), Contribution(client.data.name, {}, {"loss": loss}, client.device), {}
    state, start = begin(client, state, broadcast)
    state, reply = finish(client, state, start, train(client, start), envelope)
    return state, reply, start.z


def evaluated(client: Client, state: State, sent: Broadcast, shelf: Shelf | None = None) -> tuple[State, Contribution]:
    """Return the state after an evaluation, and what a client tells of it; see `unsaid` and `assess`."""
    broadcast = receive(client, sent)
    state, reply = followed(state, broadcast), Contribution(client.data.name, {}, {}, client.device)
    with unsaid(client, broadcast):
        result = None
        if broadcast.split == "validation":
            state, result = choose_head(client, state, broadcast)
        state, reply = told(client, state, broadcast, result or assess(client, state, broadcast, shelf))
    return state, reply


def assess(client: Client, state: State, broadcast: Broadcast, shelf: Shelf | None = None) -> Evaluation:
    """Return how a client measures a message that was received and followed.

    After the final test it keeps what is its own, on the `shelf` of its node if that has one.
    """
    final, e = broadcast.split == "test", client.experiment
    best = state.best if final else state.now
    private, home = parted(best.private)
    model = client.channel.join(with_home(broadcast.values, home), private)
    shared, private = e.sharing().split(personal_model(e.drift, best.own, model))
    result = measure(client, shared, private, "test" if final else "validation")
    if final and client.home is not None:
        copies = shared if e.personal or client.newcomer else {}
        kept = Keeping(client.data.name, private, copies, about(client, private), result.per_user)
        if shelf is None:
            keep(client.home, [kept], keys(e))
        else:
            shelf.append(kept)
    return result


def told(client: Client, state: State, broadcast: Broadcast, result: Evaluation) -> tuple[State, Contribution]:
    """Return the state, and what a client tells of its evaluation; under a promise of privacy nothing."""
    metrics = {"/".join(key): value for key, value in result.metrics.items()}
    if client.experiment.privacy.active:
        measured(client, broadcast, result.metrics)
        metrics = {}
    elif client.experiment.budget.active and broadcast.split == "validation":
        if client.experiment.by_sums:
            over = excess_of_weights(client, broadcast.values)
        else:
            state, over = excess(client, state, broadcast.values, client.experiment.rounds)
        metrics[f"{client.data.name}/all/excess"] = over
    elif client.experiment.coupling.priced and broadcast.split == "validation":
        state, found = judged(client, state, broadcast.values)
        metrics |= {f"{client.data.name}/all/{block}": value for block, value in found.items()}
    return state, Contribution(client.data.name, {}, metrics, client.device)


def selected(client: Client, split: Split) -> ClientData:
    """Return a client's data with what it measures a split on: of tied losses a third of the validation rows."""
    e = client.experiment
    if split == "test" or not e.coupling.losses or e.coupling.judged == "training":
        return client.data
    return third(client.data, e.seed, "selects")


def measure(client: Client, shared: Params, private: Params, split: Split) -> Evaluation:
    """Return the metrics of this client's model, or of every member's if it is a pooled one."""
    e, params = client.experiment, to(client.experiment.sharing().join(shared, private), client.device)
    results, whole = list[Evaluation](), selected(client, split)
    for block in blocks(members(whole, params), lambda member: len(member[0].items), ITEMS):
        scorers = [
            ModelScorer(reader(e, data, split), fold_in(e, part, data, split, held_out(data, split).user))
            for data, part in block
        ]
        results += evaluate_all(
            scorers.__getitem__,
            [data for data, _ in block],
            [e.tasks(data.name) for data, _ in block],
            split,
            metrics=e.metrics,
            candidates=e.candidates,
            seed=e.seed,
        )
    return Evaluation(
        {key: value for result in results for key, value in result.metrics.items()},
        tuple(part for result in results for part in result.per_user),
    )
