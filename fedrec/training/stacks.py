"""Stacked parameters: what clients of a cohort start from, what their objectives have beside, what a round makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedrec.data.types import Ints
from fedrec.keyed import TABLES
from fedrec.params import Params, to
from fedrec.training.cohort import Cohort
from fedrec.training.recipe import Term
from fedrec.training.rows import Touched
from fedrec.training.weighting import Weigher


@dataclass(frozen=True)
class Stack:
    """Parameters of the clients of a cohort: one value for `each`, or one for all of them.

    Each: tables are flat [rows of all clients, d], any other parameter is [n, ...]. One for all: a table is the
    server's, of which a client has the rows that its cohort names.
    """

    values: Params
    each: bool = True

    def take(self, name: str, cohort: Cohort, clients: Ints, touched: Mapping[str, Touched]) -> Tensor:
        """Return a copy of one parameter for `clients`: the touched rows of a table, [k, ...] of any other one."""
        if name not in TABLES:
            return self.at(name, cohort, clients, np.arange(0))
        rows = touched[TABLES[name]]
        return self.at(name, cohort, rows.flat, clients[rows.owner])

    def at(self, name: str, cohort: Cohort, index: Ints, owner: Ints) -> Tensor:
        """Return a copy of flat rows [R] of a table of the clients `owner` [R]; of any other parameter of each client.

        `index` [R] are the flat rows of a table, else the clients.
        """
        value = self.values[name].detach()
        if name not in TABLES and not self.each:
            return value.expand(len(index), *value.shape).clone()
        if name in TABLES and not self.each:
            index = server_rows(TABLES[name], cohort, index, owner)
        return value.index_select(0, torch.from_numpy(index).to(value.device))

    def one(self, name: str, cohort: Cohort, position: int) -> Tensor:
        """Return one client's parameter; it shares the memory of a stack of each."""
        value = self.values[name]
        if name not in TABLES:
            return value[position] if self.each else value
        space = TABLES[name]
        start, stop = cohort.starts[space][position : position + 2]
        if self.each:
            return value[start:stop]
        rows = cohort.server[space]
        return value if rows is None else value.index_select(0, torch.from_numpy(rows[start:stop]).to(value.device))

    def held_by(self, cohort: Cohort, position: int) -> Mapping[str, Tensor]:
        """Return the parameters of one client as they are kept."""
        return {name: self.one(name, cohort, position) for name in self.values}

    def to(self, device: str) -> Stack:
        """Return the same values on a device."""
        return Stack(to(self.values, device), self.each)

    def copy(self) -> Stack:
        """Return a stack to write to."""
        return Stack({name: value.clone() for name, value in self.values.items()}, self.each)

    def write(self, part: Part) -> None:
        """Replace, in place, what `part` changed; of a stack of each client."""
        for name, value in self.values.items():
            index = part.touched[TABLES[name]].flat if name in TABLES else part.clients
            value.index_copy_(0, torch.from_numpy(index).to(value.device), part.values[name])

    def settled(self) -> Stack:
        """Return the stack with all that was written."""
        return self


def server_rows(space: str, cohort: Cohort, flat: Ints, owner: Ints) -> Ints:
    """Return the rows of the server's tables that flat rows of the clients `owner` are."""
    rows = cohort.server[space]
    ids: Ints = flat - cohort.starts[space][owner] if rows is None else rows[flat]
    return ids


@dataclass(frozen=True)
class Part:
    """What some clients of a cohort have after a round; the rows that are not `touched` are as they were."""

    clients: Ints  # [k] positions in the cohort
    touched: dict[str, Touched]  # by key space
    values: Params  # tables: touched rows [R, d]; any other parameter [k, ...]
    loss: Tensor  # [k] float64: the mean training loss over the batches of each
    personal: Params  # like `values`: the personal model v; empty without it


@dataclass(frozen=True)
class Terms:
    """What a client's objective has beside its loss, for every client of a cohort; see `local_update`.

    The last four, `paced` apart, are of the only client of a cohort, with gradients by autograd on whole tables.
    """

    anchor: Stack | None = None
    shift: Stack | None = None
    weight: Tensor | None = None  # [chosen]
    personal: Stack | None = None  # v, all parameters of each, trained beside; see `fedrec.federation.personal`
    share: Mapping[str, float] = field(default_factory=dict)  # of v in the mixture
    tie: float = 0.0  # lambda of v's pull to `sent`
    sent: Stack | None = None
    pull: Term | None = None
    weigher: Weigher | None = None
    second: Weigher | None = None  # of the personal parameters
    paced: bool = False  # whether a weight below 1 slows an optimiser that divides by the size of gradients
    masks: Stack | None = None  # of shared parameters, which the phase private trains where it is 1

    @property
    def alone(self) -> bool:
        """Whether they are of one client alone."""
        return bool(self.pull or self.weigher or self.masks)


NOTHING = Terms()
