"""The page of the privacy study: means with their intervals, and what is too small to tell."""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pandas as pd

from fedrec.metrics import Paired, higher_is_better, paired, student
from fedrec.privacy.audit import ALARM
from fedrec.report.findings import DASH, change, label, listing, number
from fedrec.report.plots import Panel, Series, tradeoff
from fedrec.report.study import Page, Part

OPEN = "inf"
LEAST = 20  # targets of a kind, and independent groups of targets, below which an attack's AUC tells nothing
LEVEL = 0.05
CHANCE = NormalDist().inv_cdf(1 - LEVEL / 2) * math.sqrt((2 * LEAST + 1) / (12 * LEAST**2))  # of Mann-Whitney's U
RULE = (
    f"Too few: fewer than {LEAST} targets of a kind, or targets of fewer than {LEAST} users or clients; with so few, "
    f"chance alone takes an AUC {number(CHANCE, 2)} to either side of 1/2 (95%), and more."
)
WORDS = (
    "Every setting was trained at every budget and attacked with all that its server saw{audited}. At the budget inf "
    "there is no mechanism at all, neither noise nor clipping. Attacks that also use what a client keeps to itself "
    "(insiders) are no test of the promise, which covers what leaves a client."
)
KNOWN = "user, all others known"
OF_SUMS = (
    " Every server of clients that learn by sums sees their sums at inf, and with a promise a total with noise: what a "
    "client has cannot be told from what another has. The last attack knows every user's history but one's: it is the "
    "best there is, and its AUC is what the promise allows. Local is the model of noisy sums on a client's own exact "
    "sums alone, with the same public classes of items and settings; slist-local is the strongest model alone that we "
    "know."
)
NUMBERS = ["No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve"]


class Setting(NamedTuple):
    """A scene as the page names it."""

    title: str  # such as `Four platforms, each adding user-level noise in its own training`
    who: str
    rounds: int


class Leak(NamedTuple):
    """An attack's AUC, the mean over the seeds, with its interval, its TPR at 1% FPR, and whether it beats chance."""

    auc: float
    low: float
    high: float
    tpr: float
    star: bool


def counted(number: int) -> str:
    """Return a number as a sentence begins with it."""
    return NUMBERS[number] if number < len(NUMBERS) else f"{number:,}"


def page(
    results: pd.DataFrame, budgets: Sequence[str], scenes: Mapping[str, Setting], about: Mapping[str, str]
) -> Page:
    """Return the page of the study."""
    parts = [part for name, setting in scenes.items() for part in scene_parts(results, budgets, name, setting.title)]
    audits = results[results["scene"] == "audit"]
    if len(audits):
        parts.append(audit_part(audits, [text for text in budgets if text != OPEN]))
    words = WORDS.format(audited=", and a run with canaries was audited" * bool(len(audits)))
    if KNOWN in set(results["name"]):
        words += OF_SUMS
    return Page("What does privacy cost, and does it hold?", words, seeded(results), parts, about, notes(results))


def seeded(results: pd.DataFrame) -> str:
    """Return how many seeds there were, and what that means for the intervals."""
    seeds = results["seed"].nunique()
    if seeds == 1:
        return "One seed: no intervals over seeds, so no claim that one way is better; run with --seeds 3 or more"
    return f"{seeds} seeds, which differ in the draw of the data or its split, in start and noise; 95% intervals"


def notes(results: pd.DataFrame) -> list[str]:
    """Return what a reader must not miss: a broken promise, a failed check."""
    texts = []
    attacks = results[results["kind"] == "attack"]
    broken = attacks[attacks["violates"].eq(True)] if len(attacks) else attacks
    for row in broken.itertuples():
        texts.append(
            f"The attack {row.name} on {row.scene} breaks the promise of epsilon {row.epsilon}, by a test that does so "
            "once in a thousand studies whose promises hold."
        )
    for row in results[(results["kind"] == "check") & (results["value"] > 0)].itertuples():
        texts.append(f"The audit at epsilon {row.epsilon} says that a property does not hold: {row.name}: {row.text}")
    for (epsilon, seed), run in results[results["scene"] == "audit"].groupby(["epsilon", "seed"]):
        accounted = float(run.loc[run["kind"] == "accounted", "value"].iloc[0])
        for row in run[(run["kind"] == "bound") & (run["value"] > accounted)].itertuples():
            texts.append(
                f"At epsilon {epsilon}, seed {seed}, the bound {row.name} at 99% is {row.value:.2f}: that is above the "
                "accounted epsilon, as one such bound of a known-good build in a hundred is. The check leak decides."
            )
    return texts


def scene_parts(results: pd.DataFrame, budgets: Sequence[str], scene: str, title: str) -> list[Part]:
    """Return the sections of a scene: utility and, if any attack fits what is shared, attacks against the budget."""
    table, alone = results[results["scene"] == scene], results[results["scene"] == f"{scene} alone"]
    names = list(dict.fromkeys(table.loc[table["kind"] == "utility", "name"]))
    panels, rows, tests = [], [], len(names) * len(budgets)
    words = "Mean over the clients of a metric of each on its test rows. local: every client alone, nothing leaves it."
    for name in names:
        metric = name.split()[-1]
        value = mean_of(table, "utility", name, budgets)
        levels = [(kind, mean_of(alone, kind, name, [OPEN])[0]) for kind in dict.fromkeys(alone["kind"])]
        way = "higher" if higher_is_better(metric) else "lower"
        words += f" {worth(metric, gains(table, alone, name, budgets, 1 - LEVEL / tests), budgets, tests)}"
        panels.append(Panel(f"{label(metric)}, {way} is better", label(metric), [Series("together", value)], levels))
        rows.append({"metric": name, **{f"epsilon {b}": number(v, 4) for b, v in zip(budgets, value, strict=True)}}
                    | {kind: number(level, 4) for kind, level in levels})  # fmt: skip
        gained = zip(budgets, gains(table, alone, name, budgets), strict=True)
        less = {f"epsilon {b}": change(gain.mean, gain.low, gain.high) for b, gain in gained}
        rows.append({"metric": f"{name} minus local", **less} | {kind: "" for kind, _ in levels})
    utility = Part(f"{title}: utility", rows, words, tradeoff(panels, budgets, f"{scene}-utility", words))
    attacks = table[table["kind"] == "attack"]
    return [utility, attack_part(attacks, budgets, scene, title)] if len(attacks) else [utility]


def attack_part(attacks: pd.DataFrame, budgets: Sequence[str], scene: str, title: str) -> Part:
    """Return the section of a scene's attacks: AUC against the budget, and a table with the intervals."""
    names = list(dict.fromkeys(attacks["name"]))
    outside = [name for name in names if bool(attacks.loc[attacks["name"] == name, "released"].iloc[0])]
    parts = {
        (name, text): attacks[(attacks["name"] == name) & (attacks["epsilon"] == text)]
        for name in names
        for text in budgets
    }
    leaks = {key: leak(part, len(parts)) for key, part in parts.items()}
    panels = []
    for heading, group in (("from what was released", outside), ("insiders", [n for n in names if n not in outside])):
        series = [
            Series(
                name, *([getattr(leaks[name, b], part, math.nan) for b in budgets] for part in ("auc", "low", "high"))
            )
            for name in group
            if any(leaks[name, text] for text in budgets)
        ]
        if series:
            panels.append(Panel(heading, "AUC", series, [("chance", 0.5)]))
    rows = [
        {"attack": name if name in outside or "insider" in name else f"{name} (insider)"}
        | {f"epsilon {text}": cell(leaks[name, text], parts[name, text]) for text in budgets}
        for name in names
    ]
    over = "the wider of those over targets and over seeds" if attacks["seed"].nunique() > 1 else "over the targets"
    words = (
        f"AUC with its 95% interval, {over} (1/2 is chance), then the true positive rate at 1% false positives. A "
        f"star: it differs from chance, corrected for the {len(parts)} cells of this table. No star does not mean that "
        f"nothing leaks: the interval says how much might. {RULE}"
    )
    figure = tradeoff(panels, budgets, f"{scene}-attacks", words, 3.6) if panels else None
    return Part(f"{title}: attacks", rows, words, figure)


def cell(result: Leak | None, part: pd.DataFrame) -> str:
    """Return an attack's result at a budget as it is printed."""
    if result is None:
        return f"too few ({asked(part)})" if len(part) else DASH
    ends = f"[{number(result.low, 2)}, {number(result.high, 2)}]"
    return f"{number(result.auc, 2)}{'*' * result.star} {ends} {number(result.tpr, 2)}"


def audit_part(audits: pd.DataFrame, budgets: Sequence[str]) -> Part:
    """Return the section of the audits: lower bounds beside what was accounted."""
    bounds = list(dict.fromkeys(audits.loc[audits["kind"] == "bound", "name"]))
    accounted = mean_of(audits, "accounted", "accounted", budgets)
    series = [Series("accounted", accounted)]
    series += [Series(name, mean_of(audits, "bound", name, budgets)) for name in bounds]
    rows = [
        {"": line.label, **{f"epsilon {b}": number(v, 2) for b, v in zip(budgets, line.value, strict=True)}}
        for line in series
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
    rows = [{k.replace("epsilon", "eps"): text.partition(" [")[0] for k, text in row.items()} for row in part.rows]
    return Part(part.title, rows)


def asked(part: pd.DataFrame) -> int:
    """Return the number that limits what an attack's rows can tell: targets of a kind, or independent groups."""
    return int(part[["members", "others", "groups"]].min().min())


def leak(part: pd.DataFrame, tests: int) -> Leak | None:
    """Return what an attack at one budget shows, from its rows (one a seed); None where it is too few to tell.

    The interval is the wider of two: over one run's targets, and, with more seeds than one, Student's t over the seeds.
    Both must exclude 1/2 for a star, that over the targets at `LEVEL` corrected for all `tests` (Bonferroni).
    """
    if not len(part) or asked(part) < LEAST:
        return None
    value = part["value"].to_numpy(np.float64)
    # A band is cut off at 0 and 1, on one side at most.
    error = np.maximum(value - part["low"], part["high"] - value).mean() / NormalDist().inv_cdf(0.975)
    auc, n = float(value.mean()), len(value)
    half = NormalDist().inv_cdf(1 - LEVEL / 2) * error
    if n > 1:
        over = student(auc, float(value.std(ddof=1)) / math.sqrt(n), n, n - 1, 1 - LEVEL)
        half = max(half, over.high - over.mean)
    corrected = NormalDist().inv_cdf(1 - LEVEL / 2 / max(tests, 1)) * error
    star = bool(abs(auc - 0.5) > max(half, corrected))
    return Leak(auc, max(auc - half, 0.0), min(auc + half, 1.0), float(part["tpr"].mean()), star)


def values(table: pd.DataFrame, kind: str, name: str, epsilon: str) -> "pd.Series[float]":
    """Return the value of every seed, by seed."""
    part = table[(table["kind"] == kind) & (table["name"] == name) & (table["epsilon"] == epsilon)]
    return part.set_index("seed")["value"].sort_index()


def gains(
    table: pd.DataFrame, alone: pd.DataFrame, name: str, budgets: Sequence[str], confidence: float = 1 - LEVEL
) -> list[Paired]:
    """Return together minus alone at every budget, paired by seed, with intervals over the seeds."""
    local = values(alone, "local", name, "inf")
    both = [values(table, "utility", name, text).align(local, join="inner") for text in budgets]
    return [paired(a.to_numpy(np.float64), b.to_numpy(np.float64), confidence) for a, b in both]


def worth(metric: str, pairs: Sequence[Paired], budgets: Sequence[str], tests: int) -> str:
    """Say where together is better or worse than alone, by differences corrected for `tests`."""
    sign, seeds = 1 if higher_is_better(metric) else -1, max(pair.n for pair in pairs)
    if seeds < 2:
        return f"{label(metric)}: one seed gives no interval, so it is not told where together beats alone."
    places: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for text, pair in zip(budgets, pairs, strict=True):
        low, high = sorted((sign * pair.low, sign * pair.high))
        places["better" if low > 0 else "worse" if high < 0 else "not told apart"].append(text)
    said = "; ".join(f"{words} at epsilon {listing(where)}" for words, where in places.items() if where)
    end = f"95% intervals over {seeds} paired seeds, corrected for {tests} comparisons"
    return f"{label(metric)}, together against alone: {said} ({end})."
