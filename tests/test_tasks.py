"""Tasks: every loss against its definition, the offset that a constant model would choose, and the grammar."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fedrec.components import per_client
from fedrec.errors import UserError
from fedrec.evaluation.scorers import PopularityScorer
from fedrec.tasks import Task, parse_task, task_loss, tasks_of
from tests.builders import interactions

RANK, RANK_BCE, RATING, CLICK = (parse_task(name) for name in ("rank", "rank-bce", "rating", "click"))
SCORES = st.floats(-30, 30)
WORD = st.from_regex(r"[a-z][a-z0-9_]{0,7}(-[a-z0-9]{1,3})?", fullmatch=True)
LABELS = WORD.filter(lambda name: name not in ("rank", "rank-bce", "rating"))
WEIGHTS = st.floats(1e-6, 1e6)


def one(task: Task, score: float, target: float, negatives: list[float] | None = None) -> tuple[float, float]:
    """Return the loss of one row and its derivative with respect to the score."""
    s = torch.tensor([score], dtype=torch.float64, requires_grad=True)
    sampled = None if negatives is None else torch.tensor([negatives], dtype=torch.float64)
    loss = task_loss(task, s, torch.tensor([target], dtype=torch.float64), sampled)
    assert loss.shape == (1,)
    return loss.item(), torch.autograd.grad(loss.sum(), s)[0].item()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@given(SCORES, st.lists(SCORES, min_size=1, max_size=5))
def test_bpr_is_minus_the_mean_log_sigmoid_of_the_differences(score: float, negatives: list[float]) -> None:
    loss, slope = one(RANK, score, 1.0, negatives)
    m = len(negatives)
    assert loss == pytest.approx(sum(-math.log(sigmoid(score - n)) for n in negatives) / m, abs=1e-8)
    assert slope == pytest.approx(-sum(sigmoid(n - score) for n in negatives) / m, abs=1e-8)


@given(SCORES, st.lists(SCORES, min_size=1, max_size=5), st.floats(-10, 10))
def test_bpr_knows_only_differences(score: float, negatives: list[float], shift: float) -> None:
    moved = one(RANK, score + shift, 1.0, [n + shift for n in negatives])
    assert moved == pytest.approx(one(RANK, score, 1.0, negatives), abs=1e-8)


@given(SCORES, st.lists(SCORES, min_size=1, max_size=5))
def test_bce_of_rank_is_the_cross_entropy_of_the_positive_and_of_each_negative(
    score: float, negatives: list[float]
) -> None:
    logits = torch.tensor([score, *negatives], dtype=torch.float64)
    label = torch.zeros(len(logits), dtype=torch.float64)
    label[0] = 1
    expected = F.binary_cross_entropy_with_logits(logits, label, reduction="sum").item()
    loss, slope = one(RANK_BCE, score, 1.0, negatives)
    assert loss == pytest.approx(expected, abs=1e-8)
    assert slope == pytest.approx(sigmoid(score) - 1, abs=1e-8)


@given(SCORES, st.booleans())
def test_bce_of_a_label(score: float, label: bool) -> None:
    loss, slope = one(CLICK, score, float(label))
    assert loss == pytest.approx(-math.log(sigmoid(score if label else -score)), abs=1e-8)
    assert slope == pytest.approx(sigmoid(score) - label, abs=1e-8)


@given(SCORES, SCORES)
def test_mse_is_the_squared_error(score: float, rating: float) -> None:
    assert one(RATING, score, rating) == pytest.approx(((score - rating) ** 2, 2 * (score - rating)), abs=1e-8)


@pytest.mark.parametrize(
    ("task", "target", "score"), [(RANK, 1.0, -1e4), (RANK_BCE, 1.0, -1e4), (CLICK, 1.0, -1e4), (CLICK, 0.0, 1e4)]
)
def test_no_loss_overflows_in_float32(task: Task, target: float, score: float) -> None:
    s, y, n = torch.tensor([score]), torch.tensor([target]), torch.tensor([[0.0]])
    assert task_loss(task, s, y, n).item() == pytest.approx(1e4, rel=1e-3)


ROWS = interactions(
    [(0, 0), (0, 1), (1, 0), (1, 1)],
    rating=[4.0, math.nan, 1.0, math.nan],
    positive=[True, False, False, True],
    click=[True, False, False, False],
)


def test_every_task_learns_from_its_own_rows() -> None:
    assert RANK.rows(ROWS).tolist() == [True, False, False, True]
    assert RATING.rows(ROWS).tolist() == [True, False, True, False]
    assert CLICK.rows(ROWS).tolist() == [True] * 4
    assert RANK.target(ROWS).tolist() == [1, 1, 1, 1]
    assert RATING.target(ROWS).tolist() == [4, 0, 1, 0]
    assert CLICK.target(ROWS).tolist() == [1, 0, 0, 0]


def test_the_offset_is_what_the_best_constant_would_predict() -> None:
    assert RANK.offset(ROWS) == RANK_BCE.offset(ROWS) == 0.0
    assert RATING.offset(ROWS) == pytest.approx(2.5)
    assert CLICK.offset(ROWS) == pytest.approx(math.log(1 / 3))
    # At the offset, the mean gradient of the loss vanishes: sum sigmoid(c) - y = 4 / 4 - 1.
    assert sum(one(CLICK, CLICK.offset(ROWS), y)[1] for y in (1.0, 0.0, 0.0, 0.0)) == pytest.approx(0, abs=1e-6)


def test_a_task_of_ones_own_has_its_own_rows_target_loss_measures_and_start() -> None:
    huber, dwell = parse_task('tests.own_parts:Huber{"delta": 1e9}*0.5'), parse_task("tests.own_parts:Dwell")
    assert (huber.name, huber.weight, dwell.name, dwell.weight) == ("Huber", 0.5, "Dwell", 1.0)
    assert huber.rows(ROWS).tolist() == RATING.rows(ROWS).tolist()
    # What is masked out has a loss like the others, here that of their mean: a 0 would have none, times a mask of 0.
    assert huber.target(ROWS).tolist() == [4, 2.5, 1, 2.5]
    loss, slope = one(huber, 3.0, 1.0)
    assert (2 * loss, 2 * slope) == one(RATING, 3.0, 1.0)
    assert huber.offset(ROWS) == RATING.offset(ROWS) and dwell.offset(ROWS) == pytest.approx(math.log(2.5))
    # At the offset, the mean gradient of the loss vanishes: 2 exp(c) - 4 - 1.
    assert sum(one(dwell, dwell.offset(ROWS), y)[1] for y in (4.0, 1.0)) == pytest.approx(0, abs=1e-6)
    score, target = np.array([1, 2], np.float32), np.array([2, 2], np.float32)
    assert {name: value.tolist() for name, value in huber.measured(score, target).items()} == {
        "loss": [0.5, 0.0],
        "mae": [1.0, 0.0],
    }
    # Popularity says the logarithm of an item's mean, shrunk to 2.5 by one row: (4 + 2.5) / 2 and (1 + 2.5) / 2.
    popular = PopularityScorer.fit((dwell,), interactions([(0, 0), (1, 1)], rating=[4.0, 1.0]), 2, prior=1.0)
    assert popular.tables["Dwell"].tolist() == pytest.approx([math.log(3.25), math.log(1.75)])


@pytest.mark.parametrize(("label", "expected"), [(True, math.log(999)), (False, -math.log(999))])
def test_the_offset_of_a_label_of_one_class_is_finite(label: bool, expected: float) -> None:
    assert CLICK.offset(interactions([(0, 0), (0, 1)], click=[label, label])) == pytest.approx(expected)


@pytest.mark.parametrize("task", [RANK, RATING, CLICK])
def test_the_offset_without_a_row_is_zero(task: Task) -> None:
    assert task.offset(ROWS.take(np.zeros(0, np.int64))) == 0.0


def test_a_label_that_the_data_lacks_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"^task: must be one of .*found 'clicks'; did you mean 'click'"):
        parse_task("clicks").target(ROWS)


@given(LABELS, WEIGHTS)
def test_a_task_reads_back_as_it_was_written(name: str, weight: float) -> None:
    assert parse_task(f"{name}*{weight!r}") == Task(name, "binary", "bce", weight)
    assert parse_task(f" {name} * {weight!r} ") == Task(name, "binary", "bce", weight)
    assert parse_task(f"  {name} ") == Task(name, "binary", "bce", 1.0)


def test_the_names_with_a_meaning() -> None:
    assert parse_task("rank*2") == Task("rank", "rank", "bpr", 2.0)
    assert parse_task("rank-bce") == Task("rank", "rank", "bce", 1.0)
    assert parse_task("rating*0.5") == Task("rating", "rating", "mse", 0.5)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("rank*x", r"^task rank: the weight must be a positive and finite number, found 'x'"),
        ("rank*0", r"^task rank: the weight must be a positive and finite number, found '0'"),
        ("rank*-1", r"^task rank: the weight must be a positive and finite number, found '-1'"),
        ("rank*nan", r"^task rank: the weight must be a positive and finite number, found 'nan'"),
        ("rank*1e999", r"^task rank: the weight must be a positive and finite number, found '1e999'"),
        ("rank*", r"^task rank: the weight must be a positive and finite number, found ''"),
        ("", r"^task: must be rank, rank-bce, rating or the name of a binary label, found ''"),
        ("a.b", r"^task: must be rank, rank-bce, rating or the name of a binary label, found 'a.b'"),
        ("a/b", r"^task: must be .*, found 'a/b'"),
    ],
)
def test_a_task_that_cannot_be_read(text: str, error: str) -> None:
    with pytest.raises(UserError, match=error):
        parse_task(text)


@settings(deadline=None)
@given(st.dictionaries(WORD, st.lists(LABELS, min_size=1, max_size=3, unique=True)), LABELS, WORD)
def test_every_client_gets_its_own_tasks_and_the_others_the_default(
    named: dict[str, list[str]], default: str, stranger: str
) -> None:
    assume(stranger not in named)
    text = ";".join([default, *(f"{client}={','.join(tasks)}" for client, tasks in named.items())])
    assert per_client(text) == {"*": default, **{client: ",".join(tasks) for client, tasks in named.items()}}
    spaced = text.replace(";", " ; ").replace("=", " = ").replace(",", " , ")
    for written in (text, spaced):
        for client, tasks in named.items():
            assert [task.name for task in tasks_of(written, client)] == tasks
        assert [task.name for task in tasks_of(written, stranger)] == [default]


@pytest.mark.parametrize(
    ("text", "client", "error"),
    [
        ("shop=rank", "films", r"^task: client 'films' has no task in 'shop=rank'"),
        ("rank;", "films", r"found an empty part"),
        ("", "films", r"found an empty part"),
        ("shop=", "shop", r"found an empty part"),
        ("=rank", "films", r"found an empty part"),
        ("rank;rating", "films", r"every client may be named once, found '\*' twice"),
        ("shop=rank;shop=buy", "shop", r"every client may be named once, found 'shop' twice"),
        ("rank,rank*2", "films", r"a client may name a task once, found 'rank,rank\*2'"),
        ("rank,rank-bce", "films", r"a client may name a task once, found 'rank,rank-bce'"),
        ("rank,,buy", "films", r"^task: must be rank, .*, found ''"),
    ],
)
def test_tasks_that_cannot_be_read(text: str, client: str, error: str) -> None:
    with pytest.raises(UserError, match=error):
        tasks_of(text, client)
