"""The tie of clients that send sums and are sent weights: a coupling of quadratics, solved anew from all sums.

Client i's objective is f_i(W) = 1/2 <W, (G_i + R_i) W> - <C_i, W> of its sums G_i and C_i over its users. The ridges
R_i are shares of that of the total, so that consensus is what the total alone gives. Its price mu_i makes it
(1 + mu_i) f_i.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fedrec.federation.coordination.ascent import Solution, solve
from fedrec.federation.coordination.budget import Budget
from fedrec.federation.coordination.coupling import Coupling
from fedrec.federation.coordination.halves import Held, Residuals, Sums, double
from fedrec.federation.coordination.quadratic import Certificate, Objective, Problem, Promise, certify
from fedrec.params import Params, add
from fedrec.sharing import CROSS, GRAM, SCALE, WEIGHT
from fedrec.subspace import square

SMALLEST = 1e-6  # share of the ridge that a client has at least, so that every objective has one minimiser


@dataclass(frozen=True)
class Penalty:
    """What of a model by sums decides its solution: a ridge [n], and the scale [n] of columns, of the diagonal of G."""

    ridge: Callable[[Tensor], Tensor]
    scale: Callable[[Tensor], Tensor]
    hollow: bool  # whether W has a zero diagonal
    step: float = 0.0  # by which a client's price grows with what it is above its budget


@dataclass
class Solved(Held):
    """Every client's sums, and the W_i that the coupling makes of them.

    A client is sent sums.weight [n, n], its W_i, and sums.scale [n], by which it multiplies the columns.
    """

    coupling: Coupling = field(kw_only=True)
    penalty: Penalty = field(kw_only=True)
    prices: dict[str, float] = field(default_factory=dict, kw_only=True)
    proof: Certificate | None = field(default=None, init=False)
    sums: dict[str, Params] = field(default_factory=dict, init=False)
    weights: dict[str, Tensor] = field(default_factory=dict, init=False)
    scale: Tensor = field(init=False)

    def __post_init__(self) -> None:
        n = len(next(iter(self.carriers.values())).like[CROSS])
        for name, who in self.carriers.items():
            self.sums[name] = {n: torch.zeros(v.shape, dtype=torch.float64) for n, v in who.like.items()}
            self.weights[name] = torch.zeros(n, n, dtype=torch.float64)
        self.scale = torch.ones(n, dtype=torch.float64)
        self.z = self.whole()

    def part(self, client: str) -> Params:
        """See Held."""
        dtype = self.carriers[client].like[CROSS].dtype
        return {SCALE: self.scale.to(dtype), WEIGHT: self.weights[client].to(dtype)}

    def whole(self) -> Params:
        """See Held."""
        dtype = next(iter(self.carriers.values())).like[CROSS].dtype
        mean = torch.stack(list(self.weights.values())).mean(0)
        return {SCALE: self.scale.to(dtype), WEIGHT: mean.to(dtype)}

    def update(self, answers: Mapping[str, Params], gaps: Mapping[str, float], subtotals: Sums = ()) -> Residuals:
        """See Held; the residuals are the largest breach of a constraint and that of the Lagrangian's gradient."""
        for name, increment in answers.items():
            self.sums[name] = add(self.sums[name], double(increment))
        return self.tie()

    def charge(self, over: Mapping[str, float]) -> dict[str, float]:
        """See Held."""
        budget = Budget(0.0, self.penalty.step)
        self.prices |= {name: budget.multiplier(self.prices.get(name, 0.0), excess) for name, excess in over.items()}
        return dict(self.prices)

    def tie(self) -> Residuals:
        """Solve for every client's W_i."""
        objectives, unit, self.scale = self.objectives()
        coupling = self.coupling.model_copy(update={"strength": self.coupling.strength * unit})
        p = torch.tensor([who.weight for who in self.carriers.values()], dtype=torch.float64)
        prices = [self.prices.get(name, 0.0) for name in self.carriers]
        priced = tuple(one.times(1 + mu) for one, mu in zip(objectives, prices, strict=True))
        operator = coupling.exact(list(self.carriers))
        problem = Problem(priced, p, operator, (None,) * len(p), self.penalty.hollow)
        found = solve(problem)
        self.weights = dict(zip(self.carriers, found.w, strict=True))
        self.proof = as_promised(problem, objectives, prices, found)
        self.z = self.whole()
        return Residuals(self.proof.violation, self.proof.residual, self.rho)

    def objectives(self) -> tuple[tuple[Objective, ...], float, Tensor]:
        """Return the clients' objectives, the mean diagonal of a client's G, and the scale of the columns."""
        grams = [torch.from_numpy(square(one[GRAM].numpy())) for one in self.sums.values()]
        diagonal = torch.stack([gram.diagonal() for gram in grams]).sum(0)
        ridge, total = self.penalty.ridge(diagonal), max(float(diagonal.sum()), 1e-300)
        shares = torch.stack([gram.diagonal().sum() for gram in grams]).div(total).clamp(min=SMALLEST)
        shares = shares / shares.sum()
        own = tuple(
            Objective(gram, one[CROSS], share * ridge)
            for gram, one, share in zip(grams, self.sums.values(), shares, strict=True)
        )
        return own, total / len(diagonal) / len(grams), self.penalty.scale(diagonal)

    def state(self) -> Params:
        """See Held; the tensors of clients are under KIND/PLACE/NAME, with the client's place in their order."""
        found = {"scale": self.scale}
        for place, name in enumerate(self.carriers):
            found |= {f"sums/{place}/{key}": value for key, value in self.sums[name].items()}
            found[f"weight/{place}"] = self.weights[name]
            found[f"price/{place}"] = torch.tensor(self.prices.get(name, 0.0), dtype=torch.float64)
        return found

    def restore(self, state: Params) -> None:
        """See Held."""
        self.scale = state["scale"]
        for place, name in enumerate(self.carriers):
            self.sums[name] = {key: state[f"sums/{place}/{key}"] for key in self.sums[name]}
            self.weights[name] = state[f"weight/{place}"]
            self.prices[name] = float(state[f"price/{place}"])
        self.z = self.whole()

    def certificate(self) -> dict[str, Any]:
        """Return the certificate of the last solution, as JSON can hold it."""
        return {} if self.proof is None else told(self.proof, list(self.carriers))


def as_promised(
    problem: Problem, objectives: tuple[Objective, ...], prices: Sequence[float], found: Solution
) -> Certificate:
    """Return what proves a solution under prices the best that keeps f_i(W_i) to what it is, for clients with a price.

    By the conditions of Karush, Kuhn and Tucker their prices are the multipliers.
    """
    kept = tuple(
        Promise(one, one.value(w)) if mu else None for one, w, mu in zip(objectives, found.w, prices, strict=True)
    )
    at = replace(found.certificate.multipliers, mu=torch.tensor(prices, dtype=torch.float64))
    return certify(replace(problem, objectives=objectives, promises=kept), found.w, at)


def told(proof: Certificate, clients: list[str]) -> dict[str, Any]:
    """Return a certificate by name: what the objective is, what is proved that it cannot be below, and the prices."""
    found: dict[str, Any] = {
        "primal": proof.primal,
        "dual": proof.dual,
        "gap": proof.gap,
        "relative_gap": proof.gap / max(proof.scale, 1e-300),
        "violation": proof.violation,
        "residual": proof.residual,
    }
    for what, values in (("budget", proof.multipliers.mu), ("ball", proof.multipliers.nu)):
        found[f"multipliers_{what}"] = dict(zip(clients, values.tolist(), strict=True))
    return found
