"""Newcomers join a running federation: they are sent the best that it has, and nothing that they learn is taken."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec.aggregation import Carrier, carrier, gather
from fedrec.parameters import Params
from fedrec.records import to_row
from fedrec.sharing import PARAMETERS, TABLES, Broadcast, Contribution
from server.scores import Key, admit_told, own_metrics, selection_scores

if TYPE_CHECKING:
    from server.strategy import Coordinator

TOLD = frozenset({"loss"})  # what a newcomer tells of its training: no tensor, no number that enters Z


@dataclass
class Newcomers:
    """The clients that join in a round of their own, and what the server remembers of them.

    In every round from its own a newcomer is sent the shared parameters of the best round so far, those that the
    federation would keep if it ended now. Of its private part it keeps the state that its own validation likes best
    on them. No newcomer has a part in Z, in the score of a round, in its quorum or in the end of the run.
    """

    rounds: Mapping[str, int]
    carriers: dict[str, Carrier] = field(default_factory=dict)
    rows: dict[str, dict[str, NDArray[np.int64]]] = field(default_factory=dict)  # ids of the rows that each is sent
    seen: dict[str, int] = field(default_factory=dict)  # round of each one's last training, 0 before
    scores: dict[str, float] = field(default_factory=dict)  # of the state that each keeps
    improved: set[str] = field(default_factory=set)  # those that have not yet been told to keep their state
    stands: int = 0  # the best round, on which the scores are

    def join(self, c: "Coordinator", replies: list[Contribution]) -> None:
        """Learn which rows of the federation's tables each has a use for, once there is a Z."""
        for reply in replies:
            known = {s: ids[np.isin(ids, c.record.rows[s])] for s, ids in reply.rows.items() if s in c.record.rows}
            values: Params = {}
            for name, value in reply.values.items():
                if name in c.z and name in TABLES:
                    values[name] = value[torch.from_numpy(np.isin(reply.rows[TABLES[name]], known[TABLES[name]]))]
                elif name in c.z:
                    values[name] = value
            self.carriers[reply.client] = carrier(reply.client, values, known, c.record.rows, 0.0)
            self.rows[reply.client], self.seen[reply.client] = known, 0
            c.record.notes += lacking(reply, values)

    def follow(self, c: "Coordinator", number: int) -> None:
        """Let the newcomers of a round train on the best Z so far, and judge what it made of them."""
        here = [name for name in self.carriers if self.rounds[name] <= number]
        for reply in self.send(c, "train", number, here):
            self.seen[reply.client] = number
            c.record.score(number, "train", {(reply.client, "all", "loss"): reply.metrics["loss"]}, reply.device)
        if not c.plan.due(number):
            return
        if not c.best.round or c.best.round != self.stands:
            self.stands, self.scores = c.best.round, {}  # what was trained on another Z is not kept
        found = self.evaluated(c, number, "validation", [name for name in here if self.seen[name]])
        for name, value in selection_scores(found, c.plan.select).items():
            if value > self.scores.get(name, -np.inf):
                self.scores[name] = value
                self.improved.add(name)

    def test(self, c: "Coordinator") -> None:
        """Test what each newcomer has kept, on the selected Z; one whose round never came is named in the notes."""
        self.evaluated(c, c.best.round, "test", [name for name in self.carriers if self.seen[name]])
        for name in self.carriers:
            if not self.seen[name]:
                c.record.notes.append(f"{name} was to join in round {self.rounds[name]}, and has not trained")

    def evaluated(self, c: "Coordinator", number: int, split: str, names: list[str]) -> dict[Key, float]:
        """Return what newcomers measured of Z with their private parts."""
        found: dict[Key, float] = {}
        for reply in self.send(c, "evaluate", number, names, split):
            metrics = own_metrics(reply, pooled=False)
            c.record.score(number, split, metrics, reply.device)
            found |= metrics
        return found

    def send(
        self, c: "Coordinator", kind: str, number: int, names: list[str], split: str = "validation"
    ) -> list[Contribution]:
        """Send newcomers their parts of the best Z so far; return the answers that count, which hold no tensor."""
        if not names:
            return []
        z, train = c.best.z if c.best.round else c.z, kind == "train"
        broadcasts = {
            name: Broadcast(
                number,
                gather(z, self.carriers[name]),
                name in self.improved,
                split,
                c.tie.rho,
                self.seen[name],
                rows=self.rows[name],
            )
            for name in names
        }
        outcome = c.exchange.send(
            kind,
            broadcasts,
            {},
            TOLD if train else c.plan.metrics,
            lambda reply: admit_told(reply, TOLD) if train else own_metrics(reply, pooled=False),
            deadline=0.0 if split == "test" else c.plan.turnout.deadline,
        )
        c.record.faults += [to_row(fault) for fault in outcome.faults]
        self.improved -= {reply.client for reply in outcome.replies}
        return outcome.replies

    def state(self) -> dict[str, Any]:
        """Return what changes from round to round, as JSON can hold it."""
        kept = {"seen": self.seen, "scores": self.scores, "stands": self.stands}
        return {**kept, "improved": sorted(self.improved)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a `state`."""
        self.seen, self.scores, self.stands = state["seen"], state["scores"], state["stands"]
        self.improved = set(state["improved"])


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
