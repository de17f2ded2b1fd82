"""A student inside a client: trained on the client's own rows with a teacher beside, its round chosen by validation."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from fedrec.data import ClientData
from fedrec.distillation.lessons import Distillation, lesson
from fedrec.errors import UserError
from fedrec.models import Recommender
from fedrec.parameters import Params, finite
from fedrec.scorers import ModelScorer
from fedrec.sharing import Sharing
from fedrec.tasks import Task
from fedrec.training.local import local_update
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
        found = score(params)
        if found > best.score or math.isnan(best.score):
            best = Learned(params, number, found)
    return best
