"""How clients join: at the beginning, where Z is the mean of what they bring, or later, when nothing of theirs counts.

Newcomers are sent the best that the federation has.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from fedrec.errors import UserError
from fedrec.experiment.records import to_row
from fedrec.federation.asynchrony import Clock
from fedrec.federation.coordination import Control, tie_of
from fedrec.federation.coordination.coupling import softened
from fedrec.federation.coordination.halves import Hub
from fedrec.keyed import TABLES, Carrier, alone, carrier, catalogue, gather, select
from fedrec.params import Params
from fedrec.sharing import Broadcast, Contribution, admit_told
from server.buffer import Buffer
from server.scores import Key, own_metrics, selection_scores
from server.secure import home_notes
from server.state import State

NEARLY_ALL = 0.95  # of the weight of three clients or more


def join(c: State, nodes: Sequence[int]) -> None:
    """Learn what every client carries; Z starts as the mean of what they bring."""
    outcome = c.exchange.join(nodes)
    everybody = c.accept(outcome, len(nodes), "joining")
    joined = [reply for reply in everybody if reply.client not in c.plan.newcomers]
    late = [reply for reply in everybody if reply.client in c.plan.newcomers]
    for reply in late:  # to the end of the order of all sums, which is that of a run without them
        c.exchange.nodes[reply.client] = c.exchange.nodes.pop(reply.client)
    c.record.rows = catalogue([reply.rows for reply in joined])
    size = {r.client: 1.0 if c.plan.uniform else max(r.metrics["examples"], 1.0) for r in joined}
    c.record.notes += heavy(size)
    # Weights of mean 1: a penalty means the same whatever the size of the data.
    unit, plan = math.fsum(size.values()) / len(size), c.plan
    known: dict[tuple[int, int], Carrier] = {}  # clients that carry the same have one copy of where it lies
    for r in joined:
        weight, key = 1.0 if plan.secure or plan.by_sums else size[r.client] / unit, (id(r.values), id(r.rows))
        if key not in known:
            known[key] = carrier(r.client, r.values, r.rows, c.record.rows, weight)
        c.carriers[r.client] = replace(known[key], client=r.client, weight=weight)
    values = {r.client: r.values for r in joined}
    try:
        robust, summed = plan.robust, bool(plan.secure)
        told = (plan.seed, robust, summed, plan.by_sums, plan.penalty, plan.search, plan.factors)
        c.tie = tie_of(plan.coupling, plan.descent, c.carriers, values, *told)
        if isinstance(c.tie, Hub):
            c.record.notes += softened(plan.coupling)
        if plan.begun:
            c.tie.move(plan.begun.total)
        at_home = home_notes(c.carriers, c.z, plan.secure) if plan.secure else []
        if at_home and plan.coupling.duals:
            raise UserError(f"secure: every client's rows must be summed under duals, found {at_home[0]}")
        c.record.notes += at_home
    except UserError as error:  # what is configured fits all clients, not those that are left
        outcome.require(len(nodes) if outcome.faults else 0, f"joining ({error})")
        raise
    c.parts = {name: c.tie.part(name) for name in c.carriers}
    if c.plan.drift.correction == "scaffold":
        c.control = Control(c.carriers, c.plan.lr)
    if plan.asynchrony.timed and any(who.like for who in c.carriers.values()):
        c.buffer = Buffer(Clock(plan.asynchrony, list(c.carriers), plan.seed), c.carriers)
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


TOLD = frozenset({"loss"})  # what a newcomer tells of its training: no tensor, no number that enters Z


def welcome(s: State, replies: list[Contribution]) -> None:
    """Learn which rows of the federation's tables each has a use for, once there is a Z."""
    for reply in replies:
        known = {k: ids[np.isin(ids, s.record.rows[k])] for k, ids in reply.rows.items() if k in s.record.rows}
        places = {k: torch.from_numpy(np.isin(reply.rows[k], ids)) for k, ids in known.items()}
        values = select({name: value for name, value in reply.values.items() if name in s.z}, places)
        s.newcomers.carriers[reply.client] = carrier(reply.client, values, known, s.record.rows, 0.0)
        s.newcomers.rows[reply.client], s.newcomers.seen[reply.client] = known, 0
        s.record.notes += lacking(reply, values)


def follow(s: State, number: int) -> None:
    """Let the newcomers of a round train on the best Z so far, and judge what it made of them."""
    here = [name for name in s.newcomers.carriers if s.newcomers.rounds[name] <= number]
    for reply in send(s, "train", number, here):
        s.newcomers.seen[reply.client] = number
        s.record.score(number, "train", {(reply.client, "all", "loss"): reply.metrics["loss"]}, reply.device)
    if not s.plan.due(number):
        return
    if not s.best.round or s.best.round != s.newcomers.stands:
        s.newcomers.stands, s.newcomers.scores = s.best.round, {}  # what was trained on another Z is not kept
    measured = evaluate(s, number, "validation", [name for name in here if s.newcomers.seen[name]])
    for name, value in selection_scores(measured, s.plan.select).items():
        if value > s.newcomers.scores.get(name, -np.inf):
            s.newcomers.scores[name] = value
            s.newcomers.improved.add(name)


def assess(s: State) -> None:
    """Test what each newcomer has kept, on the selected Z; one whose round never came is named in the notes."""
    evaluate(s, s.best.round, "test", [name for name in s.newcomers.carriers if s.newcomers.seen[name]])
    for name in s.newcomers.carriers:
        if not s.newcomers.seen[name]:
            s.record.notes.append(f"{name} was to join in round {s.newcomers.rounds[name]}, and has not trained")


def evaluate(s: State, number: int, split: str, names: list[str]) -> dict[Key, float]:
    """Return what newcomers measured of Z with their private parts."""
    measured: dict[Key, float] = {}
    for reply in send(s, "evaluate", number, names, split):
        metrics = own_metrics(reply, pooled=False)
        s.record.score(number, split, metrics, reply.device)
        measured |= metrics
    return measured


def send(s: State, kind: str, number: int, names: list[str], split: str = "validation") -> list[Contribution]:
    """Send newcomers their parts of the best Z so far; return the answers that count, which hold no tensor."""
    if not names:
        return []
    z, train = s.best.z if s.best.round else s.z, kind == "train"
    broadcasts = {
        name: Broadcast(
            number,
            gather(z, s.newcomers.carriers[name]),
            name in s.newcomers.improved,
            split,
            s.tie.rho,
            s.newcomers.seen[name],
            rows=s.newcomers.rows[name],
        )
        for name in names
    }
    outcome = s.exchange.send(
        kind,
        broadcasts,
        {},
        TOLD if train else s.plan.metrics,
        lambda reply: admit_told(reply, TOLD) if train else own_metrics(reply, pooled=False),
        deadline=0.0 if split == "test" else s.plan.turnout.deadline,
    )
    s.record.faults += [to_row(fault) for fault in outcome.faults]
    s.newcomers.improved -= {reply.client for reply in outcome.replies}
    return outcome.replies


def lacking(reply: Contribution, known: Params) -> list[str]:
    """Return a note for each shared parameter of which the federation has nothing, or not every row, for a newcomer."""
    notes = []
    for name, value in reply.values.items():
        if name not in known:
            notes.append(f"{reply.client}: no other client has {name}, which it trains by itself")
        elif len(known[name]) < len(value):
            rows = f"{len(value) - len(known[name])} of its {len(value)} rows of {name} are carried by no other client"
            notes.append(
                f"{reply.client}: {rows}; {'ignored' if TABLES[name] == 'probe' else 'it trains them by itself'}"
            )
    return notes
