"""Coordination constraints: min sum_i p_i f_i(theta_i) + h(Z) subject to x_i = z_i, Z in C, f_i <= b_i."""

from fedrec.federation.coordination.budget import BudgetRule
from fedrec.federation.coordination.coupling import Coupling
from fedrec.federation.coordination.descent import Descent
from fedrec.federation.coordination.drift import Control, Drift, Own, control_change, normalise
from fedrec.federation.coordination.factors import Solver
from fedrec.federation.coordination.halves import Link, Residuals, double
from fedrec.federation.coordination.solved import Penalty
from fedrec.federation.coordination.ties import Tie, tie_of

__all__ = [
    "BudgetRule",
    "Control",
    "Coupling",
    "Descent",
    "Drift",
    "Link",
    "Own",
    "Penalty",
    "Residuals",
    "Solver",
    "Tie",
    "control_change",
    "double",
    "normalise",
    "tie_of",
]
