"""The beginning of a run: what every client carries, the tie that they join, and what they start from."""

import math
from collections.abc import Mapping, Sequence

from fedrec.aggregation import alone, carrier, catalogue
from fedrec.coordination import Control, tie_of
from fedrec.errors import UserError
from server.newcomers import welcome
from server.secure import apart
from server.state import State

NEARLY_ALL = 0.95  # of the weight of three clients or more


def join(c: State, nodes: Sequence[int]) -> None:
    """Learn what every client carries; Z starts as the mean of what they bring."""
    outcome = c.exchange.join(nodes)
    everybody = c.counted(outcome, len(nodes), "joining")
    joined = [reply for reply in everybody if reply.client not in c.plan.newcomers]
    late = [reply for reply in everybody if reply.client in c.plan.newcomers]
    for reply in late:  # to the end of the order of all sums, which is that of a run without them
        c.exchange.nodes[reply.client] = c.exchange.nodes.pop(reply.client)
    c.record.rows = catalogue([reply.rows for reply in joined])
    size = {r.client: 1.0 if c.plan.uniform else max(r.metrics["examples"], 1.0) for r in joined}
    c.record.notes += heavy(size)
    # Weights of mean 1: a penalty means the same whatever the size of the data.
    unit, plan = math.fsum(size.values()) / len(size), c.plan
    for r in joined:
        weight = 1.0 if plan.secure else size[r.client] / unit
        c.carriers[r.client] = carrier(r.client, r.values, r.rows, c.record.rows, weight)
    values = {r.client: r.values for r in joined}
    try:
        c.tie = tie_of(plan.coupling, plan.descent, c.carriers, values, plan.seed, plan.robust, bool(plan.secure))
        at_home = apart(c.carriers, c.z, plan.secure) if plan.secure else []
        if at_home and plan.coupling.duals:
            raise UserError(f"secure: every client's rows must be summed under duals, found {at_home[0]}")
        c.record.notes += at_home
    except UserError as error:  # what is configured fits all clients, not those that are left
        outcome.require(len(nodes) if outcome.faults else 0, f"joining ({error})")
        raise
    c.parts = {name: c.tie.part(name) for name in c.carriers}
    if c.plan.drift.correction == "scaffold":
        c.control = Control(c.carriers, c.plan.lr)
    c.seen = dict.fromkeys(c.carriers, 0)
    welcome(c, late)
    tables = alone(list(c.carriers.values()), c.record.rows) if len(joined) > 1 else []
    if tables:
        c.record.notes.append(f"no row of {', '.join(tables)} is carried by two clients: sharing changes nothing")


def heavy(size: Mapping[str, float]) -> list[str]:
    """Return a note on a client that has nearly all the weight: how many rows it has is what it says itself."""
    name = max(size, key=size.__getitem__)
    share = size[name] / math.fsum(size.values())
    if len(size) < 3 or share <= NEARLY_ALL:
        return []
    text = "the others hardly count in a mean. With --weights uniform every client counts alike"
    return [f"{name} says that it has {share:.0%} of all training rows: {text}"]
