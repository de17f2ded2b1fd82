"""Recommenders as pure functions of named parameters: tables, a body that is shared, one head per task."""

from fedrec.models.lora import Adapted, Lora
from fedrec.models.module import Meta, Module, ModuleRecommender
from fedrec.models.recommender import KINDS, Recommender
from fedrec.models.sequences import UserSequence

__all__ = [
    "KINDS",
    "Adapted",
    "Lora",
    "Meta",
    "Module",
    "ModuleRecommender",
    "Recommender",
    "UserSequence",
]
