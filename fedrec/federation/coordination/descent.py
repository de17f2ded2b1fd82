"""Collaborative gradient descent over rounds: pseudo-gradients are combined, and a server optimiser steps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, cast, get_args

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from fedrec.components import PartText, make, one_of, read
from fedrec.errors import UserError
from fedrec.federation.coordination.halves import Held, Residuals, Sums, double
from fedrec.federation.robust import Robust, aggregate
from fedrec.keyed import scatter
from fedrec.params import Params, flatten, norm, subtract, unflatten
from fedrec.rng import generator
from fedrec.training.conflict import Kind, Method, ServerOptimiser, State, combine, weights_of


class Descent(BaseModel, frozen=True, extra="forbid"):
    """How the server makes a step of the clients' pseudo-gradients g_i = z - x_i; the defaults are FedAvg."""

    aggregator: Annotated[PartText, one_of("descent.aggregator")] = Field(
        "mean", description="weights of the pseudo-gradients: " + ", ".join(get_args(Method))
    )
    eps: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="fedmgda: how far the weights may leave the clients' own"
    )
    c: float = Field(0.5, ge=0, allow_inf_nan=False, description="cagrad: radius of the ball around the mean")
    optimiser: Kind = Field("sgd", description="server optimiser (FedOpt)")
    lr: float = Field(1.0, gt=0, allow_inf_nan=False, description="server learning rate")
    beta1: float = Field(0.9, ge=0, lt=1, description="momentum, adam, yogi, adagrad: how much of the last steps stays")
    beta2: float = Field(0.99, ge=0, lt=1, description="adam, yogi: how much of the squares stays")
    tau: float = Field(1e-3, gt=0, allow_inf_nan=False, description="adam, yogi, adagrad: added to the root of squares")

    @property
    def plain(self) -> bool:
        """Whether the step is the mean of the clients; the fields of aggregators are not read then."""
        return (self.aggregator, self.optimiser, self.lr) == ("mean", "sgd", 1.0)


@dataclass
class Stepped(Held):
    """The tie of collaborative gradient descent: z - step(sum_i w_i g_i), each row over the clients that carry it.

    Under a robust rule the step is along what it makes of the g_i instead.
    """

    additive = False
    descent: Descent
    seed: int
    robust: Robust = field(default_factory=Robust)
    rounds: int = 0
    _state: State = field(init=False)

    def __post_init__(self) -> None:
        e = self.descent
        self.optimiser = ServerOptimiser(e.optimiser, e.lr, e.beta1, e.beta2, e.tau)
        self._state = self.optimiser.start(flatten(self.z))

    def update(self, answers: Mapping[str, Params], gaps: Mapping[str, float], subtotals: Sums = ()) -> Residuals:
        """See Held."""
        self.rounds += 1
        before = {name: self.part(name) for name in answers}
        rows = [
            scatter(subtract(double(before[name]), double(x)), self.carriers[name], self.z)
            for name, x in answers.items()
        ]
        g, mask = (torch.stack([flatten(both[i]) for both in rows]) for i in (0, 1))
        carries = None if bool(mask.all()) else mask
        preference = torch.tensor([self.carriers[name].weight for name in answers], dtype=torch.float64)
        if self.robust.active:
            d = aggregate(g, preference, self.robust, carries)
        else:
            d = self.direction(g, preference, carries)
        self.step(d)
        primal = float(g.square().sum()) ** 0.5
        moved = sum(norm(subtract(self.part(name), before[name])) ** 2 for name in answers) ** 0.5
        return Residuals(primal, self.rho * moved, self.rho)

    def direction(self, g: Tensor, p: Tensor, carries: Tensor | None) -> Tensor:
        """Return the direction d [P] that the aggregator makes of G [K, P] and the weights p [K].

        One of the user's own is a component with `combine(g, p, carries)`; `carries` [K, P] is None where all carry
        all. Raises UserError for what is no direction.
        """
        e, part = self.descent, read(self.descent.aggregator)
        if not part.own:
            order = generator(self.seed, "pcgrad", self.rounds)
            w = weights_of(g @ g.T, cast(Method, e.aggregator), p, eps=e.eps, c=e.c, order=order)
            return combine(g, w, carries)
        d = make("descent.aggregator", e.aggregator).combine(g, p, carries)
        if not isinstance(d, Tensor) or d.shape != g.shape[1:] or not bool(d.isfinite().all()):
            shape = list(d.shape) if isinstance(d, Tensor) else type(d).__name__
            raise UserError(f"descent.aggregator: {part.use} must return {g.shape[1]} finite numbers, found {shape}")
        return d.double()

    def step(self, d: Tensor) -> None:
        """Let the server optimiser step along d [P]."""
        vector, self._state = self.optimiser.step(flatten(self.z), d, self._state)
        self.z = {name: value.float() for name, value in unflatten(vector, self.z).items()}

    def move(self, change: Params) -> None:
        """See Tie."""
        self.rounds += 1
        self.step(-flatten(change))

    def state(self) -> Params:
        """See Held."""
        kept = {f"optimiser/{place}": value for place, value in enumerate(self._state)}
        return {"rounds": torch.tensor(self.rounds), **kept, **{f"z/{name}": value for name, value in self.z.items()}}

    def restore(self, state: Params) -> None:
        """See Held."""
        self.rounds, self.z = int(state["rounds"]), {name: state[f"z/{name}"] for name in self.z}
        self._state = tuple(state[f"optimiser/{place}"] for place in range(len(self._state)))
