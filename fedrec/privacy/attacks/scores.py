"""How well an attack's scores tell those that are in from those that are not: the only place that sees the truth."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv
from scipy.stats import rankdata

from fedrec.data.types import Bools, Ints
from fedrec.metrics import placements

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Result:
    """AUC and TPR at a bound of the FPR, each with its confidence band, and the whole ROC (fpr, tpr: [thresholds]).

    `f1` is that of as many guesses as there are members; guessing at random has their share of all. `members` and
    `others` count the targets, `groups` those that vary by themselves.
    """

    auc: float
    auc_low: float
    auc_high: float
    tpr_at: float
    tpr_low: float
    tpr_high: float
    fpr: Values
    tpr: Values
    members: int
    others: int
    groups: int
    f1: float

    @property
    def chance(self) -> bool:
        """Whether an AUC of 1/2 lies in the band: the attack is not shown to know anything."""
        return self.auc_low <= 0.5 <= self.auc_high


def judge(
    scores: Values, truth: Bools, *, groups: Ints | None = None, at: float = 0.01, confidence: float = 0.95
) -> Result:
    """Return how well `scores` [n] tell the targets that are in (`truth` [n]) from the others; higher means in.

    The AUC counts a tie as half; its band is DeLong's, or, with `groups` [n], the one of clustered targets (Obuchowski,
    Biometrics 1997): targets of one user do not vary by themselves. The TPR is the largest with FPR <= `at`, with the
    Clopper-Pearson band of its count, at the threshold that was found. Raises ValueError without a member or another,
    and for a score that is NaN.
    """
    scores, truth = np.asarray(scores, np.float64), np.asarray(truth, np.bool_)
    members, others = int(truth.sum()), int((~truth).sum())
    if scores.shape != truth.shape or not members or not others:
        raise ValueError(
            f"truth: must have the scores' shape and both kinds, found {truth.shape}, {members} in, {others} out"
        )
    if np.isnan(scores).any():
        raise ValueError(f"scores: must be numbers, found NaN at {int(np.isnan(scores).argmax())}")
    # FPR and TPR at every threshold, from (0, 0) to (1, 1); targets of one score come in together.
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order]) != 0), len(scores) - 1)
    hits = np.cumsum(truth[order])[last]
    tpr = np.concatenate([[0.0], hits / truth.sum()])
    fpr = np.concatenate([[0.0], (last + 1 - hits) / (~truth).sum()])
    each = np.arange(len(scores)) if groups is None else groups
    value, error = auc(scores, truth, each)
    width = NormalDist().inv_cdf((1 + confidence) / 2) * error
    reached = float(tpr[fpr <= at].max())
    low, high = clopper_pearson(np.asarray([round(reached * members)]), members, 1 - confidence)
    band = (max(value - width, 0.0), min(value + width, 1.0))
    f1, count = float(truth[order[:members]].mean()), len(np.unique(each))
    return Result(value, *band, reached, float(low[0]), float(high[0]), fpr, tpr, members, others, count, f1)


def auc(scores: Values, truth: Bools, groups: Ints) -> tuple[float, float]:
    """Return the AUC and its standard error, that of a sum over independent groups.

    With V(x) the fraction of the other kind that a target stands on the right side of (ties half), the AUC is A = mean
    V, and its error is that of sum_x (V(x) - A) / n_kind(x), summed within groups. Groups of one give DeLong's error.
    """
    v, members = placements(scores, truth), int(truth.sum())
    value = float(v[truth].mean())
    kinds = np.where(truth, members, len(truth) - members)
    _, group = np.unique(groups, return_inverse=True)
    count = int(group.max()) + 1
    if min(members, len(truth) - members, count) < 2:
        return value, math.inf
    part = np.bincount(group, (v - value) / kinds)
    if count == len(scores):  # by itself every kind has its own n / (n - 1)
        return value, math.sqrt(float(((v - value) ** 2 / (kinds * (kinds - 1))).sum()))
    return value, math.sqrt(count / (count - 1) * float((part**2).sum()))


def clopper_pearson(successes: Ints, n: int, alpha: float) -> tuple[Values, Values]:
    """Return the exact two-sided band of a binomial probability at level 1 - alpha, for counts [m] of n trials."""
    k = np.asarray(successes, np.float64)
    low = np.where(k > 0, betaincinv(np.maximum(k, 1), n - k + 1, alpha / 2), 0.0)
    high = np.where(k < n, betaincinv(k + 1, np.maximum(n - k, 1), 1 - alpha / 2), 1.0)
    return np.asarray(low, np.float64), np.asarray(high, np.float64)


def violates(result: Result, epsilon: float, delta: float, confidence: float = 0.95) -> bool:
    """Return whether an attack shows that (epsilon, delta) does not hold for what its targets are.

    Under it TPR <= e^epsilon FPR + delta at every threshold, and the same of the complement, TNR <= e^epsilon FNR +
    delta (arXiv 1311.0776, Theorem 2.1). It is broken when it fails for the near ends of all Clopper-Pearson bands
    together (Bonferroni over the thresholds and over both rates): by chance in at most 1 - confidence of the cases,
    if targets are independent.
    """
    alpha = (1 - confidence) / len(result.fpr)  # of a band's two ends only the near one is used
    hits, false = np.rint(result.tpr * result.members), np.rint(result.fpr * result.others)
    tpr_low, _ = clopper_pearson(hits.astype(np.int64), result.members, alpha)
    _, fpr_high = clopper_pearson(false.astype(np.int64), result.others, alpha)
    factor = math.exp(min(epsilon, 700.0))
    above = tpr_low > factor * fpr_high + delta
    below = 1 - fpr_high > factor * (1 - tpr_low) + delta
    return bool((above | below).any())


def ranks(scores: Values) -> Values:
    """Return where every score [n, k] lies among its column, from 0 to 1, equal ones in the middle of their places."""
    return np.asarray((rankdata(scores, axis=0) - 0.5) / max(len(scores), 1))
