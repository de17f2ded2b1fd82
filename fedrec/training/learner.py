"""Stacked parameters while they train: the optimiser's state, and buffers for the gradients of tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, zeros_like

from fedrec.optimisers import Optimiser, State
from fedrec.parameters import Params
from fedrec.sharing import TABLES
from fedrec.training.gradients import At


@dataclass
class Learner:
    """Stacked parameters of which `names` train in place, all clients or the first of them at a step."""

    params: Params
    names: Sequence[str]
    optimiser: Optimiser
    moved: Collection[str] | None  # what moves by more than its gradient; None: take all for such
    view: Params = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.whole: State = self.optimiser.start({name: self.params[name] for name in self.names})
        self.buffers: Params = {}

    def narrow(self, ends: Mapping[str, int]) -> None:
        """Go on with the first rows of every parameter."""
        self.view = {name: value[: ends[name]] for name, value in self.params.items()}
        self.state = {name: [part[: ends[name]] for part in parts] for name, parts in self.whole.items()}

    def step(self, at: At, grads: Params, more: Mapping[str, Tensor], t: int) -> None:
        """Make step `t` = 1, 2, ... along what `gradients` returns plus `more`; changes `grads`."""
        filled = self.scatter(at, grads)
        for name, value in more.items():
            grads[name] = grads[name] + value
        self.optimiser.step(self.view, grads, self.state, t)
        for value, index in filled:
            value.index_fill_(0, index, 0.0)

    def scatter(self, at: At, grads: Params) -> list[tuple[Tensor, Tensor]]:
        """Add up the gradients of tables by row, in buffers, and return what of them was filled: (table, rows).

        Under SGD the rows of a table that moves by nothing else make their step at once and leave `grads`.
        """
        filled = []
        for name in [name for name in grads if name in TABLES]:
            index = at.get(TABLES[name])
            if index is None:
                continue
            if self.optimiser.kind == "sgd" and self.moved is not None and name not in self.moved:
                # Scaled first: index_add_ with a factor is five times as slow.
                self.view[name].index_add_(0, index, grads.pop(name).mul_(-self.optimiser.rate(name)))
                continue
            # Zero again after every step, which touches few rows.
            if name not in self.buffers:
                self.buffers[name] = zeros_like(self.params[name])
            buffer = self.buffers[name][: len(self.view[name])]
            grads[name] = buffer.index_add_(0, index, grads[name])
            filled.append((buffer, index))
        return filled
