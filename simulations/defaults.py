"""What a promise of privacy sets where the user gives nothing."""

from collections.abc import Collection, Mapping
from typing import Any

# Chosen by validation on the whole grid of `python -m simulations.studies promise --choose`, see docs/privacy.md. Noise
# is added to every coordinate in every step: few steps of plain SGD, which does not make a full step of what is noise
# alone, bear it best.
TRAINING = {"weights": "uniform", "optimiser": "sgd", "local_epochs": 1}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "interaction": {**TRAINING, "lr": 3.0, "l2": 0.06, "privacy.clip": 0.3},
    "user": {**TRAINING, "lr": 2.0, "l2": 0.03},
    "client": {"weights": "uniform"},
}


# One round is exact, with nothing that is approached by rounds.
BY_SUMS = {"rounds": 1, "coupling.rho": 0.0, "coupling.duals": False, "coupling.balance": False}


def defaults(unit: str, given: Collection[str], sums: bool = False) -> dict[str, Any]:
    """Return the fields that a promise to a `unit`, or a model by `sums`, sets and nobody gave, by dotted path."""
    usual = {**DEFAULTS.get(unit, {}), **(BY_SUMS if sums else {})}
    return {path: value for path, value in usual.items() if path not in given}
