"""A client's private state: what stays with it from round to round, and never is in a message."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from torch import Tensor

from fedrec.coordination import Link, Own
from fedrec.parameters import Params, to
from fedrec.sharing import ContractError
from fedrec.training.moved import Moved
from fedrec.wire import pack, unpack

TIMES = ("now", "before", "kept")
KINDS = ("private", "dual", "sent", "personal", "control", "weighting", "memory")


@dataclass(frozen=True)
class Kept:
    """What a client remembers after a contribution: its private parameters, its tie, what is its own, its price mu."""

    round: int
    private: Params
    link: Link | None = None
    own: Own = field(default=Own())
    mu: float = 0.0

    @property
    def open(self) -> Kept:
        """Itself; see `Stored`."""
        return self

    @property
    def marks(self) -> list[float]:
        """Its numbers: the round, mu, and the rho of its tie."""
        return [float(self.round), self.mu, self.link.rho if self.link else 0.0]

    @property
    def tensors(self) -> dict[str, Mapping[str, Tensor] | None]:
        """Its tensors by kind."""
        tied = (self.link.dual, self.link.sent) if self.link else (None, None)
        own = (self.own.personal, self.own.control, self.own.weighting, self.own.memory)
        return dict(zip(KINDS, (self.private, *tied, *own), strict=True))

    @cached_property
    def records(self) -> dict[str, ArrayRecord]:
        """Its tensors as Flower records, by kind."""
        return {kind: pack(params) for kind, params in self.tensors.items() if params is not None}

    @staticmethod
    def of(marks: Sequence[float], tensors: Mapping[str, Mapping[str, Tensor] | None]) -> Kept:
        """Return what has these numbers and tensors."""
        private, dual, sent, *own = (tensors.get(kind) for kind in KINDS)
        link = None if dual is None or sent is None else Link(dict(dual), dict(sent), marks[2])
        return Kept(int(marks[0]), dict(private or {}), link, Own(*own), marks[1])


@dataclass(frozen=True)
class Stored:
    """What a client remembers, as Flower records that nobody has opened yet: most never are."""

    marks: list[float]
    records: dict[str, ArrayRecord]

    @property
    def round(self) -> int:
        """The round of the contribution."""
        return int(self.marks[0])

    @cached_property
    def open(self) -> Kept:
        """The same, opened."""
        kept = Kept.of(self.marks, {kind: unpack(record) for kind, record in self.records.items()})
        vars(kept)["records"] = self.records  # need not be made again
        return kept


@dataclass(frozen=True)
class State:
    """One client's state: after its last contribution, after the one before, and of the best round.

    A contribution may be lost on its way. The server says in every message which one it took last (`seen`), and the
    client goes back to the state before a lost one, so that both sides always agree on the duals.
    """

    now: Kept
    before: Kept | Stored | None = None
    kept: Kept | Stored | None = None
    limits: tuple[float, ...] = ()  # the client's budget b_i for every round, once it is known

    @property
    def best(self) -> Kept:
        """The state of the best round, of which the private parameters and the personal model count."""
        return (self.kept or self.now).open

    def settled(self, seen: int) -> State:
        """Return the state before the last contribution if the server did not take it, else this one.

        Raises ContractError if the server has seen neither of the two.
        """
        if self.now.round == seen:
            return self
        if self.before is None or self.before.round != seen:
            found = f"found {seen} in round {self.now.round}"
            raise ContractError(f"seen: must be one of the last two contributions, {found}")
        return replace(self, now=self.before.open, before=None)

    def trained(self, kept: Kept) -> State:
        """Return the state after another contribution."""
        return State(kept, self.now, self.kept, self.limits)


def load(context: Context) -> State:
    """Return the state of the one client of a context; raises ContractError if it has not joined."""
    found = context.state
    if "state" not in found:
        raise ContractError("join: must come before training and evaluation, found a client that has not joined")
    about = found.metric_records["state"]
    kept = {
        when: Stored(
            cast("list[float]", about[when]),
            {kind: cast(ArrayRecord, found[f"{when}.{kind}"]) for kind in KINDS if f"{when}.{kind}" in found},
        )
        for when in TIMES
        if when in about
    }
    return State(kept["now"].open, kept.get("before"), kept.get("kept"), tuple(cast("list[float]", about["limits"])))


def save(context: Context, state: State) -> None:
    """Keep the state of the one client of a context; what it has of secure sums stays."""
    for name in [name for name in context.state if not name.startswith("secure")]:
        context.state.pop(name)
    about = MetricRecord({"limits": list(state.limits)})
    for when in TIMES:
        if kept := getattr(state, when):
            about[when] = kept.marks
            for kind, record in kept.records.items():
                context.state[f"{when}.{kind}"] = record
    context.state["state"] = about


def records(states: Sequence[State]) -> RecordDict:
    """Return the states of a node's clients as Flower records, the tensors of one name end to end."""
    found = RecordDict()
    about: dict[str, Any] = {"limits": [state.limits for state in states]}
    bases: dict[int, Params] = {}
    for when in TIMES:
        every = [kept and kept.open for kept in (getattr(state, when) for state in states)]
        about[when] = [kept and kept.marks for kept in every]
        tensors = [kept.tensors if kept else {} for kept in every]
        for kind in KINDS:
            parts = [mine.get(kind) for mine in tensors]
            if any(part is not None for part in parts):
                found[f"{when}.{kind}"], about[f"{when}.{kind}"] = laid(parts, bases)
    for number, base in enumerate(bases.values()):
        found[f"base.{number}"] = pack(base)
    found["about"] = ConfigRecord({"about": json.dumps(about)})
    return found


def laid(parts: Sequence[Mapping[str, Tensor] | None], bases: dict[int, Params]) -> tuple[ArrayRecord, Any]:
    """Return tensors of clients, those of one name and form end to end, and how many rows are whose.

    Of what is another's but for some rows, that other is added to `bases`.
    """
    of, flat = [], []
    for part in parts:
        of.append(-1)
        if isinstance(part, Moved):
            bases.setdefault(id(part.base), part.base)
            of[-1], part = list(bases).index(id(part.base)), part.tensors()
        flat.append(part)
    alike: dict[tuple[str, torch.dtype, torch.Size], list[tuple[int, Tensor]]] = {}
    for name in dict.fromkeys(name for part in flat if part is not None for name in part):
        for place, part in enumerate(flat):
            if part is not None and name in part:
                value = part[name]
                alike.setdefault((name, value.dtype, value.shape[1:]), []).append((place, value))
    arrays, rows = {}, {}
    for number, ((name, _, _), values) in enumerate(alike.items()):
        key = f"{name}:{number}"
        arrays[key] = torch.cat([value for _, value in values])
        rows[key] = [[place for place, _ in values], [len(value) for _, value in values]]
    return pack(arrays), [of, [part is None for part in flat], rows]


def read_states(found: RecordDict, device: str) -> list[State]:
    """Return the inverse of `records`, private parameters on a device."""
    about = json.loads(str(found.config_records["about"]["about"]))
    bases: list[Params] = []
    while isinstance(base := found.get(f"base.{len(bases)}"), ArrayRecord):
        bases.append(unpack(base))
    kept: dict[str, list[Kept | None]] = {}
    for when in TIMES:
        each = {k: apart(found[f"{when}.{k}"], about[f"{when}.{k}"], bases) for k in KINDS if f"{when}.{k}" in found}
        kept[when] = [
            Kept.of(marks, {kind: parts[place] for kind, parts in each.items()}) if marks else None
            for place, marks in enumerate(about[when])
        ]
    every = [[kept and replace(kept, private=to(kept.private, device)) for kept in kept[when]] for when in TIMES]
    limits = [tuple(one) for one in about["limits"]]
    return [State(*one) for one in zip(*every, limits, strict=True) if one[0]]


def apart(record: Any, about: Any, bases: Sequence[Params]) -> list[Mapping[str, Tensor] | None]:
    """Return the tensors of each client of what `laid` made."""
    arrays, (of, none, rows) = unpack(record), about
    found: list[Params] = [{} for _ in of]
    for key, (places, sizes) in rows.items():
        for place, value in zip(places, torch.split(arrays[key], sizes), strict=True):
            found[place][key.rpartition(":")[0]] = value
    return [
        None if none[place] else mine if of[place] < 0 else Moved.read(bases[of[place]], mine)
        for place, mine in enumerate(found)
    ]
