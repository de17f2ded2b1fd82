"""Robust aggregation: combinations of the clients' updates that a few arbitrary ones among them cannot move far.

Updates are stacked as G [K, P] in float64; an entry outside the bool mask `carries` [K, P] does not count.
"""

import math
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from fedrec.errors import UserError
from fedrec.training.conflict import combine


class Robust(BaseModel, frozen=True, extra="forbid"):
    """Which robust rule makes one update of the clients'; the default is none, their weighted mean.

    Median, trimmed mean and Krum count every client once: a weight is what a client says of itself.
    """

    kind: Literal["none", "median", "trimmed-mean", "krum", "multi-krum", "clip"] = Field(
        "none", description="rule that a few arbitrary clients cannot move far"
    )
    beta: float = Field(0.2, ge=0, lt=0.5, description="trimmed-mean: fraction that is cut off at either end")
    f: int = Field(1, ge=0, description="krum, multi-krum: how many clients may be arbitrary")
    m: int | None = Field(None, ge=1, description="multi-krum: how many clients are averaged; all but f")
    norm: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="clip: bound of a client's update; the median of their norms"
    )

    @property
    def active(self) -> bool:
        """Whether there is a rule."""
        return self.kind != "none"

    @property
    def needed(self) -> int:
        """How many updates the rule's guarantee takes: 2 f + 3 for Krum (arXiv 1703.02757, Proposition 4.2)."""
        return 2 * self.f + 3 if self.kind in ("krum", "multi-krum") else 0

    def check(self, clients: int) -> None:
        """Raise UserError if the rule does not fit the number of clients in a round."""
        if clients < self.needed:
            raise UserError(
                f"robust.f: must be at most (clients in a round - 3) / 2 for {self.kind}, found {self.f} for {clients}"
            )
        if self.kind == "multi-krum" and self.m is not None and self.m > clients - self.f:
            raise UserError(f"robust.m: must be at most {clients - self.f}, the clients but f, found {self.m}")


def aggregate(g: Tensor, p: Tensor, rule: Robust, carries: Tensor | None = None) -> Tensor:
    """Return the update [P] that a rule makes of G [K, P] and the weights p [K].

    - median, trimmed-mean (arXiv 1803.01498): coordinate by coordinate over those that carry it.
    - krum, multi-krum (arXiv 1703.02757): the mean of the one or m clients nearest to their neighbours.
    - clip: the weighted mean of g_i min(1, C / |g_i|), with C given or the median of the norms.

    An entry that nobody carries is 0. Raises UserError for the rule none, which `gradients` has.
    """
    g = g.double()
    if rule.kind == "median":
        return trimmed_mean(g, 0.5, carries)
    if rule.kind == "trimmed-mean":
        return trimmed_mean(g, rule.beta, carries)
    if rule.kind in ("krum", "multi-krum"):
        k = len(g)
        m = 1 if rule.kind == "krum" else min(rule.m or max(1, k - rule.f), k)
        w = torch.zeros(k, dtype=torch.float64)
        w[krum_scores(g, rule.f, carries).argsort(stable=True)[:m]] = 1 / m
        return combine(g, w, carries)
    if rule.kind == "clip":
        return combine(clip(g, rule.norm, carries), p / p.sum(), carries)
    raise UserError("robust.kind: must be a rule, found 'none'")


def trimmed_mean(g: Tensor, beta: float, carries: Tensor | None = None) -> Tensor:
    """Return the mean of every column of G [K, P] without its t smallest and t largest entries.

    t = ceil(beta k) over the k clients that carry the column, so that beta k arbitrary ones cannot pass, and at most
    (k - 1) // 2: for beta = 1/2 that is the median, the mean of the middle two for an even k.
    """
    here = torch.ones_like(g, dtype=torch.bool) if carries is None else carries
    ordered = g.masked_fill(~here, math.inf).sort(dim=0).values
    k = here.sum(0)
    t = torch.minimum((beta * k - 1e-9).ceil().long(), (k - 1) // 2).clamp(min=0)
    rank = torch.arange(len(g))[:, None]
    kept = (rank >= t) & (rank < k - t)
    return ordered.masked_fill(~kept, 0.0).sum(0) / kept.sum(0).clamp(min=1)


def krum_scores(g: Tensor, f: int, carries: Tensor | None = None) -> Tensor:
    """Return s [K], s_i = sum of |g_i - g_j|^2 over the K - f - 2 clients j nearest to i (arXiv 1703.02757, section 4).

    Clients that carry different entries are compared by the mean square over those that both carry, of which the
    paper's distance is a multiple where all carry all; two that have none in common are infinitely far apart.
    """
    k = len(g)
    here = torch.ones_like(g) if carries is None else carries.double()
    g = g * here
    norms = g.square() @ here.T
    common = here @ here.T
    squared = (norms + norms.T - 2 * g @ g.T).clamp(min=0) / common
    squared = squared.masked_fill((common == 0) | torch.eye(k, dtype=torch.bool), math.inf)
    neighbours = min(max(1, k - f - 2), k - 1)
    return squared.sort(dim=1).values[:, :neighbours].sum(1)


def clip(g: Tensor, bound: float | None = None, carries: Tensor | None = None) -> Tensor:
    """Return the rows of G [K, P] scaled down to the norm `bound`, or to the median of their norms."""
    norms = (g if carries is None else g.masked_fill(~carries, 0.0)).norm(dim=1)
    limit = trimmed_mean(norms[:, None], 0.5)[0] if bound is None else torch.tensor(bound, dtype=torch.float64)
    return g * torch.where(norms > limit, limit / norms, 1.0)[:, None]
