"""The strategy: one round of coordination, on the shared parameters alone."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from flwr.serverapp import Grid

from fedrec.aggregation import Carrier, alone, carrier, catalogue
from fedrec.coordination import Control, Coupling, Descent, Drift, normalised, tie_of
from fedrec.metrics import higher_is_better
from fedrec.parameters import Params
from fedrec.records import Record, Row
from fedrec.sharing import Broadcast, ContractError, Contribution
from server.exchange import Exchange

OVER_BUDGET = 1e6  # a round that breaks a budget comes after every round that breaks less


@dataclass(frozen=True)
class Plan:
    """What the server is told of the experiment: numbers and names of metrics, nothing of models or data."""

    rounds: int
    eval_every: int
    patience: int
    uniform: bool  # weight of a client: 1, or its number of examples
    select: tuple[str, ...]  # metrics that may select the round; the first that a client reports counts
    metrics: frozenset[str]  # what an evaluation may hold, as task/metric
    pooled: bool  # one client that speaks for its members
    coupling: Coupling
    descent: Descent
    seed: int
    budgets: bool = False  # whether clients have loss budgets
    drift: Drift = field(default_factory=Drift)
    lr: float = 0.0  # of the clients' steps, for SCAFFOLD

    def told(self) -> frozenset[str]:
        """Return what a client tells of its training, beside the shared tensors.

        loss; gap = |x_i - z_i|^2 with duals; excess and price of a budget; steps where they are counted.
        """
        names = {
            "loss": True,
            "gap": self.coupling.duals,
            "excess": self.budgets,
            "mu": self.budgets,
            "steps": self.drift.counted,
        }
        return frozenset(name for name, sent in names.items() if sent)


@dataclass(frozen=True)
class Best:
    """The best round so far: its validation, the server's parameters and what every client was sent."""

    round: int = 0
    score: float = math.nan
    z: Params = field(default_factory=dict)
    parts: dict[str, Params] = field(default_factory=dict)
    over: dict[str, float] = field(default_factory=dict)
    prices: dict[str, float] = field(default_factory=dict)

    def budgets(self) -> list[Row]:
        """Return, for each client with a budget, its price mu, f - b, their product, and whether the budget is met."""
        return [
            {"client": name, "mu": mu, "excess": excess, "complementarity": mu * excess, "feasible": excess <= 0}
            for name, excess in self.over.items()
            for mu in (self.prices.get(name, 0.0),)
        ]


@dataclass
class Coordinator:
    """Coordinates clients over a grid: each trains on its part of Z, and the tie makes a new Z of what they send."""

    grid: Grid
    plan: Plan
    on_round: Callable[[Row], None] = lambda row: None
    stop: Callable[[], bool] = lambda: False
    record: Record = field(default_factory=Record)
    carriers: dict[str, Carrier] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)  # round of each client's last contribution
    improved: set[str] = field(default_factory=set)  # clients that have not yet been told to keep their best state

    def __post_init__(self) -> None:
        self.exchange = Exchange(self.grid, self.record)
        self.parts: dict[str, Params] = {}  # what each client is sent: its z_i
        self.prices: dict[str, float] = {}  # mu_i of the clients with a budget, from their last training
        self.over: dict[str, float] = {}  # f_i - b_i, from the last validation
        self.control: Control | None = None

    def fit(self, nodes: Sequence[int]) -> Record:
        """Run the rounds, select the best by validation, test it, and return the record."""
        started, best, stale = time.perf_counter(), Best(), 0
        self.join(nodes)
        for number in range(1, self.plan.rounds + 1):
            row = self.round(number)
            if number % self.plan.eval_every == 0 or number == self.plan.rounds:
                score = self.validate(number, row)
                stale += 1
                if math.isnan(best.score) or score > best.score:
                    best, stale = Best(number, score, self.z, self.parts, dict(self.over), dict(self.prices)), 0
                    self.improved = set(self.carriers)
            self.record.close(row)
            self.on_round(row)
            if self.stop() or (self.plan.patience and stale >= self.plan.patience):
                self.record.stopped = "interrupted" if self.stop() else "patience"
                break
        if not best.round:  # interrupted before the first validation
            best = Best(number, math.nan, self.z, self.parts)
        self.record.shared, self.record.selected_round, self.parts = best.z, best.round, best.parts
        self.record.budgets = best.budgets()
        self.test(best.round)
        self.record.seconds = time.perf_counter() - started
        return self.record

    def round(self, number: int) -> Row:
        """Send every client its part of Z, and tie what they send back."""
        started, like = time.perf_counter(), {name: who.like for name, who in self.carriers.items()}
        replies = self.send("train", number, like, self.plan.told())
        gaps = {reply.client: nonnegative(reply, "gap") for reply in replies} if self.plan.coupling.duals else {}
        residuals = self.tie.update(self.corrected(replies), gaps)
        self.parts = {name: self.tie.part(name) for name in self.carriers}
        self.seen |= {reply.client: number for reply in replies}
        losses = {reply.client: reply.metrics.get("loss", math.nan) for reply in replies}
        for reply in replies:
            self.record.score(number, "train", {(reply.client, "all", "loss"): losses[reply.client]}, reply.device)
            if self.plan.budgets:
                self.prices[reply.client] = nonnegative(reply, "mu")
                self.record.score(number, "train", {(reply.client, "all", "mu"): reply.metrics["mu"]}, reply.device)
        return {
            "round": number,
            "seconds": time.perf_counter() - started,
            "clients": len(replies),
            "train_loss": average(losses.values()),
            "objective": weighted(losses, self.carriers),
            "primal_residual": residuals.primal,
            "dual_residual": residuals.dual,
            "rho": residuals.rho,
        }

    def corrected(self, replies: Sequence[Contribution]) -> dict[str, Params]:
        """Return what the clients of a round sent, normalised under FedNova, after SCAFFOLD's c has followed them."""
        answers = {reply.client: reply.values for reply in replies}
        steps = {reply.client: steps_of(reply) for reply in replies} if self.plan.drift.counted else {}
        if self.control:
            self.control.update(answers, self.parts, steps)
        if not self.plan.drift.normalise:
            return answers
        weights = {name: self.carriers[name].weight for name in answers}
        return normalised(answers, self.parts, steps, weights)

    def validate(self, number: int, row: Row) -> float:
        """Let every client evaluate Z with its private parameters; return the mean of the selecting metric."""
        started, scores = time.perf_counter(), []
        found: dict[tuple[str, str, str], float] = {}
        for reply in self.send("evaluate", number, {}, self.plan.metrics):
            metrics = own_metrics(reply, self.plan.pooled)
            self.record.score(number, "validation", metrics, reply.device)
            scores += selection_scores(metrics, self.plan.select)
            found |= metrics
        row["validation"] = average(scores)
        row["evaluate_seconds"] = time.perf_counter() - started
        if not self.plan.budgets:
            return float(row["validation"])
        self.over = {who: value for (who, _, metric), value in found.items() if metric == "excess" and value == value}
        row["violation"] = max([0.0, *self.over.values()])
        return float(row["validation"]) - OVER_BUDGET * float(row["violation"])

    def test(self, number: int) -> None:
        """Let every client test the selected round's Z with its private parameters of that round."""
        for reply in self.send("evaluate", number, {}, self.plan.metrics, "test"):
            self.record.score(number, "test", own_metrics(reply, self.plan.pooled), reply.device)

    def join(self, nodes: Sequence[int]) -> None:
        """Learn what every client carries; Z starts as the mean of what they bring."""
        joined = self.exchange.join(nodes)
        self.record.rows = catalogue([reply.rows for reply in joined])
        size = {r.client: 1.0 if self.plan.uniform else max(r.metrics["examples"], 1.0) for r in joined}
        # Weights of mean 1: a penalty means the same whatever the size of the data.
        unit = math.fsum(size.values()) / len(size)
        for r in joined:
            weight = size[r.client] / unit
            self.carriers[r.client] = carrier(r.client, r.values, r.rows, self.record.rows, weight)
        self.tie = tie_of(
            self.plan.coupling, self.plan.descent, self.carriers, {r.client: r.values for r in joined}, self.plan.seed
        )
        self.parts = {name: self.tie.part(name) for name in self.carriers}
        if self.plan.drift.correction == "scaffold":
            self.control = Control(self.carriers, self.plan.lr)
        self.seen = dict.fromkeys(self.carriers, 0)
        tables = alone(list(self.carriers.values()), self.record.rows) if len(joined) > 1 else []
        if tables:
            self.record.notes.append(
                f"no row of {', '.join(tables)} is carried by two clients: sharing changes nothing"
            )

    def send(
        self, kind: str, number: int, like: dict[str, Params], metrics: frozenset[str], split: str = "validation"
    ) -> list[Contribution]:
        """Send each client its part of Z, and whether to keep the state it evaluated last; return the replies."""
        controls = {name: self.control.part(name) for name in self.parts} if self.control and kind == "train" else {}
        broadcasts = {
            name: Broadcast(
                number, part, name in self.improved, split, self.tie.rho, self.seen[name], controls.get(name)
            )
            for name, part in self.parts.items()
        }
        self.improved -= set(broadcasts)
        return self.exchange.send(kind, broadcasts, like, metrics)

    @property
    def z(self) -> Params:
        """The server's parameters."""
        return self.tie.whole()


def nonnegative(reply: Contribution, name: str) -> float:
    """Return a metric that enters the numerics; raises ContractError if it is missing, negative or not finite."""
    value = reply.metrics.get(name, math.nan)
    if not 0 <= value < math.inf:
        raise ContractError(f"client {reply.client}: {name} must be finite and not negative, found {value}")
    return value


def steps_of(reply: Contribution) -> float:
    """Return the number of local steps that a client tells; raises ContractError if it is none."""
    steps = reply.metrics.get("steps", math.nan)
    if not (0 <= steps < 2**53 and steps == int(steps)):
        raise ContractError(f"client {reply.client}: steps must be a whole number from 0, found {steps}")
    return steps


def weighted(losses: dict[str, float], carriers: dict[str, Carrier]) -> float:
    """Return the objective sum_i p_i f_i with weights that sum to 1, over the clients that have a loss."""
    present = [(carriers[name].weight, loss) for name, loss in losses.items() if not math.isnan(loss)]
    mass = math.fsum(weight for weight, _ in present)
    return math.fsum(weight * loss for weight, loss in present) / mass if mass else math.nan


def own_metrics(reply: Contribution, pooled: bool) -> dict[tuple[str, str, str], float]:
    """Return an evaluation by (client, task, metric); only a pooled client may speak for others, its members."""
    found: dict[tuple[str, str, str], float] = {}
    for name, value in reply.metrics.items():
        who, task, metric = ("", *name.rsplit("/", 2))[-3:]
        if who != reply.client and not pooled:
            raise ContractError(f"client {reply.client}: must send its own metrics, found {name}")
        found[who, task, metric] = value
    return found


def selection_scores(metrics: dict[tuple[str, str, str], float], select: Sequence[str]) -> list[float]:
    """Return one score for each client or pooled member, larger is better: its first metric of `select`."""
    scores = []
    for who in dict.fromkeys(who for who, _, _ in metrics):
        own = [(metric, value) for (client, _, metric), value in metrics.items() if client == who]
        for name in select:
            values = [value for metric, value in own if metric == name]
            if values:
                scores.append(average(values) if higher_is_better(name) else -average(values))
                break
    return scores


def average(values: Iterable[float]) -> float:
    """Return the mean of the values that are numbers; NaN if there is none."""
    present = [value for value in values if not math.isnan(value)]
    return math.fsum(present) / len(present) if present else math.nan
