"""Evaluation: who is ranked among what, known answers, the popularity baseline, and pooled clients member by member."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedrec.data import ClientData, Interactions, federation, pool
from fedrec.data.types import Floats, Ints
from fedrec.evaluation import evaluate as module
from fedrec.evaluation.asked import Asked
from fedrec.evaluation.counts import Counts
from fedrec.evaluation.evaluate import Evaluation, Split, evaluate, evaluate_all, mask_of, members, smallest
from fedrec.evaluation.scorers import ModelScorer, PopularityScorer, Tally
from fedrec.metrics import NEGATIVES
from fedrec.models import Recommender
from fedrec.rng import generator
from fedrec.tasks import parse_task
from tests.builders import client, interactions, synthetic

RANK, RATING, CLICK = (parse_task(name) for name in ("rank", "rating", "click"))
PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), max_size=20)


@dataclass(frozen=True)
class Table:
    """Scores written down by hand."""

    scores: Tensor  # [users, items]

    def score_all(self, task: str, user: Ints) -> Tensor:
        return self.scores[torch.from_numpy(user)]

    def score(self, task: str, user: Ints, item: Ints) -> Floats:
        found: Floats = self.scores.numpy()[user, item]
        return found

    def attribute(self, task: str, item: Ints) -> Floats:
        raise NotImplementedError


def full(data: ClientData, scores: list[list[float]], split: Split, *metrics: str) -> Evaluation:
    return evaluate(Table(torch.tensor(scores)), data, (RANK,), split, metrics=metrics, candidates="full", seed=0)


# User 0 trained on item 0, validates on 1, tests on 2; user 1 has no positive for the test, user 2 no validation.
THREE = replace(
    client(
        interactions([(0, 0), (1, 1), (2, 2)]),
        interactions([(0, 1), (1, 0)]),
        interactions([(0, 2), (2, 4), (1, 3)], positive=[True, True, False]),
        users=3,
        items=5,
    ),
    users=np.array([10, 20, 30]),
)
SCORES = [[9.0, 2.0, 5.0, 4.0, 3.0], [3.0, 9.0, 4.0, 1.0, 2.0], [1.0, 2.0, 9.0, 8.0, 7.0]]


def test_validation_ranks_by_hand() -> None:
    # User 0: item 1 (2.0) among 1, 2, 3, 4 is fourth; the test item 2 is a candidate. User 1: item 0 (3.0) is second.
    found = full(THREE, SCORES, "validation", "mrr", "hr@3", "ndcg@10")
    values = {part.metric: part.values.tolist() for part in found.per_user}
    assert values["mrr"] == [1 / 4, 1 / 2]
    assert values["hr@3"] == [0, 1]
    assert values["ndcg@10"] == pytest.approx([1 / math.log2(5), 1 / math.log2(3)])
    assert all(part.users.tolist() == [10, 20] for part in found.per_user)
    assert found.metrics["films", "rank", "mrr"] == 3 / 8
    assert found.metrics["films", "rank", "hr@3"] == 1 / 2


def test_test_ranks_by_hand_leave_out_training_and_validation() -> None:
    # User 0: item 2 (5.0) among 2, 3, 4 is first. User 2: item 4 (7.0) among 0, 1, 3, 4 is second.
    found = full(THREE, [[9.0, 8.0, 5.0, 4.0, 3.0], *SCORES[1:]], "test", "mrr")
    assert found.per_user[0].users.tolist() == [10, 30]
    assert found.per_user[0].values.tolist() == [1, 1 / 2]
    assert found.metrics == {("films", "rank", "mrr"): 3 / 4}


def test_several_held_out_items_are_ranked_together_and_non_positives_are_no_target() -> None:
    # Ranks of the positives 1 and 3 are 1 and 3; item 0 is held out but no positive, so it stays a mere candidate.
    data = client(
        interactions([(0, 4)]),
        test=interactions([(0, 1), (0, 3), (0, 0)], positive=[True, True, False]),
        users=1,
        items=5,
    )
    found = full(data, [[5.0, 9.0, 1.0, 4.0, 99.0]], "test", "recall@2", "hr@1", "ndcg@3")
    assert found.metrics["films", "rank", "recall@2"] == 1 / 2
    assert found.metrics["films", "rank", "hr@1"] == 1
    ideal = 1 + 1 / math.log2(3)
    assert found.metrics["films", "rank", "ndcg@3"] == pytest.approx((1 + 1 / math.log2(4)) / ideal)


def test_a_seen_row_that_is_no_positive_stays_a_candidate() -> None:
    data = client(interactions([(0, 0), (0, 2)], positive=[False, True]), test=interactions([(0, 1)]), users=1, items=3)
    assert full(data, [[9.0, 1.0, 5.0]], "test", "mrr").metrics["films", "rank", "mrr"] == 1 / 2


@settings(deadline=None)
@given(PAIRS, PAIRS, st.sets(st.integers(0, 5)))
def test_the_mask_of_positives(a: list[tuple[int, int]], b: list[tuple[int, int]], asked: set[int]) -> None:
    positive = [i % 2 == 0 for i in range(len(b))]
    users = np.array(sorted(asked), np.int64)
    mask = mask_of([interactions(a), interactions(b, positive=positive)], users, 8)
    kept = {*a, *(pair for pair, p in zip(b, positive, strict=True) if p)}
    assert mask.shape == (len(users), 8)
    assert {(int(users[r]), int(c)) for r, c in zip(*mask.nonzero(), strict=True)} == {p for p in kept if p[0] in asked}


@settings(deadline=None)
@given(PAIRS, PAIRS, PAIRS, st.integers(0, 5))
def test_what_is_asked_are_the_held_out_positives_among_those_not_known(
    a: list[tuple[int, int]], b: list[tuple[int, int]], c: list[tuple[int, int]], second: int
) -> None:
    flag = [[i % 2 == 0 for i in range(len(rows))] for rows in (a, b, c)]
    one = client(*(interactions(r, positive=f) for r, f in zip((a, b, c), flag, strict=True)), users=6, items=8)
    kept = [{pair for pair, f in zip(r, fs, strict=True) if f} for r, fs in zip((a, b, c), flag, strict=True)]
    empty = client(interactions([]), users=second, items=3)
    questions: list[tuple[Split, set[tuple[int, int]], set[tuple[int, int]]]] = [
        ("validation", kept[1], kept[0]),
        ("test", kept[2], kept[0] | kept[1]),
    ]
    for split, held, known in questions:
        asked = Asked.of([empty, one, one], split)
        who = sorted({user for user, _ in held})
        assert (asked.users - second).tolist() == [*who, *(user + 6 for user in who)]
        assert asked.owner.tolist() == [1] * len(who) + [2] * len(who)
        people = {
            "known": {pair for pair in known - held if pair[0] in who},
            "relevant": held,
            "met": set().union(*kept),
        }
        for name, pairs in people.items():
            row, item = getattr(asked, name).take(np.arange(len(who), 2 * len(who)))
            assert sorted(zip([who[r] for r in row], item, strict=True)) == sorted(p for p in pairs if p[0] in who)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 8), st.floats(0, 1), st.integers(1, 40), st.integers(0, 1000))
def test_sampled_candidates_are_distinct_and_never_met(
    items: int, users: int, density: float, count: int, seed: int
) -> None:
    met = generator(seed, "met").random((users, items)) < density
    chosen = smallest(generator(seed, "candidates").random(met.shape), met, count)
    assert not (chosen & met).any()
    assert chosen.sum(1).tolist() == np.minimum(count, (~met).sum(1)).tolist()


def test_sampled_candidates_are_uniform() -> None:
    met = np.zeros((20_000, 6), np.bool_)
    met[:, 2] = True
    rate = smallest(generator(0).random(met.shape), met, 2).mean(0)
    assert rate[2] == 0
    assert rate[[0, 1, 3, 4, 5]] == pytest.approx(2 / 5, abs=5 * math.sqrt(0.24 / 20_000))


def busy(users: int = 40, items: int = 60, seed: int = 0) -> ClientData:
    """Return a client whose validation and test hold the same items, and whose users trained on 10 others."""
    rng = generator(seed, "busy")
    taste = [rng.permutation(items)[:11] for _ in range(users)]
    train = interactions([(u, int(i)) for u, row in enumerate(taste) for i in row[:10]])
    held = interactions([(u, int(row[10])) for u, row in enumerate(taste)])
    return client(train, held, held, users=users, items=items)


def sampled_ranks(scores: Tensor, data: ClientData, split: Split = "test", seed: int = 0, count: int = 20) -> list[int]:
    found = evaluate(Table(scores), data, [RANK], split, metrics=["mrr"], candidates=count, seed=seed)
    return [round(1 / value) for value in found.per_user[0].values]


def test_the_target_is_ranked_among_exactly_the_sampled_candidates() -> None:
    data = busy()
    scores = torch.ones(40, 60)
    scores[torch.from_numpy(data.test.user), torch.from_numpy(data.test.item)] = 0.0
    assert sampled_ranks(scores, data) == [21] * 40
    assert sampled_ranks(scores, data, count=1000) == [50] * 40  # 60 items, of which 10 are known


def test_a_known_positive_is_never_a_candidate() -> None:
    data = busy()
    scores = torch.zeros(40, 60)
    scores[torch.from_numpy(data.train.user), torch.from_numpy(data.train.item)] = 9.0
    scores[torch.from_numpy(data.test.user), torch.from_numpy(data.test.item)] = 1.0
    assert sampled_ranks(scores, data) == [1] * 40


def test_candidates_depend_on_the_seed_the_client_and_the_split_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    data = busy()
    scores = torch.from_numpy(generator(0, "scores").random((40, 60)))
    found = sampled_ranks(scores, data)
    assert sampled_ranks(scores, data) == found
    assert sampled_ranks(scores, data, seed=1) != found
    assert sampled_ranks(scores, data, split="validation") != found
    assert sampled_ranks(scores, replace(data, name="shop")) != found
    monkeypatch.setattr(module, "CHUNK", 7)
    assert sampled_ranks(scores, data) == found


RATED = interactions(
    [(0, 0), (0, 1), (2, 0), (2, 1)], rating=[3.0, 5.0, 1.0, math.nan], click=[True, False, True, True]
)


def pointwise_of(held: Interactions, *tasks: str) -> Evaluation:
    data = client(RATED, test=held, users=3, items=2)
    scores = torch.tensor([[1.0, 1.0], [0.0, 0.0], [2.0, 0.0]])
    return evaluate(
        Table(scores), data, [parse_task(t) for t in tasks], "test", metrics=["mrr"], candidates="full", seed=0
    )


def test_rating_by_hand() -> None:
    # Errors 2, 4 of user 0 and 1 of user 2; the row without a rating counts nowhere.
    found = pointwise_of(RATED, "rating")
    assert found.metrics == {("films", "rating", "rmse"): pytest.approx(math.sqrt(21 / 3))}
    (each,) = found.per_user
    assert (each.task, each.metric, each.users.tolist()) == ("rating", "rmse", [0, 2])
    assert each.values.tolist() == pytest.approx([math.sqrt(20 / 2), 1])
    assert each.weights is not None and each.weights.tolist() == [2, 1]


def test_a_label_by_hand() -> None:
    # Logits 1, 1, 2, 0; labels 1, 0, 1, 1: of three pairs (1, 1) is a tie, (2, 1) right, (0, 1) wrong.
    found = pointwise_of(RATED, "click")
    loss = [math.log1p(math.exp(z)) for z in (-1.0, 1.0, -2.0, 0.0)]
    assert found.metrics["films", "click", "auc"] == pytest.approx(0.5)
    assert found.metrics["films", "click", "logloss"] == pytest.approx(sum(loss) / 4)
    each = {part.metric: part for part in found.per_user}
    assert each["logloss"].users.tolist() == [0, 2]
    assert each["logloss"].values.tolist() == pytest.approx([(loss[0] + loss[1]) / 2, (loss[2] + loss[3]) / 2])
    # The only negative, of user 0, stands below the positive of logit 2, beside that of 1, above that of 0.
    assert each["auc"].users.tolist() == [0, 2] and each["auc"].weights is not None
    assert each["auc"].weights.tolist() == [1, 2]
    assert each["auc"].values.tolist() == [1 / 2, (1 + 0) / 2]
    assert (each[NEGATIVES].users.tolist(), each[NEGATIVES].values.tolist()) == ([0], [1 / 2])


def test_labels_of_one_class_have_no_auc_but_a_loss() -> None:
    found = pointwise_of(RATED.take(RATED.labels["click"]), "click")
    assert math.isnan(found.metrics["films", "click", "auc"])
    assert math.isfinite(found.metrics["films", "click", "logloss"])


def test_a_client_without_held_out_rows_has_nan_and_no_users() -> None:
    found = pointwise_of(RATED.take(np.zeros(0, np.int64)), "rank", "rating", "click")
    names = {("rank", "mrr"), ("rating", "rmse"), ("click", "auc"), ("click", "logloss")}
    assert {(task, metric) for _, task, metric in found.metrics} == names
    assert all(math.isnan(value) for value in found.metrics.values())
    assert all(len(part.users) == len(part.values) == 0 for part in found.per_user)


def test_popularity_by_hand() -> None:
    train = interactions(
        [(0, 0), (1, 0), (2, 0), (0, 1), (1, 2)],
        rating=[5.0, 4.0, math.nan, 3.0, math.nan],
        positive=[True, True, False, True, False],
        click=[True, True, False, False, False],
    )
    scorer = PopularityScorer.fit((RANK, RATING, CLICK), train, items=4)
    everyone = np.array([0, 2])
    assert scorer.score_all("rank", everyone).tolist() == [[2, 1, 0, 0]] * 2
    # The mean rating is 4: (5 + 4 + 5 * 4) / (2 + 5), (3 + 5 * 4) / (1 + 5), and 4 for an item without a rating.
    assert scorer.score_all("rating", everyone)[0].tolist() == pytest.approx([29 / 7, 23 / 6, 4, 4])
    # The base rate is 0.4: (2 + 2) / (3 + 5), (0 + 2) / (1 + 5) twice, and 0.4 for an unseen item, as logits.
    rates = [4 / 8, 2 / 6, 2 / 6, 2 / 5]
    assert scorer.score_all("click", everyone)[0].tolist() == pytest.approx([math.log(r / (1 - r)) for r in rates])
    assert scorer.score("rating", np.array([1, 0]), np.array([3, 0])).tolist() == pytest.approx([4, 29 / 7])


@pytest.mark.parametrize("candidates", ["full", 20])
def test_clients_of_unlike_sizes_and_tasks_are_evaluated_together_as_alone(candidates: Literal["full"] | int) -> None:
    datas = [busy(users, items, seed) for seed, (users, items) in enumerate([(40, 60), (1, 45), (7, 60)])]
    datas = [replace(data, name=f"client-{place}") for place, data in enumerate(datas)]
    tasks = [[parse_task(name) for name in names] for names in (["rank", "rating"], ["rating"], ["rank"])]
    scorers = [PopularityScorer.fit(own, d.train, len(d.items)) for own, d in zip(tasks, datas, strict=True)]
    how: dict[str, Any] = {"metrics": ("ndcg@10", "hr@10"), "candidates": candidates, "seed": 3}
    together = evaluate_all(scorers.__getitem__, datas, tasks, "test", **how)
    for found, scorer, data, own in zip(together, scorers, datas, tasks, strict=True):
        alone = evaluate(scorer, data, own, "test", **how)
        assert found.metrics == pytest.approx(alone.metrics, abs=0, rel=0, nan_ok=True) and found.metrics
        for a, b in zip(found.per_user, alone.per_user, strict=True):
            assert (a.client, a.task, a.metric) == (b.client, b.task, b.metric)
            assert np.array_equal(a.users, b.users) and np.array_equal(a.values, b.values, equal_nan=True)
    assert {key[1] for key in together[1].metrics} == {"rating"} and len(together[0].metrics) > len(together[2].metrics)


@given(st.integers(0, 10**6), st.booleans())
def test_ranks_by_counts_are_those_of_scores_that_are_the_counts(seed: int, shared: bool) -> None:
    sizes = np.random.default_rng(seed).integers(1, 9, 3).tolist()
    datas = [replace(busy(users, 30, seed + users), name=f"client-{n}") for n, users in enumerate(sizes)]
    rows = [data.train.take(data.train.positive) for data in datas]
    groups = [rows] * 3 if shared else [[part] for part in rows]
    tallies = [Tally.of((RANK,), [(part, part.item) for part in group], 30) for group in groups]
    number = np.repeat(np.zeros(3, np.int64) if shared else np.arange(3), [len(part) for part in rows])
    lists = np.zeros(3, np.int64) if shared else np.arange(3)
    counts = Counts.count(lists, number, np.concatenate([part.item for part in rows]), 30)
    how: dict[str, Any] = {"metrics": ("mrr", "ndcg@3", "recall@3"), "candidates": "full", "seed": 3}
    scorers = [PopularityScorer.of((RANK,), tally) for tally in tallies]
    expected = evaluate_all(scorers.__getitem__, datas, [(RANK,)] * 3, "test", **how)
    found = evaluate_all(scorers.__getitem__, datas, [(RANK,)] * 3, "test", **how, counts={"rank": counts})
    for a, b in zip(found, expected, strict=True):
        assert a.metrics == b.metrics
        for one, other in zip(a.per_user, b.per_user, strict=True):
            assert np.array_equal(one.users, other.users) and np.array_equal(one.values, other.values)


def test_popularity_of_nothing_is_finite() -> None:
    nothing = RATED.take(np.zeros(0, np.int64))
    scorer = PopularityScorer.fit((RANK, RATING, CLICK), nothing, items=3)
    assert all(np.isfinite(table).all() and len(table) == 3 for table in scorer.tables.values())


@pytest.mark.parametrize("kind", ["mf", "mlp"])
def test_a_model_is_evaluated_on_the_scores_that_it_gives_to_pairs(kind: str) -> None:
    model = Recommender("mlp" if kind == "mlp" else "mf", 3, (4,))
    scorer = ModelScorer(model, model.init(0, np.arange(3), np.arange(5), {"rank": 0.5}))
    user, item = np.repeat(np.arange(3), 5), np.tile(np.arange(5), 3)
    assert scorer.score_all("rank", np.arange(3)).reshape(-1).tolist() == pytest.approx(
        scorer.score("rank", user, item).tolist(), abs=1e-6
    )


@pytest.mark.parametrize("kind", ["mf", "mlp"])
def test_a_pooled_client_is_evaluated_as_each_member_with_its_own_rows(kind: str) -> None:
    market = synthetic(platforms=3, users=30, items=60, impressions=15, similarity=0.5, seed=2)
    parts = federation(market, clients=None)
    model, offsets = Recommender("mlp" if kind == "mlp" else "mf", 4, (5,)), {"rank": 0.0, "buy": -1.0}
    pooled = pool(parts)
    found = list(members(pooled, model.init(7, pooled.users, pooled.items, offsets)))
    assert [data for data, _ in found] == list(parts)
    assert any(len(part.items) < len(pooled.items) for part in parts)
    tasks = (RANK, parse_task("buy"))
    for data, params in found:
        # A row starts as a function of its key, so the member's own start is what the pooled one must give it.
        alone = model.init(7, data.users, data.items, offsets)
        assert params.keys() == alone.keys()
        assert all(torch.equal(params[name], alone[name]) for name in alone)
        a, b = (
            evaluate(ModelScorer(model, p), data, tasks, "test", metrics=["ndcg@10", "mrr"], candidates=20, seed=0)
            for p in (params, alone)
        )
        assert a.metrics == b.metrics and a.metrics.keys() >= {(data.name, "rank", "mrr"), (data.name, "buy", "auc")}


def test_a_client_of_its_own_is_its_only_member() -> None:
    params = {"item_table": torch.zeros(5, 1)}
    ((data, same),) = members(THREE, params)
    assert data is THREE and same == params
