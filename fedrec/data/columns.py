"""Columns as files have them, read as what a role needs: keys, numbers, yes or no, times."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from numpy.typing import NDArray

from fedrec.data.types import Bools

Codes = NDArray[np.int32]
Reals = NDArray[np.float64]
Column = NDArray[Any]  # of texts (objects, None where unknown), or of numbers (NaN)
TEXT = pa.large_string()
EXACT = 2**53  # whole numbers above it have lost digits where they were read as floating-point numbers
# Names that no label has: columns of interactions, and tasks about items.
RESERVED = (
    *("user", "item", "platform", "time", "rating", "weight", "positive", "category", "price", "brand", "behaviour"),
)
AS_FLOAT = r"^-?\d+\.0$"
BINARY = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0, "no": 0.0, "yes": 1.0}
SAMPLE = 1_000_000  # rows by which the unit of times is told
LATEST = 1e11  # seconds, in the year 5138
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}


@dataclass(frozen=True)
class Coded:
    """A column [n] as the codes of its distinct texts [k], which some row has or not; -1 where it is missing."""

    code: Codes
    texts: Any  # pyarrow array of text

    def __len__(self) -> int:
        return len(self.code)

    @property
    def missing(self) -> Bools:
        """The rows [n] that have no value."""
        return self.code < 0

    @property
    def there(self) -> Bools:
        """The texts [k] that some row has."""
        mask = np.zeros(len(self.texts) + 1, np.bool_)
        mask[self.code] = True  # of missing ones the last
        return mask[:-1]

    @property
    def values(self) -> list[str]:
        """The distinct texts."""
        return list(self.texts.to_pylist())

    @property
    def distinct(self) -> frozenset[str]:
        """The texts that some row has."""
        return frozenset(self.texts.filter(pa.array(self.there)).to_pylist())

    def take(self, index: Any) -> "Coded":
        """Return some rows, by position or mask."""
        return Coded(self.code[index], self.texts)

    def spread(self, table: NDArray[Any], missing: Any) -> NDArray[Any]:
        """Return for every row [n] what a `table` [k] has for its text; `missing` where there is none."""
        return np.append(table, np.asarray([missing], table.dtype))[self.code]


def together(columns: Sequence[Coded], extra: Any = None) -> tuple[Codes, Any]:
    """Return the rows of all columns, one after the other, as codes [n], and the ascending texts that some row has.

    `extra` are texts that are there whether a row has them or not.
    """
    used = [column.texts.filter(pa.array(column.there)) for column in columns]
    every = pc.unique(pa.concat_arrays([*used, *([] if extra is None else [extra.cast(TEXT)])]))
    every = every.take(pc.sort_indices(every))
    codes = []
    for column in columns:
        place = pc.index_in(column.texts, value_set=every).fill_null(-1).to_numpy(zero_copy_only=False)
        codes.append(np.append(place, -1).astype(np.int32)[column.code])
    return codes[0] if len(codes) == 1 else np.concatenate(codes), every


class Values(NamedTuple):
    """A column [n] read as numbers: NaN where nothing stands, and where what stands there is no number (`bad`)."""

    number: Reals
    bad: Bools


def constant(text: str, n: int) -> Coded:
    """Return a column [n] of one text, which takes no memory."""
    return Coded(np.broadcast_to(np.int32(0), n), pa.array([text], TEXT))


def as_arrow(column: Any) -> Any:
    """Return a column as one pyarrow array, NaN as missing; what is of several kinds as text."""
    if isinstance(column, pa.ChunkedArray):
        if pa.types.is_dictionary(column.type):
            column = column.unify_dictionaries()
        array = column.combine_chunks()
        return array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    if isinstance(column, pa.Array):
        return column
    try:
        array = pa.array(column, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        array = pa.array(pd.Series(column).astype("str"), TEXT, from_pandas=True)
    return as_arrow(array) if isinstance(array, pa.ChunkedArray) else array


def coded(column: Any) -> Coded:
    """Return the codes of a column's texts: of whole numbers their digits, whatever kind of number they were read as.

    An empty text is missing.
    """
    array = as_arrow(column)
    if not pa.types.is_dictionary(array.type):
        if pa.types.is_nested(array.type):
            array = joined(array)
        array = array.dictionary_encode()
    texts = _texts(array.dictionary)
    code = array.indices.cast(pa.int32()).fill_null(-1).to_numpy(zero_copy_only=False)
    empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(texts), ""), True)
    distinct = texts.dictionary_encode()
    if len(distinct.dictionary) == len(texts) and not pc.any(empty).as_py():
        return Coded(code, texts)
    place = distinct.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    place[empty.to_numpy(zero_copy_only=False)] = -1
    return Coded(np.append(place, np.int32(-1))[code], distinct.dictionary)


def joined(lists: Any) -> Any:
    """Return a column of lists as texts whose parts are separated by '|'."""
    if not pa.types.is_list(lists.type) and not pa.types.is_large_list(lists.type):
        return pa.array([None if value is None else str(value) for value in lists.to_pylist()], TEXT)
    return pc.binary_join(lists.cast(pa.list_(pa.string())), "|")


def _texts(values: Any) -> Any:
    """Return distinct values as texts; NaN as missing."""
    kind = values.type
    if pa.types.is_floating(kind):
        number = values.to_numpy(zero_copy_only=False).astype(np.float64)
        whole = (number % 1 == 0) & (np.abs(number) < EXACT)
        each = zip(number.tolist(), whole.tolist(), strict=True)
        return pa.array([None if x != x else str(int(x)) if w else repr(x) for x, w in each], TEXT)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pa.array([None if v is None else v.decode("utf-8", "replace") for v in values.to_pylist()], TEXT)
    try:
        return values.cast(TEXT)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.array([None if value is None else str(value) for value in values.to_pylist()], TEXT)


def keys(column: Any) -> tuple[Coded, bool]:
    """Return the keys of a column, and whether all were whole numbers written as 7.0, which are read as 7.

    So are those of a column that was a number's elsewhere and lacked some: `7.0` and `7` stay two keys where a column
    has both, as do `007` and `7`.
    """
    found = coded(column)
    if not len(found.texts) or not pc.all(pc.match_substring_regex(found.texts, AS_FLOAT)).as_py():
        return found, False
    return Coded(found.code, pc.utf8_slice_codeunits(found.texts, 0, -2)), True


def inexact(column: Any) -> Bools:
    """Return which rows [n] of keys were read as floating-point numbers so large that digits are lost."""
    kind = getattr(column, "type", None)
    if kind is not None and pa.types.is_floating(kind):
        column = column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()
    array = np.asarray(column) if not isinstance(column, pa.Array | pa.ChunkedArray) else np.zeros(0)
    return np.abs(array) >= EXACT if array.dtype.kind == "f" else np.zeros(0, np.bool_)


def numbers(column: Any, text: Any = None) -> Values:
    """Return a column as numbers; `text` is what stood in it where that is not what the column has."""
    array = as_arrow(column)
    if text is not None:
        number = _floats(array)
        return Values(number, np.isnan(number) & ~coded(text).missing)
    if _numeric(array.type):
        number = _floats(array)
        return Values(number, np.zeros(len(number), np.bool_))
    found = coded(array)
    table = pd.to_numeric(pd.Series(found.values, dtype="object"), errors="coerce").to_numpy(np.float64)
    number = found.spread(table, np.nan)
    return Values(number, np.isnan(number) & ~found.missing)


def _numeric(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _floats(array: Any) -> Reals:
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    return np.asarray(array.to_numpy(zero_copy_only=False), np.float64)


def binary(column: Any, text: Any = None) -> tuple[Bools, Bools, Bools]:
    """Return where a column says yes, where it says nothing, and where it says neither 0, 1, true nor false [n]."""
    array = as_arrow(column)
    if text is None and not _numeric(array.type):
        found = coded(array)
        table = np.asarray([BINARY.get(value.strip().lower(), 2.0) for value in found.values], np.float64)
        number = found.spread(table, np.nan)
        bad = number == 2
    else:
        number, bad = numbers(array, text)
        bad = bad | ~(np.isnan(number) | (number == 0) | (number == 1))
    return number == 1, np.isnan(number) & ~bad, bad


class Times(NamedTuple):
    """A column of times: whole seconds [n] (rounded down), which rows have none, by which rule, and in which unit."""

    seconds: NDArray[np.int64]
    bad: Bools
    rule: str
    unit: str = "seconds"


def times(column: Any, text: Any = None) -> Times:
    """Return the seconds of a column of times, ISO dates, or numbers of seconds or a finer unit.

    Dates without a zone are UTC. Numbers are of the unit in which most of them lie up to the year 5138: of seconds, if
    they do, else of the finest that is needed; a number that is of another unit is bad.
    """
    array = as_arrow(column)
    if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        if pa.types.is_date(array.type):
            array = array.cast(pa.timestamp("s"))
        date = array.to_numpy(zero_copy_only=False).astype("datetime64[s]")
        return Times(np.where(np.isnat(date), 0, date.astype(np.int64)), np.isnat(date), "a time must be a date")
    if pa.types.is_integer(array.type) and not array.null_count and text is None:
        number = array.to_numpy(zero_copy_only=False)
        bad = np.zeros(len(number), np.bool_)
    else:
        number, bad = numbers(array, text)
        if np.isnan(number).all() and len(number):
            return _dates(coded(array if text is None else text))
        bad = bad | ~(np.abs(number) < 2**63)
    return _of_unit(number, bad)


def _dates(found: Coded) -> Times:
    date = pd.to_datetime(pd.Series(found.values, dtype="str"), format="ISO8601", utc=True, errors="coerce")
    seconds = date.dt.tz_localize(None).to_numpy().astype("datetime64[s]")
    each = found.spread(seconds, np.datetime64("NaT"))
    bad = np.isnat(each)
    return Times(np.where(bad, 0, each.astype(np.int64)), bad, "a time must be a number of seconds or an ISO date")


def _of_unit(number: NDArray[Any], bad: Bools) -> Times:
    sample = np.abs(number[:: max(1, len(number) // SAMPLE)].astype(np.float64))
    sample = np.sort(sample[sample > 0])  # NaN is not
    middle = sample[len(sample) // 2] if len(sample) else 0.0
    unit, scale = next((u, s) for u, s in UNITS.items() if middle < LATEST * s or s == UNITS["nanoseconds"])
    low, high = (LATEST * scale / 1000 if scale > 1 else 0), (LATEST * scale if scale < UNITS["nanoseconds"] else 2**63)
    with np.errstate(invalid="ignore"):
        fits = (np.abs(number) < high) & ((np.abs(number) >= low) | (number == 0))
    other = ~bad & ~fits
    rule = f"a time must be in {unit}, as most are" if other.any() else "a time must be a number of seconds, or a date"
    bad = bad | other
    if bad.any():
        number = np.where(bad, 0, number)
    if scale > 1 or number.dtype != np.int64:
        number = np.floor_divide(number, scale).astype(np.int64)
    return Times(number, bad, rule, unit)


def is_label(name: str) -> bool:
    """Return whether a task can be named after a label: letters, digits, `_` and `-`."""
    return bool(re.fullmatch(r"[\w-]+", name)) and name.replace("_", "").replace("-", "").isalnum()
