"""What a reader must know of a run, in words: an answer for each client, and the warnings."""

import math
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import pandas as pd

from fedrec.experiment.privacy import NOT_PRIVATE
from fedrec.experiment.records import SINGLE
from fedrec.federation.participation import arrivals
from fedrec.metrics import higher_is_better, sign
from fedrec.report.several import balance_of, balances, transfer
from fedrec.report.tables import LEAKING, Run, unit_of
from fedrec.report.verdicts import UNCLEAR

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
MANY = 24  # clients: above this they are counted and drawn as a distribution
WORST = 10
LEADS = {
    "helped": ("good", "Taking part helped", ""),
    "hurt": ("bad", "Taking part hurt", ""),
    "no detectable difference": ("flat", "No detectable difference for", ""),
    UNCLEAR: (
        "flat",
        "Unclear for",
        "after Holm: its interval excludes 0, but not once corrected for the other verdicts",
    ),
    "better": ("flat", "", "did better together (point estimate, no interval)"),
    "worse": ("flat", "", "did worse together (point estimate, no interval)"),
    "equal": ("flat", "", "did as well together as alone (point estimate, no interval)"),
    "": ("flat", "", "took part; alone it was not measured"),
}

FAULTS = {  # kind of a fault: tone and title
    "dropout": ("note", "Dropped out, as the run asked for"),
    "silence": ("care", "No answer in time"),
    "error": ("care", "Clients failed"),
    "contract": ("care", "Answers refused"),
    "guarantee": ("care", "Too few answers for the robust rule"),
}


class Headline(NamedTuple):
    """A client's answer: how it looks, the words around its name, and its numbers."""

    tone: str
    before: str
    name: str
    after: str
    numbers: str


class Caution(NamedTuple):
    """Something that a reader must not miss; `tone` is bad, care or note, `measured` that it rests on a metric."""

    tone: str
    title: str
    text: str
    measured: bool = False


def number(x: float, digits: int = 3) -> str:
    """Return a value with `digits` decimals and no leading zero; a dash for NaN."""
    if not math.isfinite(x):
        return DASH if math.isnan(x) else f"{x}"
    text = f"{abs(x):.{digits}f}"
    text = text[1:] if text.startswith("0.") else text
    return MINUS + text if x < 0 and float(f"{x:.{digits}f}") else text


def significant(x: float) -> str:
    """Return three digits of a number, without a leading zero; a dash for NaN."""
    if math.isnan(x):
        return DASH
    text = f"{x:.3g}".replace("-", MINUS)
    return text.replace("0.", ".", 1) if abs(x) < 1 else text


def count(x: float) -> str:
    """Return a whole number with its thousands apart; a dash for NaN."""
    return DASH if math.isnan(x) else f"{x:,.0f}"


def size(count: float) -> str:
    """Return a number of bytes in the unit that reads best."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.3g} {unit}"


def change(mean: float, low: float = math.nan, high: float = math.nan) -> str:
    """Return `+.018 [+.009, +.027]`, with as many decimals as keep the sign of every nonzero part visible."""
    parts = [x for x in (mean, low, high) if math.isfinite(x)]
    if not parts:
        return DASH
    digits = next((d for d in (3, 4, 5) if all(not x or round(x, d) for x in parts)), 6)
    signed = [("+" if round(x, digits) > 0 else "") + number(x, digits) for x in parts]
    return signed[0] if len(signed) < 3 else f"{signed[0]} [{signed[1]}, {signed[2]}]"


def label(metric: str) -> str:
    """Return a metric's name as it is printed."""
    return {"logloss": "log loss", "loss": "loss", "accuracy": "accuracy"}.get(metric, metric.upper())


def plural(count: int, noun: str) -> str:
    """Return `1 user`, `2 users`, `1,682 users`."""
    return f"{count:,} {noun}" + ("s" if count != 1 else "")


def listing(names: Iterable[str], most: int = WORST) -> str:
    """Return `a, b and 7 more`."""
    names = list(names)
    shown = names if len(names) <= most + 1 else names[:most]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def headline(row: Any) -> Headline:
    """Return the answer for one row of `comparison`."""
    tone, before, after = LEADS[row.verdict]
    good = sign(row.metric)
    if row.verdict == "helped" and good * row.federated < good * row.popularity:
        tone, after = "care", f"against training alone, but it stays below popularity ({number(row.popularity)})"
    numbers = f"{label(row.metric)} {number(row.federated)}"
    if row.verdict:
        difference = change(row.local_difference, row.local_low, row.local_high)
        numbers += f" together against {number(row.local)} alone, {difference}"
    if row.local_users:
        numbers += f", {plural(row.local_users, unit_of(row.task))}"
    if not higher_is_better(row.metric):
        numbers += " (lower is better)"
    return Headline(tone, before, row.client, after, numbers)


def answer(rows: pd.DataFrame) -> str:
    """Return how many clients it helped and hurt, for the rows of one task and metric."""
    counts = rows["verdict"].value_counts()
    phrases = {
        "helped": "helped {}",
        "hurt": "hurt {}",
        "no detectable difference": "made no detectable difference to {}",
        UNCLEAR: "is unclear for {} after Holm",
        "better": "left {} better off by a point estimate",
        "worse": "left {} worse off by a point estimate",
        "equal": "left {} as they were",
    }
    parts = [phrase.format(f"{counts[name]:,}") for name, phrase in phrases.items() if name in counts]
    if not parts:
        return "Not known: the clients were not trained alone. Run again with --compare."
    joined = ", ".join(parts[:-1]) + (", and " if len(parts) > 2 else " and " if len(parts) > 1 else "") + parts[-1]
    missing = f"; {counts['']:,} could not be compared" if "" in counts else ""
    return f"Of {plural(len(rows), 'client')}, working together {joined}{missing}."


def _constraints(run: Run) -> Iterator[Caution]:
    """Yield which constraints do not hold, and by how much."""
    by = {
        word: [f"{row['tie']} (by {significant(row['residual'])})" for row in run.ties if row["verdict"] == word]
        for word in ("infeasible", "violated")
    }
    if by["infeasible"]:
        text = f"No point meets all of them; the nearest breaks {listing(by['infeasible'])}. Of straight and of convex "
        text += "constraints that is proved; of others it holds near that point."
        yield Caution("bad", "Infeasible constraints", text)
    if by["violated"]:
        text = f"The round that was tested breaks {listing(by['violated'])}. More rounds may help; a multiplier that "
        text += "keeps growing says that a constraint cannot be met."
        yield Caution("bad", "Violated constraints", text)


def _losses(primary: pd.DataFrame) -> Iterator[Caution]:
    lost = primary[primary["verdict"] == "hurt"]
    for row in lost.head(WORST).itertuples():
        text = f"{headline(row).numbers}; the interval lies on the worse side of 0, corrected for all verdicts too."
        yield Caution("bad", f"{row.client} lost by taking part", text, True)
    if len(lost) > WORST:
        yield Caution("bad", f"{len(lost)} clients lost by taking part", listing(lost["client"]), True)
    worse = primary["metric"].map(sign) * primary["local_difference"] < 0
    below = primary[worse & primary["verdict"].isin(["no detectable difference", UNCLEAR])]
    if len(below):
        text = "The point estimate lies on the worse side of 0, and no verdict at a level of 5% over all clients: "
        yield Caution("care", "No detectable gain", f"{text}{listing(below['client'])}.", True)
    if len(bare := primary[primary["verdict"] == "worse"]):
        text = "There is no interval (fewer than two users or items with a value): "
        yield Caution("care", "Below alone, without an interval", f"{text}{listing(bare['client'])}.", True)


def _protocol(run: Run) -> Iterator[Caution]:
    if run.leaking():
        text = (
            "Training negatives avoided the held-out items too (negatives = published), which tells the model what the "
            "test items are. The numbers reproduce a published protocol; they do not measure recommendation quality."
        )
        yield Caution("bad", LEAKING, text)
    if (candidates := run.option("candidates", "full")) != "full":
        text = f"Each test item was ranked among {candidates} sampled items, not the whole catalogue: values are far "
        text += "higher than under full ranking and must not be compared with it."
        yield Caution("care", "Sampled candidates", text)
    if run.record.get("stopped") == "interrupted":
        text = f"The run ended early, after {plural(len(run.rounds), 'round')} of {run.option('rounds', '?')}."
        yield Caution("care", "Interrupted run", text)
    there, noisy = {*run.baselines, *(["closed forms"] if run.closed else [])}, of_noisy_sums(run)
    wanted = ("local", "closed forms", "popularity") if noisy else ("local", "pooled", "popularity")
    missing = [name for name in wanted if name not in there]
    several = run.federated.test().reset_index().groupby("client")["task"].nunique()
    if (several > 1).any() and not run.singles and not run.not_single:
        missing.append(SINGLE)
    if missing and run.option("method") not in missing:
        text = "Use --compare to train the baselines of this experiment."
        yield Caution("note", f"Not run: {listing(missing)}", text)


def _tasks(run: Run) -> Iterator[Caution]:
    """Return which tasks of a client lose by its other tasks, and why that is not known where it is not."""
    if run.not_closed:
        yield Caution("note", "A closed form may be stronger than all that is compared", f"{run.not_closed}.")
    if run.not_single:
        yield Caution("note", "What several tasks gain or lose is not known", f"{run.not_single}.")
    if not (clients := balances(transfer(run))):
        return
    whole = balance_of(transfer(run, together=True))
    seesaw = [f"{name} ({b.words.removeprefix('SEESAW: ')})" for name, b in clients.items() if b.seesaw]
    losing = [f"{name} ({', '.join(b.lost)})" for name, b in clients.items() if b.lost and not b.seesaw]
    text = f"All users: {whole.words}. " if len(clients) > 1 else ""
    if seesaw or whole.seesaw:
        text += "A task lost against a run of its own while another gained, at 5% over all verdicts (Holm), in: "
        yield Caution("bad", "Seesaw between tasks", f"{text}{listing(seesaw) or 'no client by itself'}.", True)
    elif whole.lost:
        yield Caution("bad", "A task lost by the others", text or f"{whole.words}.", True)
    if losing:
        text = "Against a run of its own, at 5% over all verdicts (Holm): "
        yield Caution("care", "Clients with a task that lost by the others", f"{text}{listing(losing)}.", True)


def _data(run: Run, said: Collection[str]) -> Iterator[Caution]:
    data = run.record.get("data", {})
    clients = data.get("clients", [])
    if empty := [str(c["name"]) for c in clients if not c.get("test")]:
        yield Caution("care", "No test item", f"Nothing is held out, so nothing is measured, for {listing(empty)}.")
    tests = run.federated.clients[run.federated.clients["split"] == "test"]
    one_class = tests[(tests["metric"] == "auc") & tests["value"].isna() & ~tests["client"].isin(empty)]
    if len(one_class):
        names = listing(dict.fromkeys(one_class["client"]))
        yield Caution("care", "AUC undefined", f"The test labels have one class only, or are not known, for {names}.")
    leaked = {p["name"] for p in run.record.get("parameters", {}).get("private", [])}
    leaked -= {p["name"] for p in run.record.get("parameters", {}).get("shared", [])}
    leaked &= set(run.ledger["parameter"])
    if leaked:
        yield Caution("bad", "A private parameter travelled", f"The ledger names {listing(sorted(leaked))}.")
    notes = [note for note in map(str, data.get("notes", [])) if note not in said]
    notes += [f"{c['name']}: {note}" for c in clients for note in c.get("notes", [])]
    if notes:
        tail = f"; and {len(notes) - 20} more notes in experiment.json" if len(notes) > 20 else ""
        yield Caution("note", "About the data", "; ".join(notes[:20]) + tail)
    if lost := run.record.get("resumed"):
        yield Caution("note", "Gone on with", "; ".join(map(str, lost)))


def _student(run: Run) -> Iterator[Caution]:
    """Return how the student of an output agreement does beside the mean of its teachers."""
    if run.no_student:
        yield Caution("bad", "The server's student diverged", f"It is neither saved nor tested. {run.no_student}.")
    if not len(run.student):
        return
    rows = run.student[run.student["metric"] == run.student["metric"].iloc[0]]
    metric, users = label(rows["metric"].iloc[0]), int(rows["users"].max())
    text = f"{metric} {number(rows['student'].mean())} against {number(rows['teacher'].mean())}, the mean of its "
    text += f"{plural(len(rows), 'teacher')}, on what is held out of {plural(users, 'public volunteer')}. It was "
    text += "trained on their consensus logits alone, and can rank for volunteers only: it knows no other user. It has "
    student, teacher = count(rows["student_parameters"].max()), count(rows["teacher_parameters"].mean())
    text += f"{student} parameters, they have {teacher}."
    yield Caution("note", "The server's student", text)


def _newcomers(run: Run) -> Iterator[Caution]:
    """Return what the clients that joined later got and gave, and that their baselines did not come later."""
    if joined := arrivals(run.option("newcomers", "")):
        text = f"{listing(f'{name} in round {number}' for name, number in joined.items())}. They trained only what is "
        text += "private, on what the others had learned; nothing of theirs is in what is shared. Alone and pooled "
        text += "train from the first round on."
        yield Caution("note", "Joined later", text)


def of_noisy_sums(run: Run) -> bool:
    """Return whether a run is of sums over users that left with noise: another model than sums without."""
    rule = run.option("privacy") or {}
    return (rule.get("unit"), rule.get("where")) == ("user", "sum")


def _privacy(run: Run) -> Iterator[Caution]:
    """Return what a run with noise promises, and what breaks the promise."""
    promised = run.record.get("privacy")
    if not promised:
        return
    yield Caution("note", "What is promised", f"{promised['words']} {promised['beside']}")
    if promised["replay"]:
        text = "The noise came from the run's seed, so that whoever knows the seed can take it away again."
        yield Caution("bad", NOT_PRIVATE, text)
    if promised.get("open"):
        text = "The mechanism ran without noise, to be compared with: it protects nothing."
        yield Caution("bad", NOT_PRIVATE, text)
    if {"local", "pooled"} & run.baselines.keys():
        text = "Alone, pooled and popularity are without noise: alone nothing leaves a client, popularity counts the "
        text += "rows of all clients, in the simulation and for this report; it is not private, and sent to nobody."
        if of_noisy_sums(run):
            text += " Alone is this run's own model of a client's exact sums and nothing else, with the same public "
            text += "classes of items and the same settings: what is above it came from the others."
        yield Caution("note", "Baselines", text)


def _faults(run: Run) -> Iterator[Caution]:
    """Return what is said of the answers that did not count, one warning for each kind."""
    for kind, rows in run.faults.groupby("kind", sort=False):
        tone, title = FAULTS.get(str(kind), ("care", str(kind)))
        counts = rows.groupby("client", sort=False).size()
        clients = listing(f"{client} {count}" if client else f"{count}" for client, count in counts.items())
        last = rows.iloc[-1]
        text = f"{plural(len(rows), 'time')} ({clients}); they are listed in faults.csv."
        if kind != "dropout":
            where = f"{last['client']}, {last['during']}, round {last['round']}".lstrip(", ")
            text += f" The last one: {where}: {last['text']}."
        yield Caution(tone, title, text)
    if len(tests := run.faults[run.faults["during"] == "test"]):
        yield Caution("bad", "Not tested", f"There is no test value for {listing(tests['client'])}.")


def warnings(run: Run, primary: pd.DataFrame, said: Collection[str] = ()) -> list[Caution]:
    """Return the warnings of a run, the gravest first.

    `primary` are the rows of `comparison` that speak for a task, `said` notes on the data that the reader has seen.
    """
    first = (_protocol(run), _privacy(run), _constraints(run), _losses(primary), _faults(run))
    cautions = chain(*first, _newcomers(run), _student(run), _tasks(run), _data(run, said))
    return sorted(cautions, key=lambda warning: ("bad", "care", "note").index(warning.tone))
