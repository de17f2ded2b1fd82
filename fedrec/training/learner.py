"""Stacked parameters while they train: the optimiser's state, and buffers for the gradients of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, zeros_like

from fedrec.keyed import TABLES
from fedrec.params import Params
from fedrec.training.gradients import At
from fedrec.training.optimisers import Optimiser, State
from fedrec.training.transforms import Context, Transform


@dataclass
class Learner:
    """Stacked parameters of which `names` train in place, all clients or the first of them at a step.

    What moves by more than its gradient is what the states of `transforms` name, or `all_move`.
    """

    params: Params
    names: Sequence[str]
    optimiser: Optimiser
    all_move: bool
    transforms: Sequence[Transform] = ()
    owner: Mapping[str, Tensor] = field(default_factory=dict)  # see `Context`

    def __post_init__(self) -> None:
        self.whole: State = self.optimiser.start({name: self.params[name] for name in self.names})
        self.kept = [transform.init(self.params) for transform in self.transforms]
        self.moved = {name for kept in self.kept for part in kept.values() for name in part}
        self.buffers: Params = {}
        self.narrow({name: len(value) for name, value in self.params.items()})

    def narrow(self, ends: Mapping[str, int]) -> None:
        """Go on with the first rows of every parameter."""
        self.view = {name: value[: ends[name]] for name, value in self.params.items()}
        self.state = {name: [part[: ends[name]] for part in parts] for name, parts in self.whole.items()}
        self.rows = {name: value[: ends[name]] for name, value in self.owner.items()}
        for place, kept in enumerate(self.kept):
            self.kept[place] = {key: {n: v[: ends[n]] for n, v in part.items()} for key, part in kept.items()}

    def step(self, at: At, grads: Params, t: int) -> None:
        """Make step `t` = 1, 2, ... along what the transforms make of what `gradients` returns; changes `grads`."""
        filled = self.scatter(at, grads)
        for place, transform in enumerate(self.transforms):
            grads, self.kept[place] = transform.update(grads, self.kept[place], self.view, Context(t, self.rows))
        self.optimiser.step(self.view, grads, self.state, t)
        for value, index in filled:
            if len(value) < 32 * len(index):  # to write all of it is faster
                value.zero_()
            else:
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
            if self.optimiser.kind == "sgd" and not self.all_move and name not in self.moved:
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
