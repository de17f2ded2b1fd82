"""The engine `inline`: clients one after the other in this process, the reference result."""

import gc
from collections.abc import Iterable
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp

from fedrec.folders import store
from simulations.engines.local import RUN_ID, SERVER_NODE, LocalGrid
from simulations.engines.storing import packed, unpacked


class InlineGrid(LocalGrid):
    """Runs the clients one after the other in this process; nodes 2, 3, ... hold the partitions 0, 1, ... ."""

    def __init__(self, app: ClientApp, clients: int) -> None:
        super().__init__()
        self.app = app
        self.contexts = {
            SERVER_NODE + 1 + i: Context(
                run_id=RUN_ID,
                node_id=SERVER_NODE + 1 + i,
                node_config={"partition-id": i, "num-partitions": clients},
                state=RecordDict(),
                run_config={},
            )
            for i in range(clients)
        }

    def get_node_ids(self) -> Iterable[int]:
        """Return the clients' node ids."""
        return list(self.contexts)

    def _answer(self, message: Message) -> Message:
        try:
            return self.app(message, self.contexts[message.metadata.dst_node_id])
        except Exception as error:
            return Message(Error(code=ErrorCode.UNKNOWN, reason=type(error).__name__), reply_to=message)

    def save(self, folder: Path) -> list[Path]:
        """Write the clients' private state into a folder; return the files."""
        path = folder / "nodes.state"
        states = {f"{node}/{name}": r for node, one in self.contexts.items() for name, r in one.state.items()}
        store(path, packed(RecordDict(states)))
        return [path]

    def restore(self, folder: Path) -> None:
        """Go back to the state in a folder."""
        for context in self.contexts.values():
            context.state = RecordDict()
        for key, record in unpacked((folder / "nodes.state").read_bytes()).items():
            node, _, name = key.partition("/")
            self.contexts[int(node)].state[name] = record


def run_on(grid: Grid, server: ServerApp) -> None:
    """Run a ServerApp of this process on a grid."""
    # What the imports left, half a million objects, stays: looking for garbage in it again and again takes a sixth of
    # the time of many small messages. Once: of later runs in this process garbage is to be found.
    if not gc.get_freeze_count():
        gc.freeze()
    server(grid, Context(run_id=RUN_ID, node_id=SERVER_NODE, node_config={}, state=RecordDict(), run_config={}))
