"""Privacy accounting: published values, closed forms, other accountants, and what more noise, steps or units do."""

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant, rdp_privacy_accountant
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedrec.errors import UserError
from fedrec.privacy.accounting import (
    GREATEST,
    LEAST,
    MOST,
    ORDERS,
    Event,
    _divergences,
    _loss,
    accountant,
    affordable,
    bound,
    calibrate,
    epsilon,
    merge,
)

few = settings(max_examples=5)
SAMPLED = Event(3.0, 0.1, 30)  # an epsilon of 0.75 at 1e-5


def delta_of(events: Iterable[Event], eps: float) -> float:
    """Return the least delta known at an epsilon for the composition of the events, from what `epsilon` goes by."""
    known = merge(events)
    by = accountant(known)
    if by == "none":
        return 1.0
    if not known or eps == math.inf:
        return 0.0
    if by == "RDP":
        return float(rdp_privacy_accountant.compute_delta(ORDERS, _divergences(known), eps)[0])
    return float(_loss(known).get_delta_for_epsilon(eps))


def phi(x: float) -> float:
    """Return the normal distribution function, precise in its lower tail."""
    return math.erfc(-x / math.sqrt(2)) / 2


def gaussian_delta(mu: float, eps: float) -> float:
    """Return delta of N(0, 1) against N(mu, 1): the analytic Gaussian mechanism (arXiv 1805.06530, theorem 8)."""
    return phi(mu / 2 - eps / mu) - math.exp(eps) * phi(-mu / 2 - eps / mu)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the epsilon of `gaussian_delta`, by bisection."""
    low, high = 0.0, 200.0
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(mu, middle) > delta else (low, middle)
    return high


def sampled_delta(sigma: float, q: float, eps: float) -> float:
    """Return the exact delta of one Poisson-sampled Gaussian step.

    P = (1 - q) N(0, sigma^2) + q N(1, sigma^2) and Q = N(0, sigma^2) have dP/dQ (x) = 1 - q + q exp((2x - 1) / (2
    sigma^2)), which rises in x: the integral of [P - e^eps Q]+ is over x > t where it is e^eps, and that of
    [Q - e^eps P]+ over x < s where it is e^-eps.
    """

    def at(ratio: float) -> float:
        return sigma**2 * math.log((ratio - 1 + q) / q) + 0.5 if ratio > 1 - q else -math.inf

    t, s = at(math.exp(eps)), at(math.exp(-eps))
    remove = (1 - q - math.exp(eps)) * phi(-t / sigma) + q * phi((1 - t) / sigma)
    add = phi(s / sigma) - math.exp(eps) * ((1 - q) * phi(s / sigma) + q * phi((s - 1) / sigma))
    return max(remove, add)


@pytest.mark.parametrize(
    ("events", "delta", "published", "digits"),
    [
        ([Event(1, 0.01, 10_000)], 1e-5, 6.1877, 4),
        ([Event(1.5, 0.04, 2250)], 1e-5, 6.7688, 4),
        ([Event(1, 0.05, 200)], 1e-5, 4.766, 3),
        ([Event(10, 1, 100)], 1e-5, 4.3772, 4),
        ([Event(5, 1, 20)], 1e-3, 2.7354, 4),
        ([Event(5, 1, 20), Event(5, 1, 20)], 1e-3, 4.2077, 4),  # one person in two silos
    ],
)
def test_published_values(events: list[Event], delta: float, published: float, digits: int) -> None:
    found = epsilon(events, delta)
    assert accountant(events) == "PLD (1e-4)"
    assert published - 0.5 * 10**-digits <= found <= published + 0.01


@few
@given(
    st.lists(st.tuples(st.floats(2, 50), st.integers(1, 30)), min_size=1, max_size=3),
    st.sampled_from([1e-3, 1e-5, 1e-8]),
)
def test_unsampled_steps_cost_what_the_analytic_gaussian_mechanism_does(
    steps: list[tuple[float, int]], delta: float
) -> None:
    # T steps of N(0, sigma^2) are one of mu = sqrt(sum of T / sigma^2).
    events = [Event(sigma, 1.0, count) for sigma, count in steps]
    mu = math.sqrt(sum(count / sigma**2 for sigma, count in steps))
    exact = gaussian_epsilon(mu, delta)
    assert exact - 1e-9 <= epsilon(events, delta) <= exact + 1e-3
    at = gaussian_delta(mu, 1.0)
    assert at - 1e-12 <= delta_of(events, 1.0) <= at * 1.001 + 1e-12


@few
@given(st.floats(0.6, 5), st.floats(0.001, 0.9), st.floats(0, 3))
def test_one_sampled_step_costs_what_its_integral_does(sigma: float, rate: float, eps: float) -> None:
    exact = sampled_delta(sigma, rate, eps)
    assert exact - 1e-12 <= delta_of([Event(sigma, rate)], eps) <= exact * 1.001 + 1e-12


def beside(order: float, delta: float) -> float:
    """Return what the epsilon of an order has beside the divergence (arXiv 2004.00010, proposition 12)."""
    return math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


@few
@given(st.floats(1, 4), st.floats(0.01, 0.5), st.integers(1, 100), st.sampled_from([1e-3, 1e-6]))
@example(3.75, 0.0625, 1, 1e-3)  # .0413 by our orders, .0393 by theirs; .0243 is lost
def test_the_loss_is_below_the_renyi_bound(sigma: float, rate: float, count: int, delta: float) -> None:
    step = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(sigma))
    theirs, best = RdpAccountant([*range(2, 256)]).compose(step, count).get_epsilon_and_optimal_order(delta)
    ours = bound([Event(sigma, rate, count)], delta)
    assert epsilon([Event(sigma, rate, count)], delta) <= min(theirs, ours) + 1e-4
    # Ours has fewer orders above 64, and is no worse than that of the next one below the best: a divergence rises in
    # its order, so that all it costs is what stands beside the divergence.
    below = max(order for order in ORDERS if order <= best)
    assert ours <= max(theirs + beside(below, delta) - beside(best, delta), 0.0) + 1e-9


def test_another_accountant_agrees() -> None:
    from opacus.accountants import PRVAccountant

    other = PRVAccountant()
    other.history = [(1.0, 0.05, 200), (2.0, 0.1, 50)]
    found = epsilon([Event(1.0, 0.05, 200), Event(2.0, 0.1, 50)], 1e-5)
    # Its upper bound may be too high by eps_error.
    assert other.get_epsilon(1e-5, eps_error=0.02) - 0.04 <= found <= other.get_epsilon(1e-5, eps_error=0.02)


@settings(max_examples=3)
@given(st.floats(1, 4), st.floats(0.01, 0.9), st.integers(1, 40), st.integers(1, 20))
def test_more_steps_less_noise_and_a_higher_rate_cost_more(sigma: float, rate: float, count: int, more: int) -> None:
    found = epsilon([Event(sigma, rate, count)], 1e-5)
    assert found <= epsilon([Event(sigma, rate, count + more)], 1e-5) + 1e-4
    assert found <= epsilon([Event(sigma * 0.9, rate, count)], 1e-5) + 1e-4
    assert found <= epsilon([Event(sigma, min(1.0, rate * 1.2), count)], 1e-5) + 1e-4
    assert found <= epsilon([Event(sigma, rate, count)], 1e-6) + 1e-4


EVENTS = st.builds(
    Event, st.sampled_from([1.5, 3.0, 8.0]), st.sampled_from([0.05, 0.3]), st.integers(1, 20)
) | st.builds(Event, st.floats(2, 9), st.just(1.0), st.integers(1, 20), st.sampled_from(["gaussian", "concentrated"]))


@few
@given(st.lists(EVENTS, min_size=1, max_size=4), st.randoms())
def test_neither_order_nor_counting_in_parts_matters(events: list[Event], random: Any) -> None:
    parts = [part for e in events for part in (Event(e.sigma, e.rate, 1, e.kind),) * e.count]
    random.shuffle(parts)
    assert merge(parts) == merge(events)
    assert epsilon(parts, 1e-5) == epsilon(events, 1e-5)


@few
@given(st.lists(EVENTS, min_size=1, max_size=3), st.sampled_from([1e-3, 1e-6]))
def test_delta_and_epsilon_are_inverse(events: list[Event], delta: float) -> None:
    found = epsilon(events, delta)
    assert delta_of(events, found) <= delta * (1 + 1e-6)
    if found > 0.01:
        assert delta_of(events, found * 0.98) > delta


@few
@given(st.floats(1e-4, 2), st.integers(1, 20), st.sampled_from([1e-3, 1e-8]))
def test_concentrated_events_lie_between_the_gaussian_and_the_simple_bound(
    rho: float, count: int, delta: float
) -> None:
    total = rho * count
    found = epsilon([Event.concentrated(rho, count)], delta)
    # From above: rho + 2 sqrt(rho ln(1 / delta)) (arXiv 1605.02065, proposition 1.3), whose order 1 + sqrt(ln(1 /
    # delta) / rho) need not be whole.
    assert found <= (total + 2 * math.sqrt(total * math.log(1 / delta))) * 1.01 + 1e-9
    assert found >= gaussian_epsilon(math.sqrt(2 * total), delta) - 1e-9


def test_one_concentrated_event_makes_the_whole_a_renyi_bound() -> None:
    together = [SAMPLED, Event.concentrated(0.02)]
    assert accountant([SAMPLED]) == "PLD (1e-4)"
    assert accountant(together) == "RDP"
    assert epsilon(together, 1e-5) > epsilon([SAMPLED, Event(5.0)], 1e-5)  # rho = 1 / (2 * 5^2)
    assert epsilon(together, 1e-5) > epsilon([Event.concentrated(0.02)], 1e-5)


def test_no_noise_is_no_guarantee_and_no_event_costs_nothing() -> None:
    assert epsilon([], 1e-5) == 0.0
    assert delta_of([], 0.0) == 0.0
    bare = [SAMPLED, Event(0.0)]
    assert accountant(bare) == "none"
    assert epsilon(bare, 1e-5) == bound(bare, 1e-5) == math.inf
    assert delta_of(bare, 100.0) == delta_of(bare, math.inf) == 1.0
    assert epsilon([Event(0.0, 0.1)], 0.5) == math.inf
    assert Event.concentrated(math.inf).sigma == 0.0


def test_almost_no_noise_has_a_bound_all_the_same() -> None:
    events = [Event(0.1, 1.0, 100)]  # mu = 100: epsilon of 5,426
    assert accountant(events) == "RDP"
    assert 0.5 * 100**2 < epsilon(events, 1e-5) < math.inf
    assert math.isfinite(epsilon([Event(LEAST, 0.5, 10)], 1e-5))
    assert 0 <= epsilon([Event(GREATEST, 0.5, 10)], 1e-5) < 1e-3
    assert epsilon([Event(GREATEST, 1e-6, 10), Event.concentrated(1e-15)], 1e-5) < 1e-3


@pytest.mark.parametrize(
    ("target", "event", "before"),
    [
        (0.1, Event(1.0, 1.0, 10), []),
        (3.0, Event(1.0, 0.1, 40), []),
        (1.5, Event(1.0, 0.1, 40), [SAMPLED]),
        (4.0, Event(1.0, 1.0, 10, "concentrated"), [SAMPLED]),
    ],
)
def test_calibrated_noise_spends_the_budget_and_no_more(target: float, event: Event, before: list[Event]) -> None:
    sigma = calibrate(target, 1e-5, event.rate, event.count, before, event.kind)
    assert epsilon([*before, Event(sigma, event.rate, event.count, event.kind)], 1e-5) <= target
    assert epsilon([*before, Event(sigma * 0.995, event.rate, event.count, event.kind)], 1e-5) > target
    steps = affordable(Event(sigma, event.rate, 1, event.kind), target, 1e-5, before)
    assert event.count <= steps <= event.count * 1.01


@few
@given(EVENTS, st.floats(0.3, 4), st.sampled_from([(), (SAMPLED,), (Event(9.0, 1.0, 2),)]))
def test_affordable_is_the_last_step_within(event: Event, budget: float, before: tuple[Event, ...]) -> None:
    steps = affordable(event, budget, 1e-5, before, most=2000)
    if steps:
        assert epsilon([*before, Event(event.sigma, event.rate, steps, event.kind)], 1e-5) <= budget
    if steps < 2000:
        assert epsilon([*before, Event(event.sigma, event.rate, steps + 1, event.kind)], 1e-5) > budget


def test_budgets_without_an_end_and_without_room() -> None:
    assert calibrate(math.inf, 1e-5, 0.1, 10, [Event(0.0)]) == 0.0
    assert affordable(Event(0.0), math.inf, 1e-5) == MOST
    assert affordable(Event(0.0), 1e9, 1e-5) == 0
    assert affordable(Event(100.0, 0.001), 8.0, 1e-5, most=100) == 100
    with pytest.raises(
        UserError, match=r"leave room for 10 more steps, found a budget of 0\.5 .* of which 0\.\d+ is spent"
    ):
        calibrate(0.5, 1e-5, 0.1, 10, [SAMPLED])
    with pytest.raises(UserError, match="of which inf is spent"):
        calibrate(1.0, 1e-5, 0.1, 10, [Event(0.0)])
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(UserError, match="epsilon: must be above 0"):
            calibrate(bad, 1e-5, 0.1, 10)
        with pytest.raises(UserError, match="epsilon: must be above 0"):
            affordable(SAMPLED, bad, 1e-5)


@given(st.floats(LEAST, GREATEST) | st.just(0.0), st.floats(1e-9, 1), st.integers(1, 10**9))
def test_json_gives_an_event_back(sigma: float, rate: float, count: int) -> None:
    for event in (Event(sigma, rate, count), Event(sigma, 1.0, count, "concentrated")):
        assert Event.of(json.loads(json.dumps(event.record(), allow_nan=False))) == event


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"sigma": -1.0}, "event.sigma: must be 0 or from 0.001 to 1e.06, found -1.0"),
        ({"sigma": math.nan}, "event.sigma"),
        ({"sigma": math.inf}, "event.sigma"),
        ({"sigma": 1e-9}, "event.sigma"),
        ({"sigma": "2"}, "event.sigma"),
        ({"sigma": True}, "event.sigma"),
        ({"rate": 0.0}, "event.rate: must be above 0 and at most 1, found 0.0"),
        ({"rate": 1.1}, "event.rate"),
        ({"rate": None}, "event.rate"),
        ({"count": 0}, "event.count: must be a whole number of at least 1, found 0"),
        ({"count": 1.5}, "event.count"),
        ({"count": True}, "event.count"),
        ({"count": np.int64(3)}, "event.count"),
        ({"kind": "laplace"}, "event.kind: must be gaussian or concentrated, found 'laplace'"),
        ({"kind": "concentrated", "rate": 0.5}, "event.rate: must be 1 for a concentrated mechanism, found 0.5"),
        ({"round": 1}, "event: must have sigma, rate, count and kind, found count, kind, rate, round, sigma"),
    ],
)
def test_what_is_no_event_is_refused(change: dict[str, Any], rule: str) -> None:
    good = Event(1.0, 0.1, 2).record()
    with pytest.raises(UserError, match=rule):
        Event.of(good | change)


def test_other_values_out_of_range_are_refused() -> None:
    for bad in (0.0, 1.0, math.nan):
        with pytest.raises(UserError, match="delta: must be above 0 and below 1"):
            epsilon([SAMPLED], bad)
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(UserError, match=r"event.rho: must be above 0"):
            Event.concentrated(bad)
