"""Differential privacy as configuration: whom it protects, how strongly, and who adds the noise."""

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_serializer, field_validator, model_validator

from fedrec.components import number
from fedrec.errors import UserError

Unit = Literal["none", "interaction", "user", "client"]
NOT_PRIVATE = "NOT PRIVATE"
FEWEST = 3  # clients in a secure sum: of two each would learn the other's part from it
UNBOUNDED = "without bound"  # an epsilon of infinity, as it is printed


class Privacy(BaseModel, frozen=True, extra="forbid"):
    """Which unit is protected in what leaves a client (interaction, user) or the server (client).

    The neighbour relation is zero-out: one unit's data replaced by none; how many units there are, and which rows a
    client carries, is public. Units are drawn by Poisson sampling: interactions and users at `rate` in every step of a
    silo's DP-SGD, clients at the run's `participation` in every round.
    """

    unit: Unit = Field("none", description="what is protected: an interaction, a user or a client as a whole")
    epsilon: str = Field(
        "", description="budget of the whole run, or one for each silo: '2', '2;films=1;shop=inf'; '': none"
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="delta of the guarantee")
    clip: float = Field(
        1.0, gt=0, description="norm that a unit's gradient or update is clipped to; inf: not at all, NOT PRIVATE"
    )
    noise: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="noise multiplier; without one, what the budget allows; 0: none, NOT PRIVATE",
    )
    rate: float = Field(
        1.0, gt=0, le=1, description="interaction, user: the fraction of units that a step draws, by Poisson sampling"
    )
    where: Literal["server", "client", "sum"] = Field(
        "server",
        validate_default=True,
        description="client: who adds the noise: the server, every client by itself, or all of them in a secure sum; "
        "user: sum, for models by sums",
    )
    ledger: Path | None = Field(
        None, description="folder of what was spent that outlives the run; in the run without it"
    )
    replay: bool = Field(False, description="noise that the seed can replay, for tests: NOT PRIVATE")

    @property
    def active(self) -> bool:
        """Whether anything is protected."""
        return self.unit != "none"

    @property
    def inside(self) -> bool:
        """Whether the noise is added in a client's own training."""
        return self.unit in ("interaction", "user") and not self.summed

    @property
    def summed(self) -> bool:
        """Whether the noise is on sums over users, which clients add up in a secure sum."""
        return self.unit == "user" and self.where == "sum"

    @property
    def trusting(self) -> bool:
        """Whether the server, which sees what clients send, adds the noise."""
        return self.unit == "client" and self.where == "server"

    @property
    def open(self) -> bool:
        """Whether the mechanism runs without noise, so that it protects nothing."""
        return self.active and self.noise == 0

    @property
    def budgets(self) -> dict[str, float]:
        """The epsilon of every client that is named, and "" for that of all others; infinite without one."""
        return budgets(self.epsilon)

    def budget(self, client: str) -> float:
        """Return a client's epsilon; infinite without one."""
        return self.budgets.get(client, self.budgets[""])

    @field_validator("epsilon", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        text = str(value) if isinstance(value, int | float) else value
        if isinstance(text, str):
            budgets(text)
        return text

    @field_validator("rate")
    @classmethod
    def _inside(cls, rate: float, info: ValidationInfo) -> float:
        if info.data.get("unit") == "client" and rate != 1:
            raise UserError(f"is for units inside a client, whole ones are drawn with participation, found {rate}")
        return rate

    @field_validator("where")
    @classmethod
    def _of_updates(cls, where: str, info: ValidationInfo) -> str:
        unit, epsilon, clip = (info.data.get(name) for name in ("unit", "epsilon", "clip"))
        if unit in ("interaction", "user") and where != "server" and (unit, where) != ("user", "sum"):
            raise UserError(f"is for the unit client, or sum for the unit user, found {where} for {unit}")
        if (unit, where) in (("client", "server"), ("client", "sum"), ("user", "sum")) and ";" in (epsilon or ""):
            raise UserError(f"must be client for more than one epsilon, found {where} with {epsilon!r}")
        if unit == "client" and where == "sum" and clip == math.inf:
            raise UserError("must not be sum without a finite clip, since its numbers have bounds, found clip inf")
        return where

    @field_serializer("clip", when_used="json")
    def _in_json(self, clip: float) -> float | str:
        return "inf" if math.isinf(clip) else clip  # JSON has no infinity

    @model_validator(mode="after")
    def _whole(self) -> "Privacy":
        if self.active and self.noise is None and not self.epsilon:
            raise UserError("needs an epsilon to calibrate the noise to, or a noise multiplier, found neither")
        if self.active and math.isinf(self.clip) and self.noise != 0:
            raise UserError(f"clip: must be finite where there is noise, found {self.clip} with noise {self.noise}")
        if self.summed and self.noise is not None and self.noise <= 0:
            raise UserError(f"noise: must be above 0 in sums over users, found {self.noise:g}")
        return self


def budgets(text: str) -> dict[str, float]:
    """Return the budgets of a text such as `2;films=1;shop=inf`, that of all others under ""; raises UserError."""
    limits = {"": math.inf}
    for part in text.split(";") if text else []:
        name, equals, epsilon = (word.strip() for word in part.rpartition("="))
        value = number(epsilon)
        if not value > 0 or bool(equals) != bool(name):
            raise UserError(f"must be numbers above 0, or inf, such as '2;films=1', found {part!r}")
        limits[name] = value
    return limits


class SecureSum(BaseModel, frozen=True, extra="forbid"):
    """Whether the clients' answers are summed without being seen, and how many of a round's clients must stay.

    The threshold is a majority unless it is given, and never less: two disjoint sets of t clients could be told
    opposite things of who dropped out, and would together give away both secrets of a client. t is also how many
    clients the server would have to collude with, and a round survives the loss of all but t.
    """

    active: bool = Field(False, description="the server sees no client's answer, only their sum")
    threshold: int | None = Field(
        None, ge=1, description="how many clients of a round must stay until its end; a majority without it"
    )
    bound: float = Field(64.0, gt=0, allow_inf_nan=False, description="largest number that a client may send")
    carriers: int = Field(2, ge=2, description="rows that fewer clients of a round carry stay at home")

    def needed(self, clients: int) -> int:
        """Return t for a round of so many clients; raises UserError if they are too few, or t does not fit them."""
        if clients < FEWEST:
            raise UserError(f"secure: needs {FEWEST} clients in a round, found {clients}")
        t = clients // 2 + 1 if self.threshold is None else self.threshold
        if not clients < 2 * t <= 2 * clients:
            raise UserError(
                f"secure.threshold: must be a majority of a round's {clients} clients, from {clients // 2 + 1} to "
                f"{clients}, found {t}"
            )
        return t
