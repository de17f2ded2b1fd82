"""Parsed columns kept in the user's cache, so that another process maps them rather than parses the file again.

A file of the cache is found by what its content is made from: the SHA-256 of the file's content, which cannot stay the
same when the file changes, all that says how it is read, and the code that reads it. It is an Arrow IPC file with its
own SHA-256 behind it.
"""

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import platformdirs
import pyarrow as pa  # type: ignore[import-untyped]

from fedrec.data.sources.file import Opened, Parsed, Settings, parse
from fedrec.data.sources.loaded import TEXT
from fedrec.data.sources.values import combined
from fedrec.files import sha256_of
from fedrec.folders import create_private, make_private

SMALL = 2**20  # bytes of a file that is parsed each time
KEPT = 8  # files in the cache; the ones that were not used for the longest time go
DIGEST = 32  # bytes behind the columns
LINES, STOOD = "lines", "text:"  # columns beside those of the file, which begin with "column:"


def parse_once(opened: Opened, kinds: Mapping[str, str], settings: Settings) -> Parsed:
    """Return what `parse` does, of the cache if it is there and sound; a file that is not small is kept there."""
    if opened.path.stat().st_size < SMALL:
        return parse(opened, kinds, settings)
    key = key_of(opened, kinds, settings)
    path = folder() / f"{key}.arrow"
    found = read_cache(path, key, kinds)
    if found is None:
        before = opened.path.stat()
        found = parse(opened, kinds, settings)
        after = opened.path.stat()
        with suppress(OSError):
            if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
                write_cache(path, key, found)
                trim(path.parent)
    return found


def folder() -> Path:
    """Return where parsed columns are kept."""
    return Path(platformdirs.user_cache_dir("fedrec")) / "tables"


def key_of(opened: Opened, kinds: Mapping[str, str], settings: Settings) -> str:
    """Return the digest of all that parsed columns depend on."""
    what = [code(), pa.__version__, sha256_of(opened.path), opened.name, opened.form, list(opened.columns)]
    what += [sorted(opened.lists), repr(opened.dialect), repr(settings), dict(kinds)]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


@functools.cache
def code() -> str:
    """Return the digest of the modules beside this one."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def write_cache(path: Path, key: str, parsed: Parsed) -> None:
    """Write a file of the cache, whole or not at all, for its owner alone; raises OSError."""
    columns = {f"column:{name}": column for name, column in parsed.columns.items()}
    columns |= {STOOD + name: column for name, column in parsed.text.items()}
    if parsed.lines is not None:
        columns[LINES] = parsed.lines
    arrays = {name: combined(column) for name, column in columns.items()}
    about = json.dumps({"key": key, "said": parsed.said})
    fields = [pa.field(name, array.type) for name, array in arrays.items()]
    batch = pa.record_batch(list(arrays.values()), pa.schema(fields, {"fedrec": about}))
    make_private(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with create_private(partial) as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        with partial.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        with partial.open("ab") as file:
            file.write(digest)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_cache(path: Path, key: str, kinds: Mapping[str, str]) -> Parsed | None:
    """Return what a file of the cache holds, mapped; None where there is none, or it is not what was written."""
    try:
        if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
            return None
        with pa.memory_map(str(path)) as file:
            content = file.read_buffer()
        body, digest = content.slice(0, content.size - DIGEST), content.slice(content.size - DIGEST)
        if hashlib.sha256(memoryview(body)).digest() != digest.to_pybytes():
            return None
        table = pa.ipc.open_file(pa.BufferReader(body)).get_batch(0)
        about = json.loads(table.schema.metadata[b"fedrec"])
        if about["key"] != key:
            return None
        os.utime(path)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None
    columns, text, lines = {}, {}, None
    for name, array in zip(table.schema.names, table.columns, strict=True):
        if name == LINES:
            lines = array.to_numpy()
        elif name.startswith(STOOD):
            text[name.removeprefix(STOOD)] = array
        else:
            name = name.removeprefix("column:")
            columns[name] = array if kinds[name] == TEXT else array.to_numpy()
    return Parsed(columns, lines, text, tuple(about["said"]))


def trim(where: Path) -> None:
    """Remove the files of the cache that were not used for the longest time, but for so many that are kept."""
    files = sorted(where.glob("*.arrow"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files[KEPT:]:
        path.unlink(missing_ok=True)
