"""Ties of losses and of exposure at a client: what it tells of them, and what that changes in its training.

Of a tie the client exchanges its loss f_i like a parameter, with a scaled dual u_i of its own. The server's target t_i
is the projection of v_i = f_i + u_i, and step (v_i - t_i) the multiplier of the tie. A round's training weighs the loss
by 1 + step (v_i - t_i), and where that is not 1 by step (f_i - f_i-) more, by what the loss is above that of the round
before: the augmented term step/2 (f_i - t_i + u_i)^2, without which multipliers overshoot. That is no more than half a
weight, and nothing for a client that no tie binds: it would but slow down what all lose together. No weight is below 0:
nobody is trained to be worse.

What drives is a loss of held-out rows. Trained `along` it, the gradient is that of the Lagrangian, grad f_i + mu grad
of the held-out loss, and the rows that drive are learnt too. Along the training rows (1 + mu) grad f_i stands for it:
where a model learns its rows by heart the two part, and a larger weight makes the held-out loss no smaller.

Exposure e_i is exchanged in the same way, and its augmented term step/2 (e_i - t_i + u_i)^2 stands beside the loss.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clients.budget import models_alone
from clients.client import Client
from clients.exposure import Pull, shown_by
from clients.state import State
from fedrec.data import ClientData
from fedrec.data.split import concatenate
from fedrec.federation.coordination import Link
from fedrec.federation.coordination.clauses import EXPOSURE, HARM
from fedrec.params import Params, to
from fedrec.rng import generator
from fedrec.training.cohort import Cohort, used_rows
from fedrec.training.local import held_out_loss, single
from fedrec.training.recipe import Term

SLACK = 1e-6  # relative to a target: what rounding leaves of a multiplier that is 0
DAMPING = 0.5  # of a weight: what a change of the loss adds to it at most
THIRDS = ("drives", "selects", "judges")


class Told(NamedTuple):
    """What a round knows of a client's losses: what is sent of them, and what its loss weighs beside 1."""

    sent: Params
    mu: float
    term: Term | None = None  # beside the loss


def third(data: ClientData, seed: int, purpose: str) -> ClientData:
    """Return a client's data with that third of its validation rows which drives multipliers, selects, or judges."""
    order = generator(seed, "thirds", data.name).permutation(len(data.validation))
    rows = np.sort(order[THIRDS.index(purpose) :: 3])
    return replace(data, validation=data.validation.take(rows))


def loss(client: Client, model: Params, purpose: str) -> float:
    """Return the loss of a client's model: of its training rows, or of a third of the validation rows; NaN of none."""
    e = client.experiment
    if e.coupling.judged == "training":
        data = replace(client.data, validation=client.data.train)
    else:
        data = third(client.data, e.seed, purpose)
    return held_out_loss(client.model, model, data, client.tasks, client.recipe, seed=e.seed)


def tell(client: Client, state: State, z: Params, targets: Params, link: Link) -> tuple[State, Told]:
    """Return the state, and what a client tells of the loss at what it was sent, with the weight that this gives it."""
    e = client.experiment
    model = client.channel.join(to(z, client.device), to(state.now.private, client.device))
    sent, weight, term, scale = Params(), 1.0, None, e.coupling.scale
    state, found = measured(client, state, model, "drives")
    for block, value in found.items():
        price = float(link.sent[block] - targets[block]) / scale
        sent[block] = targets[block] if math.isnan(value) else torch.tensor([scale * value], dtype=torch.float32)
        if block == EXPOSURE:
            goal = float(link.anchor(targets)[block]) / scale
            term = Pull(shown_by(client), goal, e.coupling.step) if abs(price) > SLACK else None
            continue
        weight += e.coupling.step * price
        if abs(price) > SLACK * abs(float(targets[block]) / scale):
            change = float(sent[block] - (link.sent[block] - link.dual[block])) / scale
            weight += min(max(e.coupling.step * change, -DAMPING), DAMPING)
    return state, Told(sent, max(weight, 0.0) - 1.0, term)


def lagrangian(client: Client, mu: float) -> Cohort:
    """Return a client with the rows of a round: 1 + mu times their mean loss has the slope that is asked for.

    It is that of (1 + mu) f_train, or `along` the held-out loss, which is promised, of f_train + mu f_drives: then the
    driving third of the validation rows stands beside the training rows, and weighs mu times as much as they do. The
    training loss that is told is the mean of both, then.
    """
    e, train = client.experiment, client.data.train
    if e.coupling.along == "training" or e.coupling.judged == "training" or mu <= 0:
        return client.cohort
    drives = third(client.data, e.seed, "drives").validation
    count, held = (int(used_rows(client.tasks, r, [r], [client.data.attributes]).sum()) for r in (train, drives))
    if not (count and held):
        return client.cohort
    own = np.ones(len(train)) if train.weight is None else train.weight / train.weight.mean()
    weight = np.concatenate([own, np.full(len(drives), mu * count / held)]).astype(np.float32)
    both = replace(client.data, train=replace(concatenate([train, drives]), weight=weight))
    return single(client.model, both, client.tasks, client.recipe, e.seed)


def judged(client: Client, state: State, z: Params) -> tuple[State, dict[str, float]]:
    """Return the state, and what a client tells of its losses at a validation, by block."""
    model = client.channel.join(to(z, client.device), to(state.now.private, client.device))
    return measured(client, state, model, "judges")


def measured(client: Client, state: State, model: Params, purpose: str) -> tuple[State, dict[str, float]]:
    """Return the state, and what of a client's model is tied, by block: of losses those of the rows for a purpose."""
    coupling, found = client.experiment.coupling, dict[str, float]()
    value = loss(client, model, purpose) if coupling.losses else math.nan
    for block in coupling.priced:
        if block == EXPOSURE:
            found[block] = shown_by(client).exposure(model)
        elif block == HARM:
            state, least = alone(client, state, purpose)
            found[block] = value - least
        else:
            found[block] = value
    return state, found


def alone(client: Client, state: State, purpose: str) -> tuple[State, float]:
    """Return the state, and the lowest loss that a client reaches by itself."""
    place = ("drives", "judges").index(purpose)
    if not state.limits:
        each = [[loss(client, model, p) for p in ("drives", "judges")] for model in models_alone(client)]
        limits = tuple(map(min, zip(*each, strict=True)))
        state = state._replace(limits=limits)
    return state, state.limits[place]


def start(client: Client, model: Mapping[str, Tensor]) -> Params:
    """Return what a client joins with of its losses."""
    coupling = client.experiment.coupling
    if not coupling.priced:
        return {}
    value = loss(client, dict(model), "drives") if coupling.losses else math.nan
    values = dict.fromkeys(coupling.priced, 0.0 if math.isnan(value) else coupling.scale * value)
    if EXPOSURE in values:
        values[EXPOSURE] = coupling.scale * shown_by(client).exposure(model)
    return {block: torch.tensor([value], dtype=torch.float32) for block, value in values.items()}
