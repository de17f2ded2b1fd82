"""Filters: the k-core is the largest part that is one, by a slow reference; counts, windows, and what is refused."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.data.assembly import assemble
from fedrec.data.filters import core
from fedrec.data.reading import Filters, Raw, Reading
from fedrec.data.types import Dataset
from fedrec.errors import UserError

PAIRS = st.sets(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=9)


def holds(pairs: set[tuple[int, int]], least: tuple[int, int]) -> bool:
    return all(
        sum(pair[side] == key for pair in pairs) >= least[side] for side in (0, 1) for key in {p[side] for p in pairs}
    )


@settings(max_examples=60)
@given(PAIRS, st.integers(1, 3), st.integers(1, 3))
def test_the_core_is_the_largest_part_with_its_property(pairs: set[tuple[int, int]], a: int, b: int) -> None:
    rows, least = sorted(pairs), (a, b)
    user, item = (np.asarray(column, np.int32) for column in zip(*rows, strict=True))
    kept = core(user, item, least, np.ones(len(rows), np.bool_))
    parts = (set(part) for size in range(len(rows), -1, -1) for part in combinations(rows, size))
    largest = next(part for part in parts if holds(part, least))
    assert {row for row, one in zip(rows, kept, strict=True) if one} == largest


def built(rows: list[tuple[str, str, int]], timed: bool = True, **fields: Any) -> Dataset:
    user, item, time = (list(column) for column in zip(*rows, strict=True))
    roles = {"user": "u", "item": "i"} | ({"time": "t"} if timed else {})
    raw = Raw("t.csv", "", {"u": np.array(user), "i": np.array(item), "t": np.array(time)}, roles)
    return assemble("t", [raw], Reading(), Filters(**fields))


# a: x y z, b: x y, c: x, d: x x again
ROWS = [("a", "x", 10), ("a", "y", 20), ("a", "z", 30), ("b", "x", 40), ("b", "y", 50), ("c", "x", 60), ("d", "x", 70)]
ROWS += [("d", "x", 80)]


@pytest.mark.parametrize(
    ("fields", "users", "items", "note"),
    [
        ({"core": 2}, "ab", "xy", "filter, 2-core: 4 interactions of 2 users and 2 items are left of 7 interac"),
        ({"user_least": 3}, "a", "xyz", "at least 3 of a user and 0 of an item: 3 interactions of 1 users and 3 items"),
        ({"item_least": 2}, "abcd", "xy", "at least 0 of a user and 2 of an item: 6 interactions"),
        ({"user_most": 2}, "bcd", "xy", "at most 2 of a user: 4 interactions of 3 users and 2 items are left of 7 "),
        ({"item_most": 3}, "ab", "yz", "at most 3 of an item: 3 interactions of 2 users and 2 items"),
        ({"since": "20", "until": "60"}, "ab", "xyz", "from 1970-01-01 00:00:20 until 1970-01-01 00:01:00: 4 rows"),
        ({"until": "1970-01-01T00:00:40Z"}, "a", "xyz", "3 rows of 1 users and 3 items are left of 8 rows of 4 users"),
    ],
)  # fmt: skip
def test_filters_leave_what_they_say_and_count_it(fields: dict[str, Any], users: str, items: str, note: str) -> None:
    data = built(ROWS, **fields)
    assert "".join(data.users["key"]) == users and "".join(data.items["key"]) == items
    (said,) = [one for one in data.notes if one.startswith("filter, ")]
    assert note in said
    assert set(data.interactions["user"]) == set(range(len(users)))
    assert set(data.interactions["item"]) == set(range(len(items)))


def test_a_core_of_one_and_no_filter_leave_all() -> None:
    assert built(ROWS, core=1).interactions.equals(built(ROWS).interactions)


def test_a_window_is_of_rows_and_the_last_that_counts_is_the_time() -> None:
    assert built(ROWS, until="80").interactions["time"].max() == 70


@settings(max_examples=40)
@given(PAIRS, st.integers(0, 3), st.integers(0, 4), st.integers(0, 4))
def test_what_is_left_has_all_that_was_asked_for(pairs: set[tuple[int, int]], k: int, users: int, items: int) -> None:
    rows = [(f"u{u}", f"i{i}", n) for n, (u, i) in enumerate(sorted(pairs))]
    try:
        data = built(rows, core=k, user_most=users, item_most=items, user_least=min(2, k))
    except UserError as error:
        assert "filters: must leave a row, found none of" in str(error)
        return
    for kind, most in (("user", users), ("item", items)):
        number = np.bincount(data.interactions[kind])
        assert (number >= k).all() and (not most or (number <= most).all())


def test_a_platform_of_which_nothing_is_left_is_no_client() -> None:
    columns = {"u": np.array([*"aabbc"]), "i": np.array([*"xyxyx"]), "p": np.array([*"nnnns"])}
    raw = Raw("t.csv", "", columns, {"user": "u", "item": "i", "platform": "p"})
    data = assemble("t", [raw], Reading(), Filters(core=2))
    assert data.platforms == ("n",) and "nothing is left of s: no client" in data.notes


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"core": 9}, "filters: must leave a row, found none of 7 interactions of 4 users and 3 items with 9-core"),
        ({"since": "2020-01-01"}, "filters: must leave a row, found none of 8 rows .* time from 2020-01-01"),
        ({"since": "soon"}, "filters.since: must be a number of seconds or an ISO date, found 'soon'"),
        ({"since": "9", "until": "9"}, "filters.until: must be later than filters.since, found '9' and '9'"),
    ],
)
def test_a_filter_that_leaves_nothing_or_says_nothing_is_refused(fields: dict[str, Any], rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        built(ROWS, **fields)


def test_a_window_needs_times() -> None:
    with pytest.raises(UserError, match=r"filters.until: needs the times of all rows"):
        built(ROWS, timed=False, until="9")
