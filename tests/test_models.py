"""Recommenders: the formulas by hand, one start for one row wherever it is carried, and stackable over clients."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

from fedrec.models import Recommender
from fedrec.models.tables import BLOCK, table_rows
from fedrec.params import Params
from fedrec.tasks import parse_task
from fedrec.training.losses import batch_loss
from fedrec.training.recipe import Batch

KINDS: list[str] = ["mf", "mlp", "item"]
IDS = st.sets(st.integers(0, 5 * BLOCK), min_size=1, max_size=30).map(lambda ids: np.array(sorted(ids)))
OFFSETS = {"rank": 0.0, "rating": 3.5}


def noisy(model: Recommender, users: int, items: int, seed: int) -> Params:
    """Return parameters without a zero, so that no term of a score can go missing unseen."""
    params = model.init(seed, np.arange(users), np.arange(items), OFFSETS)
    g = torch.Generator().manual_seed(seed)
    return {name: value + 0.3 * torch.randn(value.shape, generator=g) for name, value in params.items()}


def pair_score(model: Recommender, params: Params, task: str, user: Tensor, item: Tensor) -> Tensor:
    return model.head(params, task, model.features(params, user, item))


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 5),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.lists(st.integers(0, 3), max_size=6),
    st.integers(0, 100),
)
def test_scoring_the_catalogue_agrees_with_scoring_pair_by_pair(
    kind: str, dim: int, hidden: list[int], asked: list[int], seed: int
) -> None:
    model = Recommender(kind, dim, tuple(hidden))
    params = noisy(model, 4, 7, seed)
    user = torch.tensor(asked, dtype=torch.int64)
    everything = model.score_all(params, "rating", user)
    assert everything.shape == (len(asked), 7)
    pairs = pair_score(model, params, "rating", user.repeat_interleave(7), torch.arange(7).repeat(len(asked)))
    assert torch.allclose(everything.reshape(-1), pairs, atol=1e-5)


def test_matrix_factorisation_by_hand() -> None:
    # w . [p * q, b_u, b_i] + c = 2 (1 * 3) + 0.5 (-2 * 4) + 10 * 0.1 + 100 * 0.2 + 7 = 6 - 4 + 1 + 20 + 7 = 30
    params = {
        "user_table": torch.tensor([[9.0, 9.0], [1.0, -2.0]]),
        "item_table": torch.tensor([[3.0, 4.0]]),
        "user_bias": torch.tensor([[9.0], [0.1]]),
        "item_bias": torch.tensor([[0.2]]),
        "heads.rank.weight": torch.tensor([2.0, 0.5, 10.0, 100.0]),
        "heads.rank.bias": torch.tensor([7.0]),
    }
    model = Recommender("mf", 2)
    assert pair_score(model, params, "rank", torch.tensor([1]), torch.tensor([0])).item() == pytest.approx(30)
    assert model.score_all(params, "rank", torch.tensor([1])).item() == pytest.approx(30)


def test_mlp_by_hand() -> None:
    # relu([2 + 3 + 1, 2 - 3]) = [6, 0]; relu(2 * 6 + 5 * 0 - 4) = 8; 3 * 8 - 1 = 23
    params = {
        "user_table": torch.tensor([[2.0]]),
        "item_table": torch.tensor([[9.0], [3.0]]),
        "body.0.weight": torch.tensor([[1.0, 1.0], [1.0, -1.0]]),
        "body.0.bias": torch.tensor([1.0, 0.0]),
        "body.1.weight": torch.tensor([[2.0, 5.0]]),
        "body.1.bias": torch.tensor([-4.0]),
        "heads.buy.weight": torch.tensor([3.0]),
        "heads.buy.bias": torch.tensor([-1.0]),
    }
    model = Recommender("mlp", 1, (2, 1))
    assert pair_score(model, params, "buy", torch.tensor([0]), torch.tensor([1])).item() == pytest.approx(23)
    assert model.score_all(params, "buy", torch.tensor([0]))[0, 1].item() == pytest.approx(23)


def test_an_item_model_by_hand() -> None:
    # 2 * 3 - 1 * 4 + 0.5 = 2.5 whoever the user is: there is no user table.
    params = {
        "item_table": torch.tensor([[9.0, 9.0], [3.0, 4.0]]),
        "heads.rank.weight": torch.tensor([2.0, -1.0]),
        "heads.rank.bias": torch.tensor([0.5]),
    }
    model = Recommender("item", 2)
    assert pair_score(model, params, "rank", torch.tensor([0, 5]), torch.tensor([1, 1])).tolist() == [2.5, 2.5]
    assert model.score_all(params, "rank", torch.tensor([0, 5])).tolist() == [[9.5, 2.5], [9.5, 2.5]]
    assert model.penalty(params, torch.tensor([0]), torch.tensor([1])).tolist() == [25.0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_tables_start_in_proportion_to_their_standard_deviation(kind: str) -> None:
    one, two = (Recommender(kind, 3, std=std).init(0, np.arange(4), np.arange(5), OFFSETS) for std in (0.5, 1.0))
    for name in one:
        scale = 2.0 if name.endswith("_table") else 1.0
        assert torch.equal(scale * one[name], two[name]), name


def test_the_head_of_an_item_model_starts_like_a_linear_layer() -> None:
    # U(-1/sqrt(d), 1/sqrt(d)): the bound is kept, nearly reached by 4,000 entries, and the sd is it over sqrt(3).
    head = Recommender("item", 4000).init(0, np.arange(1), np.arange(1), {"rank": 0.0})["heads.rank.weight"]
    bound = 4000**-0.5
    assert 0.99 * bound < float(head.abs().max()) <= bound
    assert float(head.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_the_penalty_is_that_of_the_rows_of_the_batch_and_of_nothing_else() -> None:
    model = Recommender("mf", 2)
    params = noisy(model, 3, 3, 0)
    user, item = torch.tensor([2, 0]), torch.tensor([1, 1])
    rows = [("user_table", user), ("user_bias", user), ("item_table", item), ("item_bias", item)]
    expected = [sum(float((params[name][index[b]] ** 2).sum()) for name, index in rows) for b in range(2)]
    assert model.penalty(params, user, item).tolist() == pytest.approx(expected)


@settings(deadline=None, max_examples=50)
@given(IDS, IDS, st.integers(0, 2**40))
def test_a_row_starts_the_same_wherever_it_is_carried(mine: np.ndarray, yours: np.ndarray, seed: int) -> None:
    everywhere = np.arange(5 * BLOCK + 1)
    whole = table_rows(seed, "item_table", everywhere, 3)
    assert np.array_equal(table_rows(seed, "item_table", mine, 3), whole[mine])
    model = Recommender("mf", 3)
    a, b = model.init(seed, mine, mine, OFFSETS), model.init(seed, yours, yours, {"rank": 0.0})
    common, in_a, in_b = np.intersect1d(mine, yours, return_indices=True)
    for name in ("item_table", "user_table", "item_bias", "user_bias"):
        assert torch.equal(a[name][in_a], b[name][in_b])
    assert len(common) == len(in_a)


def test_clients_of_one_model_start_from_one_body_and_their_heads_from_their_offsets() -> None:
    model = Recommender("mlp", 2, (4, 3))
    a = model.init(5, np.arange(3), np.arange(4), {"rank": 0.0})
    b = model.init(5, np.arange(9), np.arange(2), {"rating": 3.5})
    for name in ("body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"):
        assert torch.equal(a[name], b[name])
    assert torch.equal(a["heads.rank.weight"], b["heads.rating.weight"])
    assert (a["heads.rank.bias"].item(), b["heads.rating.bias"].item()) == (0.0, 3.5)


def test_two_layers_of_one_shape_start_apart() -> None:
    params = Recommender("mlp", 2, (4, 4)).init(0, np.arange(1), np.arange(1), {})
    assert not torch.isclose(params["body.0.weight"], params["body.1.weight"]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_an_init_share_no_memory(kind: str) -> None:
    params = Recommender(kind, 2).init(0, np.arange(3), np.arange(4), OFFSETS)
    assert len({value.untyped_storage().data_ptr() for value in params.values()}) == len(params)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 6),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.integers(0, 5),
    st.integers(0, 5),
    st.sets(st.sampled_from(["rank", "rating", "buy"]), min_size=1),
)
def test_shapes_are_those_of_init(
    kind: str, dim: int, hidden: list[int], users: int, items: int, tasks: set[str]
) -> None:
    model = Recommender(kind, dim, tuple(hidden))
    shapes = model.shapes(users, items, sorted(tasks))
    params = model.init(0, np.arange(users), np.arange(items), dict.fromkeys(sorted(tasks), 1.0))
    assert list(shapes) == list(params) == sorted(params)
    assert all((shapes[n].shape, shapes[n].dtype) == (params[n].shape, params[n].dtype) for n in params)
    assert all(value.is_meta for value in shapes.values())


def stacked(model: Recommender, clients: int) -> tuple[list[Params], Params]:
    alone = [noisy(model, 5, 7, seed) for seed in range(clients)]
    return alone, {name: torch.stack([one[name] for one in alone]) for name in alone[0]}


@pytest.mark.parametrize("kind", KINDS)
def test_clients_stacked_on_a_leading_dimension_score_as_each_alone(kind: str) -> None:
    model = Recommender(kind, 3, (4, 2))
    alone, together = stacked(model, 3)
    g = torch.Generator().manual_seed(0)
    user, item = torch.randint(5, (3, 6), generator=g), torch.randint(7, (3, 6), generator=g)

    def score(params: Params, u: Tensor, i: Tensor) -> Tensor:
        return pair_score(model, params, "rank", u, i)

    found = vmap(score)(together, user, item)
    everything = vmap(lambda params, u: model.score_all(params, "rank", u))(together, user)
    for c in range(3):
        assert torch.allclose(found[c], score(alone[c], user[c], item[c]), atol=1e-6)
        assert torch.allclose(everything[c], model.score_all(alone[c], "rank", user[c]), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_stacked_clients_are_those_of_each_alone(kind: str) -> None:
    model, tasks = Recommender(kind, 3, (4, 2)), (parse_task("rank"), parse_task("rating*0.5"))
    alone, together = stacked(model, 3)
    g = torch.Generator().manual_seed(0)
    user, item = torch.randint(5, (3, 6), generator=g), torch.randint(7, (3, 6), generator=g)
    negative, rating = torch.randint(7, (3, 6, 2), generator=g), torch.rand(3, 6, generator=g)
    mask = (torch.rand(3, 6, generator=g) > 0.4).float()

    def loss(params: Params, u: Tensor, i: Tensor, n: Tensor, m: Tensor, y: Tensor) -> Tensor:
        batch = Batch(u, i, n, {"rank": (torch.ones(6), torch.ones(6)), "rating": (m, y)})
        return batch_loss(model, params, tasks, batch, l2=0.1)

    gradient: Callable[..., Params] = grad(loss)
    found = vmap(gradient)(together, user, item, negative, mask, rating)
    for c in range(3):
        leaves = {name: value.clone().requires_grad_(True) for name, value in alone[c].items()}
        total = loss(leaves, user[c], item[c], negative[c], mask[c], rating[c])
        expected = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))
        assert all(torch.allclose(found[name][c], expected[name], atol=1e-5) for name in leaves)
