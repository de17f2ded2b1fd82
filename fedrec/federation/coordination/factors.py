"""The tie of implicit ALS: clients send sums over their users, and are sent the item factors that solve all of them.

The total has of every client what it told last: its answers are increments. So a round in which some are missing
solves for the items beside the factors that these clients' users had when they were last heard, which is a step of
the same alternating minimisation, in which fewer blocks move: what is minimised does not grow.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fedrec.federation.coordination.halves import Residuals, Sums
from fedrec.federation.coordination.totals import Total
from fedrec.keyed import gather
from fedrec.params import Params
from fedrec.sharing import FACTORS, LIKES, OF_USERS

HEARD = "heard"  # in the state: which clients have told their sums


class Solver(NamedTuple):
    """What the server is told of factors: how those of items [n, d] follow from totals, and what is sent of them."""

    items: Callable[[Params], Tensor]
    sent: Callable[[Tensor], Params]


@dataclass
class Factored(Total):
    """The total of what clients told last, and the item factors of that, of which they are sent those of their items.

    Of an item that nobody has told a like of the factors are as they start, while a client that has it is yet to be
    heard: zeros would be what its users' factors were made of.
    """

    solver: Solver = field(kw_only=True)
    heard: set[str] = field(default_factory=set, init=False)
    told: Params = field(init=False)  # what clients are sent, of all items

    def __post_init__(self) -> None:
        self.take({**self.z, **self.solver.sent(self.z[FACTORS])})

    def take(self, z: Params) -> None:
        """Go on with other totals and factors."""
        self.z, self.told = z, {name: value for name, value in z.items() if name not in OF_USERS}

    def part(self, client: str) -> Params:
        """See Held."""
        return gather(self.told, self.carriers[client])

    def whole(self) -> Params:
        """Return what clients are sent, of all items."""
        return self.told

    def update(self, answers: Mapping[str, Params], gaps: Mapping[str, float], subtotals: Sums = ()) -> Residuals:
        """See Held."""
        self.heard |= answers.keys() | {name for part in subtotals for name in part.clients}
        return super().update(answers, gaps, subtotals)

    def move(self, change: Params) -> None:
        """See Held."""
        totals = {name: (self.z[name].double() + change[name]).to(self.z[name].dtype) for name in OF_USERS}
        found = torch.where(self.open(totals[LIKES])[:, None], self.z[FACTORS], self.solver.items(totals))
        self.take({**self.z, **totals, **self.solver.sent(found)})

    def open(self, likes: Tensor) -> Tensor:
        """Return the mask [n] of the items without likes that a client has of whom nothing was heard."""
        mask = torch.zeros(len(likes), dtype=torch.bool)
        for name, who in self.carriers.items():
            if name not in self.heard:
                mask[who.positions[FACTORS]] = True
        return mask & (likes <= 0)

    def state(self) -> Params:
        """See Held."""
        return {**self.z, HEARD: torch.tensor([name in self.heard for name in self.carriers], dtype=torch.uint8)}

    def restore(self, state: Params) -> None:
        """See Held."""
        self.heard = {name for name, told in zip(self.carriers, state[HEARD].tolist(), strict=True) if told}
        self.take({name: value for name, value in state.items() if name != HEARD})
