"""Per-unit gradients and their clipped sum: one unit moves it by at most the clip."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrec.models import Recommender
from fedrec.parameters import Params
from fedrec.privacy.units import Batch
from fedrec.sharing import TABLES
from fedrec.stacking.gradients import loss_and_gradients
from fedrec.tasks import Task

SLACK = 1 - 2.0**-18  # what float32 may add to a norm


@dataclass(frozen=True)
class Gradients:
    """The gradients of `batch_loss` on each of U units' rows.

    Those of the item tables are by pairs of a unit and an item that it or its negatives name, every pair once, beside
    padding, which is 0.
    """

    loss: Tensor  # [U]
    dense: Params  # [U, ...]; of a user table the row of the unit's user, [U, d]
    pairs: Params  # item tables [P, d]
    unit: Tensor  # [P]
    item: Tensor  # [P]

    def norms(self, names: Collection[str]) -> Tensor:
        """Return the Euclidean norms [U] of the gradients of `names` together, in float64."""
        square = self.loss.new_zeros(len(self.loss), dtype=torch.float64)
        for name in names:
            if name in self.dense:
                square += self.dense[name].flatten(1).square().sum(1).double()
            else:
                square.index_add_(0, self.unit, self.pairs[name].square().sum(1).double())
        return square.sqrt_()


def unit_gradients(
    model: Recommender, params: Params, tasks: tuple[Task, ...], batch: Batch, l2: float, names: Collection[str]
) -> Gradients:
    """Return the gradients of a batch of units with respect to `names`."""
    k, owner = len(batch.owner), batch.owner
    user = batch.user[owner]  # a block has one user, and so reads and moves one row
    view = {
        name: value.index_select(0, user) if TABLES.get(name) == "user" else value.expand(k, *value.shape)
        for name, value in params.items()
        if TABLES.get(name) != "item"
    }
    tables = {name: value for name, value in params.items() if name not in view}
    loss, found = loss_and_gradients(model, view | tables, tasks, batch.step, l2, None, names)

    def by_unit(values: Tensor) -> Tensor:
        if k == len(batch.user):
            return values  # every unit has one block
        return values.new_zeros((len(batch.user), *values.shape[1:])).index_add_(0, owner, values)

    dense = {name: by_unit(value) for name, value in found.items() if name not in tables}
    pairs = {name: value for name, value in found.items() if name in tables}
    item = batch.step.item.reshape(k, -1)
    unit, item = owner.repeat_interleave(item.shape[1]), item.reshape(-1)
    if not batch.distinct:
        rows = len(params["item_table"])
        key, pair = torch.unique(unit * rows + item, return_inverse=True)
        unit, item = key // rows, key % rows
        pairs = {n: v.new_zeros((len(key), v.shape[1])).index_add_(0, pair, v) for n, v in pairs.items()}
    return Gradients(by_unit(loss), dense, pairs, unit, item)


def clipped(gradients: Gradients, batch: Batch, weight: Tensor, clip: float, into: Params, own: Params) -> None:
    """Add the sum over units of w_u g_u min(1, C / |w_u g_u|) to `into`, whose names are clipped together.

    Write the gradients of the units' own rows, unclipped, to those of their users in `own`. A unit whose gradient is
    not finite, or whose norm overflows, adds nothing to either.
    """
    norm = gradients.norms(into)
    sound = norm.isfinite()
    for name in own:
        sound &= gradients.dense[name].isfinite().all(1)
    factor = torch.where(sound, torch.minimum(weight.double(), SLACK * clip / norm), 0.0).float()
    whole = bool(sound.all())
    for name, total in into.items():
        if name in gradients.dense:
            value, f, index = gradients.dense[name], factor, batch.user
        else:
            value, f, index = gradients.pairs[name], factor[gradients.unit], gradients.item
        value = value * f.view(-1, *[1] * (value.dim() - 1))
        if not whole:
            value = value.nan_to_num(0.0, 0.0, 0.0)  # 0 times what is not finite
        if name in TABLES:
            total.index_add_(0, index, value)
        else:
            total += value.sum(0)
    for name, total in own.items():
        total[batch.user] = torch.where(sound[:, None], gradients.dense[name], 0.0)
