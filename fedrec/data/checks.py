"""What every source of data does: refuse a bad value by its place, and bring interactions into the common order."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedrec.errors import UserError
from fedrec.files import PEEKED

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
        found = "nothing" if pd.isna(value) else repr(value)[:80]
        raise UserError(f"{thing}, {unit} {first + 1}: {rule}, found {found}")


def canonical(frame: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Sort interactions by (platform, user, time, item), keep the first in time of every (platform, user, item).

    Duplicates at the same time: the first row read is kept. Returns the frame and a note that counts what was dropped.
    """
    ordered = frame.sort_values(["platform", "user", "time", "item"], ignore_index=True)
    repeated = ordered.duplicated(KEY).to_numpy()
    if not repeated.any():
        return ordered, ()
    note = f"{int(repeated.sum())} duplicate (platform, user, item) rows were dropped, the first in time is kept"
    return ordered[~repeated].reset_index(drop=True), (note,)


def showable(name: str) -> bool:
    """Return whether a terminal and an option can show a name, and a file be named after it."""
    return name.isprintable() and len(name) <= LONGEST


def check_header(file: io.BufferedReader, wanted: Sequence[str], name: str) -> None:
    """Raise UserError if the first line of a CSV is longer than a header may be, or names a wanted column twice.

    The file is left at its beginning. pandas would rename the second column of a name, and read the first in silence.
    """
    start = file.peek(PEEKED)
    line = start.splitlines()[0] if start else b""
    if len(line) >= PEEKED:
        raise UserError(f"{name}, line 1: must be a header of less than {PEEKED} bytes, found a longer line")
    check_once(next(csv.reader([line.decode("utf-8-sig", errors="replace")]), []), wanted, name)


def check_once(found: Sequence[str], wanted: Sequence[str], name: str) -> None:
    """Raise UserError if a file has several columns of a wanted name."""
    for column in wanted:
        if found.count(column) > 1:
            raise UserError(f"column {column!r} of {name}: must be there once, found {found.count(column)} of them")
