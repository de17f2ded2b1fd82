"""Run one experiment: `python -m simulations.run --clients 5`."""

if __name__ == "__main__":  # before the imports, which take seconds
    from simulations.start import prepare

    prepare()

import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from fedrec.errors import UserError, one_line
from fedrec.experiment import Experiment
from fedrec.folders import CHECKPOINTS, unfinished, writing
from fedrec.records import NOT_SINGLE, write_json
from fedrec.sharing import ContractError
from simulations.cli import Command, parse
from simulations.progress import Reporter, reporter
from simulations.start import ready


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return 0, 2 for a wrong input, 1 for a failed run, 130 after Ctrl-C."""
    try:
        command = parse(sys.argv[1:] if argv is None else argv)
        return run(command, Console(markup=False, emoji=False))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except MemoryError:
        print("failed: the experiment needs more memory than there is", file=sys.stderr)
        return 1
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

    others, why = checked(command)
    out = command.out or fresh(command.experiment)
    failed = False
    with stopping() as stopped:
        try:
            with writing(out, command.resume) as home:
                remember(command, home)
                with reporter(console, command.quiet) as shown:
                    train(command, home, shown, stopped)
                    if why:
                        (home / "baselines" / NOT_SINGLE).write_text(why, encoding="utf-8")
                    for name, other in others.items():
                        failed |= not compared(other, name, home, shown, stopped)
                write_report(home)
        except (ClientFailure, ContractError, OSError) as error:
            print(f"failed: {one_line(error)}{continued(out)}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"stopped{continued(out) or ': nothing was written'}", file=sys.stderr)
            return 130
        interrupted = stopped()
    close(out, console, command.quiet)
    return 130 if interrupted else int(failed)


def checked(command: Command) -> tuple[dict[str, Experiment], str]:
    """Check what is to be run before any of it is; return the baselines, see `comparisons`. Raises UserError."""
    from simulations.baselines import comparisons
    from simulations.check import check

    check(command.experiment)
    if not command.compare:
        return {}, ""
    others, why = comparisons(command.experiment)
    for one in others.values():
        check(one)
    return others, why


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


def compared(other: Experiment, name: str, home: Path, shown: Reporter, stopped: Callable[[], bool]) -> bool:
    """Train a baseline into `home`; return whether it did not fail.

    A baseline that fails or is stopped leaves nothing, and takes nothing from the run that it is for.
    """
    from server.faults import ClientFailure
    from simulations.baselines import run_baseline

    folder, error = home / "baselines" / name, None
    if not stopped():
        shown.phase(f"baseline {name}", other.rounds)
        try:
            run_baseline(other, folder, shown.round, stopped)
        except (ClientFailure, ContractError, OSError) as raised:
            error = raised
            print(f"failed: baseline {name}: {one_line(error)}", file=sys.stderr)
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
    """Show the closing tables, what the reader must know beside it, and where the report is."""
    from simulations.closing import answers, notes, several, table

    if not quiet:
        console.print(table(out))
        for answer in answers(out):
            console.print(answer, highlight=False, markup=False)
        if (tasks := several(out)) is not None:
            console.print(tasks)
        for note in notes(out):
            console.print(note, highlight=False, markup=False)
    console.print(f"report: {out / 'report.html'}", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    ready()
    sys.exit(main())
