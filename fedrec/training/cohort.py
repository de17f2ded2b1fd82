"""Clients of one shape laid end to end: their training rows, and where the rows of their tables lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedrec.data import ClientData, Histories, Interactions, Negatives, before, latest
from fedrec.data.split import concatenate
from fedrec.data.types import Attributes, Bools, Floats, Ints
from fedrec.models import Recommender
from fedrec.tasks import Task
from fedrec.training.rows import edges

FREE = 2**23  # pairs of a user and an item of which those that may be drawn are written down: 4 bytes each


@dataclass(frozen=True, eq=False)
class Cohort:
    """Clients with the same model and tasks, the one with most training rows first; equal to nothing but itself.

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
    labels: Mapping[str, tuple[Bools, Floats]]  # task -> (mask [N], target [N], or [N, C] of several scores)
    taken: Negatives | None  # over flat users and local items; None without a rank task
    bound: Ints  # [N] from how many items a negative of the row is drawn
    crowded: Bools  # [N] whether the row's user has met the whole catalogue
    past: Histories | None  # of the training rows, flat items; None for a model that reads none
    models: tuple[Recommender, ...]  # like `model`, each with what it reads of its client's items
    weights: Mapping[str, Floats] = field(default_factory=dict)  # task -> see `relative` [N]; empty where all weigh 1

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def sizes(self) -> Ints:
        """The number of training rows of every client [n], descending."""
        sizes: Ints = np.diff(self.starts["train"])
        return sizes

    @cached_property
    def free(self) -> tuple[Ints, NDArray[np.int32]] | None:
        """Where every user's items outside its positives begin, and these items; None where they would be too many.

        The r-th of a user is one look-up then, in the place of a search.
        """
        taken, users = self.taken, int(self.starts["user"][-1])
        if taken is None or users * taken.n_items > FREE:
            return None
        mask = np.ones((users, taken.n_items), np.bool_)
        mask[taken.positives_user, taken.positives_item] = False
        items = np.append(np.nonzero(mask)[1], 0)  # never empty: a crowded user has none, and its look-up no meaning
        return edges(mask.sum(1)), items.astype(np.int32)


def groups(
    datas: Sequence[ClientData],
    models: Sequence[Recommender],
    tasks: Sequence[tuple[Task, ...]],
    negatives: Literal["train", "published"],
    catalogue: Mapping[str, Ints],
    *,
    seed: int = 0,
    apart: bool = False,
) -> list[Cohort]:
    """Return the clients in cohorts of one model and one list of tasks; numbers of users, items and rows may differ.

    `catalogue` has the ascending global ids of the server's rows for every key space that is shared. A client whose
    model can be differentiated alone only is a cohort by itself; all are if they are to stay `apart`.
    """
    by_key: dict[object, list[int]] = {}
    known: dict[tuple[int, int], list[int]] = {}  # of one model and list as objects, which thousands of clients have
    for position, key in enumerate(zip(models, tasks, strict=True)):
        ids, alone = (id(key[0]), id(key[1])), apart or not key[0].gathers
        if alone or ids not in known:
            known[ids] = by_key.setdefault(position if alone else key, [])
        known[ids].append(position)
    cohorts = []
    for members in by_key.values():
        clients = [datas[m] for m in members]
        group = cohort(clients, [models[m] for m in members], tasks[members[0]], negatives, catalogue, seed)
        cohorts.append(replace(group, members=tuple(members[i] for i in group.members)))
    return cohorts


def cohort(
    datas: Sequence[ClientData],
    models: Sequence[Recommender],
    tasks: tuple[Task, ...],
    negatives: Literal["train", "published"],
    catalogue: Mapping[str, Ints],
    seed: int,
) -> Cohort:
    """Return some clients as one cohort; see `groups`."""
    trains, abouts = [data.train for data in datas], [data.attributes for data in datas]
    used = used_rows(tasks, concatenate(trains), trains, abouts)
    order = np.argsort(-np.bincount(owners(trains)[used], minlength=len(datas)), kind="stable")
    clients = [datas[i] for i in order]
    starts = {
        "user": edges(np.array([len(data.users) for data in clients])),
        "item": edges(np.array([len(data.items) for data in clients])),
    }
    taken = negatives_of(clients, starts["user"], negatives) if any(task.kind == "rank" for task in tasks) else None
    server = {space: server_rows(clients, space, catalogue.get(space)) for space in ("user", "item")}
    none, sequence = np.zeros(0, np.int64), models[0].sequence
    bare = Cohort(
        tuple(order.tolist()),
        tuple(clients),
        models[0],
        tasks,
        starts,
        server,
        user=none,
        item=none,
        labels={},
        taken=taken,
        bound=none,
        crowded=none > 0,
        past=None,
        models=tuple(models[i] for i in order),
    )
    pasts = [before(data, sequence.history, seed) for data in clients] if sequence.active else []
    return with_rows(bare, [trains[i] for i in order], [abouts[i] for i in order], pasts)


def used_rows(
    tasks: Sequence[Task], rows: Interactions, parts: Sequence[Interactions], abouts: Sequence[Attributes]
) -> Bools:
    """Return which rows some task learns from; `rows` are those of `parts`, end to end."""
    mask: Bools = np.logical_or.reduce([of_rows(task, task.rows, rows, parts, abouts) for task in tasks])
    return mask


def of_rows(
    task: Task,
    ask: Callable[[Interactions, Attributes], NDArray[Any]],
    rows: Interactions,
    parts: Sequence[Interactions],
    abouts: Sequence[Attributes],
) -> NDArray[Any]:
    """Return what a task says of rows; of `parts` one by one where it is about their items, or of the user's own."""
    if task.attribute or task.part:
        return np.concatenate([ask(part, about) for part, about in zip(parts, abouts, strict=True)])
    return ask(rows, abouts[0])


def with_rows(
    cohort: Cohort, parts: Sequence[Interactions], abouts: Sequence[Attributes], pasts: Sequence[Histories]
) -> Cohort:
    """Return the cohort with the rows of `parts`, one for each client, as those to train on.

    `abouts` is what is known of each client's items, `pasts` what was liked before each of its rows.
    """
    rows, who = concatenate(parts), owners(parts)
    used = used_rows(cohort.tasks, rows, parts, abouts)
    labels = {
        task.name: (
            of_rows(task, task.rows, rows, parts, abouts)[used],
            of_rows(task, task.target, rows, parts, abouts)[used].astype(np.float32),
        )
        for task in cohort.tasks
    }
    masks = np.split(used, edges(np.array([len(part) for part in parts]))[1:-1]) if pasts else []
    rows, who = rows.take(used), who[used]
    user = cohort.starts["user"][who] + rows.user
    bound, full = cohort.bound[:0], cohort.crowded[:0]
    if cohort.taken is not None:
        items = len_of(cohort.datas)[who]
        bound = items - cohort.taken.known(user)
        full = bound <= 0
        bound = np.where(full, items, bound)
    seen = [past.at(np.flatnonzero(mask)) for past, mask in zip(pasts, masks, strict=True)]
    return replace(
        cohort,
        starts={**cohort.starts, "train": edges(np.bincount(who, minlength=len(parts)))},
        user=user,
        item=cohort.starts["item"][who] + rows.item,
        labels=labels,
        bound=bound,
        crowded=full,
        past=join_histories(seen, cohort.starts["item"]),
        weights={}
        if rows.weight is None
        else {name: relative(rows.weight, mask, who, len(parts)) for name, (mask, _) in labels.items()},
    )


def relative(weight: Floats, mask: Bools, owner: Ints, clients: int) -> Floats:
    """Return weights [N] over their mean among the rows of a `mask` of the same owner, of `clients`; so that mean is 1.

    A learning rate, and the weight of a task, keep their meaning whatever the units. Weights that are equal are 1 then.
    """
    total, count = (np.bincount(owner, weights=w, minlength=clients) for w in (weight * mask.astype(float), mask))
    scaled: Floats = (weight * (count / np.where(count, total, 1))[owner]).astype(np.float32)
    return scaled


def held_out(cohort: Cohort, seed: int) -> Cohort:
    """Return the cohort with its validation rows as those to train on.

    Of a task about items they are those whose item is in validation too. What is measured is of rows that weigh alike.
    """
    datas, sequence = cohort.datas, cohort.model.sequence
    abouts = [replace(data.attributes, train=data.attributes.validation) for data in datas]
    known = [latest(d, d.known("validation"), sequence.history, seed) for d in datas] if sequence.active else []
    pasts = [past.at(data.validation.user) for past, data in zip(known, datas, strict=True)] if known else []
    return with_rows(cohort, [replace(data.validation, weight=None) for data in datas], abouts, pasts)


def join_histories(pasts: Sequence[Histories], starts: Ints) -> Histories | None:
    """Return the histories of clients end to end, of flat items; None of nobody."""
    if not pasts:
        return None
    flat = [np.where(p.liked < 0, -1, p.liked + start) for p, start in zip(pasts, starts, strict=False)]
    edge = edges(np.array([len(part) for part in flat]))
    start, end = (
        np.concatenate([rows + at for rows, at in zip(column, edge, strict=False)])
        for column in ([p.start for p in pasts], [p.end for p in pasts])
    )
    return Histories(np.concatenate(flat), start, end, pasts[0].length)


def len_of(datas: Sequence[ClientData]) -> Ints:
    """Return the catalogue sizes [n]."""
    return np.array([len(data.items) for data in datas], dtype=np.int64)


def owners(parts: Sequence[Interactions]) -> Ints:
    """Return, for every row of the concatenated parts, the number of its part."""
    return np.repeat(np.arange(len(parts)), [len(part) for part in parts])


def negatives_of(datas: Sequence[ClientData], starts: Ints, protocol: Literal["train", "published"]) -> Negatives:
    """Return `excluded` of all clients over flat users; the number of items is the largest catalogue's."""
    user, item = [], []
    for start, data in zip(starts, datas, strict=False):
        if data.new is None:
            continue
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
    once = {id(part): part for part in ids}.values()  # one catalogue may be that of thousands
    if catalogue is None or all(np.array_equal(part, catalogue) for part in once):
        return None
    return np.searchsorted(catalogue, np.concatenate(ids))
