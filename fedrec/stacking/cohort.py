"""Clients of one shape laid end to end: their training rows, and where the rows of their tables lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fedrec.data import ClientData, Interactions, Negatives
from fedrec.data.split import concatenate
from fedrec.data.types import Bools, Floats, Ints
from fedrec.models import Recommender
from fedrec.tasks import Task

Space = Literal["user", "item"]


@dataclass(frozen=True)
class Cohort:
    """Clients with the same model and tasks, the one with most training rows first.

    A table of all of them is flat: client c's rows are `starts[space][c]` to `starts[space][c + 1]`, in its local
    order. `server[space]` [rows] gives the row of the server's table for every flat row; None where every client's
    table is the server's. Training rows [N] are those that a task learns from, client by client.
    """

    members: tuple[int, ...]  # positions of the clients in the list that `groups` got
    datas: tuple[ClientData, ...]
    model: Recommender
    tasks: tuple[Task, ...]
    starts: Mapping[str, Ints]  # "user", "item" -> [n + 1] first flat row; "train" -> [n + 1] first training row
    server: Mapping[str, Ints | None]
    user: Ints  # [N] flat row
    item: Ints  # [N] flat row
    labels: Mapping[str, tuple[Floats, Floats]]  # task -> (mask [N], target [N])
    taken: Negatives | None  # over flat users and local items; None without a rank task
    bound: Ints  # [N] from how many items a negative of the row is drawn
    crowded: Bools  # [N] whether the row's user has met the whole catalogue

    def __len__(self) -> int:
        return len(self.members)

    @property
    def sizes(self) -> Ints:
        """The number of training rows of every client [n], descending."""
        found: Ints = np.diff(self.starts["train"])
        return found


def groups(
    datas: Sequence[ClientData],
    models: Sequence[Recommender],
    tasks: Sequence[tuple[Task, ...]],
    negatives: Literal["train", "published"],
    catalogue: Mapping[str, Ints],
) -> list[Cohort]:
    """Return the clients in cohorts of one model and one list of tasks; numbers of users, items and rows may differ.

    `catalogue` has the ascending global ids of the server's rows for every key space that is shared.
    """
    found: dict[tuple[Recommender, tuple[Task, ...]], list[int]] = {}
    for position, key in enumerate(zip(models, tasks, strict=True)):
        found.setdefault(key, []).append(position)
    return [cohort(datas, members, *key, negatives, catalogue) for key, members in found.items()]


def cohort(
    datas: Sequence[ClientData],
    members: Sequence[int],
    model: Recommender,
    tasks: tuple[Task, ...],
    negatives: Literal["train", "published"],
    catalogue: Mapping[str, Ints],
) -> Cohort:
    """Return `members` of `datas` as one cohort; see `groups`."""
    whole = concatenate([datas[m].train for m in members])
    used = np.logical_or.reduce([task.rows(whole) for task in tasks])
    sizes = np.bincount(owners([datas[m].train for m in members])[used], minlength=len(members))
    ordered = [int(members[i]) for i in np.argsort(-sizes, kind="stable")]
    mine = [datas[m] for m in ordered]
    starts = {
        "user": edges(np.array([len(data.users) for data in mine])),
        "item": edges(np.array([len(data.items) for data in mine])),
    }
    taken = avoided(mine, starts["user"], negatives) if any(task.kind == "rank" for task in tasks) else None
    server = {space: server_rows(mine, space, catalogue.get(space)) for space in ("user", "item")}
    empty = np.zeros(0, np.int64)
    bare = Cohort(tuple(ordered), tuple(mine), model, tasks, starts, server, empty, empty, {}, taken, empty, empty > 0)
    return learning(bare, [data.train for data in mine])


def learning(cohort: Cohort, parts: Sequence[Interactions]) -> Cohort:
    """Return the cohort with the rows of `parts`, one for each client, as those to train on."""
    whole, who = concatenate(parts), owners(parts)
    used = np.logical_or.reduce([task.rows(whole) for task in cohort.tasks])
    rows, who = whole.take(used), who[used]
    user = cohort.starts["user"][who] + rows.user
    bound, full = cohort.bound[:0], cohort.crowded[:0]
    if cohort.taken is not None:
        items = len_of(cohort.datas)[who]
        bound = items - cohort.taken.known(user)
        full = bound <= 0
        bound = np.where(full, items, bound)
    return replace(
        cohort,
        starts={**cohort.starts, "train": edges(np.bincount(who, minlength=len(parts)))},
        user=user,
        item=cohort.starts["item"][who] + rows.item,
        labels={t.name: (t.rows(rows).astype(np.float32), t.target(rows).astype(np.float32)) for t in cohort.tasks},
        bound=bound,
        crowded=full,
    )


def len_of(datas: Sequence[ClientData]) -> Ints:
    """Return the catalogue sizes [n]."""
    return np.array([len(data.items) for data in datas], dtype=np.int64)


def edges(counts: Ints) -> Ints:
    """Return [0, c_0, c_0 + c_1, ...]."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def owners(parts: Sequence[Interactions]) -> Ints:
    """Return, for every row of the concatenated parts, the number of its part."""
    return np.repeat(np.arange(len(parts)), [len(part) for part in parts])


def avoided(datas: Sequence[ClientData], starts: Ints, protocol: Literal["train", "published"]) -> Negatives:
    """Return `excluded` of all clients over flat users; the number of items is the largest catalogue's."""
    user, item = [], []
    for start, data in zip(starts, datas, strict=False):
        closed = np.flatnonzero(~data.offered("train"))
        user.append(start + np.repeat(np.arange(len(data.users)), len(closed)))
        item.append(np.tile(closed, len(data.users)))
    for name in ("train",) if protocol == "train" else ("train", "validation", "test"):
        parts = [getattr(data, name) for data in datas]
        rows, who = concatenate(parts), owners(parts)
        user.append((starts[who] + rows.user)[rows.positive])
        item.append(rows.item[rows.positive])
    return Negatives(np.concatenate(user), np.concatenate(item), int(len_of(datas).max()))


def server_rows(datas: Sequence[ClientData], space: str, catalogue: Ints | None) -> Ints | None:
    """Return the server's row of every flat row; None if every client's ids are the catalogue, or it is not shared."""
    ids = [data.users if space == "user" else data.items for data in datas]
    if catalogue is None or all(len(one) == len(catalogue) and np.array_equal(one, catalogue) for one in ids):
        return None
    return np.searchsorted(catalogue, np.concatenate(ids))
