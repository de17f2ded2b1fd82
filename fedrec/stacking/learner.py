"""Stacked parameters while they train: the optimiser's state, and buffers for the gradients of tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedrec.optimisers import Optimiser, State
from fedrec.parameters import Params
from fedrec.sharing import TABLES
from fedrec.stacking.gradients import Step, scatter


@dataclass
class Learner:
    """Stacked parameters of which `names` train in place, all clients or the first of them at a step."""

    params: Params
    names: Sequence[str]
    optimiser: Optimiser
    moved: Collection[str]  # what moves by more than its gradient
    view: Params = field(default_factory=dict)

    def __post_init__(self) -> None:
        tables = [name for name in self.names if name in TABLES]
        self.whole: State = self.optimiser.start({name: self.params[name] for name in self.names})
        # Zero again after every step, which touches few rows; none where these may make their step of SGD at once.
        direct = {name for name in tables if self.optimiser.kind == "sgd" and name not in self.moved}
        self.empty = {name: None if name in direct else torch.zeros_like(self.params[name]) for name in tables}

    def narrow(self, ends: Mapping[str, int]) -> None:
        """Go on with the first rows of every parameter."""
        self.view = {name: value[: ends[name]] for name, value in self.params.items()}
        self.state = {name: [part[: ends[name]] for part in parts] for name, parts in self.whole.items()}
        self.into = {name: None if value is None else value[: ends[name]] for name, value in self.empty.items()}

    def step(self, step: Step, grads: Params, more: Mapping[str, Tensor], t: int) -> None:
        """Make step `t` = 1, 2, ... along what `loss_and_gradients` returns plus `more`; changes `grads`."""
        filled = scatter(step, self.view, grads, self.into, self.optimiser.rate)
        for name, value in more.items():
            grads[name] = grads[name] + value
        self.optimiser.step(self.view, grads, self.state, t)
        for value, index in filled:
            value.index_fill_(0, index, 0.0)
