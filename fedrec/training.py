"""Local training: a pure function from parameters and data to parameters."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedrec.batches import Batch, Phase, Recipe, batches
from fedrec.data import ClientData, before, excluded, latest
from fedrec.models import Recommender
from fedrec.optimisers import Optimiser
from fedrec.parameters import Params
from fedrec.seeds import generator
from fedrec.sharing import Sharing
from fedrec.tasks import Task, task_loss
from fedrec.weighting import Weigher

Beside = Callable[[Params, list[str], Batch, int], None]


def task_losses(model: Recommender, params: Params, tasks: tuple[Task, ...], batch: Batch) -> list[Tensor]:
    """Return the weight of every task times the mean loss of its rows; 0 for a task without rows."""
    model = model.read(params, batch.item, batch.negative, batch.history)
    keep = None if batch.keep is None else batch.keep[:, 0]
    about_pairs = not all(task.attribute for task in tasks)
    features, sampled = representations(model, params, batch) if about_pairs else (batch.item, None)
    found: list[Tensor] = []
    for task in tasks:
        mask, target = batch.labels[task.name]
        negative = None
        if task.kind == "rank" and sampled is not None:
            negative = model.head(params, task.name, sampled).reshape(len(mask), -1)
        if task.attribute:
            score = model.attribute(params, task.name, batch.item, keep)
        else:
            score = model.head(params, task.name, features)
        loss = task_loss(task, score, target, negative)
        found.append(task.weight * (loss * mask).sum() / mask.sum().clamp(min=1.0))
    return found


def representations(model: Recommender, params: Params, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Return h [B, width] of a batch's rows, and [B * m, width] of their sampled items if it has any."""
    p = None if batch.history is None else model.users(params, batch.user, batch.history)
    keep = None if batch.keep is None else batch.keep[:, 0]
    features = model.features(params, batch.user, batch.item, p, keep)
    if batch.negative is None:
        return features, None
    m = batch.negative.shape[1]
    user, item = batch.user.repeat_interleave(m), batch.negative.reshape(-1)
    p = None if p is None else p.repeat_interleave(m, 0)
    keep = None if batch.keep is None else batch.keep[:, 1:].reshape(-1)
    return features, model.features(params, user, item, p, keep)


def penalties(model: Recommender, params: Params, batch: Batch, l2: float) -> list[Tensor]:
    """Return l2 times the mean penalty of the batch's rows and of its sampled items, if any; last the calibrator's."""
    items = [batch.item] if batch.negative is None else [batch.item, batch.negative[:, 0]]
    found = [l2 * mean(model.penalty(params, batch.user, item), batch) for item in items] if l2 else []
    if model.calibrated:
        p = None if batch.history is None else model.users(params, batch.user, batch.history)
        keep = None if batch.keep is None else batch.keep[:, 0]
        features = model.features(params, batch.user, batch.item, p, keep)
        found.append(model.calibration * mean(model.calibrator(params, features), batch))
    return found


def mean(values: Tensor, batch: Batch) -> Tensor:
    """Return the mean of a value of every row [B], of padding none."""
    return values.mean() if batch.share is None else (values * batch.share).sum()


def total(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of at least one scalar, added in order."""
    found = parts[0].new_zeros(())
    for part in parts:
        found = found + part
    return found


def batch_loss(model: Recommender, params: Params, tasks: tuple[Task, ...], batch: Batch, l2: float) -> Tensor:
    """Return the weighted sum over tasks of the mean loss of the task's rows, plus the penalties."""
    return total([*task_losses(model, params, tasks, batch), *penalties(model, params, batch, l2)])


def trainable(
    names: Iterable[str], tasks: tuple[Task, ...], sharing: Sharing, phase: Phase, optimiser: Optimiser
) -> list[str]:
    """Return the names that a phase trains: all, the private ones (a head first), or the shared ones (the body).

    What the optimiser gives a rate of 0 keeps its start.

    BPR cannot see what is the same for all items of a user: the bias of its head, and the user bias if no other task
    uses it. Their gradient would be rounding noise, which an adaptive optimiser makes steps of.
    """
    blind = {f"heads.{task.name}.bias" for task in tasks if task.loss == "bpr"}
    if len(blind) == sum(not task.attribute for task in tasks):
        blind.add("user_bias")
    seen = [name for name in names if name not in blind and optimiser.rate(name)]
    shared = sharing.split({name: torch.empty(0) for name in seen})[0].keys()
    return [name for name in seen if phase == "all" or (name in shared) == (phase == "shared")]


def steps(data: ClientData, tasks: tuple[Task, ...], recipe: Recipe) -> int:
    """Return how many steps a round of local training makes on the shared parameters."""
    used = int(np.logical_or.reduce([task.rows(data.train, data.attributes) for task in tasks]).sum())
    passes = recipe.epochs * sum(phase != "private" for phase in recipe.phases)
    return passes * -(-used // recipe.batch_size)


def local_update(
    model: Recommender,
    params: Params,
    data: ClientData,
    tasks: tuple[Task, ...],
    recipe: Recipe,
    sharing: Sharing,
    *,
    seed: int,
    scope: tuple[str | int, ...],
    anchor: Mapping[str, Tensor] | None = None,
    weight: float = 1.0,
    beside: Beside | None = None,
    shift: Mapping[str, Tensor] | None = None,
    pull: Callable[[Params, Batch], Tensor] | None = None,
    weigher: Weigher | None = None,
    own: Mapping[str, Tensor] | None = None,
) -> tuple[Params, float]:
    """Return the parameters after one round of local training, and the mean training loss over its batches.

    Pure: `params` is not changed, and the result depends on the arguments alone. The optimiser starts afresh. `anchor`
    is the broadcast that the proximal term `mu/2 |x - z|^2` pulls the shared parameters to. `weight` multiplies the
    loss against that term (1 + mu_i of a loss budget); the loss that is returned is without it. `beside` is called
    before every step with the parameters, the names that it trains, its batch and its number in the phase. `shift` is
    added to the gradients, also where a task sees none. `pull` is a term beside the loss: of a client that exchanges
    no part of its parameters (`fedrec.channel`), or of a teacher (`fedrec.distillation`). `weigher` weighs the tasks'
    losses for the steps and goes on to its next state; the loss that is returned has the fixed weights, so that it
    tells nothing of it. `own` are masks of shared parameters, 1 at what nobody else has: the phase private trains that
    too. Without a row to train on, the parameters come back unchanged and the loss is NaN.
    """
    params = {name: value.detach().clone() for name, value in params.items()}
    device = str(next(iter(params.values())).device)
    model = replace(model, side=model.side.held(params))
    taken = excluded(data, recipe.negatives) if any(task.kind == "rank" for task in tasks) else None
    past = before(data, model.sequence.history, seed) if model.sequence.active else None
    losses: list[Tensor] = []
    for number, phase in enumerate(recipe.phases):
        names = trainable(params, tasks, sharing, phase, recipe.optimiser)
        names += [name for name in shift or {} if name not in names]
        mine = dict(own or {}) if phase == "private" else {}
        names += [name for name in mine if name not in names and recipe.optimiser.rate(name)]
        state = recipe.optimiser.start({name: params[name] for name in names})
        t = 0
        for name in names:
            params[name].requires_grad_(True)
        for epoch in range(recipe.epochs if names else 0):
            rng = generator(seed, "train", *scope, number, epoch)
            if weigher:
                weigher.epoch(generator(seed, "weights", *scope, number, epoch), first=epoch == 0)
            for batch in batches(data, tasks, recipe, rng, device, taken, past):
                parts, rest = task_losses(model, params, tasks, batch), penalties(model, params, batch, recipe.l2)
                loss = followed = total([*parts, *rest])
                if weigher:
                    seen = [bool(batch.labels[task.name][0].any()) for task in tasks]
                    followed = total([weigher.loss(parts, seen, params, names, t + 1), *rest])
                whole = weight * followed + pull(params, batch) if pull else weight * followed
                grads = gradients(whole, params, names, recipe.mu, anchor)
                grads |= {name: grads[name] + value for name, value in (shift or {}).items()}
                grads |= {name: grads[name] * value for name, value in mine.items() if name in grads}
                t += 1
                if beside:
                    beside(params, names, batch, t)
                recipe.optimiser.step(params, grads, state, t)
                losses.append(loss.detach())
            if weigher:
                weigher.ended()
        params = {name: value.detach() for name, value in params.items()}
    return params, float(torch.stack(losses).double().mean()) if losses else float("nan")


def held_out_loss(
    model: Recommender, params: Params, data: ClientData, tasks: tuple[Task, ...], recipe: Recipe, *, seed: int
) -> float:
    """Return the loss of the validation rows, without penalties and with the same sampled items at every call.

    Of a task about items it is that of the rows whose item is in validation too. NaN without a validation row.
    """
    about = replace(data.attributes, train=data.attributes.validation)
    held, rng = replace(data, train=data.validation, attributes=about), generator(seed, "held out", data.name)
    recipe = replace(recipe, hidden=0.0)
    taken, device = excluded(data, recipe.negatives), str(next(iter(params.values())).device)
    past = None
    if model.sequence.active:
        users = latest(data, data.known("validation"), model.sequence.history, seed)
        past = users.at(data.validation.user)
    with torch.no_grad():
        model = model.read(params)
        parts = [
            (len(batch.user), float(total(task_losses(model, params, tasks, batch))))
            for batch in batches(held, tasks, recipe, rng, device, taken, past)
        ]
    rows = sum(count for count, _ in parts)
    return sum(count * loss for count, loss in parts) / rows if rows else float("nan")


def gradients(loss: Tensor, params: Params, names: list[str], mu: float, anchor: Mapping[str, Tensor] | None) -> Params:
    """Return d loss / d params for `names`, plus mu (x - z) for the names that `anchor` holds."""
    values = torch.autograd.grad(loss, [params[name] for name in names], allow_unused=True)
    grads = {n: torch.zeros_like(params[n]) if g is None else g for n, g in zip(names, values, strict=True)}
    if mu and anchor:
        for name in anchor.keys() & grads.keys():
            grads[name] = grads[name] + mu * (params[name].detach() - anchor[name])
    return grads
