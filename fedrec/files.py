"""Input files: regular ones alone, and what is packed is unpacked up to a stated size."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import stat
import tarfile
import tomllib
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fedrec.errors import UserError

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
PEEKED = 2**20  # bytes that a reader may see ahead
# Ends of the names of what is packed, the longer ones first.
PACKED = (".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".tar", ".zip", ".zst", ".gz", ".bz2", ".xz")
# What a damaged archive raises, beside OSError.
DAMAGED = (EOFError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError)


def regular(path: Path, thing: str) -> Path:
    """Return `path` if it is a regular file, which alone ends and never lets its reader wait; raises UserError."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{thing}: must be a readable file, found {str(path)[:200]!r} ({reason})") from None
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in KINDS if is_kind(mode)), "another thing")
        raise UserError(f"{thing}: must be a regular file, found {kind} ({path})")
    return path


def named_values(path: Path, thing: str, else_: str = "") -> dict[str, Any]:
    """Return the named values of a JSON or TOML file; raises UserError, which ends with `else_`."""
    toml = path.suffix == ".toml"
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = tomllib.loads(text) if toml else json.loads(text)
    except OSError as error:
        raise UserError(f"{thing}: {path} must be a readable file ({error.strerror}){else_}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{thing}: {path} must be {'TOML' if toml else 'JSON'} in UTF-8 ({error}){else_}") from None
    if not isinstance(content, dict):
        raise UserError(f"{thing}: {path} must hold named values, found {type(content).__name__}{else_}")
    return content


def memory() -> int:
    """Return the bytes of memory that this process may have: the machine's, or less in a control group."""
    sizes = [2**33]  # where the system does not tell
    if hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = Path(name)
        if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()).isdecimal():
            sizes.append(int(text))
    return min(sizes)


def largest() -> int:
    """Return the bytes that an input file may have, unpacked: a quarter of `memory`, since a table of it takes more."""
    return memory() // 4


def sha256_of(path: Path | None) -> str:
    """Return the SHA-256 of a file in hexadecimal digits; "" for a folder, or where there is none."""
    if path is None or not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def unpack(path: Path, thing: str) -> Iterator[io.BufferedReader]:
    """Yield the bytes of a regular file; those packed as .gz, .bz2, .xz, .zst, or alone in a .zip or .tar, unpacked.

    Raises UserError for what is no regular file, an archive of several files, or more than `largest` bytes; while they
    are read, OSError and `DAMAGED` for a damaged one.
    """
    regular(path, thing)
    with path.open("rb") as file:
        yield io.BufferedReader(_Bounded(_open(path, file, thing), thing, largest()), PEEKED)


def _open(path: Path, file: IO[bytes], thing: str) -> IO[bytes]:
    """Return the bytes that are in an open file, by the end of its name."""
    name = path.name.lower()
    if name.endswith((".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")):
        archive = tarfile.open(fileobj=file)  # noqa: SIM115 - closed with the file
        inside = _only([member for member in archive if member.isfile()], thing)
        return archive.extractfile(inside) or io.BytesIO()
    if name.endswith(".zip"):
        packed = zipfile.ZipFile(file)
        return packed.open(_only([member for member in packed.infolist() if not member.is_dir()], thing))
    if name.endswith(".zst"):
        import pyarrow as pa  # type: ignore[import-untyped]

        reader: IO[bytes] = pa.CompressedInputStream(pa.PythonFile(file), "zstd")
        return reader
    if name.endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=file))
    if name.endswith(".bz2"):
        return bz2.BZ2File(file)
    return lzma.LZMAFile(file) if name.endswith(".xz") else file


def _only(members: list[Any], thing: str) -> Any:
    names = [getattr(member, "filename", None) or member.name for member in members]
    files = [one for one, name in zip(members, names, strict=True) if not re.search(r"(^|/)(\.|__MACOSX/)", name)]
    if len(files) != 1:
        raise UserError(f"{thing}: must hold one file, found {len(files)} in the archive")
    return files[0]


class _Bounded(io.RawIOBase):
    """A stream that refuses to give more than so many bytes."""

    def __init__(self, source: IO[bytes], thing: str, limit: int) -> None:
        self.source, self.thing, self.limit, self.given = source, thing, limit, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self.source.read(len(buffer))
        except DAMAGED as error:
            raise OSError(" ".join(str(error).split()) or type(error).__name__) from None
        self.given += len(data)
        if self.given > self.limit:
            raise UserError(
                f"{self.thing}: must have at most {self.limit} bytes unpacked, a quarter of the memory, found more"
            )
        buffer[: len(data)] = data
        return len(data)
