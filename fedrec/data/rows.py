"""The rows of one file as columns of meaning: keys, times, ratings, labels; what is bad is refused, or dropped."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fedrec.data.checks import NAMES, showable
from fedrec.data.columns import Coded, Reals, Values, binary, coded, constant, inexact, keys, numbers, times
from fedrec.data.events import Events, Told, own_events, told
from fedrec.data.faults import Fault, settle
from fedrec.data.reading import Raw, Reading
from fedrec.data.scales import Scales, bounds, outside
from fedrec.data.types import Bools, Floats, Ints
from fedrec.errors import UserError

ABOUT = ("title", "category", "brand", "description")  # roles of texts about items
EMPTY = "must not be empty"
HUGE = 1e30  # ratings beyond leave the range of float32 sums
LIGHTEST, HEAVIEST = 1e-9, 1e9  # weights beyond leave it where they are multiplied with losses


@dataclass(frozen=True)
class Label:
    """Which rows [n] have a label, and of which it is known; None: of all."""

    has: Bools
    known: Bools | None = None


@dataclass(frozen=True)
class Rows:
    """The rows of a file that count: columns [n]; what the file does not have is None."""

    user: Coded
    item: Coded
    platform: Coded
    time: Ints | None
    rating: Floats | None
    positive: Bools | None
    labels: dict[str, Label]
    logs: frozenset[str] | None  # labels of its events, if it has any: another one of events no row has
    about: dict[str, Coded] = field(default_factory=dict)
    price: Reals | None = None
    events: frozenset[str] = frozenset()  # the values that its column of events has
    size: int = -1  # how many rows there are where their keys are kept elsewhere
    weight: Floats | None = None
    weighed: str = ""  # by which column, if by one

    def __len__(self) -> int:
        return len(self.user) if self.size < 0 else self.size

    def take(self, index: Bools | Ints) -> "Rows":
        """Return some rows, by mask or position."""
        labels = {n: Label(x.has[index], None if x.known is None else x.known[index]) for n, x in self.labels.items()}
        return replace(
            self,
            user=self.user.take(index),
            item=self.item.take(index),
            platform=self.platform.take(index),
            time=None if self.time is None else self.time[index],
            rating=None if self.rating is None else self.rating[index],
            positive=None if self.positive is None else self.positive[index],
            labels=labels,
            about={name: column.take(index) for name, column in self.about.items()},
            price=None if self.price is None else self.price[index],
            weight=None if self.weight is None else self.weight[index],
        )


def read_rows(raw: Raw, reading: Reading, events: Events, scales: Scales) -> tuple[Rows, tuple[str, ...]]:
    """Return the rows of a file that count, and what is said of it: what was guessed, dropped and ignored.

    An empty rating or label is not known: the row has it not, and is not asked for it. Raises UserError for a bad row
    where rows are strict, and for a file without rows.
    """
    n = len(raw.columns[raw.roles["user"]])
    if not n:
        raise UserError(f"{raw.name}: must hold at least one row, found an empty table")
    said, faults = list(raw.said), list[Fault]()
    user, item = (_keys(raw, role, faults, said) for role in ("user", "item"))
    platform = _platform(raw, n, faults)
    time, rating = _time(raw, faults, said), _rating(raw, platform, scales, faults)
    labels, heard = _labels(raw, faults), _events(raw, events, faults, said)
    of_events = {} if heard is None else {name: Label(has) for name, has in heard.labels.items() if name not in labels}
    rows = Rows(
        user,
        item,
        platform,
        time,
        rating,
        positive=_positive(labels, of_events if events.values else {}),
        labels=labels | of_events,
        logs=None if heard is None else frozenset(of_events),
        about={role: coded(raw.columns[raw.roles[role]]) for role in ABOUT if role in raw.roles},
        price=_price(raw, faults),
        events=frozenset() if heard is None else heard.found,
        weight=np.ones(n, np.float32) if reading.repeats == "count" else _weight(raw, faults),
        weighed=raw.roles.get("weight", ""),
    )
    kept, dropped = settle(raw, faults, reading.rows)
    if heard is not None and heard.ignored.any():
        count = int((heard.ignored if kept is None else heard.ignored & kept).sum())
        said.append(f"{raw.name}: {count:,} events of {n:,} rows do not count, by ignore in --events")
        kept = ~heard.ignored if kept is None else kept & ~heard.ignored
        if not kept.any():
            raise UserError(f"events: must leave a row of {raw.name}, found none that is not ignored")
    return rows if kept is None else rows.take(kept), (*said, *dropped)


def column_of(raw: Raw, name: str) -> tuple[Any, Any]:
    """Return a column, and what stood in it where that could not be read; None where all could."""
    return raw.columns[name], (raw.text or {}).get(name)


def _keys(raw: Raw, role: str, faults: list[Fault], said: list[str]) -> Coded:
    """Return the keys of users or items."""
    name = raw.roles[role]
    found, as_floats = keys(raw.columns[name])
    faults.append(Fault(role, name, EMPTY, found.missing))
    if (large := inexact(raw.columns[name])).any():
        faults.append(
            Fault(role, name, "a key above 2^53 must be text or a whole number, of which no digit is lost", large)
        )
    if as_floats:
        said.append(f"{raw.name}, column {name!r}: keys are whole numbers written as 7.0, and were read as 7")
    return found


def _platform(raw: Raw, n: int, faults: list[Fault]) -> Coded:
    """Return the platform of every row: that of the file, or of a column."""
    if raw.platform or "platform" not in raw.roles:
        if not showable(raw.platform):
            raise UserError(f"{raw.name}: {NAMES}, found {raw.platform[:100]!r}")
        return constant(raw.platform or "all", n)
    column = raw.roles["platform"]
    found = coded(raw.columns[column])
    faults.append(Fault("platform", column, EMPTY, found.missing))
    wrong = np.asarray([not showable(name) for name in found.values], np.bool_)
    if wrong.any():
        faults.append(Fault("platform", column, NAMES, found.spread(wrong, False)))
    return found


def _time(raw: Raw, faults: list[Fault], said: list[str]) -> Ints | None:
    """Return the seconds of rows; None without times."""
    if "time" not in raw.roles:
        return None
    name = raw.roles["time"]
    found = times(*column_of(raw, name))
    faults.append(Fault("time", name, found.rule, found.bad))
    if found.unit != "seconds":
        said.append(f"{raw.name}, column {name!r}: times are in {found.unit} and were rounded down to seconds")
    return found.seconds


def _labels(raw: Raw, faults: list[Fault]) -> dict[str, Label]:
    """Return the labels that have columns of their own."""
    labels = {}
    for name in raw.labels:
        yes, unknown, wrong = binary(*column_of(raw, name))
        faults.append(Fault("label", name, "a label must be 0, 1, true, false, yes or no", wrong))
        labels[name] = Label(yes, ~unknown if unknown.any() else None)
    return labels


def _events(raw: Raw, events: Events, faults: list[Fault], said: list[str]) -> Told | None:
    """Return what the column of events says; None without one."""
    if "event" not in raw.roles:
        return None
    name = raw.roles["event"]
    what = coded(raw.columns[name])
    heard = told(events if events.values else own_events(name, what), what)
    faults.append(Fault("event", name, "an event must be one of those that --events names, not empty", heard.unknown))
    if not events.values:
        said.append(
            f"{raw.name}, column {name!r}: {', '.join(heard.labels)} are labels by these names, and all events are "
            "positives (choose with --events 'LABEL=VALUE,VALUE;LABEL=VALUE')"
        )
    return heard


def _price(raw: Raw, faults: list[Fault]) -> Reals | None:
    """Return the prices of the rows' items; None without any."""
    if "price" not in raw.roles:
        return None
    value = numbers(*column_of(raw, raw.roles["price"]))
    faults.append(Fault("price", raw.roles["price"], "a price must be a positive number", ~positive_number(value)))
    return value.number


def _weight(raw: Raw, faults: list[Fault]) -> Floats | None:
    """Return what rows weigh; None where all weigh alike."""
    if "weight" not in raw.roles:
        return None
    number = numbers(*column_of(raw, raw.roles["weight"])).number
    with np.errstate(invalid="ignore"):
        good = (number >= LIGHTEST) & (number <= HEAVIEST)
    rule = f"a weight must be a number from {LIGHTEST:g} to {HEAVIEST:g}"
    faults.append(Fault("weight", raw.roles["weight"], rule, ~good))
    return np.where(good, number, 1).astype(np.float32)


def _rating(raw: Raw, platform: Coded, scales: Scales, faults: list[Fault]) -> Floats | None:
    """Return the ratings, NaN where there is none; None without any."""
    if "rating" not in raw.roles:
        return None
    column = raw.roles["rating"]
    value = numbers(*column_of(raw, column))
    with np.errstate(invalid="ignore", over="ignore"):
        wrong = value.bad | (np.abs(value.number) >= HUGE)
        rating = np.asarray(value.number, np.float32)
    faults.append(Fault("rating", column, "a rating must be a finite number", wrong))
    if scales:
        names = platform.values
        low, high = bounds(scales, names)
        beyond = outside(rating, platform.code, low, high) & ~wrong
        stated = ", ".join(
            dict.fromkeys(str(scales.get(n, scales.get("*"))) for n in names if n in scales or "*" in scales)
        )
        faults.append(Fault("outlier", column, f"a rating must be on the stated scale {stated}", beyond))
    return rating


def _positive(labels: Mapping[str, Label], of_events: Mapping[str, Label]) -> Bools | None:
    """Return which rows are positives: those that have the first label given; None: all, without labels."""
    first = next(iter([*labels.values(), *of_events.values()]), None)
    return None if first is None else first.has


def positive_number(value: Values) -> Bools:
    """Return which values [n] are positive numbers, or missing."""
    with np.errstate(invalid="ignore"):
        return np.asarray(~value.bad & ~(value.number <= 0) & ~(value.number == np.inf), np.bool_)
