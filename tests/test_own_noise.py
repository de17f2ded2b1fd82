"""Parts of a user's own with noise inside a silo: each unit's gradient is of its own rows, and noise comes first."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedrec.data.types import Interactions
from fedrec.errors import UserError
from fedrec.experiment.config import build
from fedrec.keyed import TABLES
from fedrec.models import Meta, Module, Recommender
from fedrec.models.module import ModuleRecommender
from fedrec.params import Params
from fedrec.privacy.differential import Mechanism, private_update
from fedrec.privacy.gradients import check_units
from fedrec.privacy.noise import Source
from fedrec.privacy.units import Units
from fedrec.sharing import Sharing
from fedrec.tasks import Task, parse_task
from fedrec.training.optimisers import Optimiser
from fedrec.training.recipe import Recipe
from fedrec.training.transforms import Context, State
from simulations.check import check
from simulations.methods import METHODS
from tests.helpers import fit
from tests.own_parts import Decay, Product, Summed, TwoTower
from tests.privacy.test_unit_gradients import UNITS, Case, Unit, silo, worst

CLICK, DWELL = parse_task("click"), parse_task("tests.own_parts:Dwell*0.5")
SHARED = ("item_table", "item_bias", "heads")


class Bilinear(nn.Module):
    """h(u, i) = P_u q_i, with a matrix for every user."""

    def __init__(self, users: int, items: int) -> None:
        super().__init__()
        self.p, self.q = nn.Parameter(torch.zeros(users, 2, 3)), nn.Parameter(torch.zeros(items, 3))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", self.p[user], self.q[item])


@dataclass(frozen=True)
class Matrices(Module):
    """Tables of more than two dimensions."""

    tables = {"p": "user", "q": "item"}  # noqa: RUF012

    def network(self, meta: Meta) -> nn.Module:
        return Bilinear(meta.users, meta.items)


def own(module: Module) -> Recommender:
    return ModuleRecommender("mlp", 4, module=module)


CASES = {
    "a model": Case(own(TwoTower(width=4)), (parse_task("rank"), CLICK)),
    "a model of matrices": Case(own(Matrices()), (CLICK, parse_task("rating*0.5"))),
    "a task": Case(Recommender("mf", 4), (parse_task("rank"), DWELL)),
    "both": Case(own(TwoTower(width=4)), (CLICK, DWELL)),
}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", CASES)
def test_the_clipped_gradients_of_units_are_those_of_their_rows_alone(name: str, unit: Unit) -> None:
    assert worst(CASES[name], silo(), unit) < 1e-6
    check_units(CASES[name].model, CASES[name].tasks)


class Reading(Product):
    """A model of one's own that needs more than the rows of its users and items, as `what` says."""

    what = ""

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        p, q = self.p(user), self.q(item)
        found: Tensor = {
            "rows": lambda: p * q,
            "the mean item": lambda: p * (q - self.q.weight.mean(0)),
            "all items": lambda: (q @ self.q.weight.T).softmax(1) @ self.q.weight * p,
            "the number of items": lambda: p * q * len(self.q.weight),
            "ids": lambda: p * q * (1 + user[:, None] % 2),
            "the next item": lambda: p * self.q((item + 1) % len(self.q.weight)),
            "the other rows of a batch": lambda: p * q - (p * q).mean(0),
            "numbers": lambda: p * q * (1 if float(q.sum()) > 0 else 2),
        }[self.what]()
        return found


@dataclass(frozen=True)
class Reads(Module):
    tables = {"p.weight": "user", "q.weight": "item"}  # noqa: RUF012
    what: str = "rows"

    def network(self, meta: Meta) -> nn.Module:
        network = Reading(meta.users, meta.items, 3)
        network.what = self.what
        return network


@pytest.mark.parametrize(
    ("what", "found"),
    [
        *((what, "that it reads others") for what in ("the mean item", "all items", "the number of items", "ids")),
        *((what, "that it reads others") for what in ("the next item", "the other rows of a batch")),
        ("numbers", "RuntimeError: vmap: "),
    ],
)
def test_a_model_that_needs_more_than_a_units_rows_is_refused_in_words(what: str, found: str) -> None:
    check_units(own(Reads()), (CLICK, parse_task("tests.own_parts:Huber")))
    with pytest.raises(UserError, match=f"privacy.unit: model Reads must be made of .*, found {found}"):
        check_units(own(Reads(what=what)), (CLICK,))


@dataclass(frozen=True)
class Ranked:
    """A loss of one's own that compares rows."""

    def target(self, data: Interactions) -> np.ndarray:
        return data.rating

    def loss(self, score: Tensor, target: Tensor) -> Tensor:
        return (score - score.mean() - target).square()


@dataclass(frozen=True)
class Standard(Ranked):
    """A target that is made of all rows."""

    def target(self, data: Interactions) -> np.ndarray:
        return data.rating - np.nanmean(data.rating) if np.isfinite(data.rating).any() else data.rating

    def loss(self, score: Tensor, target: Tensor) -> Tensor:
        return (score - target).square()


def test_a_loss_that_compares_rows_is_refused_in_words() -> None:
    ranked = parse_task("tests.test_own_noise:Ranked")
    with pytest.raises(UserError, match=r"privacy.unit: task tests.test_own_noise:Ranked must be .* reads others"):
        check_units(Recommender("mf", 4), (CLICK, ranked))
    with pytest.raises(UserError, match=r"task tests.own_parts:Summed: loss must return a tensor"):
        check_units(Recommender("mf", 4), (parse_task(f"{Summed.__module__}:Summed"),))


@pytest.mark.parametrize("unit", UNITS)
def test_the_labels_of_a_unit_are_made_of_its_own_rows(unit: Unit) -> None:
    """Broken build: the target of all rows at once, where one unit's ratings move the targets of the others."""
    data, tasks, recipe = silo(), (parse_task("tests.test_own_noise:Standard"),), Recipe(1, 8, Optimiser("sgd", 0.1))
    rated = np.flatnonzero(np.isfinite(data.train.rating))
    gone = int(data.train.user[rated[0]])
    kept = data.train.user != gone if unit == "user" else np.arange(len(data.train)) != rated[0]
    one, other = (Units.of(each, tasks, recipe, unit) for each in (data, replace(data, train=data.train.take(kept))))
    mask = one.user[:, 0] != gone if unit == "user" else np.arange(len(one.user)) != 0
    a, b = one.labels["Standard"][1][mask], other.labels["Standard"][1]
    assert len(a) > 1 and np.array_equal(a, b)
    assert not np.allclose(tasks[0].target(data.train)[kept], tasks[0].target(data.train.take(kept)), equal_nan=True)


@dataclass(frozen=True)
class Told(Decay):
    """Decay that tells what it is given."""

    log: Any = None

    def init(self, params: Params) -> State:
        self.log.append(("init", params))
        return super().init(params)

    def update(self, grads: Params, state: State, params: Params, ctx: Context) -> tuple[Params, State]:
        self.log.append(("params", params))
        self.log.append(("grads", grads))
        assert ctx.owner.keys() <= params.keys()
        return super().update(grads, state, params, ctx)


def after(tasks: tuple[Task, ...], unit: Unit, noise: float, share: tuple[str, ...] = SHARED, **more: Any) -> Params:
    """Return what one step makes of a silo."""
    model, data = Recommender("mf", 3), silo()
    start = {n: v + 0.1 for n, v in model.init(0, data.users, data.items, {task.name: 0.5 for task in tasks}).items()}
    recipe, mechanism = Recipe(1, 16, Optimiser("sgd", 0.05), **more), Mechanism(unit, 1.0, noise, 1.0)
    scope: dict[str, Any] = {"seed": 0, "scope": ("films", 1)}
    source = Source.replayable(0)
    return private_update(model, start, data, tasks, recipe, Sharing(share), mechanism, source, **scope)[0]


@pytest.mark.parametrize(("unit", "share"), [("user", SHARED), ("interaction", SHARED), ("user", ("user_table",))])
def test_a_transform_gets_what_was_released_and_nothing_else(unit: Unit, share: tuple[str, ...]) -> None:
    """Broken builds: one that sees a user's own rows, or gradients before their noise (of which many are 0)."""
    log: list[tuple[str, Params]] = []
    after((CLICK,), unit, 1.0, share, transforms=(Told(0.1, log),))
    names = {"item_table", "item_bias", "user_table", "user_bias", "heads.click.weight", "heads.click.bias"}
    own_rows = {n for n in names if TABLES.get(n) == "user" and n not in share} if unit == "user" else set()
    assert [kind for kind, _ in log] == ["init", "params", "grads"]
    assert all(params.keys() == names - own_rows for _, params in log)
    assert all(len(v) == (len(v) if n in TABLES else 1) and v.dim() > 1 for _, p in log for n, v in p.items())
    assert all(bool((value != 0).all()) for value in log[-1][1].values())


@pytest.mark.parametrize("unit", UNITS)
def test_a_transform_comes_behind_the_noise_and_leaves_the_users_own_rows(unit: Unit) -> None:
    """One step of SGD: Decay adds -lr weight x, and neither clip nor noise sees it."""
    x, plain, moved = (
        after((CLICK,), unit, 1.0, **more) for more in ({"phases": ()}, {}, {"transforms": (Decay(0.4),)})
    )
    for name, value in plain.items():
        mine = unit == "user" and TABLES.get(name) == "user"
        torch.testing.assert_close(moved[name], value if mine else value - 0.05 * 0.4 * x[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("unit", UNITS)
def test_an_experiment_of_ones_own_parts_runs_with_noise_inside_a_silo(unit: Unit, tmp_path: Path) -> None:
    small = {"clients": 2, "rounds": 1, "engine": "inline", "market": {"users": 12, "items": 25, "impressions": 12}}
    e = build(
        {
            **METHODS["fedper"].model_dump(),
            **small,
            "model": "tests.own_parts:TwoTower",
            "task": "rank,tests.own_parts:Huber",
            "transform": "tests.own_parts:Curv",
            "weights": "uniform",
            "privacy": {"unit": unit, "epsilon": "8"},
        }
    )
    check(e)
    record, _ = fit(e, tmp_path)
    assert record.shared and all(bool(value.isfinite().all()) for value in record.shared.values())
    with pytest.raises(UserError, match="model Reads must be"):
        check(e.model_copy(update={"model": 'tests.test_own_noise:Reads{"what": "ids"}'}))
