"""The folder of a run: hidden beside its place until it is complete, and found again if it was broken off."""

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedrec.errors import UserError

CHECKPOINTS = "checkpoints"  # in the folder of a run that is not complete


@contextmanager
def writing(out: Path, again: bool = False) -> Iterator[Path]:
    """Yield a folder to write a run in: it becomes `out` at the end.

    After an exception nothing is left of it, unless it has a checkpoint: then it can be gone on from with `again`.
    Raises UserError as `reserve` and `reopened` do, and OSError if `out` was taken in the meantime: then the folder
    stays.
    """
    home = reopened(out) if again else reserve(out)
    try:
        yield home
    except BaseException:
        if not any((home / CHECKPOINTS).glob("[0-9]*")):
            shutil.rmtree(home, ignore_errors=True)
        raise
    shutil.rmtree(home / CHECKPOINTS, ignore_errors=True)
    publish(home, out)


def unfinished(out: Path) -> list[Path]:
    """Return the folders with a checkpoint of runs that were to become `out`, the newest last."""
    out = out.absolute()
    above = next((folder for folder in (out, *out.parents) if folder.exists()), out)
    found = [path for path in above.glob(f".{glob.escape(out.name)}.*.partial") if (path / CHECKPOINTS).is_dir()]
    return sorted(found, key=lambda path: (path / CHECKPOINTS).stat().st_mtime)


def reopened(out: Path) -> Path:
    """Return the folder of the run that was to become `out` and was broken off, as one of this process.

    Raises UserError if there is none, or if it is still running.
    """
    found = unfinished(out)
    if not found:
        raise UserError(
            f"resume: must be the --out of a run that was broken off after a checkpoint, found {str(out)!r}"
        )
    *_, pid, _ = found[-1].name.split(".")
    if pid != str(os.getpid()) and alive(int(pid)):
        raise UserError(f"resume: must be a run that has ended, found {str(out)!r} running as process {pid}")
    return found[-1].rename(found[-1].with_name(f".{out.absolute().name}.{os.getpid()}.partial"))


def alive(pid: int) -> bool:
    """Return whether a process is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def reserve(out: Path) -> Path:
    """Return a fresh hidden folder on the disk of `out`, which is left alone until `publish`.

    Raises UserError if `out` exists and is not an empty folder, or cannot be written.
    """
    out = out.absolute()
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            found = f"{out} with content" if out.is_dir() else f"the file {out}"
            raise UserError(f"out: must be a new or an empty folder, found {found}")
        above = next(folder for folder in (out, *out.parents) if folder.exists())
        home = above / f".{out.name}.{os.getpid()}.partial"
        home.mkdir()
    except OSError as error:
        raise UserError(f"out: must be in a folder that can be written, found {out}: {error.strerror}") from None
    return home


def publish(home: Path, out: Path) -> None:
    """Move a complete run from the folder of `reserve` to `out`.

    An empty folder that was there stays itself: it may be somebody's working directory, or a mounted disk.
    """
    out = out.absolute()
    if home.parent == out:
        for path in home.iterdir():
            path.rename(out / path.name)
        home.rmdir()
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        home.rename(out)


def sync_folder(folder: Path) -> None:
    """Put the names of a folder's new files on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def store(path: Path, data: bytes) -> None:
    """Write a file that is on the disk when this returns."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
