"""Messages of and to a node of one client, as records and back, and its state."""

from flwr.app import Message, RecordDict

from clients.node import Node
from clients.state import State
from fedrec.sharing import Broadcast, Contribution
from fedrec.wire import Answers, Call, answers_record, call_record, read_answers, read_call
from fedrec.wire.bundle import unbundled


def broadcast_record(sent: Broadcast, client: str) -> RecordDict:
    """Return a message to one client."""
    return call_record(Call({client: sent}))


def read_broadcast(content: RecordDict) -> Broadcast:
    """Return what one client was sent."""
    (sent,) = read_call(content).broadcasts.values()
    return sent


def contribution_record(reply: Contribution) -> RecordDict:
    """Return the answer of one client."""
    return answers_record(Answers([reply]))


def read_contribution(content: RecordDict) -> Contribution:
    """Return what one client answered."""
    (reply,) = read_answers(content).contributions
    return reply


def state_of(node: Node) -> State:
    """Return the state of a node's one client."""
    (party,) = node.parties.values()
    return party.state


def reason(reply: Message) -> str:
    """Return why the one client of a node fails, as its answer says; nothing if it does not."""
    if reply.has_error():
        return str(reply.error.reason)
    failed = unbundled(reply.content)[1] if "clients" in reply.content else read_answers(reply.content).failed
    return "; ".join(failed.values())
