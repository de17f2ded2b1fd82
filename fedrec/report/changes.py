"""What a run that follows another changed, and for whom: `changes.csv`, over the users that both have tested."""

import math
from pathlib import Path

import numpy as np

from fedrec.evaluation.differences import squared, whole
from fedrec.experiment.records import Row, write_csv
from fedrec.report.gaps import differences
from fedrec.report.results import KEY, Results, read_results
from fedrec.report.tables import CHANGES


def write_changes(before: Path, home: Path) -> list[Row]:
    """Write `changes.csv` of a run that follows the one in the folder `before`, and return its rows."""
    rows = changes(read_results(before), read_results(home))
    write_csv(home / CHANGES, rows)
    return rows


def changes(before: Results, after: Results) -> list[Row]:
    """Return a row for each client, task and metric of a run: its value before and after, and the paired difference.

    Both are over the users that both runs have tested; the interval (95%) is too. Who was not there before has none.
    """
    old = over_users(before, after)
    gaps, then, now = differences(after, old), old.test(), after.test()
    rows: list[Row] = []
    for key, value in now.items():
        assert isinstance(key, tuple)
        gap = gaps[key]
        ends: Row = {"difference": gap.mean, "low": gap.low, "high": gap.high, "users": gap.n}
        rows.append(
            {**dict(zip(KEY, key, strict=True)), "before": float(then.get(key, math.nan)), "after": value, **ends}
        )
    return rows


def over_users(results: Results, others: Results) -> Results:
    """Return results over those users alone that others have too; an AUC of fewer users than it was of is missing."""
    tested = results.users[results.users["split"] == "test"]
    there = others.users.loc[others.users["split"] == "test", ["user", *KEY]].drop_duplicates()
    users, sizes = tested.merge(there, on=["user", *KEY]), tested.groupby(KEY).size().to_dict()
    test = results.clients[results.clients["split"] == "test"].drop_duplicates(KEY, keep="last").set_index(KEY)
    for key, rows in users.groupby(KEY):
        if len(rows) < sizes[key]:
            known, metric = rows.dropna(subset="value"), str(rows["metric"].iloc[0])
            weight, values = (known[name].to_numpy(np.float64) for name in ("weight", "value"))
            mean = whole(metric, np.array([weight @ squared(metric, values)]), np.array([weight.sum()]))[0]
            test.loc[key, "value"] = math.nan if metric == "auc" else mean
    return Results(test.reset_index(), users)
