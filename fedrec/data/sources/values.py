"""Columns of text as numbers and times; what cannot be read is NaN, and its text is kept by whoever asked."""

import re
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from numpy.typing import NDArray

from fedrec.data.types import Ints
from fedrec.errors import UserError

MISSING = ["", "nan", "NaN", "NULL", "null"]
LARGEST = 1e30  # a number that is as large is none
DAYS = (
    *("%d.%m.%Y", "%Y/%m/%d", "%Y.%m.%d", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y"),
    *("%d.%m.%y", "%d/%m/%y", "%m/%d/%y", "%d %b %Y", "%b %d, %Y", "%d-%b-%Y", "%d %B %Y", "%B %d, %Y"),
)
CLOCKS = (
    *("", " %H:%M:%S", " %H:%M", " %H:%M:%S.%f", " %I:%M:%S %p", " %I:%M %p", "T%H:%M:%S"),
    *(", %H:%M:%S", ", %H:%M", ", %I:%M:%S %p"),
)
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
# Forms that a date of the first twelve days of a month fits alike.
TWINS = (
    {"%d/%m/%Y", "%m/%d/%Y"},
    {"%d-%m-%Y", "%m-%d-%Y"},
    {"%d/%m/%y", "%m/%d/%y"},
)
ISO = re.compile(r"\d{4}-\d\d?(-\d\d?)?([T ].*)?")
SAMPLE = 1000
Numbers = NDArray[np.float64]


def combined(column: Any) -> Any:
    """Return a column as one array of arrow."""
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks()
    return column if isinstance(column, pa.Array) else pa.array(column)


def coded(column: Any, lists: bool = False) -> Any:
    """Return a column of text of arrow by code: one array of a dictionary, without a value twice; missing is null.

    `lists`: texts are words parted by blanks, and get | between them.
    """
    column = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string()).dictionary_encode()
    whole = column.unify_dictionaries().combine_chunks()
    codes, words = whole.indices, whole.dictionary.cast(pa.string())
    words = pc.replace_substring_regex(pc.utf8_trim_whitespace(words), r"\s+", "|") if lists else words
    missing = pc.is_in(words, pa.array([*MISSING, None], pa.string()))
    if pc.any(missing).as_py() or len(words.unique()) < len(words):
        again = pc.if_else(missing, pa.scalar(None, pa.string()), words).dictionary_encode()
        codes, words = again.indices.take(codes), again.dictionary
    return pa.DictionaryArray.from_arrays(codes.cast(pa.int32()), words)


def numbers(column: Any, decimal: str = ".", grouped: bool = False) -> tuple[Numbers, Any]:
    """Return numbers [n], NaN where one is missing or cannot be read, and the text if any cannot, else None."""
    if of_text(column.type):
        text = coded(column)
        return spread(text, numbers_of(text.dictionary, decimal, grouped))
    values = flat(pc.cast(decoded(column), pa.float64()))
    bad = ~np.isnan(values) & ~(np.abs(values) < LARGEST)
    return (np.where(bad, np.nan, values), coded(column.cast(pa.string()))) if bad.any() else (values, None)


def decoded(column: Any) -> Any:
    """Return a column of numbers or times without a dictionary."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def flat(column: Any) -> NDArray[Any]:
    """Return a column of arrow as one array of numpy; a missing number is NaN."""
    return np.asarray(column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(False))


def numbers_of(words: Any, decimal: str, grouped: bool) -> Numbers:
    """Return the numbers that texts say, NaN where one says none."""
    point, other = re.escape(decimal), "," if decimal == "." else "."
    group = rf"[{other}'’\x{{a0}}\x{{202f}} ]"  # RE2
    whole = rf"(\d+|\d{{1,3}}({group}\d{{3}})+)" if grouped else r"(\d+)"
    plain = pc.utf8_trim_whitespace(words)
    good = pc.match_substring_regex(plain, rf"^[+-]?({whole}({point}\d*)?|{point}\d+)([eE][+-]?\d{{1,2}})?$")
    plain = pc.if_else(good, plain, None)
    if grouped:
        plain = pc.replace_substring_regex(plain, group, "")
    plain = pc.replace_substring_regex(pc.replace_substring(plain, decimal, "."), r"^\+", "")
    values = np.asarray(pc.cast(plain, pa.float64()).to_numpy(False), np.float64)
    return np.where(np.abs(values) < LARGEST, values, np.nan)


def spread(text: Any, found: Numbers) -> tuple[Numbers, Any]:
    """Return the value of every row of a coded text whose words have values, and the text if a word has none."""
    codes = np.asarray(text.indices.fill_null(len(found)).to_numpy(False))
    values = np.append(found, np.nan)[codes]
    return values, text if np.isnan(found).any() else None


def times(column: Any, form: str, where: str) -> tuple[Ints | Numbers, Any, str]:
    """Return times [n], the text if any cannot be read, else None, and the form of written dates that was guessed.

    Written dates are whole seconds since 1970 in UTC; numbers are as they are, but for YYYYMMDD. Raises UserError,
    naming `where`, for dates that may have the day or the month first.
    """
    if form not in ("", "iso") and "%" not in form:
        raise UserError(f"reading.dates: must be iso, or a form as %d.%m.%Y, found {form!r}")
    column = column if of_text(column.type) else decoded(column)
    if not of_text(column.type) and form not in ("", "iso") and not pa.types.is_temporal(column.type):
        column = column.cast(pa.string())
    if not of_text(column.type):
        return clock(column)
    text = coded(column)
    words = text.dictionary
    if not form:
        found = numbers_of(words, ".", False)
        if 2 * np.isfinite(found[:SAMPLE]).sum() >= len(found[:SAMPLE]):
            return days(*whole(*spread(text, found)))
    guess = form or guess_dates(words, where)
    return (*whole(*spread(text, dates_of(words, guess))), "" if guess in (form, "iso") else guess)


def clock(column: Any) -> tuple[Ints | Numbers, Any, str]:
    """Return times that are typed: whole seconds of timestamps and dates, numbers as they are."""
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    if pa.types.is_timestamp(column.type):
        seconds = flat(column.cast(pa.int64()).fill_null(0)) // UNITS[column.type.unit]
        return (np.where(flat(column.is_null()), np.nan, seconds) if column.null_count else seconds), None, ""
    if pa.types.is_integer(column.type) and not column.null_count:
        return days(flat(column).astype(np.int64, copy=False), None)
    return days(*numbers(column))


def whole(values: Numbers, unread: Any) -> tuple[Ints | Numbers, Any]:
    """Return times as whole numbers where all are and none is missing."""
    if unread is None and len(values) and np.isfinite(values).all() and np.abs(values).max() < 2**53:
        rounded = values.astype(np.int64)
        if (rounded == values).all():
            return rounded, None
    return values, unread


def calendar(values: Ints | Numbers) -> bool:
    """Return whether numbers are days as YYYYMMDD: as seconds they would all be of the year 1970."""
    known = values[np.isfinite(values)] if values.dtype == np.float64 else values
    if not len(known) or known.min() < 19000101 or known.max() > 21001231:
        return False
    month, day = known // 100 % 100, known % 100
    return bool(((month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all())


def days(values: Ints | Numbers, unread: Any) -> tuple[Ints | Numbers, Any, str]:
    """Return times; numbers that are days as YYYYMMDD as seconds, with the form."""
    if not calendar(values):
        return values, unread, ""
    known = np.isfinite(values)
    distinct, place = np.unique(np.where(known, values, 19700101).astype(np.int64), return_inverse=True)
    seconds = dates_of(pa.array([str(day) for day in distinct]), "%Y%m%d")[place]
    return (*whole(np.where(known, seconds, np.nan), unread), "%Y%m%d")


def dates_of(words: Any, form: str) -> Numbers:
    """Return the seconds since 1970 of dates in a form of `strftime`, or (`iso`) as ISO 8601 has them; NaN: none."""
    texts = pd.Series(pc.utf8_trim_whitespace(words).to_pylist(), dtype="object")
    if form == "iso":
        texts = texts.str.replace(r" UTC$", "Z", regex=True)
    try:
        found = pd.to_datetime(texts, format="ISO8601" if form == "iso" else form, utc=True, errors="coerce")
    except (ValueError, TypeError) as error:
        raise UserError(f"reading.dates: must be a form of dates, as %d.%m.%Y, found {form!r} ({error})") from None
    seconds = found.dt.tz_localize(None).to_numpy().astype("datetime64[s]")
    return np.where(np.isnat(seconds), np.nan, seconds.astype(np.int64).astype(np.float64))


def guess_dates(words: Any, where: str) -> str:
    """Return the form in which dates are written, `iso` where none other is; raises UserError as `times` does."""
    sample = words.slice(0, SAMPLE)
    texts = [word.strip() for word in sample.to_pylist()]
    if not texts or 2 * sum(bool(ISO.fullmatch(text)) for text in texts) >= len(texts):
        return "iso"
    forms = [day + time for day, time in product(DAYS, CLOCKS)]
    fits = {form: int(np.isfinite(dates_of(sample, form)).sum()) for form in likely(forms, texts)}
    best = max(fits.values(), default=0)
    if 2 * best < len(texts):
        return "iso"
    form = next(form for form, count in fits.items() if count == best)
    twins = next((twins for twins in TWINS if form[:8] in twins), None)
    if twins is None:
        return form
    first, second = (day + form[8:] for day in sorted(twins))
    one, other = (np.isfinite(dates_of(words, form)) for form in (first, second))
    if (one & ~other).any() == (other & ~one).any():
        raise UserError(
            f"{where}: whether day or month is first must be told by --reading.dates {first!r} or {second!r}, "
            f"found {texts[0]!r}"
        )
    return first if (one & ~other).any() else second


def likely(forms: list[str], texts: list[str]) -> list[str]:
    """Return the forms that have the signs of any of the texts."""
    signs = {re.sub(r"[\d\w]", "", text) for text in texts}
    return [form for form in forms if re.sub(r"%?\w", "", form) in signs]


def of_text(kind: Any) -> bool:
    """Return whether a type of arrow is text, maybe by code."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))
