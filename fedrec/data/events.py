"""What the values of a column of events mean: labels, in the order in which they are given."""

from dataclasses import dataclass

import numpy as np

from fedrec.data.columns import RESERVED, Coded, is_label
from fedrec.data.types import Bools
from fedrec.errors import UserError

MOST = 10  # values that are labels by their own names
IGNORE = "ignore"  # the name under which events are listed that do not count
OTHERS = "*"


@dataclass(frozen=True)
class Events:
    """The values of each label, in the order given; `*` are all that no other label has."""

    values: dict[str, frozenset[str]]

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels, in the order given."""
        return tuple(label for label in self.values if label != IGNORE)

    def of(self, value: str) -> frozenset[str]:
        """Return the labels of a value; empty where it is unknown."""
        named = frozenset(label for label, values in self.values.items() if value in values)
        return named or frozenset(label for label, values in self.values.items() if OTHERS in values)


def parse_events(text: str) -> Events:
    """Return what a text like `click=view;buy=purchase,order;ignore=*` says; raises UserError.

    A value may be of several labels; those that are ignored do not count, and are no bad rows.
    """
    values: dict[str, frozenset[str]] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        label, equals, several = (piece.strip() for piece in part.partition("="))
        named = frozenset(filter(None, (value.strip() for value in several.split(","))))
        if not (label and equals and named):
            raise UserError(f"events: must be label=value,value joined by ';', found {part[:100]!r}")
        if label in values:
            raise UserError(f"events: each label must be given once, found {label!r} again")
        if label in RESERVED or not is_label(label):
            raise UserError(f"events: a label must be a word that is not {', '.join(RESERVED)}, found {label[:100]!r}")
        values[label] = named
    if sum(OTHERS in named for named in values.values()) > 1:
        raise UserError("events: '*', all other values, must be given once, found it again")
    if values and set(values) == {IGNORE}:
        raise UserError("events: must have a label that is not 'ignore', found none")
    return Events(values)


def own_events(column: str, found: Coded) -> Events:
    """Return the events of a column without a mapping: its values are labels of their own names, in their order."""
    names = sorted(found.distinct)
    bad = [name for name in names if not is_label(name) or name in (*RESERVED, IGNORE)]
    if len(names) > MOST or bad:
        what = f"the value {bad[0]!r}" if bad and len(names) <= MOST else f"{len(names):,} values"
        raise UserError(
            f"events: must say which values of the column {column!r} are which labels, as in 'click=view;buy=purchase'"
            f" (at most {MOST} words are labels by themselves), found {what}"
        )
    return Events({name: frozenset([name]) for name in names})


@dataclass(frozen=True)
class Told:
    """What a column of events says of its rows [n]: their labels, and which are unknown, or do not count."""

    labels: dict[str, Bools]
    unknown: Bools
    ignored: Bools
    found: frozenset[str]  # the values that some row has


def told(events: Events, found: Coded) -> Told:
    """Return what the events of rows are."""
    sets = [events.of(value) for value in found.values]

    def has(label: str) -> Bools:
        return np.asarray(found.spread(np.asarray([label in one for one in sets], np.bool_), False), np.bool_)

    unknown = found.spread(np.asarray([not one for one in sets], np.bool_), True)
    return Told({label: has(label) for label in events.labels}, unknown, has(IGNORE), found.distinct)


def check_found(events: Events, found: set[str]) -> None:
    """Raise UserError for a value that no file has: what is given must act."""
    for label, values in events.values.items():
        for value in sorted(values - {OTHERS}):
            if value not in found:
                some = ", ".join(sorted(found)[:20])
                raise UserError(f"events: the values of {label} must be in the data, {some}, found {value[:100]!r}")
