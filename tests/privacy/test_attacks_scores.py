import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from torchmetrics.functional.classification import binary_auroc, binary_roc

from fedrec.metrics import auc as mann_whitney
from fedrec.privacy.attacks.scores import auc, clopper_pearson, judge, violates

CASES = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=4, max_size=60).filter(
    lambda rows: 1 < sum(label for _, label in rows) < len(rows) - 1
)


def arrays(rows: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray([float(score) for score, _ in rows]), np.asarray([label for _, label in rows])


@given(CASES)
def test_auc_and_roc_equal_torchmetrics_with_ties(rows: list[tuple[int, bool]]) -> None:
    scores, truth = arrays(rows)
    found = judge(scores, truth)
    s, y = torch.from_numpy(scores / 10), torch.from_numpy(truth.astype(np.int64))
    assert found.auc == pytest.approx(float(binary_auroc(s, y)), abs=1e-6)
    assert found.auc == pytest.approx(mann_whitney(scores, truth), abs=1e-12)
    fpr, tpr, _ = binary_roc(s, y)
    np.testing.assert_allclose(found.fpr, fpr.numpy(), atol=1e-6)
    np.testing.assert_allclose(found.tpr, tpr.numpy(), atol=1e-6)


@given(CASES)
def test_error_is_the_one_of_delong(rows: list[tuple[int, bool]]) -> None:
    # V10_i = mean_j psi(x_i, y_j), V01_j = mean_i psi(x_i, y_j); var = var(V10)/m + var(V01)/n (DeLong 1988, eq. 4-6).
    scores, truth = arrays(rows)
    mine, other = scores[truth], scores[~truth]
    psi = (mine[:, None] > other[None, :]) + 0.5 * (mine[:, None] == other[None, :])
    variance = psi.mean(1).var(ddof=1) / len(mine) + psi.mean(0).var(ddof=1) / len(other)
    value, error = auc(scores, truth, np.arange(len(scores)))
    assert value == pytest.approx(psi.mean())
    assert error == pytest.approx(math.sqrt(variance), abs=1e-12)


def test_targets_of_one_group_count_as_one() -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(400) % 2 == 0
    scores = rng.normal(size=400) + truth
    once = judge(scores, truth)
    copied = judge(np.repeat(scores, 9), np.repeat(truth, 9), groups=np.repeat(np.arange(400), 9))
    naive = judge(np.repeat(scores, 9), np.repeat(truth, 9))
    assert copied.auc == pytest.approx(once.auc)
    assert copied.auc_high - copied.auc_low == pytest.approx(once.auc_high - once.auc_low, rel=1e-2)
    assert naive.auc_high - naive.auc_low == pytest.approx((once.auc_high - once.auc_low) / 3, rel=1e-2)


def test_the_band_of_chance_covers_a_half_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(1), 0
    for _ in range(400):
        hits += judge(rng.normal(size=120), np.arange(120) < 50).chance
    assert binomtest(hits, 400, 0.95).pvalue > 1e-3


@pytest.mark.parametrize(("k", "n"), [(0, 20), (20, 20), (1, 20), (7, 20), (300, 1000)])
def test_clopper_pearson_equals_scipy(k: int, n: int) -> None:
    low, high = clopper_pearson(np.asarray([k]), n, 0.05)
    reference = binomtest(k, n).proportion_ci(0.95, "exact")
    assert (low[0], high[0]) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_a_constant_score_knows_nothing() -> None:
    found = judge(np.ones(50), np.arange(50) < 20)
    assert (found.auc, found.tpr_at, found.tpr_low, found.chance) == (0.5, 0.0, 0.0, True)
    assert found.fpr.tolist() == [0.0, 1.0] and found.tpr.tolist() == [0.0, 1.0]


def test_a_perfect_score_knows_everything() -> None:
    truth = np.arange(50) < 20
    found = judge(truth.astype(float), truth)
    assert (found.auc, found.tpr_at, found.tpr_high) == (1.0, 1.0, 1.0)
    assert found.tpr_low == pytest.approx(0.025 ** (1 / 20))  # all of n: the k = n end of Clopper-Pearson


def test_tpr_is_read_where_the_fpr_does_not_pass_the_bound() -> None:
    # Of 200 others 2 score 3, 2 score 2: FPR 0.01 at threshold 3, 0.02 at 2. Of 10 members 4 score 3, 3 score 2.
    scores = np.asarray([3.0] * 4 + [2.0] * 3 + [0.0] * 3 + [3.0] * 2 + [2.0] * 2 + [1.0] * 196)
    found = judge(scores, np.arange(210) < 10)
    assert found.tpr_at == 0.4
    assert judge(scores, np.arange(210) < 10, at=0.02).tpr_at == 0.7


@pytest.mark.parametrize(
    ("scores", "truth"), [([1.0, 2.0], [True, True]), ([1.0, math.nan], [True, False]), ([1.0], [True, False])]
)
def test_what_cannot_be_judged_is_refused(scores: list[float], truth: list[bool]) -> None:
    with pytest.raises(ValueError, match=r"truth|scores"):
        judge(np.asarray(scores), np.asarray(truth))


def randomised(rng: np.random.Generator, epsilon: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and truth of randomised response, whose ROC touches TPR = e^epsilon FPR."""
    truth = rng.random(n) < 0.5
    honest = rng.random(n) < math.exp(epsilon) / (1 + math.exp(epsilon))
    return np.where(honest, truth, ~truth).astype(float), truth


def test_a_tight_mechanism_is_called_broken_seldom_and_a_weaker_claim_always() -> None:
    rng = np.random.default_rng(2)
    judged = [judge(*randomised(rng, 1.0, 1000)) for _ in range(200)]
    assert sum(violates(one, 1.0, 0.0) for one in judged) <= 10  # at most 5 %
    assert all(violates(one, 0.3, 0.0) for one in judged)
    assert not any(violates(one, 0.3, 0.5) for one in judged)


def test_the_complement_is_looked_at_too() -> None:
    # A quarter of the others are told for sure, no member is: TPR <= e^eps FPR holds, TNR <= e^eps FNR does not.
    truth = np.arange(4000) < 2000
    scores = np.where(truth | (np.arange(4000) % 4 > 0), 1.0, 0.0)
    assert violates(judge(scores, truth), 2.0, 0.01)
    assert not violates(judge(np.ones(4000), truth), 0.0, 0.0)
