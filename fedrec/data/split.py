"""Train, validation and test of one client, and clients pooled into one."""

from collections.abc import Sequence
from math import ceil
from typing import Literal

import numpy as np
from numpy.typing import NDArray

import fedrec.rng as seeds
from fedrec.data.checks import merged
from fedrec.data.types import COLUMNS, Attributes, Bools, ClientData, Interactions, Ints

Split = Literal["leave-one-out", "temporal", "random", "new-items", "new-users"]
TRAIN, VALIDATION, TEST, SUPPORT = 0, 1, 2, 3


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


def ordered(rows: Interactions, seed: int) -> Interactions:
    """Return rows (global ids) sorted by user, then time; ties of time in a seeded order that no file order moves."""
    return rows.take(order_of(rows, seed))


def order_of(rows: Interactions, seed: int) -> Ints:
    """Return the positions [n] of rows (global ids) in the order of `ordered`."""
    return np.lexsort((chance(rows.user, rows.item, seed), rows.time, rows.user))


def divide(
    rows: Interactions, split: Split, fractions: tuple[float, float], seed: int
) -> tuple[NDArray[np.int8], tuple[str, ...]]:
    """Return the part (TRAIN, VALIDATION, TEST or SUPPORT) of every row [n] of one client, and notes.

    `rows` are `ordered` and have global ids; `fractions` are those of validation and test.

    leave-one-out: test from a user's last positive onward, validation from the positive before it; a user with two
    positives has no validation, a user with fewer stays in training. temporal: by the client's quantiles of time,
    equal times on the earlier side. random: every interaction on its own. new-items: every item with all its
    interactions (`new_items`). new-users: the fractions are of users, chosen by user and seed alone, and nothing of
    theirs is trained on; a new user of the validation, or of the test, is asked from the last positive onward, and what
    comes before is support, known by then.
    """
    if split == "new-items":
        at_validation, at_test = new_items(rows.item, fractions, seed)
        return (VALIDATION * at_validation + TEST * at_test).astype(np.int8), ()
    if split == "leave-one-out":
        return _leave_one_out(rows)
    if split == "new-users":
        return _new_users(rows, fractions, seed)
    validation, test = fractions
    part = np.zeros(len(rows), dtype=np.int8)
    if split == "random":
        # A stream of its own: the order of ties must not decide the part.
        u = chance(rows.user, rows.item, seeds.derive(seed, "random"))
        part[u < validation + test] = VALIDATION
        part[u < test] = TEST
    elif len(rows):
        times = np.sort(rows.time)
        for share, name in ((validation + test, VALIDATION), (test, TEST)):
            last = ceil(round((1 - share) * len(rows), 6)) - 1
            part[rows.time > times[max(last, 0)]] = name
    return part, ()


def new_items(items: Ints, fractions: tuple[float, float], seed: int) -> tuple[Bools, Bools]:
    """Return the masks [n] of the global ids `items` that are new at the validation, and at the test.

    Each is with the probability of its fraction, by its id and the seed alone, so that no client can have met what is
    new to another.
    """
    validation, test = fractions
    u = chance(np.zeros_like(items), items, seeds.derive(seed, "new items"))
    return (u >= test) & (u < validation + test), u < test


def _leave_one_out(rows: Interactions) -> tuple[NDArray[np.int8], tuple[str, ...]]:
    part = np.zeros(len(rows), dtype=np.int8)
    user, total, left = _positives(rows)
    part[(left == 0) & (total[user] >= 2)] = TEST
    part[(left == 1) & (total[user] >= 3)] = VALIDATION
    few = int((total < 2).sum())
    if not few:
        return part, ()
    what = "a single interaction" if rows.positive.all() else "fewer than two positives"
    return part, (f"{few} user{'s' * (few > 1)} with {what} {'are' if few > 1 else 'is'} kept for training only",)


def _new_users(
    rows: Interactions, fractions: tuple[float, float], seed: int
) -> tuple[NDArray[np.int8], tuple[str, ...]]:
    user, total, left = _positives(rows)
    ids = np.unique(rows.user)
    u = chance(ids, np.zeros_like(ids), seeds.derive(seed, "new-users"))
    validation, test = fractions
    new = u < validation + test
    part = np.where(new[user], SUPPORT, TRAIN).astype(np.int8)
    asked = new[user] & (left == 0) & (total[user] >= 1)
    part[asked] = np.where(u < test, TEST, VALIDATION)[user][asked]
    return part, (f"{int(new.sum())} of {len(ids)} users are new: nothing of theirs is trained on",)


def _positives(rows: Interactions) -> tuple[Ints, Ints, Ints]:
    """Return every row's user [n], counted from 0, the positives of each user, and those that come after a row [n]."""
    _, start, user = np.unique(rows.user, return_index=True, return_inverse=True)
    total = np.bincount(user, weights=rows.positive).astype(np.int64)
    seen = np.cumsum(rows.positive)
    seen = seen - (seen - rows.positive)[start][user]  # positives of the user up to and including this row
    return user, total, total[user] - seen


def pool(clients: Sequence[ClientData]) -> ClientData:
    """Return one client `pooled` over the union of users and of items: the data of the pooled upper bound.

    The same global id on two clients is one user. A (user, item) that two clients hold in training is one row, merged
    (`checks.merged`); one that any client holds out is not trained on. `members` are the clients.
    """
    users = np.unique(np.concatenate([client.users for client in clients]))
    items = np.unique(np.concatenate([client.items for client in clients]))
    placed = [client.among(users, items) for client in clients]

    def pair(rows: Interactions) -> Ints:
        return rows.user * len(items) + rows.item

    train = concatenate([client.train for client in placed])
    validation = concatenate([client.validation for client in placed])
    test = concatenate([client.test for client in placed])
    kept = train.take(~np.isin(pair(train), np.concatenate([pair(validation), pair(test)])))
    once = merged(kept, pair(kept))
    once = once.take(np.lexsort((once.item, once.time, once.user)))
    masks = np.zeros((2, len(items)), dtype=np.bool_)  # of what is new at the validation, and at the test
    for client in clients:
        if client.new is not None:
            masks[:, np.searchsorted(items, client.items)] |= client.new
    dropped, repeats, notes = len(train) - len(kept), len(kept) - len(once), []
    if dropped:
        notes.append(f"{dropped} training interactions that another client holds out were dropped")
    if repeats:
        notes.append(f"{repeats} training interactions were merged with the same user's and item's of another client")
    return ClientData(
        "pooled",
        users,
        items,
        once,
        validation,
        test,
        notes=tuple(notes),
        members=tuple(clients),
        attributes=_of_all(clients),
        new=None if any(client.new is None for client in clients) else (masks[0], masks[1]),
        support=concatenate([client.support for client in placed]),
    )


def _of_all(clients: Sequence[ClientData]) -> Attributes:
    """Return what is public of the union of the clients' items, ascending; all clients know the same of an item."""
    index = np.unique(np.concatenate([client.items for client in clients]), return_index=True)[1]
    parts = [client.attributes for client in clients]
    joined = Attributes(
        {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values},
        np.concatenate([part.train for part in parts]),
        np.concatenate([part.validation for part in parts]),
        np.concatenate([part.test for part in parts]),
        parts[0].deviation,
    )
    return joined.take(index) if len(joined.train) else joined


def concatenate(parts: Sequence[Interactions]) -> Interactions:
    """Return the rows of all parts, one after the other, with the labels that all have."""
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
    labels = [name for name in parts[0].labels if all(name in part.labels for part in parts)]
    values = {name: np.concatenate([part.labels[name] for part in parts]) for name in labels}
    return Interactions(**columns, labels=values)
