"""Clients pooled into one: the data of the upper bound that no federation has."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedrec.data.checks import merged
from fedrec.data.store import PLACES, Changed, Clients, Federation, Listed, Part
from fedrec.data.types import ClientData, Interactions, Ints
from fedrec.distinct import distinct


def pool(clients: Sequence[ClientData]) -> ClientData:
    """Return one client `pooled` over the union of users and of items: the data of the pooled upper bound.

    The same global id on two clients is one user. A (user, item) that two clients hold in training is one row, merged
    (`checks.merged`); one that any client holds out is not trained on. `members` are the clients.
    """
    parts = clients if isinstance(clients, Clients) else Listed(tuple(clients))
    users, items = distinct(parts.users_of_all()), parts.catalogue()

    def placed(part: Part) -> Interactions:
        rows = parts.rows(part)
        return replace(rows, user=np.searchsorted(users, rows.user), item=np.searchsorted(items, rows.item))

    def pair(rows: Interactions) -> Ints:
        return rows.user * len(items) + rows.item

    train, validation, test, support = (placed(part) for part in PLACES)
    kept = once = train
    if not (isinstance(parts, Federation) and len(users) == len(parts.users)):  # somebody is at two clients
        kept = train.take(~np.isin(pair(train), np.concatenate([pair(validation), pair(test)])))
        once = merged(kept, pair(kept), once=isinstance(parts, Changed))  # public rows, which every client has
    once = once.take(np.lexsort((once.item, once.time, once.user)))
    dropped, repeats, notes = len(train) - len(kept), len(kept) - len(once), []
    if dropped:
        notes.append(f"{dropped} training interactions that another client holds out were dropped")
    if repeats:
        notes.append(f"{repeats} training interactions were merged with the same user's and item's of another client")
    return ClientData(
        "pooled",
        users,
        items,
        once,
        validation,
        test,
        notes=tuple(notes),
        members=parts,
        attributes=parts.attributes_of_all(),
        new=parts.new_of_all(),
        support=support,
    )
