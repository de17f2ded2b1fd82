"""What attacks are asked about, and, apart from it, the truth."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec.data.split import concatenate
from fedrec.data.types import Bools, ClientData, Floats, Interactions, Ints
from fedrec.privacy.transcript import Transcript
from fedrec.rng import generator
from fedrec.tasks import Task


@dataclass(frozen=True)
class Records:
    """Interactions [n] that may have been trained on, or not: each of a client, with global user and item ids."""

    client: tuple[str, ...]  # names
    of: Ints  # [n], index of `client`
    user: Ints
    item: Ints
    rating: Floats

    def __len__(self) -> int:
        return len(self.user)

    def take(self, index: Ints | Bools) -> "Records":
        """Return the records that `index` (positions, or a mask [n]) selects."""
        return Records(self.client, self.of[index], self.user[index], self.item[index], self.rating[index])

    def by_client(self, transcript: Transcript) -> Iterator[tuple[str, Ints, "Records", Tensor]]:
        """Yield every client that has records, their places, the records, and the rows of their items in its table."""
        for number in np.unique(self.of):
            client, rows = self.client[number], np.flatnonzero(self.of == number)
            part = self.take(rows)
            yield client, rows, part, torch.from_numpy(np.searchsorted(transcript.ids(client, "item_table"), part.item))

    def scored(self, transcript: Transcript, score: Callable[[str, "Records", Tensor], NDArray[Any]]) -> NDArray[Any]:
        """Return the scores [n] of the records, found client by client."""
        scores = np.zeros(len(self))
        for client, rows, part, item in self.by_client(transcript):
            scores[rows] = score(client, part, item)
        return scores

    def unrated(self) -> "Records":
        """Return the records without their ratings, for an attack that is to find those."""
        return replace(self, rating=np.full(len(self), np.nan, np.float32))

    def profiles(self) -> tuple[Ints, Ints]:
        """Return the first record [k] of every (client, user), in ascending order, and the group [n] of every record.

        A user-level attack takes a (client, user) as one target, and its records as what is known of the user.
        """
        key = self.of * (int(self.user.max(initial=0)) + 1) + self.user
        _, first, group = np.unique(key, return_index=True, return_inverse=True)
        return first, group


def used(part: ClientData, tasks: tuple[Task, ...]) -> ClientData:
    """Return a client without the rows that none of its tasks learns from: they are in no update."""
    return part.mapped(lambda rows: rows.take(np.logical_or.reduce([task.rows(rows) for task in tasks])))


def interactions(parts: Sequence[ClientData], *, per_client: int, seed: int) -> tuple[Records, Bools]:
    """Return records of every client's users, half of them trained on, half held out, and which were trained on.

    At most `per_client` of each kind, drawn by seed; so that they differ by nothing but being trained on, the split
    should be `random`.
    """
    samples, truth = [], []
    for number, part in enumerate(parts):
        held = concatenate([part.validation, part.test])
        count = min(per_client, len(part.train), len(held))
        for kind, rows in ((True, part.train), (False, held)):
            drawn = generator(seed, "targets", part.name, int(kind)).permutation(len(rows))[:count]
            samples.append(_records(part, number, rows.take(np.sort(drawn))))
            truth.append(np.full(count, kind))
    records = _join(parts, samples)
    order = np.lexsort((records.item, records.user, records.of))  # which says nothing of the truth
    return records.take(order), np.concatenate(truth)[order]


def users(parts: Sequence[ClientData], *, per_client: int, seed: int) -> tuple[Records, Bools]:
    """Return the profiles of users who may take part in a client's training, and for each (client, user) whether so.

    Half are its own users, half those of the other clients, at most `per_client` of each; a profile is all that the
    user trains on, wherever that is. The truth is in the order of `Records.profiles`.
    """
    profiles, truth = [], []
    homes = np.concatenate([np.full(len(part.users), number) for number, part in enumerate(parts)])
    ids = np.concatenate([part.users for part in parts])
    for number, part in enumerate(parts):
        rng = generator(seed, "targets", "users", part.name)
        own, other = np.unique(part.users[part.train.user]), ids[~np.isin(ids, part.users)]
        count = min(per_client, len(own), len(other))
        chosen = np.sort(np.concatenate([rng.permutation(own)[:count], rng.permutation(np.unique(other))[:count]]))
        for user in chosen:
            home = parts[int(homes[np.flatnonzero(ids == user)[0]])]
            rows = home.train.take(home.users[home.train.user] == user)
            if len(rows):
                profiles.append(_records(home, number, rows))
                truth.append(bool(np.isin(user, own)))
    return _join(parts, profiles), np.asarray(truth, np.bool_)


def pool_of(part: ClientData) -> ClientData:
    """Return a client whose training records are all that it has, sorted by user and item.

    What of it is trained on is nowhere in it: it is what an adversary with shadow models may know.
    """
    data = concatenate([part.train, part.validation, part.test])
    nothing = np.zeros(0, np.int64)
    rows = data.take(np.lexsort((data.item, data.user)))
    return replace(part, train=rows, validation=rows.take(nothing), test=rows.take(nothing), notes=())


def catalogue(part: ClientData) -> Bools:
    """Return which of a client's items [items] its users interacted with in training: the truth of its item set."""
    truth = np.zeros(len(part.items), np.bool_)
    truth[part.train.item] = True
    return truth


def _records(part: ClientData, number: int, rows: Interactions) -> Records:
    of = np.full(len(rows), number, np.int64)
    return Records((), of, part.users[rows.user], part.items[rows.item], rows.rating)


def _join(parts: Sequence[ClientData], samples: Sequence[Records]) -> Records:
    columns = [np.concatenate([getattr(s, name) for s in samples]) for name in ("of", "user", "item", "rating")]
    return Records(tuple(part.name for part in parts), *columns)
