"""A run directory as tables: the comparison of every client with its baselines."""

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedrec.errors import UserError
from fedrec.evaluation.differences import squared, whole
from fedrec.experiment.kept import read_rows
from fedrec.experiment.privacy import NOT_PRIVATE
from fedrec.experiment.records import (
    CLIPPED,
    CLOSED,
    FAULTS,
    LEDGER,
    NO_STUDENT,
    NOT_CLOSED,
    NOT_SINGLE,
    OWN,
    PLAIN,
    SINGLE,
    UNCLIPPED,
)
from fedrec.folders import refuse_unfinished
from fedrec.metrics import NEGATIVES, Paired, higher_is_better
from fedrec.report.gaps import ENDS, gaps
from fedrec.report.results import CHANGED, KEY, STUDENT, Results, is_measured, measured_in, read_results, read_table
from fedrec.report.verdicts import by_value, families, verdicts
from fedrec.tasks import ATTRIBUTES

BASELINES = ("local", "pooled", "popularity")
LEAKING = "LEAKING PROTOCOL"
EVERYONE, CLIENTS = "All users", "Mean of the clients"  # the latter for a metric without per-user values
ITEMS = "All items"  # in the place of EVERYONE, for tasks about items
CHANGES, UNLEARNED = "changes.csv", "unlearned.json"  # of a run that follows another, and of one that forgets


@dataclass(frozen=True)
class Run:
    """A run directory: its record, its tables, and the baselines that were trained beside it."""

    record: dict[str, Any]
    federated: Results
    baselines: dict[str, Results]
    own: Results | None  # popularity among each client's own rows
    rounds: pd.DataFrame
    ledger: pd.DataFrame
    student: pd.DataFrame
    faults: pd.DataFrame
    singles: dict[str, Results]  # of each task, trained in a run of its own
    not_single: str  # why the tasks were not
    no_student: str = ""  # why there is none
    changes: pd.DataFrame = field(default_factory=pd.DataFrame)  # what it changed, if it follows another
    unlearned: dict[str, Any] = field(default_factory=dict)  # whom it forgot, and what that tells
    stages: dict[str, Results] = field(default_factory=dict)  # the runs between one without a promise and that with it
    closed: dict[str, Results] = field(default_factory=dict)  # models by sums, as MODEL-local or MODEL-pooled
    not_closed: str = ""  # why there are fewer

    @functools.cached_property
    def by_client(self) -> pd.DataFrame:
        """The `comparison` of every client; nobody may change it."""
        return _compare(self, self.federated, self.baselines, together=False)

    @functools.cached_property
    def all_users(self) -> pd.DataFrame:
        """The `comparison` of all users as one client; nobody may change it."""
        baselines, test = self.baselines, self.federated.test()
        # Of a client whose test is missing nothing counts: a mean over the others must not stand beside one over all.
        known = {key for b in baselines.values() for key in b.test()[b.test().isna()].index}
        if gone := list(set(test[test.isna()].index) - known):
            baselines = {
                name: b.where(lambda table: ~pd.MultiIndex.from_frame(table[KEY]).isin(gone))
                for name, b in baselines.items()
            }
        return _compare(self, self.as_one, {name: as_one(b) for name, b in baselines.items()}, together=True)

    @functools.cached_property
    def as_one(self) -> Results:
        """The results of all users as one client's."""
        return as_one(self.federated)

    def option(self, name: str, default: Any = None) -> Any:
        """Return an option of the experiment."""
        return self.record.get("experiment", {}).get(name, default)

    @property
    def ties(self) -> list[dict[str, Any]]:
        """How every constraint of named blocks stands in the round that was tested, as the record has it."""
        found: list[dict[str, Any]] = self.record.get("ties", [])
        return found

    def leaking(self) -> bool:
        """Tell whether training avoided the held-out items, so that no metric can be trusted."""
        return bool(self.option("negatives") == "published")

    def stamp(self) -> str:
        """Return what must stand beside every number: that the protocol leaks, that there is no noise, or no secret."""
        promised = self.record.get("privacy") or {}
        bare = bool(promised.get("replay") or promised.get("open"))
        return ", ".join([LEAKING] * self.leaking() + [NOT_PRIVATE] * bare)

    def names(self) -> list[str]:
        """Return the clients in the order of the record."""
        return self._names

    @functools.cached_property
    def _names(self) -> list[str]:
        recorded = [str(c["name"]) for c in self.record.get("data", {}).get("clients", [])]
        return list(dict.fromkeys([*recorded, *self.federated.clients["client"].unique()]))

    def primary(self, task: str) -> str | None:
        """Return the metric that speaks for a task: the first of the experiment's metrics that the task has."""
        clients = self.federated.clients
        metrics = clients.loc[clients["task"] == task, "metric"].unique().tolist()
        wanted = [*self.option("metrics", ()), "auc", "accuracy", "mae", "rmse", "logloss", *metrics]
        return next((metric for metric in wanted if metric in metrics), None)


def unit_of(task: str) -> str:
    """Return what a task is measured on: user, or item."""
    return "item" if task in ATTRIBUTES else "user"


def read_run(run_dir: Path, complete: bool = True) -> Run:
    """Return a run directory; raises UserError when it has no `experiment.json`, or, if `complete`, is unfinished.

    Who asks again in the same process gets the same, unless a file has changed.
    """
    if complete:
        refuse_unfinished(run_dir)
    if not (run_dir / "experiment.json").exists():
        raise UserError(f"run directory: must hold experiment.json, found none in {run_dir}")
    return read_once(run_dir.absolute(), tuple(_files(run_dir.absolute())))


def _files(run_dir: Path) -> Iterator[tuple[str, int, int]]:
    """Yield the files that a run is read of, with the times at which they changed, and their sizes."""
    below = ((run_dir / name).rglob("*") for name in ("users", "items", "baselines"))
    for path in (*run_dir.iterdir(), *chain(*below)):
        if path.suffix in (".csv", ".parquet", ".json", ".txt"):
            about = path.stat()
            yield str(path), about.st_mtime_ns, about.st_size


@functools.lru_cache(maxsize=2)
def read_once(run_dir: Path, files: tuple[tuple[str, int, int], ...]) -> Run:
    """Return a run directory that has some files."""
    record = json.loads((run_dir / "experiment.json").read_text("utf-8"))
    data = record.setdefault("data", {})
    if isinstance(data.get("clients"), str):  # they are many
        data["clients"] = read_rows(run_dir / data["clients"])
    measured = measured_in(run_dir / "baselines")
    own, ledger = run_dir / "baselines" / "popularity" / OWN, read_table(run_dir / "ledger.csv", ["round", *LEDGER[2:]])

    def text(path: Path) -> str:
        return path.read_text("utf-8") if path.exists() else ""

    return Run(
        record,
        read_results(run_dir),
        {name: measured[name] for name in BASELINES if name in measured},
        read_results(own) if is_measured(own) else None,
        read_table(run_dir / "rounds.csv", ["round"], named=False),
        ledger,
        read_table(run_dir / "student.csv", STUDENT),
        read_table(run_dir / "faults.csv", FAULTS),
        measured_in(run_dir / "baselines" / SINGLE),
        text(run_dir / "baselines" / NOT_SINGLE),
        text(run_dir / NO_STUDENT),
        read_table(run_dir / CHANGES, CHANGED),
        json.loads(text(run_dir / UNLEARNED) or "{}"),
        {name: measured[name] for name in (PLAIN, UNCLIPPED, CLIPPED) if name in measured},
        measured_in(run_dir / "baselines" / CLOSED),
        text(run_dir / "baselines" / NOT_CLOSED),
    )


def _table(federated: Results, baselines: dict[str, Results]) -> pd.DataFrame:
    """Return one row for each client, task and metric of the test."""
    table = federated.test().rename("federated").to_frame()
    users = federated.users[federated.users["split"] == "test"].dropna(subset="value")
    table["users"] = users.groupby(KEY).size().reindex(table.index).fillna(0).astype(int)
    nothing = pd.DataFrame({end: 0 if end == "users" else math.nan for end in ENDS}, index=table.index)
    for name in BASELINES:
        base = baselines.get(name)
        table[name] = base.test().reindex(table.index) if base else math.nan
        apart = gaps(federated, base) if base else nothing
        table = table.join(apart[["difference", "low", "high", "p", "users"]].add_prefix(f"{name}_"))
    higher = by_value(table.index.get_level_values("metric").to_series(), higher_is_better)
    ours, pooled = table["federated"], table["pooled"]
    table["pooled_share"] = np.where(higher, ours / pooled.where(pooled != 0), pooled / ours.where(ours != 0))
    return table.reset_index()


def paired_in(table: pd.DataFrame, baseline: str) -> list[Paired]:
    """Return the differences to a baseline in the rows of a `comparison`."""
    return [Paired(*row) for row in table[[f"{baseline}_{end}" for end in ENDS]].itertuples(index=False)]


def as_one(results: Results) -> Results:
    """Return the results of all users as one client's: means over users, or over clients where there are none.

    RMSE, log loss and accuracy are over all rows of all users. An AUC is the mean over clients: scores of different
    heads are not compared. An item that several clients carry is one: its values are as little independent as the item
    is, so that it counts with their mean.
    """
    users = results.users.assign(client=EVERYONE, user=results.users["client"] + "\0" + results.users["user"])
    curve = results.users["metric"].isin(["auc", NEGATIVES])
    if curve.any():
        weight = users["weight"].astype(float)
        total = weight[curve].groupby([results.users.loc[curve, name] for name in ("split", *KEY)]).transform("sum")
        users["weight"] = weight.where(~curve, weight[curve] / total)
    root = users["metric"] == "rmse"
    users["sum"] = users["weight"] * users["value"].where(~root, squared("rmse", users["value"].to_numpy(np.float64)))
    about = results.users["task"].isin(list(ATTRIBUTES))
    if about.any():
        items = users[about].assign(user=results.users["user"])
        items = items.groupby(["user", "split", *KEY], sort=False)[["sum", "weight"]].mean().reset_index()
        users = pd.concat([users[~about], items])
        users["value"] = _whole(users)
    key = ["split", *KEY]
    clients = results.clients[results.clients["split"] == "test"].drop_duplicates(KEY, keep="last")
    means = clients.assign(client=EVERYONE).groupby(key, sort=False)["value"].mean()
    sums = users.dropna(subset="value").groupby(key, sort=False)[["sum", "weight"]].sum().reset_index()
    sums["value"] = _whole(sums)
    means.update(sums.set_index(key)["value"])
    return Results(means.reset_index(), users)


def _whole(sums: pd.DataFrame) -> pd.Series:
    """Return the metrics of a table of weighted sums of what they average, and of the weights."""
    total, weight = (sums[name].to_numpy(np.float64) for name in ("sum", "weight"))
    return (sums["sum"] / sums["weight"]).where(sums["metric"] != "rmse", whole("rmse", total, weight))


def compare(run: Run, together: bool = False) -> pd.DataFrame:
    """Return `comparison` of a run that was read; `together` takes all users as one client."""
    return (run.all_users if together else run.by_client).copy()


def _compare(run: Run, federated: Results, baselines: dict[str, Results], together: bool) -> pd.DataFrame:
    table = _table(federated, baselines)
    if together:
        everyone = by_value(table["task"], lambda task: ITEMS if unit_of(task) == "item" else EVERYONE)
        table["client"] = pd.Series(everyone, dtype="str").where(
            (table["users"] > 0) & (table["metric"] != "auc"), CLIENTS
        )
    tasks = run.federated.clients["task"].unique().tolist()
    table["primary"] = table["metric"].to_numpy(object) == by_value(table["task"], run.primary)
    local = table[[f"local_{end}" for end in ENDS]]
    table["verdict"] = verdicts(table["metric"], local, families(table, "primary"))
    table["protocol"] = run.stamp()
    metrics = list(dict.fromkeys([*run.option("metrics", ()), *table["metric"].unique()]))
    task, metric = by_value(table["task"], tasks.index), by_value(table["metric"], metrics.index)
    client = pd.Index(run.names()).get_indexer(pd.Index(table["client"]))  # -1 of all users
    order = np.lexsort([client, metric, (table["metric"] == "loss").to_numpy(), task])
    return table.iloc[order].reset_index(drop=True)


def comparison(run_dir: Path) -> pd.DataFrame:
    """Return each client's test metrics beside its baselines, one row for each client, task and metric.

    Columns: `client`, `task`, `metric`, `federated`, `users` (with a per-user value; items for tasks about items); for
    each baseline b of local, pooled and popularity `b` (NaN: not run), `b_difference` = federated - b, its 95% interval
    `b_low`, `b_high`, the p-value `b_p` and `b_users`, the number of pairs (0: the bare difference of two numbers,
    without an interval); `verdict` against local, corrected for the number of primary rows, of another metric for the
    number of clients; `pooled_share`, the part of pooled that is reached; `primary`, the metric that speaks
    for its task; `protocol`, what must stand beside every number, "LEAKING PROTOCOL" or "NOT PRIVATE",
    or "". Raises UserError when it is no run directory.
    """
    return compare(read_run(run_dir))
