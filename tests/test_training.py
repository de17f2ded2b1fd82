"""Local training: pure, equal to a plain loop, only of what a phase names; and negatives that leak or do not."""

import math
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fedrec.data import ClientData, federation
from fedrec.evaluation.evaluate import evaluate
from fedrec.evaluation.scorers import ModelScorer
from fedrec.metrics import paired
from fedrec.models import Recommender
from fedrec.params import Params, clone, norm, subtract
from fedrec.rng import generator
from fedrec.sharing import Sharing
from fedrec.tasks import Task, parse_task
from fedrec.training.local import local_update
from fedrec.training.losses import batch_loss
from fedrec.training.optimisers import Optimiser
from fedrec.training.recipe import Batch, Phase, Recipe
from tests.builders import batches, client, interactions, synthetic

Kind = Literal["mf", "mlp"]
USERS, ITEMS = 6, 9
RANK, RATING, CLICK = parse_task("rank"), parse_task("rating*0.5"), parse_task("click*2")
BODY = Sharing(("item_table", "item_bias", "body"))
SGD = Optimiser("sgd", 0.05)


def small(seed: int = 0, n: int = 30) -> ClientData:
    """Return a client with distinct random pairs, some of them positive, some rated, some clicked."""
    rng = generator(seed, "small")
    pairs = [divmod(int(x), ITEMS) for x in rng.permutation(USERS * ITEMS)[:n]]
    rating = np.where(rng.random(n) < 0.6, rng.integers(1, 6, n), np.nan)
    positive, click = rng.random(n) < 0.7, rng.random(n) < 0.5
    train = interactions(pairs, rating.tolist(), positive.tolist(), click=click.tolist())
    return client(train, users=USERS, items=ITEMS)


def start(model: Recommender, tasks: tuple[Task, ...], seed: int = 0) -> Params:
    return model.init(seed, np.arange(USERS), np.arange(ITEMS), {task.name: 0.5 for task in tasks})


def update(
    params: Params,
    data: ClientData,
    tasks: tuple[Task, ...],
    recipe: Recipe,
    sharing: Sharing = BODY,
    *,
    kind: Kind = "mf",
    seed: int = 0,
    number: int = 1,
    anchor: Params | None = None,
) -> tuple[Params, float]:
    model = Recommender(kind, 3, (4, 2))
    return local_update(
        model, params, data, tasks, recipe, sharing, seed=seed, scope=(data.name, number), anchor=anchor
    )


def same(a: Params, b: Params) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 100), st.integers(1, 40), st.integers(1, 3))
def test_an_epoch_meets_every_row_of_its_tasks_once(seed: int, size: int, m: int) -> None:
    data, recipe = small(seed), Recipe(1, size, SGD, num_negatives=m)
    found = list(batches(data, (RANK, RATING), recipe, generator(seed)))
    train = data.train
    used = train.take(train.positive | np.isfinite(train.rating))
    met = [pair for b in found for pair in zip(b.user.tolist(), b.item.tolist(), strict=True)]
    assert sorted(met) == sorted(zip(used.user.tolist(), used.item.tolist(), strict=True))
    assert all(len(b.user) == size for b in found[:-1])
    facts = {(u, i): (p, r) for u, i, p, r in zip(train.user, train.item, train.positive, train.rating, strict=True)}
    for b in found:
        assert b.negative is not None and b.negative.shape == (len(b.user), m)
        (rank_mask, _), (rated, rating) = b.labels["rank"], b.labels["rating"]
        for row, pair in enumerate(zip(b.user.tolist(), b.item.tolist(), strict=True)):
            positive, value = facts[pair]
            assert (bool(rank_mask[row]), bool(rated[row])) == (positive, not math.isnan(value))
            assert rating[row] == (0 if math.isnan(value) else value)


def test_without_a_rank_task_no_item_is_sampled() -> None:
    assert all(b.negative is None for b in batches(small(), (CLICK,), Recipe(1, 8, SGD), generator(0)))


def plain_loss(params: Params, batch: Batch, tasks: tuple[Task, ...], l2: float) -> Tensor:
    """Return the loss of a batch, written down row by row from the definitions."""

    def score(task: str, u: int, i: int) -> Tensor:
        w = params[f"heads.{task}.weight"]
        product = (params["user_table"][u] * params["item_table"][i]) @ w[:-2]
        bias = w[-2] * params["user_bias"][u] + w[-1] * params["item_bias"][i] + params[f"heads.{task}.bias"]
        return (product + bias).squeeze()

    def size(u: int, i: int) -> Tensor:
        tables = [("user_table", u), ("user_bias", u), ("item_table", i), ("item_bias", i)]
        return torch.stack([params[name][row].square().sum() for name, row in tables]).sum()

    rows = list(zip(batch.user.tolist(), batch.item.tolist(), strict=True))
    sampled = batch.negative.tolist() if batch.negative is not None else []
    total = torch.zeros(())
    for task in tasks:
        mask, target = batch.labels[task.name]
        losses = []
        for b, (u, i) in enumerate(rows):
            if not mask[b]:
                continue
            s = score(task.name, u, i)
            if task.kind == "rank":
                losses.append(torch.stack([-F.logsigmoid(s - score(task.name, u, n)) for n in sampled[b]]).mean())
            elif task.kind == "rating":
                losses.append((s - target[b]) ** 2)
            else:
                losses.append(F.binary_cross_entropy_with_logits(s, target[b]))
        if losses:
            total = total + task.weight * torch.stack(losses).mean()
    total = total + l2 * torch.stack([size(u, i) for u, i in rows]).mean()
    if sampled:
        total = total + l2 * torch.stack([size(u, sampled[b][0]) for b, (u, _) in enumerate(rows)]).mean()
    return total


def determined(params: Params) -> Params:
    """Return `params` without what BPR cannot see, because it cancels in every difference of a user's scores.

    The gradient there is rounding noise, which Adam and Adagrad blow up to steps of lr.
    """
    kept = {name: value for name, value in params.items() if name != "heads.rank.bias"}
    if "heads.rank.weight" in kept:
        weight = kept["heads.rank.weight"]
        kept["heads.rank.weight"] = torch.cat([weight[:-2], weight[-1:]])  # [-2] is that of the user's bias
    return kept


@pytest.mark.parametrize("tasks", [(RANK,), (RATING,), (RANK, RATING, CLICK)], ids=["rank", "rating", "three"])
@pytest.mark.parametrize("kind", ["sgd", "adam", "adagrad"])
def test_training_is_that_of_a_plain_loop_with_torch(
    kind: Literal["sgd", "adam", "adagrad"], tasks: tuple[Task, ...]
) -> None:
    data = small()
    recipe = Recipe(3, 7, Optimiser(kind, 0.03), num_negatives=2, l2=0.02, mu=0.7)
    rng = torch.Generator().manual_seed(0)
    params = {n: v + 0.3 * torch.randn(v.shape, generator=rng) for n, v in start(Recommender("mf", 3), tasks).items()}
    anchor = {name: torch.full_like(params[name], 0.2) for name in ("item_table", "item_bias")}
    found, loss = update(params, data, tasks, recipe, anchor=anchor, seed=4)

    leaves = {name: value.clone().requires_grad_(True) for name, value in params.items()}
    # What BPR cannot see is not trained: the bias of its head, and the user bias if no other task uses it.
    for name in ("heads.rank.bias", *(["user_bias"] if tasks == (RANK,) else [])):
        if name in leaves:
            leaves[name].requires_grad_(False)
    optimiser = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad}[kind](
        [leaf for leaf in leaves.values() if leaf.requires_grad], lr=0.03
    )
    losses = []
    for epoch in range(3):
        for batch in batches(data, tasks, recipe, generator(4, "train", "films", 1, 0, epoch)):
            value = plain_loss(leaves, batch, tasks, 0.02)
            tie = torch.stack([(leaves[name] - anchor[name]).square().sum() for name in anchor]).sum()
            optimiser.zero_grad()
            (value + 0.7 / 2 * tie).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(value.item())
    assert len(losses) == 3 * math.ceil(sum(np.logical_or.reduce([t.rows(data.train) for t in tasks])) / 7)
    assert loss == pytest.approx(np.mean(losses), abs=1e-5)
    expected = {name: value.detach() for name, value in leaves.items()}
    if kind != "sgd":
        found, expected = determined(found), determined(expected)
    for name in expected:
        assert torch.allclose(found[name], expected[name], atol=1e-5), name


def test_rows_without_a_rating_do_not_move_the_rating_head() -> None:
    data, tasks = small(), (RANK, RATING)
    unrated = np.isnan(data.train.rating)
    assert unrated.any() and not unrated.all()
    item = data.train.item.copy()
    item[unrated] = (item[unrated] + 1) % ITEMS
    other = client(
        interactions(
            list(zip(data.train.user, item, strict=True)), data.train.rating.tolist(), data.train.positive.tolist()
        ),
        users=USERS,
        items=ITEMS,
    )
    params, step = start(Recommender("mf", 3), tasks), Recipe(1, 1000, SGD)
    a, _ = update(params, data, tasks, step)
    b, _ = update(params, other, tasks, step)
    for name in ("heads.rating.weight", "heads.rating.bias"):
        assert torch.allclose(a[name], b[name], atol=1e-7)
        assert not torch.equal(a[name], params[name])
    assert not torch.allclose(a["item_table"], b["item_table"], atol=1e-4)


def test_a_batch_without_a_row_of_a_task_leaves_its_head_alone() -> None:
    model, tasks = Recommender("mf", 3), (RANK, RATING)
    params = {name: value.requires_grad_(True) for name, value in start(model, tasks).items()}
    one, zero = torch.ones(2), torch.zeros(2)
    batch = Batch(
        torch.tensor([0, 1]),
        torch.tensor([2, 3]),
        torch.tensor([[1], [1]]),
        {"rank": (one, one), "rating": (zero, zero)},
    )
    batch_loss(model, params, tasks, batch, 0.0).backward()  # type: ignore[no-untyped-call]
    gradients = {name: value.grad for name, value in params.items()}
    for name in ("heads.rating.weight", "heads.rating.bias"):
        gradient = gradients[name]
        assert gradient is not None and not gradient.any()


@pytest.mark.parametrize("kind", ["mf", "mlp"])
@pytest.mark.parametrize("phases", [("all",), ("private", "shared")])
def test_training_changes_nothing_but_its_result(kind: Kind, phases: tuple[Phase, ...]) -> None:
    data, tasks = small(), (RANK, RATING)
    params = start(Recommender(kind, 3, (4, 2)), tasks)
    anchor = {"item_table": torch.zeros(ITEMS, 3)}
    before, anchor_before, state = clone(params), clone(anchor), torch.get_rng_state()
    found, _ = update(params, data, tasks, Recipe(2, 8, SGD, phases, mu=1.0), kind=kind, anchor=anchor)
    assert same(params, before) and same(anchor, anchor_before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(value.requires_grad for value in [*params.values(), *found.values()])
    ours = {value.untyped_storage().data_ptr() for value in params.values()}
    assert not ours & {value.untyped_storage().data_ptr() for value in found.values()}
    assert list(found) == list(params) and all(found[n].shape == params[n].shape for n in params)


@pytest.mark.parametrize("phases", [("all",), ("private", "shared")])
def test_a_module_of_rate_0_keeps_its_start(phases: tuple[Phase, ...]) -> None:
    tasks = (RATING,)
    params = start(Recommender("mf", 3), tasks)
    optimiser = Optimiser("sgd", 0.05, (("heads", 0.0), ("item_table", 0.0)))
    found, _ = update(params, small(), tasks, Recipe(2, 8, optimiser, phases))
    kept = {name for name in params if torch.equal(found[name], params[name])}
    assert kept == {"heads.rating.weight", "heads.rating.bias", "item_table"}


def test_training_depends_on_seed_and_scope_and_not_on_the_global_generators() -> None:
    data, tasks, recipe = small(), (RANK,), Recipe(1, 8, SGD)
    params = start(Recommender("mf", 3), tasks)
    torch.manual_seed(1)
    first, loss = update(params, data, tasks, recipe, seed=3, number=5)
    torch.manual_seed(2)
    again, loss_again = update(params, data, tasks, recipe, seed=3, number=5)
    assert same(first, again) and loss == loss_again
    assert not same(first, update(params, data, tasks, recipe, seed=3, number=6)[0])
    assert not same(first, update(params, data, tasks, recipe, seed=4, number=5)[0])


@pytest.mark.parametrize("kind", ["mf", "mlp"])
@pytest.mark.parametrize("task", ["rank", "rank-bce", "rating", "click"])
def test_training_lowers_the_training_loss(kind: Kind, task: str) -> None:
    """From every start, and by a fifth in the mean over starts: of so few units most may be dead in one."""
    data, tasks = small(n=40), (parse_task(task),)
    left = []
    for seed in range(4):
        params = start(Recommender(kind, 3, (4, 2)), tasks, seed)
        losses = []
        for number in range(6):
            params, loss = update(params, data, tasks, Recipe(5, 8, Optimiser("adam", 0.02)), kind=kind, number=number)
            losses.append(loss)
        assert losses[-1] < losses[0]
        left.append(losses[-1] / losses[0])
    assert np.mean(left) < 0.8


@pytest.mark.parametrize("kind", ["mf", "mlp"])
def test_a_phase_trains_what_it_names_and_nothing_else(kind: Kind) -> None:
    data, tasks = small(), (RANK, CLICK)
    params = start(Recommender(kind, 3, (4, 2)), tasks)
    shared, private = BODY.split(params)
    for phase, frozen, moved in (("private", shared, private), ("shared", private, shared)):
        found, _ = update(params, data, tasks, Recipe(2, 8, SGD, (phase,)), kind=kind)  # type: ignore[arg-type]
        assert all(torch.equal(found[name], frozen[name]) for name in frozen)
        assert not any(torch.equal(found[name], moved[name]) for name in moved if name != "heads.rank.bias")


def test_fedrep_trains_the_head_against_the_old_body_and_then_the_body() -> None:
    data, tasks = small(), (RANK,)
    params = start(Recommender("mf", 3), tasks)
    both, _ = update(params, data, tasks, Recipe(2, 8, SGD, ("private", "shared")))
    head_only, _ = update(params, data, tasks, Recipe(2, 8, SGD, ("private",)))
    shared, private = BODY.split(both)
    assert same(private, BODY.split(head_only)[1])
    assert not any(torch.equal(shared[name], params[name]) for name in shared)


def test_a_phase_without_parameters_trains_nothing() -> None:
    params = start(Recommender("mf", 3), (RANK,))
    found, loss = update(params, small(), (RANK,), Recipe(1, 8, SGD, ("shared",)), Sharing(()))
    assert same(found, params) and math.isnan(loss)


@pytest.mark.parametrize("task", [RANK, RATING, CLICK])
def test_a_client_without_a_row_keeps_its_parameters(task: Task) -> None:
    empty = client(interactions([], click=[]), users=USERS, items=ITEMS)
    params = start(Recommender("mf", 3), (task,))
    found, loss = update(params, empty, (task,), Recipe(2, 8, SGD, mu=1.0), anchor={"item_bias": torch.ones(ITEMS, 1)})
    assert same(found, params) and math.isnan(loss)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.01, 5), st.integers(0, 50))
def test_one_step_moves_the_shared_parameters_by_minus_lr_mu_times_their_distance(mu: float, seed: int) -> None:
    data, step = small(seed), Recipe(1, 1000, SGD)
    params = start(Recommender("mf", 3), (RANK,), seed)
    anchor = {name: value + 1.5 for name, value in BODY.split(params)[0].items()}
    free, _ = update(params, data, (RANK,), step, anchor=anchor, seed=seed)
    tied, _ = update(params, data, (RANK,), Recipe(1, 1000, SGD, mu=mu), anchor=anchor, seed=seed)
    for name in params:
        pull = 0.05 * mu * 1.5 if name in anchor else 0.0
        assert torch.allclose(tied[name] - free[name], torch.full_like(params[name], pull), atol=1e-5)


def test_the_heavier_the_tie_the_nearer_the_anchor_and_without_one_it_has_no_influence() -> None:
    data, tasks = small(), (RANK, RATING)
    params = start(Recommender("mf", 3), tasks)
    anchor = clone(BODY.split(params)[0])
    lr = 1e-3
    distance = {}
    for mu in (0.0, 10.0, 1 / lr):
        found, _ = update(params, data, tasks, Recipe(60, 8, Optimiser("sgd", lr), mu=mu), anchor=anchor)
        distance[mu] = norm(subtract(BODY.split(found)[0], anchor))
        if not mu:
            assert same(found, update(params, data, tasks, Recipe(60, 8, Optimiser("sgd", lr)))[0])
    # With mu = 1/lr every step starts again from the anchor: x = z - lr g.
    assert distance[1 / lr] < 0.02 * distance[0.0] < 0.02
    assert distance[1 / lr] < distance[10.0] < distance[0.0]


def held_out_draws(data: ClientData, protocol: Literal["train", "published"], epochs: int) -> tuple[int, float, int]:
    """Return how many held-out positives were drawn as negatives, how many a uniform draw gives, of how many draws."""
    train: set[tuple[int, int]] = set()
    held: set[tuple[int, int]] = set()
    for part, to in ((data.train, train), (data.validation, held), (data.test, held)):
        to |= set(zip(part.user[part.positive].tolist(), part.item[part.positive].tolist(), strict=True))
    drawn: list[tuple[int, int]] = []
    for epoch in range(epochs):
        recipe = Recipe(1, 64, SGD, negatives=protocol, num_negatives=4)
        for batch in batches(data, (RANK,), recipe, generator(0, "leak", epoch)):
            assert batch.negative is not None
            drawn += zip(batch.user.repeat_interleave(4).tolist(), batch.negative.reshape(-1).tolist(), strict=True)
    assert not train.intersection(drawn)
    positives, targets = ({u: sum(pair[0] == u for pair in of) for u, _ in drawn} for of in (train, held))
    expected = sum(targets[u] / (len(data.items) - positives[u]) for u, _ in drawn)
    return sum(pair in held for pair in drawn), expected, len(drawn)


def market(seed: int, impressions: int) -> ClientData:
    found = synthetic(platforms=1, users=100, items=150, impressions=impressions, seed=seed)
    return federation(found, clients=1, partition="platform")[0]


def test_held_out_items_are_negatives_as_any_other_unless_the_protocol_is_the_published_one() -> None:
    data = market(0, 20)
    found, expected, draws = held_out_draws(data, "train", epochs=8)
    assert draws > 10_000 and expected > 100
    assert abs(found - expected) < 5 * math.sqrt(expected)
    assert held_out_draws(data, "published", epochs=8)[0] == 0


def test_the_published_protocol_leaks_the_test_item() -> None:
    """One client alone, nothing shared: only what is drawn as a negative differs, and it decides the result."""
    values = []
    for protocol in ("train", "published"):
        scores = []
        for seed in (0, 1):
            data, model = market(seed, 40), Recommender("mf", 32)
            recipe = Recipe(60, 256, Optimiser("adam", 0.02), negatives=protocol, num_negatives=4)
            params = model.init(seed, data.users, data.items, {"rank": 0.0})
            params, _ = local_update(model, params, data, (RANK,), recipe, Sharing(()), seed=seed, scope=("films", 1))
            found = evaluate(
                ModelScorer(model, params), data, (RANK,), "test", metrics=["ndcg@10"], candidates=50, seed=seed
            )
            scores.append(found.per_user[0].values)
        values.append(np.concatenate(scores))
    gain = paired(values[1], values[0], confidence=0.999)
    assert gain.low > 0.05
