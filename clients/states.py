"""The states of many clients as columns: what each remembers is made when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients.state import KINDS, Kept, Laid, State
from fedrec.data.types import Bools, Ints
from fedrec.federation.coordination import Link, Own
from fedrec.keyed import TABLES
from fedrec.params import Params
from fedrec.training.cohort import Cohort
from fedrec.training.common_start import CommonStart, dense, gather
from fedrec.training.results import Piece
from fedrec.training.stacks import Stack

TIED, OWN = KINDS[1:3], KINDS[3:]  # what there is of a `Link`, and of an `Own`
NEVER = -1  # the round of a client that has nothing to remember


@dataclass(frozen=True)
class Snapshots:
    """What clients remember after a contribution: `Kept` of each, by its position in a cohort of n."""

    cohort: Cohort
    round: Ints  # [n], NEVER where there is none
    private: Stack  # of each
    mu: NDArray[np.float64]  # [n]
    links: Sequence[Link | None]
    owns: Sequence[Own]

    @staticmethod
    def of(cohort: Cohort, each: Sequence[Kept | None]) -> Snapshots | None:
        """Return the columns of what clients remember; None where nobody remembers anything."""
        there = {place: kept for place, kept in enumerate(each) if kept is not None}
        if not there:
            return None
        return Snapshots(
            cohort,
            np.array([NEVER if kept is None else kept.round for kept in each], np.int64),
            gather(cohort, {place: kept.private for place, kept in there.items()}),
            np.array([0.0 if kept is None else kept.mu for kept in each]),
            [kept and kept.link for kept in each],
            [Own() if kept is None else kept.own for kept in each],
        )

    def at(self, place: int) -> Kept | None:
        """Return what one client remembers."""
        number = int(self.round[place])
        if number == NEVER:
            return None
        piece = Piece(self.cohort, self.private, place)
        return Kept(number, piece, self.links[place], self.owns[place], float(self.mu[place]))

    def laid(self) -> Laid:
        """Return these as they are saved."""
        rho = [link.rho if link else 0.0 for link in self.links]
        marks = np.column_stack([self.round, self.mu, rho]).astype(np.float64)
        marks[self.round == NEVER] = np.nan
        counts = {space: np.diff(self.cohort.starts[space]) for space in ("user", "item")}
        flat, base = {}, Params()
        for name, value in self.private.values.items():
            if name in TABLES:
                flat[name] = (value, counts[TABLES[name]])
            else:
                flat[name] = (value.reshape(-1, *value.shape[2:]), np.full(len(value), value.shape[1]))
        if isinstance(self.private, CommonStart):
            base, (rows, sizes) = self.private.base, self.private.local(self.cohort)
            flat = {f"changed/{n}": (self.private.rows[n], sizes) if n in base else part for n, part in flat.items()}
            flat["rows/item"] = (rows, sizes)
        single: dict[str, list[Mapping[str, Tensor] | None]] = {
            kind: [getattr(own, kind) for own in self.owns] for kind in OWN
        }
        single |= {kind: [None if link is None else getattr(link, kind) for link in self.links] for kind in TIED}
        there = {kind: each for kind, each in single.items() if any(part is not None for part in each)}
        return Laid(marks, there, {"private": flat}, {"private": base} if base else {})

    def but(self, mask: Bools, others: Snapshots | None) -> Snapshots:
        """Return what all remember, but of the clients of a mask [n] what `others` have; of None nothing."""
        if others is None or not mask.any():
            return replace(self, round=np.where(mask, NEVER, self.round)) if mask.any() else self
        if mask.all():
            return others
        chosen = mask.tolist()
        return Snapshots(
            self.cohort,
            np.where(mask, others.round, self.round),
            chosen_of(self.cohort, mask, others.private, self.private),
            np.where(mask, others.mu, self.mu),
            [b if other else a for a, b, other in zip(self.links, others.links, chosen, strict=True)],
            [b if other else a for a, b, other in zip(self.owns, others.owns, chosen, strict=True)],
        )


def chosen_of(cohort: Cohort, mask: Bools, one: Stack, other: Stack) -> Stack:
    """Return a stack of each, with the parameters of `one` for the clients of a mask [n], else those of `other`."""
    if one is other:
        return one
    if isinstance(one, CommonStart) and isinstance(other, CommonStart) and one.began_with(other):
        beside = chosen_of(cohort, mask, one.beside, other.beside)
        return one.but(cohort, mask, other, beside)
    one, other = dense(cohort, one), dense(cohort, other)
    masks = {space: torch.from_numpy(np.repeat(mask, np.diff(cohort.starts[space]))) for space in ("user", "item")}
    values = {}
    for name, value in one.values.items():
        rows = masks[TABLES[name]] if name in TABLES else torch.from_numpy(mask)
        shaped = rows.to(value.device).reshape(-1, *[1] * (value.dim() - 1))
        values[name] = torch.where(shaped, value, other.values[name])
    return Stack(values)


@dataclass
class States:
    """The states of the clients of a cohort, see `State`: one is made when it is asked for."""

    now: Snapshots
    before: Snapshots | None
    kept: Snapshots | None
    limits: list[tuple[float, ...]]

    @staticmethod
    def start(cohort: Cohort, private: Stack) -> States:
        """Return the states of clients that join, and remember nothing but these parameters."""
        n = len(cohort)
        now = Snapshots(cohort, np.zeros(n, np.int64), private, np.zeros(n), [None] * n, [Own()] * n)
        return States(now, None, None, [()] * n)

    @staticmethod
    def of(cohort: Cohort, each: Sequence[State]) -> States:
        """Return the columns of states, by position in a cohort."""
        now, before, kept = (Snapshots.of(cohort, [getattr(one, when) for one in each]) for when in State._fields[:3])
        assert now is not None
        return States(now, before, kept, [one.limits for one in each])

    def at(self, place: int) -> State:
        """Return the state of one client."""
        now = self.now.at(place)
        assert now is not None
        before, kept = (None if one is None else one.at(place) for one in (self.before, self.kept))
        return State(now, before, kept, self.limits[place])

    def follow(self, places: Ints, seen: int, keep: bool) -> Ints:
        """Let clients [k] follow the server, see `State.settled`; return those of whom it has seen neither round."""
        wrong: Ints = places[:0]
        lost: Ints = places[self.now.round[places] != seen]
        if len(lost):
            known = (
                np.zeros(len(lost), np.bool_)
                if self.before is None
                else (self.before.round[lost] == seen) & (seen != NEVER)
            )
            lost, wrong = lost[known], lost[~known]
            mask = mask_of(lost, len(self.limits))
            self.now = self.now.but(mask, self.before) if len(lost) else self.now
            self.before = None if self.before is None else self.before.but(mask, None)
            places = np.setdiff1d(places, wrong)
        if keep and len(places):
            mask = mask_of(places, len(self.limits))
            nothing = replace(self.now, round=np.full(len(mask), NEVER))
            self.kept = (self.kept or nothing).but(mask, self.now)
        return wrong

    def train(self, places: Ints, after: Snapshots) -> None:
        """Take what clients [k] remember `after` another contribution."""
        mask = mask_of(places, len(self.limits))
        nothing = replace(self.now, round=np.full(len(mask), NEVER))
        self.before = (self.before or nothing).but(mask, self.now)
        self.now = self.now.but(mask, after)

    def laid(self, when: str) -> Laid:
        """Return what all remember of a time, as it is saved."""
        found: Snapshots | None = getattr(self, when)
        return found.laid() if found else Laid(np.full((len(self.limits), 3), np.nan), {}, {})

    @property
    def best(self) -> Snapshots:
        """What each client remembers of the best round, see `State.best`."""
        return self.now if self.kept is None else self.kept.but(self.kept.round == NEVER, self.now)


def mask_of(places: Ints, count: int) -> Bools:
    """Return the mask [count] of some places."""
    mask = np.zeros(count, np.bool_)
    mask[places] = True
    return mask
