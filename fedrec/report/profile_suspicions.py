"""What in a dataset looks like a slip: a column that is another, a time that is none, a label that tells too much."""

import datetime
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

from fedrec.data.types import Bools, Dataset, Ints
from fedrec.report.findings import listing, plural
from fedrec.report.profile import Columns, columns

SAID = "SUSPICION: "  # how a note begins in which the reader of a table says one
EARLIEST = 631_152_000  # 1990-01-01: what is older was hardly recorded by a platform
DAY = 86_400
PLACES = 60 * DAY  # what is smaller is a place in an order, or a count
FINER = {"milliseconds": 1_000, "microseconds": 1_000_000}
SCALE = 20  # distinct numbers up to which keys may be a scale, where each has `REPEATED` rows and more
REPEATED = 50
COUNTED = 0.3  # of the rows have the key 1, where keys are counts
ONCE = 0.9  # of the keys have one row, where keys number the rows
GREEDY, TIMES = 0.1, 5  # of all rows are of one user, and so many times the mean user's
ENOUGH = 20  # rows from which a label or a rating is judged
ALMOST = 0.99  # of the rows on either side, where a label tells what follows
TIED = 0.5  # of the users, whose last interaction is not told by its time


class Suspicion(NamedTuple):
    """What may be wrong: its kind, and one sentence that names the column, what is usual, and what was found."""

    kind: str
    text: str


def suspicions(data: Dataset, now: float) -> list[Suspicion]:
    """Return what looks like a slip in a dataset at a time `now`, in seconds."""
    rows = columns(data)
    said = [Suspicion("said", note.removeprefix(SAID)) for note in data.notes if note.startswith(SAID)]
    return [*said, *keys(data, rows), *times(rows, now), *labels(data, rows), *ratings(data, rows)]


def keys(data: Dataset, rows: Columns) -> Iterator[Suspicion]:
    """Yield what is suspicious of the keys of users and items, and of how often they come."""
    for thing, table, ids in (("user", data.users, rows.user), ("item", data.items, rows.item)):
        count = np.bincount(ids, minlength=len(table))
        met = np.flatnonzero(count)
        text = table["key"].iloc[met].astype("str")
        if len(met) and text.iloc[:1000].str.fullmatch(r"-?\d+\.0+").all():
            yield Suspicion("floats", f"keys of {thing}s are numbers read as floats, as in {text.iloc[0]!r}")
        if len(met) >= ENOUGH and (count[met] == 1).mean() >= ONCE and len(met) >= ONCE * len(ids):
            yield Suspicion("once", f"hardly a {thing} comes twice: does its column number the rows?")
        elif doubt := scale(text, count[met]):
            yield Suspicion("scale", f"{thing} has {doubt}")
        most = int(count.max(initial=0))
        if thing == "user" and most >= max(GREEDY, TIMES / max(len(met), 1)) * max(len(ids), 1):
            key = str(table["key"].iloc[int(count.argmax())])
            yield Suspicion("greedy", f"user {key[:40]!r} has {most / len(ids):.0%} of all rows")


def scale(keys: "pd.Series[str]", count: Ints) -> str:
    """Return in words why keys with so many rows each [n] look like a scale or like counts; "" if they do not."""
    number = pd.to_numeric(keys, errors="coerce").to_numpy(np.float64)
    if not len(number) or np.isnan(number).any() or count.sum() < REPEATED * len(number):
        return ""
    order = np.argsort(number)
    if len(number) <= SCALE:
        return f"{len(number)} distinct values, {listing(keys.iloc[order].tolist(), 5)}: is it a rating or a count?"
    first = count[order][:3]
    if number[order][0] in (0, 1) and first[0] >= COUNTED * count.sum() and (np.diff(first) < 0).all():
        return f"mostly small values, {keys.iloc[order[0]]} in {first[0] / count.sum():.0%} of the rows: is it a count?"
    return ""


def times(rows: Columns, now: float) -> Iterator[Suspicion]:
    """Yield what is suspicious of times: their unit, their range, and whether they order a user's rows."""
    known = rows.time[rows.time != 0]
    if not len(known):
        return
    low, high = int(known.min()), int(known.max())
    if low == high:
        if len(known) > 1:
            yield Suspicion("equal times", f"all times are equal, {day(low)}: no order, and no temporal split")
        return
    late, early = known > now + DAY, known < EARLIEST
    if late.any():
        unit = next((f": are they {name}?" for name, by in FINER.items() if EARLIEST <= high / by <= now + DAY), "")
        yield Suspicion("future", f"{plural(int(late.sum()), 'time')} in the future, up to {day(high)}{unit}")
    first = starts(rows)
    if early.any() and not (are_places((low, high)) and in_order(rows, first)):
        days = EARLIEST <= high * DAY <= now + DAY
        unit = "days since 1970" if days else "counts" if are_places((low, high)) else ""
        words = f": are they {unit}?" if unit else ""
        yield Suspicion("past", f"{plural(int(early.sum()), 'time')} before 1990, from {day(low)}{words}")
    last = np.append(first[1:], len(rows.user)) - 1
    several = last > first
    tied = rows.time[last[several]] == rows.time[last[several] - 1]
    if several.sum() >= ENOUGH and tied.mean() >= TIED:
        yield Suspicion(
            "ties", f"of {tied.mean():.0%} of users the last two rows have one time: which is last is drawn by seed"
        )


def are_places(times: tuple[int, int]) -> bool:
    """Return whether times from the first to the last are of the first weeks of 1970: places in an order, no times."""
    return times[0] >= 0 and times[1] < PLACES


def in_order(rows: Columns, first: Ints) -> bool:
    """Return whether no two rows of a user of a platform have one time, given where those of each begin."""
    later = np.diff(rows.time, prepend=-1) > 0
    later[first] = True
    return bool(later.all())


def starts(rows: Columns) -> Ints:
    """Return where the rows of each user of a platform begin."""
    new = (np.diff(rows.user, prepend=-1) != 0) | (np.diff(rows.platform, prepend=-1) != 0)
    return np.flatnonzero(new).astype(np.int64)


def day(seconds: int) -> str:
    """Return the date of a time, or the number of its seconds where a calendar has none."""
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        return f"second {seconds}"


def labels(data: Dataset, rows: Columns) -> Iterator[Suspicion]:
    """Yield what is suspicious of labels: constant ones, equal ones, and those that tell the time or what follows."""
    varying = []
    later = np.ones(len(rows.user), np.bool_)
    later[np.append(starts(rows)[1:], len(rows.user)) - 1] = False
    for name, (value, known) in rows.labels.items():
        if known.sum() < ENOUGH:
            continue
        if value[known].all() or not value[known].any():
            yield Suspicion("constant", f"label {name} is {int(value[known][0])} in every row: nothing to learn")
            continue
        varying.append(name)
        if names := [data.platforms[p] for p in constant(rows, value, known, len(data.platforms))]:
            yield Suspicion("constant", f"label {name} never varies in {listing(names, 5)}")
        if words := told(value[known], rows.time[known], later[known]):
            yield Suspicion("leak", f"label {name} {words}")
    for one, other in combinations(varying, 2):
        (a, known), (b, there) = rows.labels[one], rows.labels[other]
        both = known & there
        if both.sum() >= ENOUGH and ((a == b)[both].all() or (a != b)[both].all()):
            words = "equals" if (a == b)[both].all() else "is the opposite of"
            yield Suspicion("equal labels", f"label {one} {words} label {other} in every row: one tells the other")


def constant(rows: Columns, value: Bools, known: Bools, platforms: int) -> Sequence[int]:
    """Return the platforms with enough rows in which a label is known and never varies."""
    count = np.bincount(rows.platform[known], minlength=platforms)
    ones = np.bincount(rows.platform[known & value], minlength=platforms)
    return np.flatnonzero((count >= ENOUGH) & ((ones == 0) | (ones == count))).tolist()


def told(value: Bools, time: Ints, later: Bools) -> str:
    """Return in words what a label that varies tells of time, or of whether a user comes back; "" if it does not."""
    ones, zeros = time[value], time[~value]
    if zeros.max() < ones.min():
        return f"is 1 from {day(int(ones.min()))} on and never before: it tells what is held out last"
    if ones.max() < zeros.min():
        return f"is 1 before {day(int(zeros.min()))} and never after: it tells what is held out last"
    if later.any() and not later.all():
        for words, side in (("comes back", later), ("does not come back", ~later)):
            if value[side].mean() >= ALMOST and value[~side].mean() <= 1 - ALMOST:
                return f"is 1 where the user {words}: it tells the future"
    return ""


def ratings(data: Dataset, rows: Columns) -> Iterator[Suspicion]:
    """Yield which platforms have ratings that never vary; of their scales the reader has judged, see `SAID`."""
    same = []
    for p, name in enumerate(data.platforms):
        rating = rows.rating[slice(*np.searchsorted(rows.platform, [p, p + 1]))]
        rating = rating[np.isfinite(rating)]
        if len(rating) >= ENOUGH and rating.min() == rating.max():
            same.append(name)
    if same:
        where = f" in {listing(same, 5)}" if len(data.platforms) > 1 else ""
        yield Suspicion("constant rating", f"ratings never vary{where}: nothing to learn")
