"""Run one experiment: `python -m simulations.run --clients 5`."""

if __name__ == "__main__":  # before the imports, which take seconds
    from simulations.start import help_at_once, prepare

    prepare()
    help_at_once()

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType

from rich.console import Console

from fedrec.errors import RunFailure, UserError, one_line
from fedrec.experiment.choice import describe
from fedrec.experiment.config import Experiment
from fedrec.experiment.records import json_text
from fedrec.folders import (
    CHECKPOINTS,
    COMMAND,
    held,
    keep,
    make_private,
    remove,
    reopening,
    replace,
    resumable,
    saved,
    writing,
)
from fedrec.sharing import ContractError
from simulations.beside import Comparisons, apart, comparing, cores_of, put, worthwhile
from simulations.cli import Command, parse
from simulations.progress import Reporter, reporter
from simulations.start import ready, status_of
from simulations.tracking import tracking

PARTIAL = ".baseline"  # in the folder of a run: a baseline that is being made
NOTHING = ": nothing was written"

Tell = Callable[[str], None]
Way = Callable[[Path, bool], str]
Launch = Callable[..., None]
Write = Callable[[Path], Mapping[str, Path]]


@dataclasses.dataclass(frozen=True)
class Ended:
    """What became of a run that has its record: its folder, and what is to be said of each baseline that failed."""

    out: Path
    interrupted: bool
    failures: tuple[str, ...]
    said: tuple[str, ...]  # notes on the data, before anything was run


def complain(text: str) -> None:
    """Say what the user should know of a run that goes on."""
    print(text, file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the status, see `status_of`."""
    given = sys.argv[1:] if argv is None else argv
    return status_of(lambda: run(parse(given), Console(markup=False, emoji=False)), f"stopped{NOTHING}")


def run(command: Command, console: Console) -> int:
    """Do what a command asks for, show the closing table, and return the status; raises as `perform` does."""
    if command.estimate:
        from simulations.estimate import estimate, lines

        for line in lines(estimate(fitting(command).experiment, command.compare)):
            console.print(line, highlight=False, soft_wrap=True)
        return 0
    ended = perform(command, console, complain, flags)
    close(ended.out, console, command.quiet, ended.said)
    return 130 if ended.interrupted else int(bool(ended.failures))


def perform(
    command: Command,
    console: Console,
    tell: Tell,
    way: Way,
    write: Write | None = None,
    compare: Callable[[Path], object] = lambda home: None,
) -> Ended:
    """Check the experiment, run it and its baselines, and write the record and the report.

    `tell` gets what the user should know of a run that goes on, `way` says how to go on with one that does not. `write`
    puts data into the folder of the run, and returns the fields that say where they are;
    `compare` adds to the record what the report is to say of another run. Raises UserError before any work,
    RunFailure, and KeyboardInterrupt after a second Ctrl-C: what they say is what `run` prints.
    """
    from fedrec.report.changes import write_changes
    from fedrec.report.page import write_report
    from fedrec.report.price import write_price
    from server.faults import ClientFailure
    from simulations.engines import launch
    from simulations.engines.process import end, idle_workers

    command = command if write else fitting(command)
    others, why = ({}, {}) if write else checked(command)
    out, home = command.out, None
    with stopping(tell) as stopped:
        try:
            with folder(command) as home:
                out = command.out or base(command.experiment).with_name(home.name)
                if write:
                    command = fitting(command.changed(**write(home)))
                    others, why = checked(command)
                said = say(command, out, console, tell)
                with (
                    reporter(console, command.quiet) as shown,
                    tracking(command.experiment, home, shown.round, tell) as on_round,
                    idle_workers() as idle,
                ):
                    engine = partial(launch, on_round=shown.round, stop=stopped, tell=tell, idle=idle)
                    if not command.resume:
                        remember(command, home)
                    with comparing(side_by_side(command.experiment, others, home), home, home / PARTIAL) as made:
                        if not command.trained:
                            spare = (os.cpu_count() or 1) - cores_of(command.experiment)
                            told = made.after(on_round, spare)
                            train(command, home, shown, partial(engine, on_round=told))
                        if made.waiting or made.busy:  # which have processes of their own
                            end(idle)
                            idle.clear()
                        failures = baselines(others, why, home, shown, stopped, tell, engine, made)
                if command.experiment.start:
                    write_changes(command.experiment.start, home)
                compare(home)
                write_price(home)
                write_report(home, complete=False)
                if not command.trained:  # what was stopped can be gone on with if it has what its noise comes from
                    record = json.loads((home / "experiment.json").read_text(encoding="utf-8"))
                    keep(home, record["stopped"] == "interrupted" and not record["privacy"])
        except (ClientFailure, ContractError, OSError) as error:
            raise RunFailure(f"{one_line(error)}{way_on(command, out, home, way)}") from error
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped{way_on(command, out, home, way) or NOTHING}") from None
        return Ended(out, stopped(), failures, said)


def fitting(command: Command) -> Command:
    """Return the command with sums in a subspace where nobody asked for others, and the data are too large for those.

    Where that cannot be, and nobody named the model, it has one by gradients.
    """
    from fedrec.experiment.holdings import clients_data
    from simulations.check import check_sums, told_apart

    if command.by_steps is None and command.in_subspace is None:
        return command
    try:
        check_sums(command.experiment, named=not command.model)
    except UserError as error:
        other = command.in_subspace
        if other and not told_apart(other, clients_data(other)):
            return dataclasses.replace(command, experiment=other, model=f"{describe(other)}, since {error}")
        if other := command.by_steps:
            return dataclasses.replace(command, experiment=other, model=f"{other.model}, since {error}")
    return command


def say(command: Command, out: Path, console: Console, tell: Tell) -> tuple[str, ...]:
    """Say what is to be known before anything is run, and where the run is; return the notes on the data among it."""
    from fedrec.data.assembly import WEIGHTS
    from fedrec.experiment.holdings import dataset
    from fedrec.report.profile_suspicions import SAID
    from simulations.engines.nodes import apart, slow
    from simulations.profile import brief

    if command.model and not command.quiet:
        console.print(f"model: {command.model}", highlight=False, markup=False)
    if command.promised and not command.quiet:
        console.print(f"defaults under a promise: {command.promised}", highlight=False, markup=False)
    for note in (*command.notes, *filter(None, [apart(command.experiment), slow(command.experiment)])):
        tell(f"note: {note}")
    if command.quiet:
        return ()
    notes = tuple(dataset(command.experiment).notes)
    short = [] if command.resume else brief(command.experiment)
    for line in (*short, *(f"data: {one_line(note)}" for note in notes if not note.startswith((SAID, WEIGHTS)))):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"run: {out}", highlight=False, markup=False, soft_wrap=True)
    return notes


def folder(command: Command) -> AbstractContextManager[Path]:
    """Return the context of the folder to write in: a new one, that of the run to go on with, or of a complete one."""
    if command.out is None:
        return writing(base(command.experiment), numbered=True)
    if not command.resume:
        return writing(command.out)
    return held(command.out.absolute()) if command.trained else reopening(command.out)


def base(experiment: Experiment) -> Path:
    """Return the folder under runs/ that is named after the experiment; a number follows where it is taken."""
    return Path("runs") / f"{experiment.dataset}-{experiment.method}-seed{experiment.seed}"


def remember(command: Command, home: Path) -> None:
    """Write what `--resume` must know of a run, at its very beginning."""
    make_private(home / CHECKPOINTS)
    about = {"experiment": command.experiment.model_dump(mode="json"), "compare": command.compare}
    replace(home / CHECKPOINTS / COMMAND, json_text({**about, "every": command.every}).encode())


def way_on(command: Command, out: Path | None, home: Path | None, way: Way) -> str:
    """Return how to go on with a run that did not come to its end, if it can be."""
    if out and command.trained:
        return f"; the baselines that the run lacks are added by {way(out, True)}"
    if out is None or home is None or not resumable(home):
        return ""
    return f"; {'go on from its last checkpoint' if saved(home) else 'begin again'} with {way(out, False)}"


def flags(out: Path, compare: bool) -> str:
    """Return the options that go on with the run in a folder, or give it the baselines that it lacks."""
    return f"--resume {out}{' --compare' * compare}"


def checked(command: Command) -> tuple[dict[str, Experiment], dict[str, str]]:
    """Check what is to be run before any of it is; return the baselines, see `comparisons`. Raises UserError."""
    from simulations.baselines import comparisons
    from simulations.check import check
    from simulations.estimate import check_memory

    check_memory(command.experiment, command.compare)
    check(command.experiment)
    if not command.compare:
        return {}, {}
    others, why = comparisons(command.experiment)
    if command.trained and command.out:
        others = {name: e for name, e in others.items() if not (command.out / "baselines" / name).exists()}
        if not others:
            raise UserError(
                f"option --resume: must be a run that lacks a baseline, found {str(command.out)!r} with all"
            )
    for e in others.values():
        check(e)
    return others, why


def train(command: Command, home: Path, shown: Reporter, launch: Launch) -> None:
    """Train the experiment with its engine, and measure what needs no training beside it, into `home`."""
    from simulations.baselines import beside
    from simulations.check import client_count

    e = command.experiment
    shown.phase(f"{e.method}, {client_count(e)} clients, {e.engine}", e.rounds)
    launch(e, home, every=command.every)
    for name, measured in beside(e).items():
        if not (home / "baselines" / name).exists():
            whole(partial(measured, e), home, name)


def side_by_side(experiment: Experiment, others: Mapping[str, Experiment], home: Path) -> dict[str, Experiment]:
    """Return the baselines that a run lacks, if they are made in processes of their own, beside it or one another."""
    lacking = missing(others, home)
    return lacking if lacking and apart(lacking) and worthwhile(experiment) else {}


def missing(others: Mapping[str, Experiment], home: Path) -> dict[str, Experiment]:
    """Return the baselines that are not there."""
    return {name: e for name, e in others.items() if not (home / "baselines" / name).exists()}


def baselines(
    others: Mapping[str, Experiment],
    why: Mapping[str, str],
    home: Path,
    shown: Reporter,
    stopped: Callable[[], bool],
    tell: Tell,
    launch: Launch,
    made: Comparisons,
) -> tuple[str, ...]:
    """Train the baselines that a run is to have and lacks; return what is to be said of those that failed."""
    for name, text in why.items():
        (home / "baselines" / name).write_text(text, encoding="utf-8")
    cores = os.cpu_count() or 1
    made.go_on(cores)
    if made.busy:
        shown.phase(
            f"baselines {', '.join(missing(others, home))}", sum(others[name].rounds for name in missing(others, home))
        )
    while made.busy and not stopped():
        for _ in range(made.go_on(cores, 1.0)):
            shown.round({})
    failed = dict(made.failures)
    for name, other in missing(others, home).items():
        if stopped():
            break
        if name not in failed:
            shown.phase(f"baseline {name}", other.rounds)
            if text := train_baseline(other, name, home, stopped, launch):
                failed[name] = text
    failures = tuple(f"baseline {name}: {text}" for name, text in failed.items())
    for text in failures:
        tell(f"failed: {text}")
    made.end()
    remove(home / PARTIAL)  # of one that was killed, and is not wanted now
    return failures


def whole(make: Callable[[Path], None], home: Path, name: str, stopped: Callable[[], bool] = lambda: False) -> None:
    """Let a baseline be made beside its place, and put it there unless stopped: it is there whole or not at all."""
    scratch = home / PARTIAL / name
    remove(scratch)
    try:
        make(scratch)
        if not stopped():
            put(scratch, home, name)
    finally:
        remove(scratch)
        with suppress(OSError):
            (home / PARTIAL).rmdir()


def train_baseline(other: Experiment, name: str, home: Path, stopped: Callable[[], bool], launch: Launch) -> str:
    """Train a baseline into `home` whole or not at all; return why it failed, or an empty text."""
    from server.faults import ClientFailure

    try:
        whole(lambda part: launch(other, part), home, name, stopped)
    except (ClientFailure, ContractError, OSError) as error:
        return one_line(error)
    return ""


@contextmanager
def stopping(tell: Tell = complain) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed: the first lets the round finish, the second stops."""
    pressed: list[int] = []
    if current_thread() is not main_thread():  # which Ctrl-C does not reach
        yield lambda: False
        return

    def press(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        if len(pressed) == 2:  # only once: the clean-up must not be stopped
            raise KeyboardInterrupt
        if len(pressed) == 1:
            tell("\nstopping after this round; press Ctrl-C again to stop at once")

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def close(out: Path, console: Console, quiet: bool, said: Collection[str] = ()) -> None:
    """Show the closing tables, what the reader must know beside it and was not said, and where the report is."""
    from simulations.closing import answers, constraints, notes, several, table

    if not quiet:
        console.print(table(out))
        for answer in answers(out):
            console.print(answer, highlight=False, markup=False)
        for part in (constraints(out), several(out)):
            if part is not None:
                console.print(part)
        for note in notes(out, said):
            console.print(note, highlight=False, markup=False)
    console.print(f"report: {out / 'report.html'}", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    ready()
    sys.exit(main())
