"""Implicit ALS as a recommender: item factors from the server, user factors that stay at home (`fedrec.models.ials`).

A round is a sweep. The server sends a client the factors of its items, and of all items what users ask of them; the
client solves for its users and answers with their sums, from which the server solves for the items. The head of a
client is in the metric of its own sums, y_i = (shared y_i + w own y_i) / (1 + w), where the own y_i is what its own
users alone give: w = 0 is the shared model, and w to infinity the client's own item factors.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.linalg import LinAlgError
from scipy.sparse import csr_array
from torch import Tensor

from fedrec.data.history import Sequences
from fedrec.data.types import Floats, Keys
from fedrec.errors import UserError
from fedrec.models.ials import Ials, ItemSums, Whole, begin, item_sums, solve_items, solve_users, whole
from fedrec.models.quadratic import Matrix
from fedrec.models.summed import SummedRecommender, head_weight, nobody
from fedrec.params import Params
from fedrec.sharing import COUNT, EVERYONE, EVERYTHING, FACTORS, FIRST, LIKES, OF_USERS, SECOND, USERS
from fedrec.subspace import triangle

OWN_FACTORS = "user_factors"  # of its users, which a client keeps where sums travel
GRID = 2.0**-40  # of what is told in float64


@dataclass(frozen=True)
class FactorRecommender(SummedRecommender):
    """A recommender whose parameters are factors, sums over users, and the weight w of its private head.

    It is sent item_sums.factors [items, d], sums.everything [d (d + 1) / 2] and sums.items [1], the `whole` of all
    items. It tells what `ItemSums` has of its users: item_sums.second [items, d (d + 1) / 2], item_sums.first
    [items, d], item_sums.likes [items], sums.everyone [d (d + 1) / 2] and sums.users [1]. It keeps user_factors
    [users, d]. Tables are float64, and float32 in a catalogue of many items; all else is float64.

    `learnt` are the sequences that its own sums are of.
    """

    ials: Ials = field(default=Ials(), kw_only=True)
    learnt: Sequences = field(default_factory=nobody, kw_only=True, compare=False, repr=False)
    found: tuple[Matrix, Matrix] | None = field(default=None, kw_only=True, compare=False, repr=False)

    def shapes(self, users: int, items: int, tasks: Iterable[str]) -> Params:
        """See Recommender."""
        d = self.ials.d
        half = d * (d + 1) // 2
        tables = {FACTORS: (items, d), SECOND: (items, half), FIRST: (items, d), LIKES: (items,)}
        small = {EVERYTHING: (half,), COUNT: (1,), EVERYONE: (half,), USERS: (1,), OWN_FACTORS: (users, d)}
        like = {f"heads.{task}.weight": torch.empty(1, device="meta") for task in tasks}
        like |= {name: torch.empty(size, device="meta", dtype=self.dtype) for name, size in tables.items()}
        like |= {name: torch.empty(size, device="meta", dtype=torch.float64) for name, size in small.items()}
        return {name: like[name] for name in sorted(like)}

    def init(self, seed: int, users: Keys, items: Keys, offsets: Mapping[str, float | Floats]) -> Params:
        """Return the seeded item factors, a row of which depends on its item's key, sums over nobody, and no heads."""
        rows = torch.from_numpy(begin(self.ials, seed, [str(key) for key in items])).to(self.dtype)
        return super().init(seed, users, items, offsets) | as_sent(rows)

    def liked(self, sequences: Sequences) -> csr_array:
        """Return what users liked of its items, [users, items], as ones."""
        shape = (len(sequences.start) - 1, len(self.places))
        rows = csr_array((np.ones(len(sequences.item)), sequences.item, sequences.start), shape=shape, copy=True)
        rows.sum_duplicates()
        rows.data[:] = 1.0
        return rows

    def solved(self, params: Mapping[str, Tensor]) -> Params:
        """Return the factors of the users that it learns from, for what it was sent."""
        users = solve_users(self.ials, self.liked(self.learnt), doubled(params), of_all=of_all(params))
        return {OWN_FACTORS: torch.from_numpy(users)}

    def told(self, users: Tensor) -> Params:
        """Return what it tells of the users that it learns from, of whom these are the factors [users, d].

        In float64 they are whole multiples of `GRID`, so that totals below 2^13 are exact whatever the order in which
        they are added, and what is replaced leaves no trace of having been there.
        """
        sums = item_sums(self.liked(self.learnt), users.numpy())
        arrays = {SECOND: sums.second, FIRST: sums.first, LIKES: sums.likes, EVERYONE: sums.everyone}
        arrays[USERS] = np.array([sums.users])
        exact = self.dtype == torch.float64
        values = {name: np.rint(array / GRID) * GRID if exact else array for name, array in arrays.items()}
        return {name: torch.from_numpy(value).to(self.type_of(name)) for name, value in values.items()}

    def type_of(self, name: str) -> torch.dtype:
        """Return the type of a parameter that travels."""
        return self.dtype if name in (FACTORS, SECOND, FIRST, LIKES) else torch.float64

    def read(self, params: Params, *items: Tensor | None) -> "FactorRecommender":
        """Return the recommender that has solved for its users, of all that they are known to like."""
        if self.found is not None:
            return self
        weight = head_weight(params)
        factors, every = doubled(params), of_all(params)
        if weight:
            own = solve_items(self.ials, item_sums(self.liked(self.learnt), self.solved(params)[OWN_FACTORS].numpy()))
            mixed = (factors + weight * own) / (1 + weight)
            change = triangle(mixed.T @ mixed - factors.T @ factors)
            factors, every = mixed, Whole(every.everything + change, every.items)
        return replace(self, found=(solve_users(self.ials, self.liked(self.past), factors, of_all=every), factors))

    def score_all(self, params: Params, task: str, user: Tensor) -> Tensor:
        """See Recommender."""
        found = self.read(params).found
        assert found is not None
        users, items = found
        return torch.from_numpy(np.asarray(users[user.cpu().numpy()] @ items.T, np.float32))


def as_sent(factors: Tensor) -> Params:
    """Return what clients are sent of the factors [n, d] of all items."""
    everything, count = whole(factors.double().numpy())
    small = {EVERYTHING: torch.from_numpy(everything), COUNT: torch.tensor([count], dtype=torch.float64)}
    return {FACTORS: factors, **small}


def factors_of(config: Ials, totals: Mapping[str, Tensor]) -> Tensor:
    """Return the item factors [n, d] of the totals of what clients told; raises UserError where there are none.

    Numbers of users and of likes that are below 0, as nobody's are, count as 0.
    """
    second, first, likes, everyone, users = (totals[name].numpy() for name in OF_USERS)
    sums = ItemSums(second, first, np.maximum(likes, 0.0), everyone, max(float(users[0]), 0.0))
    try:
        return torch.from_numpy(solve_items(config, sums)).to(totals[FIRST].dtype)
    except LinAlgError:
        raise UserError(f"ials.ridge: must make the sums positive definite, found {config.ridge}") from None


def doubled(params: Mapping[str, Tensor]) -> Matrix:
    """Return the item factors [items, d] that a client was sent, in float64."""
    return params[FACTORS].double().numpy()


def of_all(params: Mapping[str, Tensor]) -> Whole:
    """Return what users ask of all items, as a client was sent it."""
    return Whole(params[EVERYTHING].numpy(), float(params[COUNT]))
