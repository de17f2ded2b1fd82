"""Convex sets, and an operator composed with one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrec.coordination.operators import Clusters, Mean, Operator, Vectors


@dataclass(frozen=True)
class Ball:
    """The set |z| <= radius."""

    radius: float

    def __call__(self, z: Tensor) -> Tensor:
        """Return the projection of z."""
        return z * (self.radius / max(float(z.norm()), self.radius))


@dataclass(frozen=True)
class Box:
    """The set |z_j| <= bound for every coordinate."""

    bound: float

    def __call__(self, z: Tensor) -> Tensor:
        """Return the projection of z."""
        return z.clamp(-self.bound, self.bound)


ConvexSet = Ball | Box


@dataclass(frozen=True)
class Within(Operator):
    """An operator composed with a convex set: every z_i also lies in `convex`.

    Consensus projects its mean, which is exact. Else the two proximal maps alternate with Dykstra's corrections, which
    converge to the proximal point of the sum (arXiv 0810.4117, Theorem 3.3): no mere composition. They take tens to
    hundreds of iterations, more the smaller the angle between the two sets; the result lies in `convex` in any case.
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
    z, q, r = v, [torch.zeros_like(one) for one in v], [torch.zeros_like(one) for one in v]
    for _ in range(iterations):
        y = inner([a + b for a, b in zip(z, q, strict=True)])
        q = [a + b - c for a, b, c in zip(z, q, y, strict=True)]
        new = [convex(a + b) for a, b in zip(y, r, strict=True)]
        r = [a + b - c for a, b, c in zip(y, r, new, strict=True)]
        moved = max(float((a - b).abs().max()) for a, b in zip(z, new, strict=True))
        apart = max(float((a - b).abs().max()) for a, b in zip(y, new, strict=True))
        z = new
        if max(moved, apart) <= tolerance * (1 + max(float(one.abs().max()) for one in z)):
            break
    return z
