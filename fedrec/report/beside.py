"""Runs side by side: what each measured for every client, and how each differs from the first."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from fedrec.errors import UserError
from fedrec.report.gaps import ENDS
from fedrec.report.results import KEY
from fedrec.report.tables import Run, compare
from fedrec.report.verdicts import families, verdicts


def side_by_side(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Return the test metrics of runs on the same data, a row for each client, task and metric of the first.

    Below the clients stands a row for all users, as in a report. Columns: `client`, `task`, `metric`, `primary` (the
    metric that speaks for its task), the value of every run under its name, and for every run NAME but the first
    `NAME_difference` from the first, its 95% interval over the same users `NAME_low`, `NAME_high`, `NAME_users` and
    `NAME_p` as in `comparison`; `NAME_verdict`, helped or hurt against the first, corrected for all of the primary
    verdicts together, of all clients and runs (Holm); `protocol`, what must stand beside the numbers.

    Raises UserError for runs on other data.
    """
    first, *others = runs
    for name in others:
        if (x := contents(runs[name])) != (y := contents(runs[first])):
            raise UserError(f"compare: the data must be the same in all, found {x} in {name} and {y} in {first}")
    levels = [False, True] if len(runs[first].names()) > 1 else [False]
    table = pd.concat([_level(runs, first, others, together) for together in levels], ignore_index=True)
    table["protocol"] = "; ".join(f"{name}: {run.stamp()}" for name, run in runs.items() if run.stamp())
    return table


def _level(runs: Mapping[str, Run], first: str, others: list[str], together: bool) -> pd.DataFrame:
    """Return the rows of `side_by_side` of every client, or of all users `together`."""
    reference = {"local": runs[first].federated}
    tables = {name: compare(replace(runs[name], baselines=reference), together) for name in others}
    rows = pd.concat(tables.values(), keys=tables.keys())
    rows["verdict"] = verdicts(rows["metric"], rows[[f"local_{end}" for end in ENDS]], families(rows, "primary"))
    table = compare(replace(runs[first], baselines={}), together)[[*KEY, "primary", "federated"]]
    table = table.rename(columns={"federated": first}).set_index(KEY)
    apart = {name: rows.loc[name].set_index(KEY) for name in others}
    columns = {name: t["federated"] for name, t in apart.items()}
    columns |= {f"{name}_{end}": t[f"local_{end}"] for name, t in apart.items() for end in ENDS}
    columns |= {f"{name}_verdict": t["verdict"] for name, t in apart.items()}
    return table.join(pd.DataFrame(columns)).reset_index()


def contents(run: Run) -> str:
    """Return what the data of a run can be told by: the SHA-256 of their file, else where they are."""
    return str(run.record.get("data", {}).get("sha256") or run.option("data_dir"))
