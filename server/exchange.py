"""Messages to the clients and their answers: admitted against the contract, counted in the ledger, in one order."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedrec.aggregation import carrier
from fedrec.parameters import Params
from fedrec.records import Record, natural
from fedrec.sharing import Broadcast, ContractError, Contribution, admit, admit_metrics, admit_rows
from fedrec.wire import Entry, broadcast_record, ledger
from server.faults import Fault, Outcome, Refused, judged, unlike

TIMEOUT = 24 * 3600.0


@dataclass
class Exchange:
    """Sends messages over a grid. Every answer is checked before anybody sees it; one that fails becomes a Fault."""

    grid: Grid
    record: Record
    nodes: dict[str, int] = field(default_factory=dict)  # by client, in the order of all sums

    def join(self, nodes: Sequence[int]) -> Outcome:
        """Ask every node for its initial shared tensors, row ids and number of examples.

        A client takes no part in the run if its answer does not count, if another has its name, or if a parameter has
        another form than most clients'.
        """
        content = RecordDict({"shared": broadcast_record(Broadcast(0, {}))["shared"]})
        answers = self.answers([Message(content, node, "query.join", group_id="0") for node in nodes])
        found, joined = Outcome(), []
        for node in nodes:
            try:
                joined.append((node, judged(answers.get(node), 0.0, admitted_start)))
            except Refused as refused:
                found.faults.append(Fault(0, refused.client or f"node {node}", "join", refused.kind, refused.text))
        # The name itself comes last in the key: "7" and "07" are equal to `natural`, and sums must have one order.
        joined.sort(key=lambda one: (natural(one[1].client), one[1].client))
        names = Counter(reply.client for _, reply in joined)
        wrong = {name: f"must have a name of its own, found it {n} times" for name, n in names.items() if n > 1}
        wrong |= unlike([reply for _, reply in joined if reply.client not in wrong])
        for node, reply in joined:
            if reply.client in wrong:
                found.faults.append(Fault(0, reply.client, "join", "contract", wrong[reply.client]))
                continue
            self.nodes[reply.client] = node
            self.log(answers[node].content, 0, reply.client, "up")
            found.replies.append(reply)
        return found

    def send(
        self,
        kind: str,
        broadcasts: Mapping[str, Broadcast],
        like: Mapping[str, Params],
        metrics: frozenset[str],
        check: Callable[[Contribution], object] = lambda reply: None,
        lost: frozenset[str] = frozenset(),
        deadline: float = 0.0,
    ) -> Outcome:
        """Send each client its broadcast; return what became of it, in the clients' order.

        A reply counts if it holds exactly the tensors of `like` and metrics of the allow-list, `check` raises no
        ContractError, it comes within `deadline` seconds (0: within a day), and it is not among the `lost`.
        """
        messages = []
        for name, broadcast in broadcasts.items():
            content = broadcast_record(broadcast)
            self.log(content, broadcast.round, name, "down")
            messages.append(Message(content, self.nodes[name], kind, group_id=str(broadcast.round)))
        answers, found = self.answers(messages, deadline), Outcome()
        for name, broadcast in broadcasts.items():
            answer, during = answers.get(self.nodes[name]), broadcast.split if kind == "evaluate" else kind

            def judge(reply: Contribution, name: str = name) -> Contribution:
                reply = admitted(reply, name, like.get(name, {}), metrics)
                check(reply)
                return reply

            if name in lost:
                found.faults.append(Fault(broadcast.round, name, during, "dropout", "dropped out, as the run says"))
                continue
            try:
                found.replies.append(judged(answer, deadline, judge))
            except Refused as refused:
                found.faults.append(Fault(broadcast.round, name, during, refused.kind, refused.text))
                if answer is not None and not answer.has_error():
                    self.record.log([name], [refused_entry(answer.content, broadcast.round, name)])
                continue
            assert answer is not None
            self.log(answer.content, broadcast.round, name, "up")
        return found

    def answers(self, messages: Sequence[Message], deadline: float = 0.0) -> dict[int, Message]:
        """Send messages and return every node's reply that came within `deadline` seconds (0: within a day)."""
        replies = self.grid.send_and_receive(messages, timeout=deadline or TIMEOUT)
        return {reply.metadata.src_node_id: reply for reply in replies}

    def log(self, content: RecordDict, number: int, client: str, direction: str) -> None:
        """Add a message to the byte ledger."""
        self.record.log([client], ledger(content, number, client, direction))


def unowned(metric: str) -> str:
    """Return the task/metric of client/task/metric, and any other name as it is."""
    parts = metric.rsplit("/", 2)
    return "/".join(parts[1:]) if len(parts) == 3 else metric


def admitted(reply: Contribution, name: str, like: Params, metrics: frozenset[str]) -> Contribution:
    """Return a reply with its tensors in the order of `like`; raises ContractError for what it may not hold."""
    if reply.client != name:
        raise ContractError(f"must answer under its own name, found {reply.client!r}")
    admit_metrics({unowned(metric): value for metric, value in reply.metrics.items()}, metrics)
    return replace(reply, values=admit(reply.values, like))


def admitted_start(reply: Contribution) -> Contribution:
    """Return what a client joined with, if its tensors are finite, its row ids fit them and its examples a number."""
    admit(reply.values, reply.values)
    examples = admit_metrics(reply.metrics, ["examples"]).get("examples", -1.0)
    if not 0 <= examples < 2**53:
        raise ContractError(f"examples: must be a number from 0, found {examples}")
    rows = admit_rows(reply.rows)
    carrier(reply.client, reply.values, rows, rows, 1.0)
    return replace(reply, rows=rows)


def refused_entry(content: RecordDict, number: int, client: str) -> Entry:
    """Return the one line of the byte ledger for an answer that was refused, whatever it holds."""
    arrays = [array for record in content.array_records.values() for array in record.values()]
    return Entry(number, client, "up", "refused", 0, sum(len(array.data) for array in arrays))
