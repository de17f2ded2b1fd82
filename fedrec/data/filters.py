"""Which interactions count: a window of time, how much users and items have at most and at least, the k-core."""

from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from fedrec.components import number
from fedrec.data.columns import Codes
from fedrec.data.reading import Filters
from fedrec.data.types import Bools, Ints
from fedrec.errors import UserError


def window(filters: Filters) -> tuple[float, float]:
    """Return the seconds between which times count, the first and one behind the last; raises UserError."""
    low, high = (_seconds(f"filters.{name}", getattr(filters, name)) for name in ("since", "until"))
    low, high = (-np.inf if np.isnan(low) else low), (np.inf if np.isnan(high) else high)
    if low >= high:
        raise UserError(
            f"filters.until: must be later than filters.since, found {filters.until!r} and {filters.since!r}"
        )
    return low, high


def _seconds(field: str, text: str) -> float:
    """Return the seconds of a date, or of a number; NaN of an empty text."""
    if not text.strip():
        return float("nan")
    seconds = number(text)
    if np.isfinite(seconds):
        return seconds
    date = pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce")
    if pd.isna(date):
        raise UserError(f"{field}: must be a number of seconds or an ISO date, found {text[:80]!r}")
    return float(date.timestamp())


def within(time: Ints, filters: Filters) -> Bools:
    """Return which times [n] are in the window."""
    low, high = window(filters)
    return np.asarray((time >= low) & (time < high), np.bool_)


def window_words(filters: Filters) -> str:
    """Return the window in words."""
    low, high = window(filters)
    since = f" from {_date(low)}" if np.isfinite(low) else ""
    return f"time{since}" + (f" until {_date(high)}" if np.isfinite(high) else "")


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ").removesuffix("+00:00").removesuffix(" 00:00:00")


def steps(user: Codes, item: Codes, filters: Filters) -> Iterator[tuple[str, Bools]]:
    """Yield what counts behind each filter: its name and which interactions [n] are left.

    Users and items with more than the most are taken out first, by what they have before; then whatever has less than
    the least, again and again, until all that is left has it: the largest such set (k-core).
    """
    kept = np.ones(len(user), np.bool_)
    for name, codes, most in (("user", user, filters.user_most), ("item", item, filters.item_most)):
        if most:
            kept = kept & (np.bincount(codes[kept], minlength=_size(codes))[codes] <= most)
            yield f"at most {most} of {'a user' if name == 'user' else 'an item'}", kept
    least = max(filters.user_least, filters.core), max(filters.item_least, filters.core)
    if max(least) > 1:
        kept = core(user, item, least, kept)
        words = f"at least {least[0]} of a user and {least[1]} of an item"
        yield (f"{filters.core}-core" if least == (filters.core, filters.core) else words), kept


def _size(codes: Codes) -> int:
    return int(codes.max()) + 1 if len(codes) else 0


def core(user: Codes, item: Codes, least: tuple[int, int], kept: Bools) -> Bools:
    """Return the largest part of `kept` [n] whose users have `least[0]` interactions, and items `least[1]`, in it.

    The union of two parts with that property has it too, so that there is a largest one; taking out what has less
    never takes a row of it.
    """
    rows: Ints = np.flatnonzero(kept)
    u, i = user[rows], item[rows]
    while len(rows):
        enough = np.bincount(u)[u] >= least[0]
        enough &= np.bincount(i)[i] >= least[1]
        if enough.all():
            break
        rows, u, i = rows[enough], u[enough], i[enough]
    left = np.zeros(len(user), np.bool_)
    left[rows] = True
    return left


def sizes(user: Codes, item: Codes, what: str) -> str:
    """Return how many rows (`what` they are), users and items there are, in words."""
    users, items = (int(np.count_nonzero(np.bincount(codes))) if len(codes) else 0 for codes in (user, item))
    return f"{len(user):,} {what} of {users:,} users and {items:,} items"
