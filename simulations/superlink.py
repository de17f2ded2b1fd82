"""The engine `superlink`: a real SuperLink and a SuperNode for each client, processes of their own on this machine.

The SuperLink is Flower's command. The ServerApp runs in this process, as the task of a run that the SuperLink was asked
for, so that its progress and its errors are those of every engine. It and the SuperNodes speak Flower's Runtime and
Fleet interfaces over HTTP; without TLS, since nothing leaves the machine, and over a Unix socket in a folder that other
users cannot enter: there is no port.

Flower's own processes for a ServerApp and a ClientApp are not used: they start afresh for every task, and everything in
them waits up to three seconds between two looks for a message. What stands in for them is here and in `supernode`. It
needs parts of flwr 1.41 that are not public, which is why the version is pinned.
"""

import hashlib
import io
import logging
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from flwr.app import Context, Message
from flwr.app.user_config import UserConfig
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, fab_to_proto, run_from_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
)
from flwr.serverapp import ServerApp
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from fedrec.components import read
from fedrec.experiment.config import Experiment
from server.faults import ClientFailure
from simulations.processes import GONE, START, answers, last_line, quiet, socket_of, started
from simulations.sockets import NOWHERE, private_folder, speaking
from simulations.supernode import inflated

LOOK = (0.02, 0.3)  # seconds between two looks for replies: from the first, by and by, to the second

# What a run is made of, as Flower sees it: no code, since every process has this installation.
APP = """
[project]
name = "fedrec"
version = "0"
[tool.flwr.app]
publisher = "fedrec"
[tool.flwr.app.components]
serverapp = "simulations.apps:server"
clientapp = "simulations.apps:client"
[tool.flwr.app.config]
experiment = ""
out = ""
"""


class SocketGrid(HttpGrid):
    """Flower's grid for a ServerApp process, which looks for replies at once and notices a process that has ended."""

    def __init__(self, token: str, check: Callable[[], None]) -> None:
        super().__init__(NOWHERE, insecure=True, token=token)
        self._retry_invoker.max_time = GONE
        self.check = check

    @property
    def runtime(self) -> RuntimeHttpClient:
        """Flower's client of the SuperLink."""
        return self._runtime_client

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return the replies in the order in which they came; raises ClientFailure if a process ends before."""
        waiting = {name for name in self.push_messages(messages) if name}  # None: it could not be sent
        replies, wait = list[Message](), LOOK[0]
        end = time.monotonic() + (float("inf") if timeout is None else timeout)
        while waiting and time.monotonic() < end:
            batch = list(self.pull_messages(waiting))
            replies += batch
            waiting -= {reply.metadata.reply_to_message_id for reply in batch}
            wait = LOOK[0] if batch else min(wait * 1.5, LOOK[1])
            self.check()
            time.sleep(wait if waiting else 0.0)
        return replies

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there to the given messages.

        A reply is there before its tensors are: Flower's own method waits a second then.
        """
        client, run = self.runtime, self.run.run_id
        answer = client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))

        def fetch(request: PullObjectRequest) -> PullObjectResponse:
            self.check()
            return client.PullObject(request)

        pull = make_pull_object_fn_protobuf(fetch, self.node, run)
        confirm = make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, self.node, run)
        return [inflated(tree, pull, confirm, LOOK) for tree in answer.message_object_trees]


def run_superlink(server: ServerApp, experiment: Experiment, home: Path, clients: int) -> None:
    """Run an experiment over a SuperLink and a SuperNode for each client, and end them all.

    The nodes are told the experiment and `home` as the configuration of the run. Raises what the ServerApp raises, and
    ClientFailure if a process ends or does not start.
    """
    config: UserConfig = {"experiment": experiment.model_dump_json(), "out": str(home.absolute())}
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    parts = dict.fromkeys(read(text).use for _, text in experiment.own_parts)
    with private_folder() as folder, network(folder, clients, parts) as check:
        try:
            with speaking(socket_of(folder)), task(config, check) as (grid, context):
                server(grid, context)
        except httpx.HTTPError as error:
            check()
            raise ClientFailure(f"SuperLink: must answer, found {type(error).__name__}: {error}") from None


@contextmanager
def network(folder: Path, clients: int, parts: Iterable[str] = ()) -> Iterator[Callable[[], None]]:
    """Start a SuperLink and its SuperNodes on a socket in `folder`; yield what raises ClientFailure if one has ended.

    They end with the context. The nodes may import the `parts` of the user's own, by path.
    """
    environment, socket = quiet(folder), socket_of(folder)
    link = ["-m", "simulations.processes", "flower-superlink", "--insecure", "--isolation", "process"]
    nodes = ["-m", "simulations.supernode", socket, str(clients), str(Path.cwd()), *parts]
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(started(command, folder / name, environment))
            for name, command in (("SuperLink", link), ("SuperNodes", nodes))
        }

        def check() -> None:
            for name, process in processes.items():
                if (status := process.poll()) is not None:
                    raise ClientFailure(
                        f"{name}: must run to the end, found status {status}: {last_line(folder / name)}"
                    )

        if not answers(socket, START, check):
            raise ClientFailure(f"SuperLink: must answer within {START:.0f} s, found nothing at {socket}")
        yield check


@contextmanager
def task(config: UserConfig, check: Callable[[], None]) -> Iterator[tuple[SocketGrid, Context]]:
    """Ask the SuperLink for a run with a configuration, and take its ServerApp task; tell it how that ended."""
    version = RuntimeVersionHttpInterceptor(component_name="fedrec")
    content = bundle()
    fab = fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {}))
    with ControlHttpClient.from_server_address(NOWHERE, True, None, [version]) as control:
        control.StartRun(StartRunRequest(fab=fab, override_config=user_config_to_proto(config)))
    with RuntimeHttpClient.from_server_address(NOWHERE, True, None, [version]) as runtime:
        taken = runtime.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
    grid = SocketGrid(taken.token, check)
    given = grid.runtime.PullTaskInput(PullTaskInputRequest())
    here, run, node = given.task_id, given.run.run_id, given.context.node_id
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = here, run, node
    grid.set_run(run_from_proto(given.run))
    alive = HeartbeatSender(make_task_heartbeat_fn_http(grid.runtime))
    alive.start()
    try:
        yield grid, context_from_proto(given.context)
        grid.runtime.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.COMPLETED))
    finally:
        alive.stop()
        grid.close()


def bundle() -> bytes:
    """Return the app as the archive that a SuperLink takes."""
    content, archive = APP.encode(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("pyproject.toml", content)
        files.writestr(".info/CONTENT", f"pyproject.toml,{hashlib.sha256(content).hexdigest()},{len(content) * 8}")
    return archive.getvalue()
