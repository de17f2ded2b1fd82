"""Item-set recovery: which items a client's users interacted with, from how training moved the rows of its tables.

A message covers every row that a client carries, so that a row is told by its values alone: training leaves alone what
no batch touches.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedrec.data.types import Bools
from fedrec.privacy.attacks.scores import Values, ranks
from fedrec.privacy.transcript import Exchanged, Transcript
from fedrec.tasks import Task

STILL = 1e-6  # of the largest movement: below it a row has not moved but for rounding


def item_scores(transcript: Transcript, client: str, *, tasks: tuple[Task, ...]) -> Values:
    """Return how sure it is, for every item that a client carries [items], that its users interacted with it.

    Known beside the transcript: the client's tasks. Where no task samples negatives, the score is how far an item's row
    moved in all rounds, |x_i - z_i|. A ranking task also moves sampled items, the other way: then it is the signed
    movement (`direction`), added up over the rounds, in which the interacted items are the same and the sampled ones
    are not.
    """
    ranked = any(task.kind == "rank" for task in tasks)
    moves = [direction(round_) if ranked else distance(round_) for round_ in transcript.of(client)]
    return np.asarray(sum(part / max(float(np.abs(part).max(initial=0.0)), 1e-300) for part in moves), np.float64)


def item_set(scores: Values) -> Bools:
    """Return the items [items] that the scores of `item_scores` speak for."""
    return np.asarray(scores > STILL * float(np.abs(scores).max(initial=0.0)), np.bool_)


def distance(round_: Exchanged) -> Values:
    """Return how far every item's row moved [items]: the norm over its table and bias."""
    parts = [_rows(round_, name) for name in ("item_table", "item_bias") if name in round_.x]
    return np.asarray(torch.cat(parts, dim=1).norm(dim=1).numpy())


def direction(round_: Exchanged) -> Values:
    """Return the movement of every item's row along the direction of interacted items [items].

    A bias rises with a positive and falls with a negative (arXiv 1205.2618, eq. 5). Without biases the rows of one user
    are c_i p_u, and the direction p_u is the first singular vector; its sign is the one by which more rows fall, since
    fresh negatives are drawn in every epoch.
    """
    if "item_bias" in round_.x:
        return np.asarray(_rows(round_, "item_bias").sum(1).numpy())
    rows = _rows(round_, "item_table")
    along = rows @ torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -1]
    touched = along[along.abs() > STILL * along.abs().max()]
    return np.asarray((along if (touched > 0).sum() < (touched < 0).sum() else -along).numpy())


def _rows(round_: Exchanged, name: str) -> Tensor:
    return round_.x[name].double() - round_.z[name].double()


def catalogue_scores(transcript: Transcript, *, clients: Sequence[str], tasks: tuple[Task, ...]) -> Values:
    """Return `item_scores` of clients, each over the items that it carries, laid end to end.

    They are ranks among the client's items: what scale a client's noise has says nothing of its items.
    """
    parts = [item_scores(transcript, client, tasks=tasks) for client in clients]
    return np.concatenate([ranks(scores[:, None])[:, 0] for scores in parts])
