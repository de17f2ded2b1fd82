"""The closing tables of a run on the terminal."""

import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from fedrec.metrics import Values, paired
from fedrec.report.constraints import PRICE
from fedrec.report.constraints import constraints as found
from fedrec.report.facts import solved
from fedrec.report.findings import DASH, MINUS, answer, number, warnings
from fedrec.report.several import WORDS, balance_of, balances, transfer
from fedrec.report.spread import QUANTILES, worst
from fedrec.report.standing import correction, standings, stands, unpopular
from fedrec.report.summed import sums_told
from fedrec.report.tables import compare, read_run
from fedrec.report.verdicts import UNCLEAR, labels

MANY, WORST = 20, 5  # clients above which they have quantiles, and how many of the worst are named
MEANS = "Intervals: a client's over its users or items, a mean's over the clients."
ONE = "Intervals: over a client's users or items; the mean of one client has none."
STYLE: dict[str, Any] = {"title_justify": "left", "box": box.SIMPLE_HEAD, "show_edge": False}  # of tables
SHORT = {"no detectable difference": "unclear", UNCLEAR: "unclear (Holm)"}


def table(run_dir: Path) -> Table:
    """Return the test metric that speaks for each client's task beside its baselines.

    Of many clients it has the worst few, quantiles, each column for itself, and means. A client's interval is over its
    users (or items). A mean is over the clients that every column has measured, and its interval is that of the mean
    difference over these clients, by Student's t.
    """
    run = read_run(run_dir)
    rows = compare(run)
    rows = rows[rows["primary"]]
    measures = list(dict.fromkeys(zip(rows["task"], rows["metric"], strict=True)))
    title = ", ".join(f"{task} {metric}" for task, metric in measures)
    protocol = "".join(rows["protocol"].unique())
    heading = f"Test {title} {protocol}".strip()
    if run.record.get("privacy") and rows["popularity"].notna().any():
        heading += "; popular is not private"
    shown = Table(title=Text(heading), padding=0, **STYLE)
    for name in ("client", "together", "alone", "difference [95%]", "pooled", "popular", "verdict"):
        shown.add_column(name, no_wrap=name != "client", justify="left" if name in ("client", "verdict") else "right")
    if len(rows) <= MANY:
        for label, (_, row) in zip(labels(rows), rows.iterrows(), strict=True):
            shown.add_row(Text(label), *line(row), SHORT.get(str(row["verdict"]), str(row["verdict"])))
    names = ["federated", "local", "local_difference", "pooled", "popularity"]
    for task, metric in measures:
        group = rows[(rows["task"] == task) & (rows["metric"] == metric)]
        if len(group) == 1:
            continue
        if len(rows) > MANY:
            few = worst(group, WORST)
            for label, (_, row) in zip(labels(few), few.iterrows(), strict=True):
                shown.add_row(Text(f"worst: {label}"), *line(row), SHORT.get(str(row["verdict"]), str(row["verdict"])))
            for label, q in QUANTILES.items():
                ends = pd.Series({"local_low": math.nan, "local_high": math.nan})
                shown.add_row(Text(f"{label} of {len(group)}"), *line(pd.concat([group[names].quantile(q), ends])), "")
        there = [name for name in names if group[name].notna().any()]
        group = group.dropna(subset=there)  # a mean of some must not stand beside one of others
        who, mean = f"mean of {len(group)}", group[names].mean()
        gains: Values = group["local_difference"].to_numpy(np.float64)
        over = paired(gains, np.zeros_like(gains))
        mean["local_low"], mean["local_high"] = over.low, over.high
        label = who if len(measures) == 1 else f"{who} {task}"
        shown.add_row(Text(label), *line(mean), "")
        shown.caption, shown.caption_justify = MEANS if len(group) > 1 else ONE, "left"
    return shown


def several(run_dir: Path) -> Table | None:
    """Return what each client's tasks gain or lose by one another; of many clients all users, None without a client."""
    run = read_run(run_dir)
    rows = transfer(run)
    if not len(rows):
        return None
    clients, together = balances(rows), transfer(run, together=True)
    title = f"Against a run for each task. {'All users' if len(clients) > 1 else next(iter(clients))}: "
    seesaw = sum(balance.seesaw for balance in clients.values())
    title += f"{balance_of(together).words}; {seesaw} of {len(clients)} clients with a seesaw"
    shown = Table(title=Text(title), padding=0, **STYLE)
    for name in ("client", "metric", "all tasks", "single task", "difference [95%]", "by the others"):
        shown.add_column(name, no_wrap=name != "client", justify="left" if name in ("client", "metric") else "right")
    table = together if len(rows) > 3 * MANY else pd.concat([rows, together]) if len(clients) > 1 else rows
    for _, row in table[table["speaks"]].iterrows():
        gain = gap(row["difference"], row["low"], row["high"])
        values = [number(row[name], 4) for name in ("together", "single")]
        cells = [*values, gain, WORDS.get(row["verdict"], row["verdict"])]
        shown.add_row(Text(f"{row['client']} {row['task']}"), row["metric"], *cells)
    return shown


def constraints(run_dir: Path) -> Table | None:
    """Return how every constraint of named blocks stands, None without one."""
    run = read_run(run_dir)
    if not run.ties:
        return None
    shown = Table(title=Text("Constraints in the round that was tested"), padding=0, **STYLE)
    for name in ("constraint", "verdict", "residual", "multiplier"):
        left = name in ("constraint", "verdict")
        shown.add_column(name, no_wrap=name != "constraint", justify="left" if left else "right", overflow="fold")
    for one in found(run):
        shown.add_row(Text(f"{one.text} ({one.rows})" if one.rows else one.text), *one[1:4])
    shown.caption, shown.caption_justify = PRICE, "left"
    return shown


def answers(run_dir: Path) -> list[str]:
    """Return where the run stands among its baselines, what the verdicts stand for, and what a run by sums ties."""
    run = read_run(run_dir)
    table = compare(run)
    primary, places = table[table["primary"]], standings(run)
    lines = [f"{text}." for place in places for text in (place.headline, place.beaten) if text]
    if len(primary) > MANY and "local" in run.baselines:
        lines += [answer(rows) for _, rows in primary.groupby("task", sort=False)]
    lines += [stands(place, bool(run.record.get("privacy"))) for place in places]
    lines += [f"{what}: {words}" for what, words in solved(run.record.get("certificate") or {}).items()]
    return [line for line in (*lines, unpopular(primary), correction(primary), *sums_told(run)) if line]


def notes(run_dir: Path, said: Collection[str] = ()) -> list[str]:
    """Return the warnings of a run's report, without those that say in words what `table` says, or what was `said`."""
    run = read_run(run_dir)
    return [f"{note.title}: {note.text}" for note in warnings(run, compare(run), said) if not note.measured]


def line(row: "pd.Series[float]") -> list[str]:
    """Return the cells of one client's row."""
    together, alone, *others = (number(row[name], 4) for name in ("federated", "local", "pooled", "popularity"))
    return [together, alone, gap(row["local_difference"], row["local_low"], row["local_high"]), *others]


def gap(mean: float, low: float, high: float) -> str:
    """Return `+.018 [+.009, +.027]`, always with three decimals, so that a row fits into 80 columns; a dash for NaN."""
    text = re.sub(r"(?<=[+-])0(?=\.)", "", f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]").replace("-", MINUS)
    return DASH if math.isnan(mean) else text.partition(" [+nan")[0]
