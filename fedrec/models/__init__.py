"""Recommenders as pure functions of named parameters: tables, a body that is shared, one head per task."""

from fedrec.models.factors import FactorRecommender
from fedrec.models.ials import Ials
from fedrec.models.lora import Adapted, Lora
from fedrec.models.module import Meta, Module, ModuleRecommender
from fedrec.models.noisy import NoisyRecommender
from fedrec.models.projected import ProjectedRecommender
from fedrec.models.quadratic import KINDS as QUADRATIC
from fedrec.models.quadratic import Quadratic
from fedrec.models.recommender import KINDS, Recommender
from fedrec.models.sequences import UserSequence
from fedrec.models.summed import SummedRecommender
from fedrec.models.user_factors import UserFactorRecommender

SUMMED = (*QUADRATIC, "ials")
NAMES = (*KINDS, *SUMMED)

__all__ = [
    "KINDS",
    "NAMES",
    "SUMMED",
    "Adapted",
    "FactorRecommender",
    "Ials",
    "Lora",
    "Meta",
    "Module",
    "ModuleRecommender",
    "NoisyRecommender",
    "ProjectedRecommender",
    "Quadratic",
    "Recommender",
    "SummedRecommender",
    "UserFactorRecommender",
    "UserSequence",
]
