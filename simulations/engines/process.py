"""The engine `process`: persistent workers, one for each device slot, that keep their clients' private state.

A worker that dies is started again with the state that was saved last, and repeats what was asked of it since: its
answers depend on nothing but state and messages, so that the result of the run is the same to the bit.
"""

import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Lock, Thread, current_thread, main_thread
from time import monotonic
from types import ModuleType
from typing import TYPE_CHECKING, Any

from flwr.app import Message, RecordDict

from fedrec.folders import store
from server.faults import ClientFailure
from simulations.engines.local import SERVER_NODE, LocalGrid
from simulations.engines.slots import Slot
from simulations.engines.storing import packed, unpacked

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext
    from multiprocessing.process import BaseProcess

NAMELESS = Lock()  # runs in several threads start their workers one after the other
Started = tuple["BaseProcess", Connection]
LIVES = 5  # a message at which a worker dies so often is given up


@dataclass
class Worker:
    """A worker process as the grid sees it."""

    slot: Slot
    process: "BaseProcess"
    pipe: Connection
    joined: bytes = b""
    saved: Path | None = None
    since: list[bytes] = field(default_factory=list)  # requests since the state was saved
    waiting: list[str] = field(default_factory=list)  # message ids of answers to come, oldest first; "" is not wanted
    deaths: int = 0


class ProcessGrid(LocalGrid):
    """A grid whose nodes are worker processes, each a node of several clients.

    `settings` tells a worker what to run (see `serve`); `tell` is called with what the user should know. Workers
    that are `idle` are taken first, see `idle_workers`.
    """

    hosts = True

    def __init__(
        self, slots: Sequence[Slot], settings: Mapping[str, Any], tell: Callable[[str], None], idle: list[Started]
    ) -> None:
        super().__init__()
        self.settings, self.tell, self.idle = dict(settings), tell, idle
        self.answered: dict[str, RecordDict] = {}
        self.asked: dict[str, Message] = {}
        self.workers = {SERVER_NODE + 1 + k: Worker(slot, *self._start(slot)) for k, slot in enumerate(slots)}

    def _start(self, slot: Slot) -> Started:
        text = json.dumps({**self.settings, "partitions": slot.partitions, "device": slot.device})
        if self.idle:
            process, ours = self.idle.pop(0)
            with suppress(OSError):  # of one that has died, as its first answer will tell
                ours.send_bytes(b"begin\n" + text.encode())
            return process, ours
        context = starter()
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, text, dict(os.environ)), daemon=True)
        with deaf(), nameless():
            process.start()
        theirs.close()
        return process, ours

    def get_node_ids(self) -> Iterable[int]:
        """Return the workers' node ids."""
        return list(self.workers)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send each message to its worker."""
        ids = []
        for message in messages:
            name = self.named(message)
            self.asked[name] = message
            worker = self.workers[message.metadata.dst_node_id]
            request = message.metadata.message_type.encode() + b"\n" + packed(message.content)
            if message.metadata.message_type == "query.join":
                worker.joined = request
            else:
                worker.since.append(request)
            worker.waiting.append(name)
            self._send(worker, request)
            ids.append(name)
        return ids

    def _answer(self, message: Message) -> Message:
        (reply,) = self.send_and_receive([message])
        return reply

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to the given messages that are there."""
        self._receive(0.0)
        return [self._reply(name) for name in list(message_ids) if name in self.answered]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return every worker's reply, in the order of the messages; those that are late are left out."""
        ids = list(self.push_messages(messages))
        end = None if timeout is None else monotonic() + timeout
        while any(name not in self.answered for name in ids) and (end is None or monotonic() < end):
            self._receive(None if end is None else max(0.0, end - monotonic()))
        for worker in self.workers.values():  # late answers are not wanted any more
            worker.waiting = ["" if name in ids else name for name in worker.waiting]
        return self.pull_messages(ids)

    def save(self, folder: Path) -> list[Path]:
        """Let every worker write the state of its clients into a folder; return the files."""
        files = []
        for node, worker in self.workers.items():
            path = folder / f"node-{node}.state"
            self._ask(worker, f"save {path}".encode() + b"\n")
            files.append(path)
        return files

    def settle(self, folder: Path) -> None:
        """Count on the states in a folder from now on: what was asked before need not be repeated."""
        for node, worker in self.workers.items():
            worker.saved, worker.since, worker.deaths = folder / f"node-{node}.state", [], 0

    def restore(self, folder: Path) -> None:
        """Let every worker, whose clients have joined, go back to the state in a folder."""
        self.settle(folder)
        for worker in self.workers.values():
            self._ask(worker, f"load {worker.saved}".encode() + b"\n")

    def close(self) -> None:
        """Let the workers wait for another run; those that still have to answer end."""
        self.idle[:0] = [(worker.process, worker.pipe) for worker in self.workers.values() if not worker.waiting]
        end([(worker.process, worker.pipe) for worker in self.workers.values() if worker.waiting])

    def _reply(self, name: str) -> Message:
        asked, content = self.asked.pop(name), self.answered.pop(name)
        return Message(content, reply_to=asked)

    def _ask(self, worker: Worker, request: bytes) -> None:
        """Send a request that is answered by nothing, and wait for that."""
        mark = f"ask {self.pushed} {id(worker)}"
        worker.waiting.append(mark)
        worker.since.append(request)
        self._send(worker, request)
        while mark in worker.waiting:
            self._receive(None)
        self.answered.pop(mark, None)

    def _send(self, worker: Worker, request: bytes) -> None:
        try:
            worker.pipe.send_bytes(request)
        except OSError:
            self._revive(worker)

    def _receive(self, seconds: float | None) -> None:
        """Take the answers that come within some seconds, at least one if there is no limit; revive who died."""
        busy = {worker.pipe: worker for worker in self.workers.values() if worker.waiting}
        for pipe in wait(list(busy), seconds):
            worker = busy[pipe]  # type: ignore[index]
            try:
                answer = worker.pipe.recv_bytes()
            except (EOFError, OSError):
                self._revive(worker)
                continue
            name = worker.waiting.pop(0)
            if name:
                self.answered[name] = unpacked(answer)
                worker.deaths = 0

    def _revive(self, worker: Worker) -> None:
        """Start a worker that died again, and let it repeat what was asked since its state was saved."""
        worker.process.join()
        worker.deaths += 1
        code = worker.process.exitcode
        if worker.deaths >= LIVES:
            clients = ", ".join(map(str, worker.slot.partitions[:5]))
            raise ClientFailure(f"worker of clients {clients}: died {worker.deaths} times, last with exit code {code}")
        self.tell(f"a worker died (exit code {code}) and was started again")
        answered = len(worker.since) + bool(worker.joined) - len(worker.waiting)
        worker.pipe.close()
        worker.process, worker.pipe = self._start(worker.slot)
        load = [f"load {worker.saved}".encode() + b"\n"] if worker.saved else []
        again = [request for request in (worker.joined, *load, *worker.since) if request]
        worker.waiting = [""] * (answered + len(load)) + worker.waiting
        for request in again:
            self._send(worker, request)


@contextmanager
def idle_workers() -> Iterator[list[Started]]:
    """Yield where workers wait between two runs, so that their imports are made once; they end with the context."""
    idle: list[Started] = []
    try:
        yield idle
    finally:
        end(idle)


def end(workers: Sequence[Started]) -> None:
    """End workers, by their pipes or at last by force."""
    for _, pipe in workers:
        pipe.close()  # which a worker takes as its end
    for process, _ in workers:
        process.join(1.0)
        if process.is_alive():
            process.kill()
            process.join()


def starter() -> "ForkServerContext | SpawnContext":
    """Return how workers are started: as copies of a process that has made their imports, where a system has that."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, "simulations.engines.nodes"])
    return context


@contextmanager
def deaf() -> Iterator[None]:
    """Let a process that is started here ignore Ctrl-C, which is for the process that holds the run."""
    if current_thread() is not main_thread():  # only there may signals be set
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def nameless() -> Iterator[None]:
    """Let a process that is started here not import the program of this one, of which a worker needs nothing.

    Otherwise a script without `if __name__ == "__main__"` would begin its run again in every worker.
    """
    with NAMELESS:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def end_with_parent() -> None:
    """End this worker when the process that holds the run is gone: nothing may write in its folder then."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def serve(pipe: Connection, text: str, environment: Mapping[str, str]) -> None:
    """Be a worker: answer requests in their order until the pipe is closed.

    A request is `KIND` or `save FILE` or `load FILE`, a line break, and a message's content; or `begin`, a line break,
    and the settings of another run, which is not answered.
    """
    from simulations.engines.nodes import node_of

    Thread(target=end_with_parent, daemon=True).start()
    os.environ.clear()  # which was that of the first worker's start
    os.environ.update(environment)
    node = node_of(json.loads(text))
    gc.freeze()  # what the imports left need not be searched for garbage again and again
    gc.set_threshold(100_000, 50, 100)  # as where the run is
    while True:
        try:
            head, _, body = pipe.recv_bytes().partition(b"\n")
            kind, _, path = head.decode().partition(" ")
            answer = b""
            if kind == "begin":
                del node  # before there is another
                node = node_of(json.loads(body))
                continue
            if kind == "save":
                store(Path(path), packed(node.state()))
            elif kind == "load":
                node.restore(unpacked(Path(path).read_bytes()))
            else:
                answer = packed(node.answer(kind, unpacked(body)))
            pipe.send_bytes(answer)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
