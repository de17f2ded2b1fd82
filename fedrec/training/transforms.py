"""Local transforms: what makes the gradients of a step into those along which the optimiser steps, chained as in optax.

A transform is a value with two functions. Parameters and gradients are stacked: a table is flat [rows of all clients,
d], any other parameter [k, ...]; what works entry by entry need not know. A state has tensors alike, under names of its
own, so that it can be cut to the clients that still train. It begins afresh in every phase of a round, as the
optimiser's does.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedrec.errors import UserError
from fedrec.params import Params, clone

NOTHING: Params = {}
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
class Entrywise:
    """A transform of every gradient g that has a constant c, by `rule`(g, x, c) of its entries."""

    values: Params
    rule: Callable[[Tensor, Tensor, Tensor], Tensor]

    def init(self, params: Params) -> State:
        """Return the constants."""
        return {"values": self.values}

    def update(self, grads: Params, state: State, params: Params, ctx: Context) -> tuple[Params, State]:
        """Return the gradients; one that is not trained has none."""
        here = {name: value for name, value in state["values"].items() if name in grads}
        return {**grads, **{name: self.rule(grads[name], params[name], c) for name, c in here.items()}}, state


def proximal(mu: float, anchor: Params) -> Entrywise:
    """Return what adds mu (x - anchor), the gradient of a proximal term (FedProx, arXiv 1812.06127, eq. 2)."""
    return Entrywise(anchor, lambda g, x, a: g + mu * (x - a))


def shift(values: Params) -> Entrywise:
    """Return what adds a constant: SCAFFOLD's c - c_i (arXiv 1910.06378, eq. 3)."""
    return Entrywise(values, lambda g, x, c: g + c)


def mask(values: Params) -> Entrywise:
    """Return what multiplies: by 1 where something is trained, by 0 where it stays."""
    return Entrywise(values, lambda g, x, c: g * c)


def chain(
    own: Iterable[Transform], mu: float, anchor: Params, moved: Params = NOTHING, kept: Params = NOTHING
) -> list[Transform]:
    """Return what is made of the gradients of the loss, in order; a mask is last, so that what it hides stays."""
    ours = (proximal(mu, anchor), shift(moved), mask(kept))
    return [*map(Own, own), *(part for part in ours if part.values)]


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
        result, state = self.part.update(clone(grads), state, params, ctx)
        if {n: v.shape for n, v in result.items()} != {n: v.shape for n, v in grads.items()}:
            part, names = type(self.part).__qualname__, ", ".join(result)
            raise UserError(f"transform: {part} must return every gradient in its shape, found others: {names}")
        return result, state
