"""The page of a profile."""

from collections.abc import Mapping, Sequence

from fedrec.report.findings import DASH, plural
from fedrec.report.profile import FEW, Group, Label, Profile
from fedrec.report.profile_suspicions import Suspicion, are_places, day
from fedrec.report.profile_words import Sharing, share
from fedrec.report.study import Page, Part

MOST = 50  # platforms that tables have, the largest
WORDS = (
    "Interactions are what is left when the repeats of a platform, user and item are one. Density is the share of all "
    "pairs of a user and an item that interacted. The items of a platform are its catalogue, where the data tell it, "
    "else those that its users met. Under 3, 5 and 10 are users with fewer interactions; the top 1% is the share of "
    "the interactions that the most met hundredth of the items has."
)


def groups(p: Profile) -> list[Group]:
    """Return the largest platforms in their order, and all of them where there are several."""
    kept = sorted(p.platforms, key=lambda group: -group.rows)[:MOST]
    return [*(group for group in p.platforms if group in kept), *[p.whole] * (len(p.platforms) > 1)]


def page(
    p: Profile,
    found: Sequence[Suspicion],
    shared: Sharing,
    takes: Sequence[Mapping[str, str]],
    facts: Mapping[str, str],
) -> Page:
    """Return the page; `takes` are the rows of what a run would take, `facts` what is said below the tables."""
    whole = p.whole
    merged = f"{p.read:,} rows read, repeats merged: " * (p.read > whole.rows)
    people, goods = plural(whole.users, "user"), plural(whole.items, "item")
    kicker = f"{merged}{plural(whole.rows, 'interaction')} of {people} with {goods}"
    title = f"What is in {p.name}?"
    parts = [
        Part("Platforms", [sizes(group) for group in groups(p)], WORDS),
        Part("What each could train", trainable(p), TRAIN),
        *matrices(p),
        Part("Times and ratings", ranges(p), "The first and the last day in UTC, and the ratings that are known."),
        *told(p),
        Part("What a run would take", takes, "By estimate, from sizes and measured constants."),
    ]
    words = f"{shared.words[0].upper()}{shared.words[1:]}."
    notes = [f"{one.text[0].upper()}{one.text[1:]}." for one in found]
    return Page(title, words, kicker, parts, facts, notes, "What was read, and what to run next")


TRAIN = (
    "Rows from which a task could learn, of attributes items; a task whose target never varies is left out. "
    "behaviour is what a user did at most: viewed, clicked or bought."
)


def sizes(group: Group) -> dict[str, str]:
    """Return the sizes of a platform as they are printed."""
    few = {f"under {n}": f"{group.few[n]:,}" for n in FEW}
    return {
        "platform": group.name,
        "interactions": f"{group.rows:,}",
        "users": f"{group.users:,}",
        "items": f"{group.items:,}",
        "density": share(group.density),
        **few,
        "top 1%": share(group.top),
    }


def trainable(p: Profile) -> list[dict[str, str]]:
    """Return the rows of each task on each platform as they are printed."""
    names = dict.fromkeys(name for group in (p.whole, *p.platforms) for name in group.tasks)
    return [{"platform": g.name, **{n: f"{g.tasks[n]:,}" if n in g.tasks else DASH for n in names}} for g in groups(p)]


def ranges(p: Profile) -> list[dict[str, str]]:
    """Return the range of each platform's times and ratings as they are printed."""
    names = ("known", "lowest", "mean", "highest")
    rows = []
    for group in groups(p):
        first, last = map(moment, group.times) if group.times else (DASH, DASH)
        r = group.ratings
        numbers = [f"{r.known:,}", f"{r.low:g}", f"{r.mean:.3g}", f"{r.high:g}"] if r else [DASH] * len(names)
        rows.append({"platform": group.name, "first": first, "last": last, **dict(zip(names, numbers, strict=True))})
    return rows


def moment(seconds: int) -> str:
    """Return the day of a time, or a place in an order as it is."""
    return f"{seconds:,}" if are_places((seconds, seconds)) else day(seconds)


def matrices(p: Profile) -> list[Part]:
    """Return who has how many users, and items, in common with whom."""
    o = p.overlap
    if len(o.names) < 2:
        return []
    cut = f" The {len(o.names)} largest platforms are shown." * (len(o.names) < len(p.platforms))
    rows = {
        what: [
            {"platform": name, **{other: f"{n:,}" for other, n in zip(o.names, line, strict=True)}}
            for name, line in zip(o.names, table, strict=True)
        ]
        for what, table in (("Users", o.users), ("Items", o.items))
    }
    return [
        Part(f"{what} in common", table, f"On the diagonal are a platform's own.{cut}") for what, table in rows.items()
    ]


def told(p: Profile) -> list[Part]:
    """Return the rates of labels, and what is missing, if there are any."""
    parts = []
    if p.whole.labels:
        rows = [{"platform": g.name, **{name: rate(one) for name, one in g.labels.items()}} for g in groups(p)]
        parts.append(Part("Labels", rows, "The share of the rows that have a label, of those in which it is known."))
    if p.missing:
        rows = [{"what": name, "missing": share(x)} for name, x in p.missing.items()]
        parts.append(Part("Missing", rows, "The share of the rows, items or users of which something is not known."))
    return parts


def rate(label: Label) -> str:
    """Return the rate of a label as it is printed."""
    return share(label.rate) if label.known else DASH
