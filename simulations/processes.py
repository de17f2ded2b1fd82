"""Processes that end with the one that started them, however that one ends."""

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

import httpx

from simulations.sockets import SOCKET, listening, ray_token, speaking

MARK = "FEDREC_STARTED_BY"
START = 60.0  # seconds within which a SuperLink must answer first
GONE = 10.0  # and later


def end_with_parent() -> None:
    """End this process and all that it started when its standard input ends: its parent, at the other end, is gone.

    The kernel closes a dead process's files however it died, so this needs no clean-up of the parent's, and unlike
    Linux's PR_SET_PDEATHSIG it works on every system. Whoever calls this must not read standard input otherwise.
    """

    def watch() -> None:
        while os.read(0, 1):
            pass
        kill_marked(os.environ.get(MARK, ""))
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def started(
    command: Sequence[str], log: Path | None, environment: Mapping[str, str], folder: Path | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a Python command, for instance `-m module`, that calls `end_with_parent`; at the end kill all it started.

    It has a session of its own, so that a Ctrl-C on the terminal reaches this process alone, which may want to end its
    round first. What it prints goes to the file `log`, if there is one. It works in `folder`, or where this one does.
    """
    mark = uuid.uuid4().hex
    with log.open("wb") if log else nullcontext() as out:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            cwd=folder,
            env={**os.environ, **environment, MARK: mark},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kill_marked(mark)


def kill_marked(mark: str) -> None:
    """Kill every process that was `started` with a mark, or by one that was; not this one."""
    while mark and (left := [pid for pid in marked(f"{MARK}={mark}") if pid != os.getpid()]):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def marked(mark: str) -> list[int]:
    """Return the processes with NAME=VALUE in their environment, which what they start inherits; none but on Linux.

    Flower and Ray start processes in sessions of their own, where no process group reaches them.
    """
    pids = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark.encode() in entry.read_bytes().split(b"\0"):
                pids.append(int(entry.parent.name))
    return pids


def quiet(home: Path) -> dict[str, str]:
    """Return the environment in which Flower tells nobody, asks no proxy, and keeps to `home`."""
    here = ",".join(filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), "127.0.0.1"]))
    return {
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "FLWR_HOME": str(home),
        "FLWR_INTERNAL_GRPC_CONTROL_API": "0",  # interfaces on ports of their own
        "FLWR_INTERNAL_GRPC_FLEET_API": "0",
        SOCKET: socket_of(home),
        **ray_token(),
        "NO_PROXY": here,
        "no_proxy": here,
        # Flower starts its other commands by their bare names.
        "PATH": os.pathsep.join([str(home / "bin"), str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }


def socket_of(home: Path) -> str:
    """Return where the socket of a run lies."""
    return str(home / "socket")


def answers(socket: str, seconds: float, check: Callable[[], None] = lambda: None) -> bool:
    """Return whether a SuperLink answers at a socket within so many seconds; raises what `check` raises meanwhile."""
    end = time.monotonic() + seconds
    with httpx.Client(transport=httpx.HTTPTransport(uds=socket), timeout=1.0) as client:
        while time.monotonic() < end:
            check()
            try:
                return client.get("http://localhost/health").is_success
            except httpx.HTTPError:
                time.sleep(0.05)
    return False


def last_line(log: Path) -> str:
    """Return the last line of a log that is not blank, or an empty text."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    plain = [re.sub(r"\x1b\[\d*m", "", line).strip() for line in lines]
    return next(filter(None, reversed(plain)), "")


def run_command(argv: Sequence[str]) -> None:
    """Run an installed command in this process, over the socket that the environment names if there is one."""
    sys.argv = list(argv)
    (command,) = importlib.metadata.entry_points(group="console_scripts", name=argv[0])
    with ExitStack() as stack:
        if socket := os.environ.get(SOCKET):
            stack.enter_context(listening(socket) if argv[0] == "flower-superlink" else speaking(socket))
        command.load()()


if __name__ == "__main__":
    end_with_parent()
    run_command(sys.argv[1:])
