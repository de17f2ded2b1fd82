"""Runs that are killed at any moment and checkpoints that are damaged anywhere: every run ends to the bit, or says why.

The slow lane has 60 kills and 42 damaged files over ten methods and three engines.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from fedrec.folders import CHECKPOINTS, COMMAND, LOCK, resumable, unfinished
from fedrec.rng import generator
from server.strategy import Coordinator
from simulations.run import main
from tests.helpers import same

ENGINES = ["inline", "batched", "process"]
SMALL = "--market.users 20 --market.items 60 --market.impressions 10 --clients 3 --rounds 4 --dim 4 --quiet"
METHODS = {
    "fedper": "",
    "fedrep": "--patience 2",
    "admm": "--coupling.rho 0.001 --coupling.duals --coupling.balance --participation 0.7 --dropout 0.2 --quorum 0",
    "mr-mtl": "--eval-every 2",
    "fedyogi": "--task rank,click",
    "pcgrad": "",
    "scaffold": "--optimiser sgd --lr 1",
    "ditto": "",
    "no-harm": "",
    "median": "--compare",
}
PRELOADED = ("run", "apps", "baselines", "closing", "engines.hosts", "engines.batched", "engines.process")
WAIT = 300.0  # seconds after which a run is taken to hang


def arguments(method: str, engine: str) -> list[str]:
    """Return the options of a small run; most have no baselines."""
    given = [*SMALL.split(), "--method", method, "--engine", engine, *METHODS[method].split()]
    return [
        *given,
        *(["--workers", "1"] if engine == "process" else []),
        *(["--no-compare"] * ("--compare" not in given)),
    ]


def child(argv: Sequence[str], words: Path) -> None:
    """Be the command, and write what it says on its standard error into a file."""
    descriptor = os.open(words, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 2)
    os.dup2(descriptor, 1)
    sys.exit(main(argv))


class Commands:
    """Runs commands in processes of their own, from one that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self.context, self.words = get_context("forkserver"), folder / "words"
        self.context.set_forkserver_preload([f"simulations.{name}" for name in PRELOADED] + ["fedrec.report"])
        self.wholes: dict[tuple[str, str], tuple[Path, float]] = {}

    def run(self, argv: Sequence[str], seconds: float = WAIT) -> int:
        """Run a command for so long at most, and return its status, -9 if it was killed then."""
        process = self.context.Process(target=child, args=(argv, self.words))
        process.start()
        process.join(seconds)
        if process.is_alive():
            assert seconds < WAIT, f"hangs: {argv}"
            process.kill()
        process.join()
        assert process.exitcode is not None
        return process.exitcode

    def whole(self, method: str, engine: str) -> tuple[Path, float]:
        """Return an uninterrupted run, and how long it took."""
        if (method, engine) not in self.wholes:
            out, began = self.words.with_name(f"whole-{method}"), time.monotonic()
            assert self.run([*arguments(method, engine), "--out", str(out)]) == 0, self.words.read_text()
            self.wholes[method, engine] = out, time.monotonic() - began
        return self.wholes[method, engine]


def killed(commands: Commands, argv: Sequence[str], out: Path, moments: Sequence[float]) -> int:
    """Run a command that is killed after so many seconds, and gone on with, again and again, and then to its end.

    Return the number of kills. Where nothing is there to go on with, that is said in one line.
    """
    command, kills = [*argv, "--out", str(out)], 0
    for seconds in [*moments, WAIT]:
        status = commands.run(command, seconds)
        words = commands.words.read_text() if commands.words.exists() else ""
        if status == -signal.SIGKILL:
            kills += 1
        elif status == 2 and not (out / CHECKPOINTS / COMMAND).exists():  # killed before it had said what it is
            assert words.startswith("error: option --resume: ") and words.count("\n") == 1, words
            shutil.rmtree(out, ignore_errors=True)
            command = [*argv, "--out", str(out)]
            continue
        else:
            assert status == 0, words
            break
        if resumable(out):
            command = ["--resume", str(out), "--quiet"]
        elif (out / "report.html").exists():  # it was complete when it was killed, but perhaps for the last removals
            shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
            (out / LOCK).unlink(missing_ok=True)
            break
    return kills


@pytest.mark.soak
@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_is_killed_at_any_moment_ends_to_the_bit(
    engine: str, tries: Callable[[int, int], int], tmp_path: Path
) -> None:
    wanted, kills, commands = tries(int(engine == "inline"), 20), 0, Commands(tmp_path)
    rng = generator(0, "kill", engine)
    methods = list(METHODS)
    for number in range(10 * wanted):
        if kills >= wanted:
            return
        method = methods[(number + int(rng.integers(2))) % len(methods)]
        whole, took = commands.whole(method, engine)
        out = tmp_path / f"{number}-{method}"
        kills += killed(commands, arguments(method, engine), out, (took * rng.uniform(0, 1, 2)).tolist())
        if not (out / "report.html").exists():  # each of its lives was too short
            assert commands.run([*arguments(method, engine), "--out", str(out)]) == 0
        assert not unfinished(out) and not (out / CHECKPOINTS).exists()
        same(whole, out)
        shutil.rmtree(out)
    pytest.fail(f"only {kills} of the runs were alive when they were to be killed")


class Killed(BaseException):
    """Ends a run at once, as if the process had been killed."""


def broken(argv: Sequence[str], out: Path, after: int) -> None:
    """Begin a run that is killed after the checkpoint of a round."""
    save = Coordinator.save

    def saving(self: Coordinator, number: int, last: bool) -> None:
        save(self, number, last)
        if number == after:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Coordinator, "save", saving)
        with pytest.raises(Killed):
            main([*argv, "--out", str(out)])


def damage(path: Path, rng: np.random.Generator) -> str:
    """Cut, flip, empty or remove a file anywhere; return what was done."""
    data = path.read_bytes()
    kind, place = ("cut", "flipped", "empty", "gone")[int(rng.integers(4))], int(rng.integers(len(data)))
    if kind == "gone":
        path.unlink()
    else:
        flipped = data[:place] + bytes([data[place] ^ (1 << int(rng.integers(8)))]) + data[place + 1 :]
        path.write_bytes({"cut": data[:place], "flipped": flipped, "empty": b""}[kind])
    return f"{path.parent.name}/{path.name} {kind}"


@pytest.mark.soak
@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_whose_checkpoints_are_damaged_anywhere_ends_to_the_bit_or_is_refused_in_one_line(
    engine: str, tries: Callable[[int, int], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, saved, wanted = generator(0, "damage", engine), 0, tries(3 * (engine == "inline"), 14)
    for number in range(wanted):
        method = list(METHODS)[number % len(METHODS)]
        whole, out = tmp_path / f"whole-{method}", tmp_path / f"{number}-{method}"
        if not whole.exists():
            assert main([*arguments(method, engine), "--out", str(whole)]) == 0
        after = int(rng.integers(1, 4))
        broken(arguments(method, engine), out, after)
        files = sorted(path for path in (out / CHECKPOINTS).rglob("*") if path.is_file())
        place = files[int(rng.integers(len(files)))]
        what = damage(place, rng)
        capsys.readouterr()
        status, words = main(["--resume", str(out), "--quiet"]), capsys.readouterr().err
        if status == 0:
            same(whole, out)
            saved += 1
        else:
            assert status == 2 and words.startswith("error: ") and words.count("\n") == 1, (what, words)
            # With another whole checkpoint it must go on, if the command and the rows of all rounds are there.
            lost = place.name in (COMMAND, "record.json", "clients.parquet", "manifest.json") or after == 1
            assert lost or place.parent.name != f"{after:06d}", (what, words)
            assert unfinished(out)
        shutil.rmtree(out)
    assert saved >= wanted // 3
