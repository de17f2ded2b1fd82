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


# Nothing is approached by rounds.
BY_SUMS = {"coupling.rho": 0.0, "coupling.duals": False, "coupling.balance": False}


def defaults(unit: str, given: Collection[str], rounds: int = 0) -> dict[str, Any]:
    """Return the fields that a promise to a `unit` sets and nobody gave, by dotted path.

    Or a model by sums, which takes so many `rounds` until there is something to evaluate.
    """
    usual = {**DEFAULTS.get(unit, {}), **({**BY_SUMS, "rounds": rounds, "eval_every": rounds} if rounds else {})}
    return {path: value for path, value in usual.items() if path not in given}
