"""The text of a file as bytes of UTF-8, whatever it is packed and encoded as, in which one byte parts columns."""

import codecs
import csv
import io
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from fedrec.data.sources.dialect import STAND_IN, Dialect, reader_of
from fedrec.data.types import Ints
from fedrec.errors import UserError
from fedrec.files import PACKED, PEEKED, unpack


class Undecodable(UserError):
    """Bytes that are no text of an encoding."""


class Counted(io.RawIOBase):
    """A stream of chunks that counts the line breaks in them."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks, self.rest, self.breaks, self.last = chunks, memoryview(b""), 0, b"\n"

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer as far as the next chunk does; return how far."""
        while not self.rest:
            chunk = next(self.chunks, None)
            if chunk is None:
                return 0
            self.breaks += chunk.count(b"\n")
            self.last = chunk[-1:] or self.last
            self.rest = memoryview(chunk)
        size = min(len(buffer), len(self.rest))
        buffer[:size] = self.rest[:size]
        self.rest = self.rest[size:]
        return size

    @property
    def lines(self) -> int:
        """The lines of what was read."""
        return self.breaks + (self.last != b"\n")


@contextmanager
def text_of(path: Path, name: str, dialect: Dialect) -> Iterator[Counted]:
    """Yield a file as UTF-8 without a mark at its beginning, `separator` between its columns.

    Raises `Undecodable`, naming line and bytes, for bytes that are no text of the dialect's encoding, and UserError as
    `unpack` does.
    """
    with unpack(path, name) as file:
        yield Counted(parted(decoded(file, name, dialect.encoding), name, dialect.delimiter.encode()))


@contextmanager
def native_text(path: Path, name: str, dialect: Dialect) -> Iterator[tuple[Any, int]]:
    """Yield the text of `text_of` as a file of arrow, and its number of lines.

    Arrow reads ahead in threads of its own, which must not find Python's streams at the end of the process: the text is
    mapped where it is the file itself, else held in memory.
    """
    as_it_is = is_plain(path, dialect)
    held = pa.BufferOutputStream()
    with text_of(path, name, dialect) as file:
        while chunk := file.read(PEEKED):
            if not as_it_is:
                held.write(chunk)
    with pa.memory_map(str(path)) if as_it_is else pa.BufferReader(held.getvalue()) as native:
        yield native, file.lines


def is_plain(path: Path, dialect: Dialect) -> bool:
    """Return whether a file's bytes are the text that `text_of` yields."""
    if path.name.lower().endswith(PACKED) or codecs.lookup(dialect.encoding).name not in ("utf-8", "ascii"):
        return False
    with path.open("rb") as file:
        return separator(dialect) == dialect.delimiter and not file.read(3).startswith(codecs.BOM_UTF8)


def separator(dialect: Dialect) -> str:
    """Return the one character of ASCII that stands between the columns of `text_of`."""
    return dialect.delimiter if len(dialect.delimiter.encode()) == 1 else STAND_IN


def decoded(file: io.BufferedReader, name: str, encoding: str) -> Iterator[bytes]:
    """Yield the content of a file as UTF-8; a block of ASCII as it is."""
    plain = codecs.lookup(encoding).name in ("utf-8", "ascii", "iso8859-1", "cp1252")
    decoder = codecs.getincrementaldecoder("utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding)()
    lines, first, carried = 1, True, False
    while True:
        block = file.read(PEEKED)
        if plain and not first and not carried and block and block.isascii():
            text = block
        else:
            try:
                text = decoder.decode(block, not block).encode()
            except UnicodeDecodeError as error:
                before = error.object[: error.start].decode(encoding, errors="replace")
                bad = error.object[error.start : error.end]
                shown = encoding.upper() if encoding.startswith("utf") else encoding
                line = lines + before.count("\n")
                raise Undecodable(f"{name}, line {line}: must be {shown}, found {bad!r}") from None
            carried = bool(decoder.getstate()[0])
        if b"\0" in text:
            line = lines + text[: text.index(b"\0")].count(b"\n")
            raise UserError(f"{name}, line {line}: must be text, found a NUL byte")
        lines, first = lines + text.count(b"\n"), False
        yield text
        if not block:
            return


def parted(chunks: Iterator[bytes], name: str, delimiter: bytes) -> Iterator[bytes]:
    """Yield the same text with `STAND_IN` for a delimiter of several bytes."""
    if len(delimiter) == 1:
        yield from chunks
        return
    rest, mark = b"", STAND_IN.encode()
    for chunk in chunks:
        if mark in chunk:
            raise UserError(f"{name}: must have no U+001F where a delimiter has several bytes, found one")
        text = (rest + chunk).replace(delimiter, mark)
        kept = next((size for size in range(len(delimiter) - 1, 0, -1) if text.endswith(delimiter[:size])), 0)
        rest = text[len(text) - kept :]
        yield text[: len(text) - kept]
    yield rest


def numbered(file: io.TextIOBase, name: str, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the fields of every row that is not empty."""
    for _ in range(dialect.above):
        file.readline()
    reader, line = reader_of(file, separator(dialect), dialect.quote), 1 + dialect.above
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1 + dialect.above
    except csv.Error as error:
        raise UserError(f"{name}, line {line}: must be a row of a CSV, found {error}") from None


def lines_of(path: Path, name: str, dialect: Dialect, width: int) -> tuple[Ints, list[tuple[int, int]]]:
    """Return the first line of every row that has `width` fields [n], below the header; line and fields of others."""
    good = array("q")
    bad: list[tuple[int, int]] = []
    with text_of(path, name, dialect) as file:
        text = io.TextIOWrapper(io.BufferedReader(file, PEEKED), encoding="utf-8", newline="")
        rows = numbered(text, name, dialect)
        if dialect.header:
            next(rows, None)
        for line, row in rows:
            if len(row) == width:
                good.append(line)
            else:
                bad.append((line, len(row)))
    return np.frombuffer(good, np.int64) if good else np.zeros(0, np.int64), bad
