"""What the study of several tasks shows: every arm against the single-task ones, and the seesaw."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from fedrec.metrics import Paired, higher_is_better, paired
from fedrec.report import plots
from fedrec.report.findings import change, label, number
from fedrec.report.several import WORDS, Balance, balance
from fedrec.report.study import Part, seeded, write_measured
from fedrec.report.verdicts import verdicts

Rows = Sequence[Mapping[str, Any]]
AGAINST = {"local": "local single-task", "federated": "federated single-task"}


def summary(results: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a row for each task, metric and arm.

    It holds the mean over clients and seeds, the standard deviation over seeds of the clients' mean, and the paired
    differences to the two single-task arms of the same body with Student-t intervals over seeds and their verdicts,
    corrected for the number of arms and tasks whose balance is told, of another metric for the number of arms. A
    client counts where both arms have measured the task.
    """
    several = results.groupby("client")["task"].transform("nunique") > 1
    results = results[several]
    means = results.groupby(["task", "metric", "arm", "seed"])["value"].mean().reset_index()
    by = {key: part["value"].to_numpy(np.float64) for key, part in means.groupby(["task", "metric", "arm"])}
    arms = results.drop_duplicates("arm").set_index("arm")
    rows: list[dict[str, Any]] = []
    gaps: dict[str, list[tuple[dict[str, Any], Paired]]] = {key: [] for key in AGAINST}
    for task, metric in dict.fromkeys(zip(results["task"], results["metric"], strict=True)):
        for name, arm in arms.to_dict("index").items():
            values = by[task, metric, name]
            row: dict[str, Any] = {
                "task": task,
                "metric": metric,
                "arm": name,
                "multi": not arm["single"],
                "mean": values.mean(),
            }
            row["sd"] = values.std(ddof=1) if len(values) > 1 else float("nan")
            for key, single in AGAINST.items():
                other = f"{single} {arm['body']}"
                if name == other:
                    continue
                p = paired(values, by[task, metric, other])
                row |= {f"minus_{key}": p.mean, f"minus_{key}_low": p.low, f"minus_{key}_high": p.high}
                gaps[key].append((row, p))
            rows.append(row)
    speaks = {row["task"]: row["metric"] for row in reversed(rows)}
    for key, found in gaps.items():
        told = [row["multi"] and speaks[row["task"]] == row["metric"] for row, _ in found]
        family = ["" if t else f"{row['task']}/{row['metric']}" for t, (row, _) in zip(told, found, strict=True)]
        words = verdicts([row["metric"] for row, _ in found], [p for _, p in found], family)
        for (row, _), word in zip(found, words, strict=True):
            row[f"against_{key}"] = WORDS.get(word, word)
    return rows


def balances(rows: Rows, key: str) -> dict[str, Balance]:
    """Return the balance of every multi-task arm against a single-task one, by the first metric of each task."""
    names: dict[Any, str] = {word: name for name, word in WORDS.items()}
    judged: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["multi"]:
            word = str(row[f"against_{key}"])
            judged.setdefault(row["arm"], {}).setdefault(row["task"], names.get(word, word))
    return {arm: balance(found.items()) for arm, found in judged.items()}


def write_page(
    path: Path, rows: Rows, seeds: int, facts: Mapping[str, str], chosen: Mapping[str, Mapping[str, Sequence[str]]]
) -> None:
    """Write the page; `chosen` are the options that tuning found for each arm and task."""
    tuned = {
        f"{arm}{', ' + task if task else ''}": " ".join(found)
        for arm, own in chosen.items()
        for task, found in own.items()
    }
    notes = [
        f"{arm}, against {AGAINST[key]}: {found.words}."
        for key in ("federated", "local")
        for arm, found in balances(rows, key).items()
        if found.lost
    ]
    words = "; ".join(f"{arm}: {found.words}" for arm, found in balances(rows, "federated").items())
    measures = list(dict.fromkeys((row["task"], row["metric"]) for row in rows))
    write_measured(
        path,
        "What do several tasks in one model gain or lose?",
        f"Against the same body federated for each task by itself: {words}. A seesaw is a task that loses while "
        "another gains, at 5% over all arms and tasks together (Holm).",
        seeded(seeds, "mean over clients, 95% Student-t intervals over seeds"),
        [part(rows, *measure) for measure in measures],
        notes,
        {**facts, **tuned},
    )


def part(rows: Rows, task: str, metric: str) -> Part:
    """Return the table and the figure of one metric."""
    own = [row for row in rows if (row["task"], row["metric"]) == (task, metric)]
    multi = [row for row in own if row["multi"]]
    compared = pd.DataFrame(
        [
            {
                "client": row["arm"],
                "local_difference": row["minus_federated"],
                "local_low": row["minus_federated_low"],
                "local_high": row["minus_federated_high"],
                "verdict": {"gained": "helped", "lost": "hurt"}.get(row["against_federated"], ""),
            }
            for row in multi
        ]
    )
    axis = f"{label(metric)} minus federated single-task"
    better = "more" if higher_is_better(metric) else "less"
    figure = plots.forest(compared, f"{task}-{metric}", axis, axis)
    return Part(f"{task}: {label(metric)}", f"{better.capitalize()} is better.", figure, [cells(row) for row in own])


def cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a row as it is printed."""
    found = {"Arm": row["arm"], "Mean": number(row["mean"], 4), "SD": number(row["sd"], 4)}
    for key, name in AGAINST.items():
        there = f"minus_{key}" in row
        found[f"Minus {name}"] = f"{change(*difference(row, key))} {row[f'against_{key}']}" if there else ""
    return found


def show(rows: Rows, seeds: int) -> None:
    """Print a table for the first metric of every task, and the balance of every multi-task arm."""
    console = Console(markup=False, emoji=False)
    console.print(seeded(seeds, "the mean over clients, 95% intervals over seeds"), highlight=False)
    first = {row["task"]: row["metric"] for row in reversed(rows)}
    for task, metric in reversed(first.items()):
        title = f"{task}: {label(metric)}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        for name in ("arm", "mean", "minus local single", "minus fed. single"):
            table.add_column(name, no_wrap=True, justify="left" if name == "arm" else "right")
        for row in rows:
            if (row["task"], row["metric"]) == (task, metric):
                gains = [change(*difference(row, key)) if f"minus_{key}" in row else "" for key in AGAINST]
                table.add_row(short(row["arm"]), f"{row['mean']:.4f}", *gains)
        console.print(table)
    for key, single in AGAINST.items():
        for arm, found in balances(rows, key).items():
            console.print(f"{short(arm)}, against {single}: {found.words}", highlight=False, markup=False)


def difference(row: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    """Return a row's difference to a single-task arm with its interval."""
    return row[f"minus_{key}"], row[f"minus_{key}_low"], row[f"minus_{key}_high"]


def short(arm: str) -> str:
    """Return the name of an arm for the terminal."""
    return arm.replace("federated", "fed.").replace("-task", "")
