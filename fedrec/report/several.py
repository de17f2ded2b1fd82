"""What a client's tasks do to each other: all of them together against each of them in a run of its own."""

from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

from fedrec.metrics import NEGATIVES
from fedrec.report.tables import CLIENTS, KEY, METRICS, USERS, Results, Run, as_one, concat, differences
from fedrec.report.verdicts import UNCLEAR, families, verdicts

WORDS = {"helped": "gained", "hurt": "lost", "no detectable difference": "unclear", "": "not measured"}


class Balance(NamedTuple):
    """The tasks of a client, or of all users, by what came of training them together."""

    gained: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    unclear: tuple[str, ...] = ()  # the interval covers 0, or does so corrected for the number of verdicts
    open: tuple[str, ...] = ()  # no interval, or no value

    @property
    def seesaw(self) -> bool:
        """Whether a task lost while another gained (Tang et al., RecSys 2020)."""
        return bool(self.gained and self.lost)

    @property
    def words(self) -> str:
        """The tasks, in words."""
        if self.unclear and not (self.gained or self.lost or self.open):
            return f"no task clearly gained or lost by the others ({', '.join(self.unclear)})"
        ends = {"gained": self.gained, "lost": self.lost, "unclear": self.unclear, "without an interval": self.open}
        return ("SEESAW: " if self.seesaw else "") + ", ".join(
            f"{', '.join(tasks)} {end}" for end, tasks in ends.items() if tasks
        )


def balance(judged: Iterable[tuple[str, str]]) -> Balance:
    """Return the balance of (task, verdict), see `verdicts.verdict`."""
    places: dict[str, list[str]] = {"helped": [], "hurt": [], "no detectable difference": [], "": []}
    for task, verdict in judged:
        verdict = "no detectable difference" if verdict == UNCLEAR else verdict
        places[verdict if verdict in places else ""].append(task)
    return Balance(*(tuple(tasks) for tasks in places.values()))


def transfer(run: Run, together: bool = False) -> pd.DataFrame:
    """Return a row for each client with several tasks, task and metric; `together` takes all users as one client.

    Columns: `client`, `task`, `metric`; `together` and `single`, the test values; `difference` of the two with its 95%
    interval `low`, `high` over users, NaN where a metric has no value for each user; `users`, the pairs; `verdict`,
    corrected for the number of rows that speak; `speaks`, for the one row of each client and task that the balance goes
    by: the task's primary metric or, where that has no interval, the first that has one.
    """
    ours = run.federated
    each = [r.where(lambda table, task=task: table["task"] == task) for task, r in run.singles.items()]  # type: ignore[misc]
    single = Results(concat([r.clients for r in each], METRICS), concat([r.users for r in each], [*USERS, "weight"]))
    tests = [results.test().dropna() for results in (ours, single)]
    tasks = ours.test().reset_index().groupby("client")["task"].nunique()
    keys = [key for key in tests[0].index if tasks[key[0]] > 1 and key in tests[1].index]
    keys += [(client, task, NEGATIVES) for client, task, metric in keys if metric == "auc"]  # its other side
    ours, single = (r.where(lambda table: pd.MultiIndex.from_frame(table[KEY]).isin(keys)) for r in (ours, single))
    if together:
        ours, single = as_one(ours), as_one(single)
    values, alone, apart = ours.test(), single.test(), differences(ours, single)
    gaps = [apart[key] for key in values.index]
    rows = [
        [*key, values[key], alone[key], d.mean, d.low, d.high, d.n] for key, d in zip(values.index, gaps, strict=True)
    ]
    names = [*KEY, "together", "single", "difference", "low", "high", "users"]
    table = pd.DataFrame(rows, columns=names)
    primary = {task: run.primary(str(task)) for task in table["task"].unique()}
    table["speaks"] = False
    for (_, task), part in table.groupby(["client", "task"], sort=False):
        open_to = part if part["low"].isna().all() else part[part["low"].notna()]
        first = open_to[open_to["metric"] == primary[str(task)]]
        table.loc[(first if len(first) else open_to).index[:1], "speaks"] = True
    judged = verdicts(table["metric"], gaps, families(table, "speaks"))
    table["verdict"] = pd.Series(judged, dtype=object)
    if together:
        table["client"] = table["client"].where((table["users"] > 0) & (table["metric"] != "auc"), CLIENTS)
    return table


def balance_of(table: pd.DataFrame) -> Balance:
    """Return the balance of the rows of `transfer` that speak; of one client, or of all users."""
    rows = table[table["speaks"]]
    return balance(zip(rows["task"], rows["verdict"], strict=True))


def balances(table: pd.DataFrame) -> dict[str, Balance]:
    """Return the balance of every client in the rows of `transfer`."""
    return {str(client): balance_of(rows) for client, rows in table.groupby("client", sort=False)}
