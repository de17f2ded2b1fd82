"""What columns mean: bad rows, keys, events, scales, files of attributes, matches; known answers and properties."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.data.assembly import Described, assemble
from fedrec.data.columns import coded, keys, numbers, times
from fedrec.data.events import parse_events
from fedrec.data.reading import Filters, Raw, Reading
from fedrec.data.scales import outlier, parse_scales
from fedrec.data.types import Dataset
from fedrec.errors import UserError

ROLES = {"user": "u", "item": "i"}


def raw(columns: Mapping[str, Any], of: str = "", name: str = "t.csv", **roles: str) -> Raw:
    """Return a file; `labels` are columns of labels, joined by commas."""
    labels = tuple(filter(None, roles.pop("labels", "").split(",")))
    return Raw(name, of, {n: pa.array(list(c)) for n, c in columns.items()}, {**ROLES, **roles}, labels)


def built(*raws: Raw, described: Described | None = None, filters: Filters | None = None, **reading: Any) -> Dataset:
    return assemble("t", raws, Reading(**reading), filters or Filters(), described)


def refused(*raws: Raw, described: Described | None = None, **reading: Any) -> str:
    with pytest.raises(UserError) as caught:
        built(*raws, described=described, **reading)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# By role: what may stand there, and whether a row with it is bad.
VALUES: dict[str, dict[str | None, bool]] = {
    "u": {"a": False, "b": False, "": True, None: True},
    "p": {"north": False, "south": False, "": True, "x\ny": True},
    "r": {"1": False, "2.5": False, "": False, None: False, "good": True, "inf": True, "6": True},
    "l": {"1": False, "false": False, "yes": False, "": False, None: False, "perhaps": True},
    "e": {"see": False, "buy": False, "": True, "die": True},
    "t": {"7": False, "8": False, "soon": True, "": True},
    "c": {"3": False, "": False, "0": True, "cheap": True},
    "w": {"3": False, "0.5": False, "1e-9": False, "": True, None: True, "0": True, "-1": True, "inf": True, "x": True},
}
ROWS = st.lists(st.fixed_dictionaries({name: st.sampled_from(list(some)) for name, some in VALUES.items()}), min_size=1)


@settings(max_examples=60)
@given(rows=ROWS)
def test_a_row_is_dropped_if_and_only_if_something_is_wrong_with_it(rows: list[dict[str, str | None]]) -> None:
    columns = {name: [row[name] for row in rows] for name in VALUES}
    file = raw(
        {**columns, "i": [f"i{n:03}" for n in range(len(rows))]},
        platform="p",
        rating="r",
        event="e",
        time="t",
        price="c",
        weight="w",
        labels="l",
    )
    good = [n for n, row in enumerate(rows) if not any(VALUES[name][row[name]] for name in VALUES)]
    form: dict[str, Any] = (
        {"events": "click=see;bought=buy", "scale": "0..5"} if {"see", "buy"} <= {*columns["e"]} else {"scale": "0..5"}
    )
    if "events" not in form and {*columns["e"]} & {"die"}:
        return  # without a mapping every value is a label
    try:
        data = built(file, rows="drop", **form)
    except UserError as error:
        assert not good or "are bad" in str(error) or "events" in str(error)
        assert not good
        return
    assert data.items["key"].tolist() == [f"i{n:03}" for n in good]
    bad = len(rows) - len(good)
    said = [note for note in data.notes if "were dropped" in note]
    assert [
        note.startswith(f"t.csv: {bad:,} of {len(rows):,} rows were dropped, {len(good):,} remain") for note in said
    ] == ([True] if bad else [])
    if bad:
        first = next(n for n in range(len(rows)) if n not in good)
        text = refused(file, **form)
        assert f"t.csv, line {first + 2}, column " in text and (
            f"{bad:,} of {len(rows):,} rows are bad" in text or bad == 1
        )
    else:
        pd.testing.assert_frame_equal(built(file, **form).interactions, data.interactions)


def test_dropped_rows_are_counted_by_their_first_reason_and_three_are_named() -> None:
    n = 8
    file = raw(
        {"u": ["", "", "", "", "a", "a", "a", "a"], "i": [*"abcdefgh"], "r": ["x", *["1"] * 5, "y", "1"]}, rating="r"
    )
    data = built(file, rows="drop")
    (note,) = [note for note in data.notes if "dropped" in note]
    assert note == (
        f"t.csv: 5 of {n} rows were dropped, 3 remain: user 4 (must not be empty: line 2 nothing, line 3 nothing, "
        "line 4 nothing); rating 1 (a rating must be a finite number: line 8 'y')"
    )


def test_a_bad_row_is_named_by_the_line_and_text_of_its_file() -> None:
    columns = {"u": ["a", "a"], "i": ["x", "y"], "r": np.array([1.0, np.nan])}
    stood = {"r": pa.array(["1,0", "3;5"])}
    file = Raw("shop.csv", "", columns, {**ROLES, "rating": "r"}, (), np.array([4, 9]), stood)
    assert refused(file) == "shop.csv, line 9, column 'r': a rating must be a finite number, found '3;5'"
    missing = Raw("shop.csv", "", columns, {**ROLES, "rating": "r"}, (), None, {"r": pa.array(["1,0", None])})
    assert np.isnan(built(missing).interactions["rating"][1])


def test_nothing_left_is_refused() -> None:
    assert "must have a row that is not bad, found 1 bad rows" in refused(raw({"u": [""], "i": ["x"]}), rows="drop")


# Keys.


def test_keys_are_texts_and_whole_numbers_whatever_they_were_read_as() -> None:
    assert keys(pa.array(["007", "7", "7.0"]))[0].values == ["007", "7", "7.0"]
    found, as_floats = keys(pa.array(["7.0", None, "12.0"]))  # of a column that had missing numbers elsewhere
    assert (found.values, found.code.tolist(), as_floats) == (["7", "12"], [0, -1, 1], True)
    for column in (pa.array([7, 12]), np.array([7.0, np.nan, 12.0]), pd.Series([7, 12], dtype="Int64").array):
        assert keys(column)[0].values == ["7", "12"]
    assert keys(pa.array([7.5, 7.0]))[0].values == ["7.5", "7"]


def test_equal_keys_of_platforms_are_equal_users_however_they_were_read() -> None:
    films, shop = raw({"u": [1, 2], "i": [5, 6]}, "films"), raw({"u": ["2.0", "3.0"], "i": ["5", "x"]}, "shop", "s.csv")
    data = built(films, shop)
    assert data.users["key"].tolist() == ["1", "2", "3"] and data.items["key"].tolist() == ["5", "6", "x"]
    assert any("written as 7.0" in note for note in data.notes)
    assert any("a key is the same user, or item, on every platform" in note for note in data.notes)


def test_a_key_that_has_lost_digits_is_bad() -> None:
    file = raw({"u": np.array([2.0**53, 1.0]), "i": ["x", "y"]})
    assert "line 2, column 'u': a key above 2^53" in refused(file)


@settings(max_examples=40)
@given(st.lists(st.sampled_from([None, "", "a", "b", "ä", "Z", "10", "9"]), min_size=1), st.booleans())
def test_codes_stand_for_the_texts(column: list[str | None], typed: bool) -> None:
    array = pa.array(column, pa.string())
    found = coded(array.dictionary_encode() if typed else array)
    texts = [found.values[code] if code >= 0 else None for code in found.code]
    assert texts == [text or None for text in column] and len(set(found.values)) == len(found.values)


def test_times_are_of_the_unit_that_most_have() -> None:
    found = times(pa.array([1_600_000_000_123, 1_600_000_000_999, 1_600_000_000, 0]))
    assert (found.unit, found.seconds[0], found.bad.tolist()) == (
        "milliseconds",
        1_600_000_000,
        [False, False, True, False],
    )
    found = times(pa.array([1_600_000_000, 1_600_000_001, 1_600_000_000_000]))  # one of another unit decides nothing
    assert (found.unit, found.bad.tolist()) == ("seconds", [False, False, True])
    days = times(pa.array([date(1970, 1, 2), None]))
    assert (days.seconds[0], days.bad.tolist()) == (86_400, [False, True])


# Events.


def test_events_are_labels_and_the_first_one_given_decides_what_is_positive() -> None:
    file = raw(
        {"u": [*"aaabb"], "i": [*"xxyyz"], "e": ["view", "order", "view", "purchase", "scroll"]},
        event="e",
    )
    data = built(file, events="buy=purchase,order;click=view,purchase;ignore=scroll")
    assert data.labels == ("buy", "click")
    rows = data.interactions[["user", "item", "positive", "buy", "click"]].to_numpy().tolist()
    assert rows == [[0, 0, True, True, True], [0, 1, False, False, True], [1, 1, True, True, True]]
    assert any("1 events of 5 rows do not count, by ignore" in note for note in data.notes)


def test_an_unknown_event_is_bad_unless_a_label_takes_all_others() -> None:
    file = raw({"u": [*"aab"], "i": [*"xyz"], "e": ["view", "order", "hover"]}, event="e")
    assert "line 4, column 'e': an event must be one of" in refused(file, events="click=view;buy=order")
    assert len(built(file, rows="drop", events="click=view;buy=order").interactions) == 2
    assert len(built(file, events="click=view;buy=order;ignore=*").interactions) == 2
    assert built(file, events="buy=order;click=*").interactions["click"].tolist() == [True, False, True]


def test_few_events_are_labels_by_their_own_names_and_that_is_said() -> None:
    file = raw({"u": [*"aab"], "i": [*"xyz"], "e": ["view", "add-to-cart", "view"]}, event="e")
    data = built(file)
    assert data.labels == ("add-to-cart", "view") and data.interactions["positive"].all()
    assert "add-to-cart, view are labels by these names, and all events are positives" in data.notes[0]
    many = raw({"u": ["a"] * 11, "i": [*"abcdefghijk"], "e": [f"e{n}" for n in range(11)]}, event="e")
    assert "must say which values of the column 'e' are which labels" in refused(many)
    odd = raw({"u": ["a"], "i": ["x"], "e": ["took it"]}, event="e")
    assert "found the value 'took it'" in refused(odd)


def test_a_platform_without_events_is_not_asked_for_them() -> None:
    films = raw({"u": [*"ab"], "i": [*"xy"], "r": [5, 1]}, "films", rating="r")
    shop = raw({"u": [*"ab"], "i": [*"xz"], "e": ["view", "order"]}, "shop", event="e")
    rows = built(films, shop, events="click=view;buy=order").interactions
    assert rows["click?"].tolist() == [False, False, True, True] == rows["buy?"].tolist()
    assert rows["positive"].tolist() == [True, True, True, False]  # of films every rating
    assert rows["like?"].tolist() == [True, True, False, False] and rows["like"].tolist() == [True, False, False, False]


def test_what_no_event_says_is_known_and_what_another_platforms_column_says_is_not() -> None:
    one, two = (
        raw({"u": ["a"], "i": ["x"], "e": ["view"]}, "one", event="e"),
        raw({"u": ["a"], "i": ["x"], "e": ["buy"]}, "two", event="e"),
    )
    news = raw({"u": ["a"], "i": ["x"], "clicked": [1]}, "news", labels="clicked")
    rows = built(news, one, two).interactions  # by platform: news, one, two
    assert rows["view?"].tolist() == rows["buy?"].tolist() == [False, True, True]
    assert rows["view"].tolist() == [False, True, False] and rows["buy"].tolist() == [False, False, True]
    assert rows["clicked?"].tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("click", "events: must be label=value,value joined by ';', found 'click'"),
        ("click=", "events: must be label=value"),
        ("click=a;click=b", "found 'click' again"),
        ("rating=a", "events: a label must be a word that is not .*'rating'"),
        ("a b=c", "events: a label must be a word"),
        ("a=*;b=*", "must be given once"),
        ("ignore=a", "must have a label that is not 'ignore'"),
    ],
)
def test_what_is_no_mapping_of_events_is_refused(text: str, rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        parse_events(text)


def test_a_mapping_that_cannot_act_is_refused() -> None:
    file = raw({"u": ["a"], "i": ["x"], "e": ["view"]}, event="e")
    assert "the values of buy must be in the data, view, found 'order'" in refused(file, events="click=view;buy=order")
    assert "events: need a column of events" in refused(raw({"u": ["a"], "i": ["x"]}), events="click=view")


# Scales.


def test_a_rating_beyond_the_stated_scale_of_its_platform_is_an_outlier() -> None:
    file = raw({"u": [*"abcd"], "i": ["x"] * 4, "p": [*"ffss"], "r": [5, 9, 9, 11]}, rating="r", platform="p")
    text = refused(file, scale="1..5;s=0..10")
    assert text.startswith("t.csv, line 3, column 'r': a rating must be on the stated scale 1..5, 0..10, found '9'")
    data = built(file, rows="drop", scale="1..5;s=0..10")
    assert data.interactions["rating"].tolist() == [5, 9] and "outlier 2 (" in data.notes[0]


def test_like_is_the_upper_quarter_of_each_scale_and_brought_to_stars_it_is_four() -> None:
    # 4 of 1..5 is 1 + 3/4 of 4; of 0..10 that is 7.5.
    file = raw({"u": [*"abcd"], "i": ["x"] * 4, "p": [*"ffss"], "r": [4, 3.9, 7.5, 7.4]}, rating="r", platform="p")
    for normalise in (False, True):
        data = built(file, scale="1..5;s=0..10", normalise=normalise)
        assert data.interactions["like"].tolist() == [True, False, True, False]
    np.testing.assert_allclose(data.interactions["rating"], [4, 3.9, 4, 1 + 0.4 * 7.4], rtol=1e-6)
    assert any("ratings were brought to 1..5: f from 1..5, s from 0..10" in note for note in data.notes)
    assert "the scale of s must be stated" in refused(file, scale="f=1..5", normalise=True)
    assert any("at least 4 on f, 7.5 on s" in note for note in built(file, scale="1..5;s=0..10").notes)


def test_a_lone_outlier_and_scales_that_differ_are_suspicions() -> None:
    stars = [1, 2, 3, 4, 5] * 6
    one = {"u": [f"u{n}" for n in range(30)], "i": ["x"] * 30}
    assert not any("SUSPICION" in note for note in built(raw({**one, "r": stars}, rating="r")).notes)
    (odd,) = [n for n in built(raw({**one, "r": [*stars[:-1], 5000]}, rating="r")).notes if "SUSPICION" in n]
    assert "a rating of 5000 (of all) lies far outside" in odd
    both = raw({**one, "r": stars}, "f", rating="r"), raw({**one, "r": [2 * s for s in stars]}, "s", rating="r")
    assert any("SUSPICION: platforms rate on scales that differ" in note for note in built(*both).notes)
    assert not any("SUSPICION" in note for note in built(*both, scale="1..5;s=2..10").notes)
    assert any("ratings are from 1 to 5 on f, 2 to 10 on s" in note for note in built(*both).notes)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 5), min_size=3, max_size=40))
def test_ratings_of_one_scale_have_no_outlier(ratings: list[int]) -> None:
    assert not outlier(pd.Series(ratings, dtype="float32").value_counts().sort_index())


@pytest.mark.parametrize("text", ["5", "5..1", "1..1", "a..b", "1..inf", "shop=1.5"])
def test_what_is_no_scale_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"reading\.scale: must be LOWEST\.\.HIGHEST"):
        parse_scales(text)


def test_a_scale_that_cannot_act_is_refused() -> None:
    file = raw({"u": ["a"], "i": ["x"], "r": [5]}, "films", rating="r")
    assert "reading.scale: platform: must be one of films, found 'shop'" in refused(file, scale="1..5;shop=0..10")
    assert "reading.scale: needs ratings" in refused(raw({"u": ["a"], "i": ["x"]}), scale="1..5")
    assert "reading.normalise: needs ratings" in refused(raw({"u": ["a"], "i": ["x"]}), normalise=True)


# Files of attributes, and matches of keys.


def sheet(columns: Mapping[str, Any], platform: str = "", name: str = "items.csv", **roles: str) -> Raw:
    made = raw(columns, platform, name, **roles)
    return Raw(name, platform, made.columns, {role: c for role, c in made.roles.items() if role not in ROLES})


def test_a_file_of_items_is_the_catalogue_and_describes_them() -> None:
    file = raw({"u": [*"ab"], "i": [*"xy"]})
    items = sheet(
        {"k": ["x", "q"], "n": ["Ex", ""], "g": ['["a", "b c"]', "d|e"], "c": [2.5, None], "d": ["fine", None]},
        key="k",
        title="n",
        category="g",
        price="c",
        description="d",
    )
    data = built(file, described=Described(items=[items]))
    assert data.items.drop(columns="price").to_numpy().tolist() == [
        ["q", "q", "d|e", ""],
        ["x", "Ex", "a|b c", "fine"],
        ["y", "y", "", ""],
    ]
    np.testing.assert_array_equal(data.items["price"], [np.nan, 2.5, np.nan])
    assert data.interactions["item"].tolist() == [1, 2]
    assert "the catalogue has 3 items, of which 1 have no interaction and 1 no line in items.csv" in data.notes[-1]
    least = built(file, described=Described(items=[items]), filters=Filters(item_least=1))
    assert least.items["key"].tolist() == ["x", "y"]


def test_a_platform_carries_its_own_file_and_what_it_has_seen() -> None:
    films, shop = raw({"u": [*"ab"], "i": [*"xy"]}, "films"), raw({"u": [*"ab"], "i": [*"xz"]}, "shop")
    items = sheet({"k": [*"yq"], "n": ["Y", "Q"]}, "shop", key="k", title="n")
    data = built(films, shop, described=Described(items=[items]))
    assert data.items["key"].tolist() == [*"qxyz"] and "carried_films" not in data.items
    assert data.items["carried_shop"].tolist() == [True, True, True, True]
    every = sheet({"k": [*"yq"], "n": ["Y", "Q"]}, key="k", title="n")
    data = built(films, shop, described=Described(items=[every]))
    assert data.items["key"].tolist() == [*"xyz"]  # nobody carries q
    assert data.items["title"].tolist() == ["x", "Y", "z"]
    wrong = sheet({"k": ["y"]}, "shoe", key="k")
    assert "reading.items: platform: must be one of" in refused(films, shop, described=Described(items=[wrong]))


def test_categories_are_lists_of_several_forms() -> None:
    lists = pa.array([["a", "b"], [], None])
    items = Raw("i.parquet", "", {"k": pa.array([*"xyz"]), "g": lists}, {"key": "k", "category": "g"})
    data = built(raw({"u": ["a"] * 3, "i": [*"xyz"]}), described=Described(items=[items]))
    assert data.items["categories"].tolist() == ["a|b", "", ""]
    items = sheet({"k": [*"xyz"], "g:token_seq": ["a b", "", "c"]}, key="k", category="g:token_seq")
    data = built(raw({"u": ["a"] * 3, "i": [*"xyz"]}), described=Described(items=[items]))
    assert data.items["categories"].tolist() == ["a|b", "", "c"]


def test_users_have_any_attributes_and_a_key_occurs_once() -> None:
    file = raw({"u": [*"ab"], "i": [*"xy"]})
    people = sheet(
        {"k": [*"abz"], "age": [30, None, 9], "where": ["Bern", None, "x"]},
        name="u.csv",
        key="k",
        age="age",
        region="where",
    )
    data = built(file, described=Described(users=[people]))
    assert data.users["key"].tolist() == ["a", "b"] and data.users["region"].tolist() == ["Bern", ""]
    np.testing.assert_array_equal(data.users["age"], [30, np.nan])
    twice = sheet({"k": ["a", "b", "a", None], "age": [1, 2, 3, 4]}, name="u.csv", key="k", age="age")
    assert "u.csv, line 4, column 'k': a key must occur once, found 'a'" in refused(
        file, described=Described(users=[twice])
    )
    data = built(file, described=Described(users=[twice]), rows="drop")
    assert data.users["age"].tolist() == [1, 2]
    assert data.notes[0].startswith(
        "u.csv: 2 of 4 rows were dropped, 2 remain: key 1 (must not be empty: line 5 nothing)"
    )


def match(columns: Mapping[str, Any]) -> Described:
    return Described(match=Raw("match.csv", "", {n: pa.array(c) for n, c in columns.items()}, {}))


def test_matches_make_keys_of_a_platform_those_of_others() -> None:
    films, shop = raw({"u": [*"ab"], "i": [*"xy"]}, "films"), raw({"u": [*"ab"], "i": ["9", "x"]}, "shop")
    pairs = {
        "platform": ["shop", "shop", "shop"],
        "key": ["9", "b", "8"],
        "to": ["y", "c", "x"],
        "kind": ["item", "user", "item"],
    }
    data = built(films, shop, described=match(pairs))
    assert data.items["key"].tolist() == ["x", "y"] and data.users["key"].tolist() == ["a", "b", "c"]
    assert data.interactions[["user", "item", "platform"]].to_numpy().tolist() == [
        [0, 0, 0],
        [1, 1, 0],
        [0, 1, 1],
        [2, 0, 1],
    ]
    assert "match.csv: 1 keys of items are those of others; 1 are of no item there" in data.notes
    for columns, rule in (
        (
            {**pairs, "platform": ["shop", "shop", "shoe"]},
            "must be one of films, shop, found 'shoe'; did you mean 'shop'",
        ),
        ({**pairs, "kind": ["item", "user", "thing"]}, "line 4: kind: must be one of item, user, found 'thing'"),
        ({**pairs, "to": ["y", "c", ""]}, "line 4: platform, key and to must not be empty"),
        ({**pairs, "key": ["9", "b", "9"]}, "a key must be given one other, found '9' is 'x' too"),
        ({"platform": ["shop"], "key": ["9"]}, "column of match.csv: must be one of key, platform, found 'to'"),
    ):
        assert rule in refused(films, shop, described=match(columns))


def test_matched_keys_agree_with_files_of_attributes() -> None:
    films, shop = raw({"u": ["a"], "i": ["x"]}, "films"), raw({"u": ["a"], "i": ["9"]}, "shop")
    items = sheet({"k": ["9"], "n": ["Nine"]}, "shop", key="k", title="n")
    pairs = match({"platform": ["shop"], "key": ["9"], "to": ["x"]})
    data = built(films, shop, described=Described(items=[items], match=pairs.match))
    assert data.items[["key", "title"]].to_numpy().tolist() == [["x", "Nine"]]


@settings(max_examples=30)
@given(st.lists(st.tuples(*(st.integers(0, 4),) * 3, st.sampled_from(["", "T", "S"])), min_size=1, max_size=20))
def test_several_files_are_as_one(rows: list[tuple[int, int, int, str]]) -> None:
    def file(some: list[tuple[int, int, int, str]], platform: str = "") -> Raw:
        u, i, t, n = zip(*some, strict=True)
        names = {"u": u, "i": i, "t": t, "n": n, "p": [f"p{x % 2}" for x in u]}
        return raw(names, platform, time="t", title="n", **({} if platform else {"platform": "p"}))

    parts = [[row for row in rows if row[0] % 2 == x] for x in (0, 1)]
    several = [file(part, f"p{x}") for x, part in enumerate(parts) if part]
    one, other = built(file(rows)), built(*several)
    pd.testing.assert_frame_equal(one.interactions, other.interactions)
    pd.testing.assert_frame_equal(one.items, other.items)
    assert one.platforms == other.platforms
    pd.testing.assert_frame_equal(built(*several[::-1]).interactions, one.interactions)


def test_numbers_are_read_of_any_type() -> None:
    for column in (
        pa.array([1, None]),
        np.array([1.0, np.nan]),
        pa.array(["1", ""]),
        pa.array(["1", None]).dictionary_encode(),
    ):
        value = numbers(column)
        np.testing.assert_array_equal(value.number, [1, np.nan])
        assert not value.bad.any()
    assert numbers(pa.array(["x", ""])).bad.tolist() == [True, False]
