"""A real SuperLink with its SuperNodes, and `flwr run`: the result of `inline`, and no process that outlives it."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from fedrec.experiment.holdings import clients_data
from simulations import flower
from simulations.apps import apps_for
from simulations.cli import parse
from simulations.processes import last_line, marked, started
from tests.helpers import run_inline

ROOT = Path(__file__).parent.parent
SMALL = ["--clients", "2", "--dim", "4", "--market.users", "30", "--device", "cpu"]
needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="lists processes from /proc")
needs_flwr = pytest.mark.skipif(
    not Path(sys.executable).with_name("flwr").exists(), reason="Flower's command is missing"
)


class Begun:
    """A command begun in a process of its own, whose descendants are known by a mark in their environment."""

    def __init__(self, module: str, *argv: str) -> None:
        self.mark = f"FEDREC_TEST={uuid.uuid4().hex}"
        name, value = self.mark.split("=")
        # Nothing listens there: whatever asks the network fails.
        nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"simulations.{module}", *SMALL, *argv],
            cwd=ROOT,
            env={**os.environ, **nowhere, "CI": "true", name: value},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def end(self) -> tuple[int, str]:
        """Wait for it; return its status and what it wrote to stderr, once no process of it is left."""
        try:
            errors = self.process.communicate(timeout=180)[1]
        finally:
            self.process.kill()
            self.process.communicate()
        until(lambda: not marked(self.mark), 30)
        return self.process.returncode, errors

    def ports(self, command: bytes = b"") -> list[str]:
        """Return the addresses on which its processes of a command listen for TCP, in the kernel's notation."""
        held, found = inodes(self.mark, command), []
        for table in ("tcp", "tcp6"):
            rows = [line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
            found += [row[1] for row in rows if row[3] == "0A" and row[9] in held]
        return found

    def nodes(self) -> list[int]:
        """Return the processes that run `simulations.supernode`: first the one that forked the others."""
        found = [pid for pid in marked(self.mark) if b"simulations.supernode" in command_line(pid)]
        return sorted(found, key=lambda pid: parent(pid) in found)


def command_line(pid: int) -> bytes:
    """Return the command line of a process, empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def parent(pid: int) -> int:
    """Return the process that a process is the child of, 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def inline(home: Path, *argv: str) -> Path:
    """Run an experiment in this process into a folder."""
    home.mkdir()
    e = parse([*SMALL, *argv]).experiment
    run_inline(*apps_for(e, home), len(clients_data(e)))
    return home


def assert_same(a: Path, b: Path) -> None:
    """Assert that two runs agree to the bit in everything but the time that they took."""
    names = ["clients.csv", "ledger.csv", *(str(p.relative_to(a)) for p in [*a.glob("model/*"), *a.glob("*.parquet")])]
    assert len(names) >= 7
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    x, y = (pd.read_csv(home / "rounds.csv").drop(columns=["seconds", "evaluate_seconds"]) for home in (a, b))
    pd.testing.assert_frame_equal(x, y, check_exact=True)


def sockets(mark: str) -> list[Path]:
    """Return the Unix sockets, by their paths, on which processes with a mark listen."""
    held = inodes(mark)
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return [Path(row[7]) for row in rows if len(row) > 7 and row[6] in held and row[3] == "00010000"]


def inodes(mark: str, command: bytes = b"") -> set[str]:
    """Return the inodes of all sockets that processes with a mark hold, of those that run a command."""
    found = set()
    for pid in (pid for pid in marked(mark) if command in command_line(pid)):
        with suppress(OSError):
            links = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
            found |= {link[8:-1] for link in links if link.startswith("socket:[")}
    return found


STRANGER = """
import os, socket, sys
os.setgid(65534), os.setuid(65534)
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
except OSError as error:
    print(type(error).__name__)
"""


def stranger(place: Path) -> str:
    """Return how another user of this machine fails to connect to a socket; only root can try, others read the mode."""
    assert place.parent.stat().st_mode & 0o777 == 0o700
    if os.getuid():
        return "PermissionError"
    done = subprocess.run([sys.executable, "-c", STRANGER, str(place)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@needs_proc
def test_superlink_agrees_with_inline_to_the_bit_and_ends_its_processes(tmp_path: Path) -> None:
    # The dual of consensus ADMM lives in a node's Context.state from round to round.
    argv = ["--method", "admm", "--rounds", "3", "--task", "rank,click*0.5"]
    out = tmp_path / "superlink"
    begun = Begun("run", *argv, "--engine", "superlink", "--no-compare", "--quiet", "--out", str(out))
    until(lambda: len(begun.nodes()) == 3)  # the one that they are forked from, and the two
    (place,) = {str(path) for path in sockets(begun.mark)}
    assert begun.ports() == [] and stranger(Path(place)) == "PermissionError"
    assert begun.end() == (0, "")
    assert_same(inline(tmp_path / "inline", *argv), out)


LONG = ("--engine", "superlink", "--rounds", "100000", "--no-compare", "--quiet", "--out")


def begin(out: Path) -> tuple[Begun, list[int]]:
    """Begin a run that does not end by itself; return it and its node processes after some rounds."""
    begun = Begun("run", *LONG, str(out))
    until(lambda: len(begun.nodes()) == 3)
    time.sleep(2.0)
    return begun, begun.nodes()


@needs_proc
@pytest.mark.soak
def test_no_process_outlives_a_killed_parent(tmp_path: Path, tries: Callable[[int, int], int]) -> None:
    tries(0, 1)
    begun, _ = begin(tmp_path / "out")
    begun.process.kill()
    assert begun.end()[0] == -signal.SIGKILL


@needs_proc
def test_a_killed_node_fails_the_run_in_one_line(tmp_path: Path) -> None:
    begun, nodes = begin(tmp_path / "out")
    os.kill(nodes[-1], signal.SIGKILL)
    status, errors = begun.end()
    assert status == 1
    assert re.fullmatch(r"failed: SuperNodes: .*the node of partition \d ended with status -9\n", errors)
    assert not (tmp_path / "out").exists()


@needs_proc
@pytest.mark.soak
def test_ctrl_c_twice_ends_every_process(tmp_path: Path, tries: Callable[[int, int], int]) -> None:
    tries(0, 1)
    begun, _ = begin(tmp_path / "out")
    for _ in range(2):
        os.killpg(begun.process.pid, signal.SIGINT)
        time.sleep(0.2)
    status, errors = begun.end()
    assert status == 130
    assert "Traceback" not in errors


@needs_proc
@needs_flwr
@pytest.mark.soak
def test_flwr_run_works_offline_tells_a_failure_and_leaves_nothing_behind(
    tmp_path: Path, tries: Callable[[int, int], int]
) -> None:
    tries(0, 1)
    out, none = tmp_path / "out", tmp_path / "none"
    diverging = ["--lr", "900000", "--optimiser", "sgd", "--rounds", "30", "--task", "rating"]
    good = Begun("flower", "--rounds", "1", "--quiet", "--out", str(out))
    bad = Begun("flower", *diverging, "--quiet", "--out", str(none))  # at the same time: nothing of the two is shared
    until(lambda: sockets(good.mark))
    assert {stranger(place) for place in sockets(good.mark) if place.name == "socket"} == {"PermissionError"}
    assert good.ports(b"flower-superlink") == []
    assert good.end() == (0, "")
    assert_same(inline(tmp_path / "inline", "--rounds", "1"), out)
    status, errors = bad.end()
    assert status == 1
    assert re.fullmatch(
        r"failed: round \d: .* must answer, found 0 \(.*: failed: lr: must be small enough .*\n", errors
    )
    assert not none.exists()


def test_a_wrong_option_of_flwr_run_is_the_users(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert flower.main(["--clients", "0"]) == 2
    assert flower.main(["--task", "nosuchlabel"]) == 2
    (tmp_path / "file").touch()
    assert flower.main([*SMALL, "--out", str(tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert all(line.startswith("error: ") for line in errors)


def test_why_a_flower_run_failed() -> None:
    run = '{"success": true, "runs": [{"status": "%s", "status-details": "%s"}]}'
    assert flower.failed("a warning\n" + run % ("finished:completed", "")) == ""
    assert flower.failed(run % ("finished:failed", "ServerApp failed with exception: out: no")) == "out: no"
    assert flower.failed(run % ("finished:stopped", "")) == "finished:stopped"
    assert flower.failed(run % ("running", "")) == "running"
    assert flower.failed('{"success": true, "runs": []}').startswith("the run was not started")
    assert flower.failed("Error: refused").startswith("the run was not started: Error: refused")


def test_the_last_line_of_a_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("first\nlast\n\n")
    assert last_line(tmp_path / "log") == "last"
    assert last_line(tmp_path / "none") == ""


DETACHED = """
import subprocess, time
from simulations.processes import end_with_parent
end_with_parent()
subprocess.Popen(["sleep", "600"], start_new_session=True)
time.sleep(600)
"""


@needs_proc
@pytest.mark.parametrize("orphaned", [False, True])
def test_what_a_process_started_in_a_session_of_its_own_ends_with_it(orphaned: bool, tmp_path: Path) -> None:
    mark = f"FEDREC_TEST={uuid.uuid4().hex}"
    environment = dict([mark.split("=")])
    with started(["-c", DETACHED], tmp_path / "log", environment) as process:
        until(lambda: len(marked(mark)) == 2)
        if orphaned:  # as when this process dies
            assert process.stdin is not None
            process.stdin.close()
            until(lambda: not marked(mark), 10)
            process.stdin = None
    until(lambda: not marked(mark), 10)
