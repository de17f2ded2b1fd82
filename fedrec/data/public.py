"""Volunteers: users whose interactions are public, and the public probe of (user, item) pairs drawn around them."""

from dataclasses import replace

import numpy as np

import fedrec.seeds as seeds
from fedrec.data.split import concatenate
from fedrec.data.types import Attributes, ClientData, Dataset, Ints
from fedrec.errors import UserError


def volunteers_of(dataset: Dataset, count: int, seed: int) -> Ints:
    """Return the global ids of `count` users with interactions, drawn by seed, ascending.

    Raises UserError unless somebody is left who is no volunteer.
    """
    users = np.unique(dataset.interactions["user"].to_numpy())
    if not 0 <= count < max(len(users), 1):
        raise UserError(f"volunteers: must be below the number of users, {len(users)}, found {count}")
    return np.sort(seeds.generator(seed, "volunteers").permutation(users)[:count])


def without(dataset: Dataset, users: Ints) -> Dataset:
    """Return the dataset without the interactions of some users."""
    frame = dataset.interactions
    return replace(dataset, interactions=frame[~np.isin(frame["user"].to_numpy(), users)])


def informed(client: ClientData, public: ClientData) -> ClientData:
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
    own = client.among(users, client.items)
    note = f"{len(public.users)} of the users are public volunteers, with {len(added)} training rows; never tested here"
    return replace(own, train=concatenate([own.train, added]), notes=(*client.notes, note))


def viewed(public: ClientData, name: str, items: Ints) -> ClientData:
    """Return the public users' split interactions among `items` (global ids, ascending), under a client's name."""
    found = public.mapped(lambda rows: rows.take(np.isin(public.items[rows.item], items))).among(public.users, items)
    new = public.new
    if new is not None:
        here = np.searchsorted(public.items, items)
        new = new[0][here], new[1][here]
    return replace(found, name=name, notes=(), members=(), attributes=Attributes(), new=new)


def probe_of(public: ClientData, each: int, seed: int) -> Ints:
    """Return the ascending ids of the probe's pairs: `each` items for every public user, drawn apart from behaviour.

    The id of (user, item) is user * number of items + item, over global ids. All items if there are fewer than `each`.
    """
    count = len(public.items)
    rng = seeds.generator(seed, "probe")
    return np.concatenate(
        [user * count + np.sort(rng.permutation(count)[:each]) for user in public.users] or [np.empty(0)]
    ).astype(np.int64)
