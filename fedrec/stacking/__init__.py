"""Many clients of one shape trained and evaluated as one program; equal to one client after the other.

`groups` -> cohorts; `train` yields parts; `Sum` makes the mean of them, `trained` a single client, `write` the private
parameters of the next round.
"""

from fedrec.stacking.changed import Block, Changed
from fedrec.stacking.cohort import Cohort, groups
from fedrec.stacking.evaluation import evaluate_many
from fedrec.stacking.gradients import HANDWRITTEN
from fedrec.stacking.held_out import held_out_many
from fedrec.stacking.results import Sum, client, stack, trained, write
from fedrec.stacking.stacks import Part, Stack, Terms
from fedrec.stacking.update import train

__all__ = [
    "HANDWRITTEN",
    "Block",
    "Changed",
    "Cohort",
    "Part",
    "Stack",
    "Sum",
    "Terms",
    "client",
    "evaluate_many",
    "groups",
    "held_out_many",
    "stack",
    "train",
    "trained",
    "write",
]
