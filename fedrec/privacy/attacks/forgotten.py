"""Membership in sums of whom they are to have forgotten: which items of a user are in the Gram matrix of a total.

Two items that a user has add to their entry of G. Of a profile that is known but for one item, the item is likelier in
where its entries with the others are large. Whoever kept the total of before has the difference to that of after, which
is the sums of the forgotten alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedrec.data.types import Bools, ClientData, Ints
from fedrec.models.quadratic import Matrix
from fedrec.privacy.attacks.scores import Result, Values, judge


@dataclass(frozen=True)
class Profiles:
    """Users by global item: what each was trained on, and what was held out. Targets are all items, user by user."""

    trained: Sequence[Ints]
    held: Sequence[Ints]

    @staticmethod
    def of(data: ClientData, users: Ints) -> "Profiles":
        """Return the positives of some local users of a client; of those with two of training and one that is held."""
        parts = []
        for rows in (data.train, data.validation, data.test):
            rows = rows.take(rows.positive)
            parts.append([np.unique(data.items[rows.item[rows.user == user]]) for user in users])
        held = [np.union1d(one, other) for one, other in zip(parts[1], parts[2], strict=True)]
        held = [np.setdiff1d(out, known) for out, known in zip(held, parts[0], strict=True)]
        some = [u for u in range(len(users)) if len(parts[0][u]) > 1 and len(held[u])]
        return Profiles([parts[0][u] for u in some], [held[u] for u in some])

    def __add__(self, other: "Profiles") -> "Profiles":
        return Profiles([*self.trained, *other.trained], [*self.held, *other.held])

    @property
    def truth(self) -> Bools:
        """The mask of the targets that were trained on."""
        pairs = zip(self.trained, self.held, strict=True)
        return np.concatenate([np.repeat([True, False], [len(known), len(out)]) for known, out in pairs])

    @property
    def users(self) -> Ints:
        """The user of every target."""
        return np.repeat(
            np.arange(len(self.held)), [len(a) + len(b) for a, b in zip(self.trained, self.held, strict=True)]
        )


def co_occurrences(gram: Matrix, scale: Matrix, profiles: Profiles) -> Values:
    """Return for every target the mean of G_ij / sqrt(s_i s_j) over the other items j that its user was trained on.

    `scale` [n] is s, the diagonal of a total that everybody knows.
    """
    found, size = [], np.sqrt(np.maximum(scale, np.finfo(np.float64).tiny)).astype(np.float64)
    for known, out in zip(profiles.trained, profiles.held, strict=True):
        items = np.concatenate([known, out])
        near = gram[np.ix_(items, known)] / size[items, None] / size[known]
        near[np.arange(len(known)), np.arange(len(known))] = 0
        found.append(near.sum(1) / (len(known) - (np.arange(len(items)) < len(known))))
    return np.concatenate(found)


def forgotten(before: Matrix, after: Matrix, profiles: Profiles) -> dict[str, Result]:
    """Return how well who has the Gram matrix of before, that of after, or both tells what users were trained on."""
    scale = np.diagonal(before)
    seen = {"before": before, "after": after, "both": before - after}
    truth, users = profiles.truth, profiles.users
    return {name: judge(co_occurrences(gram, scale, profiles), truth, groups=users) for name, gram in seen.items()}
