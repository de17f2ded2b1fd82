"""What a client trains in a round: its model, with or without the noise that lets it leave, and what is its own."""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from secrets import token_hex
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from clients.client import Client
from clients.home import parted
from clients.noisy import noisy_sums
from clients.priced import lagrangian
from clients.private import books
from clients.sweeps import met, swept
from fedrec.errors import UserError
from fedrec.experiment.channel import Both, Mapped, without_logits
from fedrec.experiment.earlier import past_sums
from fedrec.federation.coordination import Link, Own
from fedrec.keyed import nothing_like
from fedrec.models import FactorRecommender, NoisyRecommender, SummedRecommender, UserFactorRecommender
from fedrec.params import Params, finite, subtract, to
from fedrec.privacy.differential import private_update
from fedrec.privacy.secret import digest
from fedrec.rng import generator
from fedrec.sharing import Broadcast
from fedrec.training.cohort import Cohort
from fedrec.training.local import Trained, update_one
from fedrec.training.recipe import Term
from fedrec.training.results import stack
from fedrec.training.stacks import NOTHING, Terms
from fedrec.training.weighting import Weigher

COPY = "copy."  # before the names of the weights of a second model's losses


class Start(NamedTuple):
    """Where the training of a round starts, and what it minimises: (1 + mu) f_i + rho/2 |x_i - anchor|^2."""

    sent: Broadcast
    z: Params  # what was sent, with what the client keeps of it at home
    private: Mapping[str, Tensor]
    own: Own
    link: Link | None
    rho: float
    anchor: Params
    shift: Params | None  # added to the gradients
    mu: float = 0.0
    told: Mapping[str, float] = MappingProxyType({})
    priced: Mapping[str, Tensor] = MappingProxyType({})  # what is sent of losses that are tied
    term: Term | None = None  # of what else is tied, beside the loss


class Made(NamedTuple):
    """What the training of a round made of a client."""

    loss: float
    private: Mapping[str, Tensor]
    own: Own
    x: Mapping[str, Tensor] | None = None  # its shared parameters, where they are asked for


def train(client: Client, start: Start) -> Made:
    """Return what a client makes of a round by itself; raises UserError if it diverged."""
    e, own, number = client.experiment, start.own, start.sent.round
    if isinstance(client.model, NoisyRecommender):
        return Made(math.nan, parted(start.private)[0], own, noisy_sums(client, client.model, start.sent))
    if isinstance(client.model, UserFactorRecommender):
        loss, kept, x = met(client, client.model, start.anchor, start.rho, parted(start.private)[0])
        return Made(loss, kept, own, x)
    if isinstance(client.model, FactorRecommender):
        kept, told = swept(client, client.model, start.z, parted(start.private)[0], start.sent.seen)
        return Made(math.nan, kept, own, told)
    if isinstance(client.model, SummedRecommender):
        kept = client.model.own() if client.experiment.pool else {}  # its members have less than it learns from
        return Made(math.nan, {**parted(start.private)[0], **kept}, own, owed(client, start, client.model))
    before = client.channel.join(start.z, parted(start.private)[0])
    first, copy = weightings(own)
    weigher, second = client.weigher(first), client.weigher(copy) if e.drift.second else None
    if e.privacy.inside:
        params, loss = train_privately(client, before, start)
        if e.drift.second:  # Ditto's copy, of which w knows nothing, nor it of w
            anchor = Terms(stack([to(start.z, client.device)]))
            own = replace(own, personal=update(client, dict(own.personal or {}), number, anchor, e.drift.pull).params)
    else:
        rows = lagrangian(client, start.mu) if e.coupling.losses else None
        params, loss, v = update(client, before, number, terms(client, start, weigher, second), start.rho, rows)
        own = replace(own, personal=require_finite(client, v, number, own.personal)) if v else own
    x, private = client.channel.split(e.lora.folded(params))
    if weigher:
        state = weigher.state | {f"{COPY}{name}": value for name, value in (second.state if second else {}).items()}
        own = replace(own, weighting=require_finite(client, state, number, start.own.weighting) or None)
    return Made(loss, private, own, x)


def owed(client: Client, start: Start, model: SummedRecommender) -> Params:
    """Return the sums of a client that the server lacks, zero where it has taken them already.

    Of a run that is gone on from the server has what it took then, and lacks the difference.

    Nothing of what it keeps changes: of data that are as they were the sums are too.
    """
    e, seen = client.experiment, start.sent.seen
    nobody = nothing_like(client.shared_like)
    own = {**nobody, **model.owed(start.z, start.sent.round, seen)} if e.share else nobody
    return subtract(own, past_sums(e, client.data.name)) if e.start and not seen else own


def weightings(own: Own) -> tuple[Params, Params]:
    """Return the state of the weights of the tasks' losses in a client's model, and in the second that it trains."""
    copies = {name for name in own.weighting or {} if name.startswith(COPY)}
    weights = (own.weighting or {}).items()
    first = {name: value for name, value in weights if name not in copies}
    return first, {name.removeprefix(COPY): value for name, value in weights if name in copies}


def terms(client: Client, start: Start, weigher: Weigher | None, second: Weigher | None) -> Terms:
    """Return what a client minimises beside its loss."""
    e, device, pull = client.experiment, client.device, None
    personal = start.own.personal if e.drift.second else None
    if start.rho and isinstance(client.channel, Mapped):
        rng = generator(e.seed, "pull", client.data.name, start.sent.round)
        pull = client.channel.pull(to(start.anchor, device), start.rho, rng)
    pull = start.term if pull is None else pull
    return Terms(
        stack([to(proximal(client, start), device)]) if start.rho and proximal(client, start) else None,
        stack([to(start.shift, device)]) if start.shift else None,
        torch.tensor([1.0 + start.mu]) if start.mu else None,
        stack([to(personal, device)]) if personal else None,
        e.drift.shares(personal or ()),
        e.drift.pull,
        stack([to(start.z, device)]) if e.drift.pull else None,
        pull,
        weigher,
        second,
        bool(e.coupling.losses),
    )


def proximal(client: Client, start: Start) -> Params:
    """Return what the proximal term pulls shared parameters to: none of a client that exchanges a map of them."""
    if isinstance(client.channel, Both):
        return without_logits(start.anchor)
    return {} if isinstance(client.channel, Mapped) else start.anchor


def train_alone(client: Client, start: Params) -> Params:
    """Return what a client that nothing ties makes of its start in a first round."""
    return update(client, start, 0, Terms(weigher=client.weigher())).params


def update(
    client: Client,
    before: Params,
    number: int,
    terms: Terms = NOTHING,
    mu: float = 0.0,
    rows: Cohort | None = None,
) -> Trained:
    """Return what the local training of a round makes of parameters, on its own `rows` or others; raises UserError."""
    e, recipe = client.experiment, replace(client.recipe, mu=mu if terms.anchor else 0.0)
    scope = (client.data.name, number)
    fit = update_one(
        rows or client.cohort, to(before, client.device), recipe, e.sharing(), seed=e.seed, scope=scope, terms=terms
    )
    params = require_finite(client, to(fit.params, "cpu"), number, before)
    return Trained(params, fit.loss, to(fit.personal, "cpu"))


def train_privately(client: Client, before: Params, start: Start) -> tuple[Params, float]:
    """Return what `update` makes, trained with the noise that lets the shared parameters leave.

    Raises OverBudget, before any training, if the round would exceed what was promised.
    """
    e, ledger = client.experiment, books(client)
    assert ledger is not None
    number, mu, shift = start.sent.round, start.rho, start.shift
    data = (client.data.train, client.data.validation, client.data.test)
    # An accelerator never sums twice alike: what it makes again is another answer, and has noise of its own.
    again = "" if client.device == "cpu" else token_hex()
    side = [client.told] if client.told else []
    inputs = digest(*client.setting, again, number, before, start.anchor, f"{mu!r}", shift or {}, *data, *side)
    source = ledger.open(number, inputs)
    params, loss = private_update(
        client.model,
        to(before, client.device),
        client.data,
        client.tasks,
        replace(client.recipe, mu=mu),
        e.sharing(),
        ledger.guarantee.mechanism,
        source,
        seed=e.seed,
        scope=(client.data.name, number),
        anchor=to(start.anchor, client.device),
        shift=shift and to(shift, client.device),
    )
    params = to(params, "cpu")
    released = ledger.guarantee.mechanism.noisy(list(params), e.sharing())
    kept = require_finite(client, {n: v for n, v in params.items() if n not in released}, number, before)
    return {**params, **kept, **require_finite(client, {n: params[n] for n in released}, number)}, loss


def require_finite(client: Client, params: Params, number: int, before: Mapping[str, Tensor] | None = None) -> Params:
    """Return the parameters; raises UserError if training diverged.

    Where the client adds the noise, a refusal would tell of its data without any: of what is made of them without
    noise, that which diverged is as `before`, and only its own log says so.
    """
    lost = [name for name, value in params.items() if not finite(value)]
    text = f"lr: must be small enough for finite parameters, found {client.experiment.lr} in round {number}"
    if lost and (before is None or not client.noisy):
        raise UserError(text)
    if lost:
        logging.getLogger(__name__).warning("%s: %s is as before", text, ", ".join(lost))
    return {name: before[name] if before and name in lost else value for name, value in params.items()}
