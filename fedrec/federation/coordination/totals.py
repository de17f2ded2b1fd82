"""Ties of sums: the total of what clients send, and a subspace that is found by totals."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedrec.federation.coordination.halves import Held, Residuals, Sums
from fedrec.keyed import sums, total_of
from fedrec.params import Params
from fedrec.sharing import ANSWER, BASIS, DIAGONAL, EXTENT, INNER, RIDGE
from fedrec.sparse import entries, from_places, places, plus, thin
from fedrec.subspace import Search, advance, metric, triangle


class Total(Held):
    """The sum of all that clients ever sent: answers are increments, in any order, and a missing one is owed.

    What is nothing but the rounding of a subtraction is 0: it would tell where there was something.
    """

    additive = True

    def update(self, answers: Mapping[str, Params], gaps: Mapping[str, float], subtotals: Sums = ()) -> Residuals:
        """See Held."""
        place = {name: number for number, name in enumerate(self.carriers)}
        nothing = {name: answers[name] for name in answers}  # no distance to what was sent is asked for
        parts = [*sums(answers, nothing, self.carriers), *subtotals]
        parts.sort(key=lambda part: place[part.clients[0]])
        self.move(total_of(parts, self.carriers, self.z))
        return Residuals(math.nan, math.nan, self.rho)

    def move(self, change: Params) -> None:
        """See Held."""
        self.z = {name: moved(value, change[name]) for name, value in self.z.items()}


def moved(value: Tensor, change: Tensor) -> Tensor:
    """Return a sum after a change, without what is nothing but rounding; sparse if both are and few are left."""
    after = plus(value.double(), change.double()).to(value.dtype)
    before = plus(value, change.to(value.dtype), 0.0)  # at the places of both
    rounding = entries(after).abs() <= 8 * torch.finfo(value.dtype).eps * entries(before).abs()
    if not after.is_sparse:
        after[rounding] = 0
        return after
    kept = ~rounding
    left = from_places(places(after)[kept.numpy()], entries(after)[kept], after.shape)
    return left if thin(left.numel(), int(kept.sum())) else left.to_dense()


@dataclass
class Projected(Total):
    """A subspace of the rows of tables, and in the end the total of what clients' sums make of it.

    In the first rounds, the passes, what clients answer of the subspace turns it; then their answers add up. A round
    that nobody answers is a pass less.
    """

    search: Search = field(kw_only=True)

    def move(self, change: Params) -> None:
        """See Held."""
        if not self.z:
            return
        diagonal = self.z[DIAGONAL].double() + change[DIAGONAL]
        new = {DIAGONAL: diagonal, EXTENT: torch.tensor([len(diagonal), float(diagonal.sum())])}
        if self.number <= self.search.subspace.turns:
            new[BASIS] = torch.from_numpy(advance(self.search.subspace, change[ANSWER].numpy(), diagonal.numpy()))
        else:
            new |= {name: self.z[name].double() + change[name] for name in (ANSWER, INNER)}
            found = metric(self.z[BASIS].double().numpy(), diagonal.numpy(), self.search.power)
            new[RIDGE] = torch.from_numpy(triangle(found))
        self.z = {name: new.get(name, value).to(value.dtype) for name, value in self.z.items()}
