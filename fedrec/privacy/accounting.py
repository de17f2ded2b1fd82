"""What steps of noisy mechanisms cost: epsilon and delta of a composition, and the noise or steps that a budget allows.

The neighbour relation is zero-out (one unit's data replaced by none). A composition of Gaussian steps, Poisson-sampled
or not, is accounted by its privacy loss distribution in pessimistic rounding (arXiv 1906.03049, 2207.04380), never by
the Gaussian form of the central limit. Every answer is an upper bound.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedrec.errors import UserError

# dp_accounting loads scipy, about a second; a run without a guarantee does without.

Kind = Literal["gaussian", "concentrated"]
INTERVAL = 1e-4  # of the discretised privacy loss
FRACTIONS = (1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.25, 2.5, 2.75, 3.5, 4.5)
ORDERS = (*FRACTIONS, *range(2, 65), 80, 96, 128, 192, 256, 384, 512, 768, 1024)  # of Renyi divergences
LEAST, GREATEST = 1e-3, 1e6  # less noise is no guarantee; more leaves nothing of what it is added to
WEAK = 60.0  # an epsilon (at delta 1e-6) beyond which the loss would take minutes to lay out, and protects nobody
TOLERANCE = 1e-3  # of the epsilon that a calibrated sigma reaches
MOST = 1_000_000  # steps


@dataclass(frozen=True, order=True)
class Event:
    """`count` steps of a mechanism on the same unit's data.

    gaussian: N(0, sigma^2) on a sum to which a unit adds a vector of norm at most 1, each unit being there with
    probability `rate` in every step (1: always). concentrated: any mechanism with zero-concentrated DP (arXiv
    1605.02065) of rho = 1 / (2 sigma^2) a step, which is what the Gaussian of this sigma has. With sigma 0 there is no
    noise. Raises UserError for a value out of range.
    """

    sigma: float
    rate: float = 1.0
    count: int = 1
    kind: Kind = "gaussian"

    def __post_init__(self) -> None:
        if self.kind not in ("gaussian", "concentrated"):
            raise UserError(f"event.kind: must be gaussian or concentrated, found {self.kind!r}")
        if not _number(self.sigma) or not (self.sigma == 0 or LEAST <= self.sigma <= GREATEST):
            raise UserError(f"event.sigma: must be 0 or from {LEAST:g} to {GREATEST:g}, found {self.sigma!r}")
        if not _number(self.rate) or not 0 < self.rate <= 1:
            raise UserError(f"event.rate: must be above 0 and at most 1, found {self.rate!r}")
        if not isinstance(self.count, int) or isinstance(self.count, bool) or self.count < 1:
            raise UserError(f"event.count: must be a whole number of at least 1, found {self.count!r}")
        if self.kind == "concentrated" and self.rate != 1:
            # No amplification: its mechanisms run inside a secure sum, and the server knows who takes part in that.
            raise UserError(f"event.rate: must be 1 for a concentrated mechanism, found {self.rate!r}")

    def times(self, n: int) -> "Event":
        """Return the event n times over."""
        return replace(self, count=self.count * n)

    def record(self) -> dict[str, Any]:
        """Return the event as JSON holds it."""
        return asdict(self)

    @staticmethod
    def of(record: Mapping[str, Any]) -> "Event":
        """Return the event of a `record`; raises UserError for one that is not whole."""
        if set(record) != {"sigma", "rate", "count", "kind"}:
            raise UserError(f"event: must have sigma, rate, count and kind, found {', '.join(sorted(record))}")
        return Event(**record)

    @staticmethod
    def concentrated(rho: float, count: int = 1) -> "Event":
        """Return the event of `count` steps that have rho-zero-concentrated DP each, with rho above 0."""
        if not rho > 0:
            raise UserError(f"event.rho: must be above 0, found {rho!r}")
        sigma = min((2 * rho) ** -0.5, GREATEST)
        return Event(sigma if sigma >= LEAST else 0.0, 1.0, count, "concentrated")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def merge(events: Iterable[Event]) -> tuple[Event, ...]:
    """Return the events with those that are alike counted as one, in an order of their own."""
    counts: Counter[Event] = Counter()
    for event in events:
        counts[replace(event, count=1)] += event.count
    return tuple(sorted(replace(event, count=count) for event, count in counts.items()))


def epsilon(events: Iterable[Event], delta: float) -> float:
    """Return the least epsilon known at `delta` for the composition of the events, in any order; inf without noise."""
    if not 0 < delta < 1:
        raise UserError(f"delta: must be above 0 and below 1, found {delta!r}")
    return _epsilon(merge(events), delta)


def accountant(events: Iterable[Event]) -> str:
    """Return who accounts for the composition of the events.

    PLD: the privacy loss distribution. RDP: Renyi divergences (arXiv 1702.07476), looser, for all of it where a part is
    known by its concentrated DP only, and where epsilon is far beyond any protection. none: no noise, no guarantee.
    """
    known = merge(events)
    if any(event.sigma == 0 for event in known):
        return "none"
    loose = any(event.kind == "concentrated" for event in known) or _bound(known, 1e-6) > WEAK
    return "RDP" if loose else "PLD (1e-4)"


@lru_cache(maxsize=4096)
def _epsilon(known: tuple[Event, ...], delta: float) -> float:
    if not known:
        return 0.0
    by = accountant(known)
    if by == "none":
        return math.inf
    return _bound(known, delta) if by == "RDP" else float(_loss(known).get_epsilon_for_delta(delta))


@lru_cache(maxsize=8)
def _loss(known: tuple[Event, ...]) -> Any:
    """Return the privacy loss distribution of Gaussian events."""
    # Steps that nobody is left out of compose into one Gaussian, exactly: 1 / sigma^2 = sum of count / sigma^2.
    precision = sum(event.count / event.sigma**2 for event in known if event.rate == 1)
    parts = [_step(precision**-0.5, 1.0)] if precision else []
    parts += [_step(event.sigma, event.rate).self_compose(event.count) for event in known if event.rate < 1]
    total = parts[0]
    for part in parts[1:]:
        total = total.compose(part)
    return total


@lru_cache(maxsize=16)
def _step(sigma: float, rate: float) -> Any:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        sigma,
        value_discretization_interval=INTERVAL,
        sampling_prob=rate,
        neighboring_relation=NeighboringRelation.REPLACE_SPECIAL,
    )


@lru_cache(maxsize=256)
def _curve(sigma: float, rate: float) -> NDArray[np.float64]:
    """Return the Renyi divergences [orders] of one Gaussian step."""
    from dp_accounting import NeighboringRelation, dp_event
    from dp_accounting.rdp import RdpAccountant

    if rate == 1:
        return np.asarray(ORDERS) / (2 * sigma**2)
    # Of a whole order it is a finite sum. It rises in the order, so that the next whole one bounds it.
    whole = [math.ceil(order) for order in ORDERS]
    step = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(sigma))
    curve = RdpAccountant(whole, NeighboringRelation.REPLACE_SPECIAL).compose(step).rdp
    return np.maximum(np.asarray(curve, np.float64), 1e-12)  # where almost nothing is lost, rounding may leave less


def _divergences(known: tuple[Event, ...]) -> NDArray[np.float64]:
    """Return the Renyi divergences [orders] of events; rho-concentrated: order * rho, as the Gaussian's."""
    return sum((event.count * _curve(event.sigma, event.rate) for event in known), np.zeros(len(ORDERS)))


def bound(events: Iterable[Event], delta: float) -> float:
    """Return what `epsilon` is at most, by Renyi divergences alone: a hundred times as quick.

    It is some 10 to 20% above an epsilon from 1 on, and further above a smaller one.
    """
    known = merge(events)
    return math.inf if any(event.sigma == 0 for event in known) else _bound(known, delta)


def _bound(known: tuple[Event, ...], delta: float) -> float:
    from dp_accounting.rdp import rdp_privacy_accountant as rdp

    return float(rdp.compute_epsilon(ORDERS, _divergences(known), delta)[0])


def calibrate(
    epsilon: float, delta: float, rate: float, steps: int, before: Iterable[Event] = (), kind: Kind = "gaussian"
) -> float:
    """Return the least sigma with which `steps` more steps after `before` stay within a budget.

    It spends the budget to within 0.1%, and never more. An infinite epsilon asks for no noise: 0. Raises UserError if
    what was spent before leaves no room.
    """
    _budget(epsilon)
    if epsilon == math.inf:
        return 0.0
    return _calibrated(epsilon, delta, Event(1.0, rate, steps, kind), merge(before))


@lru_cache(maxsize=1024)
def _calibrated(budget: float, delta: float, event: Event, before: tuple[Event, ...]) -> float:
    spent = epsilon(before, delta)

    def after(precision: float) -> tuple[Event, ...]:
        return (*before, replace(event, sigma=precision**-0.5))

    low, high = GREATEST**-2 * (1 + 1e-9), LEAST**-2 * (1 - 1e-9)
    if spent >= budget or epsilon(after(low), delta) > budget:
        raise UserError(
            f"epsilon: must leave room for {event.count} more steps, found a budget of {budget:g} at delta {delta:g}, "
            f"of which {above(spent)} is spent"
        )
    return 1 / math.sqrt(_edge(after, budget, delta, low, high, whole=False))


def affordable(event: Event, budget: float, delta: float, before: Iterable[Event] = (), most: int = MOST) -> int:
    """Return how many steps like those of `event`, whatever its count, fit after `before`: at most `most`."""
    _budget(budget)
    return _affordable(replace(event, count=1), budget, delta, merge(before), most)


@lru_cache(maxsize=1024)
def _affordable(event: Event, budget: float, delta: float, before: tuple[Event, ...], most: int) -> int:
    def after(count: float) -> tuple[Event, ...]:
        return (*before, replace(event, count=int(count)))

    if budget == math.inf:
        return most
    if most < 1 or epsilon(after(1), delta) > budget:
        return 0
    return int(_edge(after, budget, delta, 1, most, whole=True))


def _edge(
    after: Callable[[float], tuple[Event, ...]], budget: float, delta: float, low: float, high: float, whole: bool
) -> float:
    """Return the greatest x from `low` to `high` with epsilon(after(x)) <= budget, which `low` has."""

    def quick(x: float) -> float:
        return _bound(merge(after(x)), delta)

    def cost(x: float) -> float:
        return epsilon(after(x), delta)

    # The quick bound says from where on to ask the exact one, which takes a hundred times as long.
    near = _root(quick, budget, low, high, whole) if quick(low) <= budget else low
    far = min(math.ceil(near * 1.25) if whole else near * 1.25, high)
    while (
        near > low and cost(near) > budget
    ):  # its rounding makes the exact one the greater where almost nothing is lost
        near = max(math.floor(near / 1.25) if whole else near / 1.25, low)
    while far < high and cost(far) <= budget:
        near, far = far, min(2 * far, high)
    return _root(cost, budget, near, far, whole)


def _root(cost: Callable[[float], float], budget: float, low: float, high: float, whole: bool) -> float:
    """Return `_edge` of a rising cost by the Illinois rule on logarithms, in which costs are nearly straight."""

    def over(x: float) -> float:
        return math.log(min(max(cost(x), 1e-9), 1e9) / budget)

    a, b = over(low), over(high)
    if b <= 0:
        return high
    reached, side = a, 0
    while high - low > 1 if whole else (reached < -TOLERANCE and high > low * (1 + 1e-6)):
        x = low * (high / low) ** min(max(a / (a - b), 0.01), 0.99)
        if whole:
            x = min(max(round(x), low + 1), high - 1)
        value = over(x)
        if value <= 0:
            low, a, b, side, reached = x, value, b / 2 if side < 0 else b, -1, value
        else:
            high, a, b, side = x, a / 2 if side > 0 else a, value, 1
    return low


def _budget(epsilon: float) -> None:
    if not epsilon > 0:
        raise UserError(f"epsilon: must be above 0, or inf, found {epsilon!r}")


def above(epsilon: float) -> str:
    """Return an epsilon as text, rounded up to the next 0.001."""
    return f"{math.ceil(epsilon * 1000) / 1000:.10g}" if math.isfinite(epsilon) else "inf"
