"""One step of many clients: every client's loss and gradients, written by hand and checked against autograd.

Shapes: k clients, L rows each (padded), m sampled items for a row, S = 1 + m, T tasks, d the width of the tables. A
row's user is read once for all of the row's items.

What is said of an `Array` works on a tensor and on NumPy's alike. Matrix factorisation makes some forty small arrays a
step, and NumPy's calls cost a third of torch's: on a CPU it is done in NumPy, on the tensors' own memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedrec.keyed import TABLES
from fedrec.models import Recommender
from fedrec.params import Params
from fedrec.tasks import Task
from fedrec.training.step import Step

HANDWRITTEN = ("mf", "mlp", "item")  # the models whose gradients are here
TABLED = ("user_table", "item_table", "user_bias", "item_bias")  # of mf
Array: TypeAlias = Any
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
    one_each = model.kind != "item" and (step.user is None or step.user.shape[1] == 1)
    if model.kind == "mf" and not one_each:
        return _factors(params, tasks, step, l2, weight, names)
    read = rows_read(model, params, step)
    loss, grads = _by_heads(model, params, read, tasks, step, weight, set(names))
    if l2:
        loss = loss + _penalty(read, grads, step.share, l2, weight)
    return loss, {n: grads[n].reshape(-1, grads[n].shape[-1]) if n in read else grads[n] for n in names}


def _by_heads(
    model: Recommender,
    params: Params,
    read: Params,
    tasks: tuple[Task, ...],
    step: Step,
    weight: Tensor | None,
    wanted: set[str],
) -> tuple[Tensor, Params]:
    """Return losses and gradients where all tasks' heads stand on one h, and are applied to it together."""
    head = torch.stack([params[f"heads.{task.name}.weight"] for task in tasks], 1)  # [k, T, width]
    bias = torch.stack([params[f"heads.{task.name}.bias"] for task in tasks], 2)  # [k, 1, T]
    if model.kind == "mlp":
        score, backward = _mlp(model, params, read, head, bias)
    else:
        score, backward = (_item if model.kind == "item" else _mf_of_one)(read, head, bias)
    loss, d_score = losses(tasks, score, step, weight)
    grads, d_head = backward(d_score, wanted)
    d_bias = d_score.flatten(1, 2).sum(1)
    for number, task in enumerate(tasks):
        grads[f"heads.{task.name}.weight"] = d_head[:, number]
        grads[f"heads.{task.name}.bias"] = d_bias[:, number : number + 1]
    return loss, grads


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
    if len(tasks) == 1 and (tasks[0].kind == "rank" or score.shape[1] == 1):  # nothing is left out
        total, grad = loss_of(tasks[0], score[..., 0], *step.labels[tasks[0].name], weight)
        return total, grad[..., None]
    total, grad = score.new_zeros(len(score)), torch.zeros_like(score)
    for number, task in enumerate(tasks):
        asked = slice(None if task.kind == "rank" else 1)
        loss, grad[:, asked, :, number] = loss_of(task, score[:, asked, :, number], *step.labels[task.name], weight)
        total = total + loss
    return total, grad


def loss_of(task: Task, score: Array, scale: Array, target: Array, weight: Array | None) -> tuple[Array, Array]:
    """Return the loss [k] of a task, and d (weight * loss) / d score, for scores [k, S, L], or [k, 1, L] of no rank."""
    scale = scale if task.weight == 1 else scale * task.weight
    s, others = score[:, 0], score[:, 1:]
    if task.loss == "mse":
        error = s - target
        row, grads = error * error, [2 * error[:, None]]
    elif task.kind != "rank":
        plus, share = softplus(s)
        row, grads = plus - target * s, [(share - target)[:, None]]
    elif task.loss == "bce":
        (plus, share), (plus_others, share_others) = softplus(-s), softplus(others)
        row, grads = plus + plus_others.sum(1), [-share[:, None], share_others]
    else:
        plus, share = softplus(others - score[:, :1])
        each = share / others.shape[1]
        row, grads = plus.sum(1) / others.shape[1], [-each.sum(1)[:, None], each]
    grad = (grads[0] if len(grads) == 1 else join(grads)) * scale[:, None]
    return (row * scale).sum(1), grad if weight is None else grad * weight[:, None, None]


def softplus(x: Array) -> tuple[Array, Array]:
    """Return log(1 + exp x) and its derivative."""
    if isinstance(x, Tensor):
        return F.softplus(x), x.sigmoid()
    small = np.exp(-np.abs(x))
    return np.log1p(small) + np.maximum(x, 0), np.where(x > 0, 1, small) / (1 + small)


def einsum(like: Array) -> Callable[..., Array]:
    """Return what sums products over indices."""
    return torch.einsum if isinstance(like, Tensor) else np.einsum


def join(parts: Sequence[Array]) -> Array:
    """Return parts one after the other along the second axis."""
    return torch.cat(list(parts), 1) if isinstance(parts[0], Tensor) else np.concatenate(parts, 1)


def _item(read: Params, head: Tensor, bias: Tensor) -> tuple[Tensor, Backward]:
    """Return the scores [k, S, L, T] of h = q_i, and how their gradient goes on."""
    shape, q = read["item_table"].shape, read["item_table"].flatten(1, 2)

    def backward(d_score: Tensor, wanted: set[str]) -> tuple[Params, Tensor]:
        d = d_score.flatten(1, 2)
        return {"item_table": torch.bmm(d, head).view(shape)}, torch.bmm(d.mT, q)

    return torch.baddbmm(bias, q, head.mT).view(*shape[:3], -1), backward


def outer(d: Tensor, w: Tensor) -> Tensor:
    """Return the products d w [k, n, width] of d [k, n, T] and w [k, T, width]; of T = 1 the same bits in less time."""
    return d * w if d.shape[2] == 1 else torch.bmm(d, w)


def _mf_of_one(read: Params, head: Tensor, bias: Tensor) -> tuple[Tensor, Backward]:
    """Return the scores [k, S, L, T] of h = [p_u * q_i, b_u, b_i] where every client reads one user's row."""
    shape, p, b_u = read["item_table"].shape, read["user_table"], read["user_bias"]
    q, b_i = read["item_table"].flatten(1, 2), read["item_bias"].flatten(1, 2)
    w, w_u, w_i = head[:, :, :-2], head[:, :, -2:-1], head[:, :, -1:]
    score = torch.bmm(q, (w * p).mT) + b_u * w_u.mT + b_i * w_i.mT + bias

    def backward(d_score: Tensor, wanted: set[str]) -> tuple[Params, Tensor]:
        d = d_score.flatten(1, 2)
        inner, total = torch.bmm(d.mT, q), d.sum(1, keepdim=True)  # [k, T, d], [k, 1, T]
        grads = {"user_table": (inner * w).sum(1, keepdim=True), "item_table": outer(d, w * p).view(shape)}
        grads["user_bias"], grads["item_bias"] = torch.bmm(total, w_u), outer(d, w_i).view(*shape[:3], 1)
        return grads, torch.cat([inner * p, torch.bmm(total.mT, b_u), torch.bmm(d.mT, b_i)], 2)

    return score.view(*shape[:3], -1), backward


def _factors(
    params: Params, tasks: tuple[Task, ...], step: Step, l2: float, weight: Tensor | None, names: Collection[str]
) -> tuple[Tensor, Params]:
    """Return losses and gradients of the model `mf`, see `loss_and_gradients`."""
    here = step.item.device.type == "cpu"
    held = {name: on(value, here) for name, value in params.items()}
    rows, share = {"item": on(step.item, here), "user": on(step.user, here)}, on(step.share, here)
    labels = {name: (on(scale, here), on(target, here)) for name, (scale, target) in step.labels.items()}
    scale = None if weight is None else on(weight, here)
    read = {name: chosen(held[name], rows[TABLES[name]]) for name in TABLED}
    with np.errstate(all="ignore"):  # what is not finite is found after the round
        loss, grads = _mf(held, read, tasks, labels, scale)
        if l2:
            loss = loss + _penalty(read, grads, share, l2, scale)
    flat = {n: grads[n].reshape(-1, grads[n].shape[-1]) if n in read else grads[n] for n in names}
    return back(loss), {name: back(value) for name, value in flat.items()}


def on(value: Tensor | None, here: bool) -> Array:
    """Return a tensor as an array of NumPy's where that can be."""
    return value.numpy() if here and value is not None else value


def chosen(table: Array, rows: Array) -> Array:
    """Return some rows [..., d] of a table."""
    return table[rows] if isinstance(table, Tensor) else table.take(rows, 0)


def back(value: Array) -> Tensor:
    """Return an array as a tensor that has its memory."""
    return value if isinstance(value, Tensor) else torch.from_numpy(value)


def _mf(
    params: Mapping[str, Array],
    read: Mapping[str, Array],
    tasks: tuple[Task, ...],
    labels: Mapping[str, tuple[Array, Array]],
    weight: Array | None,
) -> tuple[Array, dict[str, Array]]:
    """Return losses and gradients of h = [p_u * q_i, b_u, b_i], task by task."""
    p, b_u, total, grads = read["user_table"], read["user_bias"], 0.0, dict[str, Array]()
    product = einsum(p)
    for task in tasks:
        head, bias, rank = f"heads.{task.name}.weight", f"heads.{task.name}.bias", task.kind == "rank"
        q, b_i = (read[name] if rank else read[name][:, :1] for name in ("item_table", "item_bias"))
        b_i, w = b_i[..., 0], params[head][:, None]
        w, w_u, w_i = w[..., :-2], w[..., -2:-1], w[..., -1:]
        scaled = p * w
        score = product("ksld,kld->ksl", q, scaled) + b_i * w_i
        if task.loss != "bpr":  # which sees differences of scores alone
            score = score + (b_u[..., 0] * w_u[..., 0] + params[bias])[:, None]
        loss, d = loss_of(task, score, *labels[task.name], weight)
        total, d_scaled, d_u = total + loss, product("ksl,ksld->kld", d, q), d.sum(1)
        d_u = 0 * d_u if task.loss == "bpr" else d_u
        grads[bias] = d_u.sum(1)[:, None]
        d_head = [product("kld,kld->kd", d_scaled, p), (d_u * b_u[..., 0]).sum(1)[:, None]]
        grads[head] = join([*d_head, product("ksl,ksl->k", d, b_i)[:, None]])
        add(grads, "user_table", d_scaled * w, read)
        add(grads, "user_bias", d_u[..., None] * w_u, read)
        add(grads, "item_table", d[..., None] * scaled[:, None], read)
        add(grads, "item_bias", (d * w_i)[..., None], read)
    return total, grads


def add(grads: dict[str, Array], name: str, value: Array, like: Mapping[str, Array]) -> None:
    """Add to a gradient, which is 0 without; a value may be of the first items alone."""
    if name not in grads:
        if value.shape == like[name].shape:
            grads[name] = value
            return
        grads[name] = 0 * like[name]
    grads[name][:, : value.shape[1]] += value


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
        d_h = d * head if head.shape[1] == 1 else torch.bmm(d, head)
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


def _penalty(
    read: Mapping[str, Array], grads: Mapping[str, Array], share: Array, l2: float, weight: Array | None
) -> Array:
    """Add the gradient of the penalty to `grads`; return its value [k]: of the rows, and of the first sampled item."""
    k, sampled, length, _ = read["item_table"].shape
    twice, total, count = 2 * l2 * share, 0.0, min(sampled, 2)
    for name, value in read.items():
        grad = grads[name]
        if TABLES[name] == "item":
            value, grad, each = value[:, :count], grad[:, :count], twice[:, None, :, None]
        elif value.shape[1] == length:
            each = (count * twice)[..., None]
        else:
            each = (count * twice).sum(1)[:, None, None]
        pulled = each * value
        total = total + (pulled * value).reshape(k, -1).sum(1)  # a product of batches takes ten times as long
        grad += pulled if weight is None else pulled * weight.reshape(-1, *[1] * (len(value.shape) - 1))
    return total / 2
