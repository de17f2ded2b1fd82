"""A client's private state: what stays with it from round to round, and never is in a message."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from clients.client import Client
from fedrec.data.types import Ints
from fedrec.federation.coordination import Link, Own
from fedrec.params import Params, to
from fedrec.sharing import ContractError
from fedrec.training.moved import Moved
from fedrec.wire import pack, unpack
from fedrec.wire.messages import part

OF_ROWS = ".rows"  # behind the name of a record: whose its rows are
SECRET = "secret/"
WHOLE, MISSING = -1, -2  # in the place of the number of a base
NONE = np.zeros((0, 3))
TIMES = ("now", "before", "kept")
KINDS = ("private", "dual", "sent", "personal", "control", "weighting", "memory")


class Kept(NamedTuple):
    """What a client remembers after a contribution: its private parameters, its tie, what is its own, its price mu."""

    round: int
    private: Mapping[str, Tensor]
    link: Link | None = None
    own: Own = Own()
    mu: float = 0.0

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

    @staticmethod
    def of(marks: Sequence[float], tensors: Mapping[str, Mapping[str, Tensor] | None]) -> Kept:
        """Return what has these numbers and tensors."""
        private, dual, sent, *own = (tensors.get(kind) for kind in KINDS)
        link = None if dual is None or sent is None else Link(dict(dual), dict(sent), marks[2])
        return Kept(int(marks[0]), {} if private is None else private, link, Own(*own), marks[1])


class State(NamedTuple):
    """One client's state: after its last contribution, after the one before, and of the best round.

    A contribution may be lost on its way. The server says in every message which one it took last (`seen`), and the
    client goes back to the state before a lost one, so that both sides always agree on the duals.
    """

    now: Kept
    before: Kept | None = None
    kept: Kept | None = None
    limits: tuple[float, ...] = ()  # the client's budget b_i for every round, once it is known

    @property
    def best(self) -> Kept:
        """The state of the best round, of which the private parameters and the personal model count."""
        return self.kept or self.now

    def settled(self, seen: int) -> State:
        """Return the state before the last contribution if the server did not take it, else this one.

        Raises ContractError if the server has seen neither of the two.
        """
        if self.now.round == seen:
            return self
        if self.before is None or self.before.round != seen:
            raise ContractError(unseen(seen, self.now.round))
        return self._replace(now=self.before, before=None)

    def trained(self, kept: Kept) -> State:
        """Return the state after another contribution."""
        return State(kept, self.now, self.kept, self.limits)


def unseen(seen: int, number: int) -> str:
    """Return why a client cannot follow a server that has seen neither of its last two contributions."""
    return f"seen: must be one of the last two contributions, found {seen} in round {number}"


class Laid(NamedTuple):
    """What n clients remember of one time: `Kept.marks` of each, NaN where that is nothing, and tensors by kind."""

    marks: NDArray[np.float64]  # [n, 3]
    single: Mapping[str, Sequence[Mapping[str, Tensor] | None]]  # of each client
    stacked: Mapping[str, Mapping[str, tuple[Tensor, Ints]]]  # name -> those of all end to end, and the rows of each
    bases: Mapping[str, Params] = MappingProxyType({})  # what is stacked of a kind is `Moved.tensors` of these

    @staticmethod
    def of(each: Sequence[Kept | None]) -> Laid:
        """Return what clients remember, of whom nothing lies end to end."""
        marks = np.array([kept.marks if kept else [np.nan] * 3 for kept in each]).reshape(-1, 3)
        tensors = [kept.tensors if kept else {} for kept in each]
        return Laid(marks, {kind: [by_kind.get(kind) for by_kind in tensors] for kind in KINDS}, {})


class Many(Protocol):
    """States of many clients that lie together, by place."""

    limits: list[tuple[float, ...]]

    def at(self, place: int) -> State:
        """Return the state of one of them."""

    def laid(self, when: str) -> Laid:
        """Return what all of them remember of a time."""


class Party:
    """A client where it is at home: what it is, its state once it has joined, and what it has of a secure sum.

    The state may lie `among` many: it is made when it is asked for.
    """

    __slots__ = ("_joined", "_secrets", "among", "client", "place")

    def __init__(self, client: Client, joined: State | None = None) -> None:
        self.client, self._joined = client, joined
        self.among: Many | None = None
        self.place = 0
        self._secrets: RecordDict | None = None

    @property
    def joined(self) -> State | None:
        """Its state; None before it has joined."""
        return self._joined if self.among is None else self.among.at(self.place)

    @joined.setter
    def joined(self, state: State | None) -> None:
        self._joined, self.among = state, None

    def lie(self, among: Many, place: int) -> None:
        """Have the state that lies among many at a place."""
        self._joined, self.among, self.place = None, among, place

    @property
    def secrets(self) -> RecordDict:
        """What it has of a secure sum."""
        if self._secrets is None:
            self._secrets = RecordDict()
        return self._secrets

    @secrets.setter
    def secrets(self, found: RecordDict) -> None:
        self._secrets = found or None

    def drop(self, kind: str) -> None:
        """Have nothing of a kind of a secure sum."""
        if self._secrets is not None:
            self._secrets.pop(kind, None)

    @property
    def state(self) -> State:
        """Its state; raises ContractError if it has not joined."""
        if (state := self.joined) is None:
            raise ContractError("join: must come before training and evaluation, found a client that has not joined")
        return state


def saved(parties: Mapping[str, Party]) -> RecordDict:
    """Return the state of a node's clients as Flower records, the tensors of one name end to end."""
    records, together = RecordDict(), dict[int, tuple[Many | None, list[str]]]()
    for name, party in parties.items():
        for key, record in (party._secrets or {}).items():
            records[f"{SECRET}{name}/{key}"] = record
        if party.among is not None or party.joined is not None:
            together.setdefault(id(party.among), (party.among, []))[1].append(name)
    names, limits, laid = list[str](), list[tuple[float, ...]](), dict[str, list[Laid]]({when: [] for when in TIMES})
    for many, members in together.values():
        states = [] if many else [parties[name].state for name in members]
        names += sorted(members, key=lambda name: parties[name].place) if many else members
        limits += many.limits if many else [state.limits for state in states]
        for when in TIMES:
            laid[when].append(many.laid(when) if many else Laid.of([getattr(state, when) for state in states]))
    bases: dict[int, Params] = {}
    for when, blocks in laid.items():
        records[f"{when}.marks"] = pack({"marks": torch.from_numpy(np.concatenate([*(b.marks for b in blocks), NONE]))})
        for kind in KINDS:
            if any(kind in b.stacked or any(p is not None for p in b.single.get(kind, ())) for b in blocks):
                values, rows = lay_out(blocks, kind, bases)
                records[f"{when}.{kind}"], records[f"{when}.{kind}{OF_ROWS}"] = pack(values), pack(rows)
    for number, base in enumerate(bases.values()):
        records[f"base.{number}"] = pack(base)
    records["about"] = ConfigRecord({"about": json.dumps({"names": names, "limits": limits})})
    return records


def lay_out(blocks: Sequence[Laid], kind: str, bases: dict[int, Params]) -> tuple[Params, Params]:
    """Return tensors of clients, those of one name and form end to end, and how many rows are whose.

    `base` [n] has the number of what a client's are but for some rows, -1 where they are whole, and -2 where it has
    none; what it is is added to `bases`.
    """
    arrays, rows, first = Params(), Params(), 0
    of = np.full(sum(len(block.marks) for block in blocks), WHOLE)
    alike: dict[tuple[str, torch.dtype, torch.Size, int], list[tuple[int, Tensor]]] = {}
    for block in blocks:
        for name, (value, sizes) in block.stacked.get(kind, {}).items():
            key = f"{name}:{len(arrays)}"
            arrays[key] = value
            rows |= whose(key, np.arange(first, first + len(sizes)), sizes)
        if base := block.bases.get(kind):
            bases.setdefault(id(base), base)
            of[first : first + len(block.marks)] = list(bases).index(id(base))
        for place, params in enumerate(block.single.get(kind, ()), first):
            if params is None:
                of[place] = MISSING
                continue
            if isinstance(params, Moved):
                bases.setdefault(id(params.base), params.base)
                of[place], params = list(bases).index(id(params.base)), params.tensors()
            for name, value in params.items():
                form = name, value.dtype, value.shape[1:], place if value.is_sparse else -1
                alike.setdefault(form, []).append((place, value))
        if kind not in block.stacked and kind not in block.single:
            of[first : first + len(block.marks)] = MISSING
        first += len(block.marks)
    for (name, *_), values in sorted(alike.items(), key=lambda item: item[0][0]):  # as parameters are, of any client
        key = f"{name}:{len(arrays)}"
        arrays[key] = torch.cat([value for _, value in values]) if len(values) > 1 else values[0][1]
        rows |= whose(key, [place for place, _ in values], [len(value) for _, value in values])
    return arrays, rows | {"base": torch.from_numpy(of)}


def whose(key: str, places: Sequence[int] | Ints, sizes: Sequence[int] | Ints) -> Params:
    """Return whose the rows of an array are: the clients' places, and the numbers of their rows."""
    both = {f"places/{key}": places, f"sizes/{key}": sizes}
    return {name: torch.from_numpy(np.asarray(values, np.int64)) for name, values in both.items()}


def restore(parties: Mapping[str, Party], records: RecordDict) -> None:
    """Let the clients of a node go back to what `saved` returned; nobody has joined where that is nothing."""
    about = json.loads(str(part(records, "about", ConfigRecord).get("about", '{"names": []}')))
    bases: list[Params] = []
    while isinstance(base := records.get(f"base.{len(bases)}"), ArrayRecord):
        bases.append(unpack(base))
    for party in parties.values():
        party.joined, party.secrets = None, RecordDict()
    each = {when: remembered(records, when, bases) for when in TIMES} if about["names"] else {}
    for place, name in enumerate(about["names"]):
        kept = {when: found[place] for when, found in each.items()}
        for when, snapshot in kept.items():
            if snapshot:
                kept[when] = snapshot._replace(private=placed(snapshot.private, parties[name].client.device))
        if now := kept["now"]:
            parties[name].joined = State(now, kept["before"], kept["kept"], tuple(about["limits"][place]))
    for key, record in records.items():
        if key.startswith(SECRET):
            name, _, kind = key.removeprefix(SECRET).rpartition("/")
            parties[name].secrets[kind] = record


def placed(private: Mapping[str, Tensor], device: str) -> Mapping[str, Tensor]:
    """Return private parameters on a device; what is others' but for some rows stays so where it is."""
    return private if isinstance(private, Moved) and device == "cpu" else to(private, device)


def remembered(records: RecordDict, when: str, bases: Sequence[Params]) -> list[Kept | None]:
    """Return what each client remembered of a time."""
    marks = unpack(part(records, f"{when}.marks", ArrayRecord))["marks"].tolist()
    kinds = {
        kind: split(records[f"{when}.{kind}"], records[f"{when}.{kind}{OF_ROWS}"], bases)
        for kind in KINDS
        if f"{when}.{kind}" in records
    }
    return [
        None if mark[0] != mark[0] else Kept.of(mark, {kind: parts[place] for kind, parts in kinds.items()})
        for place, mark in enumerate(marks)
    ]


def split(record: Any, about: Any, bases: Sequence[Params]) -> list[Mapping[str, Tensor] | None]:
    """Return the tensors of each client that `lay_out` laid out."""
    arrays, rows = unpack(record), unpack(about)
    of = rows.pop("base").tolist()
    parts: list[Params] = [{} for _ in of]
    for key, whole in arrays.items():
        places, sizes = (rows[f"{what}/{key}"].tolist() for what in ("places", "sizes"))
        pieces = torch.split(whole, sizes) if len(sizes) > 1 else (whole,)
        for place, value in zip(places, pieces, strict=True):
            parts[place][key.rpartition(":")[0]] = value
    return [
        None if number == MISSING else tensors if number == WHOLE else Moved.read(bases[number], tensors)
        for number, tensors in zip(of, parts, strict=True)
    ]
