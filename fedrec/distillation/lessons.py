"""What a teacher says about a client's training rows, as a term beside the loss of its student."""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from fedrec.data import ClientData
from fedrec.errors import UserError
from fedrec.evaluation.evaluate import CHUNK
from fedrec.evaluation.scorers import ModelScorer
from fedrec.models import Recommender
from fedrec.params import Params
from fedrec.tasks import Task
from fedrec.training.losses import penalties, scores, total
from fedrec.training.recipe import Batch, Term

Kind = Literal["soft", "ranking"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Distillation:
    """How a teacher's word counts beside the labels: (1 - alpha) hard loss + alpha distillation loss.

    soft: soft labels at a temperature T (arXiv 1503.02531, eq. 1). ranking: the `top` = K items that the teacher
    recommends to a user are further positives of a rank task (Ranking Distillation, KDD 2018, arXiv 1809.07428), with
    weights that fall by position as exp(-r / `decay`); other tasks get soft labels.
    Raises UserError for a value outside its range.
    """

    kind: Kind = "soft"
    weight: float = 0.5  # alpha
    temperature: float = 2.0  # T
    top: int = 10  # K
    decay: float = 10.0  # lambda of arXiv 1809.07428

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.weight <= 1:
            raise UserError(f"weight: must be from 0 to 1, found {self.weight}")
        for name, value in (("temperature", self.temperature), ("decay", self.decay)):
            if not 0 < value < math.inf:
                raise UserError(f"{name}: must be positive and finite, found {value}")
        if self.top < 1:
            raise UserError(f"top: must be at least 1, found {self.top}")


@dataclass(frozen=True)
class Exemplary:
    """A teacher's recommendations to every user: items [users, K], best first, and their weights [users, K]."""

    item: Tensor
    weight: Tensor


def lesson(
    rule: Distillation, teacher: ModelScorer, model: Recommender, data: ClientData, tasks: tuple[Task, ...], l2: float
) -> Term:
    """Return alpha L^D(params, batch), the `pull` of a `local_update` with the `weight` 1 - alpha.

    L^D is the sum over tasks of the task's weight times the mean of `soft_loss` over its rows, for a rank task under
    the kind `ranking` of `ranking_loss`. `local_update` weighs the penalty of the rows by 1 - alpha too: the rest of it
    is here, so that it counts in full. Nothing is read of what is held out.
    """
    exemplary = {
        task.name: recommendations(teacher, task.name, data, rule.top, rule.decay)
        for task in tasks
        if task.kind == "rank" and rule.kind == "ranking"
    }

    def value(params: Params, batch: Batch, *_: object) -> Tensor:
        with torch.no_grad():
            said = scores(teacher.model, teacher.params, tasks, replace(batch, keep=None))
        heard = scores(model, params, tasks, batch)
        parts: list[Tensor] = []
        for task in tasks:
            z, v = heard[task.name], said[task.name]
            if task.name in exemplary:
                loss = ranking_loss(model, params, task, batch, z, exemplary[task.name])
            else:
                loss = soft_loss(task, z, v, rule.temperature)
            mask = batch.labels[task.name][0]
            parts.append(task.weight * (loss * mask).sum() / mask.sum().clamp(min=1.0))
        return rule.weight * total([*parts, *penalties(model, params, batch, l2)])

    return value


def soft_loss(task: Task, z: Tensor, v: Tensor, temperature: float) -> Tensor:
    """Return how far a student's scores z lie from its teacher's v, for every row [B].

    rank: T^2 KL(softmax(v / T) | softmax(z / T)) over the row's item and its sampled ones, z and v [B, 1 + m]
    (arXiv 1503.02531, eq. 1; T^2 keeps the size of the gradients, sec. 2); it tends to half the squared distance of the
    centred logits over 1 + m, T -> infinity (eq. 4). binary: the same over the two classes, whose softmax is
    sigmoid(z / T). rating, and a task of the user's own: (z - v)^2. An attribute [B, C] is softened by its loss: ce as
    rank, bce as binary, mse as rating, the latter two as means over C.
    """
    if task.kind == "rank" or task.loss == "ce":
        return divergence(z, v, temperature)
    if task.loss in ("mse", "own"):
        each = (z - v).square()
    else:
        classes = [torch.stack([x, torch.zeros_like(x)], dim=-1) for x in (z, v)]
        each = divergence(classes[0], classes[1], temperature)
    return each.mean(-1) if task.attribute else each


def divergence(z: Tensor, v: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(v / T) | softmax(z / T)) over the last dimension."""
    log_p, log_q = F.log_softmax(z / temperature, dim=-1), F.log_softmax(v / temperature, dim=-1)
    return temperature**2 * (log_q.exp() * (log_q - log_p)).sum(-1)


def ranking_loss(
    model: Recommender, params: Params, task: Task, batch: Batch, z: Tensor, exemplary: Exemplary
) -> Tensor:
    """Return the loss [B] of the teacher's recommendations pi_1, ..., pi_K to each row's user as further positives.

    bce: -sum_r w_r log sigmoid(s(pi_r)), as arXiv 1809.07428 has it. bpr: each is compared with the row's sampled items
    z [B, 1 + m] as the row's own item is: -sum_r w_r mean_m log sigmoid(s(pi_r) - z_m).
    """
    item = exemplary.item.to(batch.user.device)[batch.user]
    weight = exemplary.weight.to(batch.user.device)[batch.user]
    s = scores(model, params, (task,), replace(batch, negative=item, keep=None))[task.name][:, 1:]
    if task.loss == "bce":
        return (weight * F.softplus(-s)).sum(1)
    return (weight * F.softplus(z[:, None, 1:] - s[:, :, None]).mean(2)).sum(1)


@torch.no_grad()
def recommendations(teacher: ModelScorer, task: str, data: ClientData, top: int, decay: float) -> Exemplary:
    """Return the `top` items that a teacher ranks highest for every user, without those of the user's training rows.

    The weight of place r = 1, 2, ... is exp(-r / decay), over the sum of the user's (weighting by position importance,
    arXiv 1809.07428, eq. 8); a user with fewer unlabelled items has weights of 0 behind them. Held-out items are not
    known here, and may be among the recommended.
    """
    train, count, k = data.train, len(data.users), min(top, len(data.items))
    item, kept = torch.empty((count, k), dtype=torch.int64), torch.empty((count, k), dtype=torch.bool)
    for start in range(0, count, CHUNK):
        users = torch.arange(start, min(start + CHUNK, count))
        score = teacher.score_all(task, users.numpy()).clone()
        here = (train.user >= start) & (train.user < start + CHUNK)
        score[train.user[here] - start, train.item[here]] = -torch.inf
        best = score.topk(k, dim=1)
        item[users], kept[users] = best.indices, best.values > -torch.inf
    weight = torch.exp(-torch.arange(k) / decay) * kept
    return Exemplary(item, weight / weight.sum(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny))
