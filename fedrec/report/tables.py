"""A run directory as tables: the comparison of every client with its baselines."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedrec.errors import UserError
from fedrec.evaluation.differences import Side, difference, squared, whole
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
from fedrec.report.verdicts import families, verdicts
from fedrec.tasks import ATTRIBUTES

BASELINES = ("local", "pooled", "popularity")
LEAKING = "LEAKING PROTOCOL"
EVERYONE, CLIENTS = "All users", "Mean of the clients"  # the latter for a metric without per-user values
ITEMS = "All items"  # in the place of EVERYONE, for tasks about items
KEY = ["client", "task", "metric"]
METRICS = ["round", *KEY, "split", "value"]
USERS = ["client", "user", "split", "task", "metric", "value"]
COSTS = ["teacher_parameters", "student_parameters", "teacher_ms", "student_ms"]
STUDENT = ["client", "task", "metric", "users", "teacher", "student", "low", "high", *COSTS]
CHANGES, UNLEARNED = "changes.csv", "unlearned.json"  # of a run that follows another, and of one that forgets
CHANGED = [*KEY, "before", "after", "difference", "low", "high", "users"]
ENDS = ("difference", "low", "high", "users", "p")  # columns of a `Paired`, in the order of its fields


@dataclass(frozen=True)
class Results:
    """The values of one training: `clients` by round, client, split, task and metric; `users` by user of the test.

    `users` has the values and weights of which the test's are the means, see `fedrec.evaluation.evaluate.PerUser`. Of a
    task about items, it has the held-out items in the column `user`.
    """

    clients: pd.DataFrame
    users: pd.DataFrame

    def where(self, holds: Callable[[pd.DataFrame], Any]) -> "Results":
        """Return the rows for which something holds, which gives a mask [rows] of either table."""
        return Results(self.clients[holds(self.clients)], self.users[holds(self.users)])

    def test(self) -> pd.Series:
        """Return the test values, indexed by client, task and metric, in the order of the file."""
        rows = self.clients[self.clients["split"] == "test"]
        return rows.drop_duplicates(KEY, keep="last").set_index(KEY)["value"]


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

    def option(self, name: str, default: Any = None) -> Any:
        """Return an option of the experiment."""
        return self.record.get("experiment", {}).get(name, default)

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
        recorded = [str(c["name"]) for c in self.record.get("data", {}).get("clients", [])]
        return list(dict.fromkeys([*recorded, *self.federated.clients["client"]]))

    def primary(self, task: str) -> str | None:
        """Return the metric that speaks for a task: the first of the experiment's metrics that the task has."""
        clients = self.federated.clients
        metrics = list(dict.fromkeys(clients.loc[clients["task"] == task, "metric"]))
        wanted = [*self.option("metrics", ()), "auc", "accuracy", "mae", "rmse", "logloss", *metrics]
        return next((metric for metric in wanted if metric in metrics), None)


def read_table(path: Path, columns: list[str]) -> pd.DataFrame:
    """Return a CSV file with at least `columns`; an absent or empty file is an empty table.

    A name stays the text it is ("007", "NA"); only numbers can be missing. Raises UserError for a missing column.
    """
    if not path.exists() or not path.stat().st_size:
        return pd.DataFrame(columns=columns)
    names = ("client", "user", "item", "split", "task", "metric", "direction", "parameter", "device", "during", "kind")
    counts = ("round", "value", "weight", "rows", "bytes", "seconds", "train_loss", "bytes_up", "bytes_down")
    types: dict[Any, Any] = dict.fromkeys((*names, "text"), str)
    missing = {name: ["", "nan", "NaN"] for name in (*counts, *STUDENT[3:], *CHANGED[3:])}
    table = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=missing)
    for column in columns:
        if column not in table:
            raise UserError(
                f"{path.name}: must have the columns {', '.join(columns)}, found {', '.join(map(str, table))}"
            )
    return table


def unit_of(task: str) -> str:
    """Return what a task is measured on: user, or item."""
    return "item" if task in ATTRIBUTES else "user"


def read_results(folder: Path) -> Results:
    """Return `clients.csv`, `users/*.csv` and `items/*.csv` of a folder; per-user values may be missing."""
    users = [read_table(path, USERS) for path in sorted((folder / "users").glob("*.csv"))]
    columns = ["item" if column == "user" else column for column in USERS]
    items = [read_table(path, columns) for path in sorted((folder / "items").glob("*.csv"))]
    users += [table.rename(columns={"item": "user"}) for table in items]
    users = [table if "weight" in table else table.assign(weight=1.0) for table in users]
    return Results(read_table(folder / "clients.csv", METRICS), concat(users, [*USERS, "weight"]))


def concat(tables: Sequence[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    """Return the rows of all tables; one without a row has the columns alone."""
    some = [table for table in tables if len(table)]
    return pd.concat(some, ignore_index=True) if some else pd.DataFrame(columns=columns)


def read_run(run_dir: Path, complete: bool = True) -> Run:
    """Return a run directory; raises UserError when it has no `experiment.json`, or, if `complete`, is unfinished."""
    path = run_dir / "experiment.json"
    if complete:
        refuse_unfinished(run_dir)
    if not path.exists():
        raise UserError(f"run directory: must hold experiment.json, found none in {run_dir}")
    folders = {name: run_dir / "baselines" / name for name in BASELINES}
    single, own = run_dir / "baselines" / SINGLE, folders["popularity"] / OWN
    return Run(
        json.loads(path.read_text("utf-8")),
        read_results(run_dir),
        {name: read_results(folder) for name, folder in folders.items() if (folder / "clients.csv").exists()},
        read_results(own) if (own / "clients.csv").exists() else None,
        read_table(run_dir / "rounds.csv", ["round"]),
        read_table(run_dir / "ledger.csv", LEDGER),
        read_table(run_dir / "student.csv", STUDENT),
        read_table(run_dir / "faults.csv", FAULTS),
        {path.parent.name: read_results(path.parent) for path in sorted(single.glob("*/clients.csv"))},
        why.read_text("utf-8") if (why := single.with_name(NOT_SINGLE)).exists() else "",
        why.read_text("utf-8") if (why := run_dir / NO_STUDENT).exists() else "",
        read_table(run_dir / CHANGES, CHANGED),
        json.loads(path.read_text("utf-8")) if (path := run_dir / UNLEARNED).exists() else {},
        {
            name: read_results(folder)
            for name in (PLAIN, UNCLIPPED, CLIPPED)
            if ((folder := run_dir / "baselines" / name) / "clients.csv").exists()
        },
        {
            path.parent.name: read_results(path.parent)
            for path in sorted((run_dir / "baselines" / CLOSED).glob("*/clients.csv"))
        },
        why.read_text("utf-8") if (why := single.with_name(NOT_CLOSED)).exists() else "",
    )


def differences(federated: Results, baseline: Results) -> dict[tuple[str, str, str], Paired]:
    """Return federated minus baseline: the difference of the test values, with an interval over users.

    Without an interval (n = 0) where there are no values by user whose means the test values are, in both.
    """
    ours, base = federated.test(), baseline.test()
    base = base.reindex(ours.index)
    bare: dict[Any, float] = (ours - base).to_dict()
    out = {key: Paired(value, math.nan, math.nan, 0) for key, value in bare.items()}
    key = ["user", *KEY]
    both = [r.users[r.users["split"] == "test"].drop_duplicates(key) for r in (federated, baseline)]
    pairs = both[0][[*key, "value", "weight"]].merge(both[1][[*key, "value"]], on=key).dropna()
    sizes: dict[Any, int] = pairs.groupby(KEY, sort=False).size().to_dict()
    out |= {at: replace(out[at], n=1) for at, size in sizes.items() if size == 1 and at in out}
    pairs = pairs[pairs.groupby(KEY, sort=False)["user"].transform("size") > 1]
    groups: dict[Any, pd.DataFrame] = dict(iter(pairs.groupby(KEY, sort=False)))
    for at, rows in groups.items():
        metric, second = at[2], groups.get((*at[:2], NEGATIVES))
        if at not in out or (metric == "auc" and second is None):
            continue
        parts = [rows] if metric != "auc" or second is None else [rows, second]
        # A user has one place in all of them.
        places = np.split(pd.factorize(np.concatenate([part["user"] for part in parts]))[0], [len(rows)])
        columns = [[part[name].to_numpy(np.float64) for name in ("value_x", "value_y", "weight")] for part in parts]
        sides = [Side(place, *column) for place, column in zip(places, columns, strict=False)]
        shown = float(ours[at]), float(base[at])
        if all(np.allclose(side.means(metric), shown, 1e-6, 1e-9) for side in sides):
            out[at] = replace(difference(metric, sides), mean=shown[0] - shown[1])
    return out


def _table(federated: Results, baselines: dict[str, Results]) -> pd.DataFrame:
    """Return one row for each client, task and metric of the test."""
    table = federated.test().rename("federated").to_frame()
    users = federated.users[federated.users["split"] == "test"].dropna(subset="value")
    table["users"] = users.groupby(KEY)["user"].nunique().reindex(table.index).fillna(0).astype(int)
    for name in BASELINES:
        base = baselines.get(name)
        table[name] = base.test().reindex(table.index) if base else math.nan
        apart = differences(federated, base) if base else {}
        each = [apart.get(key, Paired(math.nan, math.nan, math.nan, 0)) for key in table.index]
        for end, part in (("difference", "mean"), ("low", "low"), ("high", "high"), ("p", "p"), ("users", "n")):
            table[f"{name}_{end}"] = [getattr(gap, part) for gap in each]
    higher = table.index.get_level_values("metric").map(higher_is_better).to_numpy(bool)
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
    curve = users["metric"].isin(["auc", NEGATIVES])
    each = [results.users[name] for name in ("split", *KEY)]
    users["weight"] = users["weight"].where(~curve, users["weight"] / users["weight"].groupby(each).transform("sum"))
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
    federated, baselines = run.federated, run.baselines
    if together:
        # Of a client whose test is missing nothing counts: a mean over the others must not stand beside one over all.
        test = federated.test()
        known = {key for b in baselines.values() for key in b.test()[b.test().isna()].index}
        if gone := list(set(test[test.isna()].index) - known):
            baselines = {
                name: b.where(lambda table: ~pd.MultiIndex.from_frame(table[KEY]).isin(gone))
                for name, b in baselines.items()
            }
        baselines = {name: as_one(b) for name, b in baselines.items()}
        federated = as_one(federated)
    table = _table(federated, baselines)
    if together:
        everyone = table["task"].map(lambda task: ITEMS if unit_of(task) == "item" else EVERYONE)
        table["client"] = everyone.where((table["users"] > 0) & (table["metric"] != "auc"), CLIENTS)
    tasks = list(dict.fromkeys(run.federated.clients["task"]))
    table["primary"] = table["metric"] == table["task"].map({task: run.primary(task) for task in tasks})
    table["verdict"] = verdicts(table["metric"], paired_in(table, "local"), families(table, "primary"))
    table["protocol"] = run.stamp()
    metrics = list(dict.fromkeys([*run.option("metrics", ()), *table["metric"]]))
    place = {name: rank for rank, name in enumerate(run.names())}
    keys = zip(table["task"], table["metric"], table["client"], strict=True)
    order = [(tasks.index(t), m == "loss", metrics.index(m), place.get(c, -1)) for t, m, c in keys]
    return table.iloc[sorted(range(len(order)), key=order.__getitem__)].reset_index(drop=True)


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
