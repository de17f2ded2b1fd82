"""Local transforms: what makes the gradients of a step into those along which the optimiser steps, chained as in optax.

A transform is a value with two functions. Parameters and gradients are stacked: a table is flat [rows of all clients,
d], any other parameter [k, ...]; what works entry by entry need not know. A state has tensors alike, under names of its
own, so that it can be cut to the clients that still train. It begins afresh in every phase of a round, as the
optimiser's does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedrec.errors import UserError
from fedrec.parameters import Params, clone

State = Mapping[str, Params]


@dataclass(frozen=True)
class Context:
    """Step t = 1, 2, ... of a phase; `owner` [rows] of each table is the number of the client that has a row."""

    t: int
    owner: Mapping[str, Tensor]


class Transform(Protocol):
    """What changes gradients, and nothing that it is given."""

    def init(self, params: Params) -> State:
        """Return the state before the first step, from the parameters at the start."""

    def update(self, grads: Params, state: State, params: Params, ctx: Context) -> tuple[Params, State]:
        """Return other gradients of the same names and shapes, and the next state."""


@dataclass(frozen=True)
class Proximal:
    """Adds mu (x - anchor), the gradient of a proximal term (FedProx, arXiv 1812.06127, eq. 2)."""

    mu: float
    anchor: Params

    def init(self, params: Params) -> State:
        """See Transform."""
        return {"anchor": self.anchor}

    def update(self, grads: Params, state: State, params: Params, ctx: Context) -> tuple[Params, State]:
        """See Transform."""
        near = {name: value for name, value in state["anchor"].items() if name in grads}
        return {**grads, **{n: grads[n] + self.mu * (params[n] - value) for n, value in near.items()}}, state


@dataclass(frozen=True)
class Shift:
    """Adds a constant: SCAFFOLD's c - c_i (arXiv 1910.06378, eq. 3)."""

    values: Params

    def init(self, params: Params) -> State:
        """See Transform."""
        return {"values": self.values}

    def update(self, grads: Params, state: State, params: Params, ctx: Context) -> tuple[Params, State]:
        """See Transform."""
        return {**grads, **{name: grads[name] + value for name, value in state["values"].items()}}, state


@dataclass(frozen=True)
class Mask:
    """Multiplies: 1 at what is trained, 0 at what stays."""

    values: Params

    def init(self, params: Params) -> State:
        """See Transform."""
        return {"values": self.values}

    def update(self, grads: Params, state: State, params: Params, ctx: Context) -> tuple[Params, State]:
        """See Transform."""
        return {**grads, **{name: grads[name] * value for name, value in state["values"].items()}}, state


@dataclass(frozen=True)
class Own:
    """A transform of the user's own: it gets copies, and what it returns is looked at."""

    part: Transform

    def init(self, params: Params) -> State:
        """See Transform."""
        return self.part.init(clone(params))

    @torch.no_grad()
    def update(self, grads: Params, state: State, params: Params, ctx: Context) -> tuple[Params, State]:
        """See Transform; raises UserError for gradients of other names or shapes."""
        made, state = self.part.update(clone(grads), state, params, ctx)
        wrong = [n for n in {**grads, **made} if n not in made or n not in grads or made[n].shape != grads[n].shape]
        if wrong:
            part = type(self.part).__qualname__
            raise UserError(f"transform: {part} must return every gradient in its shape, found another {wrong[0]}")
        return made, state
