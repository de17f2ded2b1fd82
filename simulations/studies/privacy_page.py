"""The page of the privacy study."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from fedrec.metrics import higher_is_better
from fedrec.privacy.audit import ALARM
from fedrec.report.findings import DASH, change, label, number
from fedrec.report.plots import Panel, Series, tradeoff
from fedrec.report.study import Page, Part
from simulations.studies.privacy_numbers import LEVEL, RULE, Leak, asked, gains, leak, values, worth

OPEN = "inf"
WORDS = (
    "Every setting was trained at every budget and attacked with all that its server saw, and a run with canaries was "
    "audited. At the budget inf there is no mechanism at all, neither noise nor clipping. Attacks that also use what a "
    "client keeps to itself (insiders) are no test of the promise, which covers what leaves a client."
)
NUMBERS = ["No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve"]


class Setting(NamedTuple):
    """A scene as the page names it."""

    title: str  # such as `Four platforms, each adding user-level noise in its own training`
    who: str
    rounds: int


def counted(number: int) -> str:
    """Return a number as a sentence begins with it."""
    return NUMBERS[number] if number < len(NUMBERS) else f"{number:,}"


def page(
    results: pd.DataFrame, budgets: Sequence[str], scenes: Mapping[str, Setting], about: Mapping[str, str]
) -> Page:
    """Return the page of the study."""
    parts = [part for name, one in scenes.items() for part in scene_parts(results, budgets, name, one.title)]
    audits = results[results["scene"] == "audit"]
    if len(audits):
        parts.append(audit_part(audits, [text for text in budgets if text != OPEN]))
    return Page("What does privacy cost, and does it hold?", WORDS, seeded(results), parts, about, notes(results))


def seeded(results: pd.DataFrame) -> str:
    """Return how many seeds there were, and what that means for the intervals."""
    seeds = results["seed"].nunique()
    if seeds == 1:
        return "One seed: no intervals over seeds, so no claim that one way is better; run with --seeds 3 or more"
    return f"{seeds} seeds, which differ in the draw of the data or its split, in start and noise; 95% intervals"


def notes(results: pd.DataFrame) -> list[str]:
    """Return what a reader must not miss: a broken promise, a failed check."""
    found = []
    attacks = results[results["kind"] == "attack"]
    broken = attacks[attacks["violates"].eq(True)] if len(attacks) else attacks
    for row in broken.itertuples():
        found.append(
            f"The attack {row.name} on {row.scene} breaks the promise of epsilon {row.epsilon}, by a test that does so "
            "once in a thousand studies whose promises hold."
        )
    for row in results[(results["kind"] == "check") & (results["value"] > 0)].itertuples():
        found.append(f"The audit at epsilon {row.epsilon} says that a property does not hold: {row.name}: {row.text}")
    for (epsilon, seed), run in results[results["scene"] == "audit"].groupby(["epsilon", "seed"]):
        accounted = float(run.loc[run["kind"] == "accounted", "value"].iloc[0])
        for row in run[(run["kind"] == "bound") & (run["value"] > accounted)].itertuples():
            found.append(
                f"At epsilon {epsilon}, seed {seed}, the bound {row.name} at 99% is {row.value:.2f}: that is above the "
                "accounted epsilon, as one such bound of a known-good build in a hundred is. The check leak decides."
            )
    return found


def scene_parts(results: pd.DataFrame, budgets: Sequence[str], scene: str, title: str) -> list[Part]:
    """Return the sections of a scene: utility and, if any attack fits what is shared, attacks against the budget."""
    own, alone = results[results["scene"] == scene], results[results["scene"] == f"{scene} alone"]
    names = list(dict.fromkeys(own.loc[own["kind"] == "utility", "name"]))
    panels, rows, tests = [], [], len(names) * len(budgets)
    words = "Mean over the clients of a metric of each on its test rows. local: every client alone, nothing leaves it."
    for name in names:
        metric = name.split()[-1]
        value = mean_of(own, "utility", name, budgets)
        levels = [(kind, mean_of(alone, kind, name, [OPEN])[0]) for kind in ("local", "popularity")]
        way = "higher" if higher_is_better(metric) else "lower"
        words += f" {worth(metric, gains(own, alone, name, budgets, 1 - LEVEL / tests), budgets, tests)}"
        panels.append(Panel(f"{label(metric)}, {way} is better", label(metric), [Series("together", value)], levels))
        rows.append({"metric": name, **{f"epsilon {b}": number(v, 4) for b, v in zip(budgets, value, strict=True)}}
                    | {kind: number(level, 4) for kind, level in levels})  # fmt: skip
        gained = zip(budgets, gains(own, alone, name, budgets), strict=True)
        less = {f"epsilon {b}": change(one.mean, one.low, one.high) for b, one in gained}
        rows.append({"metric": f"{name} minus local", **less, "local": "", "popularity": ""})
    utility = Part(f"{title}: utility", rows, words, tradeoff(panels, budgets, f"{scene}-utility", words))
    attacks = own[own["kind"] == "attack"]
    return [utility, attack_part(attacks, budgets, scene, title)] if len(attacks) else [utility]


def attack_part(attacks: pd.DataFrame, budgets: Sequence[str], scene: str, title: str) -> Part:
    """Return the section of a scene's attacks: AUC against the budget, and a table with the intervals."""
    names = list(dict.fromkeys(attacks["name"]))
    outside = [name for name in names if bool(attacks.loc[attacks["name"] == name, "released"].iloc[0])]
    found, tests = leaks(attacks, budgets), len(names) * len(budgets)
    panels = []
    for heading, group in (("from what was released", outside), ("insiders", [n for n in names if n not in outside])):
        series = [
            Series(
                name, *([getattr(found[name, b], part, math.nan) for b in budgets] for part in ("auc", "low", "high"))
            )
            for name in group
            if any(found[name, text] for text in budgets)
        ]
        if series:
            panels.append(Panel(heading, "AUC", series, [("chance", 0.5)]))
    rows = []
    for name in names:
        row = {"attack": name if name in outside or "insider" in name else f"{name} (insider)"}
        for text in budgets:
            part = attacks[(attacks["name"] == name) & (attacks["epsilon"] == text)]
            row[f"epsilon {text}"] = cell(found[name, text], part)
        rows.append(row)
    over = "the wider of those over targets and over seeds" if attacks["seed"].nunique() > 1 else "over the targets"
    words = (
        f"AUC with its 95% interval, {over} (1/2 is chance), then the true positive rate at 1% false positives. A "
        f"star: it differs from chance, corrected for the {tests} cells of this table. No star does not mean that "
        f"nothing leaks: the interval says how much might. {RULE}"
    )
    figure = tradeoff(panels, budgets, f"{scene}-attacks", words, 3.6) if panels else None
    return Part(f"{title}: attacks", rows, words, figure)


def leaks(attacks: pd.DataFrame, budgets: Sequence[str]) -> dict[tuple[str, str], Leak | None]:
    """Return what every attack shows at every budget; the cells of the table are tested together."""
    names = list(dict.fromkeys(attacks["name"]))
    return {
        (name, text): leak(attacks[(attacks["name"] == name) & (attacks["epsilon"] == text)], len(names) * len(budgets))
        for name in names
        for text in budgets
    }


def cell(found: Leak | None, part: pd.DataFrame) -> str:
    """Return an attack's result at a budget as it is printed."""
    if found is None:
        return f"too few ({asked(part)})" if len(part) else DASH
    ends = f"[{number(found.low, 2)}, {number(found.high, 2)}]"
    return f"{number(found.auc, 2)}{'*' * found.star} {ends} {number(found.tpr, 2)}"


def audit_part(audits: pd.DataFrame, budgets: Sequence[str]) -> Part:
    """Return the section of the audits: lower bounds beside what was accounted."""
    bounds = list(dict.fromkeys(audits.loc[audits["kind"] == "bound", "name"]))
    accounted = mean_of(audits, "accounted", "accounted", budgets)
    series = [Series("accounted", accounted)]
    series += [Series(name, mean_of(audits, "bound", name, budgets)) for name in bounds]
    rows = [
        {"": one.label, **{f"epsilon {b}": number(v, 2) for b, v in zip(budgets, one.value, strict=True)}}
        for one in series
    ]
    checks = audits[audits["kind"] == "check"]
    words = (
        "Dummy users, each in by a fair coin, in a real run of the first client: what the released parameters tell of "
        f"the coins bounds epsilon from below. {len(checks)} checks of single properties were made, "
        f"{int(checks['value'].sum())} failed, as some check or attack does in at most one study of a known-good build "
        f"in {1 / ALARM:,.0f}. A bound at 99% is above the accounted epsilon once in a hundred; the check "
        "leak is stricter."
    )
    panel = Panel("epsilon from below", "epsilon", series)
    return Part("Audit", rows, words, tradeoff([panel], budgets, "audit", words))


def mean_of(table: pd.DataFrame, kind: str, name: str, budgets: Sequence[str]) -> list[float]:
    """Return the mean over the seeds at every budget; NaN where there is none."""
    return [float(values(table, kind, name, text).mean()) for text in budgets]


def brief(part: Part) -> Part:
    """Return a section for the terminal: without the intervals."""
    short = [{name: text.partition(" [")[0] for name, text in row.items()} for row in part.rows]
    return Part(part.title, [{name.replace("epsilon", "eps"): text for name, text in row.items()} for row in short])
