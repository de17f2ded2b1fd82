"""A client's private state: what stays with it from round to round, and never is in a message."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from clients.client import Client
from fedrec.federation.coordination import Link, Own
from fedrec.params import Params, to
from fedrec.sharing import ContractError
from fedrec.training.moved import Moved
from fedrec.wire import pack, unpack
from fedrec.wire.messages import part

SECRET = "secret/"
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
        return Kept(int(marks[0]), dict(private or {}), link, Own(*own), marks[1])


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
            text = f"found {seen} in round {self.now.round}"
            raise ContractError(f"seen: must be one of the last two contributions, {text}")
        return self._replace(now=self.before, before=None)

    def trained(self, kept: Kept) -> State:
        """Return the state after another contribution."""
        return State(kept, self.now, self.kept, self.limits)


@dataclass
class Party:
    """A client where it is at home: what it is, its state once it has joined, and what it has of a secure sum."""

    client: Client
    joined: State | None = None
    secrets: RecordDict = field(default_factory=RecordDict)

    @property
    def state(self) -> State:
        """Its state; raises ContractError if it has not joined."""
        if self.joined is None:
            raise ContractError("join: must come before training and evaluation, found a client that has not joined")
        return self.joined


def saved(parties: Mapping[str, Party]) -> RecordDict:
    """Return the state of a node's clients as Flower records, the tensors of one name end to end."""
    joined = {name: party.state for name, party in parties.items() if party.joined}
    records = RecordDict({f"{SECRET}{n}/{key}": r for n, party in parties.items() for key, r in party.secrets.items()})
    about: dict[str, Any] = {"names": list(joined), "limits": [state.limits for state in joined.values()]}
    bases: dict[int, Params] = {}
    for when in TIMES:
        snapshots: list[Kept | None] = [getattr(state, when) for state in joined.values()]
        about[when] = [kept and kept.marks for kept in snapshots]
        tensors = [kept.tensors if kept else {} for kept in snapshots]
        for kind in KINDS:
            parts = [by_kind.get(kind) for by_kind in tensors]
            if any(part is not None for part in parts):
                records[f"{when}.{kind}"], about[f"{when}.{kind}"] = lay_out(parts, bases)
    for number, base in enumerate(bases.values()):
        records[f"base.{number}"] = pack(base)
    records["about"] = ConfigRecord({"about": json.dumps(about)})
    return records


def lay_out(parts: Sequence[Mapping[str, Tensor] | None], bases: dict[int, Params]) -> tuple[ArrayRecord, Any]:
    """Return tensors of clients, those of one name and form end to end, and how many rows are whose.

    Of what is another's but for some rows, that other is added to `bases`.
    """
    of, flat = [], []
    for params in parts:
        of.append(-1)
        if isinstance(params, Moved):
            bases.setdefault(id(params.base), params.base)
            of[-1], params = list(bases).index(id(params.base)), params.tensors()
        flat.append(params)
    alike: dict[tuple[str, torch.dtype, torch.Size, int], list[tuple[int, Tensor]]] = {}
    for name in sorted({name for p in flat if p is not None for name in p}):  # as parameters are, of any client
        for place, p in enumerate(flat):
            if p is not None and name in p:
                value, alone = p[name], place if p[name].is_sparse else -1
                alike.setdefault((name, value.dtype, value.shape[1:], alone), []).append((place, value))
    arrays, rows = {}, {}
    for number, ((name, *_), values) in enumerate(alike.items()):
        key = f"{name}:{number}"
        arrays[key] = torch.cat([value for _, value in values]) if len(values) > 1 else values[0][1]
        rows[key] = [[place for place, _ in values], [len(value) for _, value in values]]
    return pack(arrays), [of, [p is None for p in flat], rows]


def restore(parties: Mapping[str, Party], records: RecordDict) -> None:
    """Let the clients of a node go back to what `saved` returned; nobody has joined where that is nothing."""
    about = json.loads(str(part(records, "about", ConfigRecord).get("about", '{"names": []}')))
    bases: list[Params] = []
    while isinstance(base := records.get(f"base.{len(bases)}"), ArrayRecord):
        bases.append(unpack(base))
    each = {
        when: {k: split(records[f"{when}.{k}"], about[f"{when}.{k}"], bases) for k in KINDS if f"{when}.{k}" in records}
        for when in TIMES
    }
    for party in parties.values():
        party.joined, party.secrets = None, RecordDict()
    for place, name in enumerate(about["names"]):
        kept: dict[str, Kept | None] = {}
        for when in TIMES:
            marks = about[when][place]
            kept[when] = marks and Kept.of(marks, {kind: parts[place] for kind, parts in each[when].items()})
            if snapshot := kept[when]:
                kept[when] = snapshot._replace(private=to(snapshot.private, parties[name].client.device))
        if now := kept["now"]:
            parties[name].joined = State(now, kept["before"], kept["kept"], tuple(about["limits"][place]))
    for key, record in records.items():
        if key.startswith(SECRET):
            name, _, kind = key.removeprefix(SECRET).rpartition("/")
            parties[name].secrets[kind] = record


def split(record: Any, about: Any, bases: Sequence[Params]) -> list[Mapping[str, Tensor] | None]:
    """Return the tensors of each client that `lay_out` laid out."""
    arrays, (of, none, rows) = unpack(record), about
    parts: list[Params] = [{} for _ in of]
    for key, (places, sizes) in rows.items():
        whole = arrays[key]
        pieces = torch.split(whole, sizes) if len(sizes) > 1 else (whole,)
        for place, value in zip(places, pieces, strict=True):
            parts[place][key.rpartition(":")[0]] = value
    return [
        None if none[place] else tensors if of[place] < 0 else Moved.read(bases[of[place]], tensors)
        for place, tensors in enumerate(parts)
    ]
