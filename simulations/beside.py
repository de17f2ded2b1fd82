"""Runs that an experiment is compared with, made beside it where cores are idle: each in a process of its own.

What comes of a run does not depend on where it is made, so that nothing but the time of the whole is another.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import current_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from fedrec.errors import UserError, one_line
from fedrec.experiment.acting import acting
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.holdings import clients_data
from fedrec.experiment.records import Row
from fedrec.files import memory
from fedrec.folders import remove
from fedrec.sharing import ContractError

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

HERE = ("process", "inline", "batched")  # engines whose result one process can have
START = 4.0  # seconds that another process takes before it has begun
ROW, CLIENT = 1.5e-6, 1e-3  # seconds that a training row takes in an epoch, and a client in a round, about
ROUND, DONE, FAILED = b"round", b"done", b"failed "


def worthwhile(experiment: Experiment) -> bool:
    """Return whether a run takes longer, by a guess from public sizes, than to start another process for it."""
    e, parts = experiment, clients_data(experiment)
    rows = int(parts.row_counts("train").sum())
    return e.rounds * (ROW * e.local_epochs * rows + CLIENT * len(parts)) > START


def cores_of(experiment: Experiment) -> int:
    """Return how many cores the training of an experiment keeps busy."""
    from simulations.engines.slots import slots_of

    return len(slots_of(experiment, len(clients_data(experiment)))) if experiment.engine == "process" else 1


def peak() -> int:
    """Return the bytes that this process has had at most; a guess where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def apart(experiments: Mapping[str, Experiment]) -> bool:
    """Return whether comparisons can be made in processes of their own: on CPUs, of parts that these can import."""
    from clients.device import devices

    def can(e: Experiment) -> bool:
        ours = not any("__main__:" in text for _, text in e.own_parts)
        return ours and e.engine in HERE and devices(e.device) == ["cpu"]

    return not current_process().daemon and all(map(can, experiments.values()))


def by_one_process(experiment: Experiment) -> Experiment:
    """Return the experiment with an engine that is one process, and has the result of worker processes."""
    from simulations.engines.nodes import stacked
    from simulations.methods import usual

    if experiment.engine != "process":
        return experiment
    engine = "batched" if stacked(experiment) else "inline"
    return acting(experiment.model_copy(update={"engine": engine}), usual(experiment))


@dataclass
class Comparisons:
    """Runs by name that wait, those that are being made, and why some have failed; what is made goes to baselines."""

    waiting: dict[str, Experiment]
    home: Path
    scratch: Path
    running: dict[Connection, tuple[str, "BaseProcess"]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def after(self, on_round: Callable[[Row], None], cores: int) -> Callable[[Row], None]:
        """Return what is done after a round of the run beside them, which leaves so many cores idle."""

        def both(row: Row) -> None:
            on_round(row)
            self.go_on(cores)

        return both

    def go_on(self, cores: int, seconds: float | None = 0.0) -> int:
        """Take what the runs tell within some seconds, and begin as many as there are cores; return finished rounds."""
        rounds = 0
        for pipe in wait(list(self.running), seconds) if self.running else ():
            rounds += self.hear(pipe)  # type: ignore[arg-type]
        # As much memory for each as this process has had at most; half of what there is stays free.
        while self.waiting and len(self.running) < min(cores, memory() // (2 * peak()) - 1):
            self.begin(next(iter(self.waiting)))
        return rounds

    def begin(self, name: str) -> None:
        """Start the process of a run."""
        from simulations.engines.process import deaf, nameless, starter

        text = self.waiting.pop(name).model_dump_json()
        remove(self.scratch / name)
        context = starter()
        ours, theirs = context.Pipe()
        arguments = (theirs, text, str(self.scratch / name), dict(os.environ))
        process = context.Process(target=make, args=arguments, daemon=True)
        with deaf(), nameless():
            process.start()
        theirs.close()
        self.running[ours] = name, process

    def hear(self, pipe: Connection) -> int:
        """Take one message of a run; return the rounds that it says are finished."""
        name, process = self.running[pipe]
        try:
            told = pipe.recv_bytes()
        except (EOFError, OSError):
            process.join()
            told = FAILED + f"its process died (exit code {process.exitcode})".encode()
        if told == ROUND:
            return 1
        if told == DONE:
            put(self.scratch / name, self.home, name)
        else:
            self.failures[name] = told.removeprefix(FAILED).decode()
        del self.running[pipe]
        pipe.close()
        process.join()
        return 0

    @property
    def busy(self) -> bool:
        """Whether a run is being made."""
        return bool(self.running)

    def end(self) -> None:
        """End what is still being made, of which nothing stays."""
        self.waiting.clear()
        for pipe, (_, process) in self.running.items():
            process.kill()
            process.join()
            pipe.close()
        self.running.clear()


@contextmanager
def comparing(experiments: Mapping[str, Experiment], home: Path, scratch: Path) -> Iterator[Comparisons]:
    """Yield what makes runs beside this process, in folders of `scratch`; what is not made at the end is left out."""
    found = Comparisons({name: by_one_process(e) for name, e in experiments.items()}, home, scratch)
    try:
        yield found
    finally:
        found.end()


def put(scratch: Path, home: Path, name: str) -> None:
    """Put a baseline that was made elsewhere into its place: it is there whole or not at all."""
    final = home / "baselines" / name
    final.parent.mkdir(parents=True, exist_ok=True)
    scratch.rename(final)


def make(pipe: Connection, text: str, folder: str, environment: Mapping[str, str]) -> None:
    """Make a run in this process, and tell of every round and of the end."""
    from server.faults import ClientFailure
    from simulations.engines.launch import launch
    from simulations.engines.process import end_with_parent

    Thread(target=end_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    with suppress(BrokenPipeError):
        try:
            launch(build(json.loads(text)), Path(folder), lambda row: pipe.send_bytes(ROUND))
            pipe.send_bytes(DONE)
        except (ClientFailure, ContractError, UserError, OSError) as error:
            pipe.send_bytes(FAILED + one_line(error).encode())
