"""What is said of differences: helped, hurt or neither, corrected for the number of times that it is said."""

import math
from collections.abc import Hashable, Iterable, Sequence

import pandas as pd

from fedrec.metrics import Paired, holm, sign

LEVEL = 0.05  # of the verdicts, corrected for their number
UNCLEAR = "unclear after Holm"  # the interval excludes 0, but no longer once corrected for the number of verdicts


def verdict(metric: str, difference: Paired, corrected: float) -> str:
    """Return helped, hurt or no detectable difference at a level of 5%, given the p-value `corrected` for their number.

    `UNCLEAR` where the interval excludes 0 and the corrected p-value does not; without an interval better, worse,
    equal; "" without a value.
    """
    good = sign(metric)
    low, high = sorted((good * difference.low, good * difference.high))
    if math.isnan(difference.mean):
        return ""
    if math.isnan(low):
        return "equal" if difference.mean == 0 else "better" if good * difference.mean > 0 else "worse"
    if low <= 0 <= high:
        return "no detectable difference"
    return UNCLEAR if corrected >= LEVEL else "helped" if low > 0 else "hurt"


def verdicts(metrics: Iterable[str], gaps: Sequence[Paired], families: Iterable[Hashable]) -> list[str]:
    """Return the verdict of every difference, corrected within its family (Holm), see `verdict`."""
    corrected = pd.Series([d.p for d in gaps], dtype=float)
    corrected = corrected.groupby(pd.Index(list(families)), sort=False).transform(lambda p: holm(p.tolist()))
    return [verdict(m, d, p) for m, d, p in zip(metrics, gaps, corrected, strict=True)]


def families(table: pd.DataFrame, speaks: str) -> list[Hashable]:
    """Return the family of each row's verdict: all rows that `speaks` marks, and of the others a task's metric each."""
    rows = zip(table[speaks], table["task"], table["metric"], strict=True)
    return ["" if marked else f"{task}/{metric}" for marked, task, metric in rows]


def labels(table: pd.DataFrame) -> list[str]:
    """Return what each row of a table is called: by its client, and its task where the table has several measures."""
    several = len(table[["task", "metric"]].drop_duplicates()) > 1
    return [f"{c} {t}" if several else str(c) for c, t in zip(table["client"], table["task"], strict=True)]
