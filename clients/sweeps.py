"""A client's part in a sweep of implicit ALS: its users solved anew, and what the server does not know of them yet."""

from collections.abc import Mapping

from torch import Tensor

from clients.client import Client
from fedrec.keyed import nothing_like
from fedrec.models.factors import OWN_FACTORS, FactorRecommender, as_sent, factors_of
from fedrec.models.user_factors import UserFactorRecommender
from fedrec.params import Params, subtract
from fedrec.sharing import OF_ITEMS


def swept(
    client: Client, model: FactorRecommender, z: Mapping[str, Tensor], private: Params, seen: int
) -> tuple[Params, Params]:
    """Return what a client keeps after a sweep, and what it answers.

    The server has what its users' factors made when it took its answer of round `seen` last, those that the client
    keeps: it answers the difference. Who shares nothing solves for its items too, and keeps them.
    """
    if not client.experiment.share:
        start = {name: private.get(name, value) for name, value in client.start().items() if name in OF_ITEMS}
        users = model.solved(start)
        items = as_sent(factors_of(model.ials, model.told(users[OWN_FACTORS])))
        return {**private, **users, **items}, {}
    users = model.solved(z)
    told = model.told(users[OWN_FACTORS])
    lacking = subtract(told, model.told(private[OWN_FACTORS])) if seen else told
    return {**private, **users}, {**nothing_like(client.shared_like), **lacking}


def met(
    client: Client, model: UserFactorRecommender, anchor: Params, rho: float, private: Params
) -> tuple[float, Params, Params]:
    """Return a client's mean loss after a round of clients that meet in their users, what it keeps, and its x.

    It minimises f_i + rho/2 |x_i - anchor|^2, of which each sweep solves a half exactly.
    """
    params, loss = model.approached({**anchor, **private}, rho, client.experiment.local_epochs)
    x, kept = client.channel.split(params)
    return loss / max(len(client.data.train), 1), kept, x
