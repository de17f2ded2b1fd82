"""Server operators: Z = prox_{h/rho}(V), or the projection of V on a constraint, over the clients that carry a block.

An operator takes the clients' v_i as vectors and their weights p, and returns the z_i. With weights, the metric is
sum_i p_i |z_i - v_i|^2.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedrec.errors import UserError

Vectors = list[Tensor]  # one vector [d_i] in float64 for each client


def above(name: str, value: float, least: float = 0.0, strict: bool = True) -> None:
    """Raise UserError if a number is not finite, below `least`, or at it where the rule is `strict`."""
    if not math.isfinite(value) or value < least or (strict and value == least):
        raise UserError(f"{name}: must be finite and {'>' if strict else '>='} {least:g}, found {value}")


class Operator(Protocol):
    """Ties the clients' blocks together."""

    def __call__(self, v: Vectors, p: Tensor, rho: float) -> Vectors:
        """Return the z_i for the v_i, weights p [n] and the penalty rho."""
        ...

    def restrict(self, members: Sequence[int]) -> "Operator":
        """Return the operator for a block that only some of the clients carry, given their positions."""
        return self


@dataclass(frozen=True)
class Mean(Operator):
    """Consensus: z_i = sum_k p_k v_k / sum_k p_k."""

    def __call__(self, v: Vectors, p: Tensor, rho: float) -> Vectors:
        """See Operator."""
        z = mean_of(v, p)
        return [z for _ in v]


@dataclass(frozen=True)
class Clusters(Operator):
    """Consensus inside each cluster; `groups[i]` is the cluster of client i; raises UserError for another number."""

    groups: tuple[int, ...]

    def __call__(self, v: Vectors, p: Tensor, rho: float) -> Vectors:
        """See Operator."""
        fits("groups", len(self.groups), v)
        z: dict[int, Tensor] = {}
        for group in set(self.groups):
            inside = [i for i, g in enumerate(self.groups) if g == group]
            z[group] = mean_of([v[i] for i in inside], p[inside])
        return [z[group] for group in self.groups]

    def restrict(self, members: Sequence[int]) -> "Clusters":
        """See Operator."""
        return Clusters(tuple(self.groups[i] for i in members))


@dataclass(frozen=True)
class MeanRegularised(Operator):
    """h(Z) = strength/2 sum_i p_i |z_i - z_mean|^2 (MR-MTL, arXiv 2206.07902): pull towards the mean, no consensus.

    z_i = v_mean + rho / (rho + strength) (v_i - v_mean). Rounds without duals end at the pull of a strength
    rho strength / (rho + strength). Raises UserError for a strength that is not finite and >= 0.
    """

    strength: float

    def __post_init__(self) -> None:
        above("strength", self.strength, strict=False)

    def __call__(self, v: Vectors, p: Tensor, rho: float) -> Vectors:
        """See Operator."""
        centre, kept = mean_of(v, p), rho / (rho + self.strength)
        return [centre + kept * (x - centre) for x in v]


@dataclass(frozen=True)
class Graph(Operator):
    """h(Z) = strength/2 sum_{(i,k) in edges} w_ik |z_i - z_k|^2 = strength/2 tr(Z' Lap Z) (as MOCHA, arXiv 1705.10467).

    Z = (rho P + strength Lap)^-1 rho P V with P = diag(p). `weights` are the w_ik in the order of the edges, 1 without
    them. A block that some clients do not carry keeps the edges between those that do. Raises UserError for an edge
    out of range or of a client to itself, and for a strength or a weight below 0.
    """

    clients: int
    edges: tuple[tuple[int, int], ...]
    strength: float
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        above("strength", self.strength, strict=False)
        for edge in self.edges:
            if len(edge) != 2 or edge[0] == edge[1] or not all(0 <= end < self.clients for end in edge):
                raise UserError(f"edges: must be pairs of two of the clients 0 to {self.clients - 1}, found {edge}")
        if self.weights is not None and len(self.weights) != len(self.edges):
            raise UserError(f"weights: must be one for each of the {len(self.edges)} edges, found {len(self.weights)}")
        for weight in self.weights or ():
            above("weights", weight, strict=False)

    def __call__(self, v: Vectors, p: Tensor, rho: float) -> Vectors:
        """See Operator."""
        fits("clients", self.clients, v)
        metric = torch.diag(rho * p)
        return list(torch.linalg.solve(metric + self.laplacian(), metric @ torch.stack(v)))

    def laplacian(self) -> Tensor:
        """Return strength times the Laplacian [clients, clients]."""
        lap = torch.zeros(self.clients, self.clients, dtype=torch.float64)
        for (i, k), weight in zip(self.edges, self.weights or [1.0] * len(self.edges), strict=True):
            lap[i, i] += weight
            lap[k, k] += weight
            lap[i, k] -= weight
            lap[k, i] -= weight
        return self.strength * lap

    def restrict(self, members: Sequence[int]) -> "Graph":
        """See Operator."""
        place = {client: position for position, client in enumerate(members)}
        kept = [at for at, (i, k) in enumerate(self.edges) if i in place and k in place]
        edges = tuple((place[self.edges[at][0]], place[self.edges[at][1]]) for at in kept)
        weights = None if self.weights is None else tuple(self.weights[at] for at in kept)
        return Graph(len(members), edges, self.strength, weights)


@dataclass(frozen=True)
class Mixture(Operator):
    """A linear tie coordinate by coordinate: z_i = sum_k b_ik y_k, every client a fixed mixture of prototypes y_k.

    Z = B (B' P B)^+ B' P V, the projection on the range of B [n, prototypes]. Raises UserError for rows that are not
    finite or differ in length.
    """

    mixing: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if not self.mixing or not self.mixing[0] or len({len(row) for row in self.mixing}) != 1:
            raise UserError(
                f"mixing: must be rows of one length > 0, found lengths {[len(row) for row in self.mixing]}"
            )
        for row in self.mixing:
            if not all(math.isfinite(value) for value in row):
                raise UserError(f"mixing: must be finite, found {row}")

    def __call__(self, v: Vectors, p: Tensor, rho: float) -> Vectors:
        """See Operator."""
        fits("mixing", len(self.mixing), v)
        root = p.sqrt()[:, None]
        scaled = root * torch.tensor(self.mixing, dtype=torch.float64)
        return list(scaled @ torch.linalg.pinv(scaled) @ (root * torch.stack(v)) / root)

    def restrict(self, members: Sequence[int]) -> "Mixture":
        """See Operator."""
        return Mixture(tuple(self.mixing[i] for i in members))


@dataclass(frozen=True)
class LinearTie(Operator):
    """x_i = A_i theta_i = B_i y for matrices B_i [d_i, m]: the vectors may differ in length.

    Stacked, Z = B (B' P B)^+ B' P V. The maps A_i are the clients' exchanges (`solve`,
    `fedrec.experiment.channel`). A v_i of r d_i entries is r rows of a table, each tied on its own.
    """

    maps: tuple[Tensor, ...]

    def __call__(self, v: Vectors, p: Tensor, rho: float) -> Vectors:
        """See Operator."""
        widths = [len(b) for b in self.maps]
        rows = torch.cat([x.reshape(-1, d) for x, d in zip(v, widths, strict=True)], dim=1)  # [r, sum d_i]
        root = torch.cat([weight.sqrt().expand(d) for weight, d in zip(p, widths, strict=True)])
        scaled = root[:, None] * torch.cat(list(self.maps)).double()
        z = (root * rows) @ torch.linalg.pinv(scaled).T @ scaled.T / root
        return [part.reshape(-1) for part in z.split(widths, dim=1)]

    def restrict(self, members: Sequence[int]) -> "LinearTie":
        """See Operator."""
        return LinearTie(tuple(self.maps[i] for i in members))


@dataclass(frozen=True)
class SumTo(Operator):
    """sum_i z_i = total (a shared resource): z_i = v_i - (sum_k v_k - total) / (p_i sum_k 1/p_k).

    Raises UserError for a total that is not finite.
    """

    total: float | Tensor = 0.0

    def __post_init__(self) -> None:
        if not bool(torch.as_tensor(self.total).isfinite().all()):
            raise UserError(f"total: must be finite, found {self.total}")

    def __call__(self, v: Vectors, p: Tensor, rho: float) -> Vectors:
        """See Operator."""
        excess, share = torch.stack(v).sum(0) - self.total, (1 / p) / (1 / p).sum()
        return [x - part * excess for x, part in zip(v, share, strict=True)]


class Projects(Protocol):
    """A constraint of the user's own."""

    def project(self, v: Vectors, p: Tensor, rho: float, clients: tuple[str, ...]) -> Vectors:
        """Return the z_i for the v_i of clients by name, their weights p [n] and the penalty rho."""
        ...


@dataclass(frozen=True)
class Constraint(Operator):
    """A constraint of the user's own, over the clients that carry a block; raises UserError for what are no z_i."""

    projects: Projects
    name: str
    clients: tuple[str, ...]

    def __call__(self, v: Vectors, p: Tensor, rho: float) -> Vectors:
        """See Operator."""
        z = list(self.projects.project([x.clone() for x in v], p, rho, self.clients))
        if [x.shape for x in z] != [x.shape for x in v] or not all(bool(x.isfinite().all()) for x in z):
            raise UserError(f"coupling.kind: {self.name} must return a finite z_i for each v_i, in its shape")
        return [x.double() for x in z]

    def restrict(self, members: Sequence[int]) -> "Constraint":
        """See Operator."""
        return Constraint(self.projects, self.name, tuple(self.clients[i] for i in members))


def fits(name: str, told: int, v: Vectors) -> None:
    """Raise UserError if an operator was told another number of clients than there are v_i."""
    if told != len(v):
        raise UserError(f"{name}: must be of the {len(v)} clients that are tied, found {told}")


def mean_of(v: Vectors, p: Tensor) -> Tensor:
    """Return sum_k p_k v_k / sum_k p_k, summed in order."""
    total = torch.zeros_like(v[0])
    for weight, x in zip(p, v, strict=True):
        total = total + weight * x
    return total / p.sum()


@dataclass(frozen=True)
class Ball:
    """The set |z| <= radius; raises UserError for a radius that is not finite and above 0."""

    radius: float

    def __post_init__(self) -> None:
        above("radius", self.radius)

    def __call__(self, z: Tensor) -> Tensor:
        """Return the projection of z."""
        return z * (self.radius / max(float(z.norm()), self.radius))


@dataclass(frozen=True)
class Box:
    """The set |z_j| <= bound for every coordinate; raises UserError for a bound that is not finite and above 0."""

    bound: float

    def __post_init__(self) -> None:
        above("bound", self.bound)

    def __call__(self, z: Tensor) -> Tensor:
        """Return the projection of z."""
        return z.clamp(-self.bound, self.bound)


ConvexSet = Ball | Box


@dataclass(frozen=True)
class Within(Operator):
    """An operator composed with a convex set: every z_i also lies in `convex`.

    Consensus projects its mean, which is exact; where clients carry unlike rows, `tie` finds the multipliers of their
    balls. Else the two proximal maps alternate with Dykstra's corrections, which converge to the proximal point of the
    sum (arXiv 0810.4117, Theorem 3.3): no mere composition. They take tens to hundreds of iterations, more the smaller
    the angle between the two sets; the result lies in `convex` in any case.
    """

    inner: Operator
    convex: ConvexSet
    iterations: int = 10_000
    tolerance: float = 1e-12

    def __call__(self, v: Vectors, p: Tensor, rho: float) -> Vectors:
        """See Operator."""
        return proximal_point(
            lambda w: self.inner(w, p, rho), self.convex, v, self.exact, self.iterations, self.tolerance
        )

    @property
    def exact(self) -> bool:
        """Whether the projection of the inner result is the answer."""
        return isinstance(self.inner, Mean | Clusters)

    def restrict(self, members: Sequence[int]) -> "Within":
        """See Operator."""
        return Within(self.inner.restrict(members), self.convex, self.iterations, self.tolerance)


def proximal_point(
    inner: Callable[[Vectors], Vectors], convex: ConvexSet, v: Vectors, exact: bool, iterations: int, tolerance: float
) -> Vectors:
    """Return prox of (inner's function + the indicator of `convex`) at v."""
    if exact:
        return [convex(z) for z in inner(v)]
    z, q, r = v, [torch.zeros_like(x) for x in v], [torch.zeros_like(x) for x in v]
    for _ in range(iterations):
        y = inner([a + b for a, b in zip(z, q, strict=True)])
        q = [a + b - c for a, b, c in zip(z, q, y, strict=True)]
        new = [convex(a + b) for a, b in zip(y, r, strict=True)]
        r = [a + b - c for a, b, c in zip(y, r, new, strict=True)]
        moved = max(float((a - b).abs().max()) for a, b in zip(z, new, strict=True))
        apart = max(float((a - b).abs().max()) for a, b in zip(y, new, strict=True))
        z = new
        if max(moved, apart) <= tolerance * (1 + max(float(x.abs().max()) for x in z)):
            break
    return z
