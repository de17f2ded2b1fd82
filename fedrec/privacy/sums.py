"""Noise for sums over users: what silos add up in a secure sum is one Gaussian mechanism for the unit user.

Every user adds a vector of norm at most 1 to a sum, in whole steps of a grid, and every silo adds a share of the noise.
Neighbours differ by one user's data replaced by none, so that what is summed moves by at most 1 (zero-out).
"""

import math
from dataclasses import dataclass
from fractions import Fraction

from fedrec.errors import UserError
from fedrec.experiment.privacy import FEWEST
from fedrec.models.contributions import GRID, Values
from fedrec.privacy.accounting import Event, calibrate
from fedrec.privacy.discrete import LEAST, WIDEST, Integers, discrete_gaussian
from fedrec.privacy.noise import Source


@dataclass(frozen=True)
class Release:
    """One noisy sum [size] that `silos` silos make together, with the noise multiplier `sigma`, for users.

    A silo knows its own share of the noise, and so must be kept out of the others' users by the shares of the others:
    each adds discrete Gaussian numbers of variance sigma^2 / (silos - 1), so that all must answer. The rest of this is
    why the event is that of a Gaussian.

    A sum of k discrete Gaussians of variance v steps^2 is one of variance k v, but for factors of its probabilities
    within exp(+-10 P exp(-pi^2 v)) (arXiv 2102.06387, Theorem 9). That of variance s + w is, but for such factors of
    exp(+-P exp(-2 pi^2 w)), a Gaussian of variance s of which every entry z is then replaced by a discrete Gaussian of
    variance w around z, which does not look at the data: with w = `discrete.LEAST`, which every share has on top,
    both are below 1e-200, and the accountant's own rounding is above 1e-9.

    `overlap` silos may hold the same person, for whom each adds norm 1: that costs as much as overlap^2 steps, of which
    each silo books `overlap`.
    """

    size: int
    sigma: float
    silos: int
    overlap: int = 1

    def __post_init__(self) -> None:
        if self.silos < FEWEST:
            raise UserError(f"privacy: a sum with noise needs {FEWEST} silos, found {self.silos}")
        if not self.variance <= WIDEST:
            most = math.sqrt(WIDEST * (self.silos - 1)) / GRID
            raise UserError(f"privacy.noise: must be at most {most:.4g} in this sum, found {self.sigma:.4g}")

    @property
    def variance(self) -> int:
        """The variance of a silo's noise, in steps^2."""
        return math.ceil(Fraction(self.sigma) ** 2 * GRID**2 / (self.silos - 1)) + LEAST

    @property
    def event(self) -> Event:
        """What it costs a user of a silo."""
        return Event(self.sigma, count=self.overlap)

    def share(self, total: Integers, source: Source) -> Integers:
        """Return what leaves a silo: the sum [size] of its users' contributions, and its share of the noise."""
        if total.shape != (self.size,):
            raise ValueError(f"total: must have {self.size} numbers, found {list(total.shape)}")
        return total + discrete_gaussian(self.variance, self.size, source)

    def values(self, total: Integers) -> Values:
        """Return the noisy sum [size] in units of the norm 1."""
        return total / GRID


def multiplier(epsilon: float, delta: float, overlap: int = 1) -> float:
    """Return the noise multiplier at which one release, or several whose shares sum to 1, have this epsilon."""
    return calibrate(epsilon, delta, 1.0, overlap**2)


def parted(sigma: float, share: float) -> float:
    """Return the noise multiplier of a release that takes a `share` of a budget: 1 / sigma^2 is what composes."""
    return sigma / math.sqrt(share)
