"""MovieLens 100K: GroupLens' layout, and an error of one line for what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedrec.data import Market, federation, load
from fedrec.data.layouts.movielens import movielens
from fedrec.errors import UserError

FILES = {
    "u.data": "2\t1\t5\t100\n1\t2\t3\t50\n1\t1\t4\t60\n",
    "u.item": f"1|Toy Story (1995)|01-Jan-1995||http://x|0|0|0|1|1|1{'|0' * 13}\n2|Am\xe9lie|||http://y|1{'|0' * 18}\n",
    "u.user": "1|24|M|technician|85711\n2|53|F|other|T8H1N\n",
}


def write(folder: Path, **changed: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {**FILES, **{f"u.{name}": text for name, text in changed.items()}}.items():
        (folder / name).write_text(content, encoding="latin-1", newline="")
    return folder


@pytest.mark.parametrize("parent", [False, True])
def test_the_layout_is_read(tmp_path: Path, parent: bool) -> None:
    write(tmp_path / "ml-100k" if parent else tmp_path)
    data = movielens(tmp_path)
    assert data.platforms == ("ml-100k",)
    assert data.labels == ("like",)
    assert data.interactions.to_dict("list") == {
        "user": [0, 0, 1],
        "item": [1, 0, 0],
        "platform": [0, 0, 0],
        "time": [50, 60, 100],
        "rating": [3.0, 4.0, 5.0],
        "positive": [True, True, True],
        "like": [False, True, True],
    }
    assert data.items["title"].tolist() == ["Toy Story (1995)", "Am\xe9lie"]
    assert data.items["categories"].tolist() == ["Animation|Children's|Comedy", "unknown"]
    assert data.users.to_dict("list") == {
        "key": ["1", "2"],
        "age": [24, 53],
        "gender": ["M", "F"],
        "occupation": ["technician", "other"],
        "zip": ["85711", "T8H1N"],
    }
    assert data.notes == ("u.data is not GroupLens' original file (its MD5 differs)",)


def test_windows_line_ends_are_read(tmp_path: Path) -> None:
    write(tmp_path, data=FILES["u.data"].replace("\n", "\r\n"), user=FILES["u.user"].replace("\n", "\r\n"))
    assert movielens(tmp_path).interactions["time"].tolist() == [50, 60, 100]


BAD = {
    "nan": ({"data": "1\t1\tnan\t5\n"}, "u.data, line 1: rating must be a number from 1 to 5, found 'nan'"),
    "inf": ({"data": "1\t1\t3\t5\n1\t2\tinf\t5\n"}, "u.data, line 2: rating .* found 'inf'"),
    "text": ({"data": "1\t1\tgood\t5\n"}, "u.data, line 1: rating .* found 'good'"),
    "zero": ({"data": "1\t1\t0\t5\n"}, "u.data, line 1: rating .* found '0'"),
    "six": ({"data": "1\t1\t6\t5\n"}, "u.data, line 1: rating .* found '6'"),
    "time": ({"data": "1\t1\t3\tnoon\n"}, "u.data, line 1: time must be whole seconds, found 'noon'"),
    "fields": ({"data": "1\t1\t3\t5\n1 2 3 4\n"}, "u.data, line 2: must have 4 fields, found '1 2 3 4'"),
    "empty": ({"data": ""}, "u.data: must hold at least one line, found an empty file"),
    "unknown user": ({"data": "3\t1\t3\t5\n"}, "u.data, line 1: user must be one of u.user, found '3'"),
    "unknown item": ({"data": "1\t9\t3\t5\n"}, "u.data, line 1: item must be one of u.item, found '9'"),
    "age": ({"user": "1|old|M|other|1\n"}, "u.user, line 1: age must be whole years, found 'old'"),
    "user twice": ({"user": FILES["u.user"] * 2}, "u.user, line 3: a user must occur once"),
    "item twice": ({"item": FILES["u.item"] * 2}, "u.item, line 3: an item must occur once"),
    "genres": ({"item": "1|A|||\n"}, "u.item, line 1: must have 24 fields, found '1|A"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_malformed_line_is_named(tmp_path: Path, case: str) -> None:
    changed, named = BAD[case]
    with pytest.raises(UserError, match=named.replace("|", r"\|")) as caught:
        movielens(write(tmp_path, **changed))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (write(tmp_path) / name).unlink()
    with pytest.raises(UserError, match=f"{name} must be a readable file, found No such file"):
        movielens(tmp_path)


@pytest.mark.skipif("FEDREC_DATA" not in os.environ, reason="FEDREC_DATA does not name the folder of real data")
def test_the_real_data() -> None:
    folder = Path(os.environ["FEDREC_DATA"])
    data = load("ml-100k", data_dir=folder, columns="", platforms=5, market=Market(), seed=0)
    assert data.notes == ()
    assert (len(data.interactions), len(data.users), len(data.items)) == (100_000, 943, 1682)
    # u.info and the README count these; 55,375 ratings are 4 or 5.
    assert int(data.interactions["like"].sum()) == 55_375
    clients = federation(data, clients=5)
    assert [len(client.users) for client in clients] == [189, 189, 189, 188, 188]
    # Every user has at least 20 ratings: one test and one validation item each.
    assert all(len(client.test) == len(client.validation) == len(client.users) for client in clients)
