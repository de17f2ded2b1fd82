"""What every part of a kind must satisfy, as tests to inherit."""

from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedrec.components import SEAMS, make, text_of
from fedrec.data import Dataset, from_frame
from fedrec.data.types import Interactions
from fedrec.federation.coordination import Drift
from fedrec.federation.coordination.operators import Constraint, Operator, Vectors
from fedrec.keyed import TABLES
from fedrec.metrics import Ranks
from fedrec.models import Module, ModuleRecommender, Recommender
from fedrec.params import Params, clone, same
from fedrec.rng import generator
from fedrec.sharing import MODULES
from fedrec.tasks import Task, parse_task, task_loss
from fedrec.training.losses import batch_loss, scores
from fedrec.training.optimisers import Optimiser
from fedrec.training.recipe import Batch, Reference, term
from fedrec.training.transforms import Context, State
from fedrec.training.weighting import Weigher, Weighting

USERS, ITEMS = 5, 7


class Rebuilt:
    """What every part that is given by path must satisfy."""

    component: ClassVar[Any]
    field: ClassVar[str]

    def test_another_process_can_rebuild_it(self) -> None:
        """The text that stands for it makes an equal one."""
        if all(hasattr(self.component, method) for method in SEAMS[self.field].methods):
            assert make(self.field, text_of(self.component)) == self.component


class RecommenderContract(Rebuilt):
    """A recommender: a `Module`, or a `Recommender` itself, for some `tasks`."""

    field = "model"
    tasks: ClassVar[tuple[str, ...]] = ("rank", "rating")

    @property
    def model(self) -> Recommender:
        """The recommender that is tested."""
        found = self.component
        return ModuleRecommender("mlp", 4, module=found) if isinstance(found, Module) else found

    @property
    def parsed(self) -> tuple[Task, ...]:
        """Its tasks."""
        return tuple(map(parse_task, self.tasks))

    def started(self, users: list[int], items: list[int]) -> Params:
        """Return its initial parameters for global ids."""
        offsets = {task.name: 0.0 for task in self.parsed}
        return self.model.init(3, np.array(users, np.int64), np.array(items, np.int64), offsets)

    def test_what_it_starts_with_has_the_shapes_that_it_tells(self) -> None:
        """Names, shapes and types, and a row for each id in every table."""
        params = self.started(list(range(USERS)), list(range(ITEMS)))
        told = self.model.shapes(USERS, ITEMS, [task.name for task in self.parsed])
        assert {n: (v.shape, v.dtype) for n, v in params.items()} == {n: (v.shape, v.dtype) for n, v in told.items()}
        assert list(params) == sorted(params)
        for name, value in params.items():
            assert name.partition(".")[0] in MODULES
            assert bool(value.isfinite().all())
            if name in TABLES:
                assert len(value) == {"user": USERS, "item": ITEMS}[TABLES[name]]

    def test_a_row_starts_alike_wherever_its_id_stands(self) -> None:
        """And dense parameters depend on no number of users or items."""
        few, many = self.started([1], [2, 70]), self.started([0, 1, 2], list(range(80)))
        rows = {"user": [1], "item": [2, 70]}
        for name, value in few.items():
            assert torch.equal(value, many[name][rows[TABLES[name]]] if name in TABLES else many[name]), name

    def test_all_scores_are_those_of_the_pairs(self) -> None:
        """`score_all` is `features` and `head` of every pair."""
        params, user = self.started(list(range(USERS)), list(range(ITEMS))), torch.tensor([3, 0])
        users, items = user.repeat_interleave(ITEMS), torch.arange(ITEMS).repeat(2)
        for task in self.parsed:
            pairs = self.model.head(params, task.name, self.model.features(params, users, items))
            torch.testing.assert_close(self.model.score_all(params, task.name, user), pairs.view(2, ITEMS))

    def test_a_step_moves_only_the_rows_that_it_touches(self) -> None:
        """The loss is a number with finite gradients, 0 in the rows of tables that no row of the batch names."""
        params = {n: v.requires_grad_() for n, v in self.started(list(range(USERS)), list(range(ITEMS))).items()}
        ones = torch.ones(3)
        targets = {
            task.name: (ones, ones if task.kind == "rank" else torch.tensor([1.0, 0.0, 1.0])) for task in self.parsed
        }
        batch = Batch(torch.tensor([0, 2, 2]), torch.tensor([1, 1, 4]), torch.tensor([[0], [5], [0]]), targets)
        loss = batch_loss(self.model, dict(params), self.parsed, batch, 0.01)
        found = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        grads = {n: torch.zeros_like(v) if g is None else g for (n, v), g in zip(params.items(), found, strict=True)}
        assert all(bool(grad.isfinite().all()) for grad in grads.values())
        touched = {"user": {0, 2}, "item": {0, 1, 4, 5}}
        for name, grad in grads.items():
            if name in TABLES:
                assert set(grad.flatten(1).abs().sum(1).nonzero().flatten().tolist()) <= touched[TABLES[name]], name
        assert any(bool(grad.abs().sum() > 0) for grad in grads.values())


class TaskContract(Rebuilt):
    """A task: `target(data)` and `loss(score, target)`, or the name of one of ours; tested on `rows`."""

    field = "task"
    rows: ClassVar[Interactions] = Interactions(
        np.array([0, 0, 1, 1, 2]),
        np.array([0, 1, 0, 2, 1]),
        np.array([1, 2, 3, 4, 5]),
        np.array([4, 1, np.nan, 5, 2], np.float32),
        np.array([True, False, True, True, False]),
        {"click": np.array([True, True, False, True, False]), "buy": np.array([True, False, False, False, False])},
    )

    @property
    def task(self) -> Task:
        """The task that is tested."""
        return parse_task(text_of(self.component))

    def costs(self, score: Tensor) -> Tensor:
        """Return the loss of every row that is learnt from, for a score of each."""
        known = self.task.rows(self.rows)
        return task_loss(self.task, score, torch.from_numpy(self.task.target(self.rows)[known]), None)

    def said(self) -> Tensor:
        """Return the score that says the target of every row that is learnt from."""
        target = self.task.target(self.rows)[self.task.rows(self.rows)]
        return torch.from_numpy(np.array([self.task.said(one) for one in target.astype(np.float64)], np.float32))

    def test_some_rows_are_learnt_from_and_the_same_twice(self) -> None:
        """A target is a number for each row, and NaN where there is none."""
        known, target = self.task.rows(self.rows), self.task.target(self.rows)
        assert known.any() and np.isfinite(target).all()
        assert np.array_equal(target, self.task.target(self.rows))

    def test_a_row_costs_what_it_costs_alone(self) -> None:
        """A finite number with a finite slope, whichever rows stand beside it."""
        score = torch.linspace(-2, 2, len(self.said())).requires_grad_()
        costs = self.costs(score)
        (slope,) = torch.autograd.grad(costs.sum(), score)
        assert bool(costs.isfinite().all()) and bool(slope.isfinite().all())
        for place in range(len(score)):
            other = torch.where(torch.arange(len(score)) == place, score, score + 1)
            torch.testing.assert_close(self.costs(other)[place], costs[place])

    def test_the_score_that_says_a_target_costs_the_least(self) -> None:
        """So that a head starts with, and is compared with, the right number."""
        least = self.costs(self.said())
        for step in (-0.5, 0.5):
            assert bool((self.costs(self.said() + step) >= least - 1e-6).all())

    def test_what_it_measures_is_known_to_the_package(self) -> None:
        """A number for each row, by names of ours."""
        target = self.task.target(self.rows)[self.task.rows(self.rows)]
        found = self.task.measured(self.said().numpy(), target) if self.task.part else {}
        assert all(np.isfinite(values).all() for values in found.values())


class SourceContract(Rebuilt):
    """A data source: `load()` returns a Dataset, or a DataFrame that is read by `columns`."""

    field = "dataset"
    columns: ClassVar[str] = ""

    def loaded(self) -> Dataset:
        """Return the dataset."""
        found = self.component.load()
        return from_frame(found, self.columns) if isinstance(found, pd.DataFrame) else found

    def test_it_loads_the_same_twice(self) -> None:
        """Every process reads it by itself."""
        one, two = self.loaded(), self.loaded()
        pd.testing.assert_frame_equal(one.interactions, two.interactions)
        pd.testing.assert_frame_equal(one.items, two.items)
        assert one.platforms == two.platforms and one.labels == two.labels

    def test_its_rows_are_such_as_the_package_reads(self) -> None:
        """See `fedrec.data.Dataset`."""
        data = self.loaded()
        rows = data.interactions
        assert len(rows) > 0
        for column, among in (("user", data.users), ("item", data.items), ("platform", data.platforms)):
            assert rows[column].between(0, len(among) - 1).all(), column
        assert not rows.duplicated(["platform", "user", "item"]).any()
        assert data.users["key"].is_unique and data.items["key"].is_unique
        assert rows["positive"].dtype == bool and all(rows[label].dtype == bool for label in data.labels)


class MetricContract(Rebuilt):
    """A metric: `value(ranks)` of a user's relevant items, larger is better."""

    field = "metrics"

    def value(self, *ranks: int) -> float:
        """Return the metric of some ranks."""
        found: Ranks = np.array(sorted(ranks), dtype=np.int64)
        return float(self.component.value(found))

    def test_it_is_a_number_for_any_ranks(self) -> None:
        """Also for one that is far away, and for many."""
        for ranks in ([1], [10**6], [1, 2, 3], list(range(1, 200))):
            assert np.isfinite(self.value(*ranks))

    def test_a_better_rank_is_no_worse(self) -> None:
        """Moving one relevant item up never lowers it."""
        rng = generator(0, "contract")
        for _ in range(50):
            ranks = sorted(rng.choice(np.arange(2, 40), 4, replace=False).tolist())
            for place, rank in enumerate(ranks):
                if rank - 1 not in ranks:
                    better = [*ranks[:place], rank - 1, *ranks[place + 1 :]]
                    assert self.value(*better) >= self.value(*ranks) - 1e-12


class AggregatorContract(Rebuilt):
    """An aggregator: `combine(g, p, carries)` returns one direction."""

    field = "descent.aggregator"

    def combined(self, g: Tensor, p: Tensor, carries: Tensor | None = None) -> Tensor:
        """Return the direction."""
        found: Tensor = self.component.combine(g, p, carries)
        return found

    def test_it_returns_a_finite_number_for_every_entry(self) -> None:
        """For one client and for several, for gradients of 0, and where some carry not all."""
        rng = torch.Generator().manual_seed(0)
        for k in (1, 2, 5):
            g, p = torch.randn(k, 6, generator=rng, dtype=torch.float64), torch.arange(1.0, k + 1, dtype=torch.float64)
            carries = torch.ones(k, 6, dtype=torch.bool)
            carries[0, 0] = False
            for one in (self.combined(g, p), self.combined(0 * g, p), self.combined(g * carries, p, carries)):
                assert one.shape == (6,) and bool(one.isfinite().all())

    def test_clients_that_agree_are_not_led_the_other_way(self) -> None:
        """Where all send one gradient, the direction has no negative product with it."""
        g = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        assert float(self.combined(g.repeat(3, 1), torch.ones(3, dtype=torch.float64)) @ g) >= 0

    def test_it_changes_nothing_that_it_is_given(self) -> None:
        """It is a function."""
        g = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        p = torch.ones(3, dtype=torch.float64)
        before = g.clone()
        first = self.combined(g, p)
        assert torch.equal(g, before) and torch.equal(self.combined(g, p), first)


class ConstraintContract(Rebuilt):
    """A constraint: `project(v, p, rho, clients)`, or an `Operator`; `width` numbers for each of three clients."""

    field = "coupling.kind"
    width: ClassVar[int] = 4
    projection: ClassVar[bool] = True  # whether it is a projection on a set, and no penalty

    def tied(self, v: Vectors, p: Tensor) -> Vectors:
        """Return the z_i."""
        names = tuple("abc"[: len(v)])
        made: Operator = (
            Constraint(self.component, "own", names) if hasattr(self.component, "project") else self.component
        )
        return made([one.clone() for one in v], p, 1.0)

    def drawn(self) -> tuple[Vectors, Tensor]:
        """Return some v_i and weights."""
        rng = torch.Generator().manual_seed(2)
        v = [torch.randn(self.width, generator=rng, dtype=torch.float64) for _ in range(3)]
        return v, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

    def test_every_client_gets_a_z_of_its_own_shape(self) -> None:
        """Finite, and the same for the same v_i."""
        v, p = self.drawn()
        z = self.tied(v, p)
        assert [one.shape for one in z] == [one.shape for one in v]
        assert all(bool(one.isfinite().all()) for one in z)
        assert all(torch.equal(a, b) for a, b in zip(z, self.tied(v, p), strict=True))

    def test_what_satisfies_it_stays(self) -> None:
        """A projection is idempotent."""
        if self.projection:
            v, p = self.drawn()
            z = self.tied(v, p)
            for a, b in zip(z, self.tied(z, p), strict=True):
                torch.testing.assert_close(a, b)

    def test_nearer_points_are_brought_nearer(self) -> None:
        """A proximal map is nonexpansive in the metric sum_i p_i |z_i|^2."""
        v, p = self.drawn()
        w = [one + 0.3 * place for place, one in enumerate(v)]

        def apart(a: Vectors, b: Vectors) -> float:
            return float(sum(p[i] * (a[i] - b[i]).square().sum() for i in range(3)))

        assert apart(self.tied(v, p), self.tied(w, p)) <= apart(v, w) * (1 + 1e-9)


class TransformContract(Rebuilt):
    """A local transform: `init(params)` and `update(grads, state, params, ctx)`."""

    field = "transform"

    def drawn(self, rows: tuple[int, ...], seed: int) -> Params:
        """Return values of a table and of a layer, for clients with some rows."""
        parts = [torch.Generator().manual_seed(10 * seed + place) for place in range(len(rows))]
        tables = [torch.randn(n, 3, generator=rng) for n, rng in zip(rows, parts, strict=True)]
        return {"item_table": torch.cat(tables), "body.0": torch.stack([torch.randn(2, generator=g) for g in parts])}

    def steps(self, rows: tuple[int, ...]) -> list[Params]:
        """Return the gradients of four steps, the last two of the first client alone."""
        params, found = self.drawn(rows, 0), list[Params]()
        state: State = {}
        for t in range(1, 5):
            here = rows if t < 3 else rows[:1]
            params = {name: value + 0.1 * t for name, value in self.first(here, params).items()}
            state = self.component.init(clone(params)) if t == 1 else state
            state = {key: self.first(here, part) for key, part in state.items()}
            owner = {"item_table": torch.arange(len(here)).repeat_interleave(torch.tensor(here))}
            grads = self.first(here, self.drawn(rows, t))
            made, state = self.component.update(grads, state, clone(params), Context(t, owner))
            found.append(made)
        return found

    def first(self, rows: tuple[int, ...], values: Params) -> Params:
        """Return the values of the clients with the first rows."""
        return {name: value[: sum(rows) if name == "item_table" else len(rows)] for name, value in values.items()}

    def test_every_gradient_keeps_its_name_and_shape(self) -> None:
        """And is finite, and the same again."""
        for made, again, k in zip(self.steps((4, 2)), self.steps((4, 2)), (2, 2, 1, 1), strict=True):
            assert {n: v.shape for n, v in made.items()} == {"item_table": (2 + 2 * k, 3), "body.0": (k, 2)}
            assert all(bool(v.isfinite().all()) and torch.equal(v, again[n]) for n, v in made.items())

    def test_a_client_among_others_is_as_alone(self) -> None:
        """Also when they have no step left."""
        for made, alone in zip(self.steps((4, 2)), self.steps((4,)), strict=True):
            for name, value in self.first((4,), made).items():
                torch.testing.assert_close(value, alone[name])


class ObjectiveContract(Rebuilt):
    """An objective term: `value(params, batch, ctx)`, asked with a recommender and its tasks."""

    field = "objective"
    model: ClassVar[Recommender] = Recommender("mf", 3)
    tasks: ClassVar[tuple[str, ...]] = ("rank", "rating")

    def asked(self) -> tuple[Tensor, list[Tensor]]:
        """Return the term at some parameters and its gradients there; the start and the batch must stay as they are."""
        tasks, ones = tuple(map(parse_task, self.tasks)), torch.ones(3)
        start = self.model.init(3, np.arange(USERS), np.arange(ITEMS), {task.name: 0.0 for task in tasks})
        params = {name: (value + 0.1 * place).requires_grad_() for place, (name, value) in enumerate(start.items(), 1)}
        rows = torch.tensor([0, 2, 2]), torch.tensor([1, 1, 4]), torch.tensor([[0], [5], [0]])
        user, item, negative = (one.clone() for one in rows)
        batch = Batch(user, item, negative, {task.name: (ones, ones) for task in tasks})
        ctx = Reference(clone(start), lambda params, batch: scores(self.model, params, tasks, batch))
        found: Tensor = term(self.component)(params, batch, ctx)
        assert same(ctx.start, start)
        assert all(torch.equal(*pair) for pair in zip((user, item, negative), rows, strict=True))
        grads = torch.autograd.grad(found, list(params.values()), allow_unused=True)
        return found.detach(), [grad for grad in grads if grad is not None]

    def test_it_is_a_number_that_acts(self) -> None:
        """Finite, the same again, with finite gradients that are not all 0."""
        found, grads = self.asked()
        assert bool(found.isfinite()) and torch.equal(found, self.asked()[0])
        assert all(bool(grad.isfinite().all()) for grad in grads) and any(bool(grad.any()) for grad in grads)


class WeightingContract(Rebuilt):
    """A weighting: `init(tasks)` and `weights(losses, state, ctx)`, or the name of one of ours."""

    field = "weighting.kind"

    def steps(self) -> list[Tensor]:
        """Return x times what is followed in four steps [3], for the losses x^2 / t; the last step has no third one."""
        rule = Weighting(kind=text_of(self.component))
        made, found = Weigher(rule, Optimiser("sgd", 0.1), rule.start(3)), []
        for t in range(1, 5):
            made.epoch(generator(t, "contract"), first=t == 1)
            x, seen, before = torch.tensor([2.0, 1.0, 0.5]).requires_grad_(), [True, True, t < 4], made.state
            held = clone(before)
            parts = [loss if here else loss * 0 for loss, here in zip(x.square() / t, seen, strict=True)]
            followed = made.loss(parts, seen, {"body": x}, ["body"], t)
            found.append(x.detach() * torch.autograd.grad(followed, x)[0])
            made.ended()
            assert same(before, held)
            assert {n: v.shape for n, v in made.state.items()} == {n: v.shape for n, v in before.items()}
        return found

    def test_what_it_remembers_keeps_its_form(self) -> None:
        """And what is followed is finite, and the same again."""
        for one, again in zip(self.steps(), self.steps(), strict=True):
            assert bool(one.isfinite().all()) and torch.equal(one, again)

    def test_no_loss_is_driven_up(self) -> None:
        """Where the gradients of the losses have nothing in common."""
        assert all(bool((one >= 0).all()) and bool(one.any()) for one in self.steps())


class CompanionContract(Rebuilt):
    """A companion: `share(name)`, or the name of one of ours; asked of the parameters of a recommender."""

    field = "drift.personal"
    model: ClassVar[Recommender] = Recommender("mlp", 4)

    def test_its_shares_are_fractions(self) -> None:
        """Numbers from 0 to 1, not all 0, and the same again."""
        drift, names = Drift(personal=text_of(self.component), weight=0.5), self.model.shapes(USERS, ITEMS, ["rank"])
        found = drift.shares(names)
        assert all(0 <= found[name] <= 1 for name in names) and any(found.values())
        assert drift.shares(names) == found
