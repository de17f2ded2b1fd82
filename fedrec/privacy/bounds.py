"""What an auditor's guesses say of epsilon: lower bounds at a confidence, and an estimate that is no bound.

Every one of m canaries was in or out by a fair coin; the auditor scores them and guesses coins, or abstains. The unit
and the neighbour relation are those of the coin: a canary's data, or none.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaincinv, expit, log_ndtr, ndtr, ndtri

from fedrec.data.types import Bools
from fedrec.errors import UserError

Reals = NDArray[np.float64]
LARGEST = 256.0  # an epsilon that no audit reaches


@dataclass(frozen=True)
class Bound:
    """With probability at least `confidence` over coins and mechanism, the true epsilon at `delta` is above `epsilon`.

    `assumes` says what the mechanism is taken for, beyond what its epsilon claims.
    """

    method: str
    epsilon: float
    delta: float
    confidence: float
    canaries: int
    guesses: int
    correct: int
    assumes: str = "nothing"
    kind: Literal["bound"] = "bound"


@dataclass(frozen=True)
class Estimate:
    """What epsilon at `delta` seems to be: no bound, and no confidence."""

    method: str
    epsilon: float
    delta: float
    canaries: int
    kind: Literal["estimate"] = "estimate"


def alarm(bound: Bound, accounted: float) -> str | None:
    """Return what is wrong if a lower bound is above the epsilon that was accounted; None if all is well."""
    if bound.epsilon <= accounted:
        return None
    return (
        f"epsilon is at least {bound.epsilon:.2f} ({bound.method}, confidence {bound.confidence:.1%}) "
        f"at delta {bound.delta:g}, but {accounted:.2f} was accounted"
    )


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return delta(epsilon) of N(0, 1) against N(mu, 1) (arXiv 1805.06530, Theorem 8; arXiv 1905.02383, eq. 6)."""
    if mu == 0:
        return 0.0
    low = math.exp(min(epsilon + float(log_ndtr(-epsilon / mu - mu / 2)), 0.0))
    return max(float(ndtr(mu / 2 - epsilon / mu)) - low, 0.0)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the least epsilon with gaussian_delta(mu, epsilon) <= delta: mu-GDP as (epsilon, delta)-DP."""
    return _largest(lambda epsilon: gaussian_delta(mu, epsilon) > delta)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Return the largest mu whose epsilon at delta is at most `epsilon`."""
    return _largest(lambda mu: gaussian_delta(mu, epsilon) <= delta)


def steinke(canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> Bound:
    """Return the bound of one training run for any mechanism (arXiv 2305.08846, Corollary 5.4).

    If it is (epsilon, delta)-DP, then with f(v) = Pr[Binomial(r, e^eps / (1 + e^eps)) >= v]

        Pr[W >= v] <= f(v) + 2 m delta max_i (f(v - i) - f(v)) / i.

    The number of guesses r must not depend on the coins; see `best_guesses`.
    """
    _check(canaries, guesses, correct, delta, confidence)
    epsilon = _largest(lambda e: steinke_p(canaries, guesses, correct, e, delta) < 1 - confidence)
    return Bound("one run", epsilon, delta, confidence, canaries, guesses, correct)


def steinke_p(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Return how probable so many right guesses are at most if a mechanism is (epsilon, delta)-DP; see `steinke`."""
    q, lower = float(expit(epsilon)), np.arange(correct, dtype=np.float64)
    tail = betainc(np.maximum(lower, 1), guesses - np.maximum(lower, 1) + 1, q)
    tail[:1] = 1.0  # f(0)
    beta = float(betainc(correct, guesses - correct + 1, q)) if correct else 1.0
    alpha = float(((tail - beta) / (correct - lower)).max()) if correct else 0.0
    return beta + 2 * canaries * delta * alpha


def f_dp(canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> Bound:
    """Return the bound of one training run for mechanisms with a Gaussian trade-off curve (arXiv 2410.22235).

    Let p_i = Pr[W = i], g(x) = Phi(Phi^-1(x) - mu), and for k guesses r_i = sum_{j >= i} j p_j / m and
    h_i = sum_{j >= i} (k - j) p_j / m. Flipping a random canary's coin turns "at least i + 1 right, this one too" into
    "at least i right, but not this one", so that mu-GDP implies h_i >= g(r_{i+1}) for every i, however guesses depend
    on each other. The tail Pr[W >= v] >= p, all of it at v, and then as little below as these constraints allow make
    every r_i and h_i least; if r_0 + h_0 is above k / m nevertheless, there is no such mechanism, and mu is rejected.
    The number of guesses must not depend on the coins.
    """
    _check(canaries, guesses, correct, delta, confidence)
    mu = _largest(lambda mu: _too_good(mu, canaries, guesses, correct, 1 - confidence))
    epsilon = gaussian_epsilon(mu, delta)
    return Bound("f-DP", epsilon, delta, confidence, canaries, guesses, correct, "a Gaussian trade-off curve")


def _too_good(mu: float, m: int, k: int, v: int, p: float) -> bool:
    """Return whether no mu-GDP mechanism has Pr[at least v of k guesses are right] >= p."""
    r, h = p * v / m, p * (k - v) / m
    for i in range(v - 1, -1, -1):
        least = float(ndtr(ndtri(min(r, 1.0)) - mu))
        if least <= h:
            return False  # nothing below need have any mass
        r, h = r + i / (k - i) * (least - h), least
        if r + h > k / m:
            return True
    return False


def independent(canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> Bound:
    """Return the bound of one training run for Gaussian mechanisms whose canaries do not meet.

    If a guess depends on its own canary's coin and its own noise only, then guesses are independent, and each is right
    with probability at most Phi(mu / 2): a test's type I error a and its power b have b <= Phi(Phi^-1(a) + mu)
    (arXiv 1905.02383, eq. 6), and a fair coin's guess is right with (b + 1 - a) / 2. The number of right ones is then
    dominated by Binomial(guesses, Phi(mu / 2)), and Clopper and Pearson's lower limit of that probability gives mu.

    Canaries do not meet in DP-SGD if no parameter that a canary's gradient depends on, or moves, is another one's; then
    T unsampled steps at noise multiplier sigma are sqrt(T) / sigma-GDP for each coin by itself.
    """
    _check(canaries, guesses, correct, delta, confidence)
    right = float(betaincinv(correct, guesses - correct + 1, 1 - confidence)) if correct else 0.0
    epsilon = gaussian_epsilon(max(2 * float(ndtri(right)), 0.0), delta)
    assumed = "a Gaussian trade-off curve, and canaries that do not meet"
    return Bound("Gaussian", epsilon, delta, confidence, canaries, guesses, correct, assumed)


def independent_p(guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Return how probable so many right guesses are at most, if mu has this epsilon at delta; see `independent`."""
    right = float(ndtr(gaussian_mu(epsilon, delta) / 2))
    return float(betainc(correct, guesses - correct + 1, right)) if correct else 1.0


Method = Callable[[int, int, int, float, float], Bound]


@lru_cache(maxsize=64)
def best_guesses(method: Method, canaries: int, epsilon: float, delta: float, confidence: float = 0.95) -> int:
    """Return how many guesses give the largest bound if the mechanism is Gaussian and its epsilon is as accounted.

    Whoever abstains unless |score - middle| > t is right with Phi(mu/2 - t) and wrong with Phi(-mu/2 - t). The number
    depends on what is known before the run alone, so that it needs no correction.
    """
    mu, bounds = gaussian_mu(epsilon, delta), []
    for t in np.linspace(0.0, mu / 2 + 2.5, 26):
        right, wrong = canaries * float(ndtr(mu / 2 - t)), canaries * float(ndtr(-mu / 2 - t))
        guesses = 2 * round((right + wrong) / 2)
        if guesses:
            correct = min(math.floor(guesses * right / (right + wrong)), guesses)
            bounds.append((method(canaries, guesses, correct, delta, confidence).epsilon, guesses))
    return max(bounds)[1]


def ranked(scores: Reals, coins: Bools, guesses: int) -> int:
    """Return how many are right of `guesses` guesses: the highest scores [m] are in, as many lowest ones out."""
    order, half = np.argsort(scores, kind="stable"), guesses // 2
    return int((~coins[order[:half]]).sum() + coins[order[len(order) - (guesses - half) :]].sum())


def halved(scores: Reals, coins: Bools, pilot: float = 0.05) -> tuple[int, int]:
    """Return (guesses, correct) of independent guesses: in above the median of the first canaries' scores, else out.

    The first `pilot` of the canaries are not guessed, so that a guess depends on no other canary that is.
    """
    first = max(round(pilot * len(scores)), 1)
    return len(scores) - first, int(((scores[first:] > np.median(scores[:first])) == coins[first:]).sum())


def one_shot(cosines: Reals, coins: Bools, delta: float) -> Estimate:
    """Return what epsilon seems to be from the cosines [m] of canaries' directions with the update (arXiv 2302.03098).

    Both those that were in and those that were out are taken for normal, and epsilon is what tells two such normal
    distributions apart at delta, either way: infinite without noise.
    """
    (m1, s1), (m0, s0) = ((float(x.mean()), float(x.std(ddof=1))) for x in (cosines[coins], cosines[~coins]))
    if min(s0, s1) == 0:
        return Estimate("one-shot", math.inf if (m0, s0) != (m1, s1) else 0.0, delta, len(coins))
    ways = ((m1 - m0) / s0, s1 / s0), ((m0 - m1) / s1, s0 / s1)
    epsilon = _largest(lambda e: max(normal_delta(mean, std, e) for mean, std in ways) > delta)
    return Estimate("one-shot", epsilon, delta, len(coins))


def normal_delta(mean: float, std: float, epsilon: float) -> float:
    """Return delta(epsilon) = sup_A P(A) - e^epsilon Q(A) of P = N(mean, std^2) against Q = N(0, 1).

    The log-likelihood ratio a x^2 + b x + c is above epsilon between the roots, or outside them.
    """
    a, b = 0.5 - 0.5 / std**2, mean / std**2
    c = -0.5 * (mean / std) ** 2 - math.log(std) - epsilon
    if abs(a) < 1e-9:
        return gaussian_delta(abs(mean), epsilon)
    root = b * b - 4 * a * c
    if root <= 0:
        return max(1 - math.exp(epsilon), 0.0) if a > 0 else 0.0
    low, high = sorted(((-b - math.sqrt(root)) / (2 * a), (-b + math.sqrt(root)) / (2 * a)))

    def inside(mu: float, s: float) -> float:
        return float(ndtr((high - mu) / s) - ndtr((low - mu) / s))

    def outside(mu: float, s: float) -> float:
        return float(ndtr((low - mu) / s) + ndtr((mu - high) / s))

    mass = inside if a < 0 else outside
    q = mass(0.0, 1.0)
    return max(mass(mean, std) - (math.exp(epsilon + math.log(q)) if q > 0 else 0.0), 0.0)


def _largest(holds: Callable[[float], bool], steps: int = 50) -> float:
    """Return the largest number in [0, LARGEST] for which something holds that holds below it; 0 if for none."""
    low, high = 0.0, LARGEST
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _check(canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> None:
    """Raise UserError unless the numbers can be those of an audit."""
    if not 0 <= correct <= guesses <= canaries or guesses < 1:
        raise UserError(f"audit: must have 0 <= correct <= guesses <= canaries, found {correct}, {guesses}, {canaries}")
    if not (0 <= delta < 1 and 0 < confidence < 1):
        raise UserError(f"audit: delta and confidence must be in [0, 1) and (0, 1), found {delta}, {confidence}")
