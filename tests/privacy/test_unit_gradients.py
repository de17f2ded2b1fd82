"""Gradients by unit of any model: those of `batch_loss` on the unit's rows alone, whatever stands beside them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.data import ClientData, before
from fedrec.data.types import Attributes
from fedrec.keyed import TABLES
from fedrec.models import KINDS, Recommender, UserSequence
from fedrec.models.side import Side
from fedrec.params import Params
from fedrec.privacy import differential, gradients
from fedrec.privacy.clipping import SLACK, clipped
from fedrec.privacy.gradients import Gradients, by_hand, by_vmap, unit_gradients
from fedrec.privacy.units import Batch as UnitBatch
from fedrec.privacy.units import Units
from fedrec.rng import generator
from fedrec.tasks import Task, parse_task
from fedrec.training import gradients as training
from fedrec.training.kernels import handwritten
from fedrec.training.losses import batch_loss
from fedrec.training.optimisers import Optimiser
from fedrec.training.recipe import Batch, Recipe
from fedrec.training.step import Step
from tests.builders import client, interactions

Unit = Literal["interaction", "user"]
USERS, ITEMS, DIM, L2, CLIP = 6, 19, 4, 0.03, 0.4
UNITS: tuple[Unit, ...] = ("user", "interaction")
EVERY = "rank,rating*0.5,click*2,buy"


def silo(seed: int = 0, n: int = 40) -> ClientData:
    """Return a silo whose users have 0 to 18 rows, in no order of users; the last one has none."""
    rng = generator(seed, "silo")
    pairs = {divmod(int(x), ITEMS) for x in rng.permutation((USERS - 1) * ITEMS)[: n // 2]}
    pairs |= {(0, i) for i in range(min(ITEMS - 1, n // 2))}
    rows = sorted(pairs, key=lambda pair: (pair[0] * 7 + pair[1] * 5) % 11)
    rating = np.where(rng.random(len(rows)) < 0.6, rng.integers(1, 6, len(rows)), np.nan).tolist()
    positive, click, buy = (rng.random(len(rows)) < p for p in (0.7, 0.5, 0.3))
    train = interactions(rows, rating, positive.tolist(), click=click.tolist(), buy=(click & buy).tolist())
    values = {
        "category": (rng.random((ITEMS, 3)) < 0.4).astype(np.float32),
        "brand": np.eye(4, dtype=np.float32)[rng.integers(0, 4, ITEMS)],
        "price": rng.normal(0, 1, (ITEMS, 1)).astype(np.float32),
    }
    values["price"][::5] = math.nan
    held = np.arange(ITEMS) % 4 == 0
    return replace(client(train, users=USERS, items=ITEMS), attributes=Attributes(values, ~held, held, held))


@dataclass(frozen=True)
class Case:
    """A model and what it learns, with units of which it can be private."""

    model: Recommender
    tasks: tuple[Task, ...]
    hidden: float = 0.0

    @property
    def units(self) -> tuple[Unit, ...]:
        return ("user",) if self.model.sequence.active else UNITS

    def start(self, seed: int = 0, wild: float = 1.0) -> Params:
        """Return parameters without zeros, so that every gradient shows."""
        offsets = {task.name: 0.5 for task in self.tasks if not task.attribute}
        found = self.model.init(seed, np.arange(USERS), np.arange(ITEMS), offsets)
        rng = generator(seed, "start")
        return {n: wild * (v + torch.from_numpy(rng.normal(0, 0.3, tuple(v.shape)).astype(np.float32)))
                for n, v in found.items()}  # fmt: skip

    def recipe(self) -> Recipe:
        return Recipe(1, 8, Optimiser("sgd", 0.05), num_negatives=2, hidden=self.hidden)

    def of(self, data: ClientData, unit: Unit) -> Units:
        past = before(data, self.model.sequence.history, 0) if self.model.sequence.active else None
        return Units.of(data, self.tasks, self.recipe(), unit, past)


def case(kind: str, text: str = "rank,click,buy", content: bool = False, hidden: float = 0, **fields: object) -> Case:
    tasks, about = tuple(map(parse_task, text.split(","))), silo().attributes
    vectors = torch.from_numpy(generator(0, "content").normal(0, 0.5, (ITEMS, 3)).astype(np.float32))
    model = Recommender(
        kind, DIM, (6, 5), experts=2, side=Side(vectors if content else None),
        attributes={task.name: task.usual(about) for task in tasks if task.attribute},
        classes={task.name: task.classes for task in tasks if task.classes}, **fields,  # type: ignore[arg-type]
    )  # fmt: skip
    return Case(model, tasks, hidden)


def reading(kind: Literal["gru4rec", "sasrec"]) -> UserSequence:
    return UserSequence(kind=kind, history=3, blocks=2, heads=2)


CASES: dict[str, Case] = {
    **{kind: case(kind) for kind in KINDS},
    **{f"{kind}, every task": case(kind, EVERY) for kind in ("ple", "mmoe", "aitm", "esmm")},
    "aitm, calibrator alone": case("aitm", "click,buy", calibration=5.0),
    "rank-bce": case("ple", "rank-bce,click"),
    "behaviour": case("mf", "rank,behaviour"),
    "behaviour in a body": case("mmoe", "behaviour*2,buy"),
    "attributes": case("mlp", "rank,category,brand*0.5,price"),
    "attributes alone": case("mf", "brand,price"),
    "two heads": case("mf", "click,behaviour"),
    "content": case("mf", content=True),
    "content, item": case("item", "rank,rating", content=True),
    "hidden ids": case("mlp", "rank,click", content=True, hidden=0.5),
    "hidden ids in a body": case("ple", "rank,click,brand,behaviour", content=True, hidden=0.5),
    **{f"{kind}, mf": case("mf", "rank,click", sequence=reading(kind)) for kind in ("gru4rec", "sasrec")},
    **{f"{kind}, mlp": case("mlp", "rating", sequence=reading(kind)) for kind in ("gru4rec", "sasrec")},
    **{
        f"{kind}, all": case("aitm", f"{EVERY},price", content=True, hidden=0.3, sequence=reading(kind))
        for kind in ("gru4rec", "sasrec")
    },
}
PAIRS = [(name, unit) for name, one in CASES.items() for unit in one.units]


def alone(data: ClientData, tasks: tuple[Task, ...], unit: Unit, number: int) -> ClientData:
    """Return the data with nothing but the rows of one unit."""
    used = np.flatnonzero(np.logical_or.reduce([task.rows(data.train, data.attributes) for task in tasks]))
    kept = data.train.user == number if unit == "user" else np.arange(len(data.train)) == used[number]
    return replace(data, train=data.train.take(kept))


def rows_of(one: Case, data: ClientData, batch: UnitBatch, unit: int) -> Batch:
    """Return the rows of a silo of one unit as training sees them, with the negatives and hidden ids of a batch."""
    masks = {task.name: task.rows(data.train, data.attributes) for task in one.tasks}
    used = np.flatnonzero(np.logical_or.reduce(list(masks.values())))
    blocks = (batch.owner == unit).nonzero().reshape(-1)
    real = batch.step.share[blocks] > 0
    item = batch.step.item[blocks].mT[real]  # [rows, 1 + m]
    assert item[:, 0].tolist() == data.train.item[used].tolist()
    labels = {}
    for task in one.tasks:
        target = task.target(data.train, data.attributes)[used].astype(np.float32)
        labels[task.name] = (torch.from_numpy(masks[task.name][used].astype(np.float32)), torch.from_numpy(target))
    history = None
    if one.model.sequence.active:
        history = torch.from_numpy(before(data, one.model.sequence.history, 0).take(used))
    keep = None if batch.keep is None else batch.keep[blocks].mT[real]
    user = batch.user[unit].expand(len(item))
    return Batch(user, item[:, 0], item[:, 1:] if item.shape[1] > 1 else None, labels, history, keep)


def expected(one: Case, params: Params, rows: Batch) -> tuple[float, Params]:
    """Return the loss of some rows and its gradients by plain autograd."""
    leaves = {name: value.double().requires_grad_(True) for name, value in params.items()}
    side = replace(one.model.side, content=None if one.model.side.content is None else one.model.side.content.double())
    loss = batch_loss(replace(one.model, side=side), leaves, one.tasks, rows, L2)
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return float(loss.detach()), dict(zip(leaves, found, strict=True))


def whole(found: Gradients, batch: UnitBatch, unit: int, params: Params) -> Params:
    """Return the gradients of one unit, in the shapes of the parameters."""
    total = {}
    for name, value in params.items():
        total[name] = torch.zeros_like(value)
        if name in found.pairs:
            total[name].index_add_(0, found.item[found.unit == unit], found.pairs[name][found.unit == unit])
        elif name in TABLES:
            total[name][batch.user[unit]] = found.dense[name][unit]
        else:
            total[name] = found.dense[name][unit]
    return total


def size(values: Params) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in values.values()))


def apart(a: Params, b: Params) -> float:
    """Return the distance of two gradients over the size of the second."""
    return size({n: a[n].double() - b[n].double() for n in b}) / (size(b) or 1.0)


def parts(one: Case, units: Units, cells: int = 100, most: int = 9) -> list[UnitBatch]:
    """Return all units of a silo in small parts."""
    most = 0 if handwritten(one.model, one.tasks) else most
    return list(units.batches(np.arange(units.count), 5, cells, "cpu", most))


def weights(batch: UnitBatch, unit: Unit) -> torch.Tensor:
    return batch.rows if unit == "user" else torch.ones_like(batch.rows)


def clipped_sum(one: Case, data: ClientData, unit: Unit, params: Params, clip: float, parting: int = 100) -> Params:
    """Return the sum of the clipped gradients of all units."""
    into = {n: torch.zeros_like(v) for n, v in params.items()}
    for batch in parts(one, one.of(data, unit), parting):
        found = unit_gradients(one.model, params, one.tasks, batch, L2, list(params))
        clipped(found, batch, weights(batch, unit), clip, into, {})
    return into


def only(found: Gradients, unit: int) -> Gradients:
    """Return the gradients of one unit, beside zeros."""
    dense = {name: torch.zeros_like(value) for name, value in found.dense.items()}
    for name in dense:
        dense[name][unit] = found.dense[name][unit]
    return replace(found, dense=dense, pairs={n: v * (found.unit == unit)[:, None] for n, v in found.pairs.items()})


def worst(one: Case, data: ClientData, unit: Unit) -> float:
    """Return how far anything is from plain autograd on the rows of single units, in float64: the most of anything."""
    params, names = one.start(), list(one.start())
    found_most, met, bound, units = [0.0], 0, 0, one.of(data, unit)
    summed = {n: torch.zeros(v.shape, dtype=torch.float64) for n, v in params.items()}
    for batch in parts(one, units):
        found, weight = unit_gradients(one.model, params, one.tasks, batch, L2, names), weights(batch, unit)
        for u, w in enumerate(weight.tolist()):
            mine = alone(data, one.tasks, unit, int(batch.user[u]) if unit == "user" else met)
            loss, exact = expected(one, params, rows_of(one, mine, batch, u))
            factor = min(w, SLACK * CLIP / size(exact))
            into = {n: torch.zeros_like(v) for n, v in params.items()}
            clipped(only(found, u), batch, weight, CLIP, into, {})
            found_most += [
                abs(float(found.loss[u]) / loss - 1),
                abs(float(found.norms(names)[u]) / size(exact) - 1),
                apart(whole(found, batch, u, params), exact),
                apart(into, {n: factor * v for n, v in exact.items()}),
            ]
            summed = {n: summed[n] + factor * v for n, v in exact.items()}
            met, bound = met + 1, bound + (factor < w)
    assert met == sum(units.rows > 0) >= 5 and bound > 0
    return max(*found_most, apart(clipped_sum(one, data, unit, params, CLIP), summed))


@pytest.mark.parametrize(("name", "unit"), PAIRS)
def test_the_clipped_gradients_of_units_are_those_of_their_rows_alone(name: str, unit: Unit) -> None:
    assert worst(CASES[name], silo(), unit) < 1e-6


def columns_of(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[..., Any]:
    """Return a `laid_out` that changes what the units' losses read."""

    def broken(step: Step) -> tuple[torch.Tensor, dict[str, Any], dict[str, Any]]:
        item, same, columns = laid_out(step)
        return item, same, change(columns)

    laid_out = training.laid_out
    return broken


def ones(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones_like(pair[0]), pair[1]


BROKEN: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "a mean over the rows of all units": (
        "two heads",
        lambda c: {**c, "share": c["share"] * 0 + 1 / c["share"].numel()},
    ),
    "padding counts in the penalty": ("two heads", lambda c: {**c, "share": c["share"] * 0 + 1 / c["share"].shape[1]}),
    "padding counts in the calibrator": ("aitm, calibrator alone", lambda c: {**c, "share": (c["share"] > 0) * 0.1}),
    "padding counts in the losses": ("mmoe", lambda c: {**c, "labels": {n: ones(v) for n, v in c["labels"].items()}}),
    "the labels of the next unit": (
        "mmoe",
        lambda c: {**c, "labels": {n: (m, t.roll(1, 0)) for n, (m, t) in c["labels"].items()}},
    ),
    "the history of the next row": ("gru4rec, mf", lambda c: {**c, "history": c["history"].roll(1, 1)}),
    "no hidden ids": ("hidden ids", lambda c: {k: v for k, v in c.items() if k != "keep"}),
}


@pytest.mark.parametrize(("name", "change"), BROKEN.values(), ids=BROKEN)
def test_a_broken_loss_of_a_unit_is_seen(
    name: str, change: Callable[[dict[str, Any]], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = CASES[name]
    monkeypatch.setattr(gradients, "laid_out", columns_of(change))
    assert worst(one, silo(), "user") > 1e-3


def test_one_gradient_for_all_units_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken build: the mean over a part in the place of each unit's gradient."""

    def mean(*args: Any) -> Gradients:
        found = by_vmap(*args)
        return replace(found, dense={n: v.mean(0, keepdim=True).expand_as(v) for n, v in found.dense.items()})

    monkeypatch.setattr(gradients, "by_vmap", mean)
    assert worst(CASES["ple"], silo(), "user") > 1e-3


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", ["mf", "mlp", "item"])
def test_by_hand_and_by_vmap_are_equal(kind: str, unit: Unit) -> None:
    one, data = case(kind, EVERY), silo()
    params, units = one.start(), one.of(data, unit)
    assert handwritten(one.model, one.tasks)
    for names in (list(params), ["item_table", "heads.click.bias"]):
        for batch in parts(one, units):
            a, b = (each(one.model, params, one.tasks, batch, L2, names) for each in (by_hand, by_vmap))
            torch.testing.assert_close(a.loss.double(), b.loss, rtol=1e-6, atol=0)
            some = {name: params[name] for name in names}
            for u in range(len(batch.user)):
                assert apart(whole(a, batch, u, some), whole(b, batch, u, some)) < 1e-6


def test_parts_are_bounded_and_hold_every_unit_once() -> None:
    one, data = CASES["sasrec, mf"], silo()
    units = one.of(data, "user")
    for cells, most in ((1, 1), (100, 3), (200, 2), (10**6, 100)):
        seen = []
        for batch in units.batches(np.arange(units.count), 5, cells, "cpu", most):
            padded = len(batch.rows) * int(batch.rows.max()) * (1 + 2 + 3)  # a row, its negatives and its history
            assert len(batch.rows) <= most and (padded <= cells or len(batch.rows) == 1)
            seen += batch.user.tolist()
        assert sorted(seen) == np.flatnonzero(units.rows).tolist()
    sums = [clipped_sum(one, data, "user", one.start(), CLIP, cells) for cells in (1, 100, 10**6)]
    assert apart(sums[0], sums[2]) < 1e-6 and apart(sums[1], sums[2]) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_a_step_fits_in_memory(kind: str) -> None:
    for wide in (4, 64, 512):
        model = Recommender(kind, wide, (4 * wide, 2 * wide))
        params = model.shapes(10, 10, ["click", "buy"])
        dense = {name: value.numel() for name, value in params.items() if name not in TABLES}
        outputs = sum(size for name, size in dense.items() if name.endswith("bias"))
        cells, _, most = differential.parts(params, "cpu", False)
        assert most == 1 or most * sum(dense.values()) <= differential.DENSE
        assert cells <= differential.CELLS and cells * outputs <= differential.OUTPUTS


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", ["cross-stitch", "ple", "content"])
def test_what_stands_beside_a_unit_does_not_move_its_gradient(name: str, unit: Unit) -> None:
    """Broken build: float32, where the rest of a product of matrices moves its rows. Wild weights make much of it."""
    one, data = CASES[name], silo()
    params, units, found = one.start(0, 30.0), one.of(data, unit), []
    last = int(np.flatnonzero(units.rows)[-1])
    for chosen in (np.arange(units.count), np.arange(last, units.count)):
        (batch,) = units.batches(chosen, 5, 10**6, "cpu", 1000)
        each = unit_gradients(one.model, params, one.tasks, batch, L2, list(params))
        place = 0 if len(batch.rows) == 1 else int((batch.user == last).nonzero()) if unit == "user" else -1
        found.append(whole(each, batch, place % len(batch.rows), params))
    assert apart(*found) < 1e-9


@settings(max_examples=40)
@given(st.integers(0, 1000), st.sampled_from(PAIRS), st.floats(1e-3, 30), st.sampled_from([1.0, 30.0]), st.data())
def test_a_unit_moves_the_clipped_sum_by_at_most_the_clip(
    seed: int, pair: tuple[str, Unit], clip: float, wild: float, draw: st.DataObject
) -> None:
    (name, unit), data = pair, silo(seed)
    one = CASES[name]
    params, units = one.start(seed, wild), one.of(data, unit)
    number = draw.draw(st.integers(0, units.count - 1))
    used = np.flatnonzero(np.logical_or.reduce([task.rows(data.train, data.attributes) for task in one.tasks]))
    kept = data.train.user != number if unit == "user" else np.arange(len(data.train)) != used[number]
    other = replace(data, train=data.train.take(kept))
    a, b = (clipped_sum(one, each, unit, params, clip) for each in (data, other))
    assert size({n: a[n].double() - b[n].double() for n in a}) <= clip


def test_what_users_had_liked_is_refused_for_interactions() -> None:
    with pytest.raises(ValueError, match="past: must be none for interactions"):
        CASES["gru4rec, mf"].of(silo(), "interaction")
