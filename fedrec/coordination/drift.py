"""Drift correction as configuration: what is done about clients whose local optima lie apart."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedrec.errors import UserError
from fedrec.parameters import Params


class Drift(BaseModel):
    """What a client trains beside the shared model; the defaults are nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    personal: Literal["none", "ditto", "apfl"] = Field(
        "none", description="a model that every client keeps to itself and recommends with"
    )
    weight: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="ditto: lambda of the pull to z; apfl: alpha, the personal share"
    )

    @model_validator(mode="after")
    def _share(self) -> "Drift":
        if self.personal == "apfl" and not 0 < self.weight <= 1:
            raise UserError(f"drift.weight: must be above 0 and at most 1 for apfl, found {self.weight}")
        return self


@dataclass(frozen=True)
class Own:
    """What a client remembers for its drift correction, never sent: the parameters of its personal model."""

    personal: Params | None = None
