"""Run one experiment: `python -m simulations.run --clients 5`."""

import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from fedrec.errors import UserError
from fedrec.experiment import Experiment
from fedrec.folders import CHECKPOINTS, unfinished, writing
from fedrec.records import write_json
from fedrec.sharing import ContractError
from simulations.cli import Command, parse
from simulations.progress import Reporter, reporter


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return 0, 2 for a wrong input, 1 for a failed run, 130 after Ctrl-C."""
    try:
        command = parse(sys.argv[1:] if argv is None else argv)
        return run(command, Console())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: nothing was written", file=sys.stderr)
        return 130


def remember(command: Command, home: Path) -> None:
    """Write what `--resume` must know of a run that makes checkpoints."""
    if command.every and not command.resume:
        (home / CHECKPOINTS).mkdir()
        about = {"experiment": command.experiment.model_dump(mode="json"), "compare": command.compare}
        write_json(home / CHECKPOINTS / "command.json", {**about, "every": command.every})


def continued(out: Path) -> str:
    """Return how to go on with a run that was broken off, if it can be."""
    return f"; go on from its last checkpoint with --resume {out}" if unfinished(out) else ""


def run(command: Command, console: Console) -> int:
    """Check the experiment, run it and its baselines, write the record and the report, and show the closing table."""
    from fedrec.report import write_report
    from server.faults import ClientFailure

    others = [method for method in ("local", "pooled") if command.compare and method != command.experiment.method]
    check_all(command.experiment, others)
    out = command.out or fresh(command.experiment)
    failed = False
    with stopping() as stopped:
        try:
            with writing(out, command.resume) as home:
                remember(command, home)
                with reporter(console, command.quiet) as shown:
                    train(command, home, shown, stopped)
                    for method in others:
                        failed |= not compared(command.experiment, method, home, shown, stopped)
                write_report(home)
        except (ClientFailure, ContractError, OSError) as error:
            print(f"failed: {error}{continued(out)}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"stopped{continued(out) or ': nothing was written'}", file=sys.stderr)
            return 130
        interrupted = stopped()
    close(out, console, command.quiet)
    return 130 if interrupted else int(failed)


def check_all(experiment: Experiment, others: Sequence[str]) -> None:
    """Check an experiment and what it is to be compared with, before any of them is run; raises UserError."""
    from simulations.baselines import baseline
    from simulations.check import check

    for one in (experiment, *(baseline(experiment, method) for method in others)):
        check(one)


def train(command: Command, home: Path, shown: Reporter, stopped: Callable[[], bool]) -> None:
    """Train the experiment with its engine, and measure popularity, into `home`."""
    from simulations.baselines import run_popularity
    from simulations.check import client_count
    from simulations.engines import launch

    e = command.experiment
    shown.phase(f"{e.method}, {client_count(e)} clients, {e.engine}", e.rounds)
    launch(e, home, shown.round, stopped, lambda text: print(text, file=sys.stderr), command.every)
    shutil.rmtree(home / "baselines", ignore_errors=True)  # of a run that was broken off
    run_popularity(e, home / "baselines" / "popularity")


def compared(experiment: Experiment, method: str, home: Path, shown: Reporter, stopped: Callable[[], bool]) -> bool:
    """Train a baseline into `home`; return whether it did not fail.

    A baseline that fails or is stopped leaves nothing, and takes nothing from the run that it is for.
    """
    from server.faults import ClientFailure
    from simulations.baselines import run_baseline

    folder, error = home / "baselines" / method, None
    if not stopped():
        shown.phase(f"baseline {method}", experiment.rounds)
        try:
            run_baseline(experiment, method, folder, shown.round, stopped)
        except (ClientFailure, ContractError, OSError) as raised:
            error = raised
            print(f"failed: baseline {method}: {error}", file=sys.stderr)
    if error or stopped():
        shutil.rmtree(folder, ignore_errors=True)
    return error is None


def fresh(experiment: Experiment) -> Path:
    """Return a folder under runs/ that is not there yet, named after the experiment."""
    base = f"{experiment.dataset}-{experiment.method}-seed{experiment.seed}"
    names = (base, *(f"{base}-{i}" for i in range(2, 1_000_000)))
    return next(path for path in (Path("runs") / name for name in names) if not path.exists())


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed: the first lets the round finish, the second stops."""
    pressed: list[int] = []

    def press(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        if len(pressed) == 2:  # only once: the clean-up must not be stopped
            raise KeyboardInterrupt
        if len(pressed) == 1:
            print("\nstopping after this round; press Ctrl-C again to stop at once", file=sys.stderr)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def close(out: Path, console: Console, quiet: bool) -> None:
    """Show the closing table, what the reader must know beside it, and where the report is."""
    from simulations.closing import notes, table

    if not quiet:
        console.print(table(out))
        for note in notes(out):
            console.print(note, highlight=False, markup=False)
    console.print(f"report: {out / 'report.html'}", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
