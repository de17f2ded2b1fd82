"""What a run has promised and spent, as its record and its report say it."""

import math
from pathlib import Path
from typing import Any

from fedrec.experiment import Experiment
from fedrec.holdings import clients_data
from fedrec.privacy.accounting import above, epsilon
from fedrec.privacy.books import Books
from fedrec.privacy.guarantee import guarantees
from fedrec.privacy.ledger import Group, persons, statement

BESIDE = (
    "Clients tell the server no loss and no metric: what they measure stays with them, and the simulation, which sees "
    "everything, gathered it. The numbers of this report are no part of the promise, nor are settings that were chosen "
    "by looking at them."
)
SEEN = " A platform's catalogue is the items that its own data has, which the promise takes for public."
TRUST = {
    "server": "The server is trusted with every client's update; the promise is about what it sends out.",
    "client": "The noise is added by every client to its own update: no server needs to be trusted.",
    "sum": "Every client adds a part of the noise; the server sees the sum alone.",
}


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
                "clip": rule.clip,
                "budget": "" if math.isinf(g.budget) else f"{g.budget:g}",
                "spent": shown(epsilon(ledger.events, rule.delta)),
            }
        )
    users = {data.name: data.users for data in clients_data(e)} if rule.unit == "user" else {}
    people = persons(events, users, rule.delta) if users else []
    worst = max(events, key=lambda who: epsilon(events[who], rule.delta))
    spent = [event for who in (people[0].silos if people else (worst,)) for event in events[who]]
    words = statement(spent, rule.unit, rule.delta, rule.replay)
    who = f"Whoever is held by {' and '.join(people[0].silos)}: " if people and len(people[0].silos) > 1 else ""
    trust = TRUST[rule.where] if rule.unit == "client" else "Every silo adds the noise in its own training."
    return {
        "words": f"{who}{words[0].upper()}{words[1:]}. {trust}",
        "unit": rule.unit,
        "neighbours": "zero-out",
        "delta": rule.delta,
        "spent": shown(epsilon(spent, rule.delta)),
        "replay": rule.replay,
        "beside": BESIDE + SEEN * (e.dataset == "table"),
        "parties": parties,
        "people": [as_row(group) for group in people],
    }


def as_row(group: Group) -> dict[str, Any]:
    """Return people whom the same silos hold as a row."""
    return {"silos": list(group.silos), "people": group.people, "spent": shown(group.epsilon)}


def shown(epsilon: float) -> str:
    """Return an epsilon as it is printed."""
    return above(epsilon) if math.isfinite(epsilon) else "without bound"
