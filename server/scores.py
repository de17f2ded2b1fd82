"""What clients tell of themselves: metrics that enter the numerics, and the score that selects a round."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedrec.experiment.records import Row
from fedrec.keyed import Carrier
from fedrec.metrics import POINTWISE, RANKING, sign
from fedrec.params import Params
from fedrec.sharing import ContractError, Contribution

OVER_BUDGET = 1e6  # a round that breaks a budget comes after every round that breaks less
NEAR_ZERO = 0.01  # added to a metric before its logarithm: a hit more of a few users must not outweigh every other task
FRACTIONS = (*RANKING, "auc", "ap", "accuracy")
Key = tuple[str, str, str]  # client or pooled member, task, metric


@dataclass(frozen=True)
class Score:
    """How good a round is: `values` of the clients, larger is better, and f_i - b_i of those with a budget."""

    values: dict[str, float] = field(default_factory=dict)
    over: dict[str, float] = field(default_factory=dict)
    tolerance: float = 0.0

    @property
    def violation(self) -> float:
        """The largest excess over a budget, without what is tolerated of it."""
        return max([0.0, *(value - self.tolerance for value in self.over.values())])

    def beats(self, best: "Score") -> bool:
        """Return whether this round is better, judged by the clients that both rounds know."""
        if not best.values:
            return True
        new, old = (average(score.values[who] for who in best.values) for score in (self, best))
        return new - OVER_BUDGET * self.violation > old - OVER_BUDGET * best.violation


@dataclass(frozen=True)
class Best:
    """The best round so far: its score, the server's parameters and what every client was sent."""

    round: int = 0
    score: Score = field(default_factory=Score)
    z: Params = field(default_factory=dict)
    parts: dict[str, Params] = field(default_factory=dict)
    prices: dict[str, float] = field(default_factory=dict)
    certificate: dict[str, Any] = field(default_factory=dict)  # what proves its parameters the best there are
    ties: list[Row] = field(default_factory=list)  # how every tie by name stands

    def budgets(self) -> list[Row]:
        """Return, for each client with a budget, its price mu, f - b, their product, and whether the budget is met."""
        return [
            {"client": name, "mu": mu, "excess": excess, "complementarity": mu * excess, "feasible": excess <= 0}
            for name, excess in self.score.over.items()
            if name not in {tie["tie"] for tie in self.ties}
            for mu in (self.prices.get(name, 0.0),)
        ]


@dataclass
class Scores:
    """Every client's last score. A client that gives none has it stand in, but never to the round's advantage."""

    last: Score = field(default_factory=Score)
    keys: dict[str, tuple[Key, ...]] = field(default_factory=dict)  # what each client has measured

    def judge(
        self,
        metrics: Mapping[Key, float],
        select: Sequence[str],
        best: Score,
        broken: Mapping[str, float],
        tolerance: float = 0.0,
    ) -> Score:
        """Return the score of a round by what its clients measured, and by how much it breaks what ties them.

        Of a client that gives no score counts the worse of its last one and its one in the best round: without the
        client, no round is better than the best for what only that client has lost.
        """
        values = selection_scores(metrics, select)
        over = {who: value for (who, _, metric), value in metrics.items() if metric == "excess" and value == value}
        over |= broken
        score = Score(
            standing(values, self.last.values, best.values, min),
            standing(over, self.last.over, best.over, max),
            tolerance,
        )
        self.last = Score(self.last.values | values, self.last.over | over)
        return score


def standing(
    values: dict[str, float], last: dict[str, float], best: dict[str, float], worse: Callable[[float, float], float]
) -> dict[str, float]:
    """Return what was found, and for every other client that is known the worse of its `last` and its `best`."""
    return {who: values[who] if who in values else worse(last[who], best.get(who, last[who])) for who in last | values}


def own_metrics(reply: Contribution, pooled: bool) -> dict[Key, float]:
    """Return an evaluation by (client, task, metric); only a pooled client may speak for others, its members.

    A metric may be NaN, which is no value. Raises ContractError.
    """
    metrics: dict[Key, float] = {}
    for name, value in reply.metrics.items():
        who, task, metric = ("", *name.rsplit("/", 2))[-3:]
        if who != reply.client and not pooled:
            raise ContractError(f"must send its own metrics, found {name}")
        low, high = bounds(metric)
        if math.isinf(value) or value < low or value > high:
            raise ContractError(f"metric {name}: must be a number from {low:g} to {high:g}, found {value}")
        metrics[who, task, metric] = value
    return metrics


def bounds(metric: str) -> tuple[float, float]:
    """Return what a metric lies between, with room for rounding; it may be NaN."""
    family = metric.partition("@")[0]
    if family in FRACTIONS:
        return -1e-6, 1 + 1e-6
    return (-1e-6, math.inf) if family in POINTWISE else (-math.inf, math.inf)


def selection_scores(metrics: Mapping[Key, float], select: Sequence[str]) -> dict[str, float]:
    """Return a score for each client or pooled member that has one, larger is better.

    Of every task counts the first metric of `select` that it has. With one such task that is the score, negative where
    less is better. Metrics of several tasks lie on unlike scales, and the largest would choose alone: the score is the
    mean of their logarithms, in which a hundredth of one task's value weighs as much as a hundredth of another's.
    """
    tasks: dict[str, dict[str, tuple[str, float]]] = {}
    for name in select:
        for (who, task, metric), value in metrics.items():
            if metric == name and not math.isnan(value):
                tasks.setdefault(who, {}).setdefault(task, (metric, value))
    scores: dict[str, float] = {}
    for who in dict.fromkeys(who for who, _, _ in metrics if who in tasks):
        several = len(tasks[who]) > 1
        marks = [(metric, math.log(max(v, 0.0) + NEAR_ZERO) if several else v) for metric, v in tasks[who].values()]
        scores[who] = average(sign(metric) * mark for metric, mark in marks)
    return scores


def objective(losses: dict[str, float], carriers: dict[str, Carrier]) -> float:
    """Return the objective sum_i p_i f_i with weights that sum to 1, over the clients that have a loss."""
    present = [(carriers[name].weight, loss) for name, loss in losses.items() if not math.isnan(loss)]
    mass = math.fsum(weight for weight, _ in present)
    return math.fsum(weight * loss for weight, loss in present) / mass if mass else math.nan


def average(values: Iterable[float]) -> float:
    """Return the mean of the values that are numbers; NaN if there is none."""
    present = [value for value in values if not math.isnan(value)]
    return math.fsum(present) / len(present) if present else math.nan
