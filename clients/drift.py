"""A client's side of drift correction: what it trains and remembers beside the shared model."""

from dataclasses import replace

import torch

from clients.client import Client
from clients.local import update
from fedrec.coordination import Own, control_change
from fedrec.parameters import Params, add
from fedrec.privacy.guarantee import steps_of
from fedrec.sharing import Broadcast
from fedrec.training.losses import steps


def begin(client: Client) -> Own:
    """Return what a client remembers when it joins: its start as personal model, c_i = 0, and its first weighting."""
    drift = client.experiment.drift
    personal = client.start() if drift.personal != "none" else None
    if personal and drift.personal == "tuned":
        personal = client.experiment.sharing().split(personal)[0]
    control = None
    if drift.correction == "scaffold":
        like = client.shared_like()
        control = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in like.items()}
    return Own(personal, control, client.experiment.weighting.start(len(client.tasks)) or None)


def counted(client: Client) -> dict[str, float]:
    """Return the metric that tells the server the number of local steps, if the method needs it."""
    e = client.experiment
    if not e.drift.counted:
        return {}
    if e.privacy.inside:  # the number of interactions is nobody's business
        return {"steps": float(steps_of(e, client.data))}
    return {"steps": float(steps(client.data, client.tasks, e.recipe()))}


def follow(client: Client, broadcast: Broadcast, x: Params, own: Own, v: Params) -> Own:
    """Return what a client remembers after a round in which it trained the shared model to `x`.

    That is c_i+, and APFL's v, `x` itself if tuned, or Ditto's copy, trained on f_i + lambda/2 |v - z|^2 with the
    batches of the shared model (Ditto, arXiv 2012.04221, Alg. 1, line 7).
    """
    drift, z, own = client.experiment.drift, broadcast.values, followed(client, broadcast, x, own)
    if own.personal is None or drift.personal == "tuned":
        return own
    if drift.personal == "apfl":
        return replace(own, personal=v)
    return replace(own, personal=update(client, own.personal, broadcast.round, z, drift.weight).params)


def followed(client: Client, broadcast: Broadcast, x: Params, own: Own) -> Own:
    """Return what a client remembers after training to `x` that needs no training of its own: c_i+, and x if tuned."""
    if own.control is not None and broadcast.control is not None:
        change = control_change(broadcast.control, broadcast.values, x, counted(client)["steps"], client.experiment.lr)
        own = replace(own, control=add(own.control, change))
    if own.personal is not None and client.experiment.drift.personal == "tuned":
        own = replace(own, personal=x)
    return own
