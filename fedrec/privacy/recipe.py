"""How the budget of private sums is parted, and how many items they are about: by public numbers alone.

What counts is users / sigma, sigma the noise multiplier of the whole budget: 943 users at epsilon 8 have as much as
6,040 at 1. The numbers were chosen on validation and on the synthetic market, never on what a server is to know.
"""

from dataclasses import dataclass

MOST = 500  # items of a head: what leaves has their number squared


@dataclass(frozen=True)
class Recipe:
    """The shares of 1 / sigma^2 of popularity, of transitions between classes and of the pairs of a head of `items`.

    A share of 0 makes no such release. `recent` is the decay, in items, of the history that is scored.
    """

    popularity: float
    classes: float
    pairs: float
    items: int
    recent: float = 0.0


def ordered(users: int, sigma: float, classes: bool) -> Recipe:
    """Return the recipe of transitions, with public `classes` of items or without."""
    ratio = users / sigma
    items = min(round(ratio / 8), MOST)
    if ratio < 350:
        return Recipe(0.6, 0.4, 0.0, 0, 2.0) if classes else Recipe(1.0, 0.0, 0.0, 0, 2.0)
    popularity, lumped = (0.3, 0.2) if ratio < 700 else (0.1, 0.1)
    if not classes:
        popularity, lumped = popularity / (1 - lumped), 0.0
    return Recipe(popularity, lumped, 1 - popularity - lumped, items, 5.0)


def unordered(users: int, sigma: float) -> Recipe:
    """Return the recipe of pairs without an order."""
    return Recipe(0.1, 0.0, 0.9, min(max(50, round(0.09 * users / sigma)), MOST), 10.0)
