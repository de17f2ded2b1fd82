"""Students: inside a client, trained on its own rows with a teacher beside; and of a server, from logits alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrec.data import ClientData
from fedrec.distillation.lessons import Distillation, lesson
from fedrec.errors import UserError
from fedrec.evaluation.scorers import ModelScorer
from fedrec.models import Recommender
from fedrec.params import Params, finite
from fedrec.rng import generator
from fedrec.sharing import Sharing
from fedrec.tasks import Task
from fedrec.training.local import local_update
from fedrec.training.optimisers import Optimiser
from fedrec.training.recipe import Recipe


@dataclass(frozen=True)
class Learned:
    """A student at its best: its parameters, the round that validation chose, and the score it chose by."""

    params: Params
    round: int
    score: float


def learn(
    model: Recommender,
    start: Params,
    data: ClientData,
    tasks: tuple[Task, ...],
    recipe: Recipe,
    *,
    rounds: int,
    seed: int,
    score: Callable[[Params], float],
    teacher: ModelScorer | None = None,
    rule: Distillation | None = None,
) -> Learned:
    """Return the best of `rounds` rounds of training by a validation `score`, the larger the better.

    A round trains as that of a client alone, (1 - alpha) hard loss + alpha `lesson`; without a teacher, or with
    alpha = 0, it is that to the bit. Without any score but NaN the last round is returned. Raises UserError if training
    diverged.
    """
    alpha = rule.weight if teacher and rule else 0.0
    pull = lesson(rule, teacher, model, data, tasks, recipe.l2) if teacher and rule and alpha else None
    best, params = Learned(start, 0, math.nan), start
    for number in range(1, rounds + 1):
        params, _ = local_update(
            model,
            params,
            data,
            tasks,
            recipe,
            Sharing(()),
            seed=seed,
            scope=(data.name, number),
            weight=1 - alpha,
            pull=pull,
        )
        if not all(finite(value) for value in params.values()):
            raise UserError(
                f"lr: must be small enough for finite parameters, found {recipe.optimiser.lr} in round {number}"
            )
        result = score(params)
        if result > best.score or math.isnan(best.score):
            best = Learned(params, number, result)
    return best


def distil(
    model: Recommender,
    params: Params,
    task: str,
    user: Tensor,
    item: Tensor,
    logits: Tensor,
    *,
    optimiser: Optimiser,
    batch_size: int,
    epochs: int,
    l2: float,
    seed: int,
) -> Params:
    """Return the student's parameters after `epochs` passes over the pairs: theta ~ argmin mean (s_ui - z_ui)^2.

    `user`, `item` [n] are rows of the student's tables and `logits` [n] the consensus z of the teachers, as ensemble
    distillation has it (FedDF, arXiv 2006.07242, eq. 1) with squared errors for scores; plus `l2` times the penalty of
    the rows. Nothing else is known of the teachers or their data. `params` is where the student starts, left unchanged.
    Raises UserError if it diverged: a pass has a loss, or ends with parameters, that are not finite.
    """
    params = {name: value.detach().clone().requires_grad_(True) for name, value in params.items()}
    names, state, t = sorted(params), optimiser.start(params), 0
    for epoch in range(epochs):
        order = torch.from_numpy(generator(seed, "distil", epoch).permutation(len(user)))
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            u, i = user[part], item[part]
            error = model.head(params, task, model.features(params, u, i)) - logits[part]
            loss = error.square().mean() + l2 * model.penalty(params, u, i).mean()
            grads = torch.autograd.grad(loss, [params[name] for name in names])
            t += 1
            optimiser.step(params, dict(zip(names, grads, strict=True)), state, t)
        if not (finite(loss) and all(finite(value) for value in params.values())):
            rule = f"lr: must be small enough for a finite student, found {optimiser.lr}, with which it diverged"
            raise UserError(f"{rule} in pass {epoch + 1} of {epochs}")
    return {name: value.detach() for name, value in params.items()}
