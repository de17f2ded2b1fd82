"""The engines of this process: `inline`, a node for each client, the reference result; `batched`, one node for all."""

import gc
from collections.abc import Iterable, Sequence
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from clients.app import reply
from clients.node import Node
from clients.state import Party, restore, saved
from fedrec.folders import store
from simulations.engines.local import RUN_ID, SERVER_NODE, LocalGrid
from simulations.engines.storing import packed, unpacked


class InlineGrid(LocalGrid):
    """Runs nodes one after the other in this process, without serialising their messages: nodes 2, 3, ... .

    `hosts`: whether a node may have several clients. Those that train as one cannot be late alone, and are waited for.
    """

    def __init__(self, nodes: Sequence[Node], hosts: bool = False) -> None:
        super().__init__()
        self.nodes, self.hosts = dict(enumerate(nodes, SERVER_NODE + 1)), hosts

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes' ids."""
        return list(self.nodes)

    def _answer(self, message: Message) -> Message:
        node = self.nodes[message.metadata.dst_node_id]
        return reply(message, lambda: node.answer(message.metadata.message_type, message.content))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return the replies in the order of the messages; see LocalGrid."""
        return super().send_and_receive(messages, timeout=None if self.hosts else timeout)

    def save(self, folder: Path) -> list[Path]:
        """Write the clients' private state into a folder; return the files."""
        path = folder / "nodes.state"
        store(path, packed(saved(self.parties)))
        return [path]

    def restore(self, folder: Path) -> None:
        """Go back to the state in a folder."""
        restore(self.parties, unpacked((folder / "nodes.state").read_bytes()))

    @property
    def parties(self) -> dict[str, Party]:
        """All clients, by name."""
        return {name: party for node in self.nodes.values() for name, party in node.parties.items()}


def run_on(grid: Grid, server: ServerApp) -> None:
    """Run a ServerApp of this process on a grid."""
    # What the imports left, half a million objects, stays: looking for garbage in it again and again takes a sixth of
    # the time of many small messages. Once: of later runs in this process garbage is to be found.
    if not gc.get_freeze_count():
        gc.freeze()
    server(grid, Context(run_id=RUN_ID, node_id=SERVER_NODE, node_config={}, state=RecordDict(), run_config={}))
