"""How the budget of private sums is parted, and how many items they are about: by public numbers alone.

What counts is users / sigma, sigma the noise multiplier of the whole budget: 943 users at epsilon 8 have as much as
6,040 at 1. The numbers were chosen on the validation of a public data set, and are the same for all.
"""

from dataclasses import dataclass

MOST = 500  # items of a head: what leaves has their number squared
LEVELS = (  # users / sigma from which on: shares of popularity, classes and pairs, decay of a history, prior's weight
    (0, (0.6, 0.4, 0.0), 2.0, 1.0),
    (200, (0.4, 0.25, 0.35), 2.0, 1.0),
    (350, (0.3, 0.2, 0.5), 5.0, 0.3),
    (700, (0.1, 0.1, 0.8), 5.0, 0.3),
)


@dataclass(frozen=True)
class Recipe:
    """The shares of 1 / sigma^2 of popularity, of transitions between classes and of the pairs of a head of `items`.

    A share of 0 makes no such release. `recent` is the decay, in items, of the history that is scored, `prior` what
    popularity and classes weigh beside pairs. An item of the head weighs its popularity to the power -`rarity`.
    """

    popularity: float
    classes: float
    pairs: float
    items: int
    recent: float
    prior: float = 0.0
    rarity: float = 0.5


def ordered(users: int, sigma: float, classes: bool, catalogue: int = MOST) -> Recipe:
    """Return the recipe of transitions between items of a catalogue, with public `classes` of items or without."""
    _, (popularity, lumped, pairs), recent, prior = max(level for level in LEVELS if level[0] <= users / sigma)
    if not classes:
        popularity, lumped, pairs = popularity / (1 - lumped), 0.0, pairs / (1 - lumped)
    items = min(round(users / sigma / 8), MOST, catalogue) if pairs else 0
    return Recipe(popularity, lumped, pairs, items, recent, prior)


def unordered(users: int, sigma: float, catalogue: int = MOST) -> Recipe:
    """Return the recipe of pairs without an order, between items of a catalogue."""
    return Recipe(0.1, 0.0, 0.9, min(max(50, round(0.09 * users / sigma)), MOST, catalogue), 10.0, rarity=0.25)


def recipe(users: int, sigma: float, classes: bool, catalogue: int, in_order: bool) -> Recipe:
    """Return the recipe of histories in their order, or without."""
    return ordered(users, sigma, classes, catalogue) if in_order else unordered(users, sigma, catalogue)
