"""The total of a run by sums: whose sums it has, and how those leave whose sums were taken out of it."""

from server.faults import ClientFailure, Outcome
from server.state import State


def require_changes(s: State, outcome: Outcome) -> None:
    """Raise ClientFailure unless all have answered of whom the total has sums that are to be others."""
    assert s.plan.begun
    missing = sorted((s.plan.begun.asked & s.plan.begun.clients) - {reply.client for reply in outcome.replies})
    if missing:
        text = "; ".join(f"{fault.client}: {fault.text}" for fault in outcome.faults if fault.client in missing)
        raise ClientFailure(f"the total has other sums of {', '.join(missing)}, which must be corrected, found {text}")


def bid_farewell(s: State) -> None:
    """Let those that leave have no part in what comes."""
    assert s.plan.begun
    for name in s.plan.begun.leaving & s.carriers.keys():
        del s.carriers[name], s.parts[name], s.seen[name]
        s.improved.discard(name)


def summed(s: State) -> list[str]:
    """Return the clients whose sums are in the total of the best round."""
    before = s.plan.begun.clients - s.plan.begun.leaving if s.plan.begun else frozenset[str]()
    sent = {
        str(row["client"])
        for row in s.record.ledger
        if row["direction"] == "up" and 0 < int(row["round"]) <= s.best.round and row["parameter"] not in NO_SUMS
    }
    if s.plan.secure:  # of which the ledger also has the keys of those that were lost
        sent = {name for name, number in s.seen.items() if number}
    return sorted(before | (sent & s.carriers.keys()))


NO_SUMS = ("metrics", "refused")
