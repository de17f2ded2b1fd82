"""The gradient of every unit of a batch: by hand where a model's is written, by vmap for any other."""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedrec.errors import UserError
from fedrec.keyed import TABLES
from fedrec.models import Recommender
from fedrec.models.module import ModuleRecommender
from fedrec.params import Params
from fedrec.privacy.units import Batch as UnitBatch
from fedrec.tasks import Task
from fedrec.training.gradients import by_rows, laid_out
from fedrec.training.kernels import handwritten, loss_and_gradients
from fedrec.training.losses import batch_loss
from fedrec.training.recipe import Batch
from fedrec.training.step import Step


@dataclass(frozen=True)
class Gradients:
    """The gradients of `batch_loss` on each of U units' rows.

    Those of the item tables are by pairs of a unit and an item that it, its negatives or its history name, every pair
    once, beside padding, which is 0.
    """

    loss: Tensor  # [U]
    dense: Params  # [U, ...]; of a user table the row of the unit's user
    pairs: Params  # item tables [P, ...]
    unit: Tensor  # [P]
    item: Tensor  # [P]

    def norms(self, names: Collection[str]) -> Tensor:
        """Return the Euclidean norms [U] of the gradients of `names` together, in float64."""
        square = self.loss.new_zeros(len(self.loss), dtype=torch.float64)
        for name in names:
            if name in self.dense:
                square += self.dense[name].flatten(1).square().sum(1).double()
            else:
                square.index_add_(0, self.unit, self.pairs[name].flatten(1).square().sum(1).double())
        return square.sqrt_()

    def merge(self) -> Gradients:
        """Return the same with every pair once, where `unit` and `item` may name it several times."""
        items = int(self.item.max()) + 1
        key, place = torch.unique(self.unit * items + self.item, return_inverse=True)
        pairs = {n: v.new_zeros((len(key), *v.shape[1:])).index_add_(0, place, v) for n, v in self.pairs.items()}
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
    loss, grads = loss_and_gradients(model, view | tables, tasks, batch.step, l2, None, names)

    def by_unit(values: Tensor) -> Tensor:
        if k == len(batch.user):
            return values  # every unit has one block
        return values.new_zeros((len(batch.user), *values.shape[1:])).index_add_(0, owner, values)

    dense = {name: by_unit(value) for name, value in grads.items() if name not in tables}
    pairs = {name: value for name, value in grads.items() if name in tables}
    item = batch.step.item.reshape(k, -1)
    unit, item = owner.repeat_interleave(item.shape[1]), item.reshape(-1)
    each = Gradients(by_unit(loss), dense, pairs, unit, item)
    return each if batch.distinct else each.merge()


def by_vmap(
    model: Recommender, params: Params, tasks: tuple[Task, ...], batch: UnitBatch, l2: float, names: Collection[str]
) -> Gradients:
    """Return what `unit_gradients` does, for any model whose content is not trained.

    Rows are padded to the longest unit. What a unit reads of tables is gathered for it, a row for every time that it
    names one: no gradient of a whole table is made. It is worked out in float64, since how a product of matrices rounds
    hangs on its other rows: what stands beside a unit may not move its gradient.
    """
    assert model.side.encoder is None, "an encoder reads a text once for all rows that name it, whoever's they are"
    item, same, columns = laid_out(batch.padded())
    at, content = {"user": batch.user[:, None], "item": item}, model.side.content
    view = {name: (value[at[TABLES[name]]] if name in TABLES else value).double() for name, value in params.items()}
    if content is not None:
        content = content[item.to(content.device)].to(item.device).double()
    model.shapes(1, item.shape[1], ())  # makes a module of one's own for so many rows: it could not be inside vmap
    loss, grads = by_rows(model, view, tasks, same, columns, l2, names, content, axis=None)
    dense = {n: v[:, 0] if n in TABLES else v for n, v in grads.items() if TABLES.get(n) != "item"}
    pairs = {n: v.flatten(0, 1) for n, v in grads.items() if n not in dense}
    unit = torch.arange(len(item), device=item.device).repeat_interleave(item.shape[1])
    return Gradients(loss, dense, pairs, unit, item.flatten()).merge().like(params)


@functools.lru_cache(maxsize=64)
def check_units(model: Recommender, tasks: tuple[Task, ...]) -> None:
    """Raise UserError for a recommender or a task of the user's own that has no gradients by unit."""
    probed = [(f"task {task.part}", Recommender("mf", 2), task) for task in tasks if task.part]
    if isinstance(model, ModuleRecommender):
        probed.append((f"model {type(model.module).__qualname__}", model, Task("click", "binary", "bce")))
    for part, probe, task in probed:
        try:
            fault = "" if reads_its_rows(probe, task) else "that it reads others"
        except UserError:
            raise
        except Exception as error:  # whatever code that vmap cannot differentiate makes it raise
            fault = f"{type(error).__name__}: {error}".partition("\n")[0]
        if fault:
            raise UserError(f"privacy.unit: {part} must be made of a unit's own rows, by vmap, found {fault}")


def reads_its_rows(model: Recommender, task: Task) -> bool:
    """Return whether two units' losses are those of whole tables without padding: a probe of random numbers."""
    rng, ones = torch.Generator().manual_seed(0), torch.ones(2, 3)
    params = {n: torch.randn(v.shape, generator=rng).double() for n, v in model.shapes(4, 5, [task.name]).items()}
    user, item, rows = torch.tensor([3, 2]), torch.tensor([[[3, 1, 2]], [[4, 0, 0]]]), torch.tensor([3, 2])
    step = Step(None, item, ones, {task.name: (ones, ones)})
    grads = by_vmap(model, params, (task,), UnitBatch(step, torch.arange(2), False, user, rows), 0.0, list(params))
    batches = [
        Batch(user[u].expand(n), item[u, 0, :n], None, {task.name: (ones[u, :n], ones[u, :n])})
        for u, n in enumerate(rows.tolist())
    ]
    whole = torch.stack([batch_loss(model, params, (task,), batch, 0.0) for batch in batches])
    return torch.allclose(grads.loss, whole, equal_nan=True)
