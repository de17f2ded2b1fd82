"""What the results of a privacy study can tell: means with their intervals, and what is too small to tell."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pandas as pd

from fedrec.metrics import Paired, higher_is_better, paired, student
from fedrec.report.findings import label, listing, number

LEAST = 20  # targets of a kind, and independent groups of targets, below which an attack's AUC tells nothing
LEVEL = 0.05
CHANCE = NormalDist().inv_cdf(1 - LEVEL / 2) * math.sqrt((2 * LEAST + 1) / (12 * LEAST**2))  # of Mann-Whitney's U
RULE = (
    f"Too few: fewer than {LEAST} targets of a kind, or targets of fewer than {LEAST} users or clients; with so few, "
    f"chance alone takes an AUC {number(CHANCE, 2)} to either side of 1/2 (95%), and more."
)


class Leak(NamedTuple):
    """An attack's AUC, the mean over the seeds, with its interval, its TPR at 1% FPR, and whether it beats chance."""

    auc: float
    low: float
    high: float
    tpr: float
    star: bool


def asked(part: pd.DataFrame) -> int:
    """Return the number that limits what an attack's rows can tell: targets of a kind, or independent groups."""
    return int(part[["members", "others", "groups"]].min().min())


def leak(part: pd.DataFrame, tests: int) -> Leak | None:
    """Return what an attack at one budget shows, from its rows (one a seed); None where it is too few to tell.

    The interval is the wider of two: over one run's targets, and, with more seeds than one, Student's t over the seeds.
    Both must exclude 1/2 for a star, that over the targets at `LEVEL` corrected for all `tests` (Bonferroni).
    """
    if not len(part) or asked(part) < LEAST:
        return None
    value = part["value"].to_numpy(np.float64)
    # A band is cut off at 0 and 1, on one side at most.
    error = np.maximum(value - part["low"], part["high"] - value).mean() / NormalDist().inv_cdf(0.975)
    auc, n = float(value.mean()), len(value)
    half = NormalDist().inv_cdf(1 - LEVEL / 2) * error
    if n > 1:
        over = student(auc, float(value.std(ddof=1)) / math.sqrt(n), n, n - 1, 1 - LEVEL)
        half = max(half, over.high - over.mean)
    corrected = NormalDist().inv_cdf(1 - LEVEL / 2 / max(tests, 1)) * error
    star = bool(abs(auc - 0.5) > max(half, corrected))
    return Leak(auc, max(auc - half, 0.0), min(auc + half, 1.0), float(part["tpr"].mean()), star)


def values(table: pd.DataFrame, kind: str, name: str, epsilon: str) -> "pd.Series[float]":
    """Return the value of every seed, by seed."""
    part = table[(table["kind"] == kind) & (table["name"] == name) & (table["epsilon"] == epsilon)]
    return part.set_index("seed")["value"].sort_index()


def gains(
    own: pd.DataFrame, alone: pd.DataFrame, name: str, budgets: Sequence[str], confidence: float = 1 - LEVEL
) -> list[Paired]:
    """Return together minus alone at every budget, paired by seed, with intervals over the seeds."""
    local = values(alone, "local", name, "inf")
    both = [values(own, "utility", name, text).align(local, join="inner") for text in budgets]
    return [paired(a.to_numpy(np.float64), b.to_numpy(np.float64), confidence) for a, b in both]


def worth(metric: str, found: Sequence[Paired], budgets: Sequence[str], tests: int) -> str:
    """Return in words where together is better than alone, and worse; `found` are differences corrected for `tests`.

    With one seed there is no interval, and nothing is claimed.
    """
    sign, seeds = 1 if higher_is_better(metric) else -1, max(one.n for one in found)
    if seeds < 2:
        return f"{label(metric)}: one seed gives no interval, so it is not told where together beats alone."
    places: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for text, one in zip(budgets, found, strict=True):
        low, high = sorted((sign * one.low, sign * one.high))
        places["better" if low > 0 else "worse" if high < 0 else "not told apart"].append(text)
    said = "; ".join(f"{words} at epsilon {listing(where)}" for words, where in places.items() if where)
    end = f"95% intervals over {seeds} paired seeds, corrected for {tests} comparisons"
    return f"{label(metric)}, together against alone: {said} ({end})."
