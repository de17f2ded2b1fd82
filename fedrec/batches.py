"""Minibatches of local training: rows in a seeded order with fresh negatives, and the recipe that says how many."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedrec.data import ClientData, Histories, Negatives, excluded
from fedrec.data.types import Ints
from fedrec.models.content import kept
from fedrec.optimisers import Optimiser
from fedrec.tasks import Task, base_tensor

Phase = Literal["all", "private", "shared"]


@dataclass(frozen=True)
class Recipe:
    """How a client trains in one round: `epochs` passes for every phase, then it stops."""

    epochs: int
    batch_size: int
    optimiser: Optimiser
    phases: tuple[Phase, ...] = ("all",)
    negatives: Literal["train", "published"] = "train"
    num_negatives: int = 1
    l2: float = 0.0
    mu: float = 0.0  # proximal weight of the shared parameters (FedProx, arXiv 1812.06127, eq. 2)
    hidden: float = 0.0  # probability that the id of a row's item, or of a sampled one, is hidden from the model


@dataclass(frozen=True)
class Batch:
    """One minibatch on a device: rows [B], sampled items [B, m] (None without a rank task), per task (mask, target).

    `history` [B, L] is what the row's user had liked before the row, for a model that reads it; `keep` [B, 1 + m] is 0
    where the id of the row's item, or of its m-th sampled one, is hidden from the model; `share` [B] is what a row
    counts in a mean over rows, 0 for padding, which no task's mask has either; None: 1 / B.
    """

    user: Tensor
    item: Tensor
    negative: Tensor | None
    labels: dict[str, tuple[Tensor, Tensor]]
    history: Tensor | None = None
    keep: Tensor | None = None
    share: Tensor | None = None


def batches(
    data: ClientData,
    tasks: tuple[Task, ...],
    recipe: Recipe,
    rng: np.random.Generator,
    device: str,
    taken: Negatives | None = None,
    past: Histories | None = None,
) -> Iterator[Batch]:
    """Yield the minibatches of one epoch, shuffled and with fresh negatives, all drawn from `rng` on the CPU.

    `taken` is what negatives avoid, `excluded(data, recipe.negatives)`, if the caller has it already; `past` is what
    the users of the training rows had liked before each, for a model that reads it.
    """
    train = data.train
    masks = {task.name: task.rows(train, data.attributes) for task in tasks}
    used = np.flatnonzero(np.logical_or.reduce(list(masks.values())))
    order = used[rng.permutation(len(used))]
    user, item = torch.from_numpy(train.user[order]).to(device), torch.from_numpy(train.item[order]).to(device)
    columns = {
        t.name: (
            base_tensor(masks[t.name][order], device),
            base_tensor(t.target(train, data.attributes)[order], device),
        )
        for t in tasks
    }
    negative: Tensor | None = None
    if any(task.kind == "rank" for task in tasks):
        users: Ints = np.repeat(train.user[order], recipe.num_negatives)
        drawn = (taken or excluded(data, recipe.negatives)).draw(users, rng)
        negative = torch.from_numpy(drawn.reshape(len(order), recipe.num_negatives)).to(device)
    width = 1 if negative is None else 1 + recipe.num_negatives
    keep = kept(len(order), width, recipe.hidden, rng).to(device) if recipe.hidden else None
    for start in range(0, len(order), recipe.batch_size):
        part = slice(start, start + recipe.batch_size)
        labels = {name: (mask[part], target[part]) for name, (mask, target) in columns.items()}
        sampled, shown = (None if one is None else one[part] for one in (negative, keep))
        history = None if past is None else torch.from_numpy(past.take(order[part])).to(device)
        yield Batch(user[part], item[part], sampled, labels, history, shown)
