"""The engine `batched`: one node in this process that hosts all clients and trains them as few programs."""

from collections.abc import Iterable
from pathlib import Path

from flwr.app import Message

from fedrec.folders import store
from simulations.engines.hosts import Answering
from simulations.engines.local import SERVER_NODE, LocalGrid
from simulations.engines.storing import packed, unpacked

NODE = SERVER_NODE + 1


class BatchedGrid(LocalGrid):
    """A grid with one node, a host in this process: its messages are not serialised."""

    hosts = True

    def __init__(self, host: Answering) -> None:
        super().__init__()
        self.host = host

    def get_node_ids(self) -> Iterable[int]:
        """Return the one node's id."""
        return [NODE]

    def _answer(self, message: Message) -> Message:
        return Message(self.host.answer(message.metadata.message_type, message.content), reply_to=message)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return the host's replies, however long they took: clients that train as one cannot be late alone."""
        return super().send_and_receive(messages)

    def save(self, folder: Path) -> list[Path]:
        """Write the clients' private state into a folder; return the files."""
        path = folder / "nodes.state"
        store(path, packed(self.host.state()))
        return [path]

    def restore(self, folder: Path) -> None:
        """Go back to the state in a folder."""
        self.host.restore(unpacked((folder / "nodes.state").read_bytes()))
