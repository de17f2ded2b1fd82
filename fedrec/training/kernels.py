"""One step of many clients: every client's loss and gradients, written by hand and checked against autograd.

Shapes: k clients, L rows each (padded), m sampled items for a row, N = (1 + m) L, T tasks, d the width of the tables.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn import functional as F

from fedrec.models import Recommender
from fedrec.params import Params
from fedrec.tasks import Task
from fedrec.training.step import Step

HANDWRITTEN = ("mf", "mlp", "item")  # the models whose gradients are here


def handwritten(model: Recommender, tasks: tuple[Task, ...]) -> bool:
    """Return whether `loss_and_gradients` knows a model, with what it reads, and its tasks."""
    plain = type(model) is Recommender and model.side.content is None and not model.sequence.active
    return plain and model.kind in HANDWRITTEN and {task.kind for task in tasks} <= {"rank", "rating", "binary"}


def loss_and_gradients(
    model: Recommender,
    params: Params,
    tasks: tuple[Task, ...],
    step: Step,
    l2: float,
    weight: Tensor | None,
    names: Collection[str],
) -> tuple[Tensor, Params]:
    """Return the losses [k] of `batch_loss` and the gradients of `weight` [k] times them, for `names`.

    `params`: tables [rows, d], any other parameter [k, ...]. The gradient of a table is by row of the step, [k N, d]
    (or [k, d] where `step.user` is None), to be added up at `step.user` or `step.item`; any other one is [k, ...].
    """
    k, sampled, length = step.item.shape
    item = step.item.reshape(-1)
    q = params["item_table"].index_select(0, item).view(k, sampled * length, -1)
    user = None if step.user is None else step.user.reshape(-1)
    p = _rows(params["user_table"], user, k) if model.kind != "item" else None
    head = torch.stack([params[f"heads.{task.name}.weight"] for task in tasks], 1)  # [k, T, width]
    bias = torch.stack([params[f"heads.{task.name}.bias"] for task in tasks], 2)  # [k, 1, T]
    grads: Params = {}
    wanted = set(names)
    if p is None:
        score = torch.baddbmm(bias, q, head.mT)
    elif model.kind == "mf":
        b_u, b_i = _rows(params["user_bias"], user, k), params["item_bias"].index_select(0, item).view(k, -1, 1)
        w, w_u, w_i = head[:, :, :-2], head[:, :, -2:-1], head[:, :, -1:]
        x = None if user is None else p * q
        score = torch.bmm(q, (w * p).mT) if x is None else torch.bmm(x, w.mT)  # [k, N, T]
        score = score + b_u * w_u.mT + b_i * w_i.mT + bias
    else:
        layers = _forward(model, params, p, q)
        score = torch.baddbmm(bias, layers[-1], head.mT)
    loss, d_score = losses(tasks, score.view(k, sampled, length, -1), step, weight)
    d_score = d_score.view(k, sampled * length, -1)
    if p is None:
        by_task, d_q = [torch.bmm(d_score.mT, q)], torch.bmm(d_score, head)
        rows = {"item_table": q}
    elif model.kind == "mf":
        if x is None:
            inner = torch.bmm(d_score.mT, q)  # [k, T, d]
            d_head, d_p, d_q = inner * p, (inner * w).sum(1, keepdim=True), torch.bmm(d_score, w * p)
        else:
            d_head, d_x = torch.bmm(d_score.mT, x), torch.bmm(d_score, w)
            d_p, d_q = d_x * q, d_x * p
        total = d_score.sum(1, keepdim=True) if user is None else d_score
        by_task = [d_head, torch.bmm(total.mT, b_u), torch.bmm(d_score.mT, b_i)]
        grads["user_bias"], grads["item_bias"] = torch.bmm(total, w_u), torch.bmm(d_score, w_i)
        rows = {"user_table": p, "item_table": q, "user_bias": b_u, "item_bias": b_i}
    else:
        by_task = [torch.bmm(d_score.mT, layers[-1])]
        d_p, d_q = _backward(model, params, p, q, layers, torch.bmm(d_score, head), grads, wanted)
        rows = {"user_table": p, "item_table": q}
    if p is not None:
        grads["user_table"] = d_p
    grads["item_table"] = d_q
    d_weight, d_bias = torch.cat(by_task, 2), d_score.sum(1)
    for number, task in enumerate(tasks):
        grads[f"heads.{task.name}.weight"] = d_weight[:, number]
        grads[f"heads.{task.name}.bias"] = d_bias[:, number : number + 1]
    if l2:
        loss = loss + _penalty(rows, grads, step, l2, weight)
    return loss, {
        name: grads[name].reshape(-1, grads[name].shape[-1]) if name in rows else grads[name] for name in names
    }


def _rows(table: Tensor, index: Tensor | None, k: int) -> Tensor:
    picked = table if index is None else table.index_select(0, index)
    return picked.view(k, -1, table.shape[1])


def losses(tasks: tuple[Task, ...], score: Tensor, step: Step, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the losses [k] and d (weight * loss) / d score for scores [k, 1 + m, L, T]; see `task_loss`."""
    whole = score.shape[1] == 1 or all(task.kind == "rank" for task in tasks)  # every entry is written below
    grad = torch.empty_like(score) if whole else torch.zeros_like(score)
    total = score.new_zeros(len(score))
    for number, task in enumerate(tasks):
        scale, target = step.labels[task.name]
        scale = scale if task.weight == 1 else scale * task.weight
        s, others = score[:, 0, :, number], score[:, 1:, :, number]
        if task.loss == "mse":
            error = s - target
            row, d = error.square(), 2 * error
        elif task.kind != "rank":
            row, d = F.softplus(s) - target * s, s.sigmoid() - target
        elif task.loss == "bce":
            row, d = F.softplus(-s) + F.softplus(others).sum(1), -torch.sigmoid(-s)
            grad[:, 1:, :, number] = others.sigmoid() * scale[:, None]
        else:
            ahead = others - s[:, None]
            each = ahead.sigmoid() / ahead.shape[1]
            row, d = F.softplus(ahead).mean(1), -each.sum(1)
            grad[:, 1:, :, number] = each * scale[:, None]
        total = total + (row * scale).sum(1)
        grad[:, 0, :, number] = d * scale
    return total, grad if weight is None else grad * weight[:, None, None, None]


def _forward(model: Recommender, params: Params, p: Tensor, q: Tensor) -> list[Tensor]:
    # The first layer in two halves: what belongs to a client's one user is computed once, and nothing is joined.
    weight, bias = params["body.0.weight"], params["body.0.bias"]
    left = torch.baddbmm(bias[:, None], p, weight[:, :, : model.dim].mT)
    h = torch.bmm(q, weight[:, :, model.dim :].mT).add_(left).relu_()
    layers = [h]
    for layer in range(1, len(model.hidden)):
        h = torch.baddbmm(params[f"body.{layer}.bias"][:, None], h, params[f"body.{layer}.weight"].mT).relu_()
        layers.append(h)
    return layers


def _backward(
    model: Recommender,
    params: Params,
    p: Tensor,
    q: Tensor,
    layers: list[Tensor],
    d_h: Tensor,
    grads: Params,
    wanted: set[str],
) -> tuple[Tensor, Tensor]:
    train_body = "body.0.weight" in wanted
    for layer in range(len(model.hidden) - 1, 0, -1):
        d_z = torch.ops.aten.threshold_backward(d_h, layers[layer], 0)
        if train_body:
            grads[f"body.{layer}.weight"] = torch.bmm(d_z.mT, layers[layer - 1])
            grads[f"body.{layer}.bias"] = d_z.sum(1)
        d_h = torch.bmm(d_z, params[f"body.{layer}.weight"])
    d_z = torch.ops.aten.threshold_backward(d_h, layers[0], 0)
    d_left = d_z.sum(1, keepdim=True) if p.shape[1] == 1 else d_z
    if train_body:
        grads["body.0.weight"] = torch.cat([torch.bmm(d_left.mT, p), torch.bmm(d_z.mT, q)], 2)
        grads["body.0.bias"] = d_left.sum(1)
    weight = params["body.0.weight"]
    return torch.bmm(d_left, weight[:, :, : model.dim]), torch.bmm(d_z, weight[:, :, model.dim :])


def _penalty(rows: Params, grads: Params, step: Step, l2: float, weight: Tensor | None) -> Tensor:
    """Add the gradient of the penalty to `grads`; return its value [k]: of the rows, and of the first sampled item."""
    k, sampled, length = step.item.shape
    share = step.share * l2
    coefficient = share.new_zeros((k, sampled, length))
    coefficient[:, :2] = share[:, None]
    flat = coefficient.view(k, -1, 1)
    total = share.new_zeros(k)
    for name, value in rows.items():
        c = flat.sum(1, keepdim=True) if value.shape[1] < flat.shape[1] else flat
        total = total + (c * value.square()).sum((1, 2))
        grads[name] = grads[name] + (2 * c if weight is None else 2 * weight[:, None, None] * c) * value
    return total
