"""All clients' interactions as one set of columns: a client is a slice of them, made when it is asked for."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal, overload
from weakref import WeakValueDictionary

import numpy as np

from fedrec.data.split import PARTS, concatenate
from fedrec.data.told import Told
from fedrec.data.types import Attributes, Bools, ClientData, Interactions, Ints, Sliced
from fedrec.distinct import distinct

Part = Literal["train", "validation", "test", "support"]
PLACES: dict[Part, int] = dict(zip(("train", "validation", "test", "support"), PARTS, strict=True))
RECENT = 64  # clients that are kept though nobody holds them


class Clients(Sequence[ClientData], ABC):
    """Clients, one at a time, and what is asked of all of them at once, as arrays.

    A client that somebody holds is the same object whenever it is asked for; of the others a few are kept.
    """

    names: Sequence[str]

    @abstractmethod
    def make(self, number: int) -> ClientData:
        """Return the client of a number, from 0."""

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> ClientData: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[ClientData, ...]: ...

    def __getitem__(self, index: int | slice) -> ClientData | tuple[ClientData, ...]:
        if isinstance(index, slice):
            return tuple(self[number] for number in range(*index.indices(len(self))))
        number = range(len(self))[index]
        data = self._held.get(number)
        if data is None:
            data = self._held.setdefault(number, self.make(number))
            self._recent.append(data)
        return data

    def __iter__(self) -> Iterator[ClientData]:
        return (self[number] for number in range(len(self)))

    @cached_property
    def _held(self) -> "WeakValueDictionary[int, ClientData]":
        return WeakValueDictionary()

    @cached_property
    def _recent(self) -> deque[ClientData]:
        return deque(maxlen=RECENT)

    @property
    def alike(self) -> bool:
        """Whether all are known to carry the same items."""
        return len(self) == 1

    def users_of_all(self) -> Ints:
        """Return the global ids of the clients' users, client by client."""
        return np.concatenate([data.users for data in self])

    def user_counts(self) -> Ints:
        """Return how many users each client has [clients]."""
        return np.array([len(data.users) for data in self], np.int64)

    def catalogue(self) -> Ints:
        """Return the global ids of the items that some client carries, ascending."""
        return distinct(np.concatenate([data.items for data in self]))

    def item_counts(self) -> Ints:
        """Return how many items each client carries [clients]."""
        return np.array([len(data.items) for data in self], np.int64)

    def row_counts(self, part: Part) -> Ints:
        """Return how many rows each client has in a part [clients]."""
        return np.array([len(getattr(data, part)) for data in self], np.int64)

    def rows(self, part: Part) -> Interactions:
        """Return the rows of a part of all clients, client by client, with global ids."""
        return concatenate(
            [
                replace(rows, user=data.users[rows.user], item=data.items[rows.item])
                for data in self
                for rows in [getattr(data, part)]
            ]
        )

    def attributes_of_all(self) -> Attributes:
        """Return what is public of the items of `catalogue`; all clients know the same of an item."""
        index = np.unique(np.concatenate([data.items for data in self]), return_index=True)[1]
        parts = [data.attributes for data in self]
        joined = Attributes(
            {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values},
            np.concatenate([part.train for part in parts]),
            np.concatenate([part.validation for part in parts]),
            np.concatenate([part.test for part in parts]),
            parts[0].deviation,
        )
        return joined.take(index) if len(joined.train) else joined

    def new_of_all(self) -> tuple[Bools, Bools] | None:
        """Return the masks of the items of `catalogue` that are new at the validation, and at the test, if any are."""
        items = self.catalogue()
        masks = np.zeros((2, len(items)), np.bool_)
        for data in self:
            if data.new is None:
                return None
            masks[:, np.searchsorted(items, data.items)] |= data.new
        return masks[0], masks[1]


@dataclass(frozen=True, eq=False)
class Listed(Clients):
    """Clients that are there already."""

    clients: tuple[ClientData, ...]

    @property
    def names(self) -> Sequence[str]:  # type: ignore[override]
        """The clients' names."""
        return [data.name for data in self.clients]

    def make(self, number: int) -> ClientData:
        """See Clients."""
        return self.clients[number]


@dataclass(frozen=True, eq=False)
class Changed(Clients):
    """Clients as others are, each `changed` when it is asked for."""

    clients: Clients
    changed: Callable[[ClientData], ClientData]

    @property
    def names(self) -> Sequence[str]:  # type: ignore[override]
        """The clients' names."""
        return self.clients.names

    @property
    def alike(self) -> bool:
        """See Clients."""
        return self.clients.alike

    def make(self, number: int) -> ClientData:
        """See Clients."""
        return self.changed(self.clients.make(number))


@dataclass(frozen=True, eq=False)
class Federation(Clients):
    """Clients whose rows stand in common columns, sorted by client, part, user and time.

    `edges` [4 * clients + 1] are the first rows of each client's parts, of which `columns` has local users and items.
    Client c's users are `users[user_edges[c]:user_edges[c + 1]]`, global ids, and so are its items, but all have the
    whole catalogue where `item_edges` is None. `attributes` and `new` are of the whole catalogue.
    """

    names: Sequence[str]
    columns: Interactions
    edges: Ints
    users: Ints
    user_edges: Ints
    items: Ints
    item_edges: Ints | None
    attributes: Attributes
    new: tuple[Bools, Bools] | None
    told: Told

    def make(self, number: int) -> ClientData:
        """See Clients."""
        edges = self.edges[4 * number : 4 * number + 5].tolist()
        train, validation, test, support = (
            Sliced.lying(self.columns, self.edges, 4 * number + part) if first < last else self._nothing
            for part, (first, last) in enumerate(pairwise(edges))
        )
        items, known, new = self.items, self.attributes, self.new
        if self.item_edges is not None:
            items = items[slice(*self.item_edges[number : number + 2])]
            known = known.take(items) if len(known.train) else known
            new = new and (new[0][items], new[1][items])
        return ClientData(
            self.names[number],
            self.users[slice(*self.user_edges[number : number + 2])],
            items,
            train,
            validation,
            test,
            tuple(self.told.notes(number, new)),
            attributes=known,
            new=new,
            support=support,
        )

    @cached_property
    def _nothing(self) -> Interactions:
        return self.columns.take(slice(0, 0))

    @property
    def alike(self) -> bool:
        """See Clients."""
        return self.item_edges is None

    def users_of_all(self) -> Ints:
        """See Clients."""
        return self.users

    def user_counts(self) -> Ints:
        """See Clients."""
        return np.diff(self.user_edges)

    def catalogue(self) -> Ints:
        """See Clients."""
        return self.items if self.item_edges is None else distinct(self.items)

    def item_counts(self) -> Ints:
        """See Clients."""
        return np.full(len(self), len(self.items)) if self.item_edges is None else np.diff(self.item_edges)

    def row_counts(self, part: Part) -> Ints:
        """See Clients."""
        return np.diff(self.edges)[PLACES[part] :: 4]

    def rows(self, part: Part) -> Interactions:
        """See Clients."""
        count, first = self.row_counts(part), self.edges[PLACES[part] : -1 : 4]
        owner = np.repeat(np.arange(len(self)), count)
        rows = self.columns.take(np.arange(len(owner)) + (first - (np.cumsum(count) - count))[owner])
        item = rows.item if self.item_edges is None else self.items[self.item_edges[owner] + rows.item]
        return replace(rows, user=self.users[self.user_edges[owner] + rows.user], item=item)

    def attributes_of_all(self) -> Attributes:
        """See Clients."""
        whole = self.item_edges is None or not len(self.attributes.train)
        return self.attributes if whole else self.attributes.take(self.catalogue())

    def new_of_all(self) -> tuple[Bools, Bools] | None:
        """See Clients."""
        items = self.catalogue()
        return self.new and (self.new[0][items], self.new[1][items])

    def without(self, clients: Bools, users: Bools) -> "Federation":
        """Return the rest of some clients [clients] and of some users [users of all] with all their rows."""
        owner = np.repeat(np.arange(len(self)), np.diff(self.user_edges))
        stay = ~(users | clients[owner])
        cell = np.repeat(np.arange(len(self.edges) - 1), np.diff(self.edges))
        run = self.user_edges[cell // 4] + self.columns.user
        kept = stay[run]
        user_edges = edges_of(np.bincount(owner[stay], minlength=len(self))[~clients])
        columns, client = self.columns.take(kept), (np.cumsum(~clients) - 1)[cell[kept] // 4]
        counts = np.bincount(cell[kept], minlength=len(self.edges) - 1).reshape(-1, 4)[~clients]
        items, item_edges = self.items, self.item_edges
        if item_edges is not None:
            sizes = np.diff(item_edges)
            items, item_edges = items[np.repeat(~clients, sizes)], edges_of(sizes[~clients])
        return replace(
            self,
            names=[name for name, gone in zip(self.names, clients.tolist(), strict=True) if not gone],
            columns=replace(columns, user=(np.cumsum(stay) - 1)[run[kept]] - user_edges[client]),
            edges=edges_of(counts.reshape(-1)),
            users=self.users[stay],
            user_edges=user_edges,
            items=items,
            item_edges=item_edges,
            told=self.told.take(~clients),
        )


def edges_of(counts: Ints) -> Ints:
    """Return where each of some parts [n] begins, and the last one ends [n + 1]."""
    return np.append(0, np.cumsum(counts))
