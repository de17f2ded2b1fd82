"""Distillation: a student learns what a teacher says, on the server from logits, inside a client from its model."""

from fedrec.distillation.learning import distil, learn
from fedrec.distillation.lessons import KINDS, Distillation, lesson, recommendations, soft_loss

__all__ = ["KINDS", "Distillation", "distil", "learn", "lesson", "recommendations", "soft_loss"]
