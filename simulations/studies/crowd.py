"""A made-up table of any size, for studies of cost: users of unlike activity, and items of a long-tailed popularity."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedrec.data import Dataset
from fedrec.distinct import distinct
from fedrec.rng import generator

FEWEST = 4  # rows of a user
SPREAD = 0.6  # standard deviation of the logarithm of the users' activity
TAIL = 0.8  # item r of the popularity has a share proportional to 1 / (r + 10)^TAIL


@dataclass(frozen=True)
class Crowd:
    """A table of `users`, each with about `rows` of the `items`; nobody's taste is in it, only its size."""

    users: int = 1000
    items: int = 20_000
    rows: float = 20.0
    seed: int = 0

    def load(self) -> Dataset:
        """Return the table; a user meets an item once."""
        rng = generator(self.seed, "crowd")
        activity = rng.lognormal(-(SPREAD**2) / 2, SPREAD, self.users)
        counts = np.maximum(FEWEST, np.rint(self.rows * activity)).astype(np.int64)
        share = (np.arange(self.items) + 10.0) ** -TAIL
        popular = rng.permutation(self.items)
        drawn = popular[np.searchsorted(np.cumsum(share / share.sum()), rng.random(counts.sum()), side="right")]
        pairs = distinct(np.repeat(np.arange(self.users), counts) * self.items + drawn)
        user, item = np.divmod(pairs, self.items)
        time = rng.integers(1, 2**30, len(pairs))
        order = np.lexsort((item, time, user))
        frame = pd.DataFrame({"user": user[order], "item": item[order], "platform": 0, "time": time[order]})
        frame["rating"], frame["positive"] = np.float32("nan"), True
        people, things = (pd.Series(np.char.mod("%d", np.arange(n)), dtype="str") for n in (self.users, self.items))
        items = pd.DataFrame({"key": things, "title": things, "categories": ""})
        return Dataset("crowd", frame, pd.DataFrame({"key": people}), items, ("all",))
