"""Implicit ALS of platforms that have users in common and items of their own (`fedrec.models.ials`).

The factors of users are parameters that all clients share, row by row, and a consensus with duals ties them
(`fedrec.federation.coordination.halves`): a client minimises f_i(P, Y_i) + rho/2 |P - Z + U_i|^2 by sweeps that solve
for its users and for its items in turn. The item factors Y_i never leave it. It is scored with z_u . y_i.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedrec.data.types import Floats, Keys
from fedrec.models.factors import OWN_FACTORS, FactorRecommender
from fedrec.models.ials import Tie, begin, item_sums, objective, solve_items, solve_users
from fedrec.params import Params

OWN_ITEMS = "item_factors"  # which a client keeps


@dataclass(frozen=True)
class UserFactorRecommender(FactorRecommender):
    """A recommender whose parameters are user_factors [users, d] and item_factors [items, d], in float64."""

    def shapes(self, users: int, items: int, tasks: Iterable[str]) -> Params:
        """See Recommender."""
        sizes = {OWN_ITEMS: (items, self.ials.d), OWN_FACTORS: (users, self.ials.d)}
        return {name: torch.empty(size, device="meta", dtype=torch.float64) for name, size in sizes.items()}

    def init(self, seed: int, users: Keys, items: Keys, offsets: Mapping[str, float | Floats]) -> Params:
        """Return the seeded factors of users, a row of which depends on its user's key, and items that are not known.

        So all clients that have a user begin with the same, and solve for items of one space.
        """
        rows = begin(self.ials, seed, [str(key) for key in users])
        unknown = torch.zeros(len(items), self.ials.d, dtype=torch.float64)
        return {OWN_ITEMS: unknown, OWN_FACTORS: torch.from_numpy(rows)}

    def approached(self, params: Mapping[str, Tensor], rho: float, sweeps: int) -> tuple[Params, float]:
        """Return the parameters after sweeps whose users rho/2 |P - P_0|^2 pulls to those in `params`, and the loss.

        Items that are not known yet are solved for first. The loss is what is minimised, without the pull.
        """
        liked, target, items = self.liked(self.learnt), params[OWN_FACTORS].numpy(), params[OWN_ITEMS].numpy()
        users = target
        if not items.any():
            items = solve_items(self.ials, item_sums(liked, target))
        for _ in range(sweeps):
            users = solve_users(self.ials, liked, items, Tie(target, rho))
            items = solve_items(self.ials, item_sums(liked, users))
        found = {OWN_ITEMS: torch.from_numpy(items), OWN_FACTORS: torch.from_numpy(users)}
        return found, objective(self.ials, liked, users, items)

    def read(self, params: Params, *items: Tensor | None) -> "UserFactorRecommender":
        """Return the recommender with its factors at hand."""
        return replace(self, found=(params[OWN_FACTORS].cpu().numpy(), params[OWN_ITEMS].cpu().numpy()))
