"""The cache of parsed columns: the same with it and without, never stale, never needed."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pyarrow as pa  # type: ignore[import-untyped]
import pytest

from fedrec.data.reading import Raw, Reading
from fedrec.data.sources import cache, read_table
from fedrec.data.sources.file import Opened, Parsed, Settings
from fedrec.data.sources.file import parse as whole

ROWS = "user;item;rating;time;price\nä;x;1,5;01.02.2020;1\n\nb;y;2;03.02.2020;cheap\n;x;;13.02.2020;2\n"
FILES = {
    "t.csv": ROWS,
    "t.jsonl": '{"user": 1, "item": "x", "rating": 1}\n{"user": 2, "item": "y"}\n',
    "t.txt": "u1 1 2 3\nu2 3 4\n",
}


@pytest.fixture
def parsings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let files be cached, whatever their size, in a folder of the test; the names of those that are parsed."""
    found: list[str] = []

    def parse(opened: Opened, kinds: dict[str, str], settings: Settings) -> Parsed:
        found.append(opened.name)
        return whole(opened, kinds, settings)

    monkeypatch.setattr(cache, "parse", parse)
    monkeypatch.setattr(cache, "SMALL", 0)
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda _: str(tmp_path / "cache" / "fedrec"))
    return found


def one(path: Path, **reading: Any) -> Raw:
    (raw,) = read_table(path, "", Reading(**reading))
    return raw


def same(a: Raw, b: Raw) -> None:
    """Check that two files are the same to the bit, and of the same types."""
    assert (a.name, a.roles, a.labels, a.said) == (b.name, b.roles, b.labels, b.said)
    assert (a.text is None) == (b.text is None)
    assert a.columns.keys() == b.columns.keys()
    pairs: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = [(a.columns, b.columns), (a.text or {}, b.text or {})]
    for one, other in (*pairs, ({"": a.lines}, {"": b.lines})):
        for name, column in one.items():
            if isinstance(column, pa.Array):
                assert column.type == other[name].type and column.equals(other[name])
            elif column is None:
                assert other[name] is None
            else:
                assert isinstance(other[name], np.ndarray) and column.dtype == other[name].dtype
                assert column.tobytes() == other[name].tobytes()


@pytest.mark.parametrize("name", FILES)
def test_what_is_mapped_is_what_was_parsed(tmp_path: Path, parsings: list[str], name: str) -> None:
    path = tmp_path / name
    path.write_text(FILES[name], encoding="utf-8")
    parsed, mapped = one(path), one(path)
    assert parsings == [name]
    same(parsed, mapped)


def test_the_cache_is_private_and_holds_so_many_files(
    tmp_path: Path, parsings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "KEPT", 2)
    folder = tmp_path / "cache" / "fedrec" / "tables"
    for number, name in enumerate(("a", "b", "c")):
        (tmp_path / f"{name}.csv").write_text(f"user,item\n{name},x\n")
        one(tmp_path / f"{name}.csv")
        for path in folder.glob("*.arrow"):  # the time that a file system tells two uses apart by
            if path.stat().st_mtime > 10**9:
                os.utime(path, (number, number))
    assert len(list(folder.iterdir())) == 2
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    one(tmp_path / "c.csv")
    one(tmp_path / "a.csv")
    assert parsings == ["a.csv", "b.csv", "c.csv", "a.csv"]


def test_a_changed_file_is_noticed_though_it_seems_the_same(tmp_path: Path, parsings: list[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text("user,item\na,x\n")
    before = path.stat()
    one(path)
    path.write_text("user,item\na,y\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert one(path).columns["item"].to_pylist() == ["y"]
    assert len(parsings) == 2


def test_another_way_of_reading_is_another_entry(tmp_path: Path, parsings: list[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text('user,item,rating,time\na,x,"1,234",01/02/2020\n')
    for decimal, value in (("point", 1234.0), ("comma", 1.234)):
        for dates, day in (("%d/%m/%Y", 18293), ("%m/%d/%Y", 18263)):  # 2020-02-01, 2020-01-02, in days
            for _ in range(2):
                raw = one(path, decimal=decimal, dates=dates)
                assert (raw.columns["rating"].tolist(), raw.columns["time"].tolist()) == ([value], [day * 86400])
    assert len(parsings) == 4
    (tmp_path / "other.csv").write_bytes(path.read_bytes())  # of which errors and what is said name the file
    one(tmp_path / "other.csv", decimal="point", dates="%d/%m/%Y")
    assert len(parsings) == 5


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    if kind == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif kind == "moved":  # a sound file of other columns
        other = next(one for one in path.parent.glob("*.arrow") if one != path)
        path.write_bytes(other.read_bytes())
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({"empty": b"", "short": content[:-7], "garbage": b"x" * len(content)}[kind])


@pytest.mark.parametrize("kind", ["flipped", "moved", "folder", "empty", "short", "garbage"])
def test_a_damaged_or_foreign_cache_is_done_without(tmp_path: Path, parsings: list[str], kind: str) -> None:
    path, other = tmp_path / "t.csv", tmp_path / "other.csv"
    path.write_text(ROWS, encoding="utf-8")
    parsed = one(path)
    (cached,) = (tmp_path / "cache" / "fedrec" / "tables").iterdir()
    other.write_text(ROWS.replace("x", "z"), encoding="utf-8")
    one(other)
    damage(cached, kind)
    same(parsed, one(path))
    assert parsings == ["t.csv", "other.csv", "t.csv"]
    same(parsed, one(path))
    assert len(parsings) == (4 if kind == "folder" else 3)  # it was written anew


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, parsings: list[str]) -> None:
    (tmp_path / "cache").write_text("a file")
    (tmp_path / "t.csv").write_text(ROWS, encoding="utf-8")
    same(one(tmp_path / "t.csv"), one(tmp_path / "t.csv"))
    assert len(parsings) == 2


def test_small_files_are_not_cached(tmp_path: Path, parsings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda _: str(tmp_path / "cache"))
    (tmp_path / "t.csv").write_text(ROWS, encoding="utf-8")
    one(tmp_path / "t.csv")
    assert not (tmp_path / "cache").exists()
