"""Attacks on what a server sees: each takes a transcript and what its adversary is declared to know, and gives scores.

The truth is apart: `targets` makes questions of it, `scores` judges the answers, `table` lists all attacks with both.
"""

from fedrec.privacy.attacks.membership import Held
from fedrec.privacy.attacks.scores import Result, judge, violates
from fedrec.privacy.attacks.table import ATTACKS, Attack, Case, Question
from fedrec.privacy.attacks.targets import Records

__all__ = ["ATTACKS", "Attack", "Case", "Held", "Question", "Records", "Result", "judge", "violates"]
