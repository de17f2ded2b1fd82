"""MovieLens 100K in GroupLens' own layout, whose genres are a column each."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from fedrec.data.checks import canonical, refuse
from fedrec.data.types import Dataset
from fedrec.errors import UserError
from fedrec.files import regular

RATINGS_MD5 = "6e47046882bad158b0efbb84cd5cb987"
GENRES = (
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|Musical|"
    "Mystery|Romance|Sci-Fi|Thriller|War|Western"
)


def movielens(data_dir: Path) -> Dataset:
    """Return MovieLens 100K: one platform, every rating a positive, the label `like` where the rating is 4 or 5.

    `data_dir` is the directory of u.data, u.item and u.user, or its parent. Users carry `age`, `gender`, `occupation`,
    `zip`; items their genres as categories. Raises UserError for a missing file, a malformed line, and a rating that is
    not a number from 1 to 5.
    """
    folder = data_dir
    if not (folder / "u.data").exists() and (folder / "ml-100k").is_dir():
        folder = folder / "ml-100k"
    data, users, items = _ratings(folder), _users(folder), _items(folder)
    for name, rows, file in (("user", users, "u.user"), ("item", items, "u.item")):
        index = pd.Index(rows["key"]).get_indexer(data[name])
        refuse(index < 0, data[name].tolist(), f"{folder / 'u.data'}", f"{name} must be one of {file}", "line")
        data[name] = index.astype(np.int64)
    interactions, notes = canonical(data)
    interactions["like"] = interactions["rating"] >= 4
    if _md5((folder / "u.data").read_bytes()) != RATINGS_MD5:
        notes = ("u.data is not GroupLens' original file (its MD5 differs)", *notes)
    return Dataset("ml-100k", interactions, users, items, ("ml-100k",), ("like",), notes)


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _fields(path: Path, separator: str, count: int, unique: str = "") -> pd.DataFrame:
    """Return the fields of a headerless file as text, columns 0 to count - 1; what is `unique` stands in the first."""
    try:
        if path.exists():
            regular(path, "data-dir")
        lines = path.read_text(encoding="latin-1").split("\n")
    except OSError as error:
        raise UserError(f"data-dir: {path} must be a readable file, found {error.strerror}") from None
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise UserError(f"{path}: must hold at least one line, found an empty file")
    rows = [line.removesuffix("\r").split(separator) for line in lines]
    wrong = np.asarray([len(row) != count for row in rows])
    refuse(wrong, lines, f"{path}", f"must have {count} fields", "line")
    frame = pd.DataFrame(rows, columns=range(count), dtype="str")
    if unique:
        refuse(frame[0].duplicated().to_numpy(), frame[0].tolist(), f"{path}", f"{unique} must occur once", "line")
    return frame


def _whole(path: Path, text: pd.Series, rule: str, lowest: int, highest: int) -> pd.Series:
    number = pd.to_numeric(text, errors="coerce").astype(np.float64)
    bad = ~(number.between(lowest, highest) & (number % 1 == 0)).to_numpy()
    refuse(bad, text.tolist(), f"{path}", rule, "line")
    return number.astype(np.int64)


def _ratings(folder: Path) -> pd.DataFrame:
    path = folder / "u.data"
    raw = _fields(path, "\t", 4)
    rating = pd.to_numeric(raw[2], errors="coerce").astype(np.float32)
    refuse(~rating.between(1, 5).to_numpy(), raw[2].tolist(), f"{path}", "rating must be a number from 1 to 5", "line")
    return pd.DataFrame(
        {
            "user": raw[0],
            "item": raw[1],
            "platform": np.zeros(len(raw), dtype=np.int64),
            "time": _whole(path, raw[3], "time must be whole seconds", 0, 2**53),
            "rating": rating,
            "positive": True,
        }
    )


def _users(folder: Path) -> pd.DataFrame:
    path = folder / "u.user"
    raw = _fields(path, "|", 5, "a user")
    age = _whole(path, raw[1], "age must be whole years", 0, 150)
    return pd.DataFrame({"key": raw[0], "age": age, "gender": raw[2], "occupation": raw[3], "zip": raw[4]})


def _items(folder: Path) -> pd.DataFrame:
    names = GENRES.split("|")
    raw = _fields(folder / "u.item", "|", 5 + len(names), "an item")
    flags = (raw.iloc[:, 5:] == "1").to_numpy()
    genres = ["|".join(name for name, flag in zip(names, row, strict=True) if flag) for row in flags]
    return pd.DataFrame({"key": raw[0], "title": raw[1], "categories": pd.Series(genres, dtype="str")})
