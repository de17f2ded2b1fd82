"""The gradient of every unit of a batch: by hand where a model's is written, by vmap for any other."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from fedrec.keyed import TABLES
from fedrec.models import Recommender
from fedrec.parameters import Params
from fedrec.privacy.units import Batch as UnitBatch
from fedrec.tasks import Task
from fedrec.training.kernels import handwritten, loss_and_gradients
from fedrec.training.losses import batch_loss
from fedrec.training.recipe import Batch


@dataclass(frozen=True)
class Gradients:
    """The gradients of `batch_loss` on each of U units' rows.

    Those of the item tables are by pairs of a unit and an item that it, its negatives or its history name, every pair
    once, beside padding, which is 0.
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

    def merged(self, items: int) -> Gradients:
        """Return the same with every pair once, where `unit` and `item` may name it several times; of so many items."""
        key, place = torch.unique(self.unit * items + self.item, return_inverse=True)
        pairs = {n: v.new_zeros((len(key), v.shape[1])).index_add_(0, place, v) for n, v in self.pairs.items()}
        return replace(self, pairs=pairs, unit=key // items, item=key % items)

    def like(self, params: Params) -> Gradients:
        """Return the same in the numbers of the parameters."""
        dense, pairs = ({n: v.to(params[n].dtype) for n, v in part.items()} for part in (self.dense, self.pairs))
        return replace(self, dense=dense, pairs=pairs)


def unit_gradients(
    model: Recommender, params: Params, tasks: tuple[Task, ...], batch: UnitBatch, l2: float, names: Collection[str]
) -> Gradients:
    """Return the gradients of a batch of units with respect to `names`."""
    return (by_hand if handwritten(model, tasks) else by_vmap)(model, params, tasks, batch, l2, names)


def by_hand(
    model: Recommender, params: Params, tasks: tuple[Task, ...], batch: UnitBatch, l2: float, names: Collection[str]
) -> Gradients:
    """Return what `unit_gradients` does, for a model whose gradients are written by hand."""
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
    each = Gradients(by_unit(loss), dense, pairs, unit, item)
    return each if batch.distinct else each.merged(len(params["item_table"]))


def by_vmap(
    model: Recommender, params: Params, tasks: tuple[Task, ...], batch: UnitBatch, l2: float, names: Collection[str]
) -> Gradients:
    """Return what `unit_gradients` does, for any model whose content is not trained.

    Rows are padded to the longest unit. What a unit reads of tables is gathered for it, a row for every time that it
    names one: no gradient of a whole table is made. It is worked out in float64, since how a product of matrices rounds
    hangs on its other rows: what stands beside a unit may not move its gradient.
    """
    assert model.side.encoder is None, "an encoder reads a text once for all rows that name it, whoever's they are"
    item, places, columns = laid_out(batch)
    at, content = {"user": batch.user[:, None], "item": item}, model.side.content
    view = {name: (value[at[TABLES[name]]] if name in TABLES else value).double() for name, value in params.items()}
    if content is not None:
        content = content[item.to(content.device)].to(item.device).double()

    def loss(moved: Params, held: Params, content: Tensor | None, columns: dict[str, Any]) -> Tensor:
        mine = replace(model, side=replace(model.side, content=content))
        return batch_loss(mine, {**held, **moved}, tasks, Batch(**{**places, **columns}), l2)

    moved, held = ({n: v for n, v in view.items() if (n in names) == wanted} for wanted in (True, False))
    axes = [{n: 0 if n in TABLES else None for n in part} for part in (moved, held)]
    each = vmap(grad_and_value(loss), in_dims=(*axes, None if content is None else 0, 0))
    found, value = each(moved, held, content, columns)
    dense = {n: v[:, 0] if n in TABLES else v for n, v in found.items() if TABLES.get(n) != "item"}
    pairs = {n: v.flatten(0, 1) for n, v in found.items() if n not in dense}
    unit = torch.arange(len(item), device=item.device).repeat_interleave(item.shape[1])
    return Gradients(value, dense, pairs, unit, item.flatten()).merged(len(params["item_table"])).like(params)


def laid_out(batch: UnitBatch) -> tuple[Tensor, dict[str, Any], dict[str, Any]]:
    """Return the items [U, n] that units name, one by one, and the fields of their `Batch`es.

    Rows of item tables are places among a unit's own n, and the row of its user is 0. The first fields are the same for
    all units, since vmap gathers at other places for each in a loop; the others are side by side [U, ...].
    """
    place, real = batch.places()

    def laid(values: Tensor) -> Tensor:
        return values.flatten(0, 1)[place]

    item = laid(batch.step.item.mT)  # [U, R, 1 + m]
    named, (_, rows, width) = item.flatten(1), item.shape
    places = torch.arange(rows * width, device=item.device).view(rows, width)
    same: dict[str, Any] = {"user": torch.zeros_like(places[:, 0]), "item": places[:, 0], "negative": None}
    if width > 1:
        same["negative"] = places[:, 1:]
    columns: dict[str, Any] = {
        "labels": {n: ((laid(s) > 0) * real, laid(target)) for n, (s, target) in batch.step.labels.items()},
        "share": real.double() / batch.rows[:, None],
    }
    if batch.history is not None:
        past = laid(batch.history)  # [U, R, H]
        at = torch.arange(past[0].numel(), device=item.device).view(past.shape[1:]) + rows * width
        columns["history"] = torch.where(past < 0, -1, at)
        named = torch.cat([named, torch.where(past < 0, item[:, :, :1], past).flatten(1)], 1)
    if batch.keep is not None:
        columns["keep"] = laid(batch.keep.mT)
    return named, same, columns
