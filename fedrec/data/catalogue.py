"""What is known of items and users: of the rows that name them, and of files of their own, by key."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]

from fedrec.data.columns import Coded, Codes, Column, coded, keys, numbers, together
from fedrec.data.faults import Fault, settle
from fedrec.data.matching import Matches
from fedrec.data.reading import Raw, Reading
from fedrec.data.rows import ABOUT, EMPTY, Rows, positive_number
from fedrec.data.types import Bools, Ints

COLUMNS = {"title": "title", "category": "categories", "brand": "brand", "description": "description"}
SEQUENCE = ":token_seq"  # the end of a column's name whose texts are lists, separated by blanks


@dataclass(frozen=True)
class Sheet:
    """What a file says of items or users, one line each: their keys [n], and columns by role, None where unknown."""

    name: str
    platform: str  # "": of all
    keys: list[str]
    columns: dict[str, Column]


def read_sheet(raw: Raw, reading: Reading, kind: str, matches: Matches, notes: list[str]) -> Sheet:
    """Return a file of items' or users' attributes; `notes` gets what is said of it.

    A line without a key, with one that an earlier line has, or with a price that is no positive number is a bad row,
    see `settle`. Keys of a platform are those of the others by its matches.
    """
    key, _ = keys(raw.columns[raw.roles["key"]])
    pairs = matches.to.get((kind, raw.platform), {})
    texts = [pairs.get(text, text) for text in key.values]
    repeated = pd.Series(key.spread(np.asarray(texts, object), None)).duplicated().to_numpy() & ~key.missing
    faults = [Fault("key", raw.roles["key"], EMPTY, key.missing)]
    faults.append(Fault("key", raw.roles["key"], "a key must occur once", repeated))
    columns: dict[str, Column] = {}
    for role, column in raw.roles.items():
        text = (raw.text or {}).get(column)
        if role == "price":
            value = numbers(raw.columns[column], text)
            faults.append(Fault("price", column, "a price must be a positive number", ~positive_number(value)))
            columns[role] = value.number
        elif role != "key":
            columns[role] = attribute(raw.columns[column], column, kind == "item", role)
    kept, said = settle(raw, faults, reading.rows)
    notes += [*raw.said, *said]
    rows = np.ones(len(key), np.bool_) if kept is None else kept
    names = [texts[code] for code in key.code[rows].tolist()]
    return Sheet(raw.name, raw.platform, names, {role: column[rows] for role, column in columns.items()})


def attribute(column: object, name: str, of_items: bool, role: str) -> Column:
    """Return a column of attributes: texts, None where unknown; of users numbers, where all are."""
    if not of_items:
        value = numbers(column)
        if not value.bad.any() and not np.isnan(value.number).all():
            return value.number
    found = coded(column)
    return found.spread(
        np.asarray(categories(found.values, name) if role == "category" else found.values, object), None
    )


def categories(texts: Sequence[str], name: str = "") -> list[str]:
    """Return lists of categories as texts whose parts are separated by '|': of JSON lists, or of blanks."""
    if name.endswith(SEQUENCE):
        return ["|".join(text.split()) for text in texts]
    return [_of_json(text) if text.startswith("[") and text.endswith("]") else text for text in texts]


def _of_json(text: str) -> str:
    try:
        parts = json.loads(text)
    except ValueError:
        return text
    return "|".join(str(part).strip() for part in parts)


def attributes_of_rows(parts: Sequence[Rows], frame: pd.DataFrame, count: int) -> dict[str, Column]:
    """Return what rows say of `count` items, by role: the first that is not empty.

    The first is by platform, user and time of the rows, which `frame` has, then by itself.
    """
    found: dict[str, Column] = {}
    for role in ABOUT:
        if any(role in part.about for part in parts):
            code, texts = together([part.about.get(role) or empty(len(part)) for part in parts])
            names = np.asarray([*(categories if role == "category" else list)(texts.to_pylist()), None], object)
            found[role] = names[first(frame, code, count)]
    if any(part.price is not None for part in parts):
        nan = [np.full(len(part), np.nan) if part.price is None else part.price for part in parts]
        price, values = pd.factorize(np.concatenate(nan), sort=True)
        found["price"] = np.append(values, np.nan)[first(frame, price.astype(np.int32), count)]
    return found


def empty(n: int) -> Coded:
    """Return a column [n] without values."""
    return Coded(np.broadcast_to(np.int32(-1), n), pa.array([], pa.large_string()))


def first(frame: pd.DataFrame, code: Codes, count: int) -> Codes:
    """Return the first code of every item that is not -1; codes ascend as their values do."""
    item: Codes = frame["item"].to_numpy()
    slot = np.full(count, -1, np.int32)
    known = code >= 0
    slot[item[known]] = code[known]
    unlike = known & (slot[item] != code)
    if unlike.any():
        several = np.zeros(count, np.bool_)
        several[item[unlike]] = True
        rows: Ints = np.flatnonzero(known & several[item])
        some = frame[["item", "platform", "user", "time"]].iloc[rows].assign(code=code[rows])
        one = some.sort_values(["platform", "user", "time", "code"]).drop_duplicates("item")
        slot[one["item"].to_numpy()] = one["code"].to_numpy()
    return slot


def item_table(texts: Sequence[str], of_rows: dict[str, Column], sheets: Sequence[Sheet]) -> pd.DataFrame:
    """Return the catalogue of items by key: what files say first, in their order, then rows; a title is else the key.

    Categories, brands and descriptions are "" where nothing is known, if they are of any; the price is NaN.
    """
    known = fill(texts, of_rows, sheets)
    items = pd.DataFrame({"key": pd.Series(texts, dtype="str")})
    for role, column in COLUMNS.items():
        if role in known:
            items[column] = pd.Series(known[role], dtype="str").fillna(items["key"] if role == "title" else "")
        elif role in ("title", "category"):
            items[column] = items["key"] if role == "title" else pd.Series([""] * len(items), dtype="str")
    if "price" in known:
        items["price"] = np.asarray(known["price"], np.float64)
    return items


def user_table(texts: Sequence[str], sheets: Sequence[Sheet]) -> pd.DataFrame:
    """Return users by key with the attributes that files say of them: texts ("": unknown) or numbers (NaN)."""
    known = fill(texts, {}, sheets)
    people = pd.DataFrame({"key": pd.Series(texts, dtype="str")})
    for role, column in known.items():
        if column.dtype == object:
            people[role] = pd.Series([None if v is None else str(v) for v in column], dtype="str").fillna("")
        else:
            whole = not np.isnan(np.asarray(column, np.float64)).any() and not (column % 1).any()
            people[role] = column.astype(np.int64) if whole else column
    return people


def fill(texts: Sequence[str], given: dict[str, Column], sheets: Sequence[Sheet]) -> dict[str, Column]:
    """Return columns by role: of every key what the first sheet says that says anything, else what is `given`."""
    index = pd.Index(list(texts), dtype="str")
    found: dict[str, Column] = {}
    for sheet in sheets:
        place = index.get_indexer(pd.Index(sheet.keys, dtype="str"))
        here = place >= 0
        for role, column in sheet.columns.items():
            values = np.full(len(texts), np.nan if column.dtype.kind == "f" else None, column.dtype)
            values[place[here]] = column[here]
            found[role] = _either(found[role], values) if role in found else values
    return {**found, **{role: _either(found[role], one) if role in found else one for role, one in given.items()}}


def _either(one: Column, other: Column) -> Column:
    if one.dtype != other.dtype:
        one, other = one.astype(object), other.astype(object)
        one[pd.isna(one)], other[pd.isna(other)] = None, None
    return np.where(pd.isna(one), other, one)


def carried(texts: Sequence[str], sheets: Sequence[Sheet], seen: Ints) -> Bools:
    """Return which items [n] a platform has: those of its own files, and those `seen` in its rows."""
    index, mine = pd.Index(list(texts), dtype="str"), np.zeros(len(texts), np.bool_)
    for sheet in sheets:
        place = index.get_indexer(pd.Index(sheet.keys, dtype="str"))
        mine[place[place >= 0]] = True
    mine[seen] = True
    return mine
