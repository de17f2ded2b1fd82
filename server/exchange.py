"""Messages to the clients and their answers: admitted against the contract, counted in the ledger, in one order."""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedrec.parameters import Params
from fedrec.records import Record, natural
from fedrec.sharing import Broadcast, ContractError, Contribution, admit, admit_metrics, admit_rows
from fedrec.wire import broadcast_record, ledger, read_contribution

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT = 24 * 3600.0


class ClientFailure(RuntimeError):
    """A client raised, did not answer, or is not there; the text names it."""


@dataclass
class Exchange:
    """Sends messages over a grid. Every answer is checked before anybody sees it."""

    grid: Grid
    record: Record
    nodes: dict[str, int] = field(default_factory=dict)  # by client, in the order of all sums

    def join(self, nodes: Sequence[int]) -> list[Contribution]:
        """Ask every node for its initial shared tensors, row ids and number of examples; return them by client."""
        content = RecordDict({"shared": broadcast_record(Broadcast(0, {}))["shared"]})
        answers = self.answers([Message(content, node, "query.join", group_id="0") for node in nodes])
        joined = []
        for node, answer in answers.items():
            with naming(f"node {node}"):
                joined.append((node, answer, read_contribution(answer)))
        # The name itself comes last in the key: "7" and "07" are equal to `natural`, and sums must have one order.
        for node, answer, reply in sorted(joined, key=lambda one: (natural(one[2].client), one[2].client)):
            if reply.client in self.nodes:
                raise ContractError(f"client {reply.client}: every client must have a name of its own, found it twice")
            self.nodes[reply.client] = node
            self.log(answer, 0, reply.client, "up")
        replies = {reply.client: reply for _, _, reply in joined}
        return [admitted_start(replies[name]) for name in self.nodes]

    def send(
        self, kind: str, broadcasts: Mapping[str, Broadcast], like: Mapping[str, Params], metrics: frozenset[str]
    ) -> list[Contribution]:
        """Send each client its broadcast; return the replies in the clients' order.

        A reply must hold exactly the tensors of `like` and metrics of the allow-list. Raises ContractError or
        ClientFailure that names the client.
        """
        messages = []
        for name, broadcast in broadcasts.items():
            content = broadcast_record(broadcast)
            self.log(content, broadcast.round, name, "down")
            messages.append(Message(content, self.nodes[name], kind, group_id=str(broadcast.round)))
        answers = self.answers(messages)
        replies = []
        for name, broadcast in broadcasts.items():
            answer = answers[self.nodes[name]]
            with naming(f"client {name}"):
                reply = read_contribution(answer)
                if reply.client != name:
                    raise ContractError(f"must answer under its own name, found {reply.client!r}")
                admit_metrics({unowned(metric): value for metric, value in reply.metrics.items()}, metrics)
                reply = replace(reply, values=admit(reply.values, like.get(name, {})))
            self.log(answer, broadcast.round, name, "up")
            replies.append(reply)
        return replies

    def answers(self, messages: Sequence[Message]) -> dict[int, RecordDict]:
        """Send messages and return the content of every node's reply; raises ClientFailure if one is missing."""
        names = {node: name for name, node in self.nodes.items()}
        found: dict[int, RecordDict] = {}
        for reply in self.grid.send_and_receive(messages, timeout=TIMEOUT):
            node = reply.metadata.src_node_id
            if reply.has_error():
                raise ClientFailure(f"client {names.get(node, node)} failed: {reply.error.reason}")
            found[node] = reply.content
        for message in messages:
            node = message.metadata.dst_node_id
            if node not in found:
                raise ClientFailure(f"client {names.get(node, node)} did not answer")
        return found

    def log(self, content: RecordDict, number: int, client: str, direction: str) -> None:
        """Add a message to the byte ledger."""
        self.record.log([client], ledger(content, number, client, direction))


def unowned(metric: str) -> str:
    """Return the task/metric of client/task/metric, and any other name as it is."""
    parts = metric.rsplit("/", 2)
    return "/".join(parts[1:]) if len(parts) == 3 else metric


@contextmanager
def naming(who: str) -> "Iterator[None]":
    """Put who sent it before the text of a ContractError."""
    try:
        yield
    except ContractError as error:
        raise ContractError(f"{who}: {error}") from None


def admitted_start(reply: Contribution) -> Contribution:
    """Return what a client joined with, if its tensors are finite, its row ids in order and its examples a number."""
    with naming(f"client {reply.client}"):
        admit(reply.values, reply.values)
        examples = admit_metrics(reply.metrics, ["examples"]).get("examples", -1.0)
        if not 0 <= examples < 2**53:
            raise ContractError(f"examples: must be a number from 0, found {examples}")
        return replace(reply, rows=admit_rows(reply.rows))
