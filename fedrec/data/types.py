"""What the other rooms see of data: a dataset of all platforms, and the part that one client holds."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Keys = Ints | NDArray[np.object_]  # of users or items: each stands for its text
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
COLUMNS = ("user", "item", "time", "rating", "positive")  # of interactions, beside the labels
WEIGHT = "weight"  # the column of what rows weigh, if they do


def known_column(label: str) -> str:
    """Return the name of the column that says of which rows it is known whether they have a label."""
    return f"{label}?"  # which no task can be called


@dataclass(frozen=True)
class Truth:
    """The planted structure of a synthetic market; for tests and studies only, never for training.

    The noiseless preference of a user on a platform is `user_taste[platform, user] @ item_taste[platform, item] +
    popularity[platform, item]`.
    """

    user_taste: NDArray[np.float64]  # [platforms, users, k]
    item_taste: NDArray[np.float64]  # [platforms, items, k]
    popularity: NDArray[np.float64]  # [platforms, items], log scale
    similarity: NDArray[np.float64]  # [platforms], 0 = unrelated, 1 = clone


@dataclass(frozen=True)
class Dataset:
    """Interactions of all platforms over one public catalogue.

    `interactions` has the columns `user`, `item` (int64 rows of `users` and `items`), `platform` (int64 index of
    `platforms`), `time` (int64 seconds; 0 where unknown), `rating` (float32; NaN where there is none), `positive`
    (bool: counts as a positive for ranking) and one bool column for each of `labels`; beside a label that is not known
    of every row a bool column `known_column(label)`, of which it is; where rows have weights `weight` (float32, above
    0). It has no duplicate (platform, user, item), and is sorted by (platform, user, time, item). `items` may have a
    bool column `carried_<platform>` for each platform: its catalogue.
    """

    name: str
    interactions: pd.DataFrame
    users: pd.DataFrame  # column `key` (str, unique), then attributes
    # columns `key` (str, unique), `title` (str), `categories` ("a|b", may be ""), and where items have them `price`
    # (float, NaN: unknown) and `brand` (str, "": unknown)
    items: pd.DataFrame
    platforms: tuple[str, ...]
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what cleaning did, for the report
    truth: Truth | None = None


@dataclass(frozen=True, slots=True)
class Interactions:
    """Columns of equal length n; `user` and `item` are local indices of one client.

    A label that is not known of every row has a column `known_column(label)` among `labels`, and False where it is not.
    `weight` is what a row counts in training, above 0, in units that only a client's own rows share; None: all alike.
    They may be views of columns that other clients' rows stand in: nobody writes into them.
    """

    user: Ints
    item: Ints
    time: Ints
    rating: Floats
    positive: Bools
    labels: dict[str, Bools] = field(default_factory=dict)
    weight: Floats | None = None

    def __len__(self) -> int:
        return len(self.user)

    @staticmethod
    def of(frame: pd.DataFrame, labels: Iterable[str]) -> "Interactions":
        """Return the columns of a table, and where it says so which of its labels are known, and what rows weigh."""
        columns = {name: frame[name].to_numpy() for name in COLUMNS}
        names = list(labels)
        names += [name for name in map(known_column, names) if name in frame]
        weight = frame[WEIGHT].to_numpy() if WEIGHT in frame else None
        return Interactions(**columns, labels={name: frame[name].to_numpy() for name in names}, weight=weight)

    def known(self, label: str) -> Bools:
        """Return the mask [n] of the rows of which it is known whether they have a label."""
        return self.labels.get(known_column(label), np.ones(len(self), np.bool_))

    @staticmethod
    def empty() -> "Interactions":
        """Return no interactions, without labels."""
        none = np.zeros(0, np.int64)
        return Interactions(none, none, none, np.zeros(0, np.float32), np.zeros(0, np.bool_))

    def take(self, index: Ints | Bools | slice) -> "Interactions":
        """Return the rows that `index` (positions, a mask of length n, or a slice: then they are views) selects."""
        return Interactions(  # written out: it is called four times for every client
            self.user[index],
            self.item[index],
            self.time[index],
            self.rating[index],
            self.positive[index],
            {name: column[index] for name, column in self.labels.items()},
            None if self.weight is None else self.weight[index],
        )


class Sliced(Interactions):
    """Rows of columns that others' rows stand in: a column is a view, made when it is asked for.

    Of hundreds of thousands of clients the views would take more memory than the rows.
    """

    __slots__ = ("_edges", "_place", "_whole")

    @staticmethod
    def lying(whole: Interactions, edges: Ints, place: int) -> Interactions:
        """Return the rows from `edges[place]` to `edges[place + 1]`."""
        made = object.__new__(Sliced)
        object.__setattr__(made, "_whole", whole)
        object.__setattr__(made, "_edges", edges)
        object.__setattr__(made, "_place", place)
        return made

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # of a copy with columns of its own
            raise AttributeError(name)
        rows, value = slice(*self._edges[self._place : self._place + 2]), getattr(self._whole, name)
        if name == "labels":
            return {label: column[rows] for label, column in value.items()}
        return None if value is None else value[rows]

    @staticmethod
    def together(parts: Sequence[Interactions]) -> Interactions | None:
        """Return the rows of parts that lie in the same columns, one after the other; of others, or of one, nothing."""
        lying = [part for part in parts if isinstance(part, Sliced)]
        wholes = {(id(getattr(part, "_whole", part)), id(getattr(part, "_edges", part))) for part in lying}
        if len(lying) < 2 or len(wholes) > 1 or sum(map(len, lying)) < sum(map(len, parts)):
            return None
        places, edges = np.array([part._place for part in lying]), lying[0]._edges
        first, counts = edges[places], edges[places + 1] - edges[places]
        rows: Ints = np.arange(counts.sum()) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        whole: Interactions = lying[0]._whole
        return whole.take(rows)

    def __len__(self) -> int:
        edges = getattr(self, "_edges", None)
        return len(self.user) if edges is None else int(edges[self._place + 1] - edges[self._place])


def _none() -> Bools:
    return np.zeros(0, dtype=np.bool_)


@dataclass(frozen=True)
class Attributes:
    """What is public of n items beside their ids, and which of them the tasks about items learn from.

    `values` has for each attribute a matrix [n, C], with NaN in the row of an item of which it is not known: `category`
    has 1 for each of C names that an item has, else 0; `brand` one 1 among C names; `price` [n, 1] is the standardised
    logarithm, in units of `deviation`. `train`, `validation` and `test` [n] part the items.
    """

    values: dict[str, Floats] = field(default_factory=dict)
    train: Bools = field(default_factory=_none)
    validation: Bools = field(default_factory=_none)
    test: Bools = field(default_factory=_none)
    deviation: float = 1.0

    def take(self, index: Ints) -> "Attributes":
        """Return what is known of the items at some positions."""
        values = {name: value[index] for name, value in self.values.items()}
        parts = (self.train[index], self.validation[index], self.test[index])
        return Attributes(values, *parts, self.deviation)

    def known(self, name: str) -> Bools:
        """Return the mask [n] of the items of which an attribute is known."""
        return np.asarray(np.isfinite(self.values[name]).all(axis=1))


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class ClientData:
    """What one client holds: its users, its catalogue and its split interactions; equal to nothing but itself.

    `users[u]` and `items[i]` are the global ids of local rows u and i; both ascend. `items` is the client's whole
    catalogue, so it says nothing about which items its users touched. `attributes` is what everybody knows of them.
    `members` is set on a pooled client only: the clients whose data it holds, for evaluation one by one. `new` are the
    masks [items] of the items that nobody has met before the validation, and before the test; None where every item may
    be met in training. `support` is what is known of new users when they are asked, and never trained on before.
    """

    name: str
    users: Ints
    items: Ints
    train: Interactions
    validation: Interactions
    test: Interactions
    notes: tuple[str, ...] = ()
    members: Sequence["ClientData"] = ()
    attributes: Attributes = field(default_factory=Attributes)
    new: tuple[Bools, Bools] | None = None
    support: Interactions = field(default_factory=lambda: Interactions.empty())

    def mapped(self, change: Callable[[Interactions], Interactions]) -> "ClientData":
        """Return the same with each split's interactions as `change` makes them."""
        splits = [change(rows) for rows in (self.train, self.validation, self.test, self.support)]
        return replace(self, train=splits[0], validation=splits[1], test=splits[2], support=splits[3])

    def among(self, users: Ints, items: Ints) -> "ClientData":
        """Return the same rows over other users and items (global ids, ascending), which hold all that rows have."""
        user, item = np.searchsorted(users, self.users), np.searchsorted(items, self.items)
        moved = self.mapped(lambda rows: replace(rows, user=user[rows.user], item=item[rows.item]))
        return replace(moved, users=users, items=items)

    def without(self, users: Ints) -> "ClientData":
        """Return the same without some local users."""
        kept = np.ones(len(self.users), np.bool_)
        kept[users] = False
        place = np.cumsum(kept) - 1

        def left(rows: Interactions) -> Interactions:
            rest = rows.take(kept[rows.user])
            return replace(rest, user=place[rest.user])

        return replace(self.mapped(left), users=self.users[kept])

    def offered(self, split: Literal["train", "validation", "test"]) -> Bools:
        """Return the mask [items] of the items that a split is about; all of them where no item is new."""
        if self.new is None:
            return np.ones(len(self.items), dtype=np.bool_)
        validation, test = self.new
        return {"train": ~(validation | test), "validation": validation, "test": test}[split]

    def known(self, split: Literal["validation", "test"]) -> list[Interactions]:
        """Return what is known of users when the rows of a split are asked: training, for the test also validation.

        Of new users it is their support.
        """
        parts = [self.train] if split == "validation" else [self.train, self.validation]
        return [*parts, self.support] if len(self.support) else parts
