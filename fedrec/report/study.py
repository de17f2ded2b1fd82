"""The pages of studies: methods side by side with paired seeds, protocols side by side, and measurements."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup

from fedrec.metrics import Paired
from fedrec.report import plots
from fedrec.report.findings import DASH, change, label, number
from fedrec.report.tables import LEAKING
from fedrec.report.template import MEASURED, PROTOCOLS, STUDY

Summary = Sequence[Mapping[str, str | float]]


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


def write_study(path: Path, rows: Summary, seeds: int, facts: Mapping[str, str], leaking: bool) -> Path:
    """Write the comparison page of a methods study.

    `rows` has a line for each task, metric and method: `mean`, `sd`, `minus_local` and `minus_pooled` with `_low` and
    `_high`, `verdict` against local, `share_of_pooled`, `worst` (the client that gains least against training alone,
    mean over seeds).
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"number": number, "label": label}
    measures = list(dict.fromkeys((str(row["task"]), str(row["metric"])) for row in rows))
    text = environment.from_string(STUDY).render(
        title=f"{LEAKING + ': ' if leaking else ''}Which way of working together pays?",
        kicker=seeded(seeds, "means over clients and seeds, 95% intervals over seeds"),
        seeds=seeds,
        words="For a seed, all methods have the same data, start and order; validation chooses the round. "
        "Popularity is what the training rows of all clients say of each item: counted for this page, sent to nobody, "
        "not private.",
        measures=[measure(rows, task, metric) for task, metric in measures],
        facts=facts,
    )
    path.write_text(text, encoding="utf-8")
    return path


def measure(rows: Summary, task: str, metric: str) -> dict[str, Any]:
    """Return the table and the figure of one metric, the best method first as it was ordered by the study."""
    own = [row for row in rows if (row["task"], row["metric"]) == (task, metric)]
    compared = pd.DataFrame(
        [
            {
                "client": row["method"],
                "local_difference": row["minus_local"],
                "local_low": row["minus_local_low"],
                "local_high": row["minus_local_high"],
                "verdict": row["verdict"],
            }
            for row in own
            if "minus_local" in row
        ]
    )
    words = f"{label(metric)} minus alone"
    figure = plots.forest(compared, f"{task}-{metric}", words, words) if len(compared) else None
    return {"task": task, "metric": metric, "figure": figure, "rows": [cells(row) for row in own]}


def paired_of(row: Mapping[str, str | float], other: str) -> Paired:
    """Return a row's difference to another method."""
    mean, low, high = (float(row[f"minus_{other}{end}"]) for end in ("", "_low", "_high"))
    return Paired(mean, low, high, 2)


def cells(row: Mapping[str, str | float]) -> dict[str, Any]:
    """Return a row as it is printed."""
    share, worst = row.get("share_of_pooled"), row.get("worst")
    differences = {
        other: change(p.mean, p.low, p.high)
        for other in ("local", "pooled")
        if f"minus_{other}" in row
        for p in (paired_of(row, other),)
    }
    return {
        "method": row["method"],
        "mean": float(row["mean"]),
        "sd": float(row["sd"]),
        "local": differences.get("local", ""),
        "pooled": differences.get("pooled", ""),
        "verdict": row.get("verdict", ""),
        "share": "" if share is None else f"{float(share):.0%}",
        "worst": "" if worst is None else change(float(worst)),
    }


def write_protocols(path: Path, rows: Summary, seeds: int, facts: Mapping[str, str], reference: bool) -> Path:
    """Write the page that shows a published protocol beside one that does not leak.

    `rows` has a line for each method, metric and protocol (`published`, `train`): `mean`, `sd`, `warning` (what must be
    said beside the number, or nothing), `seconds`, `megabytes`. `reference` adds what was measured with the authors'
    code on MovieLens 100K.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"number": number, "label": label}
    cells = {(row["method"], row["protocol"], row["metric"]): row for row in rows}
    text = environment.from_string(PROTOCOLS).render(
        title="What a published number is worth without its leak",
        seeds=seeds,
        leaking=LEAKING,
        metrics=list(dict.fromkeys(str(row["metric"]) for row in rows)),
        methods=list(dict.fromkeys(str(row["method"]) for row in rows)),
        cells=cells,
        facts=facts,
        reference=reference,
    )
    path.write_text(text, encoding="utf-8")
    return path


class Part(NamedTuple):
    """A section of a page of measurements: its rows have the same columns, by heading, as they are printed."""

    title: str
    words: str
    figure: Markup | None
    rows: Sequence[Mapping[str, str]]


def write_measured(
    path: Path,
    title: str,
    words: str,
    kicker: str,
    parts: Sequence[Part],
    notes: Sequence[str],
    facts: Mapping[str, str],
) -> Path:
    """Write the page of what was measured; `notes` are what a reader must not miss."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(MEASURED)
    text = page.render(title=title, words=words, kicker=kicker, parts=parts, notes=notes, facts=facts)
    path.write_text(text, encoding="utf-8")
    return path
