"""What the grids of this process have in common: Flower's interface, and its traps."""

import time
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

RUN_ID, SERVER_NODE = 1, 1


class LocalGrid(Grid):
    """A grid whose nodes answer a message as soon as it is pushed."""

    def __init__(self) -> None:
        identify()
        self.replies: dict[str, Message] = {}
        self.took: dict[str, float] = {}  # seconds that each of them took
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

    def named(self, message: Message) -> str:
        """Return the id that a message gets."""
        self.pushed += 1
        message.metadata.__dict__["_message_id"] = str(self.pushed)
        return str(self.pushed)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let each node answer its message at once; the replies wait to be pulled."""
        ids = []
        for message in messages:
            name, started = self.named(message), time.perf_counter()
            self.replies[name] = self._answer(message)
            self.took[name] = time.perf_counter() - started
            ids.append(name)
        return ids

    @abstractmethod
    def _answer(self, message: Message) -> Message:
        """Return a node's answer."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to the given messages."""
        return [self.replies.pop(name) for name in list(message_ids) if name in self.replies]

    def settle(self, folder: Path) -> None:
        """Count on the state in a folder: nothing can happen to clients of this process that does not happen to it."""

    def close(self) -> None:
        """End what was started, which is nothing."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return the replies in the order of the messages, without those that took a node over `timeout` seconds.

        A client in this process cannot be interrupted: its late answer is waited for, and then left out.
        """
        ids = list(self.push_messages(messages))
        replies = list(self.pull_messages(ids))
        took = [self.took.pop(name) for name in ids]
        return [reply for reply, t in zip(replies, took, strict=True) if timeout is None or t <= timeout]


def identify() -> None:
    """Set the process-global identity without which Flower builds no Message; an existing one is left alone."""
    if TaskIdentity._task_id is None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, SERVER_NODE
