"""A client's round: what it joins with, what it takes of the server's message, trains, and measures."""

import math
from dataclasses import replace

from clients.client import Client
from clients.drift import follow
from clients.local import released, require_finite, update
from clients.newcomer import fitted
from clients.private import protected
from fedrec.coordination import Own
from fedrec.evaluation import Evaluation, Split, evaluate, held_out, members
from fedrec.folding import folded
from fedrec.holdings import reader
from fedrec.parameters import Params, to
from fedrec.scorers import ModelScorer
from fedrec.sharing import Broadcast, ContractError, admit, admit_round


def first(client: Client) -> tuple[Params, Params]:
    """Return (shared, private) as it joins; whoever agrees on logits trains alone first, as in FedMD."""
    start = client.start()  # nobody knows anything yet, and standardised noise is as loud as knowledge
    if client.newcomer or not client.experiment.agreement.active:
        return client.channel.split(start)
    return client.channel.split(update(client, start, 0, {}, 0.0, weigher=client.weigher()).params)


def receive(client: Client, broadcast: Broadcast) -> Broadcast:
    """Return the server's message, admitted against this client's own contract."""
    admit_round(broadcast.round, client.experiment.rounds)
    if client.newcomer:
        return fitted(client, broadcast)
    if broadcast.rows:
        raise ContractError(f"record rows: must not be sent but to newcomers, found {', '.join(broadcast.rows)}")
    if client.experiment.coupling.balance and not 0 < broadcast.rho < math.inf:
        raise ContractError(f"rho: must be above 0 and finite where it adapts, found {broadcast.rho}")
    like, c = client.shared_like(), broadcast.control
    return replace(broadcast, values=admit(broadcast.values, like), control=None if c is None else admit(c, like))


def train(
    client: Client, broadcast: Broadcast, private: Params, anchor: Params, rho: float, own: Own, price: float = 0.0
) -> tuple[Params, Params, float, Own]:
    """Return (shared, private, loss, own) after the local training of a round; raises UserError if it diverged.

    It starts from the broadcast and minimises (1 + price) f_i + rho/2 |x_i - anchor|^2.
    """
    number = broadcast.round
    start = client.channel.join(broadcast.values, private)
    shift, weigher, v = own.shift(broadcast.control), client.weigher(own.weighting), Params()
    if client.experiment.privacy.inside:
        params, loss = released(client, start, number, anchor, rho, shift)
    else:
        personal = own.personal if client.experiment.drift.personal == "apfl" else None
        params, loss, v = update(client, start, number, anchor, rho, shift, price, weigher, personal)
    if weigher:
        own = replace(own, weighting=require_finite(client, weigher.state, number, own.weighting) or None)
    shared, private = client.channel.split(client.experiment.lora.folded(params))
    own = follow(client, broadcast, shared, own, v)
    return protected(client, number, shared, broadcast.values), private, loss, own


def measure(client: Client, shared: Params, private: Params, split: Split) -> Evaluation:
    """Return the metrics of this client's model, or of every member's if it is a pooled one."""
    e, params = client.experiment, to(client.experiment.sharing().join(shared, private), client.device)
    found = [
        evaluate(
            ModelScorer(reader(e, data, split), folded(e, part, data, split, held_out(data, split).user)),
            data,
            e.tasks(data.name),
            split,
            metrics=e.metrics,
            candidates=e.candidates,
            seed=e.seed,
        )
        for data, part in members(client.data, params)
    ]
    return Evaluation(
        {key: value for one in found for key, value in one.metrics.items()},
        tuple(part for one in found for part in one.per_user),
    )
