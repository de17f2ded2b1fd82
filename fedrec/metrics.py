"""What a recommender is measured by: ranks and their metrics, AUC, log loss, RMSE; paired differences of two runs.

Conventions: a tie counts against the relevant item, so a constant scorer never scores above its place; a user without a
relevant item has NaN, stays out of every mean and is counted; an empty input has NaN.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec.components import Part, make
from fedrec.errors import UserError, choose

Values = NDArray[np.float64]
Ranks = NDArray[np.int64]

CUT = ("hr", "ndcg", "recall")  # written with their cut-off: hr@10
RANKING = (*CUT, "mrr")
POINTWISE = ("auc", "ap", "accuracy", "logloss", "mae", "rmse")
LOWER_IS_BETTER = ("logloss", "mae", "rmse", "loss")
NEGATIVES = "auc-negatives"  # beside `auc` among the values by user: the placements of a user's negatives


def parse_metric(name: str) -> tuple[str, int | None]:
    """Return the family and the cut-off of a metric: `ndcg@10` is ("ndcg", 10), `mrr` is ("mrr", None).

    Raises UserError for an unknown family, a cut-off that is missing or below 1, or one where none belongs.
    """
    family, at, cut = name.partition("@")
    if ":" not in family:
        choose(f"metric {name!r}", family, (*RANKING, *POINTWISE))
        if at and family not in CUT:
            raise UserError(f"metric {name!r}: {family} takes no cut-off, found '@{cut}'; did you mean {family!r}?")
    return family, cut_of(name, cut) if at or family in CUT else None


def cut_of(name: str, cut: str) -> int:
    """Return the cut-off of a metric; raises UserError if it is none."""
    if not re.fullmatch("[1-9][0-9]*", cut, re.ASCII):
        family, at, _ = name.partition("@")
        text = repr(cut) if at else "none"
        rule = "the cut-off must be a whole number of at least 1"
        raise UserError(f"metric {name!r}: {rule}, found {text}; did you mean '{family}@10'?")
    return int(cut)


def as_part(name: str) -> str:
    """Return the text of the component that a metric of the user's own is."""
    family, k = parse_metric(name)
    return str(Part(family, {} if k is None else {"k": k}))


def own_values(name: str, ranks_per_user: Sequence[Ranks]) -> Values:
    """Return the values [users] of a metric of the user's own, of the ranks of each user who has any.

    It is a component with `value(ranks)`, ranks ascending int64 [m], larger is better; `NAME@K` sets its field `k`.
    """
    metric = make("metrics", as_part(name))
    values = [float(metric.value(np.sort(ranks))) if len(ranks) else math.nan for ranks in ranks_per_user]
    return np.array(values, dtype=np.float64)


def higher_is_better(name: str) -> bool:
    """Tell whether a larger value of the metric (or of `loss`) is the better one."""
    return name not in LOWER_IS_BETTER


def sign(name: str) -> int:
    """Return 1 for a metric (or `loss`) of which more is better, else -1."""
    return 1 if higher_is_better(name) else -1


def ranks(scores: Tensor, relevant: Tensor, excluded: Tensor) -> list[Ranks]:
    """Return, for each row, the 1-based ranks of its relevant items in column order.

    `scores` [B, n] float; `relevant`, `excluded` [B, n] bool; relevant overrides excluded. With C the items of the row
    that are not excluded and R its relevant ones,

        rank(i) = 1 + |{j in C - R : s_j >= s_i}| + |{j in R : s_j > s_i}| + |{j in R : s_j = s_i, j < i}|.

    A NaN score counts as -inf. Raises ValueError when the shapes differ.
    """
    if not scores.shape == relevant.shape == excluded.shape or scores.ndim != 2:
        shapes = [tuple(x.shape) for x in (scores, relevant, excluded)]
        raise ValueError(f"ranks: one shape [B, n] expected, found {shapes}")
    row, column = (index.numpy() for index in relevant.nonzero(as_tuple=True))
    out = excluded & ~relevant
    flat = places(scores.masked_fill(out, -torch.inf), row, column, (~out).sum(1).numpy())
    return np.split(flat, relevant.sum(1).cumsum(0)[:-1].numpy()) if len(scores) else []


def places(scores: Tensor, row: Ranks, column: Ranks, candidates: Ranks) -> Ranks:
    """Return the ranks [R] of the relevant items at (row, column) [R], ascending, see `ranks`.

    `scores` [B, n] are -inf where an item is no candidate; every row has so many `candidates` [B], relevant ones
    among them.
    """
    if bool(scores.sum().isnan()):  # a NaN, or infinities of both signs
        scores = scores.masked_fill(scores.isnan(), -torch.inf)
    at = torch.from_numpy(row)
    own = scores[at, torch.from_numpy(column)]
    several = bool((np.diff(row) == 0).any())
    if several:
        count = np.bincount(row, minlength=len(scores))
        place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        asked = own.new_zeros((len(scores), int(count.max())))
        asked[at, torch.from_numpy(place)] = own
        below = torch.searchsorted(scores.sort(1).values, asked)
        ahead = scores.shape[1] - below[at, torch.from_numpy(place)].numpy()
    else:
        asked = scores if len(at) == len(scores) else scores.index_select(0, at)
        ahead = np.fromiter(map(np.count_nonzero, asked.numpy() >= own.numpy()[:, None]), np.int64, len(at))
    ahead = np.minimum(ahead, candidates[row])  # a relevant item may be at -inf too
    rank: Ranks = 1 + ahead - (alike(row, own.numpy()) if several else 1)
    return rank


def alike(row: Ranks, score: NDArray[np.floating] | Ranks) -> Ranks:
    """Return how many entries [R] of the same row have the same score and do not stand before; `row` ascends."""
    order = np.lexsort((score, row))
    new = (np.diff(row[order]) != 0) | (score[order][1:] != score[order][:-1])
    end = np.append(np.flatnonzero(new), len(row) - 1) + 1
    group = np.concatenate([[0], np.cumsum(new)])
    left = np.empty(len(row), np.int64)
    left[order] = end[group] - np.arange(len(row))
    return left


def ranking_metrics(ranks_per_user: Sequence[Ranks], metrics: Sequence[str]) -> dict[str, Values]:
    """Return each metric's value for each user, [users], from the ranks of the user's relevant items.

    With r the ranks of a user and m their number: hr@k = [min r <= k]; recall@k = |{r <= k}| / m; mrr = 1 / min r;
    ndcg@k = sum_{r <= k} 1/log2(1 + r) / sum_{i <= min(k, m)} 1/log2(1 + i). A user with m = 0 has NaN.
    Raises UserError for a name that is not a ranking metric.
    """
    count = np.array([len(r) for r in ranks_per_user], dtype=np.int64)
    return metrics_of(np.concatenate([np.empty(0, np.int64), *ranks_per_user]), count, metrics)


def metrics_of(rank: Ranks, count: Ranks, metrics: Sequence[str]) -> dict[str, Values]:
    """Return `ranking_metrics` of ranks user by user, of whom each has so many."""
    user = np.repeat(np.arange(len(count)), count)
    first = np.full(len(count), np.inf)
    np.minimum.at(first, user, rank)
    ideal = np.cumsum(1 / np.log2(2.0 + np.arange(count.max(initial=1))))

    def value(name: str) -> Values:
        family, k = parse_metric(name)
        if ":" in family:
            return own_values(name, np.split(rank, np.cumsum(count)[:-1]) if len(count) else [])
        choose(f"metric {name!r}", family, RANKING)
        if k is None:
            return 1 / first
        kept = rank <= k
        if family == "hr":
            return (first <= k).astype(np.float64)
        if family == "recall":
            return np.bincount(user[kept], minlength=len(count)) / np.maximum(count, 1)
        gain = np.bincount(user[kept], 1 / np.log2(1.0 + rank[kept]), len(count))
        return gain / ideal[np.clip(count, 1, k) - 1]

    return {name: np.where(count > 0, value(name), np.nan) for name in metrics}


def auc(score: NDArray[np.floating], label: NDArray[np.bool_]) -> float:
    """Return P(score of a positive > score of a negative), a tie counting half (Mann-Whitney); [n] and [n].

    NaN when there is one class only, or a NaN score.
    """
    score, label = np.asarray(score, np.float64), np.asarray(label, np.bool_)
    positives = int(label.sum())
    negatives = len(label) - positives
    if not positives or not negatives or np.isnan(score).any():
        return math.nan
    _, group, size = np.unique(score, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(size) - (size - 1) / 2
    above = mean_rank[group[label]].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def placements(score: NDArray[np.floating], label: NDArray[np.bool_]) -> Values:
    """Return of each row [n] the share of the other class that it stands on the right side of, ties counted half.

    Its mean over the positives is `auc`, and so is its mean over the negatives (Hanley and Hajian-Tilaki 1997). NaN
    with one class only, or with a NaN score.
    """
    score, label = np.asarray(score, np.float64), np.asarray(label, np.bool_)
    positives = int(label.sum())
    if not 0 < positives < len(label) or np.isnan(score).any():
        return np.full(len(label), math.nan)
    _, group = np.unique(score, return_inverse=True)
    ups, downs = (np.bincount(group[mask], minlength=group.max() + 1) for mask in (label, ~label))
    below = (np.cumsum(downs) - downs / 2) / (len(label) - positives)
    above = (positives - np.cumsum(ups) + ups / 2) / positives
    return np.where(label, below[group], above[group])


def macro_auc(score: NDArray[np.floating], label: NDArray[np.bool_]) -> float:
    """Return the mean of `auc` over the columns [n, C] that have both classes; NaN without one."""
    areas = [auc(score[:, c], label[:, c]) for c in range(label.shape[1]) if 0 < label[:, c].sum() < len(label)]
    return float(np.mean(areas)) if areas else math.nan


def average_precision(score: NDArray[np.floating], label: NDArray[np.bool_]) -> float:
    """Return sum_k (R_k - R_{k-1}) P_k over the distinct scores in descending order; any shape, all entries as one.

    P_k and R_k are precision and recall of what scores at least the k-th, so that entries with equal scores come in
    together. NaN without a positive, or with a NaN score.
    """
    score, label = np.asarray(score, np.float64).ravel(), np.asarray(label, np.bool_).ravel()
    if not label.any() or np.isnan(score).any():
        return math.nan
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    hits = np.cumsum(label[order])[last]
    precision = hits / (last + 1)
    return float((np.diff(hits, prepend=0) * precision).sum() / hits[-1])


def log_loss(logit: NDArray[np.floating], label: NDArray[np.bool_]) -> Values:
    """Return log(1 + exp(-z)) of positives and log(1 + exp(z)) of negatives [n], in nats; z [n] logits."""
    return np.logaddexp(0, np.where(label, -logit, logit).astype(np.float64))


def rmse(prediction: NDArray[np.floating], target: NDArray[np.floating]) -> float:
    """Return the root of the mean squared error of `prediction` [n] against `target` [n]."""
    error = np.asarray(prediction, np.float64) - np.asarray(target, np.float64)
    return math.sqrt(np.square(error).mean()) if len(error) else math.nan


@dataclass(frozen=True)
class Paired:
    """A difference of n pairs, its two-sided Student-t confidence interval, and the p-value of no difference.

    `p` is below 0.05 where a 95% interval excludes 0, and nowhere else, but for differences that are all alike.
    """

    mean: float
    low: float
    high: float
    n: int
    p: float = math.nan


def paired(a: Values, b: Values, confidence: float = 0.95) -> Paired:
    """Return the mean of `a - b` over the pairs without a NaN, with mean +- t_{(1+confidence)/2, n-1} s / sqrt(n).

    `a`, `b` [users] in the same order. Below two pairs the interval is NaN, without any the mean too.
    Raises ValueError when the shapes differ or `confidence` is outside (0, 1).
    """
    if a.shape != b.shape:
        raise ValueError(f"paired: equal shapes expected, found {a.shape} and {b.shape}")
    if not 0 < confidence < 1:
        raise ValueError(f"paired: confidence must lie between 0 and 1, found {confidence}")
    kept = ~(np.isnan(a) | np.isnan(b))
    difference = a[kept] - b[kept]
    n = len(difference)
    if n < 2:
        return Paired(float(difference[0]) if n else math.nan, math.nan, math.nan, n)
    mean, error = float(difference.mean()), float(difference.std(ddof=1)) / math.sqrt(n)
    return student(mean, error, n, n - 1, confidence)


def student(mean: float, error: float, n: int, df: float, confidence: float = 0.95) -> Paired:
    """Return a difference of n pairs with its interval and p-value, given its standard error with `df` degrees.

    Where all pairs differ alike there is no spread to judge by; p is then that of the sign test, 2^(1 - n).
    """
    from scipy.special import stdtr, stdtrit  # it loads slowly, and training does without

    if error <= 1e-12 * abs(mean):
        return Paired(mean, mean, mean, n, 2.0 ** (1 - n) if mean else 1.0)
    margin = float(stdtrit(df, (1 + confidence) / 2)) * error
    return Paired(mean, mean - margin, mean + margin, n, 2 * float(stdtr(df, -abs(mean) / error)))


def holm(p: Sequence[float]) -> list[float]:
    """Return the p-values of one family corrected for their number (Holm 1979); a NaN stays and does not count.

    The chance that any true null hypothesis has a corrected value below a level is at most that level.
    """
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")[: int((~np.isnan(values)).sum())]
    adjusted = np.full(len(values), math.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)), 1)
    return [float(value) for value in adjusted]
