"""Columns of all clients hold what the clients do one by one: a reference that makes one after the other says what.

The functions with the prefix `each_` are that reference: they know one client, and sort, merge and divide it by itself.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from math import ceil
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import fedrec.rng as seeds
from fedrec.data import ClientData, Dataset, Interactions, federation, pool
from fedrec.data.attributes import attributes_of
from fedrec.data.checks import canonical, merged
from fedrec.data.partition import _owners, add_public, volunteers_of
from fedrec.data.split import SUPPORT, TEST, TRAIN, VALIDATION, Split, chance, concatenate, new_items, order_of
from fedrec.data.store import Federation
from fedrec.data.types import Attributes, Ints
from fedrec.experiment.holdings import forget, left


def each_client(
    name: str, rows: Interactions, items: Ints, split: Split, fractions: tuple[float, float], seed: int
) -> ClientData:
    notes: tuple[str, ...] = ()
    rows = each_ordered(rows, seed)
    # A silo holds a user's interactions of all platforms: the same item twice would be both trained on and tested.
    once = merged(rows, rows.user * (int(items[-1]) + 1 if len(items) else 1) + rows.item)
    if len(once) < len(rows):
        notes += (
            f"{len(rows) - len(once)} interactions were merged with the same user's and item's of another platform",
        )
        rows = each_ordered(once, seed)
    part, counted = each_divided(rows, split, fractions, seed)
    notes += counted
    if not rows.positive[part == TEST].any():
        notes += ("no test item: this client is trained but not tested",)
    users, user = np.unique(rows.user, return_inverse=True)
    local = replace(rows, user=user, item=np.searchsorted(items, rows.item))
    train, validation, test, support = (local.take(part == which) for which in (TRAIN, VALIDATION, TEST, SUPPORT))
    new = None
    if split == "new-items":
        new = new_items(items, fractions, seed)
        count, tested = (int(mask.sum()) for mask in new)
        notes += (f"{count} of {len(items)} items are new at the validation, {tested} at the test, ranked among them",)
    return ClientData(name, users, items, train, validation, test, notes, new=new, support=support)


def each_ordered(rows: Interactions, seed: int) -> Interactions:
    return rows.take(order_of(rows, seed))


def each_divided(
    rows: Interactions, split: Split, fractions: tuple[float, float], seed: int
) -> tuple[NDArray[np.int8], tuple[str, ...]]:
    """Return the part (TRAIN, VALIDATION, TEST or SUPPORT) of every row [n] of one client, and notes."""
    if split == "new-items":
        at_validation, at_test = new_items(rows.item, fractions, seed)
        return (VALIDATION * at_validation + TEST * at_test).astype(np.int8), ()
    if split == "leave-one-out":
        return each_leave_one_out(rows)
    if split == "new-users":
        return each_new_users(rows, fractions, seed)
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


def each_leave_one_out(rows: Interactions) -> tuple[NDArray[np.int8], tuple[str, ...]]:
    part = np.zeros(len(rows), dtype=np.int8)
    user, total, left = each_positives(rows)
    part[(left == 0) & (total[user] >= 2)] = TEST
    part[(left == 1) & (total[user] >= 3)] = VALIDATION
    few = int((total < 2).sum())
    if not few:
        return part, ()
    what = "a single interaction" if rows.positive.all() else "fewer than two positives"
    return part, (f"{few} user{'s' * (few > 1)} with {what} {'are' if few > 1 else 'is'} kept for training only",)


def each_new_users(
    rows: Interactions, fractions: tuple[float, float], seed: int
) -> tuple[NDArray[np.int8], tuple[str, ...]]:
    user, total, left = each_positives(rows)
    ids = np.unique(rows.user)
    u = chance(ids, np.zeros_like(ids), seeds.derive(seed, "new-users"))
    validation, test = fractions
    new = u < validation + test
    part = np.where(new[user], SUPPORT, TRAIN).astype(np.int8)
    asked = new[user] & (left == 0) & (total[user] >= 1)
    part[asked] = np.where(u < test, TEST, VALIDATION)[user][asked]
    return part, (f"{int(new.sum())} of {len(ids)} users are new: nothing of theirs is trained on",)


def each_positives(rows: Interactions) -> tuple[Ints, Ints, Ints]:
    """Return every row's user [n], counted from 0, the positives of each user, and those that come after a row [n]."""
    _, start, user = np.unique(rows.user, return_index=True, return_inverse=True)
    total = np.bincount(user, weights=rows.positive).astype(np.int64)
    seen = np.cumsum(rows.positive)
    seen = seen - (seen - rows.positive)[start][user]  # positives of the user up to and including this row
    return user, total, total[user] - seen


def each_pooled(clients: Sequence[ClientData]) -> ClientData:
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
        attributes=each_of_all(clients),
        new=None if any(client.new is None for client in clients) else (masks[0], masks[1]),
        support=concatenate([client.support for client in placed]),
    )


def each_of_all(clients: Sequence[ClientData]) -> Attributes:
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


def each_alone(data: Dataset, how: dict[str, Any]) -> list[ClientData]:
    """Return the clients, one made after the other."""
    split, fractions, seed, volunteers = (how[name] for name in ("split", "fractions", "seed", "volunteers"))
    private, frame = data, data.interactions
    if volunteers:
        gone = np.isin(frame["user"].to_numpy(), volunteers_of(data, volunteers, seed))
        private = replace(data, interactions=frame[~gone])
    names, owner = _owners(private, how["clients"], how["partition"], how["skew"], seed)
    rows, known = Interactions.of(private.interactions, private.labels), attributes_of(data, fractions, seed)
    made = []
    for number, name in enumerate(names):
        items = np.arange(len(data.items))
        if how["partition"] == "platform" and f"carried_{name}" in data.items:
            items = np.flatnonzero(data.items[f"carried_{name}"].to_numpy())
        elif how["partition"] == "platform":
            items = np.unique(frame["item"].to_numpy()[frame["platform"].to_numpy() == number])
        one = each_client(name, rows.take(owner == number), items, split, fractions, seed)
        made.append(replace(one, attributes=known.take(items)))
    if not volunteers:
        return made
    chosen = np.isin(frame["user"].to_numpy(), volunteers_of(data, volunteers, seed))
    public = Interactions.of(frame[chosen], data.labels)
    known_of_all = each_client("volunteers", public, np.arange(len(data.items)), split, fractions, seed)
    return [add_public(one, known_of_all) for one in made]


def assert_same(found: Any, expected: Any) -> None:
    """Fields are equal, arrays of one type and to the bit."""
    assert isinstance(found, type(expected))
    for field in fields(found):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "members":
            for a, b in zip(one, other, strict=True):
                assert_same(a, b)
        elif isinstance(one, Interactions | Attributes):
            assert_same(one, other)
        elif isinstance(one, dict):
            assert one.keys() == other.keys()
            for name in one:
                assert_equal(one[name], other[name])
        elif isinstance(one, np.ndarray):
            assert_equal(one, other)
        elif field.name == "new" and one is not None:
            for a, b in zip(one, other, strict=True):
                assert_equal(a, b)
        else:
            assert one == other, field.name


def assert_equal(one: NDArray[Any], other: NDArray[Any]) -> None:
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)


def dataset(rows: list[tuple[int, int, int, int, bool, int]], carried: bool) -> Dataset:
    """A dataset of (platform, user, item, time, positive, rating), with attributes; one platform carries all of it."""
    frame = pd.DataFrame(rows, columns=["platform", "user", "item", "time", "positive", "rating"])
    frame = frame.astype(dict.fromkeys(("platform", "user", "item", "time"), "int64") | {"positive": "bool"})
    frame["rating"] = np.where(frame["rating"] == 0, np.nan, frame["rating"]).astype(np.float32)
    frame["like"] = frame["item"] % 2 == 0
    keys = [f"k{n}" for n in range(15)]
    items = pd.DataFrame({"key": keys, "title": keys, "categories": ["a|b", "", "b"] * 5, "price": range(1, 16)})
    if carried:
        items["carried_b"] = True
    columns = ["user", "item", "platform", "time", "rating", "positive", "like"]
    return Dataset("t", canonical(frame[columns])[0], pd.DataFrame({"key": keys}), items, tuple("abc"), ("like",))


ROWS = st.lists(
    st.tuples(*(st.integers(0, most) for most in (2, 9, 9, 4)), st.booleans(), st.integers(0, 5)),
    min_size=1,
    max_size=70,
)
HOW = st.fixed_dictionaries(
    {
        "clients": st.none() | st.integers(1, 3),
        "partition": st.sampled_from(["platform", "users", "one-user"]),
        "skew": st.none() | st.just(0.5),
        "split": st.sampled_from(get_args(Split)),
        "fractions": st.sampled_from([(0.2, 0.2), (0.1, 0.3), (0.35, 0.15)]),
        "seed": st.integers(0, 3),
        "volunteers": st.sampled_from([0, 0, 1, 2]),
    }
)


def possible(data: Dataset, how: dict[str, Any]) -> dict[str, Any]:
    """Return settings that the data can be divided by."""
    users, partition = data.interactions["user"].nunique(), how["partition"]
    volunteers, asked = min(how["volunteers"], users - 1), how["clients"] or (3 if partition == "users" else None)
    clients = None if partition == "platform" else asked and min(asked, users - volunteers)
    return {**how, "volunteers": volunteers, "clients": clients, "skew": how["skew"] if partition == "users" else None}


@settings(max_examples=120)
@given(ROWS, HOW, st.booleans(), st.booleans())
def test_columns_hold_what_each_client_would_make_of_its_own_rows(
    rows: Any, how: dict[str, Any], carried: bool, several: bool
) -> None:
    data = dataset([(row[0] * several, *row[1:3], row[3] + 1, *row[4:]) for row in rows], carried)
    how = possible(data, how)
    clients, expected = federation(data, **how), each_alone(data, how)
    assert list(clients.names) == [one.name for one in expected]
    for found, one in zip(clients, expected, strict=True):
        assert_same(found, one)
    assert_same(pool(clients), each_pooled(expected))
    assert clients.user_counts().tolist() == [len(one.users) for one in expected]
    assert clients.item_counts().tolist() == [len(one.items) for one in expected]
    assert clients.row_counts("test").tolist() == [len(one.test) for one in expected]
    assert clients.users_of_all().tolist() == [user for one in expected for user in one.users]


@settings(max_examples=40)
@given(ROWS, HOW, st.booleans(), st.data())
def test_who_leaves_the_columns_leaves_them_as_from_each_client(
    rows: Any, how: dict[str, Any], carried: bool, drawn: st.DataObject
) -> None:
    data = dataset([(*row[:3], row[3] + 1, *row[4:]) for row in rows], carried)
    clients, keys = federation(data, **possible(data, how)), data.users["key"].to_numpy(object)
    without = drawn.draw(st.sets(st.sampled_from(list(clients.names)), max_size=len(clients) - 1))
    lost = {name: frozenset(drawn.draw(st.sets(st.sampled_from(keys.tolist())))) for name in clients.names[:2]}
    rest = left(clients, tuple(without), lost, keys)
    expected = [forget(one, lost, keys) for one in clients if one.name not in without]
    assert list(rest.names) == [one.name for one in expected]
    for found, one in zip(rest, expected, strict=True):
        assert_same(found, one)
    assert_same(pool(rest), each_pooled(expected))


def test_a_client_that_somebody_holds_is_the_same_whenever_it_is_asked_for() -> None:
    rows = [(0, user, item, item + 1, True, 3) for user in range(10) for item in range(5)]
    clients = federation(dataset(rows, False), clients=None, partition="one-user")
    held = clients[3]
    assert clients[3] is held and clients[-7] is held and next(one for one in clients if one.name == held.name) is held
    assert [one.name for one in clients[2:5]] == list(clients.names[2:5])
    with pytest.raises(IndexError):
        clients[10]


def test_clients_are_views_of_the_columns_and_share_what_is_public() -> None:
    rows = [(0, user, item, item + 1, True, 3) for user in range(10) for item in range(5)]
    clients = federation(dataset(rows, False), clients=None, partition="one-user")
    one, other = clients[0], clients[1]
    assert isinstance(clients, Federation)
    for name in ("user", "item", "time", "rating", "positive"):
        assert np.shares_memory(getattr(one.train, name), getattr(clients.columns, name))
    assert one.items is other.items and one.attributes is other.attributes
