"""The pages of studies: methods side by side with paired seeds, protocols side by side, and measurements."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from markupsafe import Markup

from fedrec.report import plots
from fedrec.report.findings import DASH, change, label
from fedrec.report.tables import LEAKING
from fedrec.report.template import MEASURED, PROTOCOLS, STUDY, rendered

Row = Mapping[str, Any]
Summary = Sequence[Row]


def seeded(seeds: int, words: str = "95% intervals over seeds") -> str:
    """Return what the numbers of a study rest on: `5 paired seeds; ` and `words`, or that one seed has no interval."""
    return f"{seeds} paired seeds; {words}" if seeds > 1 else "one seed: no interval"


def interval(row: Mapping[Any, Any], name: str, form: str = "+.4f", ends: tuple[str, str] | None = None) -> str:
    """Return `+.0100 [+.0050, +.0150]` of a row's columns, without brackets where there is no interval.

    The columns are `name`, and `name_low` and `name_high` or `ends`; a dash stands for what was not measured.
    """
    low, high = ends or (f"{name}_low", f"{name}_high")
    value, *band = (float(row[column]) for column in (name, low, high))
    if not math.isfinite(value):
        return DASH
    text = format(value, form)
    return text if any(map(math.isnan, band)) else f"{text} [{', '.join(format(one, form) for one in band)}]"


def write_study(path: Path, rows: Summary, seeds: int, facts: Mapping[str, str], leaking: bool) -> None:
    """Write the comparison page of a methods study.

    `rows` has a line for each task, metric and method: `mean`, `sd`, `minus_local` and `minus_pooled` with `_low` and
    `_high`, `verdict` against local, `share_of_pooled`, `worst` (the client that gains least against training alone,
    mean over seeds).
    """
    measures = list(dict.fromkeys((str(row["task"]), str(row["metric"])) for row in rows))
    page = rendered(
        STUDY,
        title=f"{LEAKING + ': ' if leaking else ''}Which way of working together pays?",
        kicker=seeded(seeds, "means over clients and seeds, 95% intervals over seeds"),
        seeds=seeds,
        words="For a seed, all methods have the same data, start and order; validation chooses the round. "
        "Popularity is what the training rows of all clients say of each item: counted for this page, sent to nobody, "
        "not private.",
        measures=[measure(rows, task, metric) for task, metric in measures],
        facts=facts,
    )
    path.write_text(page, encoding="utf-8")


def measure(rows: Summary, task: str, metric: str) -> dict[str, Any]:
    """Return the table and the figure of one metric, the best method first as it was ordered by the study."""
    own = [row for row in rows if (row["task"], row["metric"]) == (task, metric)]
    gains = [
        (row["method"], row["minus_local"], row["minus_local_low"], row["minus_local_high"], row["verdict"])
        for row in own
        if "minus_local" in row
    ]
    figure = forest(gains, f"{task}-{metric}", f"{label(metric)} minus alone") if gains else None
    return {"task": task, "metric": metric, "figure": figure, "rows": [cells(row) for row in own]}


def forest(gains: Sequence[tuple[object, ...]], name: str, words: str) -> Markup:
    """Return the figure of arms' differences: of each its name, the difference, its interval and the verdict."""
    columns = ["client", "local_difference", "local_low", "local_high", "verdict"]
    return plots.forest(pd.DataFrame(gains, columns=columns), name, words, words)


def cells(row: Row) -> dict[str, Any]:
    """Return a row as it is printed."""
    share, worst = row.get("share_of_pooled"), row.get("worst")
    ends = {other: [f"minus_{other}{end}" for end in ("", "_low", "_high")] for other in ("local", "pooled")}
    gains = {other: change(*(row[name] for name in names)) for other, names in ends.items() if names[0] in row}
    return {
        "method": row["method"],
        "mean": row["mean"],
        "sd": row["sd"],
        "local": gains.get("local", ""),
        "pooled": gains.get("pooled", ""),
        "verdict": row.get("verdict", ""),
        "share": "" if share is None else f"{share:.0%}",
        "worst": "" if worst is None else change(worst),
    }


def write_protocols(path: Path, rows: Summary, seeds: int, facts: Mapping[str, str], reference: bool) -> None:
    """Write the page that shows a published protocol beside one that does not leak.

    `rows` has a line for each method, metric and protocol (`published`, `train`): `mean`, `sd`, `warning` (what must be
    said beside the number, or nothing), `seconds`, `megabytes`. `reference` adds what was measured with the authors'
    code on MovieLens 100K.
    """
    page = rendered(
        PROTOCOLS,
        title="What a published number is worth without its leak",
        kicker=f"{seeds} seeds, mean over users, standard deviation over seeds"
        if seeds > 1
        else "one seed, mean over users: no standard deviation",
        words="Under the published protocol, training negatives avoid the held-out items too: whatever is never drawn "
        "as a negative must be a positive, so the training data gives the test item away. The same method, with "
        "negatives that avoid the training items only, stands beside it. Validation chooses the round.",
        seeds=seeds,
        leaking=LEAKING,
        metrics=list(dict.fromkeys(row["metric"] for row in rows)),
        methods=list(dict.fromkeys(row["method"] for row in rows)),
        cells={(row["method"], row["protocol"], row["metric"]): row for row in rows},
        facts=facts,
        reference=reference,
    )
    path.write_text(page, encoding="utf-8")


class Part(NamedTuple):
    """A section of a page of measurements: its rows have the same columns, by heading, as they are printed."""

    title: str
    rows: Sequence[Mapping[str, str]]
    words: str = ""
    figure: Markup | None = None


class Page(NamedTuple):
    """A page of what was measured; `notes` are what a reader must not miss."""

    title: str
    words: str
    kicker: str
    parts: Sequence[Part]
    facts: Mapping[str, str]
    notes: Sequence[str] = ()

    def write(self, path: Path) -> None:
        """Write the page."""
        path.write_text(rendered(MEASURED, **self._asdict()), encoding="utf-8")
