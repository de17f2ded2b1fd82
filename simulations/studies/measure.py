"""One run in a process of its own, measured from the start of the process: `python -m simulations.studies.measure`.

It imports what a run needs and nothing else, so that start-up and memory are those of the run.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from simulations.processes import end_with_parent, marked, quiet, started

OURS = "FEDREC_MEASURED"  # in the environment of a measured process, and of all that it starts
RESULT = "measured.json"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class Measured(NamedTuple):
    """What a run took: seconds to the end of the first round, peak megabytes, training rows, and all its seconds."""

    startup: float
    megabytes: float
    rows: int
    seconds: float = float("nan")


def measured(
    experiment: Mapping[str, Any], loop: bool, read: Callable[[Path, Measured], Any], double: bool = False
) -> Any:
    """Run in a fresh process on one thread; return what `read` makes of it. Raises RuntimeError.

    If `double`, the parameters are of float64, in that process and in no other that it starts.
    """
    with TemporaryDirectory() as folder:
        home = Path(folder) / "run"
        home.mkdir()
        job = [json.dumps(dict(experiment), default=str), str(home), str(time.time())]
        command = ["-m", "simulations.studies.measure", *job, *["loop"] * loop, *["double"] * double]
        log = Path(folder) / "log"
        with started(command, log, {**quiet(Path(folder) / "flower"), **ONE_THREAD, OURS: folder}) as process:
            code = process.wait()
        if code:
            words = log.read_text(encoding="utf-8", errors="replace").splitlines()
            raise RuntimeError(words[-1] if words else f"exit code {code}")
        return read(home, Measured(**json.loads((home / RESULT).read_text(encoding="utf-8"))))


def main(argv: Sequence[str]) -> None:
    """Run an experiment into a folder, from a time() on, with its engine or as the loop; write there what it took."""
    end_with_parent()
    text, folder, began, *how = argv
    import torch

    from fedrec.experiment.config import build
    from fedrec.experiment.holdings import clients_data

    torch.set_num_threads(1)
    if "double" in how:
        torch.set_default_dtype(torch.float64)
    experiment, home = build(json.loads(text)), Path(folder)
    rounds: list[float] = []
    peak = 0.0

    def on_round(row: Mapping[str, Any]) -> None:
        nonlocal peak
        rounds.append(time.time() - float(began))
        peak = max(peak, megabytes())

    if "loop" in how:
        from simulations.studies.loop import run_loop

        run_loop(experiment, home, on_round)
    else:
        from simulations.engines import launch

        launch(experiment, home, on_round)
    took, peak = time.time() - float(began), max(peak, megabytes())
    rows = int(clients_data(experiment).row_counts("train").sum())
    (home / RESULT).write_text(json.dumps(Measured(rounds[0], peak, rows, took)._asdict()), encoding="utf-8")


def megabytes() -> float:
    """Return the sum of the peak memory of this process and of all that it started, from Linux's /proc.

    A page that processes share, such as a library's, counts once for each of them; the peaks need not have been at one
    time. Both make it an upper bound. NaN on other systems.
    """
    peaks = []
    for pid in marked(f"{OURS}={os.environ[OURS]}"):
        with suppress(OSError):
            peaks += re.findall(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return sum(map(int, peaks)) / 1024 if peaks else float("nan")


if __name__ == "__main__":
    main(sys.argv[1:])
