"""Content of items: the tower by hand, what moves an item's own row, what is sent, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.recommend import recommend
from fedrec.data.text import Content, content_vectors, item_vectors
from fedrec.errors import UserError
from fedrec.experiment.holdings import clients_data, dataset, reader, tasks_for
from fedrec.models import KINDS, Recommender
from fedrec.models.content import kept
from fedrec.models.side import Side
from fedrec.params import Params
from fedrec.privacy.attacks.table import Case
from fedrec.sharing import Sharing
from fedrec.tasks import parse_task
from fedrec.training.local import local_update
from fedrec.training.optimisers import Optimiser
from fedrec.training.recipe import Recipe
from simulations.apps import apps_for
from tests.builders import batches, client, interactions
from tests.helpers import experiment, fit, run_inline
from tests.letters import read_contribution

TASKS = ("click", "buy")
HASHED = {"kind": "hashed", "dim": 8}


def model_of(kind: str, content: torch.Tensor) -> Recommender:
    return Recommender(kind, 3, (6, 4), experts=2, side=Side(content=content))


def noisy(model: Recommender, users: int, items: int) -> Params:
    params = model.init(0, np.arange(users), np.arange(items), dict.fromkeys(TASKS, 0.0))
    g = torch.Generator().manual_seed(1)
    return {name: value + 0.3 * torch.randn(value.shape, generator=g) for name, value in params.items()}


def test_matrix_factorisation_with_content_by_hand() -> None:
    # c = [1, 2]: A c = [1*1 + 0*2, 0*1 - 1*2] = [1, -2], a c = 10*1 + 1*2 = 12.
    # q = [3, 4] + [1, -2] = [4, 2], b = 0.5 + 12: s = 1*4 + 2*2 + 0.25 + 12.5 = 20.75.
    # With the id hidden q = [1, -2], b = 12: s = 1 - 4 + 0.25 + 12 = 9.25.
    model = replace(Recommender("mf", 2), side=Side(content=torch.tensor([[1.0, 2.0]])))
    params = {
        "user_table": torch.tensor([[1.0, 2.0]]),
        "item_table": torch.tensor([[3.0, 4.0]]),
        "user_bias": torch.tensor([[0.25]]),
        "item_bias": torch.tensor([[0.5]]),
        "adapter.item_table": torch.tensor([[1.0, 0.0], [0.0, -1.0]]),
        "adapter.item_bias": torch.tensor([[10.0, 1.0]]),
        "heads.rank.weight": torch.ones(4),
        "heads.rank.bias": torch.zeros(1),
    }
    zero = torch.tensor([0])
    assert model.head(params, "rank", model.features(params, zero, zero)).item() == pytest.approx(20.75)
    assert model.score_all(params, "rank", zero).item() == pytest.approx(20.75)
    hidden = model.features(params, zero, zero, keep=torch.tensor([0.0]))
    assert model.head(params, "rank", hidden).item() == pytest.approx(9.25)


@pytest.mark.parametrize("kind", KINDS)
def test_every_model_reads_content_in_pairs_and_over_the_catalogue_alike(kind: str) -> None:
    content = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    model = model_of(kind, content)
    params = noisy(model, 4, 5)
    assert params.keys() == model.shapes(4, 5, TASKS).keys()
    assert all(params[name].shape == like.shape for name, like in model.shapes(4, 5, TASKS).items())
    users = torch.tensor([3, 0])
    for task in TASKS:
        pairs = model.features(params, users.repeat_interleave(5), torch.arange(5).repeat(2))
        whole = model.score_all(params, task, users)
        assert torch.allclose(whole.reshape(-1), model.head(params, task, pairs), atol=1e-5)
        other = replace(model, side=Side(content=content + 1)).score_all(params, task, users)
        assert not torch.allclose(whole, other)


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_id_an_item_is_what_its_content_says_and_nothing_else(kind: str) -> None:
    model = model_of(kind, torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 1.0]]))
    params = noisy(model, 1, 3)
    user, item = torch.zeros(3, dtype=torch.int64), torch.arange(3)
    hidden = model.features(params, user, item, keep=torch.zeros(3))
    assert torch.allclose(hidden[0], hidden[1])  # items 0 and 1 have one content, and unlike ids
    assert not torch.allclose(hidden[0], hidden[2])
    assert not torch.allclose(*model.features(params, user, item)[:2])


def test_ids_start_at_zero_and_the_adapter_is_one_for_all_catalogues() -> None:
    content = torch.nn.functional.normalize(torch.randn(400, 300, generator=torch.Generator().manual_seed(0)), dim=1)
    model = Recommender("mf", 64, side=Side(content=content))
    params = model.init(5, np.arange(2), np.arange(400), {"rank": 0.0})
    assert not params["item_table"].any()
    assert not params["item_bias"].any()
    assert float(model.catalogue(params).std()) == pytest.approx(0.1, rel=0.05)  # as rows have without content
    other = Recommender("mf", 64, side=Side(content=content[:7])).init(5, np.arange(9), np.arange(7), {"rank": 0.0})
    assert torch.equal(params["adapter.item_table"], other["adapter.item_table"])


@pytest.mark.parametrize("kind", ["sgd", "adam", "adagrad"])
@pytest.mark.parametrize("model", ["mf", "mlp", "mmoe"])
def test_only_its_own_training_rows_move_an_items_row(kind: Any, model: str) -> None:
    data = client(interactions([(0, 0), (1, 1), (0, 1)], rating=[5, 1, 3]), users=2, items=3)
    made = Recommender(model, 2, (16, 8), side=Side(content=torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8]])))
    tasks = (parse_task("rating"),)
    params = made.init(0, data.users, data.items, {"rating": 3.0})
    recipe = Recipe(4, 2, Optimiser(kind, 0.05), l2=0.1, hidden=0.5)
    after, _ = local_update(made, params, data, tasks, recipe, Sharing(()), seed=0, scope=())
    assert not torch.equal(after["adapter.item_table"], params["adapter.item_table"])
    for table in {"item_table", "item_bias"} & after.keys():
        assert after[table][:2].any()
        assert not after[table][2].any()


def test_ids_are_hidden_with_their_probability_each_on_its_own() -> None:
    keep = kept(20_000, 3, 0.3, np.random.default_rng(0))
    assert set(np.unique(keep)) == {0.0, 1.0}
    # sd of a mean of 20,000: 0.0032; of the product of two independent columns, mean 0.49: 0.0035
    assert np.abs(keep.mean(0) - 0.7).max() < 0.015
    assert abs(float((keep[:, 0] * keep[:, 1]).mean()) - 0.49) < 0.016


def test_batches_hide_ids_only_if_told_and_draw_nothing_else_anew() -> None:
    data = client(interactions([(0, 0), (1, 1), (0, 1)]), users=2, items=9)
    tasks = (parse_task("rank"),)

    def drawn(hidden: float) -> list[Any]:
        recipe = Recipe(1, 2, Optimiser("sgd", 1.0), num_negatives=2, hidden=hidden)
        return list(batches(data, tasks, recipe, np.random.default_rng(0)))

    plain, hiding = drawn(0.0), drawn(0.5)
    assert [batch.keep for batch in plain] == [None, None]
    assert [tuple(batch.keep.shape) for batch in hiding] == [(2, 3), (1, 3)]
    for a, b in zip(plain, hiding, strict=True):
        assert torch.equal(a.item, b.item)
        assert torch.equal(a.negative, b.negative)


def test_a_hidden_id_gets_no_gradient() -> None:
    model = model_of("mf", torch.eye(2))
    params = {name: value.requires_grad_() for name, value in noisy(model, 1, 2).items()}
    both = torch.tensor([0, 1])
    h = model.features(params, torch.zeros_like(both), both, keep=torch.tensor([0.0, 1.0]))
    score = model.head(params, "buy", h).sum()
    for gradient in torch.autograd.grad(score, [params["item_table"], params["item_bias"]]):
        assert not gradient[0].any()
        assert gradient[1].all()


def test_content_is_text_and_vectors_of_equal_weight(tmp_path: Path) -> None:
    found = dataset(experiment())
    keys = found.items["key"].tolist()
    path = tmp_path / "images.csv"
    path.write_text("key,a,b\n" + "".join(f"{key},{3 * n},4\n" for n, key in enumerate(keys[1:], 1)))
    both, notes = content_vectors(found, Content(kind="hashed", dim=8, vectors=path))
    text = item_vectors(found, "hashed", 8)
    assert notes == (f"images.csv: 1 of {len(keys)} items have no vector and get zeros",)
    assert both[1] == pytest.approx(np.concatenate([text[1], [0.6, 0.8]]) / np.sqrt(2), abs=1e-6)
    assert both[0] == pytest.approx(np.concatenate([text[0], [0, 0]]), abs=1e-6)  # described by its text alone
    alone, _ = content_vectors(found, Content(vectors=path))
    assert alone.shape == (len(keys), 2)


def test_the_reader_binds_the_vectors_of_the_clients_own_items() -> None:
    e = experiment(content=HASHED)
    vectors, _ = content_vectors(dataset(e), e.content)
    parts = clients_data(e)
    assert any(len(data.items) < len(vectors) for data in parts)
    for data in parts:
        content = reader(e, data, "train").side.content
        assert content is not None
        assert np.array_equal(content.numpy(), vectors[data.items])
    assert reader(experiment(), parts[0], "train").side.content is None


PAIRS = (
    *(("fedper", model) for model in ("mf", "mlp", "item", "mmoe")),
    *((method, "mf") for method in ("fedavg", "fedrep", "admm", "local", "pooled", "ditto", "mr-mtl")),
)


@pytest.mark.parametrize(("method", "model"), PAIRS)
def test_content_composes_and_only_the_adapter_and_rows_are_sent(method: str, model: str) -> None:
    market = {"users": 30, "items": 60, "impressions": 10}
    content = {**HASHED, "dropout": 0.3}
    e = experiment(method, model=model, market=market, content=content, rounds=1, task="rank,buy")
    _, grid = fit(e)
    rows = {"item_table", "item_bias"} if model == "mf" else {"item_table"}
    for message in grid.received[: len(clients_data(e))]:
        sent = read_contribution(message.content).values
        expected = rows | {f"adapter.{table}" for table in rows} if e.share else set()
        assert {name for name in sent if name.startswith(("item", "adapter"))} == expected


REFUSED: dict[str, Callable[[], Any]] = {
    "attacks": lambda: Case(experiment(content=HASHED), [], {}, dataset(experiment()).users, np.ones(5)),
    "dim": lambda: experiment(content={"kind": "hashed", "dim": 0}),
    "dropout": lambda: experiment(content={"kind": "hashed", "dropout": 1.0}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_knows_no_content_is_refused_with_the_reason(reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        REFUSED[reason]()


def test_a_finished_run_with_content_recommends(tmp_path: Path) -> None:
    e = experiment(content=HASHED)
    run_inline(*apps_for(e, tmp_path), len(clients_data(e)))
    data = clients_data(e)[1]
    user = dataset(e).users["key"].to_numpy()[data.users[0]]
    made = recommend(tmp_path, data.name, user, 3)
    assert made.task == tasks_for(e, data)[0]
    assert len(made.items) == 3
