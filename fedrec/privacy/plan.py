"""A private federation as two secure sums: popularity, then what is popular in pairs, in their order or without."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedrec.data.history import Sequences
from fedrec.data.types import Ints
from fedrec.models.contributions import GRID, Values, class_transitions, gram, laid_out, popularity, transitions
from fedrec.models.markov import weights
from fedrec.models.noisy import head_of
from fedrec.models.recipe import Recipe, recipe
from fedrec.models.released import Released
from fedrec.privacy.accounting import Event
from fedrec.privacy.discrete import Integers
from fedrec.privacy.noise import Source
from fedrec.privacy.sums import Release, parted


@dataclass(frozen=True)
class Plan:
    """What everybody knows beforehand: numbers of users and silos, the noise multiplier of it all, and the catalogue.

    `classes` [items] are the public classes of the items, of one where nothing is known. `overlap` silos may hold the
    same person. `ordered` histories release transitions, [m, m] of a head, others a gram, of which the upper triangle
    (`fedrec.models.contributions`).
    """

    users: int
    silos: int
    sigma: float
    classes: Ints
    overlap: int = 1
    ordered: bool = True

    @cached_property
    def count(self) -> int:
        """The number k of classes."""
        return int(self.classes.max(initial=0)) + 1

    @cached_property
    def recipe(self) -> Recipe:
        """The settings that follow."""
        return recipe(self.users, self.sigma, self.count > 1, len(self.classes), self.ordered)

    def release(self, size: int, share: float) -> Release:
        """Return a release that takes a share of the budget."""
        return Release(size, parted(self.sigma, share), self.silos, self.overlap)

    @property
    def first(self) -> Release:
        """The release of popularity."""
        return self.release(len(self.classes), self.recipe.popularity)

    @property
    def second(self) -> tuple[Release, ...]:
        """The releases that follow: transitions of classes, and the pairs of the head; those that have a share."""
        m, triangle = self.recipe.items, self.recipe.items * (self.recipe.items + 1) // 2
        shares = ((self.count**2, self.recipe.classes), (m**2 if self.ordered else triangle, self.recipe.pairs))
        return tuple(self.release(size, share) for size, share in shares if share)

    @property
    def events(self) -> tuple[Event, ...]:
        """All that a silo books, in the order of the rounds."""
        return tuple(release.event for release in (self.first, *self.second))

    @property
    def rounds(self) -> tuple[Event, ...]:
        """What each of the sums costs: Gaussians of one round are one, 1 / sigma^2 adds up."""
        first, *rest = self.events
        together = math.fsum(event.sigma**-2 for event in rest)
        return (first, Event(together**-0.5, count=self.overlap)) if together else (first,)

    def popularity(self, own: Sequences, source: Source) -> Integers:
        """Return what a silo adds to the first sum [items]: its users' contributions, and its share of the noise."""
        return self.first.share(popularity(own, len(self.classes)), source)

    def transitions(self, own: Sequences, total: Integers, source: Source) -> Integers:
        """Return what a silo adds to the second sum, given the first: its releases one after the other."""
        sums = self.exact(own, total)
        shares = [release.share(sum_, source) for release, sum_ in zip(self.second, sums, strict=True)]
        return np.concatenate([np.zeros(0, np.int64), *shares])

    def exact(self, own: Sequences, total: Integers) -> list[Integers]:
        """Return what users add to each release of the second sum, given the first, exact: it must not leave."""
        head, weight = self.head(total)
        sums = [class_transitions(own, self.classes, self.count)] if self.recipe.classes else []
        pairs = transitions if self.ordered else gram
        return [*sums, *([pairs(own, head, weight)] if self.recipe.pairs else [])]

    def head(self, total: Integers) -> tuple[Ints, Values]:
        """Return the most popular items [m] by the first sum, ties by id, and their weights [m]."""
        popularity = total / GRID
        head = head_of(popularity, self.recipe.items)
        return head, weights(popularity, head, self.recipe.rarity)

    def released(self, first: Integers, second: Integers) -> Released:
        """Return what two sums over all silos say."""
        between, pairs = self.parts(second)
        noise = tuple(float(np.sqrt(variance * self.silos)) for variance in self.public[:2])
        head, noises = self.head(first), (noise[0], noise[1])
        return Released(self.users, first / GRID, self.classes, between, *head, pairs, noises, self.ordered)

    def parts(self, second: Integers) -> tuple[Values, Values]:
        """Return the transitions between classes [k, k], and the pairs of the head [m, m], of a second sum or a part.

        Of what has no share there is none: between classes zero, and a head of nothing.
        """
        cut = self.count**2 if self.recipe.classes else 0
        between = (second[:cut] / GRID).reshape(self.count, self.count) if cut else np.zeros((self.count, self.count))
        return between, laid_out(second[cut:] / GRID, self.recipe.items)

    @property
    def public(self) -> tuple[float, float, float]:
        """A silo's part of the variances of an entry's noise, of popularity and of pairs, and of sigma^2."""
        variance = [release.variance / GRID**2 for release in (self.first, *self.second[-1:])]
        return variance[0], variance[1] if self.recipe.pairs else 0.0, self.sigma**2 / self.silos

    def carry_out(self, silos: Sequence[Sequences], source: Source) -> Released:
        """Return what is released of the histories of all silos, as the two secure sums would."""
        sources = [source.spawn() for _ in silos]
        pairs = list(zip(silos, sources, strict=True))
        first = np.sum([self.popularity(own, mine) for own, mine in pairs], axis=0)
        return self.released(first, np.sum([self.transitions(own, first, mine) for own, mine in pairs], axis=0))
