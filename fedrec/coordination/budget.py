"""Loss budgets: f_i(theta_i) <= b_i with a multiplier mu_i >= 0, the price of the promise to that client."""

from dataclasses import dataclass

from torch import Tensor


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
