"""The contract suites of `fedrec.testing` over what the package has itself, and over parts of a user's own."""

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from fedrec.federation.codecs import CountSketch, LowRank, Projection, Quantised, RandomK, TopK
from fedrec.federation.coordination.operators import (
    Ball,
    Box,
    Clusters,
    Graph,
    Mean,
    MeanRegularised,
    Mixture,
    SumTo,
    Within,
)
from fedrec.metrics import RANKING, ranking_metrics
from fedrec.models import KINDS, Recommender
from fedrec.privacy.attacks.table import ATTACKS
from fedrec.rng import generator
from fedrec.sharing import ContractError
from fedrec.testing import (
    AggregatorContract,
    AttackContract,
    CodecContract,
    CompanionContract,
    ConstraintContract,
    LinearCodecContract,
    MetricContract,
    ObjectiveContract,
    RecommenderContract,
    SourceContract,
    TaskContract,
    TieContract,
    TransformContract,
    WeightingContract,
)
from fedrec.training.conflict import Method, combine, weights_of
from fedrec.training.weighting import KINDS as WEIGHTINGS
from tests.builders import synthetic
from tests.own_parts import (
    Blind,
    Clip,
    Curv,
    Decay,
    Dwell,
    EightBit,
    Factors,
    Grid,
    Halves,
    Huber,
    Idle,
    Lapsing,
    Levelled,
    Movement,
    Near,
    Partly,
    Powered,
    Precision,
    Regulars,
    Remembered,
    Ridge,
    Shrunk,
    Telling,
    TwoTower,
    Upwards,
    Worst,
    even,
)

TASKS = {"esmm": ("click", "buy"), "aitm": ("click", "buy")}
KNOWING = ("loss, fitted user", "leaning", "user leaning")  # what an attack of the user's own knows
OPERATORS: dict[str, tuple[Any, bool]] = {
    "mean": (Mean(), True),
    "clusters": (Clusters((0, 0, 1)), True),
    "mean-regularised": (MeanRegularised(0.5), False),
    "graph": (Graph(3, ((0, 1), (1, 2)), 0.5), False),
    "mixture": (Mixture(((1.0, 0.0), (0.5, 0.5), (0.0, 1.0))), True),
    "sum": (SumTo(1.0), True),
    "ball": (Within(Mean(), Ball(0.1)), True),
    "box": (Within(Mean(), Box(0.1)), True),
}


@dataclass(frozen=True)
class Ranking:
    """A metric of ours."""

    name: str

    def value(self, ranks: Any) -> float:
        """See MetricContract."""
        return float(ranking_metrics([ranks], [self.name])[self.name][0])


@dataclass(frozen=True)
class Ours:
    """An aggregator of ours."""

    name: Method

    def combine(self, g: Tensor, p: Tensor, carries: Tensor | None) -> Tensor:
        """See AggregatorContract."""
        return combine(g, weights_of(g @ g.T, self.name, p, order=generator(0, "order")), carries)


@dataclass(frozen=True)
class Market:
    """A source of ours."""

    def load(self) -> Any:
        """See SourceContract."""
        return synthetic(platforms=2, users=20, items=30, impressions=8)


def suite(base: type, name: str, **fields: Any) -> type:
    """Return a suite as a class of tests."""
    return type(f"Test{name.title().replace('-', '')}{base.__name__}", (base,), fields)


MADE = [
    *(
        suite(
            RecommenderContract,
            kind,
            component=Recommender(kind, 4, (6, 3), experts=2),
            tasks=TASKS.get(kind, ("rank", "rating")),
        )
        for kind in KINDS
    ),
    suite(RecommenderContract, "TwoTower", component=TwoTower(width=4)),
    suite(RecommenderContract, "Factors", component=Factors()),
    suite(TaskContract, "rating", component="rating"),
    suite(TaskContract, "Huber", component=Huber(0.5)),
    suite(TaskContract, "Dwell", component=Dwell()),
    suite(SourceContract, "Grid", component=Grid()),
    suite(SourceContract, "Market", component=Market()),
    *(suite(MetricContract, name, component=Ranking(name if name == "mrr" else f"{name}@5")) for name in RANKING),
    suite(MetricContract, "Precision", component=Precision()),
    *(suite(AggregatorContract, name, component=Ours(name)) for name in get_args(Method)),
    suite(AggregatorContract, "Powered", component=Powered(2.0)),
    *(suite(ConstraintContract, name, component=one, projection=sharp) for name, (one, sharp) in OPERATORS.items()),
    suite(ConstraintContract, "Shrunk", component=Shrunk(0.1)),
    suite(TieContract, "Near", component=Near(2.0)),
    suite(TieContract, "even", component=even),
    suite(CodecContract, "TopK", component=TopK(0.3)),
    suite(CodecContract, "FourBit", component=Quantised(4, block=8)),
    suite(CodecContract, "Rounded", component=Quantised(3, unbiased=True)),
    suite(LinearCodecContract, "RandomK", component=RandomK(0.3)),
    suite(LinearCodecContract, "Projection", component=Projection(0.3)),
    suite(CodecContract, "LowRank", component=LowRank(2)),
    suite(CodecContract, "CountSketch", component=CountSketch(0.9, 3)),
    suite(CodecContract, "EightBit", component=EightBit()),
    suite(CodecContract, "Forgetful", component=Halves(), owes=False),
    *(suite(AttackContract, one.name, component=one) for one in ATTACKS if one.name in KNOWING),
    suite(AttackContract, "Movement", component=Movement(2.0)),
    suite(AttackContract, "Regulars", component=Regulars()),
    *(suite(TransformContract, type(one).__name__, component=one) for one in (Curv(), Decay(), Clip())),
    *(suite(ObjectiveContract, type(one).__name__, component=one) for one in (Remembered(0.5), Ridge())),
    *(suite(CompanionContract, one, component=one) for one in ("ditto", "apfl")),
    suite(CompanionContract, "Partly", component=Partly()),
    *(suite(WeightingContract, one, component=one) for one in WEIGHTINGS if one != "fixed"),
    *(suite(WeightingContract, type(one).__name__, component=one) for one in (Worst(), Levelled())),
]
globals().update({one.__name__: one for one in MADE})


class Spread:
    """Constraints that are none."""

    def project(self, v: list[Tensor], p: Tensor, rho: float, clients: tuple[str, ...]) -> list[Tensor]:
        """Drive the v_i apart."""
        return [2 * one for one in v]


class Backwards:
    """A metric and an aggregator that are none."""

    def value(self, ranks: Any) -> float:
        """Return more for worse ranks."""
        return float(np.mean(ranks))

    def combine(self, g: Tensor, p: Tensor, carries: Tensor | None) -> Tensor:
        """Return the other way."""
        return -g.sum(0)


@dataclass(frozen=True)
class Mixed(Dwell):
    """A task that is none: its rows share their loss, and what it says of a mean is not its logarithm."""

    def loss(self, score: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss for every row."""
        return super().loss(score, target).mean().expand(len(score))

    def baseline(self, mean: Any) -> Any:
        """Return the mean itself."""
        return mean


class Together(Decay):
    """A transform that scales by the norm of all clients, and loses a gradient."""

    def update(self, grads: Any, state: Any, params: Any, ctx: Any) -> Any:
        """Return g / |g|."""
        return {"item_table": grads["item_table"] / grads["item_table"].norm()}, state


class Forgetful(Recommender):
    """A recommender whose scores of all are not those of the pairs."""

    def score_all(self, params: Any, task: str, user: Tensor) -> Tensor:
        """Return other scores."""
        return torch.zeros(len(user), len(params["item_table"]))


@pytest.mark.parametrize(
    ("base", "component", "test"),
    [
        (ConstraintContract, Spread(), "test_nearer_points_are_brought_nearer"),
        (ConstraintContract, Spread(), "test_what_satisfies_it_stays"),
        (TieContract, Lapsing("nan"), "test_it_is_as_many_finite_numbers_whatever_z"),
        (TieContract, Lapsing("longer"), "test_it_is_as_many_finite_numbers_whatever_z"),
        (TieContract, Lapsing("flat"), "test_its_slope_is_that_of_its_values"),
        (TieContract, Lapsing("moves"), "test_it_changes_nothing_that_it_is_given"),
        (AttackContract, Blind(), "test_it_reads_what_was_sent"),
        (AttackContract, Blind(), "test_targets_are_scored_alike_in_any_order"),
        (CodecContract, Halves(), "test_what_it_lacks_is_sent_later"),
        (LinearCodecContract, TopK(0.5), "test_sums_of_payloads_decode_to_sums"),
        (CodecContract, Telling(), "test_a_payload_has_the_form_that_its_change_says"),
        (TaskContract, Mixed(), "test_a_row_costs_what_it_costs_alone"),
        (TaskContract, Mixed(), "test_the_score_that_says_a_target_costs_the_least"),
        (MetricContract, Backwards(), "test_a_better_rank_is_no_worse"),
        (AggregatorContract, Backwards(), "test_clients_that_agree_are_not_led_the_other_way"),
        (TransformContract, Together(), "test_a_client_among_others_is_as_alone"),
        (TransformContract, Together(), "test_every_gradient_keeps_its_name_and_shape"),
        (ObjectiveContract, Idle(), "test_it_is_a_number_that_acts"),
        (CompanionContract, Partly(1.5), "test_its_shares_are_fractions"),
        (WeightingContract, Upwards(), "test_no_loss_is_driven_up"),
        (RecommenderContract, Forgetful("mf", 4), "test_all_scores_are_those_of_the_pairs"),
    ],
)
def test_a_part_that_breaks_its_contract_is_seen(base: type, component: Any, test: str) -> None:
    with pytest.raises((AssertionError, ContractError, RuntimeError)):
        getattr(suite(base, "Broken", component=component)(), test)()
