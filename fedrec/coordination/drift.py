"""Drift correction: what is done about clients whose local optima lie apart, or that make unequal numbers of steps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedrec.errors import UserError
from fedrec.parameters import Params, add, subtract


class Drift(BaseModel):
    """What is done about the drift of local training; the defaults are nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    normalise: bool = Field(False, description="scale every client's change to the same number of steps (FedNova)")
    personal: Literal["none", "ditto", "apfl"] = Field(
        "none", description="a model that every client keeps to itself and recommends with"
    )
    weight: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="ditto: lambda of the pull to z; apfl: alpha, the personal share"
    )

    @property
    def counted(self) -> bool:
        """Whether the clients tell their numbers of local steps."""
        return self.normalise

    @model_validator(mode="after")
    def _share(self) -> "Drift":
        if self.personal == "apfl" and not 0 < self.weight <= 1:
            raise UserError(f"drift.weight: must be above 0 and at most 1 for apfl, found {self.weight}")
        return self


@dataclass(frozen=True)
class Own:
    """What a client remembers for its drift correction, never sent: the parameters of its personal model."""

    personal: Params | None = None


def normalised(
    answers: Mapping[str, Params], z: Mapping[str, Params], steps: Mapping[str, float], weights: Mapping[str, float]
) -> dict[str, Params]:
    """Return z_i - tau_eff / tau_i (z_i - x_i) for every answer x_i, with tau_eff = sum_i p_i tau_i.

    tau_i are the local steps, p_i the weights over the clients that answered. The usual mean of these is z plus
    tau_eff times the mean change per step (FedNova, arXiv 2007.07481, eq. 8, for local SGD; under an adaptive optimiser
    a step counts as a step). A client without a step has not moved, and is left as it is. float64.
    """
    mass = math.fsum(weights[name] for name in answers)
    effective = math.fsum(weights[name] * steps[name] for name in answers) / mass if mass else 0.0
    scaled = {}
    for name, x in answers.items():
        before = {key: value.double() for key, value in z[name].items()}
        scaled[name] = add(before, subtract(x, before), effective / steps[name] if steps[name] else 1.0)
    return scaled
