"""Train, validation and test: which part every row of all clients is in."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
from numpy.typing import NDArray

import fedrec.rng as seeds
from fedrec.data.types import COLUMNS, Bools, Interactions, Ints, Sliced

Split = Literal["leave-one-out", "temporal", "random", "new-items", "new-users"]
TRAIN, VALIDATION, TEST, SUPPORT = PARTS = 0, 1, 2, 3


def chance(user: Ints, item: Ints, seed: int) -> NDArray[np.float64]:
    """Return one number in [0, 1) per (user, item), global ids [n], that depends on nothing but them and the seed.

    SplitMix64's finaliser over the pair, so that neither the order of rows nor the partition moves an interaction
    from one part to another.
    """
    state = np.full(len(user), seeds.derive(seed, "split"), dtype=np.uint64)
    for word in (user, item):
        state = (state ^ word.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return np.asarray((state >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def order_of(rows: Interactions, seed: int, owner: Ints | None = None) -> Ints:
    """Return the positions [n] of rows (global ids) sorted by client (`owner` [n]), user, then time.

    Ties of time come in a seeded order that no file order moves.
    """
    keys = [rows.time, rows.user, *([] if owner is None else [owner])]
    if _ascending(keys):
        order = np.arange(len(rows))
    elif owner is not None and _ascending(keys[:-1]):  # as the rows of one platform are
        order = np.argsort(owner, kind="stable")
    else:
        order = np.lexsort(keys)
    equal = np.logical_and.reduce([key[order[1:]] == key[order[:-1]] for key in keys])  # to the row before
    if not equal.any():
        return order
    tied = np.append(equal, False) | np.append(False, equal)
    group, among = np.append(0, np.cumsum(~equal))[tied], order[tied]
    order[tied] = among[np.lexsort((chance(rows.user[among], rows.item[among], seed), group))]
    return order


def _ascending(keys: Sequence[Ints]) -> bool:
    """Return whether rows are sorted by keys [n], the last one first."""
    so = keys[0][1:] >= keys[0][:-1]
    for key in keys[1:]:
        so = (key[1:] > key[:-1]) | ((key[1:] == key[:-1]) & so)
    return bool(so.all())


@dataclass(frozen=True)
class Runs:
    """Rows that are sorted by client and user: each run is all that one client has of one user."""

    start: Ints  # [runs] the first row
    client: Ints  # [runs]
    of: Ints  # [n] the run of every row

    @staticmethod
    def find(user: Ints, owner: Ints) -> "Runs":
        """Return the runs of rows of some users [n] of the clients `owner` [n]."""
        first = np.ones(len(user), np.bool_)
        first[1:] = (user[1:] != user[:-1]) | (owner[1:] != owner[:-1])
        start = np.flatnonzero(first)
        return Runs(start, owner[start], np.cumsum(first) - 1)


def divide(
    rows: Interactions, owner: Ints, runs: Runs, split: Split, fractions: tuple[float, float], seed: int
) -> tuple[NDArray[np.int8], Bools]:
    """Return the part (TRAIN, VALIDATION, TEST or SUPPORT) of every row [n], and the mask of the runs that stand apart.

    `rows` have global ids and are in the order of `order_of`, of the clients `owner` [n]; `fractions` are those of
    validation and test.

    leave-one-out: test from a user's last positive onward, validation from the positive before it; a user with two
    positives has no validation, a user with fewer stays in training, and apart. temporal: by the client's quantiles of
    time, equal times on the earlier side. random: every interaction on its own. new-items: every item with all its
    interactions (`new_items`). new-users: the fractions are of users, chosen by user and seed alone, and nothing of
    theirs is trained on; a new user of the validation, or of the test, is asked from the last positive onward, and what
    comes before is support, known by then. New users stand apart.
    """
    apart = np.zeros(len(runs.start), np.bool_)
    if split == "leave-one-out":
        return _leave_one_out(rows, runs)
    if split == "new-users":
        return _new_users(rows, runs, fractions, seed)
    if split == "temporal":
        return _temporal(rows.time, owner, fractions), apart
    if split == "new-items":
        at_validation, at_test = new_items(rows.item, fractions, seed)
    else:
        validation, test = fractions
        # A stream of its own: the order of ties must not decide the part.
        u = chance(rows.user, rows.item, seeds.derive(seed, "random"))
        at_validation, at_test = (u >= test) & (u < validation + test), u < test
    return (VALIDATION * at_validation + TEST * at_test).astype(np.int8), apart


def new_items(items: Ints, fractions: tuple[float, float], seed: int) -> tuple[Bools, Bools]:
    """Return the masks [n] of the global ids `items` that are new at the validation, and at the test.

    Each is with the probability of its fraction, by its id and the seed alone, so that no client can have met what is
    new to another.
    """
    validation, test = fractions
    u = chance(np.zeros_like(items), items, seeds.derive(seed, "new items"))
    return (u >= test) & (u < validation + test), u < test


def _temporal(time: Ints, owner: Ints, fractions: tuple[float, float]) -> NDArray[np.int8]:
    validation, test = fractions
    part = np.zeros(len(time), np.int8)
    if not len(time):
        return part
    times, count = time[np.lexsort((time, owner))], np.bincount(owner)
    first = np.cumsum(count) - count
    sizes, size = np.unique(count, return_inverse=True)
    for share, name in ((validation + test, VALIDATION), (test, TEST)):
        last = np.array([max(ceil(round((1 - share) * n, 6)) - 1, 0) for n in sizes.tolist()])
        latest = times[np.minimum(first + last[size], len(times) - 1)]  # of a client without rows nobody asks
        part[time > latest[owner]] = name
    return part


def _leave_one_out(rows: Interactions, runs: Runs) -> tuple[NDArray[np.int8], Bools]:
    part = np.zeros(len(rows), dtype=np.int8)
    total, left = _positives(rows, runs)
    part[(left == 0) & (total[runs.of] >= 2)] = TEST
    part[(left == 1) & (total[runs.of] >= 3)] = VALIDATION
    return part, total < 2


def _new_users(
    rows: Interactions, runs: Runs, fractions: tuple[float, float], seed: int
) -> tuple[NDArray[np.int8], Bools]:
    total, left = _positives(rows, runs)
    ids = rows.user[runs.start]
    u = chance(ids, np.zeros_like(ids), seeds.derive(seed, "new-users"))
    validation, test = fractions
    new = u < validation + test
    part = np.where(new[runs.of], SUPPORT, TRAIN).astype(np.int8)
    asked = new[runs.of] & (left == 0) & (total[runs.of] >= 1)
    part[asked] = np.where(u < test, TEST, VALIDATION)[runs.of][asked]
    return part, new


def _positives(rows: Interactions, runs: Runs) -> tuple[Ints, Ints]:
    """Return the positives of each run, and those of its run that come after a row [n]."""
    total = np.bincount(runs.of, weights=rows.positive, minlength=len(runs.start)).astype(np.int64)
    seen = np.cumsum(rows.positive)  # of all runs, up to and including the row
    return total, np.cumsum(total)[runs.of] - seen


def concatenate(parts: Sequence[Interactions]) -> Interactions:
    """Return the rows of all parts, one after the other, with the labels that all have; without a weight it is 1."""
    lying = Sliced.together(parts)
    if lying is not None:
        return lying
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
    labels = [name for name in parts[0].labels if all(name in part.labels for part in parts)]
    values = {name: np.concatenate([part.labels[name] for part in parts]) for name in labels}
    weight = None
    if any(part.weight is not None for part in parts):
        each = [np.ones(len(part), np.float32) if part.weight is None else part.weight for part in parts]
        weight = np.concatenate(each)
    return Interactions(**columns, labels=values, weight=weight)
