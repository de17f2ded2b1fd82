"""A market of platforms with planted structure: how alike the platforms are is known and can be turned."""

from math import ceil

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, Field

import fedrec.rng as seeds
from fedrec.data.types import Bools, Dataset, Truth
from fedrec.errors import UserError
from fedrec.files import largest

Reals = NDArray[np.float64]

TASTES = 8
ZIPF = 0.8
MEAN_TASTE = 1.6  # length of the taste that all users share: what makes an item good or bad for most
EXPOSURE = 0.5  # how far a platform already shows its users what they like
NAMES = ("films", "shop", "news", "books", "music")
CATEGORIES = ("drama", "comedy", "action", "romance", "science", "history", "family", "mystery")
OCCUPATIONS = ("student", "engineer", "artist", "teacher", "doctor", "writer")
BRANDS = ("Alder", "Birch", "Cedar", "Dogwood", "Elm", "Fir", "Ginkgo", "Hazel", "Ironwood", "Juniper")
# 24 adjectives and 27 nouns: 25 and 27 have no common factor, so `_items` meets every pair once.
ADJECTIVES = (
    "Quiet Golden Broken Distant Silent Crimson Hidden Winter Endless Paper Stolen Northern Gentle Burning Hollow Last "
    "Wandering Secret Velvet Early Electric Forgotten Open Second"
)
NOUNS = (
    "Harbour Garden Mirror Station River Letter Island Machine Summer Orchard Promise Shadow Bridge Compass Festival "
    "Kingdom Lantern Mountain Neighbour Ocean Passage Question Theatre Voyage Window Archive Carnival"
)


class Market(BaseModel, frozen=True, extra="forbid"):
    """The size and the structure of a synthetic market; see `synthetic`."""

    similarity: float = Field(0.8, ge=0, le=1, description="0: unrelated platforms, 1: clones")
    conflicting: int = Field(0, ge=0, description="number of platforms with opposite tastes")
    users: int = Field(300, ge=1, le=10_000_000, description="users of each platform")
    items: int = Field(600, ge=1, le=10_000_000, description="items of the catalogue")
    impressions: int = Field(20, ge=1, le=10_000_000, description="items that a user meets")


def synthetic(form: Market, *, platforms: int, seed: int = 0) -> Dataset:
    """Return a market of platforms, each with its own users, over one catalogue.

    Item tastes and popularity of a platform are sqrt(1 - d^2) common + d its own, both standard normal, d = 1 -
    `similarity`: two platforms correlate by 1 - d^2, from 0 (unrelated) to 1 (clones). On the last `conflicting`
    platforms both are negated: what the others like is disliked there. Popularity is Zipf by rank.

    A user meets `impressions` distinct items of the 80 to 100 % that the platform carries (item column
    `carried_PLATFORM`), drawn by popularity and taste; clicks with probability sigmoid(b + user taste . item taste),
    0.32 on average (`positive`, and label `click`); buys some of what it clicked (label `buy`, 0.07 of impressions) and
    rates what it clicked from 1 to 5. Users carry `gender`, `age` and `occupation`, which depend on their taste; items
    `price` and `brand`, which depend on the common item taste and are the same on all platforms.

    Raises UserError for a number out of range.
    """
    _check(form, platforms)
    rng = seeds.generator(seed, "synthetic", "catalogue")
    category = rng.integers(0, len(CATEGORIES), (form.items, 2))
    common = np.column_stack([_categorical_taste(category, rng), rng.standard_normal(form.items)])
    mean = rng.standard_normal(TASTES)
    mean *= MEAN_TASTE / np.linalg.norm(mean)
    names = tuple(NAMES[p] if p < len(NAMES) else f"platform-{p + 1}" for p in range(platforms))
    market, d = [], 1 - form.similarity
    for p in range(platforms):
        rng = seeds.generator(seed, "synthetic", "platform", p)
        sign = -1 if p >= platforms - form.conflicting else 1
        blend = sign * (np.sqrt(1 - d**2) * common + d * rng.standard_normal(common.shape))
        market.append(_platform(p, blend, mean, form, rng))
    frames, people, tastes, popularity, carried = zip(*market, strict=True)
    taste, shelves = np.concatenate(people), dict(zip((f"carried_{name}" for name in names), carried, strict=True))
    attributes = _users(taste, seeds.generator(seed, "synthetic", "attributes"))
    catalogue = pd.concat([_items(category), _goods(common[:, :TASTES], seed), pd.DataFrame(shelves)], axis=1)
    # A user's taste is the same wherever it goes: one array, seen once per platform.
    everywhere = np.broadcast_to(taste, (platforms, *taste.shape))
    truth = Truth(everywhere, np.stack(tastes), np.stack(popularity), np.full(platforms, float(form.similarity)))
    return Dataset(
        "synthetic", pd.concat(frames, ignore_index=True), attributes, catalogue, names, ("click", "buy"), truth=truth
    )


def _check(form: Market, platforms: int) -> None:
    if platforms < 1:
        raise UserError(f"platforms: must be at least 1, found {platforms}")
    if form.conflicting > platforms:
        raise UserError(f"conflicting: must be at most the number of platforms, {platforms}, found {form.conflicting}")
    users, items, least = form.users, form.items, ceil(form.impressions / 0.8)
    if items < least:
        raise UserError(f"items: must be at least {least} for {form.impressions} impressions, found {items}")
    if 8 * users * items > largest():
        raise UserError(f"users, items: must be at most {largest() // 8} multiplied, found {users} and {items}")


def _categorical_taste(category: NDArray[np.int64], rng: np.random.Generator) -> Reals:
    """Return common item tastes [items, TASTES] of unit variance, half of it the categories', half the item's own."""
    centre = rng.standard_normal((len(CATEGORIES), TASTES))
    first, second = category.T
    mean = np.where((first == second)[:, None], centre[first], (centre[first] + centre[second]) / np.sqrt(2))
    return np.asarray(np.sqrt(0.5) * mean + np.sqrt(0.5) * rng.standard_normal(mean.shape))


def _platform(
    platform: int, blend: Reals, mean: Reals, form: Market, rng: np.random.Generator
) -> tuple[pd.DataFrame, Reals, Reals, Reals, Bools]:
    """Return a platform's interactions, user and item tastes, log popularity and carried items."""
    items = len(blend)
    user_taste = mean + rng.standard_normal((form.users, TASTES))
    item_taste, rank = blend[:, :TASTES], np.empty(items)
    rank[np.argsort(-blend[:, TASTES], kind="stable")] = np.arange(1, items + 1)
    popularity = np.asarray(-ZIPF * np.log(rank))
    carried = np.zeros(items, dtype=np.bool_)
    carried[rng.permutation(items)[: ceil(rng.uniform(0.8, 1.0) * items)]] = True
    shelf, shape = np.flatnonzero(carried), (form.users, form.impressions)
    item, liking = np.empty(shape, dtype=np.int64), np.empty(shape)  # what users meet, in order, and how they like it
    for block in np.array_split(np.arange(form.users), ceil(form.users / 1024)):
        taste = user_taste[block] @ item_taste[shelf].T
        # Exponential clocks: the first to ring are a draw without replacement, at the rates that multiply the time.
        rate = np.exp(EXPOSURE * taste + popularity[shelf])
        clock = rng.standard_exponential(rate.shape) / rate
        first = np.argpartition(clock, form.impressions - 1, axis=1)[:, : form.impressions]
        shown = rng.permuted(first, axis=1)
        item[block], liking[block] = shelf[shown], np.take_along_axis(taste, shown, axis=1)
    frame = _behaviour(item, liking, rng)
    frame["user"] += platform * form.users
    frame["platform"] = platform
    return frame, user_taste, item_taste, popularity, carried


def _behaviour(item: NDArray[np.int64], liking: Reals, rng: np.random.Generator) -> pd.DataFrame:
    """Return what users, numbered from 0, do with the items [users, impressions] they meet."""
    users, impressions = item.shape
    # Gaps of at least a second: no two impressions of a user have the same time.
    start = 1_600_000_000 + rng.integers(0, 90 * 86_400, (users, 1))
    time = start + np.cumsum(1 + rng.exponential(3_600, item.shape).astype(np.int64), axis=1)
    click = rng.random(item.shape) < _sigmoid(liking + _offset(liking, 0.32))
    interest = 0.5 * liking
    buy = click & (rng.random(item.shape) < _sigmoid(interest + _offset(interest[click], 0.07 / 0.32)))
    clicked = liking[click] if click.any() else np.zeros(1)
    pleasure = (liking - clicked.mean()) / (clicked.std() + 1e-9)
    stars = np.clip(np.rint(3.6 + 0.9 * pleasure + rng.normal(0, 0.5, item.shape)), 1, 5)
    return pd.DataFrame(
        {
            "user": np.repeat(np.arange(users), impressions),
            "item": item.ravel(),
            "time": time.ravel(),
            "rating": np.where(click, stars, np.nan).ravel().astype(np.float32),
            "positive": click.ravel(),
            "click": click.ravel(),
            "buy": buy.ravel(),
        }
    )


def _sigmoid(x: Reals) -> Reals:
    return np.asarray(1 / (1 + np.exp(-x)))


def _offset(logit: Reals, rate: float) -> float:
    """Return the b for which the mean of sigmoid(logit + b) is `rate`, by bisection on at most 20,000 values."""
    if not logit.size:
        return 0.0
    sample = logit.ravel()[:: ceil(logit.size / 20_000)]
    low, high = -30.0, 30.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _sigmoid(sample + middle).mean() < rate else (low, middle)
    return low


def _users(taste: Reals, rng: np.random.Generator) -> pd.DataFrame:
    """Return users whose attributes are noisy functions of their taste, for attribute inference to find."""
    noise = rng.standard_normal((len(taste), 2))
    gender = np.where(taste[:, 0] + 0.5 * noise[:, 0] > 0, "F", "M")
    age = np.clip(np.rint(40 + 10 * taste[:, 1] + 5 * noise[:, 1]), 18, 80).astype(np.int64)
    field = np.argmax(taste[:, 2:] + 0.5 * rng.standard_normal((len(taste), len(OCCUPATIONS))), axis=1)
    return pd.DataFrame(
        {
            "key": pd.Series([str(u + 1) for u in range(len(taste))], dtype="str"),
            "gender": pd.Series(gender, dtype="str"),
            "age": age,
            "occupation": pd.Series([OCCUPATIONS[f] for f in field], dtype="str"),
        }
    )


def _items(category: NDArray[np.int64]) -> pd.DataFrame:
    """Return the catalogue of items whose two categories [items, 2] may be the same one."""
    adjectives, nouns = ADJECTIVES.split(), NOUNS.split()
    titles, categories = [], []
    for item, (first, second) in enumerate(category):
        volume, pair = divmod(item, len(adjectives) * len(nouns))
        noun = nouns[(pair // len(adjectives) + pair) % len(nouns)]
        number = f" {volume + 1}" if volume else ""
        titles.append(f"The {adjectives[pair % len(adjectives)]} {noun}{number} ({CATEGORIES[first]})")
        categories.append("|".join(dict.fromkeys((CATEGORIES[first], CATEGORIES[second]))))
    keys = [str(item + 1) for item in range(len(category))]
    return pd.DataFrame({"key": keys, "title": titles, "categories": categories}, dtype="str")


def _goods(taste: Reals, seed: int) -> pd.DataFrame:
    """Return prices and brands, from scopes of their own so that the rest of the market does not depend on them.

    log price = log 20 + 0.5 (taste . w) + 0.25 e with |w| = 1 and e standard normal: taste explains 0.8 of its
    variance. An item is of the brand b of the largest 1.5 (taste . v_b) + g_b, |v_b| = 1, g_b standard Gumbel: a
    multinomial logit of taste.
    """
    rng = seeds.generator(seed, "synthetic", "price")
    w = rng.standard_normal(TASTES)
    log_price = np.log(20) + 0.5 * (taste @ (w / np.linalg.norm(w))) + 0.25 * rng.standard_normal(len(taste))
    rng = seeds.generator(seed, "synthetic", "brand")
    v = rng.standard_normal((TASTES, len(BRANDS)))
    brand = np.argmax(1.5 * (taste @ (v / np.linalg.norm(v, axis=0))) + rng.gumbel(size=(len(taste), len(BRANDS))), 1)
    names = pd.Series([BRANDS[b] for b in brand], dtype="str")
    return pd.DataFrame({"price": np.exp(log_price), "brand": names})
