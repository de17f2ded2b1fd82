"""Drift correction: what is done about clients whose local optima lie apart, or that make unequal numbers of steps."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from fedrec.components import PartText, make, one_of, read
from fedrec.errors import UserError
from fedrec.keyed import Carrier, gather, mean
from fedrec.params import Params, add, subtract
from fedrec.sharing import ContractError

PERSONAL = ("none", "ditto", "apfl", "tuned")


class Companion(Protocol):
    """A personal model of the user's own."""

    def share(self, name: str) -> float:
        """Return the share a, from 0 to 1, of the personal parameter in a v + (1 - a) w, which is recommended with."""


class Drift(BaseModel, frozen=True, extra="forbid"):
    """What is done about the drift of local training; the defaults are nothing."""

    correction: Literal["none", "scaffold"] = Field(
        "none", description="control variates in the local gradients; needs optimiser sgd"
    )
    normalise: bool = Field(False, description="scale every client's change to the same number of steps (FedNova)")
    personal: Annotated[PartText, one_of("drift.personal")] = Field(
        "none",
        description="a model that every client keeps to itself and recommends with: none, ditto, apfl, your own, or "
        "tuned, what its last training made",
    )
    weight: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="lambda of a personal model's pull to z; apfl: alpha, its share"
    )

    @property
    def second(self) -> bool:
        """Whether a client trains a second model."""
        return self.personal not in ("none", "tuned")

    @property
    def pull(self) -> float:
        """Lambda of the second model's pull to z, lambda/2 |v - z|^2."""
        return self.weight if self.second and self.personal != "apfl" else 0.0

    def shares(self, names: Iterable[str]) -> dict[str, float]:
        """Return the second model's share of every parameter."""
        if not read(self.personal).own:
            return dict.fromkeys(names, self.weight if self.personal == "apfl" else 1.0)
        companion: Companion = make("drift.personal", self.personal)
        return {name: companion.share(name) for name in names}

    @property
    def counted(self) -> bool:
        """Whether the clients tell their numbers of local steps."""
        return self.normalise or self.correction == "scaffold"

    @model_validator(mode="after")
    def _share(self) -> "Drift":
        if self.personal == "apfl" and not 0 < self.weight <= 1:
            raise UserError(f"drift.weight: must be above 0 and at most 1 for apfl, found {self.weight}")
        return self


@dataclass(frozen=True)
class Own:
    """What a client remembers beside its private parameters, never sent.

    Its personal model, its control variate c_i, the state of its loss weighting, and what its codec remembers.
    """

    personal: Mapping[str, Tensor] | None = None
    control: Mapping[str, Tensor] | None = None  # float64
    weighting: Mapping[str, Tensor] | None = None  # float64
    memory: Mapping[str, Tensor] | None = None

    def shift(self, c: Params | None) -> Params | None:
        """Return c - c_i, what SCAFFOLD adds to a local gradient; None without it.

        Raises ContractError if the server's c is missing, or came to a client that does not take part in SCAFFOLD.
        """
        if (c is None) != (self.control is None):
            rule, state = ("not be sent", "one") if self.control is None else ("be sent", "missing")
            raise ContractError(f"record control: must {rule}, found {state}")
        if c is None or self.control is None:
            return None
        return {name: (value.double() - self.control[name]).to(value.dtype) for name, value in c.items()}


def normalise(
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


def control_change(c: Params, z: Params, x: Params, steps: float, lr: float) -> Params:
    """Return c_i+ - c_i = (z - x_i) / (K lr) - c after K local SGD steps.

    SCAFFOLD (arXiv 1910.06378), eq. 4, option II. Everything in it travels anyway, so that the server computes it too.
    Without a step it is zero. float64.
    """
    if not steps:
        return {name: torch.zeros_like(value, dtype=torch.float64) for name, value in x.items()}
    return {name: (z[name].double() - value.double()) / (steps * lr) - c[name].double() for name, value in x.items()}


@dataclass
class Control:
    """The server's control variate c, the weighted mean of all clients' c_i, each row over those that carry it.

    With equal weights that is c += 1/N sum_{i in S} (c_i+ - c_i) of SCAFFOLD (arXiv 1910.06378, eq. 5); the weights
    are those of the mean that makes z.
    """

    carriers: dict[str, Carrier]
    lr: float
    c: Params = field(init=False)

    def __post_init__(self) -> None:
        self.c = self._mean({})

    def part(self, client: str) -> Params:
        """Return a client's rows of c, in the dtypes that travel."""
        who = self.carriers[client]
        return {name: value.to(who.like[name].dtype) for name, value in gather(self.c, who).items()}

    def update(self, answers: Mapping[str, Params], z: Mapping[str, Params], steps: Mapping[str, float]) -> None:
        """Follow the clients' c_i, given their x_i, the z_i that they started from, and their numbers of steps."""
        changes = {
            name: control_change(self.part(name), z[name], x, steps[name], self.lr) for name, x in answers.items()
        }
        self.c = add(self.c, self._mean(changes))

    def _mean(self, changes: Mapping[str, Params]) -> Params:
        still = {name: {n: torch.zeros_like(v) for n, v in who.like.items()} for name, who in self.carriers.items()}
        pairs = [(who, changes.get(name, still[name])) for name, who in self.carriers.items()]
        return mean(pairs, dtype=torch.float64)
