"""What the server is told of an experiment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from fedrec.federation.asynchrony import Asynchrony
from fedrec.federation.codecs import Coding
from fedrec.federation.coordination import Coupling, Descent, Drift, Penalty, Solver
from fedrec.federation.participation import Turnout
from fedrec.federation.robust import Robust
from fedrec.params import Params
from fedrec.privacy.secure_sum import Terms
from fedrec.sharing import Contribution, admit_told
from fedrec.subspace import Search
from server.release import Release
from server.scores import own_metrics


@dataclass(frozen=True)
class Begun:
    """What a run of sums goes on from: a total, whose sums it has, who is asked for a change, and who of them leaves.

    `clients` are those whose sums the total has; what it has of them must not be wrong afterwards, so all of them that
    are asked must answer. Newcomers may be missing.
    """

    total: Params
    clients: frozenset[str]
    asked: frozenset[str]
    leaving: frozenset[str]


@dataclass(frozen=True)
class Plan:
    """What the server is told of the experiment: numbers and names of metrics, nothing of models or data."""

    rounds: int
    eval_every: int
    patience: int
    uniform: bool  # weight of a client: 1, or its number of examples
    select: tuple[str, ...]  # metrics that may select the round; of a task counts the first that it has
    metrics: frozenset[str]  # what an evaluation may hold, as task/metric
    pooled: bool  # one client that speaks for its members
    coupling: Coupling
    descent: Descent
    seed: int
    budgets: bool = False  # whether clients have loss budgets
    drift: Drift = field(default_factory=Drift)
    lr: float = 0.0  # of the clients' steps, for SCAFFOLD
    turnout: Turnout = field(default_factory=Turnout)
    asynchrony: Asynchrony = field(default_factory=Asynchrony)
    robust: Robust = field(default_factory=Robust)
    codec: Coding = field(default_factory=Coding)
    by_sums: bool = False  # whether clients send sums over their users, of which the total counts
    search: Search | None = None  # of the subspace in which the sums are, if they are not of all pairs
    factors: Solver | None = None  # how the server solves for items, if the sums are of users' factors
    penalty: Penalty | None = None  # with which the server solves for weights, where it sends no total
    begun: Begun | None = None  # what they are added to; nothing without it
    silent: bool = False  # whether clients tell nothing that was made of their data without noise
    secure: Terms | None = None  # how the answers of a round are summed, if the server sees none of them
    release: Release | None = None  # how the mean of a round is protected, if it is the server that does it
    newcomers: Mapping[str, int] = field(default_factory=dict)  # the round in which a client joins, if it does later

    @property
    def unselected(self) -> bool:
        """Whether the last round counts: nobody tells how good one is, or a later sum is of more users."""
        return self.silent or (self.by_sums and not self.budgets and not self.factors)

    @cached_property
    def told(self) -> frozenset[str]:
        """Return what a client tells of its training, beside the shared tensors.

        loss; gap = |x_i - z_i|^2 with duals; excess and price of a budget; steps where they are counted.
        """
        names = {
            "loss": not self.silent and not self.by_sums,
            "gap": self.coupling.duals and not self.secure,
            "excess": self.budgets and not self.by_sums,
            "mu": self.budgets and not self.by_sums,
            "steps": self.drift.counted,
        }
        return frozenset(name for name, sent in names.items() if sent)

    def due(self, number: int) -> bool:
        """Return whether a round is validated."""
        return number % self.eval_every == 0 or number == self.rounds

    def check(self, reply: Contribution, train: bool) -> None:
        """Raise ContractError unless the metrics of an answer are the client's own, and numbers to calculate with."""
        admit_told(reply, self.told) if train else own_metrics(reply, self.pooled)
