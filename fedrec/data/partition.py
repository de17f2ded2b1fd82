"""Who holds which interactions: by platform, users in silos, or one client per user; and what of them is public."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import Literal, get_args

import numpy as np

import fedrec.rng as seeds
from fedrec.data.attributes import attributes_of
from fedrec.data.checks import NAMES, merged, refuse, showable
from fedrec.data.silos import silos_of
from fedrec.data.split import TEST, Runs, Split, concatenate, divide, new_items, order_of
from fedrec.data.store import Changed, Clients, Federation, edges_of
from fedrec.data.told import Told
from fedrec.data.types import Attributes, Bools, ClientData, Dataset, Interactions, Ints
from fedrec.distinct import distinct
from fedrec.errors import UserError, choose

Partition = Literal["auto", "platform", "users", "one-user"]
BY = "users:"  # and an attribute of users, as a partition
SILOS = 5


def federation(
    dataset: Dataset,
    *,
    clients: int | None,
    partition: str = "auto",
    skew: float | None = None,
    split: Split = "leave-one-out",
    fractions: tuple[float, float] = (0.1, 0.1),
    seed: int = 0,
    volunteers: int = 0,
) -> Clients:
    """Return the clients of a dataset, each with its users, its catalogue and its split interactions.

    `platform`: one client per platform, with the catalogue that the platform carries. `users`: users in `clients` silos
    (default 5), of equal size (+-1) or of proportions drawn from Dirichlet(`skew`) with at least one user each;
    `users:ATTRIBUTE`: silos of users that an attribute has in common, see `silos_of`; `one-user`: one client per user,
    only `clients` of them if given. All with the whole catalogue, and with a user's interactions of all platforms,
    those of one item merged. `auto`: `platform` if there are several, else `users`.
    `fractions`: validation and test, for all splits but `leave-one-out`, and of items for tasks about them.
    `volunteers` users belong to nobody: their training rows are public, every client has those of its items, and what
    is held out of them is `public_data` alone.

    Raises UserError for a number of clients, a skew or fractions out of range, and for a temporal split without times.
    """
    choose_partition("partition", partition)
    choose("split", split, get_args(Split))
    if partition == "auto":
        partition = "platform" if len(dataset.platforms) > 1 else "users"
    _check(clients, partition, skew, fractions)
    if split == "temporal" and not dataset.interactions["time"].any():
        raise UserError("split: 'temporal' needs times, found none in the data")
    private, frame = dataset, dataset.interactions
    if volunteers:
        gone = np.isin(frame["user"].to_numpy(), volunteers_of(dataset, volunteers, seed))
        private = replace(dataset, interactions=frame[~gone])
    names, owner = _owners(private, clients, partition, skew, seed)
    whole = np.arange(len(dataset.items)), None  # thousands of clients have one copy of it
    catalogues = _catalogues(dataset) if partition == "platform" else whole
    rows = Interactions.of(private.interactions, private.labels)
    federated = replace(
        lay_out(names, rows, owner, catalogues, split, fractions, seed),
        attributes=attributes_of(dataset, fractions, seed),
        new=_new(dataset, split, fractions, seed),
    )
    if not volunteers:
        return federated
    public = public_data(dataset, volunteers=volunteers, split=split, fractions=fractions, seed=seed)
    return Changed(federated, functools.partial(add_public, public=public))


def public_data(
    dataset: Dataset,
    *,
    volunteers: int,
    split: Split = "leave-one-out",
    fractions: tuple[float, float] = (0.1, 0.1),
    seed: int = 0,
) -> ClientData:
    """Return the public users' interactions of all platforms, split as a client's, over the whole catalogue."""
    chosen = volunteers_of(dataset, volunteers, seed)
    rows = Interactions.of(dataset.interactions, dataset.labels)
    rows, whole = rows.take(np.isin(rows.user, chosen)), (np.arange(len(dataset.items)), None)
    public = lay_out(["volunteers"], rows, np.zeros(len(rows), np.int64), whole, split, fractions, seed)
    return replace(public, new=_new(dataset, split, fractions, seed))[0]


def lay_out(
    names: Sequence[str],
    rows: Interactions,
    owner: Ints,
    catalogues: tuple[Ints, Ints | None],
    split: Split,
    fractions: tuple[float, float],
    seed: int,
) -> Federation:
    """Return clients that hold the `rows` (global ids) whose `owner` [n] is their number; -1 is nobody.

    `catalogues` are `items` and `item_edges` of the `Federation`, of which nothing is public or new.
    """
    clients = len(names)
    if (owner < 0).any():
        rows, owner = rows.take(owner >= 0), owner[owner >= 0]
    held = np.bincount(owner, minlength=clients)
    rows, owner = _once(*_in_order(rows, owner, seed), seed)
    runs = Runs.find(rows.user, owner)
    part, apart = divide(rows, owner, runs, split, fractions, seed)
    cell = 4 * owner + part
    told = Told(
        split,
        merged=held - np.bincount(owner, minlength=clients),
        users=np.bincount(runs.client, minlength=clients),
        apart=np.bincount(runs.client[apart], minlength=clients),
        liked=np.bincount(owner[~rows.positive], minlength=clients) == 0,
        tested=np.bincount(cell[rows.positive], minlength=4 * clients)[TEST::4] > 0,
    )
    (items, item_edges), user_edges = catalogues, edges_of(told.users)
    place = rows.item
    if item_edges is not None:
        wide = int(max(items.max(initial=0), place.max(initial=0))) + 1
        whose = np.repeat(np.arange(clients), np.diff(item_edges))
        place = np.searchsorted(whose * wide + items, owner * wide + place) - item_edges[owner]
    local = replace(rows, user=runs.of - user_edges[owner], item=place)
    return Federation(
        names,
        local.take(np.argsort(cell, kind="stable")),
        edges_of(np.bincount(cell, minlength=4 * clients)),
        rows.user[runs.start],
        user_edges,
        items,
        item_edges,
        Attributes(),
        None,
        told,
    )


def _in_order(rows: Interactions, owner: Ints, seed: int) -> tuple[Interactions, Ints]:
    order = order_of(rows, seed, owner)
    return rows.take(order), owner[order]


def _once(rows: Interactions, owner: Ints, seed: int) -> tuple[Interactions, Ints]:
    """Return rows in their order, those of one client, user and item merged.

    A silo holds a user's interactions of all platforms: the same item twice would be both trained on and tested.
    """
    pair = Runs.find(rows.user, owner).of * (int(rows.item.max(initial=0)) + 1) + rows.item
    if np.diff(np.sort(pair)).all():
        return rows, owner
    value, count = np.unique(pair, return_counts=True)
    again = count[np.searchsorted(value, pair)] > 1
    first = np.unique(pair[again], return_index=True)[1]
    once = merged(rows.take(again), pair[again])
    owner = np.concatenate([owner[~again], owner[again][first]])
    return _in_order(concatenate([rows.take(~again), once]), owner, seed)


def _catalogues(dataset: Dataset) -> tuple[Ints, Ints]:
    """Return the items that each platform carries, one after the other, and where each one's begin.

    Without a column that says so they are those that it has seen.
    """
    count, frame, carried = len(dataset.items), dataset.interactions, []
    seen = distinct(frame["platform"].to_numpy() * count + frame["item"].to_numpy())
    bounds = np.searchsorted(seen, np.arange(len(dataset.platforms) + 1) * count)
    for number, name in enumerate(dataset.platforms):
        column = f"carried_{name}"
        here = seen[bounds[number] : bounds[number + 1]] - number * count
        carried.append(np.flatnonzero(dataset.items[column].to_numpy()) if column in dataset.items else here)
    return np.concatenate(carried), edges_of(np.array([len(items) for items in carried]))


def _new(dataset: Dataset, split: Split, fractions: tuple[float, float], seed: int) -> tuple[Bools, Bools] | None:
    """Return the masks of all items that are new at the validation, and at the test, if the split makes any."""
    return new_items(np.arange(len(dataset.items)), fractions, seed) if split == "new-items" else None


def choose_partition(thing: str, partition: str) -> str:
    """Return a text that says a partition; raises UserError for another, as `choose` does."""
    if partition.startswith(BY) and partition != BY:
        return partition
    return choose(thing, partition, (*get_args(Partition), f"{BY}ATTRIBUTE"))


def _check(clients: int | None, partition: str, skew: float | None, fractions: tuple[float, float]) -> None:
    if clients is not None and clients < 1:
        raise UserError(f"clients: must be at least 1, found {clients}")
    if skew is not None and partition != "users":
        raise UserError(f"skew: only the partition 'users' can be skewed, found {partition!r}")
    if skew is not None and not (isfinite(skew) and skew > 0):
        raise UserError(f"skew: must be a finite number above 0, found {skew}")
    validation, test = fractions
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise UserError(f"fractions: must be at least 0 and sum to less than 1, found {validation}, {test}")


def _owners(
    dataset: Dataset, clients: int | None, partition: str, skew: float | None, seed: int
) -> tuple[list[str], Ints]:
    """Return the clients' names and the client of every interaction [n], -1 where nobody holds it."""
    frame = dataset.interactions
    if partition == "platform":
        count = len(dataset.platforms)
        if clients not in (None, count):
            raise UserError(f"clients: the data has {count} platforms, one client each, found {clients}")
        return list(dataset.platforms), frame["platform"].to_numpy()
    users = distinct(frame["user"].to_numpy())
    if partition.startswith(BY):
        names, silo = silos_of(dataset.users, users, partition.removeprefix(BY), clients, SILOS)
        refuse(np.asarray([not showable(name) for name in names], dtype=np.bool_), names, "clients", NAMES, "silo")
        return names, silo[frame["user"].to_numpy()]
    usual = len(users) if partition == "one-user" else min(SILOS, len(users))
    count = usual if clients is None else clients
    if count > len(users):
        raise UserError(f"clients: must be at most the number of users, {len(users)}, found {count}")
    shuffled = seeds.generator(seed, "partition").permutation(users)
    if partition == "one-user":
        chosen = shuffled[:count]
        names = [f"user-{key}" for key in dataset.users["key"].to_numpy()[chosen]]
        refuse(np.asarray([not showable(name) for name in names], dtype=np.bool_), names, "clients", NAMES, "user")
        sizes = np.ones(count, dtype=np.int64)
    else:
        chosen = shuffled
        names = [f"silo-{i + 1}" for i in range(count)]
        sizes = _sizes(len(users), count, skew, seed)
    owner = np.full(len(dataset.users), -1)
    owner[chosen] = np.repeat(np.arange(count), sizes)
    return names, owner[frame["user"].to_numpy()]


def _sizes(users: int, silos: int, skew: float | None, seed: int) -> Ints:
    """Return how many users each silo gets; all get one first, so that none is empty."""
    if skew is None:
        return np.asarray([len(part) for part in np.array_split(np.empty(users), silos)])
    share = seeds.generator(seed, "skew").dirichlet(np.full(silos, skew)) * (users - silos)
    extra = np.floor(share).astype(np.int64)
    missing = users - silos - int(extra.sum())
    extra[np.argsort(extra - share, kind="stable")[:missing]] += 1
    return extra + 1


def volunteers_of(dataset: Dataset, count: int, seed: int) -> Ints:
    """Return the global ids of `count` users with interactions, drawn by seed, ascending.

    Raises UserError unless somebody is left who is no volunteer.
    """
    users = distinct(dataset.interactions["user"].to_numpy())
    if not 0 <= count < max(len(users), 1):
        raise UserError(f"volunteers: must be below the number of users, {len(users)}, found {count}")
    return np.sort(seeds.generator(seed, "volunteers").permutation(users)[:count])


def add_public(client: ClientData, public: ClientData) -> ClientData:
    """Return a client that also has the public users, and their training rows among the items that it carries.

    What is held out of the public users is in no part of it: they are never evaluated among its own users.
    """
    users = np.union1d(client.users, public.users)
    rows = public.train.take(np.isin(public.items[public.train.item], client.items))
    added = replace(
        rows,
        user=np.searchsorted(users, public.users[rows.user]),
        item=np.searchsorted(client.items, public.items[rows.item]),
    )
    base = client.among(users, client.items)
    note = f"{len(public.users)} of the users are public volunteers, with {len(added)} training rows; never tested here"
    return replace(base, train=concatenate([base.train, added]), notes=(*client.notes, note))


def view_public(public: ClientData, name: str, items: Ints) -> ClientData:
    """Return the public users' split interactions among `items` (global ids, ascending), under a client's name."""
    view = public.mapped(lambda rows: rows.take(np.isin(public.items[rows.item], items))).among(public.users, items)
    new = public.new
    if new is not None:
        here = np.searchsorted(public.items, items)
        new = new[0][here], new[1][here]
    return replace(view, name=name, notes=(), members=(), attributes=Attributes(), new=new)


def probe_of(public: ClientData, each: int, seed: int) -> Ints:
    """Return the ascending ids of the probe's pairs: `each` items for every public user, drawn apart from behaviour.

    The id of (user, item) is user * number of items + item, over global ids. All items if there are fewer than `each`.
    """
    count = len(public.items)
    rng = seeds.generator(seed, "probe")
    return np.concatenate(
        [user * count + np.sort(rng.permutation(count)[:each]) for user in public.users] or [np.empty(0)]
    ).astype(np.int64)
