"""Coordination constraints: min sum_i p_i f_i(theta_i) + h(Z) subject to x_i = z_i, Z in C, f_i <= b_i."""

from fedrec.coordination.budget import Budget
from fedrec.coordination.coupling import Coupling
from fedrec.coordination.descent import Descent
from fedrec.coordination.drift import Control, Drift, Own, control_change, normalised
from fedrec.coordination.halves import Hub, Link, Residuals, double, tie
from fedrec.coordination.local import gradient_steps, newton
from fedrec.coordination.operators import (
    Clusters,
    Graph,
    LinearTie,
    Mean,
    MeanRegularised,
    Mixture,
    Operator,
    SumTo,
)
from fedrec.coordination.rule import BudgetRule
from fedrec.coordination.sets import Ball, Box, Within
from fedrec.coordination.solve import Line, Solution, solve
from fedrec.coordination.ties import Tie, tie_of

__all__ = [
    "Ball",
    "Box",
    "Budget",
    "BudgetRule",
    "Clusters",
    "Control",
    "Coupling",
    "Descent",
    "Drift",
    "Graph",
    "Hub",
    "Line",
    "LinearTie",
    "Link",
    "Mean",
    "MeanRegularised",
    "Mixture",
    "Operator",
    "Own",
    "Residuals",
    "Solution",
    "SumTo",
    "Tie",
    "Within",
    "control_change",
    "double",
    "gradient_steps",
    "newton",
    "normalised",
    "solve",
    "tie",
    "tie_of",
]
