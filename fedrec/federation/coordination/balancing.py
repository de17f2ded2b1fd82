"""A penalty that adapts to the residuals, but finitely often: then the rounds converge as they do with a fixed one."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import torch
from torch import Tensor

SETTLED = 1e-9  # relative residuals below it are rounding, of which a ratio says nothing
CHANGES, TURNS = 64, 6  # how often rho changes at most, and how often against its last change


@dataclass(frozen=True)
class Balancing:
    """What rho has been adapted by, and what the rounds of the present window add up to.

    A window ends with as many answers as there are clients, times 2^turns: a round in which few clients take part says
    little, and less the nearer rho is. `primal` is the sum of |x_i - z_i|^2 over its answers and `motion` that of
    |Z+ - Z|^2 over its rounds; `direction` is that of the last change, 1 or -1.
    """

    answers: int = 0
    primal: float = 0.0
    motion: float = 0.0
    changes: int = 0
    turns: int = 0
    direction: int = 0

    def hear(self, squared_gaps: Sequence[float], moved: float) -> "Balancing":
        """Return it after a round of these |x_i - z_i|^2 and this |Z+ - Z|."""
        return replace(
            self,
            answers=self.answers + len(squared_gaps),
            primal=self.primal + math.fsum(squared_gaps),
            motion=self.motion + moved**2,
        )

    def due(self, clients: int) -> bool:
        """Return whether the window ends here, and rho may still change."""
        return self.answers >= clients << self.turns and self.changes < CHANGES and self.turns < TURNS

    def judge(self, tension: float, size: float) -> tuple[float, "Balancing"]:
        """Return the factor of rho, and what the next window begins with.

        rho doubles when the relative primal residual |X - Z| / |Z| exceeds ten times the relative dual residual
        |Z+ - Z| / |V - Z|, and halves in the reverse case: V - Z (of length `tension`; Z has `size`) becomes U, and
        unlike the plain residuals of Boyd et al. (2011, section 3.4.1) these ratios do not depend on the scale of the
        losses (arXiv 1704.06209).
        """
        primal, moved = math.sqrt(self.primal), math.sqrt(self.motion)
        gap, motion = primal * tension, moved * size
        to = (gap > 10 * motion) - (motion > 10 * gap)
        if primal <= SETTLED * size and moved <= SETTLED * tension:
            to = 0
        turned = to * self.direction < 0
        return 2.0**to, Balancing(0, 0.0, 0.0, self.changes + abs(to), self.turns + turned, to or self.direction)

    def state(self) -> Tensor:
        """Return it as numbers [6]."""
        return torch.tensor(astuple(self), dtype=torch.float64)

    @staticmethod
    def restore(state: Tensor) -> "Balancing":
        """Return what has a `state`."""
        answers, primal, motion, changes, turns, direction = state.tolist()
        return Balancing(int(answers), primal, motion, int(changes), int(turns), int(direction))
