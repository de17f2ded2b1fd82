"""Contract suites for parts of a user's own: inherit one in a test, and give it the part.

    class TestTwoTower(RecommenderContract):
        component = TwoTower(width=4)

What the package's own parts are held to is the same (`tests/test_contracts.py`).
"""

from fedrec.testing.attacks import AttackContract
from fedrec.testing.codecs import CodecContract, LinearCodecContract
from fedrec.testing.contracts import (
    AggregatorContract,
    CompanionContract,
    ConstraintContract,
    MetricContract,
    ObjectiveContract,
    RecommenderContract,
    SourceContract,
    TaskContract,
    TransformContract,
    WeightingContract,
)
from fedrec.testing.ties import TieContract

__all__ = [
    "AggregatorContract",
    "AttackContract",
    "CodecContract",
    "CompanionContract",
    "ConstraintContract",
    "LinearCodecContract",
    "MetricContract",
    "ObjectiveContract",
    "RecommenderContract",
    "SourceContract",
    "TaskContract",
    "TieContract",
    "TransformContract",
    "WeightingContract",
]
