"""What a promise of privacy costs each client, in parts: other batches and weights, clipping, noise."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedrec.experiment.records import CLIPPED, PLAIN, PRICE, UNCLIPPED, write_csv
from fedrec.metrics import Paired, paired
from fedrec.report.gaps import differences
from fedrec.report.results import KEY, Results
from fedrec.report.tables import CLIENTS, Run, read_run

PRIVATE = "private"
STEPS = {"training": (UNCLIPPED, PLAIN), "clipping": (CLIPPED, UNCLIPPED), "noise": (PRIVATE, CLIPPED)}
COLUMNS = [*KEY, *(PLAIN, UNCLIPPED, CLIPPED, PRIVATE), *(f"{s}{e}" for s in STEPS for e in ("", "_low", "_high"))]


def price(run: Run) -> pd.DataFrame:
    """Return a row for each client, task and metric, and last for the mean of the clients of each task and metric.

    Columns: the values `plain`, `unclipped`, `clipped`, `private`, and for each step from one to the next (`training`,
    `clipping`, `noise`) the difference with its 95% interval: of a client paired over its users, of the mean over the
    clients, by Student's t; NaN where there is none. Empty unless all stages were trained.
    """
    if not {PLAIN, UNCLIPPED, CLIPPED} <= run.stages.keys():
        return pd.DataFrame(columns=COLUMNS)
    runs: dict[str, Results] = {**run.stages, PRIVATE: run.federated}
    values = pd.concat({name: r.test() for name, r in runs.items()}, axis=1)
    values = values.loc[run.federated.test().index].dropna()
    table = values.copy()
    for step, (after, before) in STEPS.items():
        gaps = differences(runs[after], runs[before])
        _fill(table, step, [gaps.get(key, Paired(math.nan, math.nan, math.nan, 0)) for key in table.index])
    parts = [table.reset_index()]
    for (task, metric), group in values.groupby(["task", "metric"], sort=False):
        if len(group) < 2:
            continue
        mean = pd.DataFrame([group.mean()]).assign(client=CLIENTS, task=str(task), metric=str(metric))
        for step, (after, before) in STEPS.items():
            _fill(mean, step, [paired(group[after].to_numpy(np.float64), group[before].to_numpy(np.float64))])
        parts.append(mean)
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def _fill(table: pd.DataFrame, step: str, gaps: list[Paired]) -> None:
    table[[step, f"{step}_low", f"{step}_high"]] = [(gap.mean, gap.low, gap.high) for gap in gaps]


def price_rows(run: Run, most: int) -> list[dict[str, Any]]:
    """Return the rows of the page: of the metric that speaks for a task every client, of many the mean alone."""
    table = price(run)
    table = table[table["metric"] == table["task"].map(run.primary)]
    many = table["client"].nunique() > most
    return (table[table["client"] == CLIENTS] if many else table).to_dict("records")  # type: ignore[return-value]


def write_price(run_dir: Path) -> None:
    """Write `price.csv` into a run directory, see `price`, if the stages of a promise were trained beside the run."""
    table = price(read_run(run_dir, complete=False))
    if len(table):
        write_csv(run_dir / PRICE, table.to_dict("records"), COLUMNS)  # type: ignore[arg-type]
