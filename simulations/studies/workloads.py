"""The workloads of the study of speed: tables of random interactions, and the experiments that read them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fedrec.data.types import Ints
from fedrec.errors import UserError
from fedrec.rng import generator

HELD_OUT = 2  # rows of every user beside those for training: one for validation, one for the test
COLUMNS = "user=user,item=item,rating=rating,time=time,platform=platform"
COMMON = f"--dataset table --columns {COLUMNS} --split leave-one-out --method fedper --dim 32 --l2 0 --local-epochs 1"


@dataclass(frozen=True)
class Workload:
    """A federation of `platforms` x `users` random users with their own item histories, and how it is trained.

    The training rows of a user: lognormal with this mean, standard deviation `spread` of the logarithm and minimum, or
    the mean itself for everybody where `spread` is 0.
    """

    name: str
    platforms: int
    users: int
    items: int
    mean: int
    words: str
    flags: str
    rounds: int
    spread: float = 0.0
    least: int = 1

    def sizes(self, seed: int, platform: int) -> Ints:
        """Return the number of training rows of a platform's users [users]."""
        if not self.spread:
            return np.full(self.users, self.mean, np.int64)
        normal = generator(seed, self.name, "sizes", platform).standard_normal(self.users)
        # E exp(mu + s x) = exp(mu + s^2 / 2)
        drawn = np.rint(self.mean * np.exp(self.spread * normal - self.spread**2 / 2))
        return np.asarray(np.clip(drawn, self.least, self.items - HELD_OUT), dtype=np.int64)

    def table(self, seed: int) -> pd.DataFrame:
        """Return the interactions: for each user distinct items in a random order, and random ratings from 1 to 5.

        Every item is met by somebody on every platform, so that all carry the whole catalogue.
        """
        return pd.concat([self.platform(seed, p) for p in range(self.platforms)], ignore_index=True)

    def platform(self, seed: int, platform: int) -> pd.DataFrame:
        """Return the interactions of one platform; raises UserError if its users are too few to meet every item."""
        rng, sizes = generator(seed, self.name, "items", platform), self.sizes(seed, platform) + HELD_OUT
        share = -(-self.items // self.users)  # items of which a user is the one who surely meets them
        if share > sizes.min():
            raise UserError(f"users: must be enough to meet {self.items} items, found {self.users}")
        chance = rng.random((self.users, self.items))
        sure = np.arange(self.users * share).reshape(self.users, share) % self.items
        np.put_along_axis(chance, sure, -1.0, axis=1)
        nearest = np.argsort(chance, axis=1)
        user = np.repeat(np.arange(self.users), sizes)
        item = np.concatenate([rng.permutation(row[:size]) for row, size in zip(nearest, sizes, strict=True)])
        time = np.concatenate([np.arange(size) for size in sizes])
        rating = rng.integers(1, 6, len(user))
        return pd.DataFrame(
            {
                "user": platform * self.users + user,
                "item": item,
                "rating": rating,
                "time": time,
                "platform": f"platform-{platform + 1}",
            }
        )

    def experiment(self, path: Path) -> list[str]:
        """Return the options of the experiment on the table that is written at `path`."""
        # One evaluation, after the last round: time per round is training, messages and aggregation.
        plan = f"{COMMON} --rounds {self.rounds} --eval-every {self.rounds} {self.flags}"
        return ["--data-dir", str(path), *plan.split()]


W1 = Workload(
    "W1",
    platforms=5,
    users=1_000,
    items=2_000,
    mean=20,
    rounds=10,
    words="5 platforms, each 1,000 users, 2,000 items and 20,000 training rows: private user tables and heads, a "
    "shared item table and MLP, squared error, Adam.",
    flags="--partition platform --task rating --model mlp --hidden 64,32 --share item_table,body "
    "--optimiser adam --lr 0.001 --batch-size 256",
)
W2 = Workload(
    "W2",
    platforms=1,
    users=943,
    items=1_682,
    mean=106,
    spread=0.9,
    least=20,
    rounds=5,
    words="943 clients of one user each, with 104 training rows on average of 1,682 items: private user vectors and "
    "heads, a shared item table with biases, cross entropy, SGD.",
    flags="--partition one-user --task like --model mf --share item_table,item_bias --optimiser sgd --lr 0.1 "
    "--batch-size 256",
)
