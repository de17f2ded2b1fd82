"""Loss budgets: f_i(theta_i) <= b_i with a multiplier mu_i >= 0, the price of the promise to that client."""

import math
from dataclasses import dataclass

from pydantic import BaseModel, Field
from torch import Tensor

from fedrec.components import number
from fedrec.errors import UserError


@dataclass(frozen=True)
class Budget:
    """The limit b_i and the dual step s.

    The client's objective gains the augmented term 1/(2s) (max(0, mu + s (f - b))^2 - mu^2), whose gradient is
    max(0, mu + s (f - b)) grad f; then mu+ = max(0, mu + s (f - b)) (arXiv 1610.02967).
    """

    limit: float
    step: float

    def multiplier(self, mu: float, f: float) -> float:
        """Return the multiplier after a loss f was measured."""
        return max(0.0, mu + self.step * (f - self.limit))

    def term(self, f: Tensor, mu: float) -> Tensor:
        """Return the augmented term at the loss f."""
        pushed = (mu + self.step * (f - self.limit)).clamp(min=0.0)
        return (pushed.square() - mu**2) / (2 * self.step)


class BudgetRule(BaseModel, frozen=True, extra="forbid"):
    """f_i(z_i) <= b_i for the loss on held-out validation rows, with a multiplier mu_i that the client keeps.

    With `margin`, b_i is the lowest loss that the client reaches alone, plus the margin: no negative transfer. With
    `limits`, b_i is given. The multiplier counts in units of the client's own weight: it minimises (1 + mu_i) f_i. Of
    clients that learn by sums the server has the multipliers, and minimises sum_i (1 + mu_i) f_i itself.
    """

    margin: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="no negative transfer: own local validation loss plus this"
    )
    limits: str = Field("", description="given budgets: '0.5', or for each client 'films=0.4;shop=0.5'")
    step: float = Field(10.0, gt=0, allow_inf_nan=False, description="dual step of the multipliers")
    confidence: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="by sums: standard errors that a held-out loss is judged with"
    )

    @property
    def active(self) -> bool:
        """Whether any client has a budget."""
        return self.margin is not None or bool(self.limits)

    def limit_of(self, client: str) -> float | None:
        """Return a client's given limit; None if it has none. Raises UserError for a text that is no number."""
        bound: float | None = None
        for part in self.limits.split(";") if self.limits else []:
            name, equals, value = part.rpartition("=")
            limit = number(value)
            if not math.isfinite(limit):
                raise UserError(f"budget.limits: must be finite numbers, found {part!r}")
            if name == client or (not equals and bound is None):
                bound = limit
        return bound

    def budgets(self, client: str, alone: list[float]) -> list[float]:
        """Return b_i for every round, the last one for good; infinite where nothing was promised.

        `alone` is the lowest loss that the client has reached by itself after each round. A price that followed the
        last one from the start would punish everybody for not having converged yet.
        """
        given = self.limit_of(client)
        if given is not None:
            return [given]
        return [math.inf] if self.margin is None else [loss + self.margin for loss in alone]

    def multiplier(self, mu: float, excess: float) -> float:
        """Return the multiplier after a loss was measured to be `excess` above its limit."""
        return Budget(0.0, self.step).multiplier(mu, excess)
