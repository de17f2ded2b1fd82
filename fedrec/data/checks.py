"""What every source of data does: refuse a bad value by its place, and bring interactions into the common order."""

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

from fedrec.data.repeats import merged, told
from fedrec.data.types import Interactions
from fedrec.errors import UserError
from fedrec.files import PEEKED, unpacked

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
    """Merge the rows of every (platform, user, item) (`repeats.merged`); sort by (platform, user, time, item).

    `frame` has the columns of `Dataset.interactions`; all that are bool but `positive` are labels. Returns the frame,
    which does not depend on the order of the rows, and a note that counts what was merged into what.
    """
    labels = [name for name in frame.columns if frame[name].dtype == np.bool_ and name != "positive"]
    order = ["platform", "user", "time", "item"]
    if not frame.duplicated(KEY).any():
        return frame.sort_values(order, ignore_index=True), ()
    keys = frame.groupby(KEY, sort=True).ngroup().to_numpy().astype(np.int64)
    before = Interactions.of(frame, labels)
    after = merged(before, keys)
    platform = frame["platform"].to_numpy()[np.unique(keys, return_index=True)[1]]
    columns = {"user": after.user, "item": after.item, "platform": platform}
    columns |= {"time": after.time, "rating": after.rating, "positive": after.positive, **after.labels}
    found = pd.DataFrame(columns)[list(frame.columns)]
    return found.sort_values(order, ignore_index=True), (told(before, after),)


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
    """Return a CSV (also packed, see `fedrec.files.unpacked`) with at least the wanted columns, each of them once."""
    with warnings.catch_warnings():
        # Rows longer than the header mean a shifted column: pandas cuts them where it reads some columns only, and
        # only warns where all rows are long.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        with unpacked(path, path.name) as file:
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


def check_once(found: Sequence[str], wanted: Sequence[str], name: str) -> None:
    """Raise UserError if a file has several columns of a wanted name."""
    for column in wanted:
        if found.count(column) > 1:
            raise UserError(f"column {column!r} of {name}: must be there once, found {found.count(column)} of them")
