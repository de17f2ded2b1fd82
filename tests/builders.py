"""Interactions and clients written by hand."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from fedrec.data import ClientData, Interactions
from fedrec.models import Recommender
from fedrec.sharing import Sharing
from fedrec.tasks import Task
from fedrec.training.draws import draw
from fedrec.training.local import EMPTY, ONE, single
from fedrec.training.recipe import Batch, Recipe
from fedrec.training.results import stack
from fedrec.training.stacks import NOTHING
from fedrec.training.update import Chunk


def interactions(
    pairs: Sequence[tuple[int, int]],
    rating: Sequence[float] | None = None,
    positive: Sequence[bool] | None = None,
    **labels: Sequence[bool],
) -> Interactions:
    """Return (user, item) pairs as interactions: without ratings, all positive, unless said otherwise."""
    n = len(pairs)
    array = np.asarray(pairs, np.int64).reshape(n, 2)
    return Interactions(
        array[:, 0].copy(),
        array[:, 1].copy(),
        np.arange(n),
        np.asarray([np.nan] * n if rating is None else rating, np.float32),
        np.asarray([True] * n if positive is None else positive, np.bool_),
        {name: np.asarray(column, np.bool_) for name, column in labels.items()},
    )


def client(
    train: Interactions,
    validation: Interactions | None = None,
    test: Interactions | None = None,
    *,
    users: int,
    items: int,
    name: str = "films",
) -> ClientData:
    """Return a client with global ids 0, 1, ... ."""
    nothing = train.take(np.zeros(0, np.int64))
    return ClientData(
        name,
        np.arange(users),
        np.arange(items),
        train,
        nothing if validation is None else validation,
        nothing if test is None else test,
    )


def batches(
    data: ClientData,
    tasks: tuple[Task, ...],
    recipe: Recipe,
    rng: np.random.Generator,
    *,
    model: Recommender | None = None,
    seed: int = 0,
) -> Iterator[Batch]:
    """Yield the minibatches of one epoch of a client, drawn from `rng`, for a model that reads whole tables."""
    model = model or Recommender("item", 1)
    one, once = single(model, data, tasks, recipe, seed), replace(recipe, epochs=1)
    if not one.sizes[0]:
        return
    params = stack([{"item_table": torch.zeros(len(data.items), 1)}])
    chunk = Chunk(one, ONE, params, EMPTY, once, Sharing(()), False, NOTHING, None)
    drawn = draw(one, ONE, once, lambda client, epoch: rng)
    for step in chunk.schedule(drawn, chunk.touched([]), 1):
        yield step.batch
