"""What a promise of privacy sets where the user gives nothing."""

from collections.abc import Collection, Mapping
from typing import Any

from fedrec.experiment.config import ties_users

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


# Of coupled clients that learn by sums nothing is approached by rounds, but the prices of a promise.
BY_SUMS = {"coupling.rho": 0.0, "coupling.duals": False, "coupling.balance": False}
PROMISED = {"rounds": 20, "eval_every": 1}
PULLED = {"coupling.strength": 10.0}  # in units of the mean of a client's diagonal of G
HEADED = {"drift.weight": 1.0}  # in the metric of the sum
TIED = {"coupling.rho": 30.0, "coupling.duals": True}  # of users' factors, on the scale of squares of scores


def defaults(
    values: Mapping[str, Any], given: Collection[str], schedule: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the fields that a promise of privacy, or a model by sums, sets and nobody gave, by dotted path.

    A model by sums has a `schedule` of its own; any other none.
    """
    usual = dict(DEFAULTS.get(str(values["privacy.unit"]), {}))
    if schedule:
        # It makes no steps; and a coupling is solved for, which others approach by duals and a pull.
        usual = dict(schedule)
        usual |= BY_SUMS if values["coupling.kind"] != "mean" else {}
        usual |= PROMISED if values["budget.margin"] is not None or values["budget.limits"] else {}
        usual |= HEADED if values["drift.personal"] == "ditto" else {}
        usual |= TIED if ties_users(str(values["model"]), values["share"]) else {}
        usual |= PULLED if values["coupling.kind"] in ("mean-regularised", "graph") else {}
    return {path: value for path, value in usual.items() if path not in given}
