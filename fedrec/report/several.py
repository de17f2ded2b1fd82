"""What a client's tasks do to each other: all of them together against each of them in a run of its own."""

from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

from fedrec.metrics import NEGATIVES
from fedrec.report.gaps import differences
from fedrec.report.results import KEY, METRICS, USERS, Results, concat
from fedrec.report.tables import CLIENTS, Run, as_one
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
    ours, names = run.federated, [*KEY, "together", "single", "difference", "low", "high", "users"]
    if not run.singles:
        return pd.DataFrame(columns=[*names, "speaks", "verdict"]).astype({"speaks": bool})
    each = [r.where(lambda table, task=task: table["task"] == task) for task, r in run.singles.items()]  # type: ignore[misc]
    single = Results(concat([r.clients for r in each], METRICS), concat([r.users for r in each], [*USERS, "weight"]))
    tests = [results.test().dropna() for results in (ours, single)]
    tasks = ours.test().reset_index().groupby("client")["task"].nunique()
    several = tests[0].index.get_level_values("client").isin(tasks.index[tasks > 1])
    keys = list(tests[0].index[several & tests[0].index.isin(tests[1].index)])
    keys += [(client, task, NEGATIVES) for client, task, metric in keys if metric == "auc"]  # its other side
    ours, single = (r.where(lambda table: pd.MultiIndex.from_frame(table[KEY]).isin(keys)) for r in (ours, single))
    if together:
        ours, single = as_one(ours), as_one(single)
    values, alone, apart = ours.test(), single.test(), differences(ours, single)
    gaps = [apart[key] for key in values.index]
    rows = [
        [*key, values[key], alone[key], d.mean, d.low, d.high, d.n] for key, d in zip(values.index, gaps, strict=True)
    ]
    table = pd.DataFrame(rows, columns=names)
    primary = {task: run.primary(str(task)) for task in table["task"].unique()}
    each_task, known = [table["client"], table["task"]], table["low"].notna()
    open_to = known | ~known.groupby(each_task).transform("any")
    first = open_to & (table["metric"] == table["task"].map(primary))
    chosen = table[first | open_to & ~first.groupby(each_task).transform("any")]
    table["speaks"] = False
    table.loc[chosen.index[~chosen.duplicated(["client", "task"])], "speaks"] = True
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
    judged: dict[str, list[tuple[str, str]]] = {str(client): [] for client in table["client"]}
    rows = table[table["speaks"]]
    for client, task, verdict in zip(rows["client"], rows["task"], rows["verdict"], strict=True):
        judged[client].append((task, verdict))
    return {client: balance(each) for client, each in judged.items()}
