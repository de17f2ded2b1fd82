"""A recommender by sums that leave with noise: popularity, with public classes, and pairs of popular items.

Of slist and slit the pairs are transitions, of ease those of a gram.

What is shared are totals over all clients, in units of a user's contribution of norm 1 (`fedrec.models.contributions`),
and public numbers of the release. The private head says how much a client's own exact sums count beside the others'.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from fedrec.data.history import Sequences
from fedrec.data.types import Ints
from fedrec.models.contributions import Values
from fedrec.models.markov import weights
from fedrec.models.quadratic import Quadratic, inputs, precision, statistics
from fedrec.models.recipe import MOST, Recipe, recipe
from fedrec.models.released import RECENT, Exact, Released, gram_scores, personal, personal_gram
from fedrec.models.summed import SummedRecommender, head_weight, nobody
from fedrec.params import Params
from fedrec.sharing import SUMS

POPULARITY, BETWEEN, PAIRS, PUBLIC = (f"{SUMS}{name}" for name in ("popularity", "between", "pairs", "public"))
ALONE = 1e9  # the weight of a head that has nothing of the others


@dataclass(frozen=True)
class NoisyRecommender(SummedRecommender):
    """A recommender whose shared parameters are noisy sums, and of each ranking task the weight w of its private head.

    sums.popularity [n] over the whole catalogue, sums.between [k, k] over the public `groups` of its items, sums.pairs
    [m, m] over the head of the most popular items, of which a recipe may use fewer, and sums.public: users, the
    variances of the noise of an entry of popularity and of pairs, and sigma^2 of the whole budget. w = 0 is the model
    of everybody; else a client's own users count w times as much as others, from `ALONE` on by themselves.

    `learnt` are the sequences that its own sums are of, `exact` returns those if they are kept.
    """

    groups: Ints = field(default_factory=lambda: np.zeros(0, np.int64), kw_only=True, compare=False, repr=False)
    learnt: Sequences = field(default_factory=nobody, kw_only=True, compare=False, repr=False)
    exact: Callable[[], Exact | None] = field(default=lambda: None, kw_only=True, compare=False, repr=False)

    def shapes(self, users: int, items: int, tasks: Iterable[str]) -> Params:
        """See Recommender."""
        k, m = int(self.groups.max(initial=0)) + 1, min(self.catalogue_size, MOST)
        sizes = {POPULARITY: (self.catalogue_size,), BETWEEN: (k, k), PAIRS: (m, m), PUBLIC: (4,)}
        like = {f"heads.{task}.weight": torch.empty(1, device="meta") for task in tasks}
        like |= {name: torch.empty(size, device="meta", dtype=self.dtype) for name, size in sizes.items()}
        return {name: like[name] for name in sorted(like)}

    @property
    def dtype(self) -> torch.dtype:
        """The type of its sums, in which whole steps of their grid are exact."""
        return torch.float64

    def owed(self, z: Params, number: int, seen: int) -> Params:
        """Return nothing: what it sends has noise, which is a client's business."""
        return {}

    def read(self, params: Mapping[str, Tensor], *items: Tensor | None) -> "NoisyRecommender":
        """See SummedRecommender."""
        if self.scores is not None:
            return self
        weight = head_weight(params)
        seen = released(params, self.groups, self.ordered) if POPULARITY in params else None
        if seen and not weight:
            settings = recipe_of(params, self.groups, self.ordered)
            model = seen.model(settings.prior) if self.ordered else seen.unordered()
            scores = model.scores(decayed(self.placed(self.past), self.catalogue_size, settings.recent))
        else:
            scores = self.beside(seen, 0.0 if weight >= ALONE or not weight else 1 / weight)
        return replace(self, scores=scores[:, self.places])

    def beside(self, seen: Released | None, share: float) -> Values:
        """Return the scores [users, n] of its own exact sums with a share of what others released."""
        own, past, n = self.placed(self.learnt), self.placed(self.past), self.catalogue_size
        if self.ordered:
            return personal(own, self.groups, seen, n, share, self.exact()).scores(decayed(past, n, RECENT))
        exact = statistics(self.kind, Quadratic(), own, n)[0].toarray().astype(precision(n))
        return gram_scores(personal_gram(own, exact, seen, share), inputs(self.kind, Quadratic(), past, n))

    @property
    def ordered(self) -> bool:
        """Whether it knows the order of histories."""
        return self.kind != "ease"


def recipe_of(params: Mapping[str, Tensor], classes: Ints, ordered: bool) -> Recipe:
    """Return the settings of a release, of its public numbers."""
    users, _, _, square = params[PUBLIC].tolist()
    return recipe(round(users), max(square, 1e-12) ** 0.5, bool(classes.max(initial=0)), len(classes), ordered)


def released(params: Mapping[str, Tensor], classes: Ints, ordered: bool) -> Released:
    """Return what the shared parameters say."""
    users, first, second, _ = params[PUBLIC].tolist()
    settings, popularity = recipe_of(params, classes, ordered), params[POPULARITY].numpy()
    m, between = settings.items, params[BETWEEN].numpy()
    head = head_of(popularity, m)
    pairs, noise = params[PAIRS].numpy()[:m, :m], (max(first, 0.0) ** 0.5, max(second, 0.0) ** 0.5)
    weight = weights(popularity, head, settings.rarity)
    return Released(round(users), popularity, classes, between, head, weight, pairs, noise, ordered)


def head_of(popularity: Values, count: int) -> Ints:
    """Return the most popular items [count], ties by id."""
    return np.argsort(-popularity, kind="stable")[:count]


def decayed(past: Sequences, items: int, recent: float) -> csr_array:
    """Return histories [users, items], an item exp(-(items after it) / recent), the sum of these where it repeats."""
    length = np.diff(past.start)
    ago = np.repeat(past.start[1:], length) - 1 - np.arange(len(past.item))
    rows = csr_array((np.exp(-ago / recent), past.item, past.start), shape=(len(length), items), copy=True)
    rows.sum_duplicates()
    return rows
