"""What a client trains in a round: its model, with or without the noise that lets it leave."""

import logging
from dataclasses import replace
from secrets import token_hex

import torch

from clients.client import Client
from clients.private import books
from fedrec.channel import Mapped, whatever_the_batch
from fedrec.errors import UserError
from fedrec.parameters import Params, finite, to
from fedrec.privacy.differential import private_update
from fedrec.privacy.secret import digest
from fedrec.seeds import generator
from fedrec.training.local import Trained, update_one
from fedrec.training.results import stack
from fedrec.training.stacks import Terms
from fedrec.weighting import Weigher


def update(
    client: Client,
    start: Params,
    number: int,
    anchor: Params,
    mu: float,
    shift: Params | None = None,
    price: float = 0.0,
    weigher: Weigher | None = None,
    personal: Params | None = None,
) -> Trained:
    """Return what a client makes of the local training of a round; raises UserError if it diverged.

    `personal` is what it trains in lockstep.
    """
    e, start = client.experiment, to(start, client.device)
    pull, here = None, {name: start[name] if value is start.get(name) else value for name, value in anchor.items()}
    if mu and isinstance(client.channel, Mapped):
        tie = client.channel.pull(to(anchor, client.device), mu, generator(e.seed, "pull", client.data.name, number))
        pull = whatever_the_batch(tie)
    terms = Terms(
        stack([to(here, client.device)]) if anchor and mu and not pull else None,
        stack([to(shift, client.device)]) if shift else None,
        torch.tensor([1.0 + price]) if price else None,
        stack([to(personal, client.device)]) if personal else None,
        e.drift.weight,
        pull,
        weigher,
    )
    scope, recipe = (client.data.name, number), replace(e.recipe(), mu=0.0 if pull else mu)
    one = update_one(client.cohort, start, recipe, e.sharing(), seed=e.seed, scope=scope, terms=terms)
    v = require_finite(client, to(one.personal, "cpu"), number, personal)
    return Trained(require_finite(client, to(one.params, "cpu"), number, start), one.loss, v)


def released(
    client: Client, start: Params, number: int, anchor: Params, mu: float, shift: Params | None
) -> tuple[Params, float]:
    """Return what `update` does, trained with the noise that lets the shared parameters leave.

    Raises OverBudget, before any training, if the round would exceed what was promised.
    """
    e, own = client.experiment, books(client)
    assert own is not None
    data = (client.data.train, client.data.validation, client.data.test)
    # An accelerator never sums twice alike: what it makes again is another answer, and has noise of its own.
    again = "" if client.device == "cpu" else token_hex()
    told = [client.told] if client.told else []
    inputs = digest(*client.setting, again, number, start, anchor, f"{mu!r}", shift or {}, *data, *told)
    source = own.open(number, inputs)
    params, loss = private_update(
        client.model,
        to(start, client.device),
        client.data,
        client.tasks,
        replace(e.recipe(), mu=mu),
        e.sharing(),
        own.guarantee.mechanism,
        source,
        seed=e.seed,
        scope=(client.data.name, number),
        anchor=to(anchor, client.device),
        shift=shift and to(shift, client.device),
    )
    params = to(params, "cpu")
    released = own.guarantee.mechanism.noisy(list(params), e.sharing())
    kept = require_finite(client, {n: v for n, v in params.items() if n not in released}, number, start)
    return {**params, **kept, **require_finite(client, {n: params[n] for n in released}, number)}, loss


def require_finite(client: Client, params: Params, number: int, before: Params | None = None) -> Params:
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
