"""The engine `inline`: clients one after the other in this process, the reference result."""

import gc
import time
from collections.abc import Iterable
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from simulations.engines.storing import packed, store, unpacked

RUN_ID, SERVER_NODE = 1, 1


class InlineGrid(Grid):
    """Runs the clients one after the other in this process; nodes 2, 3, ... hold the partitions 0, 1, ... ."""

    def __init__(self, app: ClientApp, clients: int) -> None:
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
        self.replies: dict[str, Message] = {}
        self.took: dict[str, float] = {}  # seconds that each of them took
        self.pushed = 0
        self._run = Run.create_empty(run_id=RUN_ID)
        identify()

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
        """Return the clients' node ids."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let each client answer its message at once; the replies wait to be pulled."""
        ids = []
        for message in messages:
            self.pushed += 1
            name = str(self.pushed)
            message.metadata.__dict__["_message_id"] = name
            started = time.perf_counter()
            self.replies[name] = self._answer(message)
            self.took[name] = time.perf_counter() - started
            ids.append(name)
        return ids

    def _answer(self, message: Message) -> Message:
        try:
            return self.app(message, self.contexts[message.metadata.dst_node_id])
        except Exception as error:
            return Message(Error(code=ErrorCode.UNKNOWN, reason=type(error).__name__), reply_to=message)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to the given messages."""
        return [self.replies.pop(name) for name in list(message_ids) if name in self.replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return the replies in the order of the messages, without those that took a client over `timeout` seconds.

        A client in this process cannot be interrupted: its late answer is waited for, and then left out.
        """
        ids = list(self.push_messages(messages))
        replies = list(self.pull_messages(ids))
        took = [self.took.pop(name) for name in ids]
        return [reply for reply, t in zip(replies, took, strict=True) if timeout is None or t <= timeout]

    def save(self, folder: Path) -> list[Path]:
        """Write the clients' private state into a folder; return the files."""
        path = folder / "nodes.state"
        states = {f"{node}/{name}": r for node, one in self.contexts.items() for name, r in one.state.items()}
        store(path, packed(RecordDict(states)))
        return [path]

    def settle(self, folder: Path) -> None:
        """Nothing can happen to the clients that does not happen to this process."""

    def restore(self, folder: Path) -> None:
        """Go back to the state in a folder."""
        for context in self.contexts.values():
            context.state = RecordDict()
        for key, record in unpacked((folder / "nodes.state").read_bytes()).items():
            node, _, name = key.partition("/")
            self.contexts[int(node)].state[name] = record

    def close(self) -> None:
        """There is nothing to end."""


def identify() -> None:
    """Set the process-global identity without which Flower builds no Message; an existing one is left alone."""
    if TaskIdentity._task_id is None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, SERVER_NODE


def run_inline(server: ServerApp, client: ClientApp, clients: int) -> None:
    """Run an experiment in this process: the reference result."""
    run_on(InlineGrid(client, clients), server)


def run_on(grid: Grid, server: ServerApp) -> None:
    """Run a ServerApp of this process on a grid."""
    # What the imports left, half a million objects, stays: looking for garbage in it again and again takes a sixth of
    # the time of many small messages. Once: of later runs in this process garbage is to be found.
    if not gc.get_freeze_count():
        gc.freeze()
    server(grid, Context(run_id=RUN_ID, node_id=SERVER_NODE, node_config={}, state=RecordDict(), run_config={}))
