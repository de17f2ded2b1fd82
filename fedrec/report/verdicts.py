"""What is said of differences: helped, hurt or neither, corrected for the number of times that it is said."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedrec.metrics import Paired, Values, holm, sign

LEVEL = 0.05  # of the verdicts, corrected for their number
UNCLEAR = "unclear after Holm"  # the interval excludes 0, but no longer once corrected for the number of verdicts


def verdict(metric: str, difference: Paired, corrected: float) -> str:
    """Return helped, hurt or no detectable difference at a level of 5%, given the p-value `corrected` for their number.

    `UNCLEAR` where the interval excludes 0 and the corrected p-value does not; without an interval better, worse,
    equal; "" without a value.
    """
    ends = np.array([[difference.mean], [difference.low], [difference.high]])
    return str(_words(np.array([sign(metric)]), ends, np.array([corrected]))[0])


def verdicts(
    metrics: Iterable[str], gaps: Sequence[Paired] | pd.DataFrame, families: Iterable[Hashable] | pd.Series
) -> list[str]:
    """Return the verdict of every difference, corrected within its family (Holm), see `verdict`.

    A table of differences has their mean, low, high and p in its columns 0, 1, 2 and 4.
    """
    table = gaps if isinstance(gaps, pd.DataFrame) else pd.DataFrame(gaps, columns=["mean", "low", "high", "n", "p"])
    values = table.to_numpy(np.float64).T
    corrected = pd.Series(values[4]).groupby(np.asarray(families, object), sort=False)
    good = by_value(pd.Series(metrics, dtype=object), sign)
    return [*map(str, _words(good, values[:3], corrected.transform(lambda p: holm(p.tolist())).to_numpy(np.float64)))]


def _words(good: NDArray[Any], ends: Values, corrected: Values) -> NDArray[Any]:
    """Return verdicts [n], where more is better or not (1, -1) [n], of means, lows and highs [3, n]."""
    mean, *interval = good * ends
    low, high = np.minimum(*interval), np.maximum(*interval)
    bare = np.isnan(low)
    return np.select(
        [np.isnan(mean), bare & (mean == 0), bare & (mean > 0), bare, (low <= 0) & (high >= 0), corrected >= LEVEL],
        ["", "equal", "better", "worse", "no detectable difference", UNCLEAR],
        np.where(low > 0, "helped", "hurt"),
    )


def by_value(texts: pd.Series, function: Callable[[str], Any]) -> NDArray[Any]:
    """Return what a function makes of texts [n], which is asked once for each that there is."""
    codes, known = pd.factorize(texts)
    return np.array([function(str(one)) for one in known])[codes] if len(known) else np.zeros(0)


def families(table: pd.DataFrame, speaks: str) -> pd.Series:
    """Return the family of each row's verdict: all rows that `speaks` marks, and of the others a task's metric each."""
    return (table["task"] + "/" + table["metric"]).mask(table[speaks].astype(bool), "")


def labels(table: pd.DataFrame) -> list[str]:
    """Return what each row of a table is called: by its client, and its task where the table has several measures."""
    several = len(table[["task", "metric"]].drop_duplicates()) > 1
    return [f"{c} {t}" if several else str(c) for c, t in zip(table["client"], table["task"], strict=True)]
