"""Noise for a secure sum: every client adds integers of its own, and the sum of any t of them protects each client.

The distributed discrete Gaussian (arXiv 2102.06387): a client clips its change to the norm C, scales it to integers,
and adds N_Z(0, v) to every coordinate. It is drawn exactly, as in arXiv 2004.00010, from uniform bits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedrec.errors import UserError
from fedrec.privacy.accounting import Event
from fedrec.privacy.masks import Words
from fedrec.privacy.noise import Source
from fedrec.sharing import ContractError

Integers = NDArray[np.int64]
GRID = 2**20  # the clip norm in steps of the integers: rounding then adds a millionth to it
LEAST = 64  # the least variance of a client: the sum of discrete Gaussians then is one but for 10^-200
WIDEST = 2**52  # the largest variance at which every product below fits 64 bits
MARGIN = 2.0**-40  # a float64 decides a comparison that is clearer than this; its own error is below 2^-49
BETA = math.exp(-0.5)  # how often a rounding may be too long and is drawn again, as in the paper


@dataclass(frozen=True)
class Distributed:
    """Noise of `clients` clients that together give the noise multiplier `sigma` on the sum of their changes.

    `sigma` is relative to the largest norm of a client's change after rounding, so that the sum of [P] integers has
    rho = 1 / (2 sigma^2) of zCDP. `clients` is how many must be in the sum. Whoever comes to it adds noise on top,
    which is post-processing of the sum of the others. A client that colludes with the server takes its own noise away:
    with c of them the variance is (clients - c) / clients of what it says. Raises UserError for a sigma that the
    integers do not fit.
    """

    clip: float
    sigma: float
    clients: int

    def __post_init__(self) -> None:
        self.variance(1)

    def variance(self, size: int) -> int:
        """Return the variance v of a client's noise, in steps: sigma^2 square / t, rounded up."""
        v = math.ceil(Fraction(self.sigma) ** 2 * self.square(size) / self.clients)
        if not LEAST <= v <= WIDEST:
            low, high = (GRID**-1 * math.sqrt(edge * self.clients) for edge in (LEAST, WIDEST))
            raise UserError(f"privacy.noise: must be from {low:.1g} to {high:.3g} in this sum, found {self.sigma:g}")
        return v

    def square(self, size: int) -> int:
        """Return the largest squared norm, in steps, of a client's rounded change [P].

        min((C + sqrt(P))^2, C^2 + P/4 + sqrt(2 ln(1/beta)) (C + sqrt(P)/2)), arXiv 2102.06387, Theorem 1.
        """
        root = math.sqrt(size)
        sure = (GRID + root) ** 2
        return math.floor(min(sure, GRID**2 + size / 4 + math.sqrt(-2 * math.log(BETA)) * (GRID + root / 2)))

    def rho(self, size: int) -> float:
        """Return the rho of zCDP of one round, for a vector [P] and a client whose data are replaced by none.

        min(D^2/2 + tau P, (D + tau sqrt(P))^2 / 2) with D^2 = square / (t v) and
        tau = 10 sum_{k<t} exp(-2 pi^2 v k/(k+1)): the sum of discrete Gaussians is not quite one (arXiv 2102.06387,
        Proposition 14, whose first term holds for every order from 1). That clients are drawn for a round does not
        amplify it: the server knows whom it asked.
        """
        v = self.variance(size)
        ratio = math.sqrt(self.square(size) / (self.clients * v))
        tau = 10 * math.fsum(math.exp(-2 * math.pi**2 * v * k / (k + 1)) for k in range(1, self.clients))
        return min(ratio**2 / 2 + tau * size, (ratio + tau * math.sqrt(size)) ** 2 / 2)

    def event(self, size: int) -> Event:
        """Return what one round costs, for the accountant."""
        return Event.concentrated(self.rho(size))

    def words(self, change: NDArray[np.float64], source: Source) -> Words:
        """Return a change [P] clipped, rounded and with noise, as words; raises ContractError if it is not finite."""
        if not np.isfinite(change).all():
            raise ContractError("update: every value must be finite, found one that is not")
        size = math.hypot(*change.tolist()) if len(change) else 0.0
        scaled = change * (GRID / self.clip * min(1.0, self.clip / size if size else 1.0))
        count = len(change)
        noisy = to_grid(scaled, self.square(count), source) + discrete_gaussian(self.variance(count), count, source)
        return np.asarray(noisy.view(np.uint64))

    def values(self, words: Words) -> NDArray[np.float64]:
        """Return the sum [P] that words stand for."""
        return np.asarray(words.view(np.int64).astype(np.float64) * (self.clip / GRID))


def to_grid(x: NDArray[np.float64], square: int, source: Source) -> Integers:
    """Return integers of mean x (but for what the condition takes), drawn until their squared norm is at most `square`.

    Which of the two neighbours it is only matters to the accuracy; the norm, to the guarantee, and is exact.
    """
    low = np.floor(x)
    while True:
        whole = (low + (source.uniform(len(x)) <= x - low)).astype(np.int64)
        if sum(n * n for n in whole.tolist()) <= square:
            return whole


def discrete_gaussian(variance: int, size: int, source: Source) -> Integers:
    """Return integers [n] with P(y) in proportion to exp(-y^2 / (2 variance)), exactly (arXiv 2004.00010, Algorithm 3).

    Discrete Laplace numbers of scale t are kept with probability exp(-(|y| - v/t)^2 / (2 v)).
    """
    t = math.isqrt(variance) + 1

    def attempt(count: int) -> Integers:
        y = discrete_laplace(t, count, source)
        gap = np.abs(y) * t - variance
        keep = below_exp(
            gap.astype(np.float64) ** 2 / (2.0 * variance * t * t),
            source,
            lambda i: Fraction(int(gap[i]) ** 2, 2 * variance * t * t),
        )
        return np.asarray(y[keep])

    return collect(attempt, size, 2.0)


def discrete_laplace(t: int, size: int, source: Source) -> Integers:
    """Return integers [n] with P(y) in proportion to exp(-|y| / t), exactly (arXiv 2004.00010, Algorithm 2)."""

    def attempt(count: int) -> Integers:
        u = uniform(t, count, source)
        u = u[below_exp(u / t, source, lambda i: Fraction(int(u[i]), t))]
        v = np.zeros(len(u), dtype=np.int64)
        going = np.arange(len(u))
        while len(going):
            going = going[below_exp(np.ones(len(going)), source, lambda i: Fraction(1))]
            v[going] += 1
        y = u + t * v
        minus = np.frombuffer(source.bytes(len(y)), np.uint8) < 128
        return np.asarray(np.where(minus, -y, y)[~minus | (y > 0)])

    return collect(attempt, size, 2.0)


def collect(attempt: Callable[[int], Integers], size: int, factor: float) -> Integers:
    """Return the first `size` numbers that attempts keep."""
    kept = np.zeros(0, dtype=np.int64)
    while len(kept) < size:
        kept = np.concatenate([kept, attempt(int((size - len(kept)) * factor) + 16)])
    return kept[:size]


def uniform(t: int, size: int, source: Source) -> Integers:
    """Return integers [n] from 0 to t - 1, each as likely: words of the last, incomplete cycle are drawn again."""
    limit = np.uint64(2**64 // t * t - 1)

    def attempt(count: int) -> Integers:
        words = np.frombuffer(source.bytes(8 * count), "<u8")
        return np.asarray((words[words <= limit] % np.uint64(t)).astype(np.int64))

    return collect(attempt, size, 1.0)


def below_exp(
    gamma: NDArray[np.float64], source: Source, exact: Callable[[int], Fraction], margin: float = MARGIN
) -> NDArray[np.bool_]:
    """Return [n] whether a uniform real is below exp(-gamma): a coin of exactly that probability.

    Of the real 64 bits are drawn. Where they lie within `margin` of the float64 exp(-gamma), more bits are, and
    compared with the exponential of the `exact` gamma to as many digits.
    """
    words = np.frombuffer(source.bytes(8 * len(gamma)), "<u8")
    gap = np.exp(-gamma) - words.astype(np.float64) * 2.0**-64
    below = gap > 0
    for i in np.flatnonzero(np.abs(gap) <= margin):
        below[i] = settle(int(words[i]), exact(int(i)), source)
    return np.asarray(below)


def settle(word: int, gamma: Fraction, source: Source) -> bool:
    """Return whether the real that begins with a word of 64 bits is below exp(-gamma)."""
    bits, digits = 64, 60
    while True:
        with localcontext(prec=digits):
            power = (-Decimal(gamma.numerator) / Decimal(gamma.denominator)).exp()
            # gamma itself is rounded: an error of 10^-digits of it moves the exponential by less than that much.
            slack = Decimal(10) ** (5 - digits)
            low, high = Fraction(power - slack), Fraction(power + slack)
        if Fraction(word + 1, 1 << bits) <= low:
            return True
        if Fraction(word, 1 << bits) >= high:
            return False
        word, bits, digits = (word << 64) | int.from_bytes(source.bytes(8), "big"), bits + 64, digits + 20
