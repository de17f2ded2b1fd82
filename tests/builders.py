"""Interactions and clients written by hand."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from fedrec.data import ClientData, Dataset, Interactions, Market, before
from fedrec.data.synthetic import synthetic as market_of
from fedrec.keyed import TABLES
from fedrec.models import Recommender
from fedrec.params import Params, clone
from fedrec.rng import generator
from fedrec.sharing import Sharing
from fedrec.tasks import Task
from fedrec.training.cohort import with_rows
from fedrec.training.draws import draw
from fedrec.training.local import EMPTY, ONE, single
from fedrec.training.losses import batch_loss, scores, trainable
from fedrec.training.recipe import Batch, Objective, Recipe, Reference
from fedrec.training.results import stack
from fedrec.training.stacks import NOTHING
from fedrec.training.transforms import Context
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


def synthetic(*, platforms: int, seed: int = 0, **fields: float) -> Dataset:
    """Return a market, a small one unless its fields say else."""
    small = {"similarity": 0.7, "users": 120, "items": 400, "impressions": 40}
    return market_of(Market.model_validate({**small, **fields}), platforms=platforms, seed=seed)


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
    avoided: ClientData | None = None,
) -> Iterator[Batch]:
    """Yield the minibatches of one epoch of a client, drawn from `rng`, for a model that reads whole tables.

    Negatives are drawn from outside the training positives of `avoided`, if that is another.
    """
    model = model or Recommender("item", 1)
    one, once = single(model, avoided or data, tasks, recipe, seed), replace(recipe, epochs=1)
    one = with_rows(
        one,
        [data.train],
        [data.attributes],
        [before(data, model.sequence.history, seed)] if model.sequence.active else [],
    )
    if not one.sizes[0]:
        return
    params = stack([{"item_table": torch.zeros(len(data.items), 1)}])
    chunk = Chunk(one, ONE, params, EMPTY, once, Sharing(()), False, NOTHING, None)
    drawn = draw(one, ONE, once, lambda client, epoch: rng)
    for step in chunk.schedule(drawn, chunk.touched([]), 1):
        yield step.batch


def by_autograd(
    model: Recommender,
    params: Params,
    data: ClientData,
    tasks: tuple[Task, ...],
    recipe: Recipe,
    sharing: Sharing,
    *,
    seed: int,
    scope: tuple[str | int, ...],
    anchor: Params | None = None,
    weight: float = 1.0,
    shift: Params | None = None,
    v: Params | None = None,
    alpha: float = 0.0,
    masks: Params | None = None,
) -> tuple[Params, float, Params]:
    """Return what `local_update` does and APFL's v, step by step by autograd on `batch_loss`: a reference.

    Transforms of one's own get parameters that are not stacked.
    """
    params, v, losses = clone(params), clone(v or {}), []

    def mixture() -> Params:
        return {name: alpha * v[name] + (1 - alpha) * value for name, value in params.items()} if v else {}

    starts, beside = (clone(params), mixture()), recipe.objective
    for number, phase in enumerate(recipe.phases):
        names = trainable(params, tasks, sharing, phase, recipe.optimiser)
        names += [name for name in {**(shift or {}), **(masks or {})} if name not in names]
        state, other = (recipe.optimiser.start({n: one[n] for n in names}) for one in (params, v or params))
        kept, t = [one.init(clone(params)) for one in recipe.transforms], 0
        owner = {n: torch.zeros(len(value), dtype=torch.int64) for n, value in params.items() if n in TABLES}
        for epoch in range(recipe.epochs if names else 0):
            rng = generator(seed, "train", *scope, number, epoch)
            for batch in batches(data, tasks, recipe, rng, model=model, seed=seed):
                t += 1
                if v:
                    _, grads = slope(model, mixture(), tasks, batch, recipe.l2, names, 1.0, beside, starts[1])
                    recipe.optimiser.step(v, {name: alpha * g for name, g in grads.items()}, other, t)
                loss, grads = slope(model, params, tasks, batch, recipe.l2, names, weight, beside, starts[0])
                for place, one in enumerate(recipe.transforms):
                    grads, kept[place] = one.update(grads, kept[place], params, Context(t, owner))
                for name in names:
                    if recipe.mu and anchor and name in anchor:
                        grads[name] = grads[name] + recipe.mu * (params[name] - anchor[name])
                    if shift and name in shift:
                        grads[name] = grads[name] + shift[name]
                    if masks and name in masks:
                        grads[name] = grads[name] * masks[name]
                recipe.optimiser.step(params, grads, state, t)
                losses.append(loss)
    return params, float(np.mean(losses)) if losses else float("nan"), v


def slope(
    model: Recommender,
    params: Params,
    tasks: tuple[Task, ...],
    batch: Batch,
    l2: float,
    names: Sequence[str],
    weight: float,
    objective: Sequence[Objective],
    start: Params,
) -> tuple[float, Params]:
    """Return `batch_loss`, and the gradient in `names` of `weight` times it and the terms of an objective."""
    leaves = {name: value.detach().requires_grad_(name in names) for name, value in params.items()}
    loss = batch_loss(model, leaves, tasks, batch, l2)
    ctx, whole = Reference(start, lambda some, batch: scores(model, some, tasks, batch)), weight * loss
    for one in objective:
        whole = whole + one.value(leaves, batch, ctx)
    found = torch.autograd.grad(whole, [leaves[name] for name in names], allow_unused=True)
    grads = {n: torch.zeros_like(params[n]) if g is None else g for n, g in zip(names, found, strict=True)}
    return float(loss.detach()), grads
