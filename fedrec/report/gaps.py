"""How two trainings differ, client by client: paired over their users."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedrec.evaluation.differences import BLOCK as DRAWN
from fedrec.evaluation.differences import RESAMPLES, Side, difference, drawn_times
from fedrec.metrics import NEGATIVES, Paired, Values
from fedrec.report.results import KEY, Results

ENDS = ("difference", "low", "high", "users", "p")  # columns of a `Paired`, in the order of its fields
USERS = ENDS.index("users")
TOGETHER = 1000  # groups of users that are resampled together


def differences(federated: Results, baseline: Results) -> dict[tuple[str, str, str], Paired]:
    """Return `gaps` by client, task and metric."""
    table = gaps(federated, baseline)
    return {key: Paired(*row) for key, row in zip(table.index, table.itertuples(index=False), strict=True)}


def gaps(federated: Results, baseline: Results) -> pd.DataFrame:
    """Return federated minus baseline: the difference of the test values, with an interval over users.

    A row for each client, task and metric of the test, columns `ENDS`. Without an interval (0 users) where there are no
    values by user whose means the test values are, in both.
    """
    ours = federated.test()
    base = baseline.test().reindex(ours.index)
    table = pd.DataFrame({"difference": ours - base, "low": np.nan, "high": np.nan, "users": 0, "p": np.nan})
    pairs = paired_users(federated.users, baseline.users)
    if not len(pairs):
        return table
    grouped = pairs.groupby(KEY, sort=False)
    sizes, weight = grouped.size(), grouped["weight"]
    groups = Groups(pairs, sizes.index, np.asarray(grouped.ngroup(), np.int64), ours.index.get_indexer(sizes.index))
    count, metric = np.asarray(sizes, np.int64), sizes.index.get_level_values("metric")
    table.iloc[groups.place[(count == 1) & (groups.place >= 0)], USERS] = 1
    several = (count > 1) & (groups.place >= 0)
    even = (weight.max() == weight.min()).to_numpy() & ~metric.isin(["auc", "rmse"])
    shown = np.stack([ours.to_numpy(np.float64), base.to_numpy(np.float64)])
    by_mean(table, groups, several & even, shown)
    curves = np.asarray(metric == "auc")
    by_resampling(table, groups, several & ~even & ~curves, count, shown)
    of_curves(table, groups, several & curves, count, shown)
    return table


class Groups(NamedTuple):
    """Pairs of users by client, task and metric."""

    pairs: pd.DataFrame
    keys: pd.Index  # client, task and metric of each group
    group: NDArray[np.int64]  # of each pair
    place: NDArray[np.intp]  # of each group in a table, -1 where it is not there


def paired_users(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Return the values `value_x` and `value_y` of users whom both have, with their weights; nothing of a NaN."""
    key = ["user", *KEY]
    x, y = (table.loc[table["split"] == "test", [*key, "value", "weight"]] for table in (ours, theirs))
    if len(x) == len(y) and all((x[name].array == y[name].array).all() for name in key):
        pairs = x.rename(columns={"value": "value_x"}).assign(value_y=y["value"].to_numpy())  # the usual case
    else:
        pairs = x.merge(y[[*key, "value"]], on=key)
    return pairs.dropna()


def by_mean(table: pd.DataFrame, groups: Groups, chosen: NDArray[np.bool_], shown: Values) -> None:
    """Fill in the intervals of groups whose metric is a mean over users of equal weight: paired Student's t."""
    which, here = np.flatnonzero(chosen), chosen[groups.group]
    if not len(which):
        return
    code = np.searchsorted(which, groups.group[here])
    x, y = (groups.pairs.loc[here, name].to_numpy(np.float64) for name in ("value_x", "value_y"))
    n, rows = np.bincount(code).astype(np.float64), groups.place[which]
    mean = np.bincount(code, x - y) / n
    error = np.sqrt(np.bincount(code, np.square(x - y - mean[code])) / (n - 1) / n)
    means = np.stack([np.bincount(code, value) / n for value in (x, y)])
    good = np.isclose(means, shown[:, rows], 1e-6, 1e-9).all(0)
    fill(table, rows[good], *(one[good] for one in students(mean, error, n, n - 1)))


def fill(table: pd.DataFrame, rows: NDArray[np.intp], low: Values, high: Values, n: Values, p: Values) -> None:
    """Put intervals, numbers of users and p-values [rows] into some rows of a table."""
    for name, values in (("low", low), ("high", high), ("users", n.astype(np.int64)), ("p", p)):
        table.iloc[rows, ENDS.index(name)] = values


def students(mean: Values, error: Values, n: Values, df: Values) -> tuple[Values, Values, Values, Values]:
    """Return the ends of the 95% interval, n and the p-value of each mean, as `fedrec.metrics.student` does."""
    from scipy.special import stdtr, stdtrit  # it loads slowly, and training does without

    still = error <= 1e-12 * np.abs(mean)
    margin = np.where(still, 0.0, stdtrit(df, 0.975) * error)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(still, np.where(mean == 0, 1.0, 2.0 ** (1 - n)), 2 * stdtr(df, -np.abs(mean) / error))
    return mean - margin, mean + margin, n, p


def by_resampling(
    table: pd.DataFrame, groups: Groups, chosen: NDArray[np.bool_], count: NDArray[np.int64], shown: Values
) -> None:
    """Fill in the intervals of groups whose users count differently, or whose metric is a root, as `difference` does.

    Those of as many users are resampled together.
    """
    for n in np.unique(count[chosen]).tolist():
        alike = np.flatnonzero(chosen & (count == n))
        here = np.isin(groups.group, alike)
        order = np.argsort(groups.group[here], kind="stable")
        x, y, weight = (
            groups.pairs.loc[here, name].to_numpy(np.float64)[order].reshape(-1, n)
            for name in ("value_x", "value_y", "weight")
        )
        for part in np.array_split(np.arange(len(alike)), -(-len(alike) // TOGETHER)):
            resample(table, groups, alike[part], shown, x[part], y[part], weight[part])


def resample(
    table: pd.DataFrame, groups: Groups, which: NDArray[np.intp], shown: Values, x: Values, y: Values, weight: Values
) -> None:
    """Fill in the intervals of groups of n users each, of whom `x`, `y` and `weight` [groups, n] are the values."""
    root, n = np.asarray(groups.keys.get_level_values("metric") == "rmse")[which], x.shape[1]
    sums = np.stack([weight * np.where(root[:, None], np.square(value), value) for value in (x, y)] + [weight])

    def means(totals: Values) -> Values:
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = totals[..., :2, :] / totals[..., 2:, :]
            return np.where(root, np.sqrt(np.where(root, mean, 0.0)), mean)

    block, flat = max(1, DRAWN // n), sums.reshape(-1, n).T
    draws = [drawn_times(n, at, min(block, RESAMPLES - at)) @ flat for at in range(0, RESAMPLES, block)]
    drawn = means(np.concatenate(draws).reshape(RESAMPLES, 3, -1))
    gap, found = drawn[:, 0] - drawn[:, 1], means(sums.sum(2))
    error = gap.std(0, where=np.isfinite(gap)) * np.sqrt(n / (n - 1))
    worth = np.square(weight.sum(1)) / np.square(weight).sum(1)  # so many users of equal weight (Kish 1965)
    rows = groups.place[which]
    good = np.isclose(found, shown[:, rows], 1e-6, 1e-9).all(0)
    ends = students(found[0] - found[1], error, np.full(len(which), float(n)), np.maximum(1.0, worth - 1))
    fill(table, rows[good], *(one[good] for one in ends))


def of_curves(
    table: pd.DataFrame, groups: Groups, chosen: NDArray[np.bool_], count: NDArray[np.int64], shown: Values
) -> None:
    """Fill in the intervals of areas under a curve, which have two sides, one by one: by resampling."""
    if not chosen.any():
        return
    weighed = chosen | (groups.keys.get_level_values("metric") == NEGATIVES) & (count > 1)
    rows = groups.pairs[weighed[groups.group]]
    parts: dict[Any, pd.DataFrame] = dict(iter(rows.groupby(KEY, sort=False)))
    for number in np.flatnonzero(chosen).tolist():
        at, place = groups.keys[number], groups.place[number]
        if (second := parts.get((*at[:2], NEGATIVES))) is None:
            continue
        sides = sides_of([parts[at], second])
        if all(np.allclose(side.means(at[2]), shown[:, place], 1e-6, 1e-9) for side in sides):
            gap = difference(at[2], sides)
            table.iloc[place, 1:] = [gap.low, gap.high, gap.n, gap.p]


def sides_of(parts: Sequence[pd.DataFrame]) -> list[Side]:
    """Return pairs of users as sides of a difference: a user has one place in all of them."""
    users = pd.factorize(np.concatenate([part["user"] for part in parts]))[0]
    places = np.split(users, np.cumsum([len(part) for part in parts])[:-1])
    columns = [[part[name].to_numpy(np.float64) for name in ("value_x", "value_y", "weight")] for part in parts]
    return [Side(place, *column) for place, column in zip(places, columns, strict=True)]
