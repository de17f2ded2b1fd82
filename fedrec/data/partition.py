"""Who holds which interactions: by platform, users in silos, or one client per user; and what of them is public."""

from dataclasses import replace
from math import isfinite
from typing import Literal, get_args

import numpy as np

import fedrec.rng as seeds
from fedrec.data.attributes import attributes_of
from fedrec.data.checks import NAMES, merged, refuse, showable
from fedrec.data.split import SUPPORT, TEST, TRAIN, VALIDATION, Split, concatenate, divide, new_items, ordered
from fedrec.data.types import Attributes, ClientData, Dataset, Interactions, Ints
from fedrec.errors import UserError, choose

Partition = Literal["auto", "platform", "users", "one-user"]
SILOS = 5


def federation(
    dataset: Dataset,
    *,
    clients: int | None,
    partition: Partition = "auto",
    skew: float | None = None,
    split: Split = "leave-one-out",
    fractions: tuple[float, float] = (0.1, 0.1),
    seed: int = 0,
    volunteers: int = 0,
) -> tuple[ClientData, ...]:
    """Return the clients of a dataset, each with its users, its catalogue and its split interactions.

    `platform`: one client per platform, with the catalogue that the platform carries. `users`: users in `clients` silos
    (default 5), of equal size (+-1) or of proportions drawn from Dirichlet(`skew`) with at least one user each;
    `one-user`: one client per user, only `clients` of them if given. Both with the whole catalogue, and with a user's
    interactions of all platforms, those of one item merged. `auto`: `platform` if there are several, else `users`.
    `fractions`: validation and test, for all splits but `leave-one-out`, and of items for tasks about them.
    `volunteers` users belong to nobody: their training rows are public, every client has those of its items, and what
    is held out of them is `public_data` alone.

    Raises UserError for a number of clients, a skew or fractions out of range, and for a temporal split without times.
    """
    choose("partition", partition, get_args(Partition))
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
    rows = Interactions.of(private.interactions, private.labels)
    order = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(owner[order], np.arange(len(names) + 1))
    whole, known = np.arange(len(dataset.items)), attributes_of(dataset, fractions, seed)
    federated = []
    for i, name in enumerate(names):
        column, items = f"carried_{name}", whole
        if partition == "platform" and column in dataset.items:
            items = np.flatnonzero(dataset.items[column].to_numpy())
        elif partition == "platform":  # what it has seen
            items = np.unique(frame["item"].to_numpy()[frame["platform"].to_numpy() == i])
        client = _client(name, rows.take(order[bounds[i] : bounds[i + 1]]), items, split, fractions, seed)
        # Thousands of clients with the whole catalogue have one copy of it.
        federated.append(replace(client, attributes=known if items is whole else known.take(items)))
    if volunteers:
        public = public_data(dataset, volunteers=volunteers, split=split, fractions=fractions, seed=seed)
        federated = [add_public(client, public) for client in federated]
    return tuple(federated)


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
    items = np.arange(len(dataset.items))
    return _client("volunteers", rows.take(np.isin(rows.user, chosen)), items, split, fractions, seed)


def _check(clients: int | None, partition: Partition, skew: float | None, fractions: tuple[float, float]) -> None:
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
    dataset: Dataset, clients: int | None, partition: Partition, skew: float | None, seed: int
) -> tuple[list[str], Ints]:
    """Return the clients' names and the client of every interaction [n], -1 where nobody holds it."""
    frame = dataset.interactions
    if partition == "platform":
        count = len(dataset.platforms)
        if clients not in (None, count):
            raise UserError(f"clients: the data has {count} platforms, one client each, found {clients}")
        return list(dataset.platforms), frame["platform"].to_numpy()
    users = np.unique(frame["user"].to_numpy())
    count = clients if clients is not None else len(users) if partition == "one-user" else SILOS
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


def _client(
    name: str, rows: Interactions, items: Ints, split: Split, fractions: tuple[float, float], seed: int
) -> ClientData:
    notes: tuple[str, ...] = ()
    rows = ordered(rows, seed)
    # A silo holds a user's interactions of all platforms: the same item twice would be both trained on and tested.
    once = merged(rows, rows.user * (int(items[-1]) + 1 if len(items) else 1) + rows.item)
    if len(once) < len(rows):
        notes += (
            f"{len(rows) - len(once)} interactions were merged with the same user's and item's of another platform",
        )
        rows = ordered(once, seed)
    part, counted = divide(rows, split, fractions, seed)
    notes += counted
    if not rows.positive[part == TEST].any():
        notes += ("no test item: this client is trained but not tested",)
    users, user = np.unique(rows.user, return_inverse=True)
    local = replace(rows, user=user, item=np.searchsorted(items, rows.item))
    train, validation, test, support = (local.take(part == which) for which in (TRAIN, VALIDATION, TEST, SUPPORT))
    new = None
    if split == "new-items":
        new = new_items(items, fractions, seed)
        count, tested = (int(mask.sum()) for mask in new)
        notes += (f"{count} of {len(items)} items are new at the validation, {tested} at the test, ranked among them",)
    return ClientData(name, users, items, train, validation, test, notes, new=new, support=support)


def volunteers_of(dataset: Dataset, count: int, seed: int) -> Ints:
    """Return the global ids of `count` users with interactions, drawn by seed, ascending.

    Raises UserError unless somebody is left who is no volunteer.
    """
    users = np.unique(dataset.interactions["user"].to_numpy())
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
