"""The strategy: one round of coordination, on the shared parameters alone."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedrec.aggregation import Carrier, carrier, catalogue, gather, mean
from fedrec.metrics import higher_is_better
from fedrec.parameters import Params
from fedrec.records import Record, Row, natural, to_row
from fedrec.sharing import Broadcast, ContractError, Contribution, admit, admit_metrics, admit_rows
from fedrec.wire import broadcast_record, ledger, read_contribution

TIMEOUT = 24 * 3600.0


class ClientFailure(RuntimeError):
    """A client raised, did not answer, or broke the contract; the text names it."""


@dataclass(frozen=True)
class Plan:
    """What the server is told of the experiment: numbers and names of metrics, nothing of models or data."""

    rounds: int
    eval_every: int
    patience: int
    uniform: bool  # weight of a client: 1, or its number of examples
    select: tuple[str, ...]  # metrics that may select the round; the first that a client reports counts


@dataclass
class Coordinator:
    """Coordinates clients over a grid: each trains on its part of Z, and Z becomes the mean of what they share."""

    grid: Grid
    plan: Plan
    on_round: Callable[[Row], None] = lambda row: None
    stop: Callable[[], bool] = lambda: False
    record: Record = field(default_factory=Record)
    z: Params = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    carriers: dict[str, Carrier] = field(default_factory=dict)
    improved: set[str] = field(default_factory=set)  # clients that have not yet been told to keep their best state

    def fit(self, nodes: Sequence[int]) -> Record:
        """Run the rounds, select the best by validation, test it, and return the record."""
        started, best, best_z, best_score, stale = time.perf_counter(), 0, self.z, -math.inf, 0
        self.join(nodes)
        for number in range(1, self.plan.rounds + 1):
            row = self.round(number)
            if number % self.plan.eval_every == 0 or number == self.plan.rounds:
                score = self.validate(number, row)
                better = score > best_score or not best or (math.isnan(score) and math.isinf(best_score))
                stale = 0 if better else stale + 1
                if better:
                    best, best_z, best_score = number, self.z, score if not math.isnan(score) else -math.inf
                    self.improved = set(self.carriers)
            self.record.rounds.append(row)
            self.on_round(row)
            if self.stop() or (self.plan.patience and stale >= self.plan.patience):
                self.record.stopped = "interrupted" if self.stop() else "patience"
                break
        if not best:  # interrupted before the first validation
            best, best_z = number, self.z
        self.z = best_z
        self.test(best)
        self.record.shared, self.record.selected_round = self.z, best
        self.record.seconds = time.perf_counter() - started
        return self.record

    def round(self, number: int) -> Row:
        """Send every client its part of Z, and take the mean of the replies."""
        started, position = time.perf_counter(), len(self.record.ledger)
        replies = self.exchange("train", number, self.carriers)
        updates = [(self.carriers[r.client], admit(r.values, self.carriers[r.client].like)) for r in replies]
        self.z = mean(updates, self.z)
        for reply in replies:
            loss = admit_metrics(reply.metrics, ["loss"]).get("loss", math.nan)
            self.record.score(reply.client, number, "train", {("", "all", "loss"): loss}, reply.device)
        moved = {
            way: sum(int(e["bytes"]) for e in self.record.ledger[position:] if e["direction"] == way)
            for way in ("down", "up")
        }
        return {
            "round": number,
            "seconds": time.perf_counter() - started,
            "clients": len(replies),
            "train_loss": average(r.metrics.get("loss", math.nan) for r in replies),
            "bytes_down": moved["down"],
            "bytes_up": moved["up"],
        }

    def validate(self, number: int, row: Row) -> float:
        """Let every client evaluate Z with its private parameters; return the mean of the selecting metric."""
        started, scores = time.perf_counter(), []
        for reply in self.exchange("evaluate", number, self.carriers, "validation"):
            metrics = evaluation_metrics(reply)
            self.record.score(reply.client, number, "validation", metrics, reply.device)
            scores += selection_scores(metrics, self.plan.select)
        row["validation"] = average(scores)
        row["evaluate_seconds"] = time.perf_counter() - started
        return float(row["validation"])

    def test(self, number: int) -> None:
        """Let every client test the selected round's Z with its private parameters of that round."""
        for reply in self.exchange("evaluate", number, self.carriers, "test"):
            self.record.score(reply.client, number, "test", evaluation_metrics(reply), reply.device)

    def join(self, nodes: Sequence[int]) -> None:
        """Ask every node for its initial shared tensors and row ids; Z starts as their mean."""
        content = RecordDict({"shared": broadcast_record(Broadcast(0, {}))["shared"]})
        messages = [Message(content, node, "query.join", group_id="0") for node in nodes]
        joined: list[Contribution] = []
        answers = {node: (read_contribution(answer), answer) for node, answer in self.answers(messages).items()}
        for node, (reply, answer) in sorted(answers.items(), key=lambda item: natural(item[1][0].client)):
            if reply.client in self.nodes:
                raise ContractError(f"client {reply.client}: every client must have a name of its own, found it twice")
            self.nodes[reply.client] = node
            self.log(answer, 0, reply.client, "up")
            joined.append(replace(reply, rows=admit_rows(reply.rows), values=admit(reply.values, reply.values)))
        self.record.rows = catalogue([reply.rows for reply in joined])
        for r in joined:
            examples = admit_metrics(r.metrics, ["examples"]).get("examples", 0.0)
            weight = 1.0 if self.plan.uniform else max(examples, 1.0)
            self.carriers[r.client] = carrier(r.client, r.values, r.rows, self.record.rows, weight)
        self.z = mean([(self.carriers[r.client], r.values) for r in joined])

    def exchange(self, kind: str, number: int, clients: Iterable[str], split: str = "validation") -> list[Contribution]:
        """Send each client its part of Z and return the replies, sorted by client."""
        messages = []
        for name in clients:
            keep = name in self.improved
            self.improved.discard(name)
            content = broadcast_record(Broadcast(number, gather(self.z, self.carriers[name]), keep, split))
            self.log(content, number, name, "down")
            messages.append(Message(content, self.nodes[name], kind, group_id=str(number)))
        answers = self.answers(messages)
        replies = {name: read_contribution(answers[self.nodes[name]]) for name in clients}
        for name, reply in replies.items():
            if reply.client != name:
                raise ContractError(f"client {name}: must answer under its own name, found {reply.client!r}")
            self.log(answers[self.nodes[name]], number, name, "up")
        return list(replies.values())

    def answers(self, messages: Sequence[Message]) -> dict[int, RecordDict]:
        """Send messages and return the content of every node's reply; raises ClientFailure if one is missing."""
        names = {node: name for name, node in self.nodes.items()}
        wanted = [message.metadata.dst_node_id for message in messages]
        found: dict[int, RecordDict] = {}
        for reply in self.grid.send_and_receive(messages, timeout=TIMEOUT):
            node = reply.metadata.src_node_id
            if reply.has_error():
                raise ClientFailure(f"client {names.get(node, node)} failed: {reply.error.reason}")
            found[node] = reply.content
        for node in wanted:
            if node not in found:
                raise ClientFailure(f"client {names.get(node, node)} did not answer")
        return found

    def log(self, content: RecordDict, number: int, client: str, direction: str) -> None:
        """Add a message to the byte ledger."""
        self.record.ledger += [to_row(entry) for entry in ledger(content, number, client, direction)]


def evaluation_metrics(reply: Contribution) -> dict[tuple[str, str, str], float]:
    """Return the metrics of an evaluation by (client or pooled member, task, metric)."""
    found: dict[tuple[str, str, str], float] = {}
    for name, value in reply.metrics.items():
        parts = name.rsplit("/", 2)
        if len(parts) != 3:
            raise ContractError(f"metric {name}: must be client/task/metric, found {len(parts)} parts")
        found[parts[0], parts[1], parts[2]] = value
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
