"""The folder of a run: claimed when the run begins, marked until it is complete, and never moved.

A lock in it, which the system lets go however a process ends, tells whether the run is alive. What is private is
created for its owner alone.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from fedrec.errors import UserError

CHECKPOINTS = "checkpoints"  # in the folder of a run: what is needed to go on with it
COMMAND = "command.json"  # among them: what was asked for
UNFINISHED = "unfinished"  # in the folder of a run that is not complete
ENDED = "ended"  # among the checkpoints of a run that is complete, and yet can be gone on from
LOCK = ".lock"
AS_IT_IS = int(getattr(os, "O_BINARY", 0))  # Windows would change line ends
MARK = "This run is not complete: it is being written, or was broken off. See --resume of simulations.run.\n"


@contextmanager
def writing(out: Path, numbered: bool = False) -> Iterator[Path]:
    """Yield the folder to write a run in, claimed for this process: `out`, or, `numbered`, the first free of `numbers`.

    It is complete at the end. After an exception nothing is left of it, unless it has a checkpoint: then it stays
    marked, and `reopening` goes on with it. Raises UserError as `claim` does.
    """
    home, folders = claim_next(out) if numbered else claim(out)
    with held(home):
        try:
            yield home
        except BaseException:
            if not saved(home):
                clear(home, folders)
            raise
        complete(home)


@contextmanager
def reopening(out: Path) -> Iterator[Path]:
    """Yield the folder of a run that was broken off or ended early, to go on with it; an exception takes nothing.

    After a UserError, which comes before any work, it is as it was. Raises one if a process is at the run, or if it has
    been completed in the meantime.
    """
    home = out.absolute()
    with held(home):
        if not resumable(home):
            raise UserError(f"resume: must be a run that was broken off, found {str(out)!r} complete")
        ended = not unfinished(home)
        mark(home)
        try:
            yield home
        except UserError:
            if ended:
                complete(home)
            raise
        complete(home)


@contextmanager
def held(home: Path) -> Iterator[Path]:
    """Hold the lock of a run's folder, so that nobody else writes in it; raises UserError if somebody does."""
    lock = FileLock(home / LOCK, mode=0o600)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(f"resume: must be a run that has ended, found {str(home)!r} still running") from None
    try:
        yield home
    finally:
        with suppress(OSError):  # where a file that is open cannot be removed, it stays
            (home / LOCK).unlink()
        lock.release()


def numbers(out: Path) -> Iterator[Path]:
    """Yield NAME, NAME-2, NAME-3 ... ."""
    yield out
    yield from (out.with_name(f"{out.name}-{number}") for number in count(2))


def claim_next(out: Path) -> tuple[Path, list[Path]]:
    """Claim the first of the `numbers` that is not there yet, see `claim`."""
    for path in numbers(out):
        if not path.exists():
            with suppress(Taken):  # by another process, just now
                return claim(path)
    raise AssertionError("numbers end")


class Taken(UserError):
    """A folder that cannot be claimed, since it has content."""


def claim(out: Path) -> tuple[Path, list[Path]]:
    """Make the folder of a run, which nobody else can claim then; return it, absolute, and the folders that were made.

    An empty one that is there is taken as it is: it may be somebody's working directory, or a mounted disk. Raises
    UserError if it has content, or cannot be written.
    """
    out = out.absolute()
    try:
        folders = [path for path in (out, *out.parents) if not path.exists()]
        if out.exists() and not out.is_dir():
            raise UserError(f"out: must be a new or an empty folder, found the file {out}")
        out.mkdir(parents=True, exist_ok=True)
        if unfinished(out):
            raise Taken(
                f"out: must be a new or an empty folder, found {out} with a run that is not complete{hint(out)}"
            )
        if any(path.name != LOCK for path in out.iterdir()):
            raise Taken(f"out: must be a new or an empty folder, found {out} with content")
        with (out / UNFINISHED).open("x", encoding="utf-8") as file:  # who makes it has the folder
            file.write(MARK)
    except FileExistsError:
        raise Taken(f"out: must be a new or an empty folder, found {out} with content") from None
    except OSError as error:
        raise UserError(f"out: must be in a folder that can be written, found {out}: {error.strerror}") from None
    return out, folders


def hint(out: Path) -> str:
    """Return how to go on with a run that is not complete, if that can be told."""
    known = (out / CHECKPOINTS / COMMAND).exists()
    return f"; go on with it by --resume {out}" if known else "; remove it to begin again"


def mark(home: Path) -> None:
    """Mark a run as not complete."""
    (home / UNFINISHED).write_text(MARK, encoding="utf-8")


def complete(home: Path) -> None:
    """Take the mark from a run that is complete, and its checkpoints unless it ended early; the order is kill-safe."""
    (home / UNFINISHED).unlink(missing_ok=True)
    if not (home / CHECKPOINTS / ENDED).exists():
        remove(home / CHECKPOINTS)


def keep(home: Path, early: bool) -> None:
    """Let a run that is complete keep its checkpoints if it ended early: it can be gone on from."""
    ended = home / CHECKPOINTS / ENDED
    if not early:
        ended.unlink(missing_ok=True)
    elif saved(home):
        ended.touch(mode=0o600)


def saved(home: Path) -> bool:
    """Return whether a run has a checkpoint."""
    return any((home / CHECKPOINTS).glob("[0-9]*"))


def unfinished(home: Path) -> bool:
    """Return whether a folder is that of a run that is not complete: being written, or broken off."""
    return (home / UNFINISHED).exists()


def refuse_unfinished(home: Path) -> None:
    """Raise UserError for the folder of a run that is not complete, or of a baseline of one: nothing in it counts."""
    for folder in (home, *(path.parent for path in home.parents if path.name == "baselines")):
        if unfinished(folder):
            raise UserError(f"run: must be complete, found {folder} unfinished: still running, or broken off")


def resumable(home: Path) -> bool:
    """Return whether a run was broken off, or ended early, and can be gone on from."""
    return unfinished(home) or (home / CHECKPOINTS / ENDED).exists()


def clear(home: Path, folders: Iterable[Path]) -> None:
    """Remove all that is in a folder, and of `folders`, the lowest first, those that are empty then."""
    for path in home.iterdir():
        remove(path)
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, as far as that can be; one that is not there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def vacant(out: Path) -> None:
    """Raise UserError, as `claim` does, unless a folder could be claimed; nothing is left of the trial."""
    clear(*claim(out))


def sync_folder(folder: Path) -> None:
    """Put the names of a folder's new files on the disk, where the system has a way to."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def store(path: Path, data: bytes) -> None:
    """Write a file for its owner alone, that is on the disk when this returns."""
    with create_private(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_private(path: Path, data: bytes | str) -> None:
    """Write a file, in a folder that is made if need be, that its owner alone may read; text as UTF-8."""
    make_private(path.parent)
    with create_private(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def once(path: Path, data: bytes) -> bytes:
    """Return the content of a file for its owner alone, which the first call of all processes writes, whole."""
    if not path.exists():
        temp = path.with_name(f".{path.name}.{os.getpid()}")
        store(temp, data)
        with suppress(FileExistsError):  # another process was first
            os.link(temp, path)
        temp.unlink()
    return path.read_bytes()


def create_private(path: Path) -> BinaryIO:
    """Open a file to write, which is made for its owner alone."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | AS_IT_IS, 0o600), "wb")


def open_private(path: Path) -> BinaryIO:
    """Open a file to read and to add to; one that is not there is made for its owner alone."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | AS_IT_IS, 0o600), "ab+")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep every other process that asks for the lock of a file from it; the lock stays beside the file."""
    with FileLock(path.with_name(f".{path.name}.lock"), mode=0o600):
        yield


def make_private(folder: Path) -> None:
    """Make a folder that its owner alone may enter; one that is there stays as it is."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)


def replace(path: Path, data: bytes) -> None:
    """Write a file, for its owner alone, that is there whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    store(partial, data)
    partial.replace(path)
