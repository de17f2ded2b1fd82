"""All that the server knows of a run, as one value: what its clients carry, Z, and what changes from round to round."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedrec.experiment.records import Record, to_row
from fedrec.federation.coordination import Control, Tie
from fedrec.keyed import Carrier
from fedrec.params import Params
from fedrec.sharing import Contribution
from server.buffer import Buffer
from server.exchange import Exchange
from server.faults import Outcome
from server.plan import Plan
from server.scores import Best, Scores


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

    def state(self) -> dict[str, Any]:
        """Return what changes from round to round, as JSON can hold it."""
        kept = {"seen": self.seen, "scores": self.scores, "stands": self.stands}
        return {**kept, "improved": sorted(self.improved)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a `state`."""
        self.seen, self.scores, self.stands = state["seen"], state["scores"], state["stands"]
        self.improved = set(state["improved"])


@dataclass
class State:
    """What the server knows of a run between two messages; `tie` holds Z from the joining on."""

    grid: Grid
    plan: Plan
    record: Record = field(default_factory=Record, kw_only=True)
    carriers: dict[str, Carrier] = field(default_factory=dict, kw_only=True)
    seen: dict[str, int] = field(default_factory=dict, kw_only=True)  # round of each client's last contribution
    tie: Tie = field(init=False)
    # clients that have not yet been told to keep their best state
    improved: set[str] = field(default_factory=set, kw_only=True)
    parts: dict[str, Params] = field(default_factory=dict, init=False)  # what each client is sent: its z_i
    # mu_i of the clients with a budget, from their last training
    prices: dict[str, float] = field(default_factory=dict, init=False)
    scores: Scores = field(default_factory=Scores, init=False)
    best: Best = field(default_factory=Best, init=False)
    stale: int = field(default=0, init=False)  # validations since the best
    saved: dict[str, int] = field(default_factory=dict, init=False)  # rows of the record in the checkpoints
    control: Control | None = field(default=None, init=False)
    buffer: Buffer | None = field(default=None, init=False)  # where there is a clock

    def __post_init__(self) -> None:
        hosts, plan = bool(getattr(self.grid, "hosts", False)), self.plan
        self.exchange = Exchange(self.grid, self.record, hosts, plan.codec, plan.coupling.duals, plan.seed)
        self.newcomers = Newcomers(self.plan.newcomers)
        self.record.traffic.named = plan.by_sums and not plan.factors  # whose sums the total has, see `server.totals`

    @property
    def z(self) -> Params:
        """The server's parameters."""
        return self.tie.whole()

    def accept(self, outcome: Outcome, asked: int, what: str) -> list[Contribution]:
        """Record the faults and return the replies; raises ClientFailure if they are fewer than the quorum."""
        self.record.faults += [to_row(fault) for fault in outcome.faults]
        outcome.require(max(self.plan.turnout.needed(asked), what == "joining"), what)
        return outcome.replies
