"""Distillation: a student learns what a teacher says, on the server from logits, inside a client from its model."""

from fedrec.distillation.learning import learn
from fedrec.distillation.lessons import KINDS, Distillation, lesson, recommendations, softened
from fedrec.distillation.server import distil

__all__ = ["KINDS", "Distillation", "distil", "learn", "lesson", "recommendations", "softened"]
