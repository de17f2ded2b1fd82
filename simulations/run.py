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
from fedrec.records import publish, reserve
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


def run(command: Command, console: Console) -> int:
    """Check the experiment, run it and its baselines, write the record and the report, and show the closing table."""
    from server.strategy import ClientFailure
    from simulations.check import check, warnings

    check(command.experiment)
    out = command.out or fresh(command.experiment)
    home = reserve(out)
    try:
        with stopping() as stopped, reporter(console, command.quiet) as shown:
            train(command, home, shown, stopped)
        from fedrec.report import write_report

        write_report(home)
        publish(home, out)
    except (ClientFailure, ContractError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(home, ignore_errors=True)
    close(command, out, console, warnings(command.experiment))
    return 130 if stopped() else 0


def train(command: Command, home: Path, shown: Reporter, stopped: Callable[[], bool]) -> None:
    """Train the experiment with its engine, then what it is compared with, into `home`."""
    from simulations.apps import apps_for
    from simulations.baselines import run_baseline, run_popularity
    from simulations.check import client_count, gpu_count
    from simulations.engines import run_inline, run_ray

    e, clients = command.experiment, client_count(command.experiment)
    shown.phase(f"{e.method}, {clients} clients, {e.engine}", e.rounds)
    server, client = apps_for(e, home, shown.round, stopped)
    if e.engine == "ray":
        run_ray(server, client, clients, gpu_count(e))
    else:
        run_inline(server, client, clients)
    run_popularity(e, home / "baselines" / "popularity")
    for method in ("local", "pooled") if command.compare and not stopped() else ():
        if method != e.method:
            shown.phase(f"baseline {method}", e.rounds)
            run_baseline(e, method, home / "baselines" / method, shown.round, stopped)


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
        if len(pressed) > 1:
            raise KeyboardInterrupt
        print("\nstopping after this round; press Ctrl-C again to stop at once", file=sys.stderr)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def close(command: Command, out: Path, console: Console, notes: Sequence[str]) -> None:
    """Show the closing table and where the report is."""
    from simulations.closing import table

    if not command.quiet:
        console.print(table(out))
        for note in notes:
            console.print(f"note: {note}", highlight=False, markup=False)
    console.print(f"report: {out / 'report.html'}", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
