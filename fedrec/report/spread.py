"""How a metric and its gains are spread over many clients: quantiles, and how many lose."""

from typing import Any

import pandas as pd

from fedrec.metrics import sign
from fedrec.report.tables import BASELINES

QUANTILES = {"5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95}
WORDS = {"local": "alone", "pooled": "pooled", "popularity": "popularity"}


def spread(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return how the clients' values are spread, and their differences to each baseline that was measured.

    `rows` are those of `comparison` of one task and metric. Of each: `what`, `clients` with a value, `mean`, the
    `QUANTILES` over clients, and for a difference which share of them is `worse` off; None for the values.
    """
    metric = str(rows["metric"].iloc[0])
    found = [_spread("Together", rows["federated"], None)]
    for name in BASELINES:
        if rows[f"{name}_difference"].notna().any():
            found.append(_spread(f"Together minus {WORDS[name]}", rows[f"{name}_difference"], sign(metric)))
    return found


def _spread(what: str, values: pd.Series, good: int | None) -> dict[str, Any]:
    known = values.dropna()
    ends = {name: float(known.quantile(q)) for name, q in QUANTILES.items()}
    worse = None if good is None else float((good * known < 0).mean())
    return {"what": what, "clients": len(known), "mean": float(known.mean()), **ends, "worse": worse}


def worst(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """Return the clients that fared worst against training alone, or by themselves if they were not trained alone."""
    order = rows["local_difference"] if rows["local_difference"].notna().any() else rows["federated"]
    good = sign(str(rows["metric"].iloc[0]))
    return rows.loc[(good * order).sort_values(kind="stable").index[:most]]
