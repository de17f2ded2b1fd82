"""The loss of the validation rows of many clients: `held_out_loss` of each of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from fedrec.batches import Recipe
from fedrec.data.types import Floats, Ints
from fedrec.metrics import Values
from fedrec.seeds import generator
from fedrec.sharing import Sharing
from fedrec.stacking.cohort import Cohort, edges, learning
from fedrec.stacking.draws import draw, ranges
from fedrec.stacking.gradients import loss_and_gradients
from fedrec.stacking.schedule import Grid, by_task
from fedrec.stacking.stacks import NOTHING, Stack
from fedrec.stacking.update import Chunk, cuts


@torch.no_grad()
def held_out_many(cohort: Cohort, shared: Stack, private: Stack, recipe: Recipe, *, seed: int, chosen: Ints) -> Values:
    """Return the losses [k] of the validation rows of the clients `chosen` [k]; NaN without a row."""
    held = learning(cohort, [data.validation for data in cohort.datas])
    once = replace(recipe, epochs=1, phases=("all",))
    found = np.full(len(chosen), np.nan)
    order = np.argsort(-held.sizes[chosen], kind="stable")
    order = order[held.sizes[chosen[order]] > 0]
    cells = held.sizes[chosen[order]] * (1 + (recipe.num_negatives if held.taken else 0))
    for start, stop in pairwise(cuts(cells, cells, cells, None)):
        part = order[start:stop]
        chunk = Chunk(held, chosen[part], shared, private, once, Sharing(()), False, NOTHING, None)
        found[part] = losses_of(chunk, seed)
    return found


def losses_of(chunk: Chunk, seed: int) -> Values:
    """Return the losses [k] of all rows of a chunk, in one step."""
    cohort, clients = chunk.cohort, chunk.clients
    sizes, names = cohort.sizes[clients], [cohort.datas[c].name for c in clients]
    drawn = draw(cohort, clients, chunk.recipe, lambda c, _: generator(seed, "held out", names[c]))
    owner = np.repeat(np.arange(len(clients)), sizes)
    touched = chunk.touched([drawn], owner)
    params = {
        name: stack.take(name, cohort, clients, touched)
        for stack in (chunk.shared, chunk.private)
        for name in stack.values
    }
    device = str(params["item_table"].device)
    grid = Grid.of(sizes, 1, int(sizes.max()))
    schedule = chunk.schedule(grid, drawn, owner, touched, device)
    mask = np.stack([cohort.labels[task.name][0][drawn.row] for task in cohort.tasks], 1)
    scale = by_batch(mask, sizes, chunk.recipe.batch_size)[grid.index] * (grid.share > 0)[:, None]
    step = replace(schedule, scale=by_task(scale, device)).step(0, 0)
    loss, _ = loss_and_gradients(cohort.model, params, cohort.tasks, step, 0.0, None, ())
    values: Values = loss.double().cpu().numpy()
    return values


def by_batch(mask: Floats, sizes: Ints, batch_size: int) -> Floats:
    """Return the weights [M, T] of rows, of which each client's sum over batches b is sum_b n_b mean_b / n.

    mean_b is over the rows of the task in the batch, n_b all of its rows, n those of the client.
    """
    place = ranges(np.zeros_like(sizes), sizes) // batch_size
    number = edges(-(-sizes // batch_size))[:-1].repeat(sizes) + place  # of the batch, over all clients
    first = np.flatnonzero(np.diff(number, prepend=-1))
    total = np.maximum(np.add.reduceat(mask, first), 1.0)
    share = np.bincount(number)[number] / sizes.repeat(sizes)
    found: Floats = (mask / total[number] * share[:, None]).astype(np.float32)
    return found
