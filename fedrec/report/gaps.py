"""How two trainings differ, client by client: paired over their users."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedrec.evaluation.differences import Side, difference
from fedrec.metrics import NEGATIVES, Paired, Values
from fedrec.report.results import KEY, Results

ENDS = ("difference", "low", "high", "users", "p")  # columns of a `Paired`, in the order of its fields
USERS = ENDS.index("users")


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
    one_by_one(table, groups, several & ~even, count, shown)
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
    low, high, p = students(mean, error, n)
    for name, values in (("low", low), ("high", high), ("users", n.astype(np.int64)), ("p", p)):
        table.iloc[rows[good], ENDS.index(name)] = values[good]


def students(mean: Values, error: Values, n: Values) -> tuple[Values, Values, Values]:
    """Return the ends of the 95% interval and the p-value of each mean of n pairs, as `fedrec.metrics.student` does."""
    from scipy.special import stdtr, stdtrit  # it loads slowly, and training does without

    still = error <= 1e-12 * np.abs(mean)
    margin = np.where(still, 0.0, stdtrit(n - 1, 0.975) * error)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(still, np.where(mean == 0, 1.0, 2.0 ** (1 - n)), 2 * stdtr(n - 1, -np.abs(mean) / error))
    return mean - margin, mean + margin, p


def one_by_one(
    table: pd.DataFrame, groups: Groups, chosen: NDArray[np.bool_], count: NDArray[np.int64], shown: Values
) -> None:
    """Fill in the intervals of groups whose users count differently, or whose metric is no mean: by resampling."""
    if not chosen.any():
        return
    weighed = chosen | (groups.keys.get_level_values("metric") == NEGATIVES) & (count > 1)
    rows = groups.pairs[weighed[groups.group]]
    parts: dict[Any, pd.DataFrame] = dict(iter(rows.groupby(KEY, sort=False)))
    for number in np.flatnonzero(chosen).tolist():
        at, place = groups.keys[number], groups.place[number]
        second = parts.get((*at[:2], NEGATIVES)) if at[2] == "auc" else None
        if at[2] == "auc" and second is None:
            continue
        sides = sides_of([parts[at]] if second is None else [parts[at], second])
        if all(np.allclose(side.means(at[2]), shown[:, place], 1e-6, 1e-9) for side in sides):
            gap = difference(at[2], sides)
            table.iloc[place, 1:] = [gap.low, gap.high, gap.n, gap.p]


def sides_of(parts: Sequence[pd.DataFrame]) -> list[Side]:
    """Return pairs of users as sides of a difference: a user has one place in all of them."""
    users = pd.factorize(np.concatenate([part["user"] for part in parts]))[0]
    places = np.split(users, np.cumsum([len(part) for part in parts])[:-1])
    columns = [[part[name].to_numpy(np.float64) for name in ("value_x", "value_y", "weight")] for part in parts]
    return [Side(place, *column) for place, column in zip(places, columns, strict=True)]
