"""What the study of several tasks shows: every arm against the single-task ones, and the seesaw."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from fedrec.metrics import Paired, higher_is_better
from fedrec.report.findings import change, label, number
from fedrec.report.several import WORDS, Balance, balance
from fedrec.report.study import Page, Part, forest, seeded
from fedrec.report.verdicts import verdicts
from simulations.studies.tables import Row, band, by_arm, differences, ends, measures, spread

Rows = Sequence[Row]
AGAINST = {"local": "local single-task", "federated": "federated single-task"}


def summary(results: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a row for each task, metric and arm.

    It holds the mean over clients and seeds, the standard deviation over seeds of the clients' mean, and the paired
    differences to the two single-task arms of the same body with Student-t intervals over seeds and their verdicts,
    corrected for the number of arms and tasks whose balance is told, of another metric for the number of arms. A
    client counts where both arms have measured the task.
    """
    several = results.groupby("client")["task"].transform("nunique") > 1
    rows: list[Row] = []
    gaps: dict[str, list[tuple[Row, Paired]]] = {key: [] for key in AGAINST}
    for (task, metric), own in measures(results[several]):
        values, arms = by_arm(own, "arm"), own.drop_duplicates("arm").set_index("arm").to_dict("index")
        for name, mine in values.items():
            others = {f"minus_{key}": f"{single} {arms[name]['body']}" for key, single in AGAINST.items()}
            there = differences(values, name, others)
            multi = not arms[name]["single"]
            rows.append({"task": task, "metric": metric, "arm": name, "multi": multi, **spread(mine), **ends(there)})
            for column, p in there.items():
                gaps[column.removeprefix("minus_")].append((rows[-1], p))
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


def page(rows: Rows, seeds: int, facts: dict[str, str]) -> Page:
    """Return the page."""
    notes = [
        f"{arm}, against {AGAINST[key]}: {found.words}."
        for key in ("federated", "local")
        for arm, found in balances(rows, key).items()
        if found.lost
    ]
    words = "; ".join(f"{arm}: {found.words}" for arm, found in balances(rows, "federated").items())
    measures = list(dict.fromkeys((row["task"], row["metric"]) for row in rows))
    return Page(
        "What do several tasks in one model gain or lose?",
        f"Against the same body federated for each task by itself: {words}. A seesaw is a task that loses while "
        "another gains, at 5% over all arms and tasks together (Holm).",
        seeded(seeds, "mean over clients, 95% Student-t intervals over seeds"),
        [part(rows, *measure) for measure in measures],
        facts,
        notes,
    )


def part(rows: Rows, task: str, metric: str) -> Part:
    """Return the table and the figure of one metric."""
    own = [row for row in rows if (row["task"], row["metric"]) == (task, metric)]
    told = {"gained": "helped", "lost": "hurt"}
    gains = [
        (row["arm"], *band(row, "minus_federated"), told.get(row["against_federated"], ""))
        for row in own
        if row["multi"]
    ]
    figure = forest(gains, f"{task}-{metric}", f"{label(metric)} minus federated single-task")
    better = "more" if higher_is_better(metric) else "less"
    return Part(f"{task}: {label(metric)}", [texts(row) for row in own], f"{better.capitalize()} is better.", figure)


def texts(row: Row) -> dict[str, str]:
    """Return a row as it is printed."""
    found = {"Arm": row["arm"], "Mean": number(row["mean"], 4), "SD": number(row["sd"], 4)}
    for key, name in AGAINST.items():
        there = f"minus_{key}" in row
        found[f"Minus {name}"] = f"{change(*band(row, f'minus_{key}'))} {row[f'against_{key}']}" if there else ""
    return found


def tables(rows: Rows) -> list[Part]:
    """Return a short table for the first metric of every task."""
    first = {row["task"]: row["metric"] for row in reversed(rows)}
    return [
        Part(f"{task}: {label(metric)}", [
            {"arm": short(row["arm"]), "mean": f"{row['mean']:.4f}"} | {
                f"minus {short(single)}": change(*band(row, f"minus_{key}")) if f"minus_{key}" in row else ""
                for key, single in AGAINST.items()
            }
            for row in rows if (row["task"], row["metric"]) == (task, metric)
        ])
        for task, metric in reversed(first.items())
    ]  # fmt: skip


def notes(rows: Rows) -> list[str]:
    """Return the balance of every multi-task arm in words."""
    return [
        f"{short(arm)}, against {single}: {found.words}"
        for key, single in AGAINST.items()
        for arm, found in balances(rows, key).items()
    ]


def short(arm: str) -> str:
    """Return the name of an arm for the terminal."""
    return arm.replace("federated", "fed.").replace("-task", "")
