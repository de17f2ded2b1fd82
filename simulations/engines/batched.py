"""The engine `batched`: one node in this process that hosts all clients and trains them as few programs."""

from collections.abc import Iterable
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from simulations.engines.hosts import Answering
from simulations.engines.inline import RUN_ID, SERVER_NODE, identify
from simulations.engines.storing import packed, store, unpacked

NODE = SERVER_NODE + 1


class BatchedGrid(Grid):
    """A grid with one node, a host in this process: its messages are not serialised."""

    hosts = True

    def __init__(self, host: Answering) -> None:
        identify()
        self.host = host
        self.replies: dict[str, Message] = {}
        self.pushed = 0
        self._run = Run.create_empty(run_id=RUN_ID)

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message; kept for Flower's interface, `Message` itself is the constructor to use."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the one node's id."""
        return [NODE]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let the host answer at once; its replies wait to be pulled."""
        ids = []
        for message in messages:
            self.pushed += 1
            name = str(self.pushed)
            message.metadata.__dict__["_message_id"] = name
            content = self.host.answer(message.metadata.message_type, message.content)
            self.replies[name] = Message(content, reply_to=message)
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to the given messages."""
        return [self.replies.pop(name) for name in list(message_ids) if name in self.replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return the host's replies, however long they took: clients that train as one cannot be late alone."""
        return self.pull_messages(self.push_messages(messages))

    def save(self, folder: Path) -> list[Path]:
        """Write the clients' private state into a folder; return the files."""
        path = folder / "nodes.state"
        store(path, packed(self.host.state()))
        return [path]

    def settle(self, folder: Path) -> None:
        """Nothing can happen to the clients that does not happen to this process."""

    def restore(self, folder: Path) -> None:
        """Go back to the state in a folder."""
        self.host.restore(unpacked((folder / "nodes.state").read_bytes()))

    def close(self) -> None:
        """There is nothing to end."""
