"""What is asked at a split, whatever answers: which users of some clients, for which items, among which others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from fedrec.data.split import concatenate
from fedrec.data.types import Bools, ClientData, Ints
from fedrec.distinct import distinct
from fedrec.metrics import Values
from fedrec.rng import generator
from fedrec.training.rows import edges, ranges

Split = Literal["validation", "test"]


@dataclass(frozen=True)
class Pairs:
    """Pairs of a user and an item, each once, users one after the other and the items of each ascending."""

    counts: Ints  # [users] how many a user has
    start: Ints  # [users] where they begin
    item: Ints  # [pairs]

    @staticmethod
    def of(keys: Ints, users: Ints, width: int) -> Pairs:
        """Return those of ascending `users` among ascending keys, user x width + item."""
        start, stop = (np.searchsorted(keys, (users + last) * width) for last in (0, 1))
        return Pairs(stop - start, start, keys % width)

    def take(self, part: Ints) -> tuple[Ints, Ints]:
        """Return the pairs of the users at some positions as (number in `part`, item)."""
        counts = self.counts[part]
        return np.repeat(np.arange(len(part)), counts), self.item[ranges(self.start[part], counts)]


@dataclass(frozen=True, eq=False)
class Asked:
    """The users of some clients who have a held-out positive; users of all clients are numbered end to end."""

    datas: tuple[ClientData, ...]
    split: Split
    first: Ints  # [clients + 1] the first user of every client
    items: Ints  # [clients] how many items a client has
    users: Ints  # [n] ascending
    owner: Ints  # [n] position of the user's client
    relevant: Pairs  # the held-out positives
    known: Pairs  # other positives, which are no candidates

    @staticmethod
    def of(datas: Sequence[ClientData], split: Split) -> Asked:
        """Return what is asked of the users of some clients."""
        first = edges(np.array([len(data.users) for data in datas]))
        items = np.array([len(data.items) for data in datas])
        width = max(int(items.max()), 1)
        held = positives(datas, [split], first, width)
        names = ["train", "support"] if split == "validation" else ["train", "validation", "support"]
        known = positives(datas, names, first, width)
        users = distinct(held // width)
        owner = np.searchsorted(first, users, side="right") - 1
        pairs = [Pairs.of(keys, users, width) for keys in (held, np.setdiff1d(known, held, assume_unique=True))]
        return Asked(tuple(datas), split, first, items, users, owner, *pairs)

    @cached_property
    def met(self) -> Pairs:
        """All positives of any split."""
        width = max(int(self.items.max()), 1)
        keys = positives(self.datas, ["train", "validation", "test", "support"], self.first, width)
        return Pairs.of(keys, self.users, width)

    def closed(self, owner: Ints, width: int) -> Bools | None:
        """Return the mask [B, width] of what the clients `owner` do not offer at the split; None if they offer all."""
        sizes = self.items[owner]
        own = [position for position in distinct(owner).tolist() if self.datas[position].new is not None]
        if not own and int(sizes.min()) == width:
            return None
        mask: Bools = np.arange(width) >= sizes[:, None]
        for position in own:
            mask[owner == position, : self.items[position]] = ~self.datas[position].offered(self.split)
        return mask

    def keys(self, seed: int) -> Callable[[Ints, int], Values]:
        """Return what draws the keys [B, width] of the next users, of the clients `owner`: the smallest are candidates.

        Users are asked in their order. Behind the end of a catalogue a key is 2.
        """
        last, rng = -1, generator(seed)

        def draw(owner: Ints, width: int) -> Values:
            nonlocal last, rng
            found = np.full((len(owner), width), 2.0)
            for row, position in zip(found, owner.tolist(), strict=True):
                if position != last:
                    last, rng = position, generator(seed, "candidates", self.datas[position].name, self.split)
                rng.random(out=row[: self.items[position]])
            return found

        return draw


def positives(datas: Sequence[ClientData], splits: Sequence[str], first: Ints, width: int) -> Ints:
    """Return the positives of some splits as ascending keys, user x width + item, each once."""
    parts = [getattr(data, name) for name in splits for data in datas]
    sizes = np.array([len(part) for part in parts])
    rows = concatenate(parts)
    user = rows.user + np.repeat(np.tile(first[:-1], len(splits)), sizes)
    return distinct((user * width + rows.item)[rows.positive])
