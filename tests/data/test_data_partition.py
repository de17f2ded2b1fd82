"""Partition, split and pool: nothing is lost, nothing is seen twice, nothing leaks from the future."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrec.data import ClientData, Clients, Dataset, Interactions, federation, pool
from fedrec.data.checks import canonical
from fedrec.data.split import Split
from fedrec.errors import UserError
from tests.builders import synthetic

Rows = list[tuple[int, int, int, int, bool]]  # platform, user, item, time, positive
Part = Literal["train", "validation", "test", "support"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
EVERY: tuple[Part, ...] = (*PARTS, "support")


def dataset(rows: Rows, platforms: int = 3) -> Dataset:
    """A dataset of (platform, user, item, time, positive)."""
    frame = pd.DataFrame(rows, columns=["platform", "user", "item", "time", "positive"])
    frame = frame.astype({"platform": "int64", "user": "int64", "item": "int64", "time": "int64", "positive": "bool"})
    frame["rating"] = np.float32(3)
    frame["like"] = frame["item"] % 2 == 0
    keys = pd.DataFrame({"key": [f"k{n}" for n in range(20)]})
    items = keys.assign(title=keys["key"], categories="")
    return Dataset("t", canonical(frame)[0], keys, items, tuple("abc"[:platforms]), ("like",))


# An item belongs to one platform here, so that no user meets it on two.
rows_strategy = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 19), st.integers(0, 4), st.booleans()), min_size=1, max_size=80
).map(lambda rows: [(item % 3, user, item, time, positive) for user, item, time, positive in rows])
split_strategy = st.sampled_from(get_args(Split))


def facts(client: ClientData, name: Part) -> list[tuple[int, int, int, bool, bool]]:
    part: Interactions = getattr(client, name)
    return list(
        zip(
            client.users[part.user].tolist(),
            client.items[part.item].tolist(),
            part.time.tolist(),
            part.positive.tolist(),
            part.labels["like"].tolist(),
            strict=True,
        )
    )


def federate(data: Dataset, partition: str, split: Split = "leave-one-out", seed: int = 0) -> Clients:
    count = min(2, data.interactions["user"].nunique()) if partition == "users" else None
    if split == "temporal" and not data.interactions["time"].any():
        data = replace(data, interactions=data.interactions.assign(time=1))
    return federation(data, clients=count, partition=partition, split=split, seed=seed)


@pytest.mark.parametrize("partition", ["platform", "users", "one-user"])
@given(rows=rows_strategy, split=split_strategy, seed=st.integers(0, 5))
def test_every_interaction_is_in_one_part_of_one_client(partition: str, rows: Rows, split: Split, seed: int) -> None:
    data = dataset(rows)
    clients = federate(data, partition, split, seed)
    found = Counter(fact[:2] for client in clients for name in EVERY for fact in facts(client, name))
    frame = data.interactions
    assert found == Counter(zip(frame["user"].tolist(), frame["item"].tolist(), strict=True))
    for client in clients:
        assert (np.diff(client.users) > 0).all()
        assert (np.diff(client.items) > 0).all()
    if partition != "platform":
        users = np.concatenate([client.users for client in clients])
        assert len(users) == len(set(users.tolist()))
        assert all(len(client.items) == len(data.items) for client in clients)


@given(
    rows=rows_strategy, seed=st.integers(0, 5), split=split_strategy, partition=st.sampled_from(["platform", "users"])
)
def test_the_order_of_the_rows_read_does_not_matter(rows: Rows, seed: int, split: Split, partition: str) -> None:
    unique = list({row[:3]: row for row in rows}.values())
    shuffled = [unique[i] for i in np.random.default_rng(seed).permutation(len(unique))]
    for a, b in zip(
        federate(dataset(unique), partition, split), federate(dataset(shuffled), partition, split), strict=True
    ):
        assert a.name == b.name
        assert all(facts(a, name) == facts(b, name) for name in EVERY)


@given(rows=rows_strategy, seed=st.integers(0, 5))
def test_leave_one_out_holds_out_the_last_positives(rows: Rows, seed: int) -> None:
    for client in federate(dataset(rows), "users", seed=seed):
        by_user: dict[str, dict[int, list[tuple[int, bool]]]] = {name: {} for name in PARTS}
        for name in PARTS:
            for user, _, time, positive, _ in facts(client, name):
                by_user[name].setdefault(user, []).append((time, positive))
        for user in client.users.tolist():
            train, validation, test = (by_user[name].get(user, []) for name in PARTS)
            positives = [sum(p for _, p in part) for part in (train, validation, test)]
            expected = {0: [0, 0, 0], 1: [1, 0, 0], 2: [1, 0, 1]}.get(n := sum(positives), [n - 2, 1, 1])
            assert positives == expected
            latest = [max((t for t, _ in part), default=-1) for part in (train, validation)]
            assert latest[0] <= min((t for t, _ in validation + test), default=9)
            assert latest[1] <= min((t for t, _ in test), default=9)


def test_leave_one_out_by_hand() -> None:
    # Positives at 2, 4 and 6: test from 6 on, validation from 4 until then, and what came before is training.
    rows = [(0, 0, t, t, t in (2, 4, 6)) for t in range(1, 8)]
    (client,) = federation(dataset(rows, platforms=1), clients=1)
    assert [client.items[getattr(client, name).item].tolist() for name in PARTS] == [[1, 2, 3], [4, 5], [6, 7]]


def test_users_with_one_interaction_are_kept_for_training_and_counted() -> None:
    (client,) = federation(dataset([(0, 0, 1, 5, True), (0, 1, 1, 5, True)], platforms=1), clients=1)
    assert (len(client.train), len(client.validation), len(client.test)) == (2, 0, 0)
    assert client.notes[0] == "2 users with a single interaction are kept for training only"
    assert client.notes[1].startswith("no test item")


@pytest.mark.parametrize("seed", [0, 1])
def test_ties_of_time_are_broken_by_the_seed_and_not_by_the_partition(seed: int) -> None:
    rows = [(item % 3, user, item, 7, True) for user in range(10) for item in range(0, 18, 3)]
    silos = federation(dataset(rows), clients=3, partition="users", seed=seed)
    single = federation(dataset(rows), clients=None, partition="one-user", seed=seed)
    other = federation(dataset(rows), clients=3, partition="users", seed=seed + 10)
    tests = [sorted(fact for client in clients for fact in facts(client, "test")) for clients in (silos, single, other)]
    assert tests[0] == tests[1]
    assert tests[0] != tests[2]
    assert len({item for _, item, *_ in tests[0]}) > 1  # not always the item of the highest number


@given(rows=rows_strategy)
def test_temporal_parts_follow_each_other(rows: Rows) -> None:
    for client in federate(dataset(rows), "platform", "temporal"):
        times = [[fact[2] for fact in facts(client, name)] for name in PARTS]
        for early, late in ((0, 1), (0, 2), (1, 2)):
            assert max(times[early], default=-1) < min(times[late], default=9)


def test_temporal_fractions_and_ties() -> None:
    rows = [(0, t % 4, t, t, True) for t in range(20)]
    (client,) = federation(dataset(rows, 1), clients=1, split="temporal", fractions=(0.2, 0.1))
    assert [sorted(fact[2] for fact in facts(client, name)) for name in PARTS] == [
        list(range(14)),
        [14, 15, 16, 17],
        [18, 19],
    ]
    tied = [(0, t % 4, t, min(t, 17), True) for t in range(20)]
    (client,) = federation(dataset(tied, 1), clients=1, split="temporal", fractions=(0.2, 0.1))
    assert len(client.test) == 0
    assert client.notes == ("no test item: this client is trained but not tested",)


def test_random_fractions_hold_and_do_not_depend_on_the_partition() -> None:
    data = synthetic(platforms=2, seed=0)
    a = federation(data, clients=2, split="random", fractions=(0.2, 0.1))
    n = len(data.interactions)
    # Binomial with n = 9600: three standard deviations are 0.012 at 0.2.
    assert sum(len(c.validation) for c in a) / n == pytest.approx(0.2, abs=0.013)
    assert sum(len(c.test) for c in a) / n == pytest.approx(0.1, abs=0.01)
    b = federation(data, clients=3, partition="users", split="random", fractions=(0.2, 0.1))
    tests = [
        {(c.users[u], c.items[i]) for c in f for u, i in zip(c.test.user, c.test.item, strict=True)} for f in (a, b)
    ]
    assert tests[0] == tests[1]


def test_auto_is_by_platform_if_there_are_several_else_five_silos() -> None:
    market = synthetic(platforms=3, seed=0)
    clients = federation(market, clients=None)
    assert [client.name for client in clients] == ["films", "shop", "news"]
    for client in clients:
        np.testing.assert_array_equal(client.items, np.flatnonzero(market.items[f"carried_{client.name}"]))
    silos = federation(synthetic(platforms=1, seed=0, users=52), clients=None)
    assert [client.name for client in silos] == [f"silo-{i}" for i in range(1, 6)]
    assert sorted(len(client.users) for client in silos) == [10, 10, 10, 11, 11]


def test_a_platform_without_a_carried_column_has_the_items_it_has_seen() -> None:
    clients = federation(dataset([(0, 0, 4, 1, True), (1, 0, 2, 1, True), (1, 1, 7, 1, False)], 2), clients=2)
    assert [client.items.tolist() for client in clients] == [[4], [2, 7]]


@given(users=st.integers(1, 40), silos=st.integers(1, 40), skew=st.floats(1e-4, 1e4), seed=st.integers(0, 99))
def test_skewed_silos_have_a_user_each(users: int, silos: int, skew: float, seed: int) -> None:
    frame = [(0, user, user, 1, True) for user in range(min(users, 20))]
    silos = min(silos, len(frame))
    clients = federation(dataset(frame, 1), clients=silos, partition="users", skew=skew, seed=seed)
    sizes = [len(client.users) for client in clients]
    assert sum(sizes) == len(frame)
    assert min(sizes) >= 1


def test_a_small_skew_parameter_gives_unequal_silos() -> None:
    data = synthetic(platforms=1, users=1000, impressions=1, seed=0)

    def spread(skew: float) -> int:
        return int(np.ptp([len(c.users) for c in federation(data, clients=5, skew=skew, partition="users")]))

    assert spread(0.1) > 300 > 50 > spread(1000)


def test_one_user_clients_are_named_by_key_and_the_first_n_stay_the_same() -> None:
    data = dataset([(0, user, item, item, True) for user in range(6) for item in range(3)], 1)
    all_users = federation(data, clients=None, partition="one-user")
    assert sorted(client.name for client in all_users) == [f"user-k{n}" for n in range(6)]
    assert all(client.name == f"user-k{client.users[0]}" for client in all_users)
    some = federation(data, clients=2, partition="one-user")
    assert [client.name for client in some] == [client.name for client in all_users[:2]]


def test_a_silo_merges_an_item_that_a_user_met_on_two_platforms() -> None:
    # Seen on one platform at 1, bought on the other at 9: one positive at 9, so it is the user's last and tests.
    data = dataset([(0, 0, 1, 1, False), (1, 0, 1, 9, True), (1, 0, 2, 5, True)], 2)
    (client,) = federation(data, clients=1, partition="users")
    assert facts(client, "train") == [(0, 2, 5, True, True)]
    assert facts(client, "test") == [(0, 1, 9, True, False)]
    assert client.notes == ("1 interactions were merged with the same user's and item's of another platform",)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"clients": 0}, "clients: must be at least 1, found 0"),
        ({"clients": -3}, "clients: must be at least 1, found -3"),
        ({"clients": 3}, "clients: the data has 2 platforms, one client each, found 3"),
        ({"clients": 241, "partition": "users"}, "clients: must be at most the number of users, 240, found 241"),
        ({"clients": 241, "partition": "one-user"}, "clients: must be at most the number of users, 240, found 241"),
        ({"partition": "user"}, "partition: .* found 'user'; did you mean 'users'"),
        ({"split": "tempral"}, "split: .*did you mean 'temporal'"),
        ({"partition": "users", "skew": 0.0}, "skew: .* found 0.0"),
        ({"partition": "users", "skew": float("nan")}, "skew: .* found nan"),
        ({"skew": 1.0}, "skew: only the partition 'users'.* found 'platform'"),
        ({"fractions": (0.5, 0.5)}, "fractions: .* found 0.5, 0.5"),
        ({"fractions": (-0.1, 0.5)}, "fractions: .* found -0.1, 0.5"),
    ],
)
def test_bad_requests_are_refused_in_one_line(options: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        federation(synthetic(platforms=2, seed=0), **{"clients": None, **options})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_temporal_split_without_times_is_refused() -> None:
    with pytest.raises(UserError, match="split: 'temporal' needs times"):
        federation(dataset([(0, 0, 0, 0, True)], 1), clients=1, split="temporal")


@given(rows=rows_strategy, split=split_strategy)
def test_a_pool_holds_what_its_members_hold(rows: Rows, split: Split) -> None:
    clients = federate(dataset(rows), "platform", split)
    pooled = pool(clients)
    assert pooled.name == "pooled"
    assert pooled.members == clients
    for name in EVERY:
        assert Counter(facts(pooled, name)) == Counter(fact for client in clients for fact in facts(client, name))


def test_a_pool_merges_users_and_trains_on_nothing_that_is_held_out() -> None:
    # User 0 is on both platforms. Item 1 is seen on a at 1 and bought on b at 3: one positive at 3. Item 2 is in a's
    # training and in b's test.
    a = [(0, 0, 1, 1, False), (0, 0, 2, 4, True), (0, 0, 5, 6, True), (0, 0, 6, 7, True)]
    b = [(1, 0, 1, 3, True), (1, 0, 7, 2, True), (1, 0, 8, 8, True), (1, 0, 2, 9, True)]
    clients = federation(dataset(a + b, 2), clients=2)
    pooled = pool(clients)
    assert pooled.users.tolist() == [0]
    assert [(item, time, good) for _, item, time, good, _ in facts(pooled, "train")] == [(7, 2, True), (1, 3, True)]
    assert sorted(item for _, item, *_ in facts(pooled, "test")) == [2, 6]
    assert pooled.notes == (
        "1 training interactions that another client holds out were dropped",
        "1 training interactions were merged with the same user's and item's of another client",
    )
