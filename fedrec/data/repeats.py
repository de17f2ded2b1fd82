"""Rows that say the same thing again: a view and then a purchase, an item that is rated twice, become one."""

import numpy as np

from fedrec.data.types import Floats, Interactions, Ints


def merged(rows: Interactions, keys: Ints) -> Interactions:
    """Return one row for every key [n], by ascending key, whatever the order of the rows.

    It is a positive, and has a label, where any row of the key is or has; its time is the last one; its rating is that
    of the last time at which there is a rating, the mean of them where that time has several. User and item are those
    of any row: the key must decide them.
    """
    order = np.argsort(keys, kind="stable")
    rows, (_, start, group) = rows.take(order), np.unique(keys[order], return_index=True, return_inverse=True)
    if len(start) == len(rows):
        return rows
    return Interactions(
        rows.user[start],
        rows.item[start],
        np.maximum.reduceat(rows.time, start),
        _last(rows, group, len(start)),
        np.logical_or.reduceat(rows.positive, start),
        {name: np.logical_or.reduceat(label, start) for name, label in rows.labels.items()},
    )


def _last(rows: Interactions, group: Ints, count: int) -> Floats:
    """Return the last rating of each of `count` groups, NaN where a group has none."""
    rated = np.flatnonzero(~np.isnan(rows.rating))
    latest = np.full(count, np.iinfo(np.int64).min)
    np.maximum.at(latest, group[rated], rows.time[rated])
    last = rated[rows.time[rated] == latest[group[rated]]]
    last = last[np.argsort(rows.rating[last], kind="stable")]  # the order of a sum moves its last bit
    number = np.bincount(group[last], minlength=count)
    total = np.bincount(group[last], weights=rows.rating[last], minlength=count)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan).astype(np.float32)


def told(before: Interactions, after: Interactions) -> str:
    """Return how many rows of which label were merged into how many interactions."""
    text = f"{len(before):,} rows are {len(after):,} interactions: repeats of a (platform, user, item) are merged, "
    text += "with every label that any of them has"
    text += ", the last time" * bool(before.time.any())
    text += ", the last rating" * bool(np.isfinite(before.rating).any())
    parts = [(name, before.labels[name], after.labels[name]) for name in before.labels]
    if parts:
        none = [~np.logical_or.reduce([*rows.labels.values()]) for rows in (before, after)]
        parts.append(("no label", none[0], none[1]))
    counts = "; ".join(f"{name}: {int(a.sum()):,} rows, {int(b.sum()):,} interactions" for name, a, b in parts)
    return f"{text} ({counts})" if counts else text
