"""Coordination constraints: min sum_i p_i f_i(theta_i) + h(Z) subject to x_i = z_i, Z in C, f_i <= b_i."""

from fedrec.coordination.budget import BudgetRule
from fedrec.coordination.coupling import Coupling
from fedrec.coordination.descent import Descent
from fedrec.coordination.drift import Control, Drift, Own, control_change, normalised
from fedrec.coordination.halves import Link, Residuals, double
from fedrec.coordination.ties import Tie, tie_of

__all__ = [
    "BudgetRule",
    "Control",
    "Coupling",
    "Descent",
    "Drift",
    "Link",
    "Own",
    "Residuals",
    "Tie",
    "control_change",
    "double",
    "normalised",
    "tie_of",
]
