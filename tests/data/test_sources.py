"""How files become columns: every form with a file of a few lines, what is guessed and said, what is refused."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import platformdirs
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedrec.data.reading import Raw, Reading
from fedrec.data.sources import digest, read_attributes, read_frame, read_plain, read_table
from fedrec.data.sources.dialect import DELIMITERS
from fedrec.data.sources.objects import read_json, read_lines
from fedrec.errors import UserError

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: str | bytes, name: str = "t.csv") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def plain(column: Any) -> list[Any]:
    """Return a column as Python values; a missing number is None."""
    values = column.to_pylist() if isinstance(column, pa.Array | pa.ChunkedArray) else column.tolist()
    return [None if value != value else value for value in values]


def by_role(raw: Raw) -> dict[str, list[Any]]:
    """Return the columns of a file by role, and labels by their own names."""
    columns = {role: plain(raw.columns[column]) for role, column in raw.roles.items()}
    return columns | {label: plain(raw.columns[label]) for label in raw.labels}


def one(path: Path, columns: str = "", **reading: Any) -> Raw:
    """Return the one file of a table as it was read."""
    (raw,) = read_table(path, columns, Reading(**reading))
    return raw


def lines(raw: Raw) -> list[int]:
    """Return the line of every row."""
    count = len(next(iter(raw.columns.values())))
    return list(range(2, count + 2)) if raw.lines is None else raw.lines.tolist()


def refusal(path: Path | str, columns: str = "", **reading: Any) -> str:
    """Return the one line with which a table is refused."""
    with pytest.raises(UserError) as caught:
        read_table(Path(path), columns, Reading(**reading))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Known files: (name, content, options) -> what is read, and what is said of it.
UIR: dict[str, list[Any]] = {"user": ["a", "b"], "item": ["x", "y"], "rating": [5.0, 3.5]}
FORMS: dict[str, tuple[str, str | bytes, dict[str, Any], dict[str, list[Any]], str]] = {
    "plain": ("t.csv", "user,item,rating\na,x,5\nb,y,3.5\n", {}, UIR, ""),
    "usual names": (
        "t.csv",
        "userId,movieId,rating\na,x,5\nb,y,3.5\n",
        {},
        UIR,
        "t.csv: user is userId, item is movieId",
    ),
    "German export": (
        "shop.csv",
        "Kunde;Artikelnr;Bewertung;Datum\nä;1;4,5;31.12.2023\nb;2;3,0;01.01.2024\n".encode("cp1252"),
        {},
        # 2024-01-01 is day 19,723 after 1970-01-01: 54 years of 365 days and 13 leap days.
        {"user": ["ä", "b"], "item": ["1", "2"], "rating": [4.5, 3.0], "time": [19722 * 86400, 19723 * 86400]},
        "shop.csv: read as columns parted by semicolon, latin-1 (cp1252), decimal comma, Datum like 31.12.2023; "
        "user is Kunde, item is Artikelnr, rating is Bewertung, time is Datum",
    ),
    "tabs": ("t.tsv", "user\titem\trating\na\tx\t5\nb\ty\t3.5\n", {}, UIR, "t.tsv: read as columns parted by tab"),
    "pipes": ("t.txt", "user|item|rating\na|x|5\nb|y|3.5\n", {}, UIR, "t.txt: read as columns parted by pipe"),
    "MovieLens 1M": (
        "ratings.dat",
        "1::1193::5::978300760\n1::661::3::978302109\n",
        {"columns": "user=1,item=2,rating=3,time=4"},
        {"user": ["1", "1"], "item": ["1193", "661"], "rating": [5.0, 3.0], "time": [978300760, 978302109]},
        "ratings.dat: read as columns parted by ::, no header: columns are 1, 2 ...",
    ),
    "utf-16": (
        "t.csv",
        "user;item;rating\r\na;x;5\r\nb;y;3,5\r\n".encode("utf-16"),
        {},
        UIR,
        "t.csv: read as columns parted by semicolon, utf-16, decimal comma",
    ),
    "utf-16 without a mark": (
        "t.csv",
        "user,item,rating\na,x,5\nb,y,3.5\n".encode("utf-16-le"),
        {},
        UIR,
        "t.csv: read as utf-16-le",
    ),
    "a mark of UTF-8": ("t.csv", "\ufeffuser,item,rating\na,x,5\nb,y,3.5\n", {}, UIR, ""),
    "single quotes": (
        "t.csv",
        "'user','item','rating'\n'a','x','5'\n'b','y','3.5'\n",
        {},
        UIR,
        "t.csv: read as quoted by '",
    ),
    "thousands": (
        "t.csv",
        "user;item;preis\na;x;1.234,50\nb;y;2,00\n",
        {"columns": "price=preis"},
        {"user": ["a", "b"], "item": ["x", "y"], "price": [1234.5, 2.0]},
        "t.csv: read as columns parted by semicolon, decimal comma, thousands grouped",
    ),
    "JSON lines": (
        "log.jsonl",
        '{"user_id": 7, "product": {"id": "x"}, "type": "view", "ts": "2023-01-01T00:00:05Z"}\n'
        '{"user_id": 8, "product": {"id": "y"}, "type": "buy", "ts": "2023-01-01T01:00:00+01:00", "more": [1, 2]}\n',
        {"columns": "user=user_id,item=product.id,event=type,time=ts"},
        {"user": [7, 8], "item": ["x", "y"], "event": ["view", "buy"], "time": [1672531205, 1672531200]},
        "",
    ),
    "a JSON array": (
        "t.json",
        '[{"user": "a", "item": "x", "rating": 5}, {"user": "b", "item": "y", "rating": 3.5}]',
        {},
        UIR,
        "t.json: read as json",
    ),
    "RecBole": (
        "d.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\na\tx\t5.0\t10\nb\ty\t3.5\t20\n",
        {},
        {**UIR, "time": [10, 20]},
        "d.inter: read as recbole; user is user_id, item is item_id, time is timestamp",
    ),
    "sequences": (
        "t.txt",
        "u1 5 3 9\nu2 3 5\n",
        {},
        {"user": ["u1"] * 3 + ["u2"] * 2, "item": list("53935"), "time": [1, 2, 3, 1, 2]},
        "t.txt: read as sequences",
    ),
    "days as numbers": (
        "t.csv",
        "user,item,date\na,x,19700102\nb,y,19700103\n",
        {},
        {"user": ["a", "b"], "item": ["x", "y"], "time": [86400, 172800]},
        "t.csv: read as date like 20231231; time is date",
    ),
    "months first": (
        "t.csv",
        "user,item,date\na,x,01/02/1970\nb,y,1/13/1970\n",
        {},
        {"user": ["a", "b"], "item": ["x", "y"], "time": [86400, 12 * 86400]},
        "t.csv: read as date like 12/31/2023; time is date",
    ),
    "clock times": (
        "t.csv",
        "user;item;zeit\na;x;02.01.1970 00:00\nb;y;01.01.1970 13:30\n",
        {},
        {"user": ["a", "b"], "item": ["x", "y"], "time": [86400, 13.5 * 3600]},
        "t.csv: read as columns parted by semicolon, zeit like 31.12.2023 00:00; time is zeit",
    ),
    "blanks between thousands, two digits of a year": (
        "t.csv",
        "user;item;preis;datum\na;x;1\u00a0234,50;31.12.99\nb;y;12 000;1.1.00\n",
        {"columns": "price=preis"},
        {"user": ["a", "b"], "item": ["x", "y"], "price": [1234.5, 12000.0], "time": [10956 * 86400, 10957 * 86400]},
        "t.csv: read as columns parted by semicolon, decimal comma, thousands grouped, datum like 31.12.23; "
        "time is datum",
    ),
    "names of months": (
        "t.csv",
        'user,item,price,date\na,x,"1,234.50","Jan 2, 1970"\nb,y,12,"Feb 1, 1970"\n',
        {"columns": "price=price"},
        {"user": ["a", "b"], "item": ["x", "y"], "price": [1234.5, 12.0], "time": [86400, 31 * 86400]},
        "t.csv: read as thousands grouped, date like Dec 31, 2023; time is date",
    ),
    "the better of several names": (
        "t.csv",
        "user_id,user,video_id,date,timestamp,time\na,Al,x,20200101,1600000000.5,2020-01-01 00:00:00\n",
        {},
        {"user": ["a"], "item": ["x"], "time": [1600000000.5]},
        "t.csv: user is user_id, item is video_id, time is timestamp, user date time not used",
    ),
    "a log of events": (
        "t.csv",
        "event_time,event_type,product_id,price,user_id\n1970-01-02 00:00:01 UTC,view,44,35.79,5\n",
        {},
        {"user": ["5"], "item": ["44"], "time": [86401], "event": ["view"]},
        "t.csv: user is user_id, item is product_id, time is event_time, event is event_type, price not used",
    ),
    "only what is named": (
        "t.csv",
        "user,item,rating,time\na,x,5,1\n",
        {"columns": "user=user,item=item"},
        {"user": ["a"], "item": ["x"]},
        "",
    ),
    "what is named, and the rest by its names": (
        "t.csv",
        "user,item,stars,value\na,x,5,1\n",
        {"columns": "price=value"},
        {"user": ["a"], "item": ["x"], "rating": [5.0], "price": [1.0]},
        "t.csv: rating is stars",
    ),
    "a spreadsheet's first line": (
        "t.csv",
        'sep=;\r\nuser;item;rating\r\n\r\na;x;5\r\nb;y;"3,5"\r\n',
        {},
        UIR,
        "t.csv: read as columns parted by semicolon, decimal comma",
    ),
    "a blank behind each comma": (
        "t.csv",
        'user, item, rating, date\na, x, 5, "31.12.1999, 23:59"\nb, y, 3.5, "01.01.2000, 00:00"\n',
        {},
        {**UIR, "time": [10957 * 86400 - 60, 10957 * 86400]},
        "t.csv: read as columns parted by comma and blank, date like 31.12.2023, 00:00; time is date",
    ),
    "no quotes": (
        "t.tsv",
        'user\titem\ttitle\na\tx\t"Half a quote\nb\ty\tB\n',
        {},
        {"user": ["a", "b"], "item": ["x", "y"], "title": ['"Half a quote', "B"]},
        "t.tsv: read as columns parted by tab, no character quotes",
    ),
}


@pytest.mark.parametrize("case", FORMS)
def test_a_form_is_read_and_what_was_guessed_is_said(write: Write, case: str) -> None:
    name, content, options, expected, said = FORMS[case]
    raw = one(write(content, name), **options)
    assert by_role(raw) == expected
    assert raw.said == ((said,) if said else ())
    assert raw.text is None


def test_what_is_told_is_read_and_not_said(write: Write) -> None:
    path = write("Kunde;Artikelnr;Bewertung;Datum\nä;1;4,5;31.12.2023\n".encode("latin-1"))
    told = {"delimiter": "semicolon", "encoding": "latin-1", "decimal": "comma", "dates": "%d.%m.%Y"}
    raw = one(path, "user=Kunde,item=Artikelnr,rating=Bewertung,time=Datum", **told)
    assert by_role(raw) == {"user": ["ä"], "item": ["1"], "rating": [4.5], "time": [19722 * 86400]}
    assert raw.said == ()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}


@pytest.mark.parametrize("end", PACKERS)
@pytest.mark.parametrize("form", ["JSON lines", "sequences", "German export"])
def test_what_is_packed_is_read_as_what_is_in_it(write: Write, form: str, end: str) -> None:
    name, content, options, expected, _ = FORMS[form]
    content = content.encode() if isinstance(content, str) else content
    packed = b"".join(map(PACKERS[end], (content[:40], content[40:]))) if end == "gz" else PACKERS[end](content)
    assert by_role(one(write(packed, f"{name}.{end}"), **options)) == expected


def test_a_zip_of_several_files_is_refused_unless_all_but_one_are_hidden(write: Write, tmp_path: Path) -> None:
    def pack(*names: str) -> Path:
        with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
            for name in names:
                archive.writestr(name, FORMS["plain"][1])
        return tmp_path / "t.zip"

    assert by_role(one(pack("a/t.csv", "__MACOSX/a/._t.csv", "a/.DS_Store"))) == UIR
    assert refusal(pack("a.csv", "b.csv")) == "t.zip: must hold one file, found 2 in the archive"


# A table of any content, written in any way, is what was written. A missing value is an empty field.
CELLS = st.text(st.sampled_from("aZ09 äé\"';,|\t.:\n\\-"), max_size=6).filter(lambda s: s not in ("nan", "NaN"))
BODY = st.lists(st.tuples(CELLS, CELLS, st.one_of(st.none(), st.floats(-1e6, 1e6, width=32))), min_size=1, max_size=8)
WAYS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "::": "::", "<>": "<>"}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=BODY,
    way=st.sampled_from(sorted(WAYS)),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "latin-1", "cp1252", "utf-32"]),
    sign=st.sampled_from(["point", "comma"]),
    quote=st.sampled_from(['"', "'", "none"]),
    end=st.sampled_from(["\n", "\r\n"]),
    header=st.booleans(),
)
def test_a_table_written_in_any_way_is_read_back(
    tmp_path: Path,
    rows: Sequence[tuple[str, str, float | None]],
    way: str,
    encoding: str,
    sign: str,
    quote: str,
    end: str,
    header: bool,
) -> None:
    mark = WAYS[way]
    if quote == "none":  # no field can have what parts fields and rows
        strip = str.maketrans("", "", "\n\r" + mark)
        rows = [(user.translate(strip), item.translate(strip), rating) for user, item, rating in rows]

    def field(text: str) -> str:
        return text if quote == "none" else quote + text.replace(quote, quote * 2) + quote

    def number(value: float | None) -> str:
        return "" if value is None else repr(value).replace(".", "," if sign == "comma" else ".")

    body = [[field("key, of a user"), field("i"), field("r")]] if header and quote != "none" else []
    body = [["key", "i", "r"]] if header and quote == "none" else body
    body += [[field(user), field(item), field(number(r)) if quote != "none" else number(r)] for user, item, r in rows]
    if sign == "comma" and way == "comma" and quote == "none":
        return  # no table: two meanings of one sign
    path = tmp_path / "t.csv"
    path.write_bytes(end.join([*map(mark.join, body), ""]).encode(encoding))
    names = ["key, of a user" if quote != "none" else "key", "i", "r"] if header else ["1", "2", "3"]
    told = {
        "delimiter": way,
        "encoding": encoding,
        "decimal": sign,
        "quote": quote,
        "header": "yes" if header else "no",
    }
    frame = read_plain_roles(path, names, told)
    assert frame["user"] == [user or None for user, _, _ in rows]
    assert frame["item"] == [item or None for _, item, _ in rows]
    assert frame["rating"] == [rating for _, _, rating in rows]


def read_plain_roles(path: Path, names: Sequence[str], told: dict[str, str]) -> dict[str, list[Any]]:
    """Return the columns of a table whose names may have commas, which `--columns` cannot say."""
    from fedrec.data.sources.file import open_file, settings_of
    from fedrec.data.sources.raw import as_raw
    from fedrec.data.sources.roles import Asked

    how = settings_of(Reading(**told), "", ())
    opened = open_file(path, path.name, how, names)
    assert list(opened.columns) == list(names)
    roles = Asked(dict(zip(("user", "item", "rating"), names, strict=True)))
    return by_role(as_raw(opened, roles, how, "", ""))


GUESSED = st.text("abcäé01 ", min_size=1, max_size=5).map(lambda text: f"k{text}k")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(GUESSED, GUESSED, st.integers(1, 9), GUESSED), min_size=2, max_size=8),
    way=st.sampled_from(["comma", "semicolon", "tab", "pipe"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    sign=st.sampled_from([".", ","]),
)
def test_what_is_guessed_of_a_table_is_how_it_was_written(
    tmp_path: Path, rows: Sequence[tuple[str, str, int, str]], way: str, encoding: str, sign: str
) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=WAYS[way])
    writer.writerow(["user_id", "sku", "stars", "title"])
    writer.writerows([user, item, f"{whole}{sign}5", title] for user, item, whole, title in rows)
    (tmp_path / "t.csv").write_bytes(file.getvalue().encode(encoding))
    found = by_role(one(tmp_path / "t.csv"))
    assert found == {
        "user": [row[0] for row in rows],
        "item": [row[1] for row in rows],
        "rating": [row[2] + 0.5 for row in rows],
        "title": [row[3] for row in rows],
    }


WRONG: dict[str, tuple[str | bytes, dict[str, Any], str]] = {
    "day or month": (
        "user,item,date\na,x,03/04/2023\nb,y,05/06/2023\n",
        {},
        "t.csv, column 'date': whether day or month is first must be told by --reading.dates '%d/%m/%Y' or "
        "'%m/%d/%Y', found '03/04/2023'",
    ),
    "day and month": (
        "user,item,date\na,x,13/04/2023\nb,y,05/16/2023\nc,z,01/01/2023\n",
        {},
        "t.csv, column 'date': whether day or month is first must be told",
    ),
    "a thousand": (
        'user,item,price\na,x,"1,234"\n',
        {"columns": "price=price"},
        "t.csv, price: whether 1,234 is above a thousand must be told by --reading.decimal point or comma",
    ),
    "two items": (
        "user_id,asin,parent_asin\na,x,y\n",
        {},
        "columns: must say which column of t.csv is item, as in item=asin, found asin, parent_asin",
    ),
    "no item": ("user,what\na,x\n", {}, "columns: must map item (as in user=user,item=item), found ''"),
    "nothing parts": ("user item\n" * 3, {"delimiter": "tab"}, "t.csv, line 1: must be columns parted by one of"),
    "more fields": (
        "user,item\na,x\nb,y,z\nc,z\n",
        {},
        "t.csv, line 3: must have 2 fields, as the first row has, found 3",
    ),
    "fewer fields, after a break": (
        'user,item,title\na,x,"1\n2"\n\nb,y\nc,z\n',
        {},
        "t.csv, line 5: must have 3 fields, as the first row has, found 2 (2 of 3 rows are bad: --rows drop leaves",
    ),
    "no UTF-8": (
        "user,item\na,x\nb,\xe9\n".encode("latin-1"),
        {"encoding": "utf-8"},
        "line 3: must be UTF-8, found b'\\xe9'",
    ),
    "two encodings": (
        b"user,item\n" + "ä,x\n".encode() * 2**18 + b"\xe9,y\n",
        {},
        "t.csv, line 262146: must be UTF-8, found b'\\xe9'",
    ),
    "no encoding": ("user,item\na,x\n", {"encoding": "utf-9"}, "reading.encoding: must be an encoding"),
    "no text encoding": ("user,item\na,x\n", {"encoding": "hex"}, "reading.encoding: must be an encoding"),
    "no delimiter": ("user,item\na,x\n", {"delimiter": '"'}, "reading.delimiter: must be one of comma, semicolon"),
    "no decimal sign": ("user,item,rating\na,x,1\n", {"decimal": ";point"}, "reading.decimal"),
    "no form": ("user,item\na,x\n", {"format": "xls"}, "reading.format: must be one of csv, json"),
    "no form of dates": (
        "user,item,time\na,x,1\n",
        {"dates": "dmy"},
        "reading.dates: must be iso, or a form as %d.%m.%Y",
    ),
    "another form of dates": (
        "user,item,time\na,x,1.1.2020\n",
        {"dates": "%Q"},
        "reading.dates: must be a form of dates",
    ),
    "a spreadsheet": (b"PK\3\4" + bytes(range(256)), {}, "t.csv: must be text or Parquet, found a spreadsheet"),
    "NUL": (b"user,item\na,x\n\0\n", {}, "t.csv"),
    "JSON of no object": ('{"user": 1, "item": 2}\n[3]\n', {}, "t.csv, line 2: must be a JSON object, found an array"),
    "broken JSON": ('{"user": 1, "item": 2}\n\n{"user\n', {}, "t.csv, line 3: must be a JSON object, found no JSON"),
    "a broken array": ('[{"user": 1, "item": 2}, {', {}, "t.csv: must be a readable JSON file, found"),
    "a user twice": ("u1 1 2 3\nu2 1 2\nu1 4 5\n", {}, "t.csv, line 3: a user must have one line, found 'u1' again"),
    "a user alone": (
        "u1 1 2 3\nu2\nu3 4 5\n",
        {"format": "sequences"},
        "t.csv, line 2: must have a user and an item, parted by blanks, found one word",
    ),
    "quotes of JSON": (
        '{"user": 1, "item": 2}\n',
        {"quote": "none"},
        "reading.quote: acts only on files of csv, found none",
    ),
    "no platform": ("user,item\na,x\n", {"encoding": "utf-8;shop=latin-1"}, "reading.encoding: platform"),
    "a label of none": (
        "user,item\na,x\n",
        {"columns": "user=user,item=item,label=buy"},
        "column of t.csv: must be one of",
    ),
    "a column beside files": (
        "user,item,domain\na,x,p\n",
        {"columns": "user=user,item=item,platform=domain", "platforms": "files"},
        "columns: platform must not be mapped where files are of one, found 'domain'",
    ),
    "columns of none": ("user,item\na,x\n", {"columns": "shop:user=user"}, "columns: platform"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_read_is_refused_by_its_place(write: Write, case: str) -> None:
    content, options, message = WRONG[case]
    assert message in refusal(write(content), **options)


def test_a_value_that_is_none_is_nothing_and_its_text_is_kept(write: Write) -> None:
    path = write("user,item,rating,price,time\na,x,five,1,1\nb,y,,2,soon\nc,z,-inf,1e400,3\n,w,4,5,4\n")
    raw = one(path, "price=price")
    assert by_role(raw) == {
        "user": ["a", "b", "c", None],
        "item": ["x", "y", "z", "w"],
        "rating": [None, None, None, 4.0],
        "price": [1.0, 2.0, None, 5.0],
        "time": [1, None, 3, 4],
    }
    assert raw.text is not None
    assert {name: plain(column) for name, column in raw.text.items()} == {
        "rating": ["five", None, "-inf", "4"],
        "price": ["1", "2", "1e400", "5"],
        "time": ["1", "soon", "3", "4"],
    }


def test_rows_are_known_by_the_lines_of_the_file(write: Write) -> None:
    assert lines(one(write("user,item\na,x\nb,y\n"))) == [2, 3]
    assert lines(one(write("sep=;\nuser;item\na;x\nb;y\n"))) == [3, 4]
    assert lines(one(write("sep=;\nuser;item\na;x\n\nb;y\n"))) == [3, 5]
    assert lines(one(write("5,6\n3,4\n"), "user=1,item=2")) == [1, 2]
    title = 'user,item,title\na,x,"two\nlines"\n\nb,y,"three\n\n"\nc,z,one\n'
    assert lines(one(write(title), "user=user,item=item,title=title")) == [2, 5, 8]
    assert lines(one(write('\n"user\n",item\na,x\n\n'), "user=user,item=item")) == [4]
    assert lines(one(write('{"user": 1, "item": 2}\n\n{"user": 1, "item": 3}\n'))) == [1, 3]
    assert lines(one(write("u1 1 2 3\n\nu2 1 2\n"))) == [1, 1, 1, 3, 3]


def test_lines_that_are_no_rows_are_dropped_and_counted_where_that_is_asked_for(write: Write) -> None:
    raw = one(write("user,item\na,x\nb,y,z\nc\nd,w\n"), rows="drop")
    assert by_role(raw) == {"user": ["a", "d"], "item": ["x", "w"]}
    assert lines(raw) == [2, 5]
    assert raw.said == (
        "t.csv: 2 of 4 rows were dropped, 2 remain: must have 2 fields, as the first row has: line 3 3, line 4 1",
    )
    raw = one(write('{"user": 1, "item": 2}\n{\n{"user": 1, "item": 3}\n', "t.jsonl"), rows="drop")
    assert (lines(raw), raw.said) == (
        [1, 3],
        ("t.jsonl: 1 of 3 rows were dropped, 2 remain: must be a JSON object: line 2 no JSON",),
    )
    raw = one(write("u1 1 2 3\nu2\nu3 4 5\n"), format="sequences", rows="drop")
    assert lines(raw) == [1, 1, 1, 3, 3]


def test_an_encoding_that_only_the_end_of_a_file_tells_is_noticed(write: Write) -> None:
    content = b"user,item\n" + b"a,x\n" * 2**18 + "é,y\n".encode("latin-1")
    raw = one(write(content))
    assert plain(raw.columns["user"])[-1] == "é"
    assert raw.said == ("t.csv: read as latin-1 (cp1252)",)


def test_parquet_and_frames_keep_their_types(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "user": [1, 2, 3],
            "item": ["x", None, "z"],
            "time": pd.to_datetime(pd.Series(["1970-01-02", "1970-01-01 00:00:07.9", None]), format="ISO8601"),
            "rating": [1.5, None, 3],
            "price": ["1.234,5", "2,0", "3,0"],
            "click": [True, False, True],
            "more": [[1], [2], [3]],
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    ask = "user=user,item=item,time=time,rating=rating,price=price,label=click"
    expected = {
        "user": [1, 2, 3],
        "item": ["x", None, "z"],
        "time": [86400, 7, None],
        "rating": [1.5, None, 3.0],
        "price": [1234.5, 2.0, 3.0],
        "click": [True, False, True],
    }
    for raw in (one(tmp_path / "t.parquet", ask), read_frame(frame, ask, "t")):
        assert by_role(raw) == expected
        assert lines(raw) == [1, 2, 3]
    assert by_role(read_frame(frame[["user", "item"]], "", "t")) == {"user": [1, 2, 3], "item": ["x", None, "z"]}


def test_columns_of_parquet_that_are_coded_or_of_no_use(tmp_path: Path) -> None:
    frame = pd.DataFrame({"user": ["a", "b"], "item": pd.Categorical(["x", "y"]), "rating": pd.Categorical([2, 1])})
    frame["time"] = pd.Categorical(pd.to_datetime(["1970-01-02", "1970-01-03"], utc=True))
    frame["price"] = [[1.0], [2.0]]
    frame.to_parquet(tmp_path / "t.parquet")
    found = by_role(one(tmp_path / "t.parquet"))
    assert found == {"user": ["a", "b"], "item": ["x", "y"], "rating": [2.0, 1.0], "time": [86400, 172800]}
    assert "t.parquet, column 'price': must be numbers, found list" in refusal(tmp_path / "t.parquet", "price=price")


def test_nested_columns_of_parquet_are_named_by_dots(tmp_path: Path) -> None:
    pd.DataFrame({"who": [{"id": 7, "of": {"age": 9}}, {"id": 8, "of": {"age": 8}}], "item": [1, 2]}).to_parquet(
        tmp_path / "t.parquet"
    )
    assert by_role(one(tmp_path / "t.parquet", "user=who.id,item=item,rating=who.of.age"))["rating"] == [9.0, 8.0]


def test_a_folder_or_a_glob_is_one_table_or_a_platform_a_file(write: Write, tmp_path: Path) -> None:
    for name in ("films", "books"):
        write(f"user,item\na,{name}\n", f"d/{name}.csv")
    write("about the files", "d/README.md")
    write("", "d/_SUCCESS")
    folder = read_table(tmp_path / "d", "", Reading())
    assert [(raw.name, raw.platform) for raw in folder] == [("books.csv", ""), ("films.csv", "")]
    assert folder[0].said == ("d: not read: README.md",)
    assert [raw.name for raw in read_table(tmp_path / "d" / "f*.csv", "", Reading())] == ["films.csv"]
    named = read_table(tmp_path / "d", "", Reading(platforms="files"))
    assert [(raw.name, raw.platform) for raw in named] == [("books.csv", "books"), ("films.csv", "films")]
    assert "must match a file, found none" in refusal(tmp_path / "x*.csv")
    (tmp_path / "empty").mkdir()
    assert "must be a file, or a folder that holds one" in refusal(tmp_path / "empty")


def test_a_list_names_a_place_for_each_platform_with_columns_and_settings_of_its_own(
    write: Write, tmp_path: Path
) -> None:
    write("uid,iid,stars\na,x,5\n", "films.csv")
    write("kundin;sku;stars\nb;y;1,5\n", "shop.csv")
    write('{"uid": "c", "iid": "z"}\n', "books/1.jsonl")
    write('{"uid": "d", "iid": "w"}\n', "books/2.jsonl")
    text = f"films={tmp_path}/films.csv;shop={tmp_path}/shop.csv;books={tmp_path}/books"
    raws = read_table(
        Path(text),
        "user=uid,item=iid,rating=stars;shop:user=kundin,item=sku",
        Reading(delimiter="shop=semicolon", decimal="shop=comma"),
    )
    assert [(raw.platform, by_role(raw)) for raw in raws] == [
        ("films", {"user": ["a"], "item": ["x"], "rating": [5.0]}),
        ("shop", {"user": ["b"], "item": ["y"], "rating": [1.5]}),
        ("books", {"user": ["c"], "item": ["z"]}),
        ("books", {"user": ["d"], "item": ["w"]}),
    ]
    assert "found 'stern'" in refusal(text, "user=uid,item=iid,rating=stern;shop:user=kundin,item=sku")
    assert "column of shop.csv" in refusal(text, "user=uid,item=iid;shop:user=kunde,item=sku")
    assert "must be named once, found 'films'" in refusal(f"{text};films=x.csv")
    assert "columns: platform: must be one of" in refusal(text, "news:user=uid")
    assert "columns: platform: must be one of" in refusal(text, "user=uid,item=iid;news=user=kundin")


def test_a_path_that_exists_is_no_list(write: Write, tmp_path: Path) -> None:
    assert by_role(one(write(FORMS["plain"][1], "a=b.csv"))) == UIR
    assert by_role(one(write(FORMS["plain"][1], "x=1/part.csv"))) == UIR


def test_the_digest_is_of_all_files_and_of_who_has_them(write: Write, tmp_path: Path) -> None:
    one, two = write("a", "d/a.csv"), write("b", "d/b.csv")
    # SHA-256 of "a".
    assert digest([one]) == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    found = {digest([tmp_path / "d"]), digest([f"x={one};y={two}"]), digest([f"x={two};y={one}"]), digest([one, two])}
    assert digest([f"{tmp_path}/d/*.csv"]) == digest([tmp_path / "d"]) == digest([one, two])
    assert len(found) == 3 and "" not in found
    before = digest([tmp_path / "d"])
    two.write_text("c")
    assert digest([tmp_path / "d"]) != before
    assert digest([tmp_path / "none"]) == digest([None]) == digest([]) == ""


def test_attributes_are_read_by_key(write: Write, tmp_path: Path) -> None:
    items = write("Artikelnr;Titel;Preis;Farbe\n1;Äpfel;1,50;rot\n".encode("cp1252"), "items.csv")
    write("user_id:token\tage:float\nu1\t30\n", "d.user")
    write("item_id:token\tgenre:token_seq\n1\tA B\n", "d.item")
    (raw,) = read_attributes(str(items), "", Reading(), "item", ())
    assert by_role(raw) == {"key": ["1"], "title": ["Äpfel"], "price": [1.5]}
    assert "key is Artikelnr" in raw.said[0] and "decimal comma" in raw.said[0]
    (raw,) = read_attributes(
        f"shop={tmp_path}/d.item", "key=k;shop=key=item_id,category=genre", Reading(), "item", ["shop"]
    )
    assert (raw.platform, by_role(raw)) == ("shop", {"key": ["1"], "category": ["A|B"]})
    (raw,) = read_attributes(f"{tmp_path}/d.user", "", Reading(), "user", ())
    assert by_role(raw) == {"key": ["u1"], "age": ["30"]}
    with pytest.raises(UserError, match=r"reading.item_columns: must say which column of t.csv is the key"):
        read_attributes(str(write("a,b\n1,2\n")), "", Reading(), "item", ())
    with pytest.raises(UserError, match=r"reading.items: platform: must be one of shop, found 'shap'"):
        read_attributes("shap=x.csv", "", Reading(), "item", ["shop"])
    raw = read_plain(write("platform,key,to\nshop,1,2\n"), Reading())
    assert {name: plain(column) for name, column in raw.columns.items()} == {
        "platform": ["shop"],
        "key": ["1"],
        "to": ["2"],
    }


def test_every_word_for_a_delimiter_is_one_character() -> None:
    assert all(len(sign) == 1 for sign in DELIMITERS.values())
    assert np.all([sign.isascii() for sign in DELIMITERS.values()])


VALUES = st.one_of(
    st.none(), st.integers(-5, 5), st.floats(-2, 2, width=32), st.text("ab1 ", max_size=3), st.booleans()
)
OBJECTS = st.fixed_dictionaries(
    {"user": st.integers(0, 3), "product": st.fixed_dictionaries({"id": st.text("xyz", max_size=2)})},
    optional={"rating": VALUES, "more": st.lists(st.integers(), max_size=2)},
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(objects=st.lists(OBJECTS, min_size=1, max_size=6), blank=st.booleans())
def test_objects_are_read_alike_by_blocks_and_one_by_one(
    tmp_path: Path, objects: Sequence[dict[str, Any]], blank: bool
) -> None:
    path = tmp_path / "t.jsonl"
    text = "\n".join(map(json.dumps, objects)) + "\n\n" * blank
    path.write_text(text)
    wanted = ["user", "product.id", *(["rating"] if any("rating" in one for one in objects) else [])]
    fast = read_lines(path, "t", "utf-8", text, wanted, True)
    slow = read_json(path, "t", "utf-8", wanted, True, True)
    for name in wanted:
        assert [(type(v), v) for v in plain(fast.columns[name])] == [(type(v), v) for v in plain(slow.columns[name])]
    assert fast.lines is not None and slow.lines is not None and fast.lines.tolist() == slow.lines.tolist()


@pytest.mark.skipif("FEDREC_DATA" not in os.environ, reason="FEDREC_DATA does not name the folder of real data")
def test_real_files_are_read_as_they_are_described() -> None:
    home = Path(os.environ["FEDREC_DATA"])
    for name, users, items, rows in (("Beauty", 22_363, 12_101, 198_502), ("LastFM", 1090, 3646, 52_551)):
        raw = one(home / "sequences" / f"{name}.txt.gz")
        assert (len(raw.columns["user"].dictionary), len(raw.columns["item"].dictionary)) == (users, items)
        assert len(raw.columns["time"]) == rows
    raw = one(home / "ml-100k" / "u.data", "user=1,item=2,rating=3,time=4")
    assert (len(raw.columns["1"].dictionary), len(raw.columns["2"].dictionary), len(raw.columns["3"])) == (
        943,
        1682,
        10**5,
    )
    (films,) = read_attributes(str(home / "ml-100k" / "u.item"), "key=1,title=2", Reading(), "item", ())
    assert len(films.columns["2"]) == 1682 and "latin-1" in films.said[0]


@pytest.mark.soak
def test_a_million_rows_are_typed_and_mapped_in_seconds(
    tmp_path: Path, tries: Callable[[int, int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tries(0, 1_000_000)
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda _: str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"userId": rng.integers(1, 7000, rows), "movieId": rng.integers(1, 60_000, rows)})
    frame["rating"], frame["timestamp"] = rng.integers(1, 11, rows) / 2, rng.integers(8 * 10**8, 15 * 10**8, rows)
    frame.to_csv(tmp_path / "t.csv", index=False)
    for most in (3.0, 0.5):  # seconds of a core: parsed (0.5 were seen), then mapped (0.05)
        start = time.process_time()
        raw = one(tmp_path / "t.csv")
        assert time.process_time() - start < most
        assert (raw.columns["timestamp"].dtype, raw.columns["rating"].dtype) == (np.int64, np.float64)
        assert raw.columns["userId"].indices.type == raw.columns["movieId"].indices.type == pa.int32()
        assert raw.lines is None  # no array of a million numbers that are as they are expected
        np.testing.assert_array_equal(raw.columns["timestamp"], frame["timestamp"])
        words = np.asarray(raw.columns["userId"].dictionary.to_pylist(), np.int64)
        np.testing.assert_array_equal(words[raw.columns["userId"].indices.to_numpy()], frame["userId"])


def test_a_column_with_the_delimiter_in_quotes_is_one_column(write: Write) -> None:
    raw = one(write('7,"Chess, the 2nd",play\n8,"Go, the 1st",buy\n'), "user=1,item=2")
    assert by_role(raw)["item"] == ["Chess, the 2nd", "Go, the 1st"]


def test_quotes_in_quotes_may_stand_behind_a_backslash(write: Write) -> None:
    raw = one(write('"user";"isbn"\n"a";"Die \\"Strasse\\"; Roman"\n"b";"Halt"\n'))
    assert by_role(raw) == {"user": ["a", "b"], "item": ['Die "Strasse"; Roman', "Halt"]}
    assert "quotes escaped by a backslash" in raw.said[0]


@pytest.mark.parametrize("above", ["sep=;\n", "# of 2024\n", "# of 2024\n# by us\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_lines_above_a_table_are_no_rows_and_lines_are_counted_with_them(
    above: str, packed: bool, write: Write
) -> None:
    text = f"{above}user;item;rating\na;b;1\n\na;c;2;9\nb;c;3\n".encode()
    path = write(gzip.compress(text), "t.csv.gz") if packed else write(text)
    raw, first = one(path, rows="drop"), above.count("\n") + 1
    assert by_role(raw) == {"user": ["a", "b"], "item": ["b", "c"], "rating": [1, 3]}
    assert raw.lines is not None and raw.lines.tolist() == [first + 1, first + 4]
    with pytest.raises(UserError, match=rf"line {first + 3}: must have 3 fields, as the first row has, found 4"):
        one(path)


def test_a_first_line_with_a_mark_names_the_columns_if_it_has_as_many(write: Write) -> None:
    assert by_role(one(write("#user,item\na,b\n"))) == {"user": ["a"], "item": ["b"]}


def test_many_whole_numbers_a_line_are_sequences(write: Write) -> None:
    raw = one(write("".join(f"{user} " + " ".join(str(user + k) for k in range(9)) + "\n" for user in range(3))))
    assert len(by_role(raw)["user"]) == 27 and raw.columns["time"].tolist() == [*range(1, 10)] * 3


@pytest.mark.parametrize(
    "text", ["user,item,rating\n" + "a,b,1\n" * 2000 + "a,c,five\n", '{"user": 1, "item": 2}\n[]\n']
)
def test_a_process_that_refuses_a_file_ends_without_a_word_more(text: str, write: Write) -> None:
    path = write(text, "t.jsonl" if text.startswith("{") else "t.csv")
    code = "from fedrec.data import table\nfrom fedrec.errors import UserError\nfrom pathlib import Path\n"
    code += f"try:\n    table(Path({str(path)!r}), '')\nexcept UserError:\n    print('refused')\n"
    for _ in range(3):  # a thread that reads ahead may or may not be late
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, "refused\n", "")
