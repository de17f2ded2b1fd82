"""Engines: ways to run the same ServerApp and ClientApp. Flower's traps are kept in this room."""

from simulations.engines.inline import InlineGrid
from simulations.engines.launch import launch
from simulations.engines.local import identify
from simulations.engines.ray import run_ray, watch

__all__ = ["InlineGrid", "identify", "launch", "run_ray", "watch"]
