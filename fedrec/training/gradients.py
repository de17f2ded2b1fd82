"""The losses and gradients of a step: by a kernel, by autograd on the rows that it gathers, or on whole tables.

Which one is a function of what is trained and of how many clients are; it decides nothing of what can be trained.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from fedrec.keyed import TABLES, select, wide
from fedrec.models import Recommender
from fedrec.params import Params
from fedrec.tasks import Task
from fedrec.training.kernels import handwritten, loss_and_gradients
from fedrec.training.losses import batch_loss
from fedrec.training.recipe import Batch
from fedrec.training.rows import Touched
from fedrec.training.step import Step

At = dict[str, Tensor | None]
Loss = Callable[[Params, Batch], tuple[Tensor, Tensor]]  # what is reported, and what is followed


def gradients(
    model: Recommender,
    params: Params,
    tasks: tuple[Task, ...],
    step: Step,
    l2: float,
    weight: Tensor | None,
    names: Collection[str],
    content: Tensor | None = None,
) -> tuple[Tensor, Params, At]:
    """Return the losses [k] of `batch_loss`, the gradients of `weight` [k] times them, and where those of tables lie.

    `params`: tables [rows, d], any other parameter [k, ...]; `content` [rows, D] is that of the rows of item tables.
    The gradient of a table is by row of the step, to be added up at the rows that `At` names for its key space, or
    where that is None one for each client; any other one is [k, ...].
    """
    if handwritten(model, tasks):
        loss, grads = loss_and_gradients(model, params, tasks, step, l2, weight, names)
        return loss, grads, {"user": flat(step.user), "item": flat(step.item)}
    item, same, columns = laid_out(step)
    user = torch.arange(len(item), device=item.device)[:, None] if step.user is None else step.user
    at = {"user": user, "item": item}
    view = select(params, at)
    loss, each = by_rows(model, view, tasks, same, columns, l2, names, None if content is None else content[item])
    if weight is not None:
        each = {n: v * wide(weight, v) for n, v in each.items()}
    grads = {n: v.flatten(0, 1) if n in TABLES else v for n, v in each.items()}
    return loss, grads, {"user": None if step.user is None else flat(user), "item": flat(item)}


def by_rows(
    model: Recommender,
    view: Params,
    tasks: tuple[Task, ...],
    same: dict[str, Any],
    columns: dict[str, Any],
    l2: float,
    names: Collection[str],
    content: Tensor | None,
    axis: int | None = 0,
) -> tuple[Tensor, Params]:
    """Return the losses [k] of `batch_loss` and the gradients of `names` by vmap, each of what one client reads.

    `view` are the rows that each reads of tables [k, n, d], and any other parameter [k, ...], or without an `axis` the
    same for all; `content` [k, n, D] is that of items. `same` and `columns` are of `laid_out`.
    """

    def loss_of(moved: Params, held: Params, content: Tensor | None, columns: dict[str, Any]) -> Tensor:
        variant = replace(model, side=replace(model.side, content=content))
        return batch_loss(variant, {**held, **moved}, tasks, Batch(**{**same, **columns}), l2)

    wanted = set(names) or set(list(view)[:1])  # without any gradient a GRU has no rule for a batch of weights
    moved, held = ({n: v for n, v in view.items() if (n in wanted) == here} for here in (True, False))
    axes = [{n: 0 if n in TABLES else axis for n in part} for part in (moved, held)]
    each = vmap(grad_and_value(loss_of), in_dims=(*axes, None if content is None else 0, 0))
    grads, loss = each(moved, held, content, columns)
    return loss.detach(), {n: v for n, v in grads.items() if n in names}


def flat(rows: Tensor | None) -> Tensor | None:
    """Return rows end to end."""
    return None if rows is None else rows.reshape(-1)


def laid_out(step: Step) -> tuple[Tensor, dict[str, Any], dict[str, Any]]:
    """Return the rows of item tables [k, n] that a step reads, and its `Batch`es, where a row is its place among them.

    The first fields are the same for all clients, since vmap gathers at other places for each in a loop; the others are
    side by side [k, ...].
    """
    k, width, length = step.item.shape
    item, device = step.item.reshape(k, -1), step.item.device
    place = torch.arange(width * length, device=device).view(width, length)
    at = torch.zeros(length, dtype=torch.int64, device=device) if step.user is None else place[0]
    same: dict[str, Any] = {"user": at, "item": place[0], "negative": place[1:].T if width > 1 else None}
    columns: dict[str, Any] = {
        "labels": {name: ((scale > 0).to(scale), target) for name, (scale, target) in step.labels.items()},
        "share": step.share,
    }
    if step.weights:
        columns["weights"] = dict(step.weights)
    if step.keep is not None:
        columns["keep"] = step.keep.mT
    if step.history is not None:
        past = step.history
        order = torch.arange(past[0].numel(), device=device).view(past.shape[1:]) + place.numel()
        columns["history"] = torch.where(past < 0, -1, order)
        item = torch.cat([item, torch.where(past < 0, item[:, :1, None], past).flatten(1)], 1)
    return item, same, columns


def first(params: Params, touched: Mapping[str, Touched], k: int, alone: bool = False) -> Params:
    """Return the stacked parameters of the first k clients, or those of the one client as its model reads them."""
    if alone:
        return {name: value if name in TABLES else value[0] for name, value in params.items()}
    return {n: value[: int(touched[TABLES[n]].edge[k]) if n in TABLES else k] for n, value in params.items()}


def by_whole_tables(loss: Loss, params: Params, step: Step, names: Collection[str]) -> tuple[Tensor, Params, At]:
    """Return the loss [1] and the gradients of one client by autograd, those of tables for all of their rows.

    Whatever the model reads, and whatever stands beside the loss of the tasks.
    """
    view = {n: v.detach().requires_grad_(n in names) for n, v in first(params, {}, 1, alone=True).items()}
    value, followed = loss(view, step.batch)
    wanted = list(names)
    grads = torch.autograd.grad(followed, [view[n] for n in wanted], materialize_grads=True)
    return value.detach()[None], {n: g if n in TABLES else g[None] for n, g in zip(wanted, grads, strict=True)}, {}
