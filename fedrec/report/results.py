"""The values of one training as they are read: the one door to the metrics of clients, and of users, in a folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from fedrec.errors import UserError, one_line
from fedrec.experiment.peruser import read_users
from fedrec.experiment.scores import FILES, read_parquet

KEY = ["client", "task", "metric"]
METRICS = ["round", *KEY, "split", "value"]
USERS = ["client", "user", "split", "task", "metric", "value"]
COSTS = ["teacher_parameters", "student_parameters", "teacher_ms", "student_ms"]
STUDENT = ["client", "task", "metric", "users", "teacher", "student", "low", "high", *COSTS]
CHANGED = [*KEY, "before", "after", "difference", "low", "high", "users"]  # columns of `changes.csv`


@dataclass(frozen=True)
class Results:
    """The values of one training: `clients` by round, client, split, task and metric; `users` by user of the test.

    `users` has the values and weights of which the test's are the means, see `fedrec.evaluation.evaluate.PerUser`,
    each once. Of a task about items, it has the held-out items in the column `user`.
    """

    clients: pd.DataFrame
    users: pd.DataFrame

    def where(self, holds: Callable[[pd.DataFrame], Any]) -> "Results":
        """Return the rows for which something holds, which gives a mask [rows] of either table."""
        return Results(self.clients[holds(self.clients)], self.users[holds(self.users)])

    def test(self) -> pd.Series:
        """Return the test values, indexed by client, task and metric, in the order of the file."""
        return self._test

    @cached_property
    def _test(self) -> pd.Series:
        rows = self.clients[self.clients["split"] == "test"]
        return rows.drop_duplicates(KEY, keep="last").set_index(KEY)["value"]


def read_table(path: Path, columns: Sequence[str], named: bool = True) -> pd.DataFrame:
    """Return a CSV file with at least `columns`; an absent or empty file is an empty table.

    A name stays the text it is ("007", "NA"); only numbers can be missing, which are all that is not `named`. Raises
    UserError for a missing column.
    """
    if not path.exists() or not path.stat().st_size:
        return pd.DataFrame(columns=list(columns))
    names = ("client", "user", "item", "split", "task", "metric", "direction", "parameter", "device", "during", "kind")
    counts = ("round", "value", "weight", "rows", "bytes", "seconds", "train_loss", "bytes_up", "bytes_down")
    types: dict[Any, Any] = dict.fromkeys((*names, "text"), str)
    nothing = ["", "nan", "NaN"]
    missing = dict.fromkeys((*counts, *STUDENT[3:], *CHANGED[3:]), nothing) if named else nothing
    return checked(path, pd.read_csv(path, dtype=types, keep_default_na=False, na_values=missing), columns)


def checked(path: Path, table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return a table that was read; raises UserError if it lacks a column."""
    for column in columns:
        if column not in table:
            raise UserError(
                f"{path.name}: must have the columns {', '.join(columns)}, found {', '.join(map(str, table))}"
            )
    return table


def read_clients(folder: Path) -> pd.DataFrame:
    """Return the metrics of the clients of a run, or of a baseline, by round; raises UserError for a damaged file."""
    small, large = (folder / name for name in FILES)
    if not large.exists():
        return read_table(small, METRICS)
    try:
        return checked(large, read_parquet(large), METRICS)
    except (OSError, ValueError) as error:  # pyarrow's errors are of these too
        raise UserError(f"run: {large} must be the metrics of clients, found {one_line(error)}") from None


def is_measured(folder: Path) -> bool:
    """Return whether a folder has the metrics of clients."""
    return any((folder / name).exists() for name in FILES)


def read_results(folder: Path) -> Results:
    """Return the metrics of the clients and of the users in a folder; of users there may be none."""
    return Results(read_clients(folder), read_users(folder, read_table))


def measured_in(folder: Path) -> dict[str, Results]:
    """Return the results of each folder in a folder that has some, by name."""
    return {path.name: read_results(path) for path in sorted(folder.glob("*")) if is_measured(path)}


def concat(tables: Sequence[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    """Return the rows of all tables; one without a row has the columns alone."""
    some = [table for table in tables if len(table)]
    return pd.concat(some, ignore_index=True) if some else pd.DataFrame(columns=columns)
