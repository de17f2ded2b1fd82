"""The loss of the validation rows of clients, without penalties and with the same sampled items at every call."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from fedrec.data.types import Ints
from fedrec.metrics import Values
from fedrec.rng import generator
from fedrec.sharing import Sharing
from fedrec.training.cohort import Cohort, held_out
from fedrec.training.draws import draw
from fedrec.training.gradients import first, gradients
from fedrec.training.losses import task_losses, total
from fedrec.training.recipe import Recipe
from fedrec.training.stacks import NOTHING, Stack
from fedrec.training.update import Chunk, cuts


@torch.no_grad()
def held_out_many(cohort: Cohort, shared: Stack, private: Stack, recipe: Recipe, *, seed: int, chosen: Ints) -> Values:
    """Return the losses [k] of the validation rows of the clients `chosen` [k]; NaN without a row.

    Of a task about items it is that of the rows whose item is in validation too.
    """
    held = held_out(cohort, seed)
    once = replace(recipe, epochs=1, phases=("all",), hidden=0.0, l2=0.0)
    losses = np.full(len(chosen), np.nan)
    order = np.argsort(-held.sizes[chosen], kind="stable")
    order = order[held.sizes[chosen[order]] > 0]
    size = held.sizes[chosen[order]]
    cells = np.minimum(size, recipe.batch_size) * (1 + (recipe.num_negatives if held.taken else 0))
    for start, stop in pairwise(cuts(cells, size, size, None)):
        part = order[start:stop]
        chunk = Chunk(held, chosen[part], shared, private, once, Sharing(()), False, NOTHING, None)
        losses[part] = losses_of(chunk, seed)
    return losses


def losses_of(chunk: Chunk, seed: int) -> Values:
    """Return the mean losses [k] of all rows of a chunk's clients."""
    cohort, clients, tasks = chunk.cohort, chunk.clients, chunk.cohort.tasks
    names = [cohort.datas[c].name for c in clients]
    drawn = draw(cohort, clients, chunk.recipe, lambda c, _: generator(seed, "held out", names[c]))
    touched = chunk.touched([] if chunk.whole else [drawn])
    params, content = chunk.params(touched), chunk.content(touched)
    model = replace(chunk.model, calibration=0.0)  # which is no task's loss
    if chunk.alone:
        model = model.read(first(params, touched, 1, alone=True))
    sums = torch.zeros(len(clients), dtype=torch.float64, device=chunk.device)
    for step in chunk.schedule(drawn, touched, 1):
        k = len(step.item)
        view = first(params, touched, k, chunk.alone)
        if chunk.alone:
            loss = total(task_losses(model, view, tasks, step.batch))[None]
        else:
            loss, _, _ = gradients(model, view, tasks, step, 0.0, None, (), content)
        sums[:k] += loss.double() * (step.share > 0).sum(1)
    losses: Values = sums.cpu().numpy() / cohort.sizes[clients]
    return losses
