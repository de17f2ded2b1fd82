"""Tables: roles, types, and an error of one line for each thing that can be wrong."""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.data import Dataset, Market, load, table
from fedrec.data.reading import Reading
from fedrec.errors import UserError

GOOD = "who,what,stars,when,where,name,genre,click,buy\n" + "\n".join(
    (
        "bo,x1,5,100,north,Alpha,a|b,1,true",
        "al,x2,3.5,90,north,Beta,,0,false",
        "al,x1,4,80,south,,,1,0",
        "bo,x2,1,70,south,Beta,c,0,0",
    )
)
ALL = "user=who,item=what,rating=stars,timestamp=when,platform=where,title=name,categories=genre,label=click,label=buy"


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: str | bytes, name: str = "t.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def test_every_role_is_read(write: Write) -> None:
    data = table(write(GOOD), ALL)
    assert data.users["key"].tolist() == ["al", "bo"]
    assert data.items.to_dict("list") == {"key": ["x1", "x2"], "title": ["Alpha", "Beta"], "categories": ["a|b", "c"]}
    assert data.platforms == ("north", "south")
    assert data.labels == ("click", "buy", "like")
    expected = pd.DataFrame(
        {
            "user": [0, 1, 0, 1],
            "item": [1, 0, 0, 1],
            "platform": [0, 0, 1, 1],
            "time": [90, 100, 80, 70],
            "rating": np.asarray([3.5, 5, 4, 1], dtype=np.float32),
            "positive": [False, True, True, False],
            "click": [False, True, True, False],
            "buy": [False, True, False, False],
            "like": [False, True, True, False],
        }
    )
    pd.testing.assert_frame_equal(data.interactions, expected)


def test_prices_and_brands_are_the_first_that_are_not_empty(write: Write) -> None:
    rows = "u,i,p,b\na,x,,A|B\nb,x,2.5,\nc,x,9,C\na,y,,\na,z,4,D"
    items = table(write(rows), "user=u,item=i,price=p,brand=b").items
    assert items["brand"].tolist() == ["A|B", "", "D"]
    np.testing.assert_array_equal(items["price"], [2.5, np.nan, 4.0])


def test_only_user_and_item_are_needed(write: Write) -> None:
    data = table(write(GOOD), "user=who,item=what")
    assert data.platforms == ("all",)
    assert data.labels == ()
    assert data.items["title"].tolist() == ["x1", "x2"]
    assert data.interactions["positive"].all()
    assert data.interactions["rating"].isna().all()
    assert (data.interactions["time"] == 0).all()


@pytest.mark.parametrize("kind", ["gzip", "parquet", "bom", "crlf"])
def test_other_containers_give_the_same(write: Write, tmp_path: Path, kind: str) -> None:
    frame = pd.read_csv(write(GOOD))
    if kind == "gzip":
        path = write(gzip.compress(GOOD.encode()), "t.csv.gz")
    elif kind == "bom":
        path = write("\ufeff" + GOOD)
    elif kind == "crlf":
        path = write(GOOD.replace("\n", "\r\n"))
    else:
        frame["when"] = pd.to_datetime(frame["when"], unit="s")
        frame["click"] = frame["click"].astype(bool)
        frame.to_parquet(path := tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(table(path, ALL).interactions, table(write(GOOD, "plain.csv"), ALL).interactions)


def test_like_needs_a_scale_that_reaches_four(write: Write) -> None:
    assert table(write("u,i,r\na,b,3\na,c,1"), "user=u,item=i,rating=r").labels == ()
    assert table(write("u,i,r\na,b,4\na,c,1"), "user=u,item=i,rating=r").labels == ("like",)


def test_times_are_numbers_or_iso_dates(write: Write) -> None:
    def seconds(*times: str) -> list[int]:
        lines = "".join(f"u{n},i,{t}\n" for n, t in enumerate(times))
        return table(write("u,i,t\n" + lines), "user=u,item=i,time=t").interactions["time"].to_list()

    assert seconds("12", "13.9", "-0.5") == [12, 13, -1]
    # 1970-01-02 is one day, 86400 s; 01:00+01:00 is midnight UTC.
    assert seconds("1970-01-02", "1970-01-01T00:00:05Z", "1970-01-02 01:00:00+01:00") == [86400, 5, 86400]


def test_a_view_and_a_purchase_are_a_purchase_and_are_counted(write: Write) -> None:
    # Of a's item x: seen at 3, bought at 5, seen again at 9. b only saw it.
    log = "u,i,t,seen,buy\na,x,9,1,0\na,x,3,1,0\na,x,5,0,1\nb,x,1,1,0\nb,y,1,0,0\nb,y,2,0,0"
    data = table(write(log), "user=u,item=i,time=t,label=buy,label=seen")
    kept = data.interactions[["user", "item", "time", "positive", "buy", "seen"]]
    assert kept.to_dict("split")["data"] == [
        [0, 0, 9, True, True, True],
        [1, 0, 1, False, False, True],
        [1, 1, 2, False, False, False],
    ]
    (note,) = data.notes
    assert note.startswith("6 rows are 3 interactions") and "last time" in note and "rating" not in note
    assert "buy: 1 rows, 1 interactions; seen: 3 rows, 2 interactions; no label: 2 rows, 1 interactions" in note


def test_a_purchase_log_keeps_its_purchases(write: Write) -> None:
    log = [f"u{n % 50},i{n},{n},0" for n in range(400)] + [f"u{n % 50},i{n},{n + 1000},1" for n in range(0, 400, 2)]
    data = table(write("u,i,t,buy\n" + "\n".join(log)), "user=u,item=i,time=t,label=buy")
    assert (len(data.interactions), int(data.interactions["positive"].sum())) == (400, 200)
    assert "buy: 200 rows, 200 interactions; no label: 400 rows, 200 interactions" in data.notes[0]


def test_without_a_label_a_view_is_a_positive(write: Write) -> None:
    data = table(write("u,i,t\na,x,9\na,x,3\nb,x,1"), "user=u,item=i,time=t")
    assert data.interactions["positive"].all() and data.interactions["time"].tolist() == [9, 1]


def test_of_repeated_ratings_the_last_counts_also_for_like(write: Write) -> None:
    data = table(write("u,i,t,r\na,x,9,2\na,x,3,5\nb,x,1,5"), "user=u,item=i,time=t,rating=r")
    assert data.interactions["rating"].tolist() == [2, 5]
    assert data.interactions["like"].tolist() == [False, True]
    # At one time, or without times, neither row is the last: (1 + 2) / 2.
    data = table(write("u,i,r\na,x,1\na,x,2\na,y,5"), "user=u,item=i,rating=r")
    assert data.interactions["rating"].tolist() == [1.5, 5]


ROWS = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.sampled_from("xyz"),
        st.sampled_from(("p", "q")),
        st.integers(0, 2),
        st.sampled_from(("1", "2.5", "4.1", "5")),
        st.sampled_from("01"),
        st.sampled_from("01"),
        st.sampled_from(("", "T", "S")),
        st.sampled_from(("", "3", "20")),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=25)
@given(rows=ROWS, timed=st.booleans(), chance=st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[object, ...]], timed: bool, chance: Random
) -> None:
    path = tmp_path_factory.mktemp("order") / "t.csv"
    columns = "user=u,item=i,platform=p,rating=r,label=buy,label=seen,title=n,price=c" + ",time=t" * timed

    def read(lines: list[tuple[object, ...]]) -> Dataset:
        path.write_text("u,i,p,t,r,buy,seen,n,c\n" + "\n".join(",".join(map(str, line)) for line in lines))
        return table(path, columns)

    a = read(rows)
    chance.shuffle(shuffled := list(rows))
    b = read(shuffled)
    pd.testing.assert_frame_equal(a.interactions, b.interactions, check_exact=True)
    pd.testing.assert_frame_equal(a.items, b.items, check_exact=True)
    assert a.notes == b.notes
    # The rule, written down once more: any label, the last time, the mean of the ratings at the last time.
    groups: dict[tuple[str, ...], list[tuple[object, ...]]] = {}
    for row in rows:
        groups.setdefault((str(row[2]), str(row[0]), str(row[1])), []).append(row)
    assert len(a.interactions) == len(groups)
    names = {name: sorted({key[place] for key in groups}) for place, name in enumerate("pui")}
    for one in a.interactions.to_dict("records"):
        group = groups[names["p"][one["platform"]], names["u"][one["user"]], names["i"][one["item"]]]
        last = max(int(str(row[3])) for row in group) if timed else 0
        ratings = [float(str(row[4])) for row in group if not timed or row[3] == last]
        assert one["time"] == last and one["rating"] == pytest.approx(np.mean(ratings))
        assert one["buy"] == one["positive"] == any(row[5] == "1" for row in group)
        assert one["seen"] == any(row[6] == "1" for row in group)


def test_ids_stay_text(write: Write) -> None:
    data = table(write("u,i\n007,NA\n7,None"), "user=u,item=i")
    assert data.users["key"].tolist() == ["007", "7"]
    assert data.items["key"].tolist() == ["NA", "None"]


U = "user=u,item=i"
BAD = {
    "no equals": ("u,i\na,b", "user=u,item", "columns: must be role=column, found 'item'"),
    "unknown role": ("u,i\na,b", "usr=u,item=i", "columns: .*'usr'; did you mean 'user'"),
    "role twice": ("u,i\na,b", "user=u,item=i,user=i", "columns: .*found 'user=i' again"),
    "alias twice": ("u,i,t\na,b,1", U + ",time=t,timestamp=t", "columns: .*found 'timestamp=t' again"),
    "no item": ("u,i\na,b", "user=u", "columns: must map item .*found 'user=u'"),
    "no columns": ("u,i\na,b", "", "columns: must map user .*found ''"),
    "reserved label": ("user,i\na,b", "user=user,item=i,label=user", "columns: a label must not be .*found 'user'"),
    "reserved attribute": ("user,i,price\na,b,1", U + ",label=price", "columns: a label must not be .*found 'price'"),
    "free price": ("u,i,p\na,b,1\na,c,0", U + ",price=p", "line 3, column 'p': a price must be .*found '0'"),
    "text price": ("u,i,p\na,b,cheap", U + ",price=p", "line 2, column 'p': a price must be .*found 'cheap'"),
    "infinite price": ("u,i,p\na,b,inf", U + ",price=p", "line 2, column 'p': a price must be .*found 'inf'"),
    "missing column": ("userid,i\na,b", "user=user_id,item=i", "column of t.csv: .*did you mean 'userid'"),
    "empty file": ("", U, "t.csv: .*empty"),
    "header only": ("u,i\n", U, "t.csv: must hold at least one row, found an empty table"),
    "empty user": ("u,i\na,b\n,b", U, "t.csv, line 3, column 'u': must not be empty, found nothing"),
    "nan item": ("u,i\na,NaN", U, "line 2, column 'i': must not be empty"),
    "empty platform": ("u,i,p\na,b,\n", U + ",platform=p", "line 2, column 'p': must not be empty"),
    "inf rating": ("u,i,r\na,b,-inf", U + ",rating=r", "line 2, column 'r': .*found '-inf'"),
    "huge rating": ("u,i,r\na,b,1e300", U + ",rating=r", "line 2, column 'r': .*found '1e300'"),
    "text rating": ("u,i,r\na,b,1\na,c,good", U + ",rating=r", "line 3, column 'r': .*found 'good'"),
    "label": ("u,i,l\na,b,1\na,c,maybe", U + ",label=l", "line 3, column 'l': a label must be .*found 'maybe'"),
    "time": ("u,i,t\na,b,1\na,c,soon", U + ",time=t", "line 3, column 't': a time must .*found 'soon'"),
    "infinite time": ("u,i,t\na,b,inf", U + ",time=t", "line 2, column 't': a time must .*found 'inf'"),
    "date": (
        "u,i,t\na,b,2020-01-01\na,c,2020-13-01",
        U + ",time=t",
        "line 3, column 't': .* or a date, found '2020-13-01'",
    ),
    "long row": ("u,i\na,b\na,b,c", U, "t.csv, line 3: must have 2 fields, as the first row has, found 3"),
    "all rows long": ("u,i\na,b,c\na,b,c", U, "t.csv, line 2: must have 2 fields, .* found 3 .2 of 2 rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_named_in_one_line(write: Write, case: str) -> None:
    content, columns, named = BAD[case]
    with pytest.raises(UserError, match=named) as caught:
        table(write(content), columns)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["t.csv.gz", "t.parquet"])
def test_a_broken_container_is_refused(write: Write, name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: must be a readable"):
        table(write("u,i\na,b", name), U)
    with pytest.raises(UserError, match=f"{name}: must be a readable"):
        table(write(gzip.compress(b"u,i\na,b\n" * 1000)[:-20], name), U)


def test_what_is_no_utf8_is_read_as_latin_1_and_said(write: Write) -> None:
    path = write(gzip.compress(b"u,i\na,b\na,caf\xe9\n"), "t.csv.gz")
    data = table(path, U)
    assert data.items["key"].tolist() == ["b", "caf\xe9"] and any("cp1252" in note for note in data.notes)
    with pytest.raises(UserError, match=r"t.csv.gz, line 3: must be UTF-8, found b'.xe9'"):
        table(path, U, Reading(encoding="utf-8"))


def test_a_missing_file_or_column_of_parquet_is_refused(tmp_path: Path) -> None:
    for name in ("none.csv", "none.csv.gz", "none.parquet"):
        with pytest.raises(UserError, match=f"must be a readable file, found .*{name}"):
            table(tmp_path / name, U)
    with pytest.raises(UserError, match="must be a file, or a folder that holds one, found none in"):
        table(tmp_path, U)
    pd.DataFrame({"user": ["a"], "item": ["b"]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"column of t.parquet: .*did you mean 'user'"):
        table(tmp_path / "t.parquet", "user=usr,item=item")
    pd.DataFrame({"u": ["a", None], "i": ["b", "c"]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError, match="line 2, column 'u': must not be empty"):
        table(tmp_path / "t.parquet", U)


@pytest.mark.skipif("FEDREC_DATA" not in os.environ, reason="FEDREC_DATA does not name the folder of real data")
def test_amazon4() -> None:
    path = Path(os.environ["FEDREC_DATA"]) / "amazon4" / "interactions.csv.gz"
    start = time.perf_counter()
    data = load(
        "table",
        data_dir=path,
        columns="user=user,item=asin,platform=domain,time=timestamp",
        platforms=5,
        market=Market(),
        seed=0,
    )
    assert time.perf_counter() - start < 3
    assert data.platforms == ("Beauty", "Electronics", "Food", "Kitchen")
    assert data.interactions["platform"].value_counts(sort=False).to_dict() == {0: 50329, 1: 63800, 2: 83663, 3: 89885}
    assert (len(data.users), len(data.items)) == (9624, 52662)
    assert (data.interactions.groupby("user")["platform"].nunique() == 4).sum() == 1994
