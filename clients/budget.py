"""A client's loss budget: what it is promised, by how much it is missed, and the price of keeping it."""

import math
from typing import Protocol

from clients.client import Client
from fedrec.parameters import Params, to
from fedrec.sharing import Broadcast, Sharing
from fedrec.training.local import held_out_loss, local_update


class Remembers(Protocol):
    """What a budget needs of a client's memory."""

    @property
    def private(self) -> Params:
        """The private parameters as the last training left them."""
        ...

    @property
    def mu(self) -> float:
        """The multiplier of the client's budget."""
        ...

    limits: list[float]


def priced(client: Client, memory: Remembers, broadcast: Broadcast) -> tuple[float, dict[str, float]]:
    """Return the multiplier mu_i for a round's training and what is told of it; 0 and nothing without a budget."""
    rule = client.experiment.budget
    if not rule.active:
        return 0.0, {}
    # Round 1 starts from parameters that nobody has trained: there is no loss to be judged yet.
    over = excess(client, memory, broadcast.values, broadcast.round - 1) if broadcast.round > 1 else math.nan
    mu = 0.0 if math.isnan(over) else rule.multiplier(memory.mu, over)
    return mu, {"excess": over, "mu": mu}


def excess(client: Client, memory: Remembers, z: Params, number: int) -> float:
    """Return by how much the held-out loss at z_i is above the budget of a round; NaN without a budget."""
    limits = memory.limits
    if not limits:
        rule, name = client.experiment.budget, client.data.name
        needed = rule.margin is not None and rule.given(name) is None
        limits = memory.limits = rule.budgets(name, alone(client) if needed else [math.inf])
    limit = limits[min(number, len(limits)) - 1]
    if math.isinf(limit):
        return math.nan
    params = client.channel.join(to(z, client.device), to(memory.private, client.device))
    return held_out(client, params) - limit


def alone(client: Client) -> list[float]:
    """Return the lowest held-out loss that a client has reached after each round of training alone."""
    e, params, found = client.experiment, to(client.start(), client.device), [math.inf]
    weigher = client.weigher()
    for number in range(1, e.rounds + 1):
        scope = (client.data.name, "alone", number)
        params, _ = local_update(
            client.model,
            params,
            client.data,
            client.tasks,
            e.recipe(),
            Sharing(()),
            seed=e.seed,
            scope=scope,
            weigher=weigher,
        )
        found.append(min(found[-1], held_out(client, params)))
    return found[1:]


def held_out(client: Client, params: Params) -> float:
    """Return the loss of a client's validation rows."""
    e = client.experiment
    return held_out_loss(client.model, params, client.data, client.tasks, e.recipe(), seed=e.seed)
