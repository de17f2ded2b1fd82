"""What a profile counts, and what it finds suspicious, on frames that one can count by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedrec.data import Dataset, from_frame
from fedrec.report.profile import FEW, Profile, counted, overlap, profile
from fedrec.report.profile_suspicions import suspicions
from fedrec.report.profile_words import BY_USERS, DENSE, share, sharing, span
from tests.builders import synthetic

NOW = 1_700_000_000  # 2023-11-14
THEN = 1_600_000_000


def table(columns: str = "", **values: Any) -> Dataset:
    """Return the dataset of columns."""
    return from_frame(pd.DataFrame(values), columns)


SMALL: dict[str, Any] = {
    "user": ["ann", "ann", "ann", "bob", "bob", "ann", "cid", "cid"],
    "item": ["x", "y", "x", "x", "z", "p", "p", "q"],
    "platform": ["films", "films", "films", "films", "films", "shop", "shop", "shop"],
    "rating": [1, 2, 5, 4, 3, 7, 8, 9],
    "time": [THEN, THEN + 1, THEN + 2, THEN, THEN + 86_400, 0, THEN, THEN + 9],
    "title": ["X", None, "X", "X", None, "P", "P", None],
    "category": ["a", "b", "a", "a", None, "a", "a", "b"],
}


def small() -> Profile:
    """Ann meets x twice in films: 8 rows are 7 interactions of 3 users with 5 items. Of Bob and z is no rating."""
    data = table(**SMALL)
    rating = data.interactions["rating"].where(data.interactions["rating"] != 3)
    return profile(replace(data, interactions=data.interactions.assign(rating=rating)))


def test_sizes_density_tails_and_times() -> None:
    p = small()
    assert (p.read, p.whole.rows, p.whole.users, p.whole.items) == (8, 7, 3, 5)
    films, shop = p.platforms
    assert (films.name, films.rows, films.users, films.items, films.met) == ("films", 4, 2, 3, 3)
    assert films.density == 4 / 6 and shop.density == 3 / 4 and p.whole.density == 7 / 15
    # Ann has 2 + 1 interactions, Bob 2 and Cid 2; on each platform nobody has 3.
    assert p.whole.few == {3: 2, 5: 3, 10: 3} and films.few == {3: 2, 5: 2, 10: 2} and tuple(films.few) == FEW
    # One item is a hundredth of 5, rounded up to one: x, or p, of 2 of 7.
    assert p.whole.top == 2 / 7 and films.top == 2 / 4
    assert p.whole.times == (THEN, THEN + 86_400) and shop.times == (THEN, THEN + 9)


def test_ratings_tasks_and_what_is_missing() -> None:
    p = small()
    films, shop = p.platforms
    assert films.ratings is not None and shop.ratings is not None
    # The last rating of a repeated pair counts: 2, 5, 4.
    assert (films.ratings.known, films.ratings.low, films.ratings.high) == (3, 2, 5)
    assert films.ratings.mean == pytest.approx(11 / 3)
    assert (shop.ratings.low, shop.ratings.mean, shop.ratings.high) == (7, 8, 9)
    # `like` never varies in the shop, where every rating reaches 4; of z no category is known.
    assert films.tasks == {"rank": 4, "rating": 3, "like": 4, "category": 2}
    assert shop.tasks == {"rank": 3, "rating": 3, "category": 2}
    assert p.missing == {
        "rating": pytest.approx(1 / 7),
        "time": pytest.approx(1 / 7),
        "item title": pytest.approx(3 / 5),
        "item category": pytest.approx(1 / 5),
    }


def test_what_never_varies_trains_nothing() -> None:
    labels = {"click": [1, 0, 1, 0], "buy": [0, 0, 0, 0], "rating": [3, 3, 3, 3]}
    (only,) = profile(
        table("user=user,item=item,rating=rating,label=click,label=buy", user=list("aabb"), item=list("xyxy"), **labels)
    ).platforms
    assert only.tasks == {"rank": 2, "click": 4}
    assert only.labels["click"].rate == 0.5 and only.labels["buy"].rate == 0


def test_behaviour_needs_clicks_and_purchases() -> None:
    p = profile(synthetic(platforms=2))
    assert {"rank", "rating", "click", "buy", "behaviour", "category", "brand", "price"} == set(p.whole.tasks)
    assert p.whole.tasks["behaviour"] == p.whole.rows == 2 * 120 * 40


def test_who_has_what_in_common_with_whom() -> None:
    p = small()
    assert p.overlap.names == ("films", "shop")
    assert p.overlap.users == ((2, 1), (1, 2)) and p.overlap.items == ((3, 0), (0, 2))
    assert (p.overlap.common_users, p.overlap.common_items) == (1, 0)


@pytest.mark.parametrize("far", [0, 10_000])
def test_ids_are_counted_where_they_are_dense_and_where_they_are_not(far: int) -> None:
    values, count = counted(np.array([3, 1, 3, far + 4, 3], np.int64))
    assert values.tolist() == [1, 3, far + 4] and count.tolist() == [1, 3, 1]
    assert [len(one) for one in counted(np.zeros(0, np.int64))] == [0, 0]


def test_the_market_has_its_catalogues_in_common_and_no_user() -> None:
    data = synthetic(platforms=3)
    o = profile(data).overlap
    masks = [data.items[f"carried_{name}"].to_numpy() for name in data.platforms]
    assert o.items == tuple(tuple(int((a & b).sum()) for b in masks) for a in masks)
    assert o.users == ((120, 0, 0), (0, 120, 0), (0, 0, 120)) and o.common_users == 0
    assert o.common_items == int((np.stack(masks).sum(0) > 1).sum())


def words(users: str, items: str, platforms: str) -> tuple[str, tuple[str, ...]]:
    found = sharing(overlap(table(user=list(users), item=list(items), platform=list(platforms))), True)
    return found.words, found.options


def test_what_sharing_could_do() -> None:
    text, options = words("aabb", "xyzw", "pqpq")
    assert "no item in common: sharing items changes nothing, users do (2 of 2 users are on several" in text
    assert options == BY_USERS
    text, options = words("abcd", "xyxy", "ppqq")
    assert text.startswith("2 of 2 items are on several platforms: sharing items may help; no user") and not options
    text, options = words("abcd", "xyzw", "ppqq")
    assert text.startswith("nothing in common") and options == DENSE
    text, options = words("abab", "xyxy", "ppqq")
    assert (
        "2 of 2 items and 2 of 2 users" in text and "sharing users (user_table,user_bias) too" in text and not options
    )
    text, _ = words("abcde", "xyxyz", "ppqqr")
    assert text.endswith("; r has nothing in common with another")
    text, _ = words("abc", "xyx", "ppp")
    assert text.startswith("one platform")
    assert "sharing users cannot" in sharing(overlap(table(user=list("ab"), item=list("xy"))), False).words


@pytest.mark.parametrize(("x", "text"), [(0, "0%"), (0.00123, "0.12%"), (0.0123, "1.2%"), (0.5, "50%"), (1, "100%")])
def test_shares_keep_two_digits(x: float, text: str) -> None:
    assert share(x) == text


# ---- suspicions: each on a frame on which it must be raised, and on one beside it on which it must not

ROWS = 400
RNG = np.random.default_rng(0)
PLAIN: dict[str, Any] = {  # 40 users with 10 items of 50 each, at times and ratings of their own
    "user": np.repeat([f"u{k}" for k in range(40)], 10),
    "item": np.concatenate([RNG.permutation([f"i{k}" for k in range(50)])[:10] for _ in range(40)]),
    "time": THEN + RNG.permutation(ROWS) * 3600,
    "rating": RNG.integers(1, 6, ROWS),
    "platform": np.repeat(["films", "shop"], ROWS // 2),
    "click": RNG.integers(0, 2, ROWS),
    "buy": RNG.integers(0, 2, ROWS),
}
LABELLED = ",".join(f"{name}={name}" for name in list(PLAIN)[:5]) + ",label=click,label=buy"


def doubts(**values: Any) -> dict[str, str]:
    """Return what is suspicious of the plain frame with some columns in place of its own, by kind."""
    found = suspicions(table(LABELLED, **{**PLAIN, **values}), NOW)
    return {one.kind: one.text for one in found}


def test_nothing_is_suspicious_of_what_is_plain() -> None:
    assert doubts() == {}
    assert suspicions(synthetic(platforms=3), NOW) == []


LATE = PLAIN["time"] + np.where(np.arange(ROWS) == 7, 400_000_000, 0)
GREEDY = {
    "user": np.where(np.arange(ROWS) < 120, "u0", PLAIN["user"]),
    "item": np.where(np.arange(ROWS) < 120, [f"v{k}" for k in range(ROWS)], PLAIN["item"]),
}
LAST = np.arange(ROWS) % 10 == 9
ORDERED = THEN + np.tile(np.arange(10), 40) * 60 + np.repeat(np.arange(40), 10) * 7


@pytest.mark.parametrize(
    ("kind", "values", "text"),
    [
        ("once", {"user": [f"s{k}" for k in range(ROWS)]}, "hardly a user comes twice"),
        ("greedy", GREEDY, "user 'u0' has 30% of all rows"),
        ("future", {"time": LATE}, "1 time in the future, up to 2033"),
        ("past", {"time": PLAIN["time"] - 1_000_000_000}, "400 times before 1990, from 1989"),
        ("equal times", {"time": np.full(ROWS, THEN)}, "all times are equal, 2020-09-13"),
        ("ties", {"time": THEN + np.repeat(np.arange(40), 10)}, "of 100% of users the last two rows have one time"),
        ("constant", {"buy": np.zeros(ROWS, int)}, "label buy is 0 in every row"),
        ("constant", {"buy": PLAIN["buy"] * (PLAIN["platform"] == "films")}, "label buy never varies in shop"),
        ("equal labels", {"buy": PLAIN["click"]}, "label click equals label buy in every row"),
        ("equal labels", {"buy": 1 - PLAIN["click"]}, "label click is the opposite of label buy"),
        ("leak", {"buy": (PLAIN["time"] > THEN + 720_000).astype(int)}, "label buy is 1 from 2020-09-"),
        ("leak", {"buy": (PLAIN["time"] < THEN + 720_000).astype(int)}, "label buy is 1 before 2020-09-"),
        ("leak", {"time": ORDERED, "buy": (~LAST).astype(int)}, "label buy is 1 where the user comes back"),
        ("leak", {"time": ORDERED, "buy": LAST.astype(int)}, "label buy is 1 where the user does not come back"),
        (
            "said",
            {"rating": np.where(np.arange(ROWS) == 3, 5000, PLAIN["rating"])},
            "a rating of 5000 (of films) lies far outside",
        ),
        ("constant rating", {"rating": np.full(ROWS, 4)}, "ratings never vary in films, shop: nothing to learn"),
        ("said", {"rating": PLAIN["rating"] * np.repeat([1, 2], ROWS // 2)}, "platforms rate on scales that differ"),
    ],
)
def test_a_slip_is_suspicious_and_nothing_else_is(kind: str, values: dict[str, Any], text: str) -> None:
    found = doubts(**values)
    assert text in found.pop(kind)
    # A rating of 4 makes the derived label constant too.
    assert {"constant"} >= found.keys() if kind == "constant rating" else not found


def test_keys_read_as_floats_are_suspicious_where_no_reader_has_mended_them() -> None:
    data = table(LABELLED, **PLAIN)
    read = replace(data, users=data.users.assign(key=[f"{k}.0" for k in range(40)]))
    (one,) = suspicions(read, NOW)
    assert one == ("floats", "keys of users are numbers read as floats, as in '0.0'")
    some = replace(data, users=data.users.assign(key=[f"{k}.0" if k else "0" for k in range(40)]))
    assert suspicions(some, NOW) == []


def test_times_in_a_finer_unit_and_days_are_named() -> None:
    # The reader takes what is below the year 5138 for seconds: such milliseconds are of the years up to 1973.
    data = table(LABELLED, **PLAIN)
    frame = data.interactions
    milliseconds = replace(data, interactions=frame.assign(time=frame["time"] * 1000))
    assert {one.kind: one.text for one in suspicions(milliseconds, NOW)}["future"].endswith("are they milliseconds?")
    assert doubts(time=PLAIN["time"] // 86_400)["past"].endswith("are they days since 1970?")
    assert doubts(time=RNG.integers(1, 60, ROWS))["past"].endswith("are they counts?")
    # Places in an order are no times, and none of them is wrong.
    assert doubts(time=np.arange(1, ROWS + 1)) == {} == doubts(time=np.tile(np.arange(1, 11), 40))
    assert span((1, 400)) == "are places from 1 to 400" and span((THEN, THEN)) == "2020-09-13 to 2020-09-13"


def test_ids_that_look_like_ratings_or_counts() -> None:
    n = 2000
    items = [f"i{k}" for k in range(n)]
    stars: dict[str, Any] = {"user": RNG.integers(1, 6, n), "item": items}
    kinds = {one.kind: one.text for one in suspicions(table(**stars), NOW)}
    assert kinds["scale"] == "user has 5 distinct values, 1, 2, 3, 4, 5: is it a rating or a count?"
    counts: dict[str, Any] = {"user": np.minimum(RNG.zipf(1.7, 3 * n), 40), "item": items * 3}
    assert "is it a count?" in {one.kind: one.text for one in suspicions(table(**counts), NOW)}["scale"]
    shops: dict[str, Any] = {"user": [f"shop {k}" for k in stars["user"]], "item": items}
    assert "scale" not in {one.kind for one in suspicions(table(**shops), NOW)}
    many: dict[str, Any] = {"user": RNG.integers(1, 60, 6 * n), "item": RNG.integers(1, 400, 6 * n)}
    assert "scale" not in {one.kind for one in suspicions(table(**many), NOW)}
