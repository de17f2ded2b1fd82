"""Lower bounds of epsilon: published values, validity for mechanisms whose epsilon is known, power, monotonicity."""

import math

import numpy as np
import pytest
from dp_accounting import get_epsilon_gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import linprog
from scipy.stats import binom, norm

from fedrec.data.types import Bools
from fedrec.errors import UserError
from fedrec.privacy.bounds import (
    Bound,
    Estimate,
    Method,
    Reals,
    _too_good,
    alarm,
    best_guesses,
    f_dp,
    gaussian_epsilon,
    gaussian_mu,
    halved,
    independent,
    normal_delta,
    one_shot,
    ranked,
    steinke,
)

METHODS = (steinke, f_dp, independent)


def played(mu: float, m: int, seed: int) -> tuple[Reals, Bools]:
    """Return scores and coins of the exact mechanism: N(mu, 1) if in, N(0, 1) if out."""
    rng = np.random.default_rng(seed)
    coins = rng.random(m) < 0.5
    return coins * mu + rng.standard_normal(m), coins


@pytest.mark.parametrize(
    ("m", "r", "v", "delta", "published"),
    [  # arXiv 2305.08846, Appendix D (pages 45 and 46) and figure 11 (page 28), three digits printed
        (100, 100, 75, 0.0, 0.702),
        (100, 100, 75, 1e-4, 0.699),
        (1000, 100, 75, 1e-4, 0.673),
        (100_000, 1510, 1439, 1e-5, 2.675),
    ],
)
def test_the_bound_of_one_run_is_the_published_one(m: int, r: int, v: int, delta: float, published: float) -> None:
    assert steinke(m, r, v, delta).epsilon == pytest.approx(published, abs=1e-3)


def test_when_every_guess_is_right_the_bounds_have_closed_forms() -> None:
    # Pr[all r right] = q^r = 5%: epsilon = logit(0.05^(1/r)), and mu = 2 Phi^-1(0.05^(1/r)).
    q = 0.05 ** (1 / 200)
    assert steinke(200, 200, 200, 0.0).epsilon == pytest.approx(math.log(q / (1 - q)), abs=1e-9)
    expected = get_epsilon_gaussian(1 / (2 * norm.ppf(q)), 1e-5)
    assert independent(200, 200, 200, 1e-5).epsilon == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("mu", [0.05, 0.2, 1.0, 4.0, 10.0])
def test_the_epsilon_of_a_gaussian_is_that_of_a_reference(mu: float) -> None:
    epsilon = gaussian_epsilon(mu, 1e-5)
    assert epsilon == pytest.approx(get_epsilon_gaussian(1 / mu, 1e-5), abs=1e-6)
    if epsilon:
        assert gaussian_mu(epsilon, 1e-5) == pytest.approx(mu, rel=1e-6)


def most(mu: float, m: int, k: int, v: int) -> float:
    """Return the largest Pr[at least v of k guesses are right] under h_i >= g(r_{i+1}), by linear programming.

    g is convex, so that its tangents are below it: the program allows a little more than the constraints.
    """
    right, wrong = np.arange(k + 1) / m, (k - np.arange(k + 1)) / m
    rows = []
    for x in norm.cdf(np.linspace(-9, 5, 400)):
        value = norm.cdf(norm.ppf(x) - mu)
        slope = math.exp(mu * norm.ppf(x) - mu * mu / 2)
        for i in range(k):  # g(x) + slope (r_{i+1} - x) <= h_i
            above, below = np.arange(k + 1) > i, np.arange(k + 1) >= i
            rows.append([*(slope * right * above - wrong * below), slope * x - value])
    table = np.array(rows)
    found = linprog(-(np.arange(k + 1) >= v).astype(float), table[:, :-1], table[:, -1], [np.ones(k + 1)], [1.0])
    return float(-found.fun)


@pytest.mark.parametrize(("m", "k", "v"), [(8, 8, 7), (12, 6, 6), (10, 10, 10), (15, 12, 11)])
@pytest.mark.parametrize("mu", [0.4, 1.2])
def test_what_the_f_dp_bound_rejects_is_what_no_mechanism_can_do(mu: float, m: int, k: int, v: int) -> None:
    limit = most(mu, m, k, v)
    assert limit < 0.99
    assert _too_good(mu, m, k, v, limit + 1e-3)
    assert not _too_good(mu, m, k, v, limit - 1e-3)
    if k == m:  # independent guesses that are each right with Phi(mu / 2) are one of the mechanisms that it allows
        assert limit > binom.sf(v - 1, k, norm.cdf(mu / 2))


@given(
    st.sampled_from(METHODS),
    st.integers(1, 60),
    st.integers(0, 200),
    st.floats(0, 1),
    st.sampled_from([0.0, 1e-5, 1e-3]),
    st.sampled_from([0.9, 0.95, 0.99]),
)
@settings(max_examples=60, deadline=None)
def test_bounds_rise_with_right_guesses_and_fall_with_delta_and_confidence(
    method: Method, guesses: int, more: int, share: float, delta: float, confidence: float
) -> None:
    m, correct = guesses + more, int(share * (guesses - 1))
    base = method(m, guesses, correct, delta, confidence).epsilon
    assert method(m, guesses, correct + 1, delta, confidence).epsilon >= base
    assert method(m, guesses, correct, delta + 1e-3, confidence).epsilon <= base
    assert method(m, guesses, correct, delta, confidence + 0.005).epsilon <= base
    assert method(m + 10, guesses, correct, delta, confidence).epsilon <= base + (1e-9 if delta == 0 else 0)
    assert base >= 0


@pytest.mark.parametrize("epsilon", [1.0, 4.0])
def test_bounds_hold_at_their_confidence_for_the_exact_gaussian(epsilon: float) -> None:
    mu, m, runs = gaussian_mu(epsilon, 1e-5), 500, 400
    few = {method: best_guesses(method, m, epsilon, 1e-5) for method in (steinke, f_dp)}
    above = dict.fromkeys(METHODS, 0)
    for seed in range(runs):
        scores, coins = played(mu, m, seed)
        above[independent] += independent(m, *halved(scores, coins), 1e-5).epsilon > epsilon
        for method, guesses in few.items():
            above[method] += method(m, guesses, ranked(scores, coins, guesses), 1e-5).epsilon > epsilon
    limit = binom.ppf(1 - 1e-4, runs, 0.05)
    assert all(count <= limit for count in above.values()), above
    assert above[independent] >= binom.ppf(1e-4, runs, 0.02), "nearly exact: it errs about as often as it may"


@pytest.mark.parametrize(("epsilon", "aim"), [(4.0, 0.75), (8.0, 0.85)])
def test_five_thousand_canaries_come_close_and_stay_below(epsilon: float, aim: float) -> None:
    mu, m = gaussian_mu(epsilon, 1e-5), 5000
    shares = []
    for seed in range(100):
        shares.append(independent(m, *halved(*played(mu, m, seed)), 1e-5, 0.99).epsilon / epsilon)
    assert sum(share <= 1 for share in shares) >= 95
    assert np.mean(shares) > aim + 0.05
    assert sum(share >= aim for share in shares) >= 99


def test_more_assumptions_give_a_larger_bound() -> None:
    scores, coins = played(gaussian_mu(4.0, 1e-5), 5000, 1)
    one, two = (
        method(5000, k, ranked(scores, coins, k), 1e-5).epsilon
        for method in (steinke, f_dp)
        for k in [best_guesses(method, 5000, 4.0, 1e-5)]
    )
    assert 1.5 < one < two < independent(5000, *halved(scores, coins), 1e-5).epsilon


@pytest.mark.parametrize("method", [steinke, f_dp])
def test_the_number_of_guesses_is_better_than_few_or_all(method: Method) -> None:
    scores, coins = played(gaussian_mu(4.0, 1e-5), 5000, 2)
    best = best_guesses(method, 5000, 4.0, 1e-5)
    found = [method(5000, k, ranked(scores, coins, k), 1e-5, 0.95).epsilon for k in (best, 20, 5000)]
    assert found[0] == max(found)


def test_the_bound_of_one_run_is_exact_for_randomised_response() -> None:
    rng = np.random.default_rng(0)
    right = rng.binomial(400, 0.75, 400)  # e^eps / (1 + e^eps) at epsilon = log 3
    above = sum(steinke(400, 400, int(v), 0.0).epsilon > math.log(3) for v in right)
    assert binom.ppf(1e-4, 400, 0.03) <= above <= binom.ppf(1 - 1e-4, 400, 0.05)


def test_guesses_by_rank_and_by_a_pilot_are_counted_right() -> None:
    scores = np.array([5.0, 1.0, 4.0, 2.0, 3.0])
    coins = np.array([True, False, False, True, True])
    assert ranked(scores, coins, 2) == 2  # 5 is in, 1 is out
    assert ranked(scores, coins, 4) == 2  # 4 is said to be in, 2 to be out
    assert ranked(scores, coins, 0) == 0
    assert halved(scores, coins, 0.6) == (2, 0)  # the median of 5, 1, 4 is 4: both are said to be out, and are in
    assert halved(scores[::-1], coins[::-1], 0.2) == (4, 2)  # above 3: 4 and 5 are said to be in


def test_a_guess_by_a_pilot_depends_on_no_other_canary_that_is_guessed() -> None:
    scores, coins = played(1.0, 100, 3)
    guesses, correct = halved(scores, coins)
    other = scores.copy()
    other[50] += 1e9 if not coins[50] else -1e9
    assert halved(other, coins) in {(guesses, correct), (guesses, correct - 1)}


@pytest.mark.parametrize(("mean", "std"), [(1.0, 1.3), (1.0, 0.6), (0.0, 1.5), (0.0, 0.5), (-2.0, 0.9), (1.0, 1.0)])
@pytest.mark.parametrize("epsilon", [0.0, 0.7, 3.0])
def test_the_distance_of_two_normal_distributions_is_its_integral(mean: float, std: float, epsilon: float) -> None:
    def excess(x: float) -> float:
        return max(float(norm.pdf(x, mean, std) - math.exp(epsilon) * norm.pdf(x)), 0.0)

    expected = quad(excess, -15, 15, limit=500, points=np.linspace(-6, 6, 25))[0]
    assert normal_delta(mean, std, epsilon) == pytest.approx(expected, abs=1e-7)


def test_the_one_shot_estimate_is_near_the_truth_and_calls_itself_an_estimate() -> None:
    scores, coins = played(gaussian_mu(4.0, 1e-5), 200_000, 4)
    found = one_shot(scores / 1000, coins, 1e-5)
    assert found.epsilon == pytest.approx(4.0, rel=0.05)
    assert isinstance(found, Estimate) and not isinstance(found, Bound)
    assert (found.kind, independent(10, 10, 5, 0.0).kind) == ("estimate", "bound")
    assert not hasattr(found, "confidence")


def test_only_a_bound_above_the_accounted_epsilon_is_an_alarm_and_it_names_both() -> None:
    bound = Bound("Gaussian", 4.25, 1e-5, 0.99, 100, 90, 80)
    assert alarm(bound, 4.25) is None
    text = alarm(bound, 4.0)
    assert text is not None and "4.25" in text and "4.00 was accounted" in text


@pytest.mark.parametrize(("numbers", "text"), [((10, 11, 5), "5, 11, 10"), ((10, 5, 6), "6, 5, 10"), ((9, 0, 0), "0")])
@pytest.mark.parametrize("method", METHODS)
def test_numbers_that_no_audit_has_are_refused(method: Method, numbers: tuple[int, int, int], text: str) -> None:
    with pytest.raises(UserError, match=text):
        method(*numbers, 1e-5, 0.95)
    with pytest.raises(UserError, match=r"found 1e-05, 1"):
        method(10, 5, 5, 1e-5, 1.0)
