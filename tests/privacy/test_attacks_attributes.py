from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from fedrec.privacy.attacks.attributes import infer, infer_ranks, logistic, one_hot
from fedrec.privacy.attacks.scores import judge, ranks
from tests.privacy.attacked import ATTACK, attacked, market, movies, real


def test_logistic_regression_minimises_its_loss() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 5)), rng.random(80) < 0.4
    w = torch.from_numpy(logistic(x, y, 0.7)).requires_grad_(True)
    sign = torch.from_numpy(np.where(y, 1.0, -1.0))
    loss = torch.nn.functional.softplus(-sign * (torch.from_numpy(x) @ w)).sum() + 0.35 * w.square().sum()
    (g,) = torch.autograd.grad(loss, w)
    assert float(g.abs().max()) < 1e-8


def test_inference_does_not_depend_on_the_scale_of_features_and_ignores_constant_ones() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 6)), rng.random((60, 1)) < 0.5
    plain = infer(x[:20], known=x[20:], attributes=y[20:])
    other = np.column_stack([x * 7 - 3, np.full(60, 2.5)])
    np.testing.assert_allclose(infer(other[:20], known=other[20:], attributes=y[20:]), plain, atol=1e-9)


def test_a_planted_attribute_is_found_and_a_random_one_is_not() -> None:
    rng = np.random.default_rng(0)
    x, known = rng.normal(size=(400, 30)), np.arange(400) % 2 == 0
    y = np.column_stack([x[:, :9].sum(1) + rng.normal(size=400) > 0, rng.random(400) < 0.3])
    scores = infer_ranks(x, known, y[known]).reshape(2, 200)
    assert judge(scores[0], y[~known, 0]).auc > 0.9
    assert judge(scores[1], y[~known, 1]).chance


def test_of_many_features_the_main_components_are_used() -> None:
    rng = np.random.default_rng(0)
    taste, known = rng.normal(size=(600, 3)), np.arange(600) < 300
    x = taste @ rng.normal(size=(3, 1000)) + rng.normal(size=(600, 1000))
    assert judge(infer_ranks(x, known, taste[known, :1] > 0), taste[~known, 0] > 0).auc > 0.95


def test_the_band_covers_chance_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(0), 0
    known, y = np.arange(100) % 2 == 0, np.arange(100) % 7 < 3
    for _ in range(200):
        hits += judge(infer_ranks(rng.normal(size=(100, 40)), known, y[known, None]), y[~known]).chance
    assert binomtest(hits, 200, 0.95).pvalue > 1e-3


def test_ranks_are_within_columns_and_share_ties() -> None:
    found = ranks(np.asarray([[1.0, 5.0], [2.0, 5.0], [3.0, 9.0]]))
    np.testing.assert_allclose(found, [[1 / 6, 1 / 3], [3 / 6, 1 / 3], [5 / 6, 5 / 6]])


def test_rare_labels_are_left_out() -> None:
    found = one_hot(["a"] * 3 + ["b"] * 2 + ["c"], least=2)
    assert found.sum(0).tolist() == [3, 2]


@pytest.mark.parametrize("source", ["item sets", "updates"])
def test_gender_is_told_by_what_one_user_clients_send(source: str) -> None:
    seen, case = attacked(market(partition="one-user", task="rank", rounds=1))
    assert ATTACK[f"gender from {source}"].result(seen.transcript, case).auc >= 0.55


@real
@pytest.mark.soak
def test_gender_and_age_are_told_by_item_sets_of_movielens_users(tries: Callable[[int, int], int]) -> None:
    tries(0, 1)
    seen, case = attacked(movies(partition="one-user", task="rank"))
    assert ATTACK["gender from item sets"].result(seen.transcript, case).auc >= 0.70
    assert ATTACK["age from item sets"].result(seen.transcript, case).auc >= 0.75
    assert ATTACK["occupation from item sets"].result(seen.transcript, case).auc_low > 0.55


@real
@pytest.mark.soak
def test_gender_is_told_by_vectors_of_movielens_users(tries: Callable[[int, int], int]) -> None:
    tries(0, 1)
    seen, case = attacked(movies(partition="users", clients=5, task="rank", rounds=10))
    assert ATTACK["gender from user vectors"].result(seen.transcript, case).auc >= 0.70
