"""The difference of two models by a metric, over the same users: of the numbers shown, with an interval for it.

One estimand for each metric. A ranking metric is a mean over users, and so is its difference (paired Student t). RMSE,
log loss, accuracy and AUC are over all rows; their difference is of these, and its standard error from resampling the
users with all their rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedrec.metrics import Paired, Values, paired, student
from fedrec.rng import generator

RESAMPLES = 1000
BLOCK = 1_000_000  # resampled users held in memory at a time


@dataclass(frozen=True)
class Side:
    """What a metric is a weighted mean of: the values of two models for n of the users, and their weights [n].

    `unit` [n] are the users' places among all users of the comparison.
    """

    unit: np.typing.NDArray[np.intp]
    ours: Values
    theirs: Values
    weight: Values

    def means(self, metric: str) -> tuple[float, float]:
        """Return the metric of both models."""
        sums = np.array([self.weight @ squared(metric, values) for values in self.pair])
        ours, theirs = whole(metric, sums, np.full(2, self.weight.sum()))
        return float(ours), float(theirs)

    @property
    def pair(self) -> tuple[Values, Values]:
        """The values of both models."""
        return self.ours, self.theirs

    @property
    def effective(self) -> float:
        """How many users of equal weight are worth as much: (sum w)^2 / sum w^2 (Kish 1965)."""
        return float(self.weight.sum() ** 2 / np.square(self.weight).sum())


def squared(metric: str, values: Values) -> Values:
    """Return what a metric averages of users' values."""
    return np.square(values) if metric == "rmse" else values


def whole(metric: str, total: Values, weight: Values) -> Values:
    """Return the metric, given the weighted sum of `squared` values and the sum of the weights; NaN without weight."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / weight
        return np.sqrt(mean) if metric == "rmse" else mean


def difference(metric: str, sides: Sequence[Side]) -> Paired:
    """Return the difference of two models with its 95% interval over users; without an interval below two users.

    With one side of equal weights, and no root, the paired t. Else the bootstrap: users are drawn with replacement,
    with all their rows, and the standard error of the difference is the standard deviation over `RESAMPLES` draws times
    sqrt(n / (n - 1)), so that of equal weights it is that of the paired t; Student's t has `effective` - 1 degrees of
    freedom, by the side that has fewest. An AUC has two sides, the placements of positives and of negatives, each a
    mean that is the AUC; to first order the AUC of a draw is the sum of both means less the AUC (Obuchowski 1997).
    """
    first = sides[0]
    if len(sides) == 1 and metric != "rmse" and len(np.unique(first.weight)) < 2:
        return paired(first.ours, first.theirs)
    ours, theirs = first.means(metric)
    n, units = min(len(side.unit) for side in sides), len(np.unique(np.concatenate([side.unit for side in sides])))
    if n < 2:
        return Paired(ours - theirs, math.nan, math.nan, n)
    gaps = resample(metric, sides)
    error = float(gaps[np.isfinite(gaps)].std()) * math.sqrt(n / (n - 1))
    return student(ours - theirs, error, units, max(1.0, min(side.effective for side in sides) - 1))


def resample(metric: str, sides: Sequence[Side]) -> Values:
    """Return the difference [RESAMPLES], summed over the sides, in every draw of as many users."""
    units = 1 + max(int(side.unit.max()) for side in sides)
    columns = np.zeros((units, 3 * len(sides)))
    for place, side in enumerate(sides):
        for column, values in enumerate((*side.pair, np.ones(len(side.unit)))):
            columns[side.unit, 3 * place + column] = side.weight * squared(metric, values)
    block, gaps = max(1, BLOCK // units), []
    for start in range(0, RESAMPLES, block):
        sums = drawn_times(units, start, min(block, RESAMPLES - start)) @ columns
        ours, theirs, weight = (sums[:, column::3] for column in range(3))
        gaps.append((whole(metric, ours, weight) - whole(metric, theirs, weight)).sum(1))
    return np.concatenate(gaps)


@lru_cache(maxsize=8)
def drawn_times(units: int, start: int, draws: int) -> Values:
    """Return how often each of the users is drawn [draws, units]; the same for all comparisons of so many users."""
    who = generator(0, "bootstrap", units, start).integers(units, size=(draws, units))
    flat = (who + units * np.arange(draws)[:, None]).ravel()
    return np.bincount(flat, minlength=draws * units).reshape(draws, units).astype(np.float64)
