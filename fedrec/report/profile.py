"""What a dataset holds, in numbers: sizes, tails, times, ratings and labels of all platforms and of each of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from fedrec.data.attributes import MOST
from fedrec.data.types import Bools, Dataset, Floats, Ints, known_column
from fedrec.distinct import distinct

FEW = (3, 5, 10)  # interactions: how many users have fewer is told
TOP = 0.01  # of the items: which share of the interactions they have is told
DENSE = 8  # times as many ids as rows, up to which ids are counted in place
PAIRS = 24  # platforms, the largest, of whom all pairs are told
MERGED = re.compile(r"([\d,]+) rows are [\d,]+ interactions: ")  # how a note on repeats begins


class Columns(NamedTuple):
    """The interactions of a dataset as arrays [n]; of a label its values, and where it is known."""

    user: Ints
    item: Ints
    platform: Ints
    time: Ints
    rating: Floats
    positive: Bools
    labels: Mapping[str, tuple[Bools, Bools]]

    def part(self, rows: slice) -> "Columns":
        """Return some of the rows."""
        return Columns(
            self.user[rows],
            self.item[rows],
            self.platform[rows],
            self.time[rows],
            self.rating[rows],
            self.positive[rows],
            {name: (value[rows], known[rows]) for name, (value, known) in self.labels.items()},
        )


@dataclass(frozen=True)
class Ratings:
    """The known ratings: how many, and their lowest, mean and highest."""

    known: int
    low: float
    mean: float
    high: float


@dataclass(frozen=True)
class Label:
    """In how many rows a label is known, and the share of them that have it."""

    known: int
    rate: float


@dataclass(frozen=True)
class Group:
    """The interactions of a platform, or of all of them.

    `items` are those of the catalogue, `met` those with an interaction; `density` is the share of the pairs of a user
    and an item that interacted; `few` counts users with fewer interactions than so many, `top` is the share of the
    interactions that the most met 1% of the items have. `times` are seconds, None where none is known. `tasks` are
    those that could be trained, with their rows, of attributes their items; one whose target never varies is not.
    """

    name: str
    rows: int
    users: int
    items: int
    met: int
    density: float
    few: dict[int, int]
    top: float
    times: tuple[int, int] | None
    ratings: Ratings | None
    labels: dict[str, Label]
    tasks: dict[str, int]


@dataclass(frozen=True)
class Overlap:
    """How many users, and items, platforms have in common: [p, p], the diagonal a platform's own; the largest `PAIRS`.

    There are so many `platforms`, `all_users` with an interaction and `all_items`; `common_users` are users of several
    platforms, `common_items` items of several catalogues.
    """

    platforms: int
    all_users: int
    all_items: int
    names: tuple[str, ...]
    users: tuple[tuple[int, ...], ...]
    items: tuple[tuple[int, ...], ...]
    common_users: int
    common_items: int


@dataclass(frozen=True)
class Profile:
    """What a dataset holds: all of it, each platform, what they have in common, and what is missing.

    `read` is the number of rows before repeats of a (platform, user, item) were merged. `missing` are shares, of rows,
    items or users; what nobody has is not in it.
    """

    name: str
    read: int
    whole: Group
    platforms: tuple[Group, ...]
    overlap: Overlap
    missing: dict[str, float]
    notes: tuple[str, ...]


def profile(data: Dataset) -> Profile:
    """Return what a dataset holds."""
    rows, known, shelves = columns(data), attributes(data.items), carried(data)
    bounds = np.searchsorted(rows.platform, np.arange(len(data.platforms) + 1))
    everything = np.ones(len(data.items), np.bool_)
    platforms = tuple(
        group(name, rows.part(slice(*bounds[p : p + 2])), known, shelves.get(p))
        for p, name in enumerate(data.platforms)
    )
    whole = group("all", rows, known, everything)
    return Profile(data.name, read(data), whole, platforms, overlap(data), missing(data, rows), data.notes)


def columns(data: Dataset) -> Columns:
    """Return the interactions of a dataset, which are sorted by platform, user and time."""
    frame = data.interactions
    ids = {name: frame[name].to_numpy(np.int64) for name in ("user", "item", "platform", "time")}
    values = {name: frame[name].to_numpy() for name in ("rating", "positive")}
    every = np.ones(len(frame), np.bool_)
    columns_known = {name: known_column(name) for name in data.labels}
    known = {name: frame[c].to_numpy() if c in frame else every for name, c in columns_known.items()}
    return Columns(**ids, **values, labels={name: (frame[name].to_numpy(), mask) for name, mask in known.items()})


def read(data: Dataset) -> int:
    """Return the number of rows before repeats were merged."""
    found = next((match for note in data.notes if (match := MERGED.match(note))), None)
    return int(found[1].replace(",", "")) if found else len(data.interactions)


def carried(data: Dataset) -> dict[int, Bools]:
    """Return the mask [items] of the catalogue of each platform of which the dataset tells it."""
    names = {p: f"carried_{name}" for p, name in enumerate(data.platforms)}
    return {p: data.items[name].to_numpy(np.bool_) for p, name in names.items() if name in data.items}


def catalogues(data: Dataset) -> Any:
    """Return the sparse matrix [platforms, items] of the catalogues: as the dataset tells them, else what was met."""
    frame, told = data.interactions, carried(data)
    platform, item = (frame[name].to_numpy(np.int64) for name in ("platform", "item"))
    if told:
        kept = ~np.isin(platform, list(told))
        shelves = {p: np.flatnonzero(mask) for p, mask in told.items()}
        platform = np.concatenate([platform[kept], *(np.full(len(ids), p) for p, ids in shelves.items())])
        item = np.concatenate([item[kept], *shelves.values()])
    return membership(platform, item, len(data.platforms), len(data.items))


def attributes(items: pd.DataFrame) -> dict[str, Bools]:
    """Return of which items each attribute is known, of those that a task could learn."""
    texts = {"category": items["categories"].fillna("")}
    if "brand" in items:
        texts["brand"] = items["brand"].fillna("")
    known = {}
    for name, column in texts.items():
        different = pd.unique(column)
        names = {part for text in different for part in (text.split("|") if name == "category" else [text])} - {""}
        if 1 < len(names) <= MOST:
            known[name] = (column != "").to_numpy(np.bool_)
    if "price" in items and items["price"].nunique() > 1:
        known["price"] = items["price"].notna().to_numpy(np.bool_)
    return known


def group(name: str, rows: Columns, known: Mapping[str, Bools], catalogue: Bools | None) -> Group:
    """Return the numbers of some rows, sorted by user within a platform, over a catalogue [items]: what they met."""
    per_user, (met, per_item) = counted(rows.user)[1], counted(rows.item)
    items = len(met) if catalogue is None else int(catalogue.sum())
    pairs = len(rows.user)
    if len(rows.platform) and rows.platform[0] != rows.platform[-1]:  # a pair may be on several platforms
        pairs = len(distinct(rows.user * (int(rows.item.max()) + 1) + rows.item))
    most = np.sort(per_item)[::-1][: max(1, round(TOP * items))]
    times = rows.time[rows.time != 0]
    rating = rows.rating[np.isfinite(rows.rating)]
    here = {word: mask[met] if catalogue is None else mask & catalogue for word, mask in known.items()}
    return Group(
        name,
        len(rows.user),
        len(per_user),
        items,
        len(met),
        pairs / max(len(per_user) * items, 1),
        {few: int((per_user < few).sum()) for few in FEW},
        int(most.sum()) / max(len(rows.user), 1),
        (int(times.min()), int(times.max())) if len(times) else None,
        Ratings(len(rating), float(rating.min()), float(rating.mean(dtype=np.float64)), float(rating.max()))
        if len(rating)
        else None,
        {word: Label(int(k.sum()), float(v[k].mean()) if k.any() else 0.0) for word, (v, k) in rows.labels.items()},
        tasks(rows, here),
    )


def counted(ids: Ints) -> tuple[Ints, Ints]:
    """Return the distinct ids, ascending, and how often each is there: without a sort where they are dense."""
    if not len(ids) or ids.max() > DENSE * len(ids):
        values, count = np.unique(ids, return_counts=True)
        return values, count.astype(np.int64)
    count = np.bincount(ids).astype(np.int64)
    values = np.flatnonzero(count).astype(np.int64)
    return values, count[values]


def tasks(rows: Columns, known: Mapping[str, Bools]) -> dict[str, int]:
    """Return the tasks that rows could train, with their numbers of rows, or of the items that are `known`."""
    rating = rows.rating[np.isfinite(rows.rating)]
    found = {"rank": int(rows.positive.sum())}
    if len(rating) and rating.min() < rating.max():
        found["rating"] = len(rating)
    for name, (value, where) in rows.labels.items():
        if 0 < value[where].sum() < where.sum():
            found[name] = int(where.sum())
    if {"click", "buy"} <= found.keys():
        found["behaviour"] = min(found["click"], found["buy"])
    return {name: n for name, n in {**found, **{word: int(mask.sum()) for word, mask in known.items()}}.items() if n}


def overlap(data: Dataset) -> Overlap:
    """Return what the platforms of a dataset have in common."""
    frame, count = data.interactions, len(data.platforms)
    platform, user = (frame[name].to_numpy(np.int64) for name in ("platform", "user"))
    chosen = np.sort(np.argsort(-np.bincount(platform, minlength=count), kind="stable")[:PAIRS])
    users, items = membership(platform, user, count, len(data.users)), catalogues(data)
    return Overlap(
        count,
        len(np.unique(users.indices)),
        len(data.items),
        tuple(data.platforms[p] for p in chosen),
        common(users, chosen),
        common(items, chosen),
        int((np.bincount(users.indices) > 1).sum()),
        int((np.bincount(items.indices) > 1).sum()),
    )


def membership(platform: Ints, ids: Ints, platforms: int, count: int) -> Any:
    """Return the sparse matrix [platforms, count] of what each platform has."""
    pair = counted(platform * count + ids)[0]
    return csr_array((np.ones(len(pair), np.int64), (pair // count, pair % count)), shape=(platforms, count))


def common(table: Any, chosen: Ints) -> tuple[tuple[int, ...], ...]:
    """Return how many columns pairs of some rows have in common."""
    part = table[chosen]
    return tuple(map(tuple, (part @ part.T).toarray().tolist()))


def missing(data: Dataset, rows: Columns) -> dict[str, float]:
    """Return the share of rows, items or users of which something is not known that others have."""
    unknown = {"rating": np.isnan(rows.rating), "time": rows.time == 0}
    unknown |= {name: ~known for name, (_, known) in rows.labels.items()}
    items = data.items
    unknown |= {"item title": (items["title"] == items["key"]).to_numpy(), "item category": (items["categories"] == "")}
    if "brand" in items:
        unknown["item brand"] = items["brand"] == ""
    if "price" in items:
        unknown["item price"] = items["price"].isna()
    for name in data.users.columns.drop("key"):
        unknown[f"user {name}"] = data.users[name].isna() | (data.users[name] == "")
    shares = {name: float(np.mean(mask)) if len(mask) else 0.0 for name, mask in unknown.items()}
    return {name: share for name, share in shares.items() if 0 < share < 1}
