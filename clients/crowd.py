"""What the clients of a cohort remember, stacked: `clients.memory` for many at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict

from clients.client import Client
from clients.round import receive
from fedrec.coordination import Link, Own
from fedrec.data.types import Ints
from fedrec.parameters import Params, to
from fedrec.sharing import TABLES, Broadcast, ContractError
from fedrec.training.changed import Changed
from fedrec.training.cohort import Cohort
from fedrec.training.stacks import Stack
from fedrec.wire import pack, unpack

NOTHING = Own()


@dataclass(frozen=True)
class Kept:
    """What a client remembers after a contribution, beside its private parameters."""

    round: int = 0
    link: Link | None = None
    own: Own = NOTHING
    mu: float = 0.0


@dataclass
class Crowd:
    """The clients of a cohort in its order, and what each remembers; see `clients.memory.Memory` for the rules."""

    cohort: Cohort
    clients: tuple[Client, ...]
    private: Stack  # after the last contribution of each
    now: list[Kept]
    tuned: Changed | None = None  # every client's own x_i, where it recommends with that
    frugal: bool = False  # whether to train tuned copies that are rarely read again instead of keeping them

    def __post_init__(self) -> None:
        self.before_private, self.before = self.private, list(self.now)
        self.best_private, self.best_own = self.private, [one.own for one in self.now]
        self.before_tuned, self.best_tuned = self.tuned, self.tuned
        self.limits: dict[int, list[float]] = {}

    @cached_property
    def places(self) -> dict[str, int]:
        """Every client's position."""
        return {client.data.name: place for place, client in enumerate(self.clients)}

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """Every client's numbers of users and items."""
        return [(len(client.data.users), len(client.data.items)) for client in self.clients]

    @property
    def device(self) -> str:
        """Where the clients train."""
        return self.clients[0].device

    def open(self, places: Sequence[int], sent: Sequence[Broadcast]) -> dict[int, str]:
        """Follow the server: undo lost contributions, keep the best state; return why clients cannot follow."""
        lost, kept, failed = [], [], {}
        for place, broadcast in zip(places, sent, strict=True):
            if self.now[place].round != broadcast.seen:
                if self.before[place].round != broadcast.seen:
                    failed[place] = (
                        f"seen: must be one of the last two contributions, found {broadcast.seen} in round "
                        f"{self.now[place].round}"
                    )
                    continue
                lost.append(place)
            if broadcast.keep:
                kept.append(place)
        if lost:
            self.private = self.mixed(self.private, self.before_private, lost)
            self.tuned = exchanged(self.tuned, self.before_tuned, lost)
            for place in lost:
                self.now[place] = self.before[place]
        elif len(places) == len(self.cohort) and not failed:
            self.before_private, self.before_tuned = self.private, self.tuned  # nobody will go back any more
        if kept:
            self.best_private = self.mixed(self.best_private, self.private, kept)
            self.best_tuned = exchanged(self.best_tuned, self.tuned, kept)
            for place in kept:
                self.best_own[place] = self.now[place].own
        return failed

    def trained(self, private: Stack, made: Mapping[int, Kept], tuned: Changed | None = None) -> None:
        """Remember the state after contributions of some clients, and the one before."""
        places = list(made)
        self.before_tuned = self.rare(exchanged(self.before_tuned, self.tuned, places))
        self.best_tuned, self.tuned = self.rare(self.best_tuned), tuned
        self.before_private = self.mixed(self.before_private, self.private, places)
        for place, kept in made.items():
            self.before[place], self.now[place] = self.now[place], kept
        self.private = private

    def rare(self, changed: Changed | None) -> Changed | None:
        """Return tuned copies as they are kept if they are rarely read."""
        return changed.light() if changed and self.frugal else changed

    def mixed(self, stack: Stack, other: Stack, places: Sequence[int]) -> Stack:
        """Return a stack with the parameters of some clients from another."""
        if len(places) == len(self.cohort):
            return other
        chosen, made = np.array(sorted(places), dtype=np.int64), {}
        for name, value in stack.values.items():
            index = self.rows(TABLES[name], chosen) if name in TABLES else chosen
            at = torch.from_numpy(index).to(value.device)
            made[name] = value.index_copy(0, at, other.values[name].index_select(0, at))
        return Stack(made)

    def rows(self, space: str, chosen: Ints) -> Ints:
        """Return the flat rows of clients."""
        starts = self.cohort.starts[space]
        return np.concatenate([np.arange(starts[c], starts[c + 1]) for c in chosen.tolist()] or [np.zeros(0, np.int64)])

    def spread(self, parts: Mapping[int, Params]) -> Stack:
        """Return a stack of tensors of some clients, zero for the others; all have the same names and dtypes."""
        made: Params = {}
        for name, like in next(iter(parts.values())).items():
            edges = self.cohort.starts[TABLES[name]] if name in TABLES else np.arange(len(self.cohort) + 1)
            made[name] = like.new_zeros(
                (int(edges[-1]), *(like.shape[1:] if name in TABLES else like.shape)), device=self.device
            )
            for place, part in parts.items():
                made[name][edges[place] : edges[place + 1]] = part[name] if name in TABLES else part[name][None]
        return Stack(made)

    def received(self, parts: Mapping[int, Params], personal: bool) -> Stack:
        """Return the z_i of some clients as one stack: the server's rows once, unless every client has its own z_i."""
        if personal:
            return self.spread(parts)
        first, distinct = next(iter(parts.values())), {id(part) for part in parts.values()}
        spaces = {TABLES[name] for name in first if name in TABLES}
        if len(distinct) == 1 and all(self.cohort.server[space] is None for space in spaces):
            return Stack(to(first, self.device), each=False)
        made: Params = {}
        for name, like in first.items():
            if name not in TABLES or self.cohort.server[TABLES[name]] is None:
                made[name] = like
                continue
            server = self.cohort.server[TABLES[name]]
            assert server is not None
            starts = self.cohort.starts[TABLES[name]]
            made[name] = like.new_zeros((int(server.max()) + 1, *like.shape[1:]))
            for place, part in parts.items():
                rows = torch.from_numpy(server[starts[place] : starts[place + 1]])
                made[name].index_copy_(0, rows, part[name])
        return Stack(to(made, self.device), each=False)

    def admitted(self, places: Sequence[int], sent: Sequence[Broadcast]) -> Iterator[tuple[int, str]]:
        """Yield the clients whose message breaks their contract, and how."""
        known: dict[tuple[int, int, int], str] = {}
        for place, broadcast in zip(places, sent, strict=True):
            key = (id(broadcast), *self.sizes[place])
            if key not in known:
                known[key] = broken(self.clients[place], broadcast)
            if known[key]:
                yield place, known[key]

    def state(self, prefix: str) -> RecordDict:
        """Return all that is remembered, as Flower records."""
        found = RecordDict()
        stacks = {"now": self.private, "before": self.before_private, "best": self.best_private}
        for name, stack in stacks.items():
            found[f"{prefix}.{name}"] = pack(stack.values)
        for name, marks in (("now", self.now), ("before", self.before)):
            mark_of = MetricRecord()
            mark_of["round"], mark_of["mu"] = [m.round for m in marks], [m.mu for m in marks]
            mark_of["rho"] = [m.link.rho if m.link else 0.0 for m in marks]
            found[f"{prefix}.{name}.mark"] = mark_of
            for place, mark in enumerate(marks):
                parts = {"personal": mark.own.personal, "control": mark.own.control}
                parts |= {"dual": mark.link.dual, "sent": mark.link.sent} if mark.link else {}
                for part, params in parts.items():
                    if params is not None:
                        found[f"{prefix}.{name}.{place}.{part}"] = pack(params)
        for place, own in enumerate(self.best_own):
            if own.personal is not None:
                found[f"{prefix}.best.{place}.personal"] = pack(own.personal)
        for name, changed in (("now", self.tuned), ("before", self.before_tuned), ("best", self.best_tuned)):
            if changed is not None:
                found[f"{prefix}.{name}.tuned"] = pack(changed.tensors())
        for place, limits in self.limits.items():
            found[f"{prefix}.limits.{place}"] = MetricRecord({"b": limits})
        return found

    def restore(self, state: RecordDict, prefix: str) -> None:
        """Go back to a `state`."""

        def params(name: str) -> Params | None:
            record = state.get(f"{prefix}.{name}")
            return to(unpack(record), self.device) if isinstance(record, ArrayRecord) else None

        def stack(name: str) -> Stack:
            return Stack(params(name) or {})

        self.private, self.before_private, self.best_private = stack("now"), stack("before"), stack("best")
        if self.tuned is not None:
            tuned = [Changed.restore(params(f"{name}.tuned") or {}) for name in ("now", "before", "best")]
            self.tuned, self.before_tuned, self.best_tuned = tuned
        for name, marks in (("now", self.now), ("before", self.before)):
            about = state.metric_records[f"{prefix}.{name}.mark"]
            for place in range(len(marks)):
                dual, sent = params(f"{name}.{place}.dual"), params(f"{name}.{place}.sent")
                rho, mu, number = (column[place] for column in map(about.__getitem__, ("rho", "mu", "round")))  # type: ignore[index]
                link = Link(dual, sent, rho) if dual is not None and sent is not None else None
                own = Own(params(f"{name}.{place}.personal"), params(f"{name}.{place}.control"))
                marks[place] = Kept(int(number), link, own, mu)
        self.best_own = [replace(one.own, personal=params(f"best.{k}.personal")) for k, one in enumerate(self.now)]
        limits = {k: state.get(f"{prefix}.limits.{k}") for k in range(len(self.clients))}
        self.limits = {k: list(one["b"]) for k, one in limits.items() if isinstance(one, MetricRecord)}  # type: ignore[arg-type]


def exchanged(these: Changed | None, other: Changed | None, places: Sequence[int]) -> Changed | None:
    """Return clients' own shared parameters with those of another for some clients."""
    return these.mixed(other, np.array(sorted(places), dtype=np.int64)) if these and other else other


def broken(client: Client, broadcast: Broadcast) -> str:
    """Return how a message breaks a client's contract; nothing if it does not."""
    try:
        receive(client, broadcast)
        return ""
    except ContractError as error:
        return str(error)
