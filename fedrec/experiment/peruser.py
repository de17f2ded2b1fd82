"""What clients measured of every user, or item, of the test, with weights, for paired differences.

A run has it in `users.parquet` and `items.parquet`, by the keys of users and items. Each node writes its part below
`users/` or `items/`; who has all parts joins them. An earlier form of a run has a CSV file for each client there,
which knows users by their places in the data.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedrec.data.types import Keys
from fedrec.errors import UserError, one_line
from fedrec.evaluation.evaluate import PerUser
from fedrec.experiment.naming import natural, slug
from fedrec.experiment.scores import parquet, read_parquet
from fedrec.folders import remove, write_private

UNITS = ("user", "item")
KEYED = ["client", "task", "metric"]
COLUMNS = ["client", "user", "split", "task", "metric", "value", "weight"]  # as read; of items in the place of users
PLACE = "place "  # before what stood for a user in the earlier form: no key


def write_users(home: Path, per_user: Sequence[PerUser], keys: tuple[Keys, Keys], part: str = "") -> None:
    """Write the test values of users to `users.parquet`, those of tasks about items to `items.parquet`.

    `keys` are those of all users and all items. `part` names what is only a part of a run's, see `join_users`.
    """
    for unit, known in zip(UNITS, keys, strict=True):
        parts = [one for one in per_user if one.items == (unit == "item")]
        name = f"{unit}s/{slug(part)}" if part else f"{unit}s"
        if parts:
            write_private(home / f"{name}.parquet", parquet(users_table(parts, known, unit)))


def users_table(parts: Sequence[PerUser], keys: Keys | None = None, unit: str = "user") -> pd.DataFrame:
    """Return the test values of every user, or other `unit`, with their weights, in one table, sorted by client.

    Texts are categories. Without `keys` a user is its place in the data.
    """
    ranks = ranked({one.client for one in parts})
    there = [one for one in parts if len(one.users)] or parts  # no name of a client without a value
    parts = sorted(there, key=lambda one: ranks[one.client])
    sizes = [len(one.users) for one in parts]
    place, who = pd.factorize(np.concatenate([one.users for one in parts]))  # as a file of joined parts has them
    named = who if keys is None else keys[who]
    columns: dict[str, Any] = {
        "client": coded([one.client for one in parts], sizes),
        unit: pd.Categorical.from_codes(place, pd.Index([str(key) for key in named], dtype="str")),
        "task": coded([one.task for one in parts], sizes),
        "metric": coded([one.metric for one in parts], sizes),
        "value": np.concatenate([one.values for one in parts]),
        "weight": np.ones(sum(sizes), np.int64),
    }
    if any(one.weights is not None for one in parts):
        each = [
            np.ones(size, np.int64) if one.weights is None else one.weights
            for one, size in zip(parts, sizes, strict=True)
        ]
        columns["weight"] = np.concatenate(each)
    return pd.DataFrame(columns)


def ranked(clients: Iterable[str]) -> dict[str, int]:
    """Return the places of clients in their order."""
    return {name: place for place, name in enumerate(sorted(clients, key=lambda name: (natural(name), name)))}


def coded(texts: Sequence[str], sizes: Sequence[int]) -> pd.Categorical:
    """Return texts as categories, each as often as its size says."""
    codes, known = pd.factorize(pd.Series(texts, dtype="str"))
    return pd.Categorical.from_codes(np.repeat(codes, sizes), pd.Index(known))


def join_users(home: Path) -> None:
    """Join the parts that nodes have written to one file of users, and one of items; of a client the newest counts."""
    for unit in UNITS:
        parts = sorted((home / f"{unit}s").glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)
        if len(parts) == 1:
            parts[0].replace(home / f"{unit}s.parquet")
        elif parts:
            table = pd.concat([read_parquet(path) for path in parts], ignore_index=True)
            table = table.drop_duplicates([*KEYED, unit], keep="last")
            rank = table["client"].map(ranked(table["client"].unique()))
            write_private(home / f"{unit}s.parquet", parquet(table.iloc[np.argsort(rank.to_numpy(), kind="stable")]))
        if parts:
            remove(home / f"{unit}s")


def read_users(home: Path, read_csv: Any) -> pd.DataFrame:
    """Return the test values of users and items of a run or a baseline, a value once; there may be none.

    Columns: client, user, split, task, metric, value, weight; of a task about items `user` is the item. `read_csv`
    reads a file of the earlier form. Raises UserError for a damaged file.
    """
    found = [table for unit in UNITS for table in (*_parts(home, unit), *_earlier(home, unit, read_csv))]
    found = [table for table in found if len(table)]
    if len(found) < 2:
        return found[0] if found else pd.DataFrame(columns=COLUMNS)
    return pd.concat(found, ignore_index=True).drop_duplicates(["user", *KEYED], ignore_index=True)


def _parts(home: Path, unit: str) -> Iterable[pd.DataFrame]:
    """Yield what stands in Parquet: all of a unit, or parts of which nobody had all."""
    for path in (home / f"{unit}s.parquet", *sorted((home / f"{unit}s").glob("*.parquet"))):
        if path.exists():
            try:
                yield as_read(read_parquet(path), unit)
            except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors too
                raise UserError(f"run: {path} must be a table of {unit}s, found {one_line(error)}") from None


def as_read(table: pd.DataFrame, unit: str = "user") -> pd.DataFrame:
    """Return a `users_table` as it is read of a run, with plain texts."""
    table = table.rename(columns={unit: "user"}).assign(split="test")[COLUMNS]
    return table.astype({name: "str" for name in ("user", *KEYED) if table[name].dtype == "category"})


def _earlier(home: Path, unit: str, read_csv: Any) -> Iterable[pd.DataFrame]:
    """Yield what stands in CSV files, one for each client, with places of users in the data."""
    columns = [unit if name == "user" else name for name in COLUMNS[:-1]]
    for path in sorted((home / f"{unit}s").glob("*.csv")):
        table = read_csv(path, columns).rename(columns={unit: "user"})
        table = table if "weight" in table else table.assign(weight=1.0)
        table = table[table["split"] == "test"].assign(user=PLACE + table["user"])
        yield table[COLUMNS].drop_duplicates(["user", *KEYED])
