"""Parameters of many clients whose item tables began alike: of these the start once, and the rows that have moved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from fedrec.data.types import Bools, Ints
from fedrec.keyed import TABLES
from fedrec.params import Params
from fedrec.training.cohort import Cohort
from fedrec.training.moved import Moved
from fedrec.training.results import Piece, on, spread
from fedrec.training.stacks import Part, Stack

SPACE = "item"
LARGE = 2**26  # entries of all clients' tables from which they are held so
BLOCK = 2**22  # entries of tables that are made at a time, to be read once


def worthwhile(clients: int, tables: Params) -> bool:
    """Return whether so many clients are held by the start of the tables that each has."""
    return clients > 1 and clients * sum(table.numel() for table in tables.values()) >= LARGE


@dataclass(frozen=True)
class CommonStart(Stack):
    """A stack of each client's parameters. Of the tables in `base` all clients began with the same rows.

    `values` has these as they began [items, d], and any other parameter as a `Stack` of each.
    """

    base: Params = field(default_factory=dict)
    flat: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # [R] ascending flat rows that have moved
    rows: Params = field(default_factory=dict)  # table -> [R, d] what they are now
    written: list[tuple[Ints, Params]] = field(default_factory=list)  # rows that wait to be settled

    @staticmethod
    def of(values: Params, base: Params) -> CommonStart:
        """Return the stack of clients of whose tables no row has moved."""
        rows = {name: value[:0] for name, value in base.items()}
        return CommonStart({**values, **base}, True, base, rows=rows)

    @property
    def beside(self) -> Stack:
        """All but the tables that began alike."""
        return Stack({name: value for name, value in self.values.items() if name not in self.base})

    def at(self, name: str, cohort: Cohort, index: Ints, owner: Ints) -> Tensor:
        """Return rows, see `Stack`."""
        if name not in self.base:
            return super().at(name, cohort, index, owner)
        value = self.base[name]
        found = value.index_select(0, on(index - cohort.starts[SPACE][owner], value))
        if len(self.flat):
            place = np.minimum(np.searchsorted(self.flat, index), len(self.flat) - 1)
            hit = np.flatnonzero(self.flat[place] == index)
            found.index_copy_(0, on(hit, value), self.rows[name].index_select(0, on(place[hit], value)))
        return found

    def span(self, cohort: Cohort, position: int) -> slice:
        """Return where the moved rows of one client are."""
        return slice(*np.searchsorted(self.flat, cohort.starts[SPACE][position : position + 2]).tolist())

    def one(self, name: str, cohort: Cohort, position: int) -> Tensor:
        """Return one client's parameter; a table is made for it."""
        if name not in self.base:
            return super().one(name, cohort, position)
        return self.tables(name, cohort, np.array([position]))[0]

    def tables(self, name: str, cohort: Cohort, clients: Ints) -> Tensor:
        """Return a table of some clients [k, items, d], of which it makes a copy."""
        value = self.base[name]
        made = value.expand(len(clients), *value.shape).clone()
        for table, position in zip(made, clients.tolist(), strict=True):
            span = self.span(cohort, position)
            local = self.flat[span] - cohort.starts[SPACE][position]
            table.index_copy_(0, on(local, value), self.rows[name][span])
        return made

    def blocks(self, name: str, cohort: Cohort, clients: Ints) -> Iterator[tuple[slice, Tensor]]:
        """Yield the tables [b, items, d] of a few clients at a time, and where these are among those asked for.

        They are in the same memory from one to the next: what is made anew each time takes several times as long.
        """
        value, rows = self.base[name], self.rows[name]
        size = min(max(1, BLOCK // value.numel()), len(clients))
        made = value.repeat(size, 1)
        for start in range(0, len(clients), size):
            part = slice(start, min(start + size, len(clients)))
            spans = [self.span(cohort, position) for position in clients[part].tolist()]
            local = [self.flat[span] - cohort.starts[SPACE][c] for span, c in zip(spans, clients[part], strict=True)]
            at = on(np.concatenate([one + place * len(value) for place, one in enumerate(local)]), value)
            made.index_copy_(0, at, torch.cat([rows[span] for span in spans]))
            yield part, made.view(size, *value.shape)[: len(spans)]
            made.index_copy_(0, at, value.index_select(0, on(np.concatenate(local), value)))

    def held_by(self, cohort: Cohort, position: int) -> Moved:
        """Return one client's parameters as their start and what is its own, which shares the memory of the stack."""
        span = self.span(cohort, position)
        local = on(self.flat[span] - cohort.starts[SPACE][position], next(iter(self.base.values())))
        beside = self.beside
        own = {
            name: self.rows[name][span] if name in self.base else beside.one(name, cohort, position)
            for name in self.values
        }
        return Moved(self.base, {SPACE: local}, own)

    def to(self, device: str) -> CommonStart:
        """Return the same stack on a device; itself if it is there."""
        if all(value.device == torch.device(device) for value in self.values.values()):
            return self
        values, base, rows = (
            {name: value.to(device) for name, value in part.items()} for part in (self.values, self.base, self.rows)
        )
        return replace(self, values=values, base=base, rows=rows)

    def copy(self) -> CommonStart:
        """Return a stack to write to; see `settled`."""
        return replace(self, values={**self.beside.copy().values, **self.base}, written=[])

    def write(self, part: Part) -> None:
        """Take what `part` changed; rows of the tables that began alike wait to be settled."""
        self.beside.write(part)
        self.written.append((part.touched[SPACE].flat, {name: part.values[name] for name in self.base}))

    def settled(self) -> CommonStart:
        """Return the stack with all that was written."""
        if not self.written:
            return self
        flat = np.concatenate([rows for rows, _ in self.written])
        both = np.union1d(self.flat, flat)
        old, new = np.searchsorted(both, self.flat), np.searchsorted(both, flat)
        made = {}
        for name, value in self.rows.items():
            made[name] = value.new_empty(len(both), *value.shape[1:])
            made[name].index_copy_(0, on(old, value), value)
            made[name].index_copy_(0, on(new, value), torch.cat([part[name] for _, part in self.written]))
        return replace(self, flat=both, rows=made, written=[])

    def local(self, cohort: Cohort) -> tuple[Tensor, Ints]:
        """Return the moved rows [R] in every client's own order, and how many are whose [n]."""
        sizes = np.diff(np.searchsorted(self.flat, cohort.starts[SPACE]))
        return torch.from_numpy(self.flat - np.repeat(cohort.starts[SPACE][:-1], sizes)), sizes

    def but(self, cohort: Cohort, mask: Bools, other: CommonStart, beside: Stack) -> CommonStart:
        """Return the stack with the moved rows of clients of a mask [n], else those of `other`, and all `beside`."""
        parts = [one.only(cohort, kept) for one, kept in ((self, mask), (other, ~mask))]
        flat = np.concatenate([flat for flat, _ in parts])
        order = np.argsort(flat, kind="stable")
        both = {**self.base, **beside.values}
        rows = {
            name: torch.cat([rows[name] for _, rows in parts]).index_select(0, on(order, value))
            for name, value in self.base.items()
        }
        values = {name: both[name] for name in self.values}
        return replace(self, values=values, flat=flat[order], rows=rows)

    def only(self, cohort: Cohort, mask: Bools) -> tuple[Ints, Params]:
        """Return the moved rows of the clients of a mask [n]."""
        kept = np.repeat(mask, np.diff(np.searchsorted(self.flat, cohort.starts[SPACE])))
        at = np.flatnonzero(kept)
        return self.flat[at], {name: value.index_select(0, on(at, value)) for name, value in self.rows.items()}

    def began_with(self, other: Stack) -> bool:
        """Return whether another stack has the same start."""
        if not isinstance(other, CommonStart) or self.base.keys() != other.base.keys():
            return False
        return all(value is other.base[n] or torch.equal(value, other.base[n]) for n, value in self.base.items())


def dense(cohort: Cohort, stack: Stack) -> Stack:
    """Return a stack with every row of all clients' tables."""
    if not isinstance(stack, CommonStart):
        return stack
    everyone = np.arange(len(cohort))
    return Stack(
        {
            name: stack.tables(name, cohort, everyone).flatten(0, 1) if name in stack.base else value
            for name, value in stack.values.items()
        }
    )


def gather(cohort: Cohort, parts: Mapping[int, Mapping[str, Tensor]]) -> Stack:
    """Return the stack of the parameters of some clients by ascending position; see `spread` for the others'.

    Those that have one start are held by it.
    """
    each = {
        place: part.stack.held_by(cohort, place)
        if isinstance(part, Piece) and isinstance(part.stack, CommonStart)
        else part
        for place, part in parts.items()
    }
    own = {place: part for place, part in each.items() if isinstance(part, Moved)}
    base = next(iter(own.values())).base if own else {}
    alike = all(part.base is base for part in own.values()) and all(TABLES.get(name) == SPACE for name in base)
    if not own or len(own) < len(parts) or not alike:
        return spread(cohort, parts)
    rest = {place: {n: value for n, value in part.changed.items() if n not in base} for place, part in own.items()}
    firsts = [cohort.starts[SPACE][place] for place in own]
    flat = [part.rows[SPACE].cpu().numpy() + first for part, first in zip(own.values(), firsts, strict=True)]
    rows = {name: torch.cat([part.changed[name] for part in own.values()]) for name in base}
    values = {**base, **spread(cohort, rest).values}
    order = next(iter(own.values())).changed
    return CommonStart({name: values[name] for name in order}, True, base, np.concatenate(flat), rows)
