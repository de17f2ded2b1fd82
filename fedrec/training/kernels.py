"""One step of many clients: every client's loss and gradients, written by hand and checked against autograd.

Shapes: k clients, L rows each (padded), m sampled items for a row, S = 1 + m, T tasks, d the width of the tables. A
row's user is read once for all of the row's items.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor
from torch.nn import functional as F

from fedrec.keyed import TABLES
from fedrec.models import Recommender
from fedrec.params import Params
from fedrec.tasks import Task
from fedrec.training.step import Step

HANDWRITTEN = ("mf", "mlp", "item")  # the models whose gradients are here
Backward = Callable[[Tensor, set[str]], tuple[Params, Tensor]]  # of d loss / d score: gradients, heads' [k, T, width]


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

    `params`: tables [rows, d], any other parameter [k, ...]. The gradient of a table is by row, to be added up at
    `step.item`, [k S L, d], or at `step.user`, [k L, d] (or [k, d] where that is None); any other one is [k, ...].
    """
    head = torch.stack([params[f"heads.{task.name}.weight"] for task in tasks], 1)  # [k, T, width]
    bias = torch.stack([params[f"heads.{task.name}.bias"] for task in tasks], 2)  # [k, 1, T]
    read = rows_read(model, params, step)
    if model.kind == "item":
        score, backward = _item(read, head, bias)
    elif model.kind == "mlp":
        score, backward = _mlp(model, params, read, head, bias)
    else:
        one_each = read["user_table"].shape[1] == 1
        score, backward = (_mf_of_one if one_each else _mf)(read, head, bias)
    loss, d_score = losses(tasks, score, step, weight)
    grads, d_head = backward(d_score, set(names))
    d_bias = d_score.flatten(1, 2).sum(1)
    for number, task in enumerate(tasks):
        grads[f"heads.{task.name}.weight"] = d_head[:, number]
        grads[f"heads.{task.name}.bias"] = d_bias[:, number : number + 1]
    if l2:
        loss = loss + _penalty(read, grads, step, l2, weight)
    return loss, {n: grads[n].reshape(-1, grads[n].shape[-1]) if n in read else grads[n] for n in names}


def rows_read(model: Recommender, params: Params, step: Step) -> Params:
    """Return what a step reads of tables: of items [k, S, L, d], of users [k, L, d], or [k, 1, d] of one each."""
    at = {"item": step.item, "user": step.user}
    found: Params = {}
    for name, space in model.tables.items():
        table, rows = params[name], at[space]
        picked = table if rows is None else table.index_select(0, rows.reshape(-1))
        found[name] = picked.view(*((len(step.item), 1) if rows is None else rows.shape), -1)
    return found


def losses(tasks: tuple[Task, ...], score: Tensor, step: Step, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the losses [k] and d (weight * loss) / d score for scores [k, S, L, T]; see `task_loss`."""
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


def _item(read: Params, head: Tensor, bias: Tensor) -> tuple[Tensor, Backward]:
    """Return the scores [k, S, L, T] of h = q_i, and how their gradient goes on."""
    shape, q = read["item_table"].shape, read["item_table"].flatten(1, 2)

    def backward(d_score: Tensor, wanted: set[str]) -> tuple[Params, Tensor]:
        d = d_score.flatten(1, 2)
        return {"item_table": torch.bmm(d, head).view(shape)}, torch.bmm(d.mT, q)

    return torch.baddbmm(bias, q, head.mT).view(*shape[:3], -1), backward


def _mf_of_one(read: Params, head: Tensor, bias: Tensor) -> tuple[Tensor, Backward]:
    """Return the scores [k, S, L, T] of h = [p_u * q_i, b_u, b_i] where every client reads one user's row."""
    shape, p, b_u = read["item_table"].shape, read["user_table"], read["user_bias"]
    q, b_i = read["item_table"].flatten(1, 2), read["item_bias"].flatten(1, 2)
    w, w_u, w_i = head[:, :, :-2], head[:, :, -2:-1], head[:, :, -1:]
    score = torch.bmm(q, (w * p).mT) + b_u * w_u.mT + b_i * w_i.mT + bias

    def backward(d_score: Tensor, wanted: set[str]) -> tuple[Params, Tensor]:
        d = d_score.flatten(1, 2)
        inner, total = torch.bmm(d.mT, q), d.sum(1, keepdim=True)  # [k, T, d], [k, 1, T]
        grads = {"user_table": (inner * w).sum(1, keepdim=True), "item_table": torch.bmm(d, w * p).view(shape)}
        grads["user_bias"], grads["item_bias"] = torch.bmm(total, w_u), torch.bmm(d, w_i).view(*shape[:3], 1)
        return grads, torch.cat([inner * p, torch.bmm(total.mT, b_u), torch.bmm(d.mT, b_i)], 2)

    return score.view(*shape[:3], -1), backward


def _mf(read: Params, head: Tensor, bias: Tensor) -> tuple[Tensor, Backward]:
    """Return the scores [k, S, L, T] of h = [p_u * q_i, b_u, b_i], and how their gradient goes on."""
    p, q, b_u, b_i = (read[name] for name in ("user_table", "item_table", "user_bias", "item_bias"))
    w, w_u, w_i = (part.unbind(1) for part in (head[:, :, :-2], head[:, :, -2:-1], head[:, :, -1:]))
    scaled = [p * v[:, None] for v in w]  # [k, L, d] of every task
    each = [(q * u[:, None]).sum(3) for u in scaled]
    of_user = [(b_u * v[:, None])[:, None, :, 0] for v in w_u]
    of_item = [(b_i * v[:, None, None])[..., 0] for v in w_i]
    score = torch.stack([sum(parts[1:], parts[0]) for parts in zip(each, of_user, of_item, strict=True)], 3)

    def backward(d_score: Tensor, wanted: set[str]) -> tuple[Params, Tensor]:
        by_task = [d[..., None] for d in d_score.unbind(3)]
        d_scaled = [(d * q).sum(1) for d in by_task]
        of_user = [d.sum(1) for d in by_task]
        grads = {
            "user_table": _sum([d * v[:, None] for d, v in zip(d_scaled, w, strict=True)]),
            "item_table": _sum([d * u[:, None] for d, u in zip(by_task, scaled, strict=True)]),
            "user_bias": _sum([d * v[:, None] for d, v in zip(of_user, w_u, strict=True)]),
            "item_bias": _sum([d * v[:, None, None] for d, v in zip(by_task, w_i, strict=True)]),
        }
        d_head = [
            torch.cat([(a * p).sum(1), (b * b_u).sum(1), (c * b_i).sum((1, 2))], 1)
            for a, b, c in zip(d_scaled, of_user, by_task, strict=True)
        ]
        return grads, torch.stack(d_head, 1)

    return score + bias[:, :, None], backward


def _sum(parts: list[Tensor]) -> Tensor:
    return sum(parts[1:], parts[0])


def _mlp(model: Recommender, params: Params, read: Params, head: Tensor, bias: Tensor) -> tuple[Tensor, Backward]:
    """Return the scores [k, S, L, T] of h = MLP([p_u, q_i]), and how their gradient goes on."""
    p, shape = read["user_table"], read["item_table"].shape
    q, count = read["item_table"].flatten(1, 2), len(model.hidden)
    # The first layer in two halves: what belongs to a user is computed once, and nothing is joined.
    first = params["body.0.weight"]
    left = torch.baddbmm(params["body.0.bias"][:, None], p, first[:, :, : model.dim].mT)
    h = torch.bmm(q, first[:, :, model.dim :].mT).view(*shape[:3], -1).add_(left[:, None]).relu_().flatten(1, 2)
    layers = [h]
    for layer in range(1, count):
        h = torch.baddbmm(params[f"body.{layer}.bias"][:, None], h, params[f"body.{layer}.weight"].mT).relu_()
        layers.append(h)

    def backward(d_score: Tensor, wanted: set[str]) -> tuple[Params, Tensor]:
        grads, trained, d = Params(), "body.0.weight" in wanted, d_score.flatten(1, 2)
        d_h = torch.bmm(d, head)
        for layer in range(count - 1, 0, -1):
            d_z = torch.ops.aten.threshold_backward(d_h, layers[layer], 0)
            if trained:
                grads[f"body.{layer}.weight"] = torch.bmm(d_z.mT, layers[layer - 1])
                grads[f"body.{layer}.bias"] = d_z.sum(1)
            d_h = torch.bmm(d_z, params[f"body.{layer}.weight"])
        d_z = torch.ops.aten.threshold_backward(d_h, layers[0], 0)
        d_left = d_z.sum(1, keepdim=True) if p.shape[1] == 1 else d_z.view(*shape[:3], -1).sum(1)
        if trained:
            grads["body.0.weight"] = torch.cat([torch.bmm(d_left.mT, p), torch.bmm(d_z.mT, q)], 2)
            grads["body.0.bias"] = d_left.sum(1)
        grads["user_table"] = torch.bmm(d_left, first[:, :, : model.dim])
        grads["item_table"] = torch.bmm(d_z, first[:, :, model.dim :]).view(shape)
        return grads, torch.bmm(d.mT, layers[-1])

    return torch.baddbmm(bias, h, head.mT).view(*shape[:3], -1), backward


def _penalty(read: Params, grads: Params, step: Step, l2: float, weight: Tensor | None) -> Tensor:
    """Add the gradient of the penalty to `grads`; return its value [k]: of the rows, and of the first sampled item."""
    share = step.share[:, None] * l2
    twice = share.expand(-1, min(step.item.shape[1], 2), -1)  # [k, 1 or 2, L]
    total = share.new_zeros(len(share))
    for name, value in read.items():
        grad = grads[name]
        if TABLES[name] == "item":
            value, grad, each = value[:, :2], grad[:, :2], twice[..., None]
        else:
            each = (twice.sum((1, 2)) if value.shape[1] == 1 else twice.sum(1)).view(len(share), -1, 1)
        pulled = each * value
        total = total + (pulled * value).flatten(1).sum(1)
        grad.add_(pulled if weight is None else pulled * weight.view(-1, *[1] * (value.dim() - 1)), alpha=2)
    return total
