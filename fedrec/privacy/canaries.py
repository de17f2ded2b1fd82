"""Canaries: dummy users with dummy items of their own, in or out by a secret coin, and what a transcript shows of them.

They are data and nothing else: training knows nothing of them. Nobody else touches a canary's items, so that canaries
meet in no row of a table, and the rows of one that is out move by noise alone.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedrec.data import ClientData, Interactions
from fedrec.data.split import concatenate
from fedrec.data.types import Bools, Ints
from fedrec.errors import UserError
from fedrec.keyed import TABLES
from fedrec.params import Params
from fedrec.privacy.bounds import Reals
from fedrec.privacy.transcript import Transcript
from fedrec.rng import generator


@dataclass(frozen=True)
class Canaries:
    """m dummy users, the two dummy items of each, and whose interactions are there: the auditor's secret."""

    users: Ints  # [m] global ids
    items: Ints  # [m, 2] global ids: the one that it likes, the one that it does not
    coins: Bools  # [m]


def plant(
    data: ClientData, m: int, *, users: int, items: int, middle: float, size: float, seed: int
) -> tuple[ClientData, Canaries]:
    """Return a client's data with m canaries more, and the canaries.

    Their global ids follow the `users` and `items` that there are. A canary rates its items `middle + size` and
    `middle - size`, where `middle` is the score that training starts from: so its gradient on whatever all items share
    (a head's bias, the user's own) cancels, and stays above the clip while the two items' scores are less than about
    2 size - clip apart. A canary that is out is a user without interactions, and everything public stays the same.
    Raises UserError for ids that are taken.
    """
    if (len(data.users) and data.users[-1] >= users) or (len(data.items) and data.items[-1] >= items):
        raise UserError(f"canaries: ids must be free from user {users} and item {items} on, found higher ones in use")
    rng = generator(seed, "canaries", data.name)
    canaries = Canaries(users + np.arange(m), items + np.arange(2 * m).reshape(m, 2), rng.random(m) < 0.5)
    inside = np.flatnonzero(canaries.coins)
    n = 2 * len(inside)
    rows = Interactions(
        np.repeat(len(data.users) + inside, 2),
        (len(data.items) + 2 * inside[:, None] + np.arange(2)).reshape(-1),
        np.zeros(n, np.int64),
        np.tile(np.array([middle + size, middle - size], np.float32), len(inside)),
        np.ones(n, np.bool_),
        {name: np.zeros(n, np.bool_) for name in data.train.labels},
    )
    return replace(
        data,
        users=np.concatenate([data.users, canaries.users]),
        items=np.concatenate([data.items, canaries.items.reshape(-1)]),
        train=concatenate([data.train, rows]),
    ), canaries


def directions(canaries: Canaries, start: Params, head: str, trained: Collection[str]) -> Params:
    """Return the unit vectors [m, 2, d] of each trained table of items along which canaries that are in move.

    Matrix factorisation with heads as they start: the score's gradient with respect to an item's bias is w_b, with
    respect to its vector w * p_u, and the two items' have opposite signs. `start` are the client's parameters; the
    canaries are its last users. Raises UserError for another model.
    """
    if "item_bias" not in start:
        raise UserError("canaries: need matrix factorisation, found a model without item biases")
    w = start[f"heads.{head}.weight"].double()
    taste = start["user_table"][len(start["user_table"]) - len(canaries.users) :].double() * w[:-2]
    both = {"item_table": taste, "item_bias": w[-1].expand(len(taste), 1)}
    grads = {name: torch.stack([value, -value], 1) for name, value in both.items() if name in trained}
    norm = torch.cat(list(grads.values()), 2).square().sum((1, 2), keepdim=True).sqrt()
    return {name: value / norm for name, value in grads.items()}


def moves_of(transcript: Transcript, client: str, canaries: Canaries, units: Mapping[str, float]) -> dict[str, Reals]:
    """Return what moved the canaries' rows: of every released table of items [rounds, m, 2, d], in given units."""
    moves: dict[str, list[Reals]] = {}
    for round_ in transcript.of(client):
        update = round_.update()
        for name in update.keys() & units.keys():
            if TABLES.get(name) == "item":
                row = torch.from_numpy(np.searchsorted(transcript.ids(client, name), canaries.items))
                moves.setdefault(name, []).append((update[name].double()[row] / units[name]).numpy())
    return {name: np.stack(rows) for name, rows in sorted(moves.items())}


def project(movement: Mapping[str, Reals], along: Params) -> tuple[Reals, Reals]:
    """Return how far canaries moved along their directions [rounds, m], and what part of these was released [m]."""
    shown = {name: along[name].numpy() for name in movement}
    reach = np.sqrt(np.concatenate([np.square(v).sum((1, 2))[None] for v in shown.values()]).sum(0))
    total = np.stack([(movement[name] * v).sum((2, 3)) for name, v in shown.items()]).sum(0)
    return total / reach, reach
