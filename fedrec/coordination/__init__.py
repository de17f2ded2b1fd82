"""Coordination constraints: min sum_i p_i f_i(theta_i) + h(Z) subject to x_i = z_i, Z in C, f_i <= b_i."""

from fedrec.coordination.budget import BudgetRule
from fedrec.coordination.coupling import Coupling
from fedrec.coordination.descent import Descent
from fedrec.coordination.drift import Control, Drift, Own, control_change, normalised
from fedrec.coordination.halves import Hub, Link, Residuals, double, tie
from fedrec.coordination.operators import (
    Ball,
    Box,
    Clusters,
    Graph,
    LinearTie,
    Mean,
    MeanRegularised,
    Mixture,
    Operator,
    SumTo,
    Within,
)
from fedrec.coordination.solve import Solution, gradient_steps, newton, solve
from fedrec.coordination.ties import Tie, tie_of

__all__ = [
    "Ball",
    "Box",
    "BudgetRule",
    "Clusters",
    "Control",
    "Coupling",
    "Descent",
    "Drift",
    "Graph",
    "Hub",
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
