"""What training minimises: the losses of the tasks on a batch, the penalties, and what a phase trains of it."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedrec.data import ClientData
from fedrec.models import Recommender
from fedrec.params import Params
from fedrec.sharing import Sharing
from fedrec.tasks import Task, task_loss
from fedrec.training.optimisers import Optimiser
from fedrec.training.recipe import Batch, Phase, Recipe


def task_losses(model: Recommender, params: Params, tasks: tuple[Task, ...], batch: Batch) -> list[Tensor]:
    """Return the weight of every task times the mean of its rows' losses, each times its weight; 0 without rows."""
    losses: list[Tensor] = []
    for task, (score, negative) in zip(tasks, score_batch(model, params, tasks, batch), strict=True):
        mask, target = batch.labels[task.name]
        loss = task_loss(task, score, target, negative)
        loss = loss if batch.weights is None else loss * batch.weights[task.name]
        losses.append(task.weight * (loss * mask).sum() / mask.sum().clamp(min=1.0))
    return losses


def score_batch(
    model: Recommender, params: Params, tasks: tuple[Task, ...], batch: Batch
) -> list[tuple[Tensor, Tensor | None]]:
    """Return each task's scores of the rows [B], of their items [B, C] if it is about these, and of sampled items.

    The latter are [B, m], of a rank task alone.
    """
    model = model.read(params, batch.item, batch.negative, batch.history)
    keep = None if batch.keep is None else batch.keep[:, 0]
    about_pairs = not all(task.attribute for task in tasks)
    features, sampled = representations(model, params, batch) if about_pairs else (batch.item, None)
    pairs: list[tuple[Tensor, Tensor | None]] = []
    for task in tasks:
        negative = None
        if task.kind == "rank" and sampled is not None:
            negative = model.head(params, task.name, sampled).reshape(len(batch.item), -1)
        if task.attribute:
            score = model.attribute(params, task.name, batch.item, keep)
        else:
            score = model.head(params, task.name, features)
        pairs.append((score, negative))
    return pairs


def scores(model: Recommender, params: Params, tasks: tuple[Task, ...], batch: Batch) -> dict[str, Tensor]:
    """Return each task's scores of the rows [B]; of a rank task those of the item and its sampled ones [B, 1 + m].

    Of an attribute it is what the model says of the row's item [B, C].
    """
    each = zip(tasks, score_batch(model, params, tasks, batch), strict=True)
    return {t.name: z if other is None else torch.cat([z[:, None], other], 1) for t, (z, other) in each}


def representations(model: Recommender, params: Params, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Return h [B, width] of a batch's rows, and [B * m, width] of their sampled items if it has any."""
    p = None if batch.history is None else model.users(params, batch.user, batch.history)
    keep = None if batch.keep is None else batch.keep[:, 0]
    features = model.features(params, batch.user, batch.item, p, keep)
    if batch.negative is None:
        return features, None
    m = batch.negative.shape[1]
    user, item = batch.user.repeat_interleave(m), batch.negative.reshape(-1)
    p = None if p is None else p.repeat_interleave(m, 0)
    keep = None if batch.keep is None else batch.keep[:, 1:].reshape(-1)
    return features, model.features(params, user, item, p, keep)


def penalties(model: Recommender, params: Params, batch: Batch, l2: float) -> list[Tensor]:
    """Return l2 times the mean penalty of the batch's rows and of its sampled items, if any; last the calibrator's."""
    items = [batch.item] if batch.negative is None else [batch.item, batch.negative[:, 0]]
    terms = [l2 * mean(model.penalty(params, batch.user, item), batch) for item in items] if l2 else []
    if model.calibrated:
        features, _ = representations(model, params, replace(batch, negative=None))
        terms.append(model.calibration * mean(model.calibrator(params, features), batch))
    return terms


def mean(values: Tensor, batch: Batch) -> Tensor:
    """Return the mean of a value of every row [B], of padding none."""
    return values.mean() if batch.share is None else (values * batch.share).sum()


def total(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of at least one scalar, added in order."""
    value = parts[0].new_zeros(())
    for part in parts:
        value = value + part
    return value


def batch_loss(model: Recommender, params: Params, tasks: tuple[Task, ...], batch: Batch, l2: float) -> Tensor:
    """Return the weighted sum over tasks of the mean loss of the task's rows, plus the penalties."""
    return total([*task_losses(model, params, tasks, batch), *penalties(model, params, batch, l2)])


def trainable(
    names: Iterable[str], tasks: tuple[Task, ...], sharing: Sharing, phase: Phase, optimiser: Optimiser
) -> list[str]:
    """Return the names that a phase trains: all, the private ones (a head first), or the shared ones (the body).

    What the optimiser gives a rate of 0 keeps its start.

    BPR cannot see what is the same for all items of a user: the bias of its head, and the user bias if no other task
    uses it. Their gradient would be rounding noise, which an adaptive optimiser makes steps of.
    """
    blind = {f"heads.{task.name}.bias" for task in tasks if task.loss == "bpr"}
    if len(blind) == sum(not task.attribute for task in tasks):
        blind.add("user_bias")
    seen = [name for name in names if name not in blind and optimiser.rate(name)]
    shared = sharing.split({name: torch.empty(0) for name in seen})[0].keys()
    return [name for name in seen if phase == "all" or (name in shared) == (phase == "shared")]


def steps(data: ClientData, tasks: tuple[Task, ...], recipe: Recipe) -> int:
    """Return how many steps a round of local training makes on the shared parameters."""
    used = int(np.logical_or.reduce([task.rows(data.train, data.attributes) for task in tasks]).sum())
    passes = recipe.epochs * sum(phase != "private" for phase in recipe.phases)
    return passes * -(-used // recipe.batch_size)
