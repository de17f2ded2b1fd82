"""Newcomers join a running federation: they are sent the best that it has, and nothing that they learn is taken."""

import numpy as np
import torch

from fedrec.aggregation import carrier, gather
from fedrec.parameters import Params
from fedrec.records import to_row
from fedrec.sharing import PARAMETERS, TABLES, Broadcast, Contribution
from server.scores import Key, admit_told, own_metrics, selection_scores
from server.state import State

TOLD = frozenset({"loss"})  # what a newcomer tells of its training: no tensor, no number that enters Z


def welcome(s: State, replies: list[Contribution]) -> None:
    """Learn which rows of the federation's tables each has a use for, once there is a Z."""
    for reply in replies:
        known = {k: ids[np.isin(ids, s.record.rows[k])] for k, ids in reply.rows.items() if k in s.record.rows}
        values: Params = {}
        for name, value in reply.values.items():
            if name in s.z and name in TABLES:
                values[name] = value[torch.from_numpy(np.isin(reply.rows[TABLES[name]], known[TABLES[name]]))]
            elif name in s.z:
                values[name] = value
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
    found = evaluated(s, number, "validation", [name for name in here if s.newcomers.seen[name]])
    for name, value in selection_scores(found, s.plan.select).items():
        if value > s.newcomers.scores.get(name, -np.inf):
            s.newcomers.scores[name] = value
            s.newcomers.improved.add(name)


def assess(s: State) -> None:
    """Test what each newcomer has kept, on the selected Z; one whose round never came is named in the notes."""
    evaluated(s, s.best.round, "test", [name for name in s.newcomers.carriers if s.newcomers.seen[name]])
    for name in s.newcomers.carriers:
        if not s.newcomers.seen[name]:
            s.record.notes.append(f"{name} was to join in round {s.newcomers.rounds[name]}, and has not trained")


def evaluated(s: State, number: int, split: str, names: list[str]) -> dict[Key, float]:
    """Return what newcomers measured of Z with their private parts."""
    found: dict[Key, float] = {}
    for reply in send(s, "evaluate", number, names, split):
        metrics = own_metrics(reply, pooled=False)
        s.record.score(number, split, metrics, reply.device)
        found |= metrics
    return found


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
    found = []
    for name, value in reply.values.items():
        if name not in known:
            found.append(f"{reply.client}: no other client has {name}, which it trains by itself")
        elif len(known[name]) < len(value):
            rows = f"{len(value) - len(known[name])} of its {len(value)} rows of {name} are carried by no other client"
            found.append(f"{reply.client}: {rows}; {'it trains them by itself' if name in PARAMETERS else 'ignored'}")
    return found
