"""Ranks, the metrics of ranks, AUC, log loss, RMSE and paired differences."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, tensor

from fedrec.errors import UserError
from fedrec.metrics import (
    auc,
    higher_is_better,
    log_loss,
    paired,
    parse_metric,
    ranking_metrics,
    ranks,
    rmse,
    student,
)
from fedrec.rng import generator

NAMES = ("hr@1", "hr@10", "ndcg@3", "ndcg@10", "recall@5", "recall@100", "mrr")


def no(scores: Tensor) -> Tensor:
    return torch.zeros(scores.shape, dtype=torch.bool)


def rank_one_row(scores: list[float], relevant: set[int], excluded: frozenset[int] = frozenset()) -> list[int]:
    def mask(chosen: set[int] | frozenset[int]) -> Tensor:
        return tensor([[i in chosen for i in range(len(scores))]])

    return [int(rank) for rank in ranks(tensor([scores]), mask(relevant), mask(excluded))[0]]


def by_definition(scores: Tensor, relevant: Tensor, excluded: Tensor) -> list[list[int]]:
    rows = []
    for s, r, e in zip(scores.tolist(), relevant.tolist(), excluded.tolist(), strict=True):
        s = [-math.inf if math.isnan(x) else x for x in s]
        others = [j for j in range(len(s)) if not r[j] and not e[j]]
        own = [j for j in range(len(s)) if r[j]]
        ahead = [sum(s[j] > s[i] or (s[j] == s[i] and j < i) for j in own) for i in own]
        rows.append([1 + sum(s[j] >= s[i] for j in others) + a for i, a in zip(own, ahead, strict=True)])
    return rows


@st.composite
def problems(draw: st.DrawFn, most_relevant: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Scores from a handful of values, so that most of them tie."""
    b, n = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    values = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0, math.nan])
    scores = tensor(draw(st.lists(st.lists(values, min_size=n, max_size=n), min_size=b, max_size=b)))
    relevant, excluded = no(scores), no(scores)
    for row in range(b):
        relevant[row, draw(st.lists(st.integers(0, n - 1), max_size=most_relevant))] = True
        excluded[row, draw(st.lists(st.integers(0, n - 1), max_size=4))] = True
    return scores, relevant, excluded


@given(problems())
def test_ranks_follow_their_definition_for_several_relevant_items(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    assert [r.tolist() for r in ranks(*problem)] == by_definition(*problem)


@given(problems(most_relevant=1))
def test_ranks_follow_their_definition_for_one_relevant_item(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    assert [r.tolist() for r in ranks(*problem)] == by_definition(*problem)


@given(problems())
def test_a_strictly_increasing_transform_leaves_the_ranks(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    scores, relevant, excluded = problem
    transformed = ranks(torch.sinh(scores) * 3, relevant, excluded)
    assert [r.tolist() for r in transformed] == [r.tolist() for r in ranks(scores, relevant, excluded)]


@given(problems(), st.randoms(use_true_random=False))
def test_permuting_the_items_permutes_the_ranks(problem: tuple[Tensor, Tensor, Tensor], random: object) -> None:
    n = problem[0].shape[1]
    order = list(range(n))
    random.shuffle(order)  # type: ignore[attr-defined]
    # As sets: relevant items that tie keep consecutive ranks, given out by column.
    permuted = ranks(*(x[:, order] for x in problem))
    assert [sorted(r.tolist()) for r in permuted] == [sorted(r.tolist()) for r in ranks(*problem)]


def test_permuting_distinct_scores_permutes_each_rank_with_its_item() -> None:
    scores = torch.from_numpy(generator(0, "permute").permutation(50)[None].astype(np.float32))
    order = torch.from_numpy(generator(1, "permute").permutation(50))
    everything = torch.ones(scores.shape, dtype=torch.bool)
    rank = ranks(scores, everything, no(scores))[0]
    assert ranks(scores[:, order], everything, no(scores))[0].tolist() == rank[order.numpy()].tolist()


@given(problems(), st.floats(allow_nan=True))
def test_an_excluded_item_changes_nothing(problem: tuple[Tensor, Tensor, Tensor], score: float) -> None:
    scores, relevant, excluded = problem
    column = torch.ones(len(scores), 1, dtype=torch.bool)
    widened = ranks(
        torch.cat([scores, score * column], 1), torch.cat([relevant, ~column], 1), torch.cat([excluded, column], 1)
    )
    assert [r.tolist() for r in widened] == [r.tolist() for r in ranks(scores, relevant, excluded)]


def test_ties_count_against_the_relevant_item() -> None:
    # Item 1 (0.5) ties with 0 and 2 and is beaten by 3: 1 + 2 ties + 1 above.
    assert rank_one_row([0.5, 0.5, 0.5, 0.9, 0.1], {1}) == [4]
    # Items 1 and 2 tie with 0: behind it, at consecutive ranks in column order.
    assert rank_one_row([0.5, 0.5, 0.5, 0.1], {1, 2}) == [2, 3]


def test_a_constant_scorer_ranks_the_relevant_items_last() -> None:
    assert rank_one_row([1.0] * 100, {0}) == [100]
    assert rank_one_row([1.0] * 100, {0, 50}) == [99, 100]
    assert rank_one_row([math.nan] * 100, {0}) == [100]


def test_a_nan_score_ranks_last() -> None:
    assert rank_one_row([math.nan, 1.0, -1e30, 2.0], {0}) == [4]
    assert rank_one_row([math.nan, 1.0, -1e30, 2.0], {2}) == [3]
    assert rank_one_row([math.nan, 1.0, -1e30, 2.0], {0, 1}) == [4, 2]


def test_relevant_overrides_excluded() -> None:
    assert rank_one_row([3.0, 2.0, 1.0], {1}, frozenset({0, 1})) == [1]
    assert rank_one_row([3.0, 2.0, 1.0], {1, 2}, frozenset({0, 1})) == [1, 2]


def test_users_without_a_relevant_item_are_nan_and_counted() -> None:
    scores = tensor([[3.0, 2.0], [1.0, 2.0], [5.0, 4.0]])
    relevant = tensor([[False, True], [False, False], [True, False]])
    result = ranks(scores, relevant, no(scores))
    assert [r.tolist() for r in result] == [[2], [], [1]]
    for name, value in ranking_metrics(result, NAMES).items():
        assert np.isnan(value).tolist() == [False, True, False], name


def test_nothing_in_nothing_out() -> None:
    empty = torch.empty(0, 5)
    assert ranks(empty, no(empty), no(empty)) == []
    assert {name: value.shape for name, value in ranking_metrics([], NAMES).items()} == dict.fromkeys(NAMES, (0,))


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        ranks(torch.zeros(2, 3), no(torch.zeros(2, 3)), no(torch.zeros(2, 4)))


def test_known_metric_values() -> None:
    # Ranks 2, 3 and 12 of three relevant items. DCG@10 = 1/log2(3) + 1/log2(4); the ideal takes min(10, 3) = 3 places.
    value = ranking_metrics([np.array([12, 2, 3])], ["hr@1", "hr@2", "ndcg@10", "ndcg@2", "recall@10", "mrr"])
    assert value["hr@1"] == 0 and value["hr@2"] == 1
    place = [1 / math.log2(1 + i) for i in (1, 2, 3)]
    assert value["ndcg@10"] == pytest.approx((place[1] + place[2]) / sum(place))
    assert value["ndcg@2"] == pytest.approx(place[1] / (place[0] + place[1]))
    assert value["recall@10"] == pytest.approx(2 / 3)
    assert value["mrr"] == pytest.approx(1 / 2)


@given(problems())
def test_metrics_lie_between_zero_and_one_and_grow_with_the_cut(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    names = [f"{family}@{k}" for family in ("hr", "recall") for k in (1, 2, 3)]
    value = ranking_metrics(ranks(*problem), [*names, "ndcg@1", "ndcg@3", "mrr"])
    for one in value.values():
        assert ((one >= 0) & (one <= 1 + 1e-12) | np.isnan(one)).all()
    for family in ("hr", "recall"):
        steps = np.diff(np.stack([value[f"{family}@{k}"] for k in (1, 2, 3)]), axis=0)
        assert (steps[~np.isnan(steps)] >= 0).all()


@pytest.mark.parametrize("most_relevant", [1, 8])
def test_ranking_metrics_agree_with_torchmetrics(most_relevant: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.functional import retrieval
    random = generator(0, "torchmetrics", most_relevant)
    users, items = 200, 120
    # Scores above 0, because torchmetrics counts an item with a score of 0 or less as not relevant.
    scores = torch.from_numpy(np.stack([1 + random.permutation(items) for _ in range(users)]) / items)
    relevant, excluded = no(scores), no(scores)
    for user in range(users):
        chosen = random.permutation(items)
        many = int(random.integers(1, most_relevant + 1))
        relevant[user, chosen[:many]] = True
        excluded[user, chosen[many : many + int(random.integers(0, 40))]] = True
    ours = ranking_metrics(ranks(scores, relevant, excluded), NAMES)
    reference: dict[str, Callable[..., Tensor]] = {
        "hr": retrieval.retrieval_hit_rate,
        "ndcg": retrieval.retrieval_normalized_dcg,
        "recall": retrieval.retrieval_recall,
        "mrr": retrieval.retrieval_reciprocal_rank,
    }
    for name in NAMES:
        family, k = parse_metric(name)
        theirs = [
            float(reference[family](s[~e], r[~e].long(), **({} if k is None else {"top_k": min(k, int((~e).sum()))})))
            for s, r, e in zip(scores, relevant, excluded, strict=True)
        ]
        np.testing.assert_allclose(ours[name], theirs, rtol=0, atol=1e-6, err_msg=name)


def test_auc_and_log_loss_agree_with_the_references() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.functional.classification import binary_auroc
    random = generator(0, "auc")
    logit = random.normal(size=500).astype(np.float32)
    tied = np.round(logit, 1)
    label = random.random(500) < 0.3
    for score in (logit, tied):
        # Torchmetrics squashes what lies outside [0, 1]; the squash is monotone, so the AUC is the same.
        expected = float(binary_auroc(torch.from_numpy(score), torch.from_numpy(label).long()))
        assert auc(score, label) == pytest.approx(expected, abs=1e-6)
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(tensor(logit), tensor(label).float())
    assert log_loss(logit, label).mean() == pytest.approx(float(cross_entropy), abs=1e-6)


def test_auc_known_answers() -> None:
    label = np.array([True, False, True, False])
    assert auc(np.array([4.0, 3.0, 2.0, 1.0]), label) == 3 / 4  # pairs: 4>3, 4>1, 2<3, 2>1
    assert auc(np.array([4.0, 2.0, 2.0, 1.0]), label) == 3.5 / 4  # 2 = 2 counts half
    assert auc(np.zeros(4), label) == 1 / 2
    assert math.isnan(auc(np.arange(4.0), np.ones(4, bool))) and math.isnan(auc(np.arange(4.0), np.zeros(4, bool)))
    assert math.isnan(auc(np.array([math.nan, 3.0, 2.0, 1.0]), label))


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=1))
def test_auc_of_the_negated_score_is_the_complement(pairs: list[tuple[int, bool]]) -> None:
    score, label = np.array([s for s, _ in pairs], float), np.array([y for _, y in pairs])
    assert auc(-score, label) == pytest.approx(1 - auc(score, label), nan_ok=True)


def test_log_loss_and_rmse_known_answers() -> None:
    assert log_loss(np.zeros(3), np.array([True, False, True])).mean() == pytest.approx(math.log(2))
    assert log_loss(np.array([1e4, -1e4]), np.array([False, True])).tolist() == [1e4, 1e4]  # no overflow
    assert log_loss(np.array([math.inf]), np.array([True])).tolist() == [0]
    assert rmse(np.array([3.0, 1.0]), np.array([0.0, 5.0])) == math.sqrt((9 + 16) / 2)


def test_empty_input_is_nan() -> None:
    nothing, no_label = np.empty(0), np.empty(0, bool)
    assert all(math.isnan(x) for x in (auc(nothing, no_label), rmse(nothing, nothing)))


@pytest.mark.parametrize(
    ("p", "df", "table"),
    [  # standard tables; df = 1 is tan(pi (p - 1/2)), df = 2 is (2p - 1) / sqrt(2 p (1 - p))
        (0.975, 1, 12.706204736174694),
        (0.9995, 1, math.tan(math.pi * 0.4995)),
        (0.975, 2, 0.95 / math.sqrt(2 * 0.975 * 0.025)),
        (0.975, 5, 2.570581835636314),
        (0.995, 10, 3.169272672616872),
        (0.975, 30, 2.0422724563012373),
        (0.95, 100, 1.6602343260657506),
        (0.975, 1000, 1.9623390808264078),
        (0.975, 10**6, 1.959966355),
        (0.5, 7, 0.0),
    ],
)
def test_an_interval_is_as_wide_as_the_quantile_of_students_t_says(p: float, df: int, table: float) -> None:
    found = student(1.0, 1.0, df + 1, df, 2 * p - 1)
    assert (1 - found.low, found.high - 1) == pytest.approx((table, table), abs=1e-6, rel=1e-9)


def test_paired_known_answer() -> None:
    # Differences 1, 2, 3 (two users are without a value): mean 2, s = 1, t_{.975,2} = 4.302653, half width t / sqrt(3).
    a = np.array([1.0, 4.0, 3.0, math.nan, 5.0])
    b = np.array([0.0, 2.0, 0.0, 1.0, math.nan])
    result = paired(a, b)
    assert (result.mean, result.n) == (2, 3)
    assert result.high == pytest.approx(2 + 4.30265272974946 / math.sqrt(3), abs=1e-9)
    assert result.low == pytest.approx(2 - 4.30265272974946 / math.sqrt(3), abs=1e-9)


def test_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = generator(0, "coverage")
    covered = 0
    for _ in range(2000):
        result = paired(random.normal(0.3, 1, 6), np.zeros(6), confidence=0.9)
        covered += result.low <= 0.3 <= result.high
    assert covered / 2000 == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / 2000))


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=9))
def test_paired_changes_sign_with_its_arguments(pairs: list[tuple[float, float]]) -> None:
    a, b = np.array(pairs).T
    one, other = paired(a, b), paired(b, a)
    assert (one.mean, one.low, one.high) == pytest.approx((-other.mean, -other.high, -other.low))
    assert one.low <= one.mean <= one.high


def test_paired_below_two_pairs_has_no_interval() -> None:
    one = paired(np.array([2.0, math.nan]), np.array([0.5, 1.0]))
    assert (one.mean, one.n) == (1.5, 1) and math.isnan(one.low) and math.isnan(one.high)
    none = paired(np.empty(0), np.empty(0))
    assert none.n == 0 and math.isnan(none.mean)


def test_paired_refuses_what_it_cannot_pair() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        paired(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="confidence"):
        paired(np.zeros(2), np.zeros(2), confidence=95)


def test_parse_metric() -> None:
    assert [parse_metric(name) for name in ("hr@1", "ndcg@10", "recall@100")] == [
        ("hr", 1),
        ("ndcg", 10),
        ("recall", 100),
    ]
    assert [parse_metric(name) for name in ("mrr", "rmse")] == [("mrr", None), ("rmse", None)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ndgc@10", "'ndgc@10': must be one of .*, found 'ndgc'; did you mean 'ndcg'"),
        ("NDCG@10", "must be one of"),
        ("", "must be one of"),
        ("hr", "found none; did you mean 'hr@10'"),
        ("hr@0", "at least 1, found '0'"),
        ("hr@-5", "found '-5'"),
        ("hr@1.5", "found '1.5'"),
        ("hr@", "found ''"),
        ("mrr@10", "takes no cut-off, found '@10'; did you mean 'mrr'"),
    ],
)
def test_parse_metric_refuses(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_metric(name)


def test_ranking_metrics_refuses_other_families() -> None:
    with pytest.raises(UserError, match="'auc'"):
        ranking_metrics([np.array([1])], ["auc"])


def test_direction_of_metrics() -> None:
    assert all(higher_is_better(name) for name in ("hr@10", "ndcg@5", "recall@2", "mrr", "auc"))
    assert not any(higher_is_better(name) for name in ("rmse", "logloss", "loss"))
