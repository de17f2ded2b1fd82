"""Coordination problems with known answers: random quadratics of four clients, and what a case claims of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec.federation.coordination.problem import Exchange
from fedrec.params import Params
from fedrec.rng import generator

NAMES = ("films", "shop", "news", "books")
WIDTH, HALF, CONDITION = 6, 3, 10.0
Array = NDArray[np.float64]
Multipliers = dict[str, Array]
Named = Mapping[str, Params]


@dataclass(frozen=True)
class Quadratic:
    """f(t) = 1/2 (t - c)' H (t - c) + least."""

    hessian: Array
    centre: Array
    least: float = 0.0

    def __call__(self, theta: Tensor) -> Tensor:
        """Return f."""
        gap = theta - torch.from_numpy(self.centre)
        return gap @ torch.from_numpy(self.hessian) @ gap / 2 + self.least


@dataclass(frozen=True)
class Problem:
    """Losses and weights, and the numbers that the ties of a case are made with."""

    losses: Sequence[Quadratic]
    weights: Sequence[float]
    numbers: Array  # [4], from 0 to 1
    free: Sequence[Array] = ()  # the minimiser of every loss alone

    @property
    def rho(self) -> float:
        """sqrt(mu L) of the Hessians' extreme eigenvalues."""
        values = np.concatenate([np.linalg.eigvalsh(f.hessian) for f in self.losses])
        return math.sqrt(values.min() * values.max())


Ties = list[str]
Claims = Callable[[Problem, Sequence[Any], Sequence[Any]], tuple[dict[str, Any], list[Any], Any]]
Central = Callable[[Problem, Tensor], dict[str, tuple[Tensor, bool]]]  # theta [n, d] -> by tie: g, whether at most 0


@dataclass(frozen=True)
class Case:
    """A form of tie: its texts, and what it claims, to a convex solver or to a general one.

    `claims` returns constraints by the tie whose multiplier they have, others, and what is added to the objective.
    """

    name: str
    ties: Callable[[Problem], Ties]
    claims: Claims | None = None
    central: Central | None = None
    blocks: bool = False  # whether theta is exchanged as two blocks, a and b
    objective: str = ""  # minimax: what is minimised in the place of the sum
    between: bool = False  # whether it ties losses to each other
    stiff: float = 1.0  # times rho: between losses it must outdo the curvature that weights below 0 take away

    @property
    def exchange(self) -> list[Exchange] | None:
        """What the clients exchange."""
        return [{"a": slice(0, HALF), "b": slice(HALF, WIDTH)}] * len(NAMES) if self.blocks else None


def draw(seed: int) -> Problem:
    """Return a random problem of four clients."""
    g = generator(seed, "constraints")
    losses = []
    for _ in NAMES:
        q, _r = np.linalg.qr(g.normal(size=(WIDTH, WIDTH)))
        hessian = q * np.geomspace(1, CONDITION, WIDTH) @ q.T
        losses.append(Quadratic((hessian + hessian.T) / 2, g.normal(size=WIDTH)))
    return Problem(losses, g.uniform(0.5, 2, len(NAMES)).tolist(), g.uniform(size=4), [f.centre for f in losses])
