"""Which files a text names: a file, a folder, a glob, or a list with one of them for each platform."""

import hashlib
import re
from collections.abc import Sequence
from glob import has_magic
from pathlib import Path
from typing import NamedTuple

from fedrec.components import per_client
from fedrec.data.checks import NAMES, showable
from fedrec.errors import UserError
from fedrec.files import PACKED, regular, sha256_of

NAMED = re.compile(r"[^/\\=;]+=.+")  # one place of a list: PLATFORM=PATH
TABLES = (".csv", ".tsv", ".txt", ".dat", ".data", ".json", ".jsonl", ".ndjson", ".parquet", ".pq")
FORMS = (*TABLES, ".inter", ".item", ".user")  # ends of the names of files that a folder is taken for


class Place(NamedTuple):
    """The files of one platform, or ("") of a table in parts, in the order of their names."""

    platform: str
    files: tuple[Path, ...]
    said: tuple[str, ...] = ()  # what of a folder is not read


def places(text: Path | str, by_file: bool = False) -> tuple[Place, ...]:
    """Return the places that a text names; `by_file`: every file is a platform, called as the file is.

    A list is `films=films.csv;shop=exports/shop.jsonl;books=books/`. Raises UserError for files that are not there, and
    for a platform named twice.
    """
    parts = listed(text)
    if parts:
        if by_file:
            raise UserError("reading.platforms: must be column where every platform's files are named, found files")
        names = [name for name, _ in parts]
        for name in names:
            if not showable(name) or names.count(name) > 1:
                rule = NAMES if not showable(name) else "every platform must be named once"
                raise UserError(f"data-dir: {rule}, found {name!r}")
        return tuple(Place(name, *find_files(Path(path), name)) for name, path in parts)
    files, said = find_files(Path(text), "data-dir")
    if not by_file:
        return (Place("", files, said),)
    by_name: dict[str, Path] = {}
    for path in files:
        if stem(path) in by_name:
            raise UserError(f"reading.platforms: files must have names of their own, found {stem(path)!r} twice")
        by_name[stem(path)] = path
    return tuple(Place(name, (path,), said if name == next(iter(by_name)) else ()) for name, path in by_name.items())


def listed(text: Path | str) -> list[tuple[str, str]]:
    """Return the platforms and paths of a list; none if the text is no list, or there is such a file."""
    parts = [part.strip() for part in str(text).split(";") if part.strip()]
    if not parts or not all(NAMED.fullmatch(part) for part in parts) or exists(Path(text)):
        return []
    pairs = [part.partition("=") for part in parts]
    return [(name.strip(), path.strip()) for name, _, path in pairs]


def find_files(path: Path, thing: str) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Return the files of a file, folder or glob, by name, and a word on what of a folder is left out."""
    if has_magic(str(path)) and not exists(path):
        root = Path(path.anchor or ".")
        matched = sorted(one for one in root.glob(str(path.relative_to(path.anchor))) if one.is_file())
        if not matched:
            raise UserError(f"{thing}: must match a file, found none for {path}")
        return tuple(matched), ()
    if not path.is_dir():
        return (regular(path, path.name or thing),), ()
    inside = sorted(one for one in path.iterdir() if one.is_file() and not one.name.startswith((".", "_")))
    files = [one for one in inside if stem(one) != one.name] or inside
    if not files:
        raise UserError(f"{thing}: must be a file, or a folder that holds one, found none in {path}")
    rest = [one.name for one in inside if one not in files]
    return tuple(files), (f"{path.name}: not read: {', '.join(rest)}",) * bool(rest)


def stem(path: Path) -> str:
    """Return the name of a file without the ends that say its form; the whole name where none does."""
    name = path.name
    for ends in (PACKED, FORMS):
        name = next((name.removesuffix(end) for end in ends if name.lower().endswith(end)), name)
    return name


def exists(path: Path) -> bool:
    """Return whether there is such a file or folder; no path is too long, or odd, to ask."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def absolute(text: Path | str) -> Path:
    """Return the same places whatever the working directory."""
    whole = [f"{name}={Path(path).expanduser().absolute()}" for name, path in listed(text)]
    return Path(";".join(whole)) if whole else Path(text).expanduser().absolute()


def absolute_each(text: str) -> str:
    """Return a text of one file or folder, or of one for each platform, whatever the working directory."""
    parts = [(name, str(Path(path).expanduser().absolute())) for name, path in per_client(text).items()]
    return ";".join(path if name == "*" else f"{name}={path}" for name, path in parts)


def digest(texts: Sequence[Path | str | None]) -> str:
    """Return the SHA-256 of a file in hexadecimal digits, or one of those of all files, and of their platforms.

    "" where a text names no file.
    """
    try:
        there = [place for text in texts if text for place in places(text)]
    except UserError:
        return ""
    every = [(place.platform, path) for place in there for path in place.files]
    if len(every) == 1:
        return sha256_of(every[0][1])
    lines = [f"{name}\t{path.name}\t{sha256_of(path)}\n" for name, path in every]
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else ""
