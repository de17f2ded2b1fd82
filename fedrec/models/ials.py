"""Implicit alternating least squares (arXiv 2110.14037): a client solves for its users, the server for items from sums.

Minimised is, over the factors p_u and y_i [d] of users and items,

    sum over liked (u, i) of (1 - p_u.y_i)^2 + a sum over all (u, i) of (p_u.y_i)^2 + sum of l_u |p_u|^2 + l_i |y_i|^2,

a the weight of what is not liked, l_u = ridge (likes of u + a n)^nu, l_i = ridge (likes of i + a users)^nu (sec. 3.3).
For items everything that is asked of users is a sum over them, so that the factors are those of the pooled users.
"""

from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, Field
from scipy.sparse import csr_array

from fedrec.models.quadratic import Matrix, Values
from fedrec.rng import normal_rows
from fedrec.subspace import triangle

SWEEPS = 8  # how often users and items are solved in turn, unless another number is asked for
BATCH = 4096  # systems [d, d] that are solved at a time, to bound memory


class Ials(BaseModel, frozen=True, extra="forbid"):
    """What implicit ALS weighs."""

    d: int = Field(64, ge=1, le=1024, description="width of the factors")
    unliked: float = Field(0.1, gt=0, description="weight of the square of a score, beside 1 for what is liked")
    ridge: float = Field(0.01, gt=0, description="weight of the factors' squares")
    nu: float = Field(1.0, ge=0, le=1, description="how the ridge of a user or an item grows with its likes")
    spread: float = Field(0.1, gt=0, description="size of the rows that factors start with")


@dataclass(frozen=True)
class ItemSums:
    """What a sweep needs of some users: a table of rows of items, and what is the same for all items."""

    second: Matrix  # [n, d (d + 1) / 2] sum of p p' over those who like an item, its upper triangle by rows
    first: Matrix  # [n, d] sum of p over them
    likes: Values  # [n] how many they are
    everyone: Matrix  # [d (d + 1) / 2] sum of p p' over all users
    users: float

    def __add__(self, other: "ItemSums") -> "ItemSums":
        """Return the sums over both."""
        return ItemSums(
            self.second + other.second,
            self.first + other.first,
            self.likes + other.likes,
            self.everyone + other.everyone,
            self.users + other.users,
        )


class Whole(NamedTuple):
    """What users ask of all items: the sum of y y', its upper triangle by rows, and their number."""

    everything: Matrix  # [d (d + 1) / 2]
    items: float


@dataclass(frozen=True)
class Tie:
    """A pull rho/2 |p_u - target_u|^2 of users' factors towards a target [users, d]: z minus the scaled dual."""

    target: Matrix
    rho: float


def begin(config: Ials, seed: int, keys: list[str]) -> Matrix:
    """Return the item factors [n, d] before the first sweep: a row depends on its key alone."""
    rows = normal_rows(seed, "ials", keys=keys, width=config.d).astype(np.float64)
    return np.asarray(rows * (config.spread / np.sqrt(config.d)))


def whole(items: Matrix) -> Whole:
    """Return what users ask of all items, of which these are the factors [n, d]."""
    return Whole(triangle(items.T @ items), float(len(items)))


def solve_users(
    config: Ials, liked: csr_array, items: Matrix, tie: Tie | None = None, of_all: Whole | None = None
) -> Matrix:
    """Return the best factors [users, d] for item factors [n, d]; `liked` [users, n] holds ones.

    `of_all` is the `whole` of the items of which these n are some. A user without likes has zeros, or its target if it
    is tied.
    """
    everything, count = of_all or whole(items)
    ridge = config.ridge * (likes(liked, 1) + config.unliked * count) ** config.nu
    right = liked @ items
    if tie:
        ridge, right = ridge + tie.rho / 2, right + tie.rho / 2 * tie.target
    return _solve(liked, products(items), right, config.unliked * square(everything[None], items.shape[1])[0], ridge)


def item_sums(liked: csr_array, users: Matrix) -> ItemSums:
    """Return the sums over users of factors [users, d] who like `liked` [users, n]."""
    by_item = csr_array(liked.T)
    everyone = products(users).sum(0)
    return ItemSums(by_item @ products(users), by_item @ users, likes(liked, 0), everyone, float(len(users)))


def solve_items(config: Ials, sums: ItemSums) -> Matrix:
    """Return the best item factors [n, d] for the users whose sums these are; zeros for an item that nobody likes."""
    ridge = config.ridge * (sums.likes + config.unliked * sums.users) ** config.nu
    d = sums.first.shape[1]
    return _solve(None, sums.second, sums.first, config.unliked * square(sums.everyone[None], d)[0], ridge)


def sweep(config: Ials, clients: list[csr_array], items: Matrix) -> Matrix:
    """Return the item factors after a sweep over clients that all know those before it."""
    return solve_items(config, reduce(ItemSums.__add__, (item_sums(x, solve_users(config, x, items)) for x in clients)))


def objective(config: Ials, liked: csr_array, users: Matrix, items: Matrix) -> float:
    """Return what is minimised, of all users at once."""
    rows, columns = liked.nonzero()
    told = (users[rows] * items[columns]).sum(1)
    ridges = (
        (config.ridge * (likes(liked, 1) + config.unliked * len(items)) ** config.nu, users),
        (config.ridge * (likes(liked, 0) + config.unliked * len(users)) ** config.nu, items),
    )
    everything = float(((users.T @ users) * (items.T @ items)).sum())
    pulled = sum(float(ridge @ (factors**2).sum(1)) for ridge, factors in ridges)
    return float(((1 - told) ** 2).sum()) + config.unliked * everything + pulled


def likes(liked: csr_array, axis: int) -> Values:
    """Return how many items users like (1), or how many users like items (0)."""
    return np.asarray(liked.sum(axis), dtype=np.float64)


def products(factors: Matrix) -> Matrix:
    """Return the upper triangles by rows [m, d (d + 1) / 2] of x x' for factors x [m, d]."""
    one, other = np.triu_indices(factors.shape[1])
    return np.asarray(factors[:, one] * factors[:, other])


def square(triangles: Matrix, d: int) -> Matrix:
    """Return the symmetric matrices [m, d, d] whose upper triangles by rows these are."""
    one, other = np.triu_indices(d)
    full = np.empty((len(triangles), d, d), triangles.dtype)
    full[:, one, other] = full[:, other, one] = triangles
    return full


def _solve(liked: csr_array | None, second: Matrix, right: Matrix, common: Matrix, ridge: Values) -> Matrix:
    """Return the solutions [m, d] of (second + common + ridge) x = right, `second` summed over what is liked."""
    found, d = np.empty_like(right), right.shape[1]
    for start in range(0, len(right), BATCH):
        part = slice(start, start + BATCH)
        system = square(second[part] if liked is None else liked[part] @ second, d) + common
        system[:, np.arange(d), np.arange(d)] += ridge[part, None]
        found[part] = np.linalg.solve(system, right[part, :, None])[:, :, 0]
    return found
