"""What every source of data does: refuse a bad value by its place, merge what is said again, bring rows in order."""

import csv
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedrec.data.types import COLUMNS, WEIGHT, Bools, Interactions, Ints
from fedrec.errors import UserError
from fedrec.files import PEEKED, unpack

LONGEST = 100  # characters of a client's name
NAMES = f"a name must be printable and have at most {LONGEST} characters"
KEY = ["platform", "user", "item"]


def refuse(bad: NDArray[np.bool_], values: Any, thing: str, rule: str, unit: str = "row") -> None:
    """Raise a UserError that names the first place where `bad` [n] is true, the rule, and the value found there.

    `values` [n] are as read; rows count from 1 below the header, lines from 1.
    """
    if bad.any():
        first = int(np.argmax(bad))
        value = values[first]
        text = "nothing" if pd.isna(value) else repr(value)[:80]
        raise UserError(f"{thing}, {unit} {first + 1}: {rule}, found {text}")


def canonical(frame: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Merge the rows of every (platform, user, item) (`merged`); sort by (platform, user, time, item).

    `frame` has the columns of `Dataset.interactions`, codes of any width; all that are bool but `positive` are labels.
    Returns the frame, which does not depend on the order of the rows, and a note that counts what was merged into what.
    """
    platform, user, item = (frame[name].to_numpy() for name in KEY)
    keys = (platform.astype(np.int64) * _size(user) + user) * _size(item) + item
    again, notes = _repeated(keys), tuple[str, ...]()
    if again is not None:
        labels = [str(name) for name in frame.columns if frame[name].dtype == np.bool_ and name != "positive"]
        before = Interactions.of(frame, labels)
        once = merged(before.take(again), keys[again])
        columns = {name: getattr(once, name) for name in (*COLUMNS, WEIGHT)} | once.labels
        columns["platform"] = platform[again][np.unique(keys[again], return_index=True)[1]]
        joined = {name: np.concatenate([frame[name].to_numpy()[~again], columns[name]]) for name in frame.columns}
        frame = pd.DataFrame(joined, copy=False)
        notes = (merge_note(before, Interactions.of(frame, labels)),)
        del before, joined
    del keys, platform, user, item
    frame = frame.copy(deep=False)  # whose columns go one by one: those of a caller who keeps none are let go of
    order = _in_order(*(frame[name].to_numpy() for name in ("platform", "user", "time", "item")))
    columns = {}
    for name in list(frame.columns):
        column = frame[name].to_numpy()[order]
        columns[str(name)] = column.astype(np.int64, copy=False) if name in KEY else column
        del frame[name]
    return pd.DataFrame(columns, copy=False), notes


def _size(codes: Ints) -> int:
    return int(codes.max()) + 1 if len(codes) else 1


def _repeated(keys: Ints) -> Bools | None:
    """Return which keys [n] occur twice or more; None if none does."""
    ascending = np.sort(keys)
    several = np.unique(ascending[1:][ascending[1:] == ascending[:-1]])
    if not len(several):
        return None
    place = np.searchsorted(several, keys)
    return np.asarray(several[np.minimum(place, len(several) - 1)] == keys, np.bool_)


def _in_order(platform: Ints, user: Ints, time: Ints, item: Ints) -> Ints:
    """Return the order [n] by platform, user, time and item: by the first three as one number, then among equals."""
    first = int(time.min()) if len(time) else 0
    span = int(time.max()) - first + 1 if len(time) else 1
    if (_size(platform) * _size(user)) * span >= 2**63:
        return np.lexsort((item, time, user, platform))
    key = (platform.astype(np.int64) * _size(user) + user) * span + (time - first)
    order = np.argsort(key)
    ascending = key[order]
    equal = ascending[1:] == ascending[:-1]
    del ascending
    if equal.any():
        some = np.append(equal, False) | np.append(False, equal)
        rows = order[some]
        order[some] = rows[np.lexsort((item[rows], key[rows]))]
    return order


def showable(name: str) -> bool:
    """Return whether a terminal and an option can show a name, and a file be named after it."""
    return name.isprintable() and len(name) <= LONGEST


@contextmanager
def reading(path: Path, form: str) -> Iterator[None]:
    """Raise UserError for whatever a file that is damaged, or of another form, makes its reader raise."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: must be a readable {form} file, found {reason}") from None


def read_csv(path: Path, wanted: Sequence[str], **options: Any) -> pd.DataFrame:
    """Return a CSV (also packed, see `fedrec.files.unpack`) with at least the wanted columns, each of them once."""
    with warnings.catch_warnings():
        # Rows longer than the header mean a shifted column: pandas cuts them where it reads some columns only, and
        # only warns where all rows are long.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        with unpack(path, path.name) as file:
            check_header(file, wanted, path.name)
            frame: pd.DataFrame = pd.read_csv(file, index_col=False, keep_default_na=False, **options)
            return frame


def check_header(file: io.BufferedReader, wanted: Sequence[str], name: str) -> None:
    """Raise UserError if the first line of a CSV is longer than a header may be, or names a wanted column twice.

    The file is left at its beginning. pandas would rename the second column of a name, and read the first in silence.
    """
    start = file.peek(PEEKED)
    line = start.splitlines()[0] if start else b""
    if len(line) >= PEEKED:
        raise UserError(f"{name}, line 1: must be a header of less than {PEEKED} bytes, found a longer line")
    check_once(next(csv.reader([line.decode("utf-8-sig", errors="replace")]), []), wanted, name)


def check_once(columns: Sequence[str], wanted: Sequence[str], name: str) -> None:
    """Raise UserError if a file has several columns of a wanted name."""
    for column in wanted:
        if columns.count(column) > 1:
            raise UserError(f"column {column!r} of {name}: must be there once, found {columns.count(column)} of them")


def merged(rows: Interactions, keys: Ints, once: bool = False) -> Interactions:
    """Return one row for every key [n], by ascending key, whatever the order of the rows.

    It is a positive, and has a label, where any row of the key is or has (so that a label is known where any row's is,
    and one that is not known of a row is none that it has); its time is the last one; its rating is that
    of the last time at which there is a rating, the mean of them where that time has several; its weight is their sum,
    or where rows of a key are said `once`, and held by several, the largest. User and item are those of any row: the
    key must decide them.
    """
    order = np.argsort(keys, kind="stable")
    rows, (_, start, group) = rows.take(order), np.unique(keys[order], return_index=True, return_inverse=True)
    if len(start) == len(rows):
        return rows
    count, rated = len(start), np.flatnonzero(~np.isnan(rows.rating))
    latest = np.full(count, np.iinfo(np.int64).min)
    np.maximum.at(latest, group[rated], rows.time[rated])
    last = rated[rows.time[rated] == latest[group[rated]]]
    last = last[np.argsort(rows.rating[last], kind="stable")]  # the order of a sum moves its last bit
    number = np.bincount(group[last], minlength=count)
    total = np.bincount(group[last], weights=rows.rating[last], minlength=count)
    weight = rows.weight
    if weight is not None:
        add = np.maximum if once else np.add
        weight = add.reduceat(weight[np.lexsort((weight, group))], start, dtype=np.float64).astype(np.float32)
    return Interactions(
        rows.user[start],
        rows.item[start],
        np.maximum.reduceat(rows.time, start),
        np.where(number > 0, total / np.maximum(number, 1), np.nan).astype(np.float32),
        np.logical_or.reduceat(rows.positive, start),
        {name: np.logical_or.reduceat(label, start) for name, label in rows.labels.items()},
        weight,
    )


def merge_note(before: Interactions, after: Interactions) -> str:
    """Return how many rows of which label were merged into how many interactions."""
    text = f"{len(before):,} rows are {len(after):,} interactions: repeats of a (platform, user, item) are merged, "
    text += "with every label that any of them has"
    text += ", the last time" * bool(before.time.any())
    text += ", the last rating" * bool(np.isfinite(before.rating).any())
    text += ", the sum of their weights" * (before.weight is not None)
    names = [name for name in before.labels if not name.endswith("?")]
    parts = [(name, before.labels[name], after.labels[name]) for name in names]
    if parts:
        none = [~np.logical_or.reduce([rows.labels[name] for name in names]) for rows in (before, after)]
        parts.append(("no label", none[0], none[1]))
    counts = "; ".join(f"{name}: {int(a.sum()):,} rows, {int(b.sum()):,} interactions" for name, a, b in parts)
    return f"{text} ({counts})" if counts else text
