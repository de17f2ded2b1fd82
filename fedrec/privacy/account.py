"""What a run has promised and spent, as its record and its report say it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data
from fedrec.experiment.privacy import UNBOUNDED, Privacy
from fedrec.privacy.accounting import Event, above, epsilon, merge
from fedrec.privacy.books import Books
from fedrec.privacy.guarantee import guarantees, sums_plan
from fedrec.privacy.ledger import ZEROED, Group, persons, statement

BESIDE = (
    "Clients tell the server no loss and no metric: what they measure stays with them, and the simulation, which sees "
    "everything, gathered it. The numbers of this report are no part of the promise, nor are settings that were chosen "
    "by looking at them."
)
SEEN = " A platform's catalogue is the items that its own data has, which the promise takes for public."
SAID, NAMED = 8, 6  # promises, and names in one of them, that are told in words
TRUST = {
    "server": "The server is trusted with every client's update; the promise is about what it sends out.",
    "client": "The noise is added by every client to its own update: no server needs to be trusted.",
    "sum": "Every client adds a part of the noise; the server sees the sum alone.",
}
OF_SUMS = (
    "Every client adds a part of the noise to two secure sums over all users, of vectors of norm 1, and even a client "
    "that takes its own part away faces what is promised; every client is sent the totals, which less its own users "
    "are those of the others, with this noise. What counts is users / sigma, {ratio:,.0f} here: {hope}."
)
HOPES = (  # from which users / sigma on, and what to expect
    (0, "popularity is all that is left of it, and no client is the better for it"),
    (200, "a little more than popularity, which small clients may gain by"),
    (350, "pairs of the most popular items, by which clients of some dozens of users gain"),
    (700, "most of what pairs of the popular items tell"),
)


def account(e: Experiment, home: Path) -> dict[str, Any]:
    """Return the `privacy` of a run's record: what each party spent, and every person over the silos that hold it."""
    rule, parties, events = e.privacy, [], {}
    for who, g in guarantees(e).items():
        books = Books(g, home, e.seed)
        ledger = books.ledger
        events[who] = ledger.events
        parties.append(
            {
                "who": who,
                "rounds": books.spent(),
                "steps": sum(event.count for event in ledger.events),
                "rate": g.event.rate,
                "noise": g.event.sigma,
                "clip": "norm 1" if rule.summed else f"{rule.clip:.3g}" if math.isfinite(rule.clip) else "none",
                "budget": "" if math.isinf(g.budget) else f"{g.budget:g}",
                "spent": shown(epsilon(ledger.events, rule.delta)),
            }
        )
    users = {data.name: data.users for data in clients_data(e)} if rule.unit == "user" else {}
    people = persons(events, users, rule.delta) if users else []
    worst = max(events, key=lambda who: epsilon(events[who], rule.delta))
    spent = [event for who in (people[0].silos if people else (worst,)) for event in events[who]]
    groups = people or [Group((who,), 0, epsilon(spent, rule.delta)) for who, spent in events.items()]
    inside = "Every silo that promises anything adds its noise in its own training."
    trust = TRUST[rule.where] if rule.unit == "client" else inside if rule.inside else hope(e)
    return {
        "words": f"{promise(rule, groups, events)} {trust}",
        "unit": rule.unit,
        "neighbours": "zero-out",
        "delta": rule.delta,
        "spent": shown(epsilon(spent, rule.delta)),
        "replay": rule.replay,
        "open": rule.open,
        "beside": BESIDE + SEEN * (e.dataset == "table"),
        "parties": parties,
        "people": [{"silos": list(g.silos), "people": g.people, "spent": shown(g.epsilon)} for g in people],
    }


def hope(e: Experiment) -> str:
    """Return who adds noise to sums over users, and what is to be expected of so many users under it."""
    plan = sums_plan(e)
    ratio = plan.users / plan.sigma
    return OF_SUMS.format(ratio=ratio, hope=max(level for level in HOPES if level[0] <= ratio)[1])


def promise(rule: Privacy, groups: Sequence[Group], events: Mapping[str, Sequence[Event]]) -> str:
    """Return what is promised as sentences: the least of it, or, where budgets differ, what each group has.

    `groups` are the parties whose events add up for somebody, `events` those of every party.
    """
    alike: dict[tuple[float, tuple[Event, ...]], list[tuple[str, ...]]] = {}  # what was spent, and by whom
    for group in groups:
        spent = merge(event for who in group.silos for event in events[who])
        alike.setdefault((group.epsilon, spent), []).append(group.silos)
    said = sorted(alike.items(), reverse=True)
    differ = len({cost for (cost, _), _ in said}) > 1 and (";" in rule.epsilon or math.isinf(said[0][0][0]))
    if not differ:
        ((_, spent), who), *_ = said
        words = statement(spent, rule.unit, rule.delta, rule.replay)
        held = f"Whoever is held by {' and '.join(who[0])}: " if len(who[0]) > 1 else ""
        return f"{held}{words[0].upper()}{words[1:]}."
    texts = [f"For {_names(who)}: {statement(spent, rule.unit, rule.delta, rule.replay)}." for (_, spent), who in said]
    unit, relation = ZEROED[rule.unit], ZEROED[rule.unit].partition(" (")[0]
    texts = [texts[0], *(text.replace(unit, relation) for text in texts[1:])]  # what a unit is need be said once
    tail = f" {len(texts) - SAID} more are in the table." if len(texts) > SAID else ""
    return f"The promise is not the same for all. {' '.join(texts[:SAID])}{tail}"


def _names(groups: Sequence[tuple[str, ...]]) -> str:
    """Return groups as a list of names, a long one cut short."""
    names = [" and ".join(parties) + " together" * (len(parties) > 1) for parties in sorted(groups)]
    if len(names) > NAMED:
        names = [*names[: NAMED - 1], f"{len(names) - NAMED + 1} others"]
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def shown(epsilon: float) -> str:
    """Return an epsilon as it is printed."""
    return above(epsilon) if math.isfinite(epsilon) else UNBOUNDED
