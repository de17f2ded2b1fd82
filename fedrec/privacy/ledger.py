"""What each client has spent: an append-only file that is written before anything is sent.

A round that is repeated after a run was killed is booked again unless it is the same to the bit, since its first noisy
output may have been seen. What a person spends is composed over all silos that hold the person.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np

from fedrec.data.types import Ints
from fedrec.errors import UserError
from fedrec.experiment.privacy import NOT_PRIVATE, Unit
from fedrec.folders import locked, make_private, open_private, sync_folder
from fedrec.privacy.accounting import Event, above, accountant, affordable, bound, epsilon, merge

T = TypeVar("T")
EXACT = 32  # compositions whose loss is laid out, at a fraction of a second each
ZEROED = {
    "interaction": "an interaction (zero-out: one interaction replaced by none)",
    "user": "a user (zero-out: one user's interactions replaced by none)",
    "client": "a client (zero-out: one client's data replaced by none)",
}


class OverBudget(UserError):
    """A round that would spend more than a client's budget."""


@dataclass(frozen=True)
class Note:
    """What the events of a ledger are about: the unit whose guarantee they use up, and how the first of them was made.

    `rate` is that of Poisson sampling (1: none), `replay` tells of noise that a seed can replay, which guarantees
    nothing. Raises UserError for a value out of range.
    """

    client: str
    unit: Unit
    delta: float
    clip: float
    rate: float = 1.0
    replay: bool = False

    def __post_init__(self) -> None:
        if self.unit not in ZEROED:
            raise UserError(f"unit: must be interaction, user or client, found {self.unit!r}")
        for name, value, most in (("delta", self.delta, 1.0), ("clip", self.clip, math.inf), ("rate", self.rate, 1.0)):
            if not isinstance(value, int | float) or not 0 < value <= most:
                raise UserError(f"{name}: must be above 0{f' and at most {most:g}' * (most == 1)}, found {value!r}")

    def record(self) -> dict[str, Any]:
        """Return the first line of a ledger."""
        return {
            "client": self.client,
            "unit": self.unit,
            "neighbours": "zero-out",
            "sampler": f"Poisson at rate {self.rate!r}" if self.rate < 1 else "none",
            "delta": self.delta,
            "clip": self.clip if math.isfinite(self.clip) else "none",
            "noise": NOT_PRIVATE if self.replay else "private",
        }

    @staticmethod
    def of(record: Mapping[str, Any]) -> "Note":
        """Return the note of a `record`; raises ValueError or KeyError for what is none."""
        sampler = str(record["sampler"])
        note = Note(
            record["client"],
            record["unit"],
            record["delta"],
            math.inf if record["clip"] == "none" else record["clip"],
            rate=1.0 if sampler == "none" else float(sampler.removeprefix("Poisson at rate ")),
            replay=record["noise"] == NOT_PRIVATE,
        )
        if note.record() != record:
            raise UserError(f"note: must be as {note.record()}, found {dict(record)}")
        return note

    def admit(self, other: "Note", path: Path) -> None:
        """Raise UserError unless events under another note may stand in this one's ledger.

        Clip norm and rate may change: an event says by itself what it costs.
        """
        was, now = self.record(), other.record()
        for name in ("client", "unit", "delta", "noise"):
            if was[name] != now[name]:
                raise UserError(f"ledger {str(path)!r}: {name} must be {was[name]!r} as in it, found {now[name]!r}")


class Entry(NamedTuple):
    """An event of a round of a run; `inputs` names its secret and all that it was made of (`secret.stream`)."""

    round: int
    event: Event
    run: str = ""
    inputs: str = ""

    @staticmethod
    def of(record: Mapping[str, Any]) -> "Entry":
        """Return the entry of a line."""
        event = dict(record)
        for name, kind in (("round", int), ("run", str), ("inputs", str)):
            if type(event.pop(name)) is not kind:
                raise UserError(f"{name}: must be of type {kind.__name__}, found {record[name]!r}")
        return Entry(record["round"], Event.of(event), record["run"], record["inputs"])


class Ledger:
    """The events that one client has booked in a file: a line of JSON for the note, and one for each event.

    Processes may share the file. With a `note` it is made by the first booking; without one it must be there. Raises
    UserError if the file is of another client, unit, delta or kind of noise, or holds what cannot be read: an entry
    is never passed over, for it may have been spent.
    """

    def __init__(self, path: Path, note: Note | None = None) -> None:
        self.path = path
        self._entries: list[Entry] = []
        self._read = 0  # bytes
        self._whole = True  # the last line ends
        self._head: Note | None = None
        self._asked = note
        if note is None and not path.exists():
            raise UserError(f"ledger: must be a file of what was spent, found none at {str(path)!r}")
        self._load()

    @property
    def note(self) -> Note:
        """What the events are about."""
        note = self._head or self._asked
        if note is None:
            raise UserError(
                f"ledger {str(self.path)!r}: must begin with a note of client, unit and delta, found nothing"
            )
        return note

    @property
    def entries(self) -> list[Entry]:
        """Every entry in the file."""
        self._load()
        return list(self._entries)

    @property
    def events(self) -> list[Event]:
        """The event of every entry in the file."""
        return [entry.event for entry in self.entries]

    def book(self, number: int, event: Event, budget: float, run: str = "", inputs: str = "", overlap: int = 1) -> None:
        """Put an event of round `number` on the disk; only then may anything be sent that was made with it.

        With `inputs`, the name of a secret and of what was made with it, the noise is a function of the two: what is
        booked already is made once more to the bit, which tells nothing new. The budget is that of a person whom
        `overlap` silos hold, each of which books as much. Raises OverBudget, and writes nothing, if epsilon would
        exceed the budget.
        """
        if not isinstance(number, int) or number < 0:
            raise UserError(f"round: must be a whole number of at least 0, found {number!r}")
        make_private(self.path.parent)
        with locked(self.path), open_private(self.path) as file:
            self._refresh(file)
            booked = [entry.event for entry in self._entries if inputs and (entry.run, entry.inputs) == (run, inputs)]
            if booked and booked != [event]:
                raise UserError(
                    f"privacy: client {self.note.client!r} must not use the noise of round {number} for another event, "
                    f"found {event} after {booked[0]}"
                )
            if booked:
                return
            self._afford(number, event, budget, overlap)
            lines = [] if self._head else [self.note.record()]
            lines.append({"round": number, "run": run, "inputs": inputs} | event.record())
            text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
            file.write((text if self._whole else "\n" + text).encode())
            file.flush()
            os.fsync(file.fileno())
            if not self._head:
                sync_folder(self.path.parent)
            self._refresh(file)

    def _afford(self, number: int, event: Event, budget: float, overlap: int) -> None:
        """Raise OverBudget if an event is too much after those that are known."""
        delta, event = self.note.delta, event.times(overlap)
        known, step = [entry.event.times(overlap) for entry in self._entries], replace(event, count=1)
        others = [other for other in known if replace(other, count=1) != step]
        steps = sum(other.count for other in [*known, event]) - sum(other.count for other in others)
        # How many steps fit is found once for all rounds that are alike.
        if steps <= affordable(step, budget, delta, others):
            return
        after = epsilon([*known, event], delta)
        if after > budget:
            raise OverBudget(
                f"privacy: client {self.note.client!r} has a budget of epsilon {budget:g} at delta {delta:g} and has "
                f"spent {above(epsilon(known, delta))}; round {number} would make it {above(after)}"
            )

    def _load(self) -> None:
        if self._read or self.path.exists():
            with locked(self.path), self.path.open("rb") as file:
                self._refresh(file)

    def _refresh(self, file: BinaryIO) -> None:
        """Read what the file holds since the last time; the caller has locked it."""
        size = file.seek(0, os.SEEK_END)
        if size < self._read:
            raise UserError(f"ledger {str(self.path)!r}: must only grow, found {size} bytes after {self._read}")
        file.seek(self._read)
        data = file.read(size - self._read)
        lines = [line for line in data.split(b"\n") if line]
        if lines and not self._head:
            note = self._parse(lines.pop(0), Note.of)
            if self._asked:
                note.admit(self._asked, self.path)
            self._head = note
        self._entries += [self._parse(line, Entry.of) for line in lines]
        if data:
            self._read, self._whole = size, data.endswith(b"\n")

    def _parse(self, line: bytes, of: Callable[[dict[str, Any]], T]) -> T:
        """Return what a line says. One that was cut short is no JSON object: what can be read is all of it."""
        try:
            return of(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"ledger {str(self.path)!r}: every line must be what was booked, found "
                f"{line[:80].decode(errors='replace')!r} ({error}); put the event in its place if anything may have "
                "been sent, or take the line away if certainly nothing was"
            ) from None


class Group(NamedTuple):
    """The people whom the same silos hold, and the epsilon of what all of these have released, or more than it."""

    silos: tuple[str, ...]
    people: int
    epsilon: float


def persons(events: Mapping[str, Iterable[Event]], members: Mapping[str, Ints], delta: float) -> list[Group]:
    """Return everybody by the set of silos that hold them, the largest epsilon, which is the run's, first.

    `events` of a silo are those in its ledger, `members` [n] the global ids of its people: for the unit "user" one
    person's data in all silos are one unit. Where more than `EXACT` groups spend unlike events, those below the largest
    epsilon may have their quick bound instead. Raises UserError for a silo with members that has no events listed.
    """
    missing = sorted(set(members) - set(events))
    if missing:
        raise UserError(f"persons: every silo with members must have its events listed, found none for {missing[0]!r}")
    holders: dict[int, list[str]] = {}
    for silo in sorted(members):
        for person in np.unique(members[silo]).tolist():
            holders.setdefault(person, []).append(silo)
    booked = {silo: merge(events[silo]) for silo in members}
    groups = Counter(map(tuple, holders.values()))
    spent = {silos: merge(event for silo in silos for event in booked[silo]) for silos in groups}
    bounds = {known: bound(known, delta) for known in set(spent.values())}
    costs, most = dict[tuple[Event, ...], float](), -math.inf
    for known in sorted(bounds, key=lambda known: -bounds[known]):
        # What is bounded by the largest so far cannot exceed it.
        quick = len(costs) >= EXACT and bounds[known] <= most
        costs[known] = bounds[known] if quick else epsilon(known, delta)
        most = max(most, costs[known])
    result = [Group(silos, people, costs[spent[silos]]) for silos, people in groups.items()]
    return sorted(result, key=lambda group: (-group.epsilon, group.silos))


def statement(events: Iterable[Event], unit: Unit, delta: float, replay: bool = False) -> str:
    """Return a guarantee as a sentence, with all that it rests on; epsilon is rounded up."""
    known = merge(events)
    steps = " and ".join(_steps(event) for event in known) or "nothing released"
    by = accountant(known)
    if by == "none":
        text = f"no guarantee for {ZEROED[unit]}, {steps}"
    else:
        text = f"epsilon {above(epsilon(known, delta))} at delta {delta:g} for {ZEROED[unit]}, {steps}, accountant {by}"
    return f"{NOT_PRIVATE}, the noise can be replayed: {text}" if replay else text


def _steps(event: Event) -> str:
    """Return what an event was, as a part of a sentence."""
    text = f"{event.count} step{'s' * (event.count > 1)} "
    if event.sigma == 0:
        return text + "without noise"
    if event.kind == "concentrated":
        return text + f"of a mechanism with zero-concentrated DP of rho {1 / (2 * event.sigma**2):.4g}"
    sampled = f"Poisson sampling at rate {event.rate:g}" if event.rate < 1 else "no sampling"
    return text + f"of the Gaussian mechanism with noise multiplier {event.sigma:.4g}, {sampled}"
