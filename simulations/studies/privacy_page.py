"""The page and the terminal table of the privacy study."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from fedrec.experiment import Experiment
from fedrec.metrics import higher_is_better
from fedrec.privacy.audit import ALARM
from fedrec.report.findings import DASH, label, number
from fedrec.report.study import Part, write_measured
from fedrec.report.tradeoff import Panel, Series, tradeoff
from simulations.studies.methods import facts

OPEN = "inf"
WORDS = (
    "Every setting was trained at every budget and attacked with all that its server saw, and a run with canaries was "
    "audited. At the budget inf there is no mechanism at all. Attacks that also use what a client keeps to itself "
    "(insiders) are no test of the promise, which covers what leaves a client."
)
SCENES = {
    "silos": "Five silos, each adding user-level noise in its own training",
    "one-user": "One client for each user, each adding noise to its own update",
}


def write_page(path: Path, results: pd.DataFrame, budgets: Sequence[str], used: Mapping[str, Experiment]) -> None:
    """Write the page of the study."""
    parts = [part for name in SCENES for part in scene_parts(results, budgets, name)]
    audits = results[results["scene"] == "audit"]
    if len(audits):
        parts.append(audit_part(audits, [text for text in budgets if text != OPEN]))
    seeds = results["seed"].nunique()
    same = facts({(name, 0): e for name, e in used.items()})
    title = "What does privacy cost, and does it hold?"
    write_measured(path, title, WORDS, f"{seeds} seed{'s' * (seeds > 1)}", parts, notes(results), same)


def notes(results: pd.DataFrame) -> list[str]:
    """Return what a reader must not miss: a broken promise, a failed check."""
    found = []
    attacks = results[results["kind"] == "attack"]
    broken = attacks[attacks["violates"].eq(True)] if len(attacks) else attacks
    for row in broken.itertuples():
        found.append(f"The attack {row.name} on {row.scene} breaks the promise of epsilon {row.epsilon}.")
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


def scene_parts(results: pd.DataFrame, budgets: Sequence[str], scene: str) -> list[Part]:
    """Return the sections of a scene: utility and, if any attack fits what is shared, attacks against the budget."""
    own, alone = results[results["scene"] == scene], results[results["scene"] == f"{scene} alone"]
    names = list(dict.fromkeys(own.loc[own["kind"] == "utility", "name"]))
    panels, rows = [], []
    words = "Mean over the clients' test rows. local: every client alone, from which nothing leaves."
    for name in names:
        metric = name.split()[-1]
        value = mean_of(own, "utility", name, budgets)
        levels = [(kind, float(alone.loc[(alone["kind"] == kind) & (alone["name"] == name), "value"].mean()))
                  for kind in ("local", "popularity")]  # fmt: skip
        way = "higher" if higher_is_better(metric) else "lower"
        words += f" {worth(metric, value, levels[0][1], budgets)}"
        panels.append(Panel(f"{label(metric)}, {way} is better", label(metric), [Series("together", value)], levels))
        rows.append({"metric": name, **{f"epsilon {b}": number(v, 4) for b, v in zip(budgets, value, strict=True)}}
                    | {kind: number(level, 4) for kind, level in levels})  # fmt: skip
    utility = Part(f"{SCENES[scene]}: utility", words, tradeoff(panels, budgets, f"{scene}-utility", words), rows)
    attacks = own[own["kind"] == "attack"]
    return [utility, attack_part(attacks, budgets, scene)] if len(attacks) else [utility]


def worth(metric: str, value: Sequence[float], alone: float, budgets: Sequence[str]) -> str:
    """Return in words at which budgets taking part beats training alone, by the mean over the clients."""
    sign = 1 if higher_is_better(metric) else -1
    better = [text for text, one in zip(budgets, value, strict=True) if sign * (one - alone) > 0]
    where = f"at epsilon {', '.join(better)} only" if 0 < len(better) < len(budgets) else "at every budget"
    return f"Together beats alone ({label(metric)} {number(alone, 4)}) {where if better else 'at no budget'}."


def attack_part(attacks: pd.DataFrame, budgets: Sequence[str], scene: str) -> Part:
    """Return the section of a scene's attacks: AUC against the budget, and a table with the bands."""
    names = list(dict.fromkeys(attacks["name"]))
    outside = [name for name in names if bool(attacks.loc[attacks["name"] == name, "released"].iloc[0])]
    panels = []
    for title, group in (("from what was released", outside), ("insiders", [n for n in names if n not in outside])):
        series = [
            Series(name, *(mean_of(attacks, "attack", name, budgets, column) for column in ("value", "low", "high")))
            for name in group
        ]
        if series:
            panels.append(Panel(title, "AUC", series, [("chance", 0.5)]))
    rows = []
    for name in names:
        row = {"attack": name if name in outside or "insider" in name else f"{name} (insider)"}
        for text in budgets:
            part = attacks[(attacks["name"] == name) & (attacks["epsilon"] == text)]
            row[f"epsilon {text}"] = cell(part)
        rows.append(row)
    words = (
        "AUC with its 95% band (1/2 is chance), then the true positive rate at 1% false positives. A star: the band "
        "does not contain 1/2, as one band in twenty does by chance."
    )
    figure = tradeoff(panels, budgets, f"{scene}-attacks", words, 3.6)
    return Part(f"{SCENES[scene]}: attacks", words, figure, rows)


def cell(part: pd.DataFrame) -> str:
    """Return an attack's result at a budget as it is printed, the mean over the seeds."""
    if not len(part):
        return DASH
    auc, low, high, tpr = (float(part[name].mean()) for name in ("value", "low", "high", "tpr"))
    star = "" if low <= 0.5 <= high else "*"
    return f"{number(auc, 2)}{star} [{number(low, 2)}, {number(high, 2)}] {number(tpr, 2)}"


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
        "Dummy users, each in by a fair coin, in a real run of the first silo: what the released parameters tell of "
        f"the coins bounds epsilon from below. {len(checks)} checks of single properties were made, "
        f"{int(checks['value'].sum())} failed, as some check does in one study of a known-good build in "
        f"{1 / ALARM:,.0f}. A bound at 99% is above the accounted epsilon once in a hundred; the check "
        "leak is stricter."
    )
    return Part(
        "Audit", words, tradeoff([Panel("epsilon from below", "epsilon", series)], budgets, "audit", words), rows
    )


def mean_of(table: pd.DataFrame, kind: str, name: str, budgets: Sequence[str], column: str = "value") -> list[float]:
    """Return the mean over the seeds at every budget; NaN where there is none."""
    part = table[(table["kind"] == kind) & (table["name"] == name)]
    return [float(part.loc[part["epsilon"] == text, column].mean()) for text in budgets]


def show(results: pd.DataFrame, budgets: Sequence[str]) -> None:
    """Print utility, attacks and bounds against the budget."""
    console = Console(markup=False, emoji=False)
    for scene in (*SCENES, "audit"):
        own = results[(results["scene"] == scene) & (results["kind"] != "check")]
        if not len(own):
            continue
        table = Table(title=SCENES.get(scene, "Audit"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for heading in (scene, *(f"eps {text}" for text in budgets)):
            table.add_column(heading, no_wrap=True)
        for kind, name in dict.fromkeys(zip(own["kind"], own["name"], strict=True)):
            part = own[(own["kind"] == kind) & (own["name"] == name)]
            cells = [short(kind, part[part["epsilon"] == text]) for text in budgets]
            table.add_row(name, *cells)
        console.print(table)
    for note in notes(results):
        console.print(note, highlight=False)


def short(kind: str, part: pd.DataFrame) -> str:
    """Return a value as the terminal shows it: an AUC with a star where its band does not contain 1/2."""
    if not len(part):
        return "-"
    value = float(part["value"].mean())
    if kind != "attack":
        return number(value, 3 if kind == "utility" else 2)
    low, high = float(part["low"].mean()), float(part["high"].mean())
    return number(value, 2) + ("" if low <= 0.5 <= high else "*")
