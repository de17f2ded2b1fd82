"""Differences of two models: known answers for each estimand, intervals, and verdicts where there is no effect."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.evaluation.differences import Side, difference
from fedrec.metrics import auc, holm, paired, placements
from fedrec.report.verdicts import UNCLEAR, verdict, verdicts
from fedrec.rng import generator


def side(ours: Any, theirs: Any, weight: Any, unit: Any = None) -> Side:
    """Return a side of users 0, 1, ..., or of `unit`."""
    found = [np.asarray(one, np.float64) for one in (ours, theirs, weight)]
    return Side(np.arange(len(found[0])) if unit is None else np.asarray(unit), found[0], found[1], found[2])


def test_the_difference_of_rmse_is_of_the_roots_over_all_rows() -> None:
    # Squared errors: user 0 has two rows, 4 and 4 against 1 and 1; user 1 one row, 1 against 4. Over the three rows
    # RMSE is sqrt(9 / 3) against sqrt(6 / 3). The mean of the users' own roots would be 1.5 against 1.5: no difference.
    found = difference("rmse", [side([2, 1], [1, 2], [2, 1])])
    assert found.mean == pytest.approx(math.sqrt(3) - math.sqrt(2))
    assert found.n == 2


def test_the_difference_of_log_loss_is_over_all_rows() -> None:
    # Row means (3 * .1 + 1 * .5) / 4 = .2 against (3 * .2 + 1 * .2) / 4 = .2; the mean of user means differs by .1.
    found = difference("logloss", [side([0.1, 0.5], [0.2, 0.2], [3, 1])])
    assert found.mean == pytest.approx(0)
    assert found.low < 0 < found.high and found.p > 0.9


def test_a_mean_over_users_is_the_paired_t() -> None:
    rng = generator(0, "equal")
    ours, theirs = rng.random(30), rng.random(30)
    assert difference("ndcg@10", [side(ours, theirs, np.ones(30))]) == paired(ours, theirs)
    assert difference("logloss", [side(ours, theirs, np.full(30, 4))]) == paired(ours, theirs)


def test_the_bootstrap_of_unequal_users_has_the_error_of_a_ratio() -> None:
    # By the delta method, of sum(w d) / sum(w) it is sqrt(n / (n - 1) sum(w^2 (d - mean)^2)) / sum(w).
    rng = generator(0, "ratio")
    weight, ours = rng.integers(1, 9, 300).astype(np.float64), rng.random(300)
    theirs = ours + rng.normal(0.01, 0.2, 300)
    found = difference("logloss", [side(ours, theirs, weight)])
    gap = ours - theirs
    mean = float(weight @ gap / weight.sum())
    error = math.sqrt(300 / 299 * float(np.square(weight * (gap - mean)).sum())) / weight.sum()
    assert found.mean == pytest.approx(mean)
    assert (found.high - found.low) / 2 == pytest.approx(1.97 * error, rel=0.08)
    assert found == difference("logloss", [side(ours, theirs, weight)])  # the draws are no chance


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=25))
def test_the_placements_of_either_class_have_the_auc_as_their_mean(rows: list[tuple[int, bool]]) -> None:
    score, label = np.array([float(s) for s, _ in rows]), np.array([up for _, up in rows])
    place = placements(score, label)
    if label.all() or not label.any():
        assert np.isnan(place).all()
    else:
        assert place[label].mean() == pytest.approx(auc(score, label))
        assert place[~label].mean() == pytest.approx(auc(score, label))


def by_user(user: Any, label: Any, scores: Any) -> list[Side]:
    """Return the two sides of the AUCs of two scores over the same rows."""
    places = [placements(score, label) for score in scores]
    sides = []
    for mask in (label, ~label):
        unit, index, rows = np.unique(user[mask], return_inverse=True, return_counts=True)
        ours, theirs = (np.bincount(index, place[mask]) / rows for place in places)
        sides.append(side(ours, theirs, rows, unit))
    return sides


def test_the_auc_of_a_draw_is_that_of_its_rows_to_first_order() -> None:
    rng = generator(0, "rows")
    user = np.repeat(np.arange(60), rng.integers(2, 9, 60))
    lean = rng.normal(0, 1, 60)[user]
    label = rng.random(len(user)) < 1 / (1 + np.exp(-lean))
    scores = [lean + rng.normal(0, noise, len(user)) for noise in (1.0, 1.5)]
    found = difference("auc", by_user(user, label, scores))
    assert found.mean == pytest.approx(auc(scores[0], label) - auc(scores[1], label))
    starts = np.searchsorted(user, np.arange(61))
    gaps = []
    for _ in range(1500):  # users with all their rows, and the AUC of exactly these rows
        rows = np.concatenate([np.arange(starts[u], starts[u + 1]) for u in rng.integers(60, size=60)])
        gaps.append(auc(scores[0][rows], label[rows]) - auc(scores[1][rows], label[rows]))
    assert (found.high - found.low) / 2 == pytest.approx(2.0 * float(np.std(gaps)), rel=0.1)


def test_one_user_with_a_positive_gives_no_interval_of_an_auc() -> None:
    label = np.array([True, False, False, False])
    found = difference(
        "auc", by_user(np.array([0, 0, 1, 2]), label, [np.array([3.0, 1, 2, 0]), np.array([0.0, 1, 2, 3])])
    )
    assert found.mean == 1 and math.isnan(found.low)


def test_the_interval_is_where_the_p_value_says() -> None:
    rng = generator(0, "agree")
    for _ in range(200):
        weight = rng.integers(1, 5, 12)
        found = difference("rmse", [side(rng.random(12), rng.random(12), weight)])
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_pairs_that_all_differ_alike_have_the_p_value_of_their_signs() -> None:
    assert paired(np.ones(3), np.zeros(3)).p == 1 / 4
    assert paired(np.zeros(3), np.zeros(3)).p == 1


def test_holm_known_answer() -> None:
    # Ordered .005, .01, .03, .04 times 4, 3, 2, 1: .02, .03, .06, .04, of which the running maximum.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    found = holm([math.nan, 0.02, math.nan, 0.9])
    assert found[1::2] == pytest.approx([0.04, 0.9]) and math.isnan(found[0]) and math.isnan(found[2])
    assert holm([]) == []


def test_an_interval_that_excludes_0_beside_a_corrected_verdict_has_a_word() -> None:
    found = paired(np.array([1.0, 2, 3, 2, 1]), np.array([0.0, 0, 0, 0, 2]))
    sure = paired(np.linspace(1, 1.1, 20), np.zeros(20))
    assert found.low < 0 < found.high
    weak = paired(np.linspace(-1, 3.2, 20), np.zeros(20))
    assert weak.low > 0 and 0.0001 < weak.p < 0.04
    assert verdicts(["mrr"] * 2, [sure, weak], [0, 0]) == ["helped", "helped"]
    assert verdicts(["mrr"] * 501, [sure] + [weak] * 500, [0] * 501) == ["helped"] + [UNCLEAR] * 500
    assert verdicts(["mrr"] * 3, [found, sure, weak], [0, 1, 2]) == ["no detectable difference", "helped", "helped"]
    assert verdict("rmse", sure, sure.p) == "hurt"


@pytest.mark.soak
@pytest.mark.parametrize("clients", [5, 30])
@pytest.mark.parametrize("metric", ["ndcg@10", "logloss", "rmse", "auc"])
def test_without_an_effect_hardly_anybody_is_called_helped_or_hurt(
    metric: str, clients: int, tries: Callable[[int, int], int]
) -> None:
    # Two models of equal worth: the same law of the users' values. At 5% over all clients of a run together, the
    # binomial bound at 4 standard deviations.
    rng, runs, wrong, plain = (
        generator(0, "no effect", metric, clients),
        tries(3000 if metric == "ndcg@10" else 600, 6000) // clients,
        0,
        0,
    )
    for _ in range(runs):
        found = [difference(metric, no_effect(metric, rng)) for _ in range(clients)]
        told = verdicts([metric] * clients, found, [0] * clients)
        wrong += any(word in ("helped", "hurt") for word in told)
        plain += any(one.p < 0.05 for one in found)
    assert wrong / runs <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / runs)
    assert plain / runs > 0.1  # without the correction somebody is, far more often


def no_effect(metric: str, rng: np.random.Generator) -> list[Side]:
    """Return the values of two models of equal worth for 40 users."""
    if metric == "ndcg@10":
        ours, theirs = (rng.beta(0.3, 3, 40) * (rng.random(40) < 0.3) for _ in range(2))
        return [side(ours, theirs, np.ones(40))]
    rows = rng.integers(1, 12, 40)
    user = np.repeat(np.arange(40), rows)
    if metric == "auc":
        lean = rng.normal(0, 1, 40)[user]
        label = rng.random(len(user)) < 1 / (1 + np.exp(1 - lean))
        return by_user(user, label, [lean + rng.normal(0, 1, len(user)) for _ in range(2)])
    level = rng.gamma(2, 0.3, 40)
    values = [np.bincount(user, rng.gamma(1, level[user])) / rows for _ in range(2)]
    ours, theirs = ((np.sqrt(v) if metric == "rmse" else v) for v in values)
    return [side(ours, theirs, rows)]
