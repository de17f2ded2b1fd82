"""A client's loss budget: what it is promised, by how much it is missed, and the price of keeping it."""

import math
from collections.abc import Iterator

from clients.client import Client
from clients.state import State
from fedrec.params import Params, to
from fedrec.sharing import Broadcast, Sharing
from fedrec.training.local import held_out_loss, local_update


def priced(client: Client, state: State, broadcast: Broadcast) -> tuple[State, float, dict[str, float]]:
    """Return the state, the multiplier mu_i for a round's training, and what is told of it.

    Without a budget that is 0 and nothing.
    """
    rule = client.experiment.budget
    if not rule.active:
        return state, 0.0, {}
    over = math.nan  # round 1 starts from parameters that nobody has trained: there is no loss to be judged yet
    if broadcast.round > 1:
        state, over = excess(client, state, broadcast.values, broadcast.round - 1)
    mu = 0.0 if math.isnan(over) else rule.multiplier(state.now.mu, over)
    return state, mu, {"excess": over, "mu": mu}


def excess(client: Client, state: State, z: Params, number: int) -> tuple[State, float]:
    """Return the state, and by how much the held-out loss at z_i is above the budget of a round; NaN without one."""
    if not state.limits:
        rule, name = client.experiment.budget, client.data.name
        needed = rule.margin is not None and rule.limit_of(name) is None
        state = state._replace(limits=tuple(rule.budgets(name, alone(client) if needed else [math.inf])))
    limit = state.limits[min(number, len(state.limits)) - 1]
    if math.isinf(limit):
        return state, math.nan
    params = client.channel.join(to(z, client.device), to(state.now.private, client.device))
    return state, held_out(client, params) - limit


def alone(client: Client) -> list[float]:
    """Return the lowest held-out loss that a client has reached after each round of training alone."""
    lowest = [math.inf]
    for params in models_alone(client):
        lowest.append(min(lowest[-1], held_out(client, params)))
    return lowest[1:]


def models_alone(client: Client) -> Iterator[Params]:
    """Yield a client's model after each round of training alone."""
    e, params, weigher = client.experiment, to(client.start(), client.device), client.weigher()
    for number in range(1, e.rounds + 1):
        scope = (client.data.name, "alone", number)
        params, _ = local_update(
            client.model,
            params,
            client.data,
            client.tasks,
            client.recipe,
            Sharing(()),
            seed=e.seed,
            scope=scope,
            weigher=weigher,
        )
        yield params


def held_out(client: Client, params: Params) -> float:
    """Return the loss of a client's validation rows."""
    e = client.experiment
    return held_out_loss(client.model, params, client.data, client.tasks, client.recipe, seed=e.seed)
