"""Many clients as one program: each of them is trained as autograd trains it alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.data import ClientData, Interactions
from fedrec.data.types import Ints
from fedrec.evaluation.cohort import evaluate_many
from fedrec.evaluation.evaluate import Split, evaluate
from fedrec.evaluation.scorers import ModelScorer
from fedrec.keyed import TABLES
from fedrec.models import Recommender
from fedrec.models.bodies import BODIES
from fedrec.models.sequences import UserSequence
from fedrec.models.side import Side
from fedrec.params import Params, norm, subtract
from fedrec.rng import generator
from fedrec.sharing import Sharing
from fedrec.tasks import Task, parse_task
from fedrec.training.cohort import Cohort, groups
from fedrec.training.held_out import held_out_many
from fedrec.training.kernels import loss_and_gradients
from fedrec.training.local import held_out_loss
from fedrec.training.losses import batch_loss
from fedrec.training.optimisers import Optimiser
from fedrec.training.recipe import Batch, Recipe
from fedrec.training.results import Sum, client, client_after, stack
from fedrec.training.stacks import Part, Stack, Terms
from fedrec.training.step import Grid, Step
from fedrec.training.update import CELLS, DRAWS, ROWS, cuts, train
from tests.builders import by_autograd, interactions

ITEMS = 12
TASKS = {
    "rank": ("rank",),
    "rank-bce": ("rank-bce*0.5",),
    "rating": ("rating",),
    "click": ("click",),
    "two": ("click", "buy*0.5"),
    "three": ("rank", "rating*0.5", "click*2"),
}
SHARES = (("item_table", "item_bias", "body"), ("item_table", "item_bias", "body", "heads"), (), ("user_table", "body"))


def small(name: str, rows: int, users: int, items: Ints, seed: int) -> ClientData:
    """Return a client with distinct random pairs, some positive, some rated, some clicked."""
    rng = generator(seed, "small", name)

    def part(n: int) -> Interactions:
        chosen = rng.permutation(users * len(items))[:n]
        pairs = [divmod(int(x), len(items)) for x in chosen]
        rating = np.where(rng.random(len(pairs)) < 0.6, rng.integers(1, 6, len(pairs)), np.nan)
        positive, click = rng.random(len(pairs)) < 0.7, rng.random(len(pairs)) < 0.5
        return interactions(pairs, rating.tolist(), positive.tolist(), click=click.tolist(), buy=(click[::-1]).tolist())

    first = int(rng.integers(0, 50))
    return ClientData(name, np.arange(first, first + users), items, part(rows), part(4), part(4))


@dataclass(frozen=True)
class Case:
    """A cohort, the parameters that its clients start from, and one client after the other as the reference."""

    cohort: Cohort
    shared: Stack
    private: Stack
    recipe: Recipe
    sharing: Sharing
    terms: Terms
    reference: list[tuple[Params, float]]
    starts: list[Params]
    seed: int

    def parts(self, chunk: int | None = None, chosen: Ints | None = None) -> list[Part]:
        who = np.arange(len(self.cohort)) if chosen is None else chosen
        scopes = [(self.cohort.datas[int(c)].name, 3) for c in who]
        return list(
            train(
                self.cohort,
                self.shared,
                self.private,
                self.recipe,
                self.sharing,
                seed=self.seed,
                chosen=who,
                scopes=scopes,
                terms=self.terms,
                chunk=chunk,
            )
        )

    def after(self, parts: list[Part]) -> dict[int, tuple[Params, float]]:
        """Return (parameters, loss) of every trained client, by its position."""
        return {
            int(c): (
                {**client_after(self.cohort, self.shared, p, j), **client_after(self.cohort, self.private, p, j)},
                float(p.loss[j]),
            )
            for p in parts
            for j, c in enumerate(p.clients)
        }


def case(
    recipe: Recipe,
    *,
    kind: str = "mf",
    tasks: str = "rank",
    share: tuple[str, ...] = SHARES[0],
    sizes: tuple[int, ...] = (9, 0, 30, 17, 4),
    users: tuple[int, ...] = (3, 1, 4, 2, 1),
    ragged: bool = False,
    each: bool = False,
    anchored: str = "none",
    shifted: bool = False,
    weighted: bool = False,
    seed: int = 0,
    model: Recommender | None = None,
    content: bool = False,
) -> Case:
    rng = torch.Generator().manual_seed(seed)
    model = model or Recommender(kind, 3, (4, 3))
    chosen, sharing = tuple(map(parse_task, TASKS[tasks])), Sharing(share)
    drawn = generator(seed, "catalogues")
    carried = [
        np.sort(drawn.permutation(ITEMS)[: int(drawn.integers(6, ITEMS))]) if ragged else np.arange(ITEMS)
        for _ in sizes
    ]
    datas = [small(f"c{i}", n, u, own, seed) for i, (n, u, own) in enumerate(zip(sizes, users, carried, strict=True))]
    everyone = np.unique(np.concatenate([data.users for data in datas]))
    rows = {"item": np.arange(ITEMS), "user": everyone}
    models = [model] * len(datas)
    if content:
        vectors = torch.randn(ITEMS, 5, generator=rng)
        models = [replace(model, side=Side(content=vectors[torch.from_numpy(data.items)])) for data in datas]
        model = replace(model, side=Side(content=vectors))
    (cohort,) = groups(datas, models, [chosen] * len(datas), recipe.negatives, rows, seed=seed)

    def noise(like: Params) -> Params:
        return {n: v + 0.3 * torch.randn(v.shape, generator=rng) for n, v in like.items()}

    whole = noise(model.init(seed, everyone, np.arange(ITEMS), {task.name: 0.5 for task in chosen}))
    z = sharing.split(whole)[0]
    common = [client(cohort, Stack(z, each=False), c) for c in range(len(cohort))]
    offsets: dict[str, Any] = {task.name: 0.5 for task in chosen}
    like = [one.init(seed, d.users, d.items, offsets) for one, d in zip(cohort.models, cohort.datas, strict=True)]
    private = [noise(sharing.split(one)[1]) for one in like]
    if each:
        common = [noise(one) for one in common]
    shared = stack(common) if each else Stack(z, each=False)
    anchors = {"none": None, "start": common, "elsewhere": [noise(one) for one in common]}[anchored]
    shifts = [noise({n: torch.zeros_like(v) for n, v in one.items()}) for one in common] if shifted else None
    weight = 1 + torch.rand(len(cohort), generator=rng) if weighted else torch.ones(len(cohort))
    anchor = shared if anchored == "start" else anchors and stack(anchors)
    starts = [sharing.join(a, b) for a, b in zip(common, private, strict=True)]
    reference = [
        by_autograd(
            cohort.models[c],
            starts[c],
            data,
            chosen,
            recipe,
            sharing,
            seed=seed,
            scope=(data.name, 3),
            anchor=anchors[c] if anchors else None,
            weight=float(weight[c]),
            shift=shifts[c] if shifts else None,
        )[:2]
        for c, data in enumerate(cohort.datas)
    ]
    terms = Terms(anchor or None, stack(shifts) if shifts else None, weight if weighted else None)
    return Case(cohort, shared, stack(private), recipe, sharing, terms, reference, starts, seed)


def same(mine: Params, other: Params, skip: bool) -> None:
    """Assert equality to 1e-5; `skip` leaves out what BPR cannot see, where its gradient is rounding noise."""
    for name, value in other.items():
        a, b = (v[..., :-2] if skip and name == "heads.rank.weight" else v for v in (mine[name], value))
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-5), (name, float((a - b).abs().max()))


def check(c: Case, parts: list[Part]) -> None:
    found, moved = c.after(parts), 0.0
    skip = c.recipe.optimiser.kind != "sgd"
    for position, (params, loss) in enumerate(c.reference):
        if position not in found:
            assert np.isnan(loss) and not c.cohort.sizes[position]
            continue
        same(found[position][0], params, skip)
        assert found[position][1] == pytest.approx(loss, abs=1e-5, rel=1e-5)
        moved = max(moved, norm(subtract(params, c.starts[position])))
    assert moved > 1e-3


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_every_client_ends_where_autograd_takes_it_alone(data: st.DataObject) -> None:
    def pick(*values: Any) -> Any:
        return data.draw(st.sampled_from(values))

    optimiser = Optimiser(pick("sgd", "adam", "adagrad"), 0.03, pick((), (("item_table", 0.1), ("heads.rank", 0.01))))
    sizes = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=5))
    users = tuple(pick(1, 1, 2, 5) for _ in sizes)
    share = pick(*SHARES)
    recipe = Recipe(
        pick(1, 2),
        pick(5, 16, 100),
        optimiser,
        pick(("all",), ("private", "shared")) if share else ("all",),
        pick("train", "published"),
        pick(1, 3),
        pick(0.0, 0.02),
        pick(0.0, 0.7),
    )
    kind, tasks = pick("mf", "mlp", "item"), pick(*TASKS)
    if kind == "mlp" and tasks == "rank" and optimiser.kind != "sgd":
        tasks = "rank-bce"  # BPR cannot see the bias of a unit that is active for all items: rounding noise again
    c = case(
        recipe,
        kind=kind,
        tasks=tasks,
        share=share,
        sizes=(30, *sizes),
        users=(4, *users),
        ragged=pick(False, True),
        each=pick(False, True),
        anchored=pick("none", "start", "elsewhere") if share else "none",
        shifted=bool(share) and optimiser.kind == "sgd" and pick(False, True),
        weighted=pick(False, True),
        seed=data.draw(st.integers(0, 1000)),
    )
    check(c, c.parts(chunk=pick(None, 1, 2)))


@pytest.mark.parametrize("kind", [*BODIES, "gru4rec", "sasrec", "content", "described"])
@pytest.mark.parametrize("ragged", [False, True])
def test_models_without_a_kernel_are_stacked_by_the_rows_that_they_gather(kind: str, ragged: bool) -> None:
    tasks = "two" if kind in BODIES else "rank-bce"
    recipe = Recipe(2, 5, Optimiser("sgd", 0.1), num_negatives=2, l2=0.01, hidden=0.4 * (kind == "described"))
    model = Recommender(kind, 4, (4, 3)) if kind in BODIES else Recommender("mlp", 4, (4, 3))
    if kind in ("gru4rec", "sasrec"):
        model = replace(model, sequence=UserSequence(kind=kind, history=4))
    c = case(recipe, tasks=tasks, ragged=ragged, model=model, content=kind in ("content", "described"))
    check(c, c.parts(chunk=2 if ragged else None))
    chosen = np.arange(len(c.cohort))
    found = held_out_many(c.cohort, c.shared, c.private, recipe, seed=5, chosen=chosen)
    alone = [
        held_out_loss(c.cohort.models[p], c.starts[p], c.cohort.datas[p], c.cohort.tasks, recipe, seed=5)
        for p in chosen.tolist()
    ]
    assert found == pytest.approx(alone, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("tasks", list(TASKS))
@pytest.mark.parametrize("kind", ["mf", "mlp", "item"])
@pytest.mark.parametrize("one_user", [False, True])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_gradients_are_those_of_autograd(
    kind: str, tasks: str, one_user: bool, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if library == "torch":  # as on a device of which NumPy knows nothing
        monkeypatch.setattr("fedrec.training.kernels.on", lambda value, here: value)
    k, m, length, users = 3, 2, 4, 1 if one_user else 5
    model, chosen = Recommender(kind, 3, (4, 3)), tuple(map(parse_task, TASKS[tasks]))
    rng = torch.Generator().manual_seed(1)
    sampled = m if any(task.kind == "rank" for task in chosen) else 0
    user = torch.randint(users, (k, length), generator=rng)
    item = torch.randint(7, (k, 1 + sampled, length), generator=rng)
    like = model.shapes(users, 7, [task.name for task in chosen])
    each = [{n: torch.randn(v.shape, generator=rng, dtype=torch.float64) for n, v in like.items()} for _ in range(k)]
    labels = {t.name: tuple(torch.randint(2, (k, length), generator=rng).double() for _ in range(2)) for t in chosen}
    weight = torch.tensor([1.0, 2.5, 0.5], dtype=torch.float64)
    offset = torch.arange(k)[:, None, None]
    step = Step(
        None if one_user else user + users * offset[:, 0],
        item + 7 * offset,
        torch.full((k, length), 1 / length, dtype=torch.float64),
        {n: (mask / mask.sum(1, keepdim=True).clamp(min=1), target) for n, (mask, target) in labels.items()},
    )
    joined = stack(each).values
    loss, grads = loss_and_gradients(model, joined, chosen, step, 0.1, weight, list(like))
    for i, params in enumerate(each):
        for value in params.values():
            value.requires_grad_(True)
        negative = item[i, 1:].T if sampled else None
        batch = Batch(user[i], item[i, 0], negative, {n: (a[i], b[i]) for n, (a, b) in labels.items()})
        value = batch_loss(model, params, chosen, batch, 0.1)
        assert torch.allclose(loss[i], value)
        for name, g in zip(params, torch.autograd.grad(weight[i] * value, list(params.values())), strict=True):
            if name not in TABLES:
                mine = grads[name][i]
            else:
                rows = step.item if TABLES[name] == "item" else step.user
                mine = grads[name]
                if rows is not None:
                    mine = torch.zeros_like(joined[name]).index_add_(0, rows.reshape(-1), mine)
                mine = mine[len(mine) // k * i : len(mine) // k * (i + 1)]
            assert torch.allclose(mine, g), name


ADAM = Recipe(2, 5, Optimiser("adam", 0.03), num_negatives=2, l2=0.01)


def test_chunks_change_nothing() -> None:
    c = case(ADAM, tasks="rank-bce", ragged=True)
    whole, single = c.after(c.parts()), c.after(c.parts(chunk=1))
    assert len(c.parts()) == 1 and len(c.parts(chunk=1)) == 4
    for position, (params, _) in whole.items():
        for name, value in params.items():
            assert torch.allclose(single[position][0][name], value, atol=1e-6), name


def test_clients_that_take_no_part_are_left_alone_and_do_not_matter() -> None:
    c = case(ADAM)
    private = Stack({name: value.clone() for name, value in c.private.values.items()})
    (part,) = c.parts(chosen=np.array([1, 3]))
    private.write(part)
    for position in range(len(c.cohort)):
        mine, before = client(c.cohort, private, position), client(c.cohort, c.private, position)
        if position in (1, 3):
            same(mine, {name: c.reference[position][0][name] for name in mine}, skip=True)
        else:
            assert all(torch.equal(mine[name], before[name]) for name in before)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("anchored", ["none", "elsewhere"])
def test_the_sum_is_that_of_the_clients_one_by_one(ragged: bool, each: bool, anchored: str) -> None:
    share = ("item_table", "item_bias", "heads")
    c = case(replace(ADAM, mu=0.5), tasks="rank-bce", share=share, ragged=ragged, each=each, anchored=anchored)
    weight = torch.arange(1.0, len(c.cohort) + 1)
    like = c.sharing.split(c.cohort.model.init(0, np.arange(99), np.arange(ITEMS), {"rank": 0.0}))[0]
    found = Sum.zero(like)
    everyone = np.arange(len(c.cohort))
    found.start(c.cohort, c.shared, everyone, weight)
    for part in c.parts(chunk=2):
        found.add(c.cohort, c.shared, part, weight[part.clients])
    for name, value in like.items():
        table = name in TABLES
        total = torch.zeros_like(value, dtype=torch.float64)
        for position, (params, _) in enumerate(c.reference):
            rows = torch.from_numpy(c.cohort.datas[position].items)
            x = params[name].double() * weight[position]
            total = total.index_add(0, rows, x) if table else total + x
        assert torch.allclose(found.total[name], total, atol=1e-5)
    gap = sum(norm(subtract({n: c.starts[p][n] for n in like}, x)) ** 2 for p, (x, _) in enumerate(c.reference))
    assert float(found.gap) == pytest.approx(gap, rel=1e-5)


def test_a_client_of_weight_zero_may_have_diverged() -> None:
    c = case(ADAM, share=("item_table", "item_bias", "heads"))
    (part,) = c.parts()
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0])
    like, found = c.shared.values, []
    for poison in (0.0, float("nan")):
        values = {n: v.clone() for n, v in part.values.items()}
        values["heads.rank.weight"][1] += poison
        edge = part.touched["item"].edge
        values["item_table"][edge[1] : edge[2]] += poison
        total = Sum.zero(like)
        total.add(c.cohort, c.shared, replace(part, values=values), weight)
        found.append({**total.total, "gap": total.gap})
    assert all(
        torch.equal(found[0][name], found[1][name]) and bool(found[1][name].isfinite().all()) for name in found[0]
    )


def test_only_the_rows_that_a_round_names_are_stacked_unless_others_move() -> None:
    few = {"tasks": "click", "sizes": (3, 2), "users": (2, 1)}
    c = case(Recipe(1, 5, Optimiser("adam", 0.03), mu=0.5), anchored="start", **few)  # type: ignore[arg-type]
    (part,) = c.parts()
    assert len(part.values["item_table"]) == len(part.touched["item"].flat) == 5
    for name, value in c.after([part])[0][0].items():
        if name == "item_table":
            untouched = np.setdiff1d(np.arange(ITEMS), c.cohort.item[:3])
            assert torch.equal(value[untouched], c.starts[0][name][untouched])
    c = case(Recipe(1, 5, Optimiser("adam", 0.03), mu=0.5), anchored="elsewhere", **few)  # type: ignore[arg-type]
    (part,) = c.parts()
    assert len(part.values["item_table"]) == 2 * ITEMS
    check(c, [part])


def test_clients_of_different_models_or_tasks_are_in_different_cohorts() -> None:
    datas = [small(f"c{i}", 5 + i, 2, np.arange(ITEMS), 0) for i in range(4)]
    mf, mlp = Recommender("mf", 3), Recommender("mlp", 3)
    rank, click = (parse_task("rank"),), (parse_task("click"),)
    tasks: list[tuple[Task, ...]] = [rank, rank, click, rank]
    found = groups(datas, [mf, mlp, mf, mf], tasks, "train", {"item": np.arange(ITEMS)})
    assert [cohort.members for cohort in found] == [(3, 0), (1,), (2,)]


@pytest.mark.parametrize("kind", ["mf", "mlp", "item"])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("candidates", ["full", 3])
@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("users", [(3, 1, 4, 2, 1), (1, 1, 1, 1, 1)])
def test_every_client_is_evaluated_as_alone(
    kind: str, ragged: bool, each: bool, candidates: Any, split: Split, users: tuple[int, ...]
) -> None:
    c = case(ADAM, kind=kind, tasks="three", ragged=ragged, each=each, users=users)
    # Small whole numbers: scores are exact, and many are equal.
    shared, private = (Stack({n: (2 * v).round() for n, v in s.values.items()}, s.each) for s in (c.shared, c.private))
    options: dict[str, Any] = {"metrics": ("ndcg@3", "mrr"), "candidates": candidates, "seed": 5}
    found = dict(enumerate(evaluate_many(c.cohort, shared, private, split, **options)))
    assert len(found) == len(c.cohort)
    some = evaluate_many(c.cohort, shared, private, split, **options, chosen=np.array([1, 3]))
    assert [repr(one.metrics) for one in some] == [repr(found[position].metrics) for position in (1, 3)]
    for position, data in enumerate(c.cohort.datas):
        params = {**client(c.cohort, shared, position), **client(c.cohort, private, position)}
        expected = evaluate(ModelScorer(c.cohort.model, params), data, c.cohort.tasks, split, **options)
        assert {k: repr(v) for k, v in found[position].metrics.items()} == {
            k: repr(v) for k, v in expected.metrics.items()
        }
        for mine, other in zip(found[position].per_user, expected.per_user, strict=True):
            assert (mine.client, mine.task, mine.metric) == (other.client, other.task, other.metric)
            assert np.array_equal(mine.users, other.users) and np.array_equal(mine.values, other.values)


def test_many_users_are_ranked_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    c = case(ADAM, ragged=True, sizes=(9, 20, 30), users=(3, 8, 4))
    options: dict[str, Any] = {"metrics": ("ndcg@3",), "candidates": 4, "seed": 5}
    whole = evaluate_many(c.cohort, c.shared, c.private, "test", **options)
    monkeypatch.setattr("fedrec.evaluation.evaluate.CHUNK", 2)
    for a, b in zip(whole, evaluate_many(c.cohort, c.shared, c.private, "test", **options), strict=True):
        assert a.metrics == b.metrics


def test_the_work_of_a_round_grows_with_the_rows() -> None:
    # Sizes as unequal as those of real users: padding must not grow with the number of clients.
    for count in (100, 400, 1600):
        sizes = np.sort(np.maximum(20, generator(0, count).lognormal(4.3, 0.9, count)).astype(np.int64))[::-1]
        width = np.minimum(sizes, 256)
        edge = cuts(width, width, width, None)
        cells = sum(len(Grid.of(sizes[a:b], 1, 256).index) for a, b in pairwise(edge))
        assert sizes.sum() <= cells <= 1.5 * sizes.sum()
        assert all(width[a] * (b - a) <= CELLS for a, b in pairwise(edge))


def test_padding_has_no_weight_and_every_row_one_place() -> None:
    # Sizes 5 and 2 in batches of 2, one epoch: steps of 2 clients x 2, then 1 x 2, then 1 x 1.
    grid = Grid.of(np.array([5, 2]), 1, 2)
    assert grid.clients.tolist() == [2, 1, 1] and grid.length.tolist() == [2, 2, 1]
    assert grid.index.tolist() == [0, 1, 5, 6, 2, 3, 4]
    grid = Grid.of(np.array([3, 1]), 2, 4)
    assert grid.index.tolist() == [0, 1, 2, 6, 6, 6, 3, 4, 5, 7, 7, 7]
    assert np.allclose(grid.share, [1 / 3] * 3 + [1, 0, 0] + [1 / 3] * 3 + [1, 0, 0])


@pytest.mark.parametrize("kind", ["mf", "mlp", "item"])
@pytest.mark.parametrize("tasks", list(TASKS))
@pytest.mark.parametrize("each", [False, True])
def test_the_held_out_loss_is_that_of_every_client_alone(kind: str, tasks: str, each: bool) -> None:
    recipe = replace(ADAM, batch_size=3, negatives="published" if each else "train")  # two batches of validation rows
    c = case(recipe, kind=kind, tasks=tasks, ragged=True, each=each)
    chosen = np.array([0, 2, 3, 4])
    found = held_out_many(c.cohort, c.shared, c.private, recipe, seed=5, chosen=chosen)
    expected = [
        held_out_loss(c.cohort.model, c.starts[p], c.cohort.datas[p], c.cohort.tasks, recipe, seed=5) for p in chosen
    ]
    assert np.isfinite(expected).any()
    assert found == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_without_a_validation_row_there_is_no_held_out_loss() -> None:
    c = case(ADAM)
    none = [replace(data, validation=data.validation.take(np.zeros(0, np.int64))) for data in c.cohort.datas]
    cohort = replace(c.cohort, datas=(c.cohort.datas[0], *none[1:]))
    found = held_out_many(cohort, c.shared, c.private, ADAM, seed=5, chosen=np.arange(len(cohort)))
    assert np.isfinite(found[0]) and np.isnan(found[1:]).all()


def test_a_chunk_is_bounded_by_its_rows_cells_and_draws() -> None:
    some = np.full(100, 10)
    for counts in ((some * 500, some, some), (some, some * 10**3, some), (some, some, some * 10**5)):
        edge = np.array(cuts(*counts, None))
        limits = [CELLS, ROWS, DRAWS]
        assert len(edge) > 2
        assert all(values[0] * np.diff(edge).max() <= limit for values, limit in zip(counts, limits, strict=True))


@pytest.mark.parametrize("kind", ["mf", "mlp", "item"])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("phases", [("all",), ("private", "shared")])
def test_a_personal_half_is_trained_in_lockstep(kind: str, optimiser: Any, phases: Any) -> None:
    recipe = Recipe(2, 5, Optimiser(optimiser, 0.1 if optimiser == "sgd" else 0.03), phases, num_negatives=2, l2=0.01)
    c = case(recipe, kind=kind, tasks="rank-bce", ragged=True)
    rng = torch.Generator().manual_seed(1)
    starts = [{n: v + 0.3 * torch.randn(v.shape, generator=rng) for n, v in one.items()} for one in c.starts]
    moved = 0.0
    found = replace(c, terms=Terms(personal=stack(starts), share=dict.fromkeys(starts[0], 0.3))).parts(chunk=2)
    check(c, found)
    for part in found:
        for j, position in enumerate(part.clients.tolist()):
            data, tasks = c.cohort.datas[position], c.cohort.tasks
            scope: Any = {"seed": c.seed, "scope": (data.name, 3), "v": starts[position], "alpha": 0.3}
            *_, v = by_autograd(c.cohort.model, c.starts[position], data, tasks, recipe, c.sharing, **scope)
            mine = client_after(c.cohort, stack(starts), replace(part, values=part.personal), j)
            same(mine, v, skip=False)
            moved = max(moved, norm(subtract(mine, starts[position])))
    assert moved > 1e-2


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_in_double_precision_many_steps_agree_far_below_the_rounding_of_single(optimiser: Any) -> None:
    # In single precision a unit of a ReLU layer may fall on either side of zero: then the two differ by a gradient.
    recipe = Recipe(5, 1, Optimiser(optimiser, 0.03), num_negatives=2)  # the share of a row is exact
    c = case(recipe, kind="mlp", tasks="rank-bce")
    shared, private = (Stack({n: v.double() for n, v in s.values.items()}, s.each) for s in (c.shared, c.private))
    double = replace(c, shared=shared, private=private)
    found = double.after(double.parts())
    for position, (params, _) in found.items():
        data, start = c.cohort.datas[position], {n: v.double() for n, v in c.starts[position].items()}
        scope: Any = {"seed": c.seed, "scope": (data.name, 3)}
        expected, *_ = by_autograd(c.cohort.model, start, data, c.cohort.tasks, recipe, c.sharing, **scope)
        assert all(torch.allclose(params[n], expected[n], atol=1e-10, rtol=1e-10) for n in expected)
