"""Discrete noise: exactly the distribution that the guarantee is of, a bounded norm, and what a round costs."""

import math
from collections.abc import Callable
from fractions import Fraction
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, kstest

from fedrec.errors import UserError
from fedrec.privacy import discrete
from fedrec.privacy.discrete import GRID, Distributed, below_exp, discrete_gaussian, discrete_laplace, settle, to_grid
from fedrec.privacy.noise import Source
from fedrec.sharing import ContractError

LEVEL = 1e-6


def source(*scope: str | int) -> Source:
    return Source.replayable(0, "discrete", *scope)


def fit(found: np.ndarray, weight: Callable[[int], float], reach: int) -> float:
    """Return the p-value (chi-square) of integers with P(y) in proportion to weight(y), tails beyond `reach` pooled."""
    support = np.arange(-50 * reach, 50 * reach + 1)
    p = np.array([weight(int(y)) for y in support])
    p /= p.sum()
    inner = np.abs(support) <= reach
    expected = np.array([*p[inner], p[support < -reach].sum(), p[support > reach].sum()]) * len(found)
    counts = [int((found == y).sum()) for y in support[inner]]
    counts += [int((found < -reach).sum()), int((found > reach).sum())]
    assert expected.min() > 5
    return float(chi2.sf(((np.array(counts) - expected) ** 2 / expected).sum(), len(expected) - 1))


@pytest.mark.parametrize(("variance", "reach"), [(1, 3), (2, 4), (7, 8), (30, 16)])
def test_the_gaussian_is_the_discrete_one(variance: int, reach: int) -> None:
    found = discrete_gaussian(variance, 200_000, source("gaussian", variance))
    assert fit(found, lambda y: math.exp(-(y**2) / (2 * variance)), reach) > LEVEL


def test_a_rounded_normal_number_is_another_distribution() -> None:
    """What the test above is able to tell apart: rounding a normal number of variance 1 adds about 1/12 to it."""
    found = np.rint(source("rounded").normal(200_000).numpy()).astype(np.int64)
    assert fit(found, lambda y: math.exp(-(y**2) / 2), 3) < LEVEL


@pytest.mark.parametrize("t", [1, 2, 5])
def test_the_laplace_is_the_discrete_one(t: int) -> None:
    found = discrete_laplace(t, 200_000, source("laplace", t))
    assert fit(found, lambda y: math.exp(-abs(y) / t), 3 * t) > LEVEL


@pytest.mark.parametrize("variance", [2**20, 2**40, discrete.WIDEST])
def test_a_wide_one_is_normal_but_for_its_grid(variance: int) -> None:
    found = discrete_gaussian(variance, 100_000, source("wide", variance))
    assert kstest(found / math.sqrt(variance), "norm").pvalue > LEVEL


def test_a_coin_has_the_probability_of_the_exponential() -> None:
    """Of 400,000 coins each the heads differ from exp(-gamma) by less than 5 standard deviations."""
    n = 400_000
    for gamma in (0.0, 0.01, 0.5, 1.0, 3.0):
        heads = int(below_exp(np.full(n, gamma), source("coin", str(gamma)), lambda i: Fraction(0)).sum())
        p = math.exp(-gamma)
        assert abs(heads - n * p) <= 5 * math.sqrt(n * p * (1 - p))


def test_the_exact_decision_is_that_of_the_float_where_that_is_clear() -> None:
    """With a margin of 1 every coin is settled by rationals: the same coins from the same bits."""
    gamma = np.array([0.0, 0.1, 0.5, 0.9, 2.0, 30.0] * 50)
    exact = [Fraction(g) for g in gamma]
    quick = below_exp(gamma, source("margin"), lambda i: exact[i])
    slow = below_exp(gamma, source("margin"), lambda i: exact[i], margin=1.0)
    assert np.array_equal(quick, slow) and 0 < quick.sum() < len(quick)


def test_a_word_on_the_edge_is_settled_by_more_bits() -> None:
    """2^64 exp(-1/2) = 11188515852577165299 + 0.8377: its whole part as first word decides nothing by itself."""
    word, rest, n = 11188515852577165299, 0.8377, 400
    assert word / 2**64 == math.exp(-0.5)
    below = sum(settle(word, Fraction(1, 2), source("edge", i)) for i in range(n))
    assert abs(below - n * rest) < 5 * math.sqrt(n * rest * (1 - rest))
    assert settle(word - 1, Fraction(1, 2), source("below")) and not settle(word + 1, Fraction(1, 2), source("above"))


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 10**6), st.integers(0, 2**32))
def test_uniform_integers_stay_in_their_range(t: int, seed: int) -> None:
    found = discrete.uniform(t, 200, Source.replayable(seed, "uniform"))
    assert found.min() >= 0 and found.max() < t and len(found) == 200


def test_uniform_integers_are_uniform() -> None:
    counts = np.bincount(discrete.uniform(7, 70_000, source("uniform")), minlength=7)
    assert float(chi2.sf(((counts - 10_000) ** 2 / 10_000).sum(), 6)) > LEVEL


def test_noise_is_fast() -> None:
    begun = perf_counter()
    Distributed(1.0, 1.0, 3).words(np.zeros(27_000), source("fast"))
    assert perf_counter() - begun < 0.5  # about 0.01 s


@pytest.mark.parametrize("norm", [0.0, 1e-9, 0.5, 1.0, 100.0, 1e30])
def test_what_is_summed_is_never_longer_than_the_bound(norm: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discrete, "discrete_gaussian", lambda variance, size, source: np.zeros(size, np.int64))
    for size in (1, 10, 27_000):
        one = Distributed(0.7, 1.0, 3)
        change = source("norm", size).normal(size).numpy()
        change *= norm / np.linalg.norm(change)
        found = one.words(change, source("words", size)).view(np.int64)
        assert sum(n * n for n in found.tolist()) <= one.square(size)
        expected = change * min(1.0, 0.7 / norm) if norm else change
        assert np.abs(one.values(found.view(np.uint64)) - expected).max() <= 0.7 / GRID * (1 + 1e-6)


def test_rounding_has_the_mean_of_what_it_rounds() -> None:
    x = np.tile([0.25, -0.5, 3.9, 7.0], 50_000)
    found = to_grid(x, 10**9, source("rounding")).reshape(-1, 4).mean(0)
    assert np.abs(found - x[:4]).max() < 5 * 0.5 / math.sqrt(50_000)


def test_rounding_is_drawn_again_until_it_is_short() -> None:
    found = to_grid(np.full(100, 0.5), 40, source("again"))  # of mean 50, so that most are too long
    assert (found**2).sum() <= 40


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ContractError, match="finite"):
        Distributed(1.0, 1.0, 3).words(np.array([value]), source("nan"))


def test_rounding_adds_a_millionth_to_the_norm() -> None:
    assert 1 < Distributed(1.0, 1.0, 3).square(27_000) / GRID**2 < 1 + 2e-6


@pytest.mark.parametrize("clients", [1, 3, 50])
@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_a_round_costs_what_the_gaussian_of_its_sigma_does(sigma: float, clients: int) -> None:
    """rho = 1 / (2 sigma^2), since sigma is relative to the norm after rounding, and v is rounded up; tau is 0."""
    rho = Distributed(3.0, sigma, clients).rho(27_000)
    assert rho * (1 - 1e-12) <= 1 / (2 * sigma**2) <= rho * (1 + 1e-6)
    assert Distributed(3.0, sigma, clients).event(27_000).kind == "concentrated"


def test_the_cost_of_coarse_noise_is_that_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a grid of one step to the norm tau counts: 100 clients, v = 1, 5 entries, as in arXiv 2102.06387.

    square = min((1 + sqrt 5)^2, 1 + 5/4 + 1 (1 + sqrt(5)/2)) = 4.368, rounded down 4;
    tau = 10 sum_{k<100} exp(-2 pi^2 k/(k+1)) by itself.
    """
    monkeypatch.setattr(discrete, "GRID", 1)
    monkeypatch.setattr(discrete, "LEAST", 0)
    one = Distributed(1.0, math.sqrt(100 / 4), 100)
    assert one.square(5) == 4 and one.variance(5) == 1
    tau = 10 * sum(math.exp(-2 * math.pi**2 * k / (k + 1)) for k in range(1, 100))
    ratio = math.sqrt(4 / 100)
    assert one.rho(5) == pytest.approx(min(ratio**2 / 2 + 5 * tau, (ratio + tau * math.sqrt(5)) ** 2 / 2), rel=1e-12)
    assert one.rho(5) > ratio**2 / 2


def test_the_noise_of_the_threshold_is_what_was_promised_and_more_clients_add_to_it() -> None:
    """3 clients give sigma C, 5 give sqrt(5/3) of it; a 27,000-entry sample has a relative error of 0.4%."""
    one = Distributed(0.5, 2.0, 3)
    noise = [one.values(one.words(np.zeros(27_000), source("client", i))) for i in range(5)]
    for n in (3, 5):
        assert np.std(sum(noise[:n])) == pytest.approx(2.0 * 0.5 * math.sqrt(n / 3), rel=0.03)


@pytest.mark.parametrize("sigma", [0.0, 1e-6, 1000.0])
def test_noise_that_the_integers_do_not_fit_is_refused(sigma: float) -> None:
    with pytest.raises(UserError, match=r"privacy.noise: must be from"):
        Distributed(1.0, sigma, 3)


def test_the_log_odds_of_neighbours_stay_below_the_bound_of_the_discrete_gaussian() -> None:
    """One entry, one client at C and none: P(y | x) / P(y | 0) = exp((2 x y - x^2) / (2 v)), measured on a small grid.

    The Renyi divergence of order 2 is x^2 / v (arXiv 2004.00010, Theorem 4); with x = 3, v = 9 it is 1.
    """
    y = discrete_gaussian(9, 400_000, source("odds"))
    x = 3
    ratio = np.exp((2.0 * x * (y + x) - x**2) / (2 * 9))
    divergence = math.log(ratio.mean())
    assert divergence == pytest.approx(x**2 / 9, abs=0.05)
