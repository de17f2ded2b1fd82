"""Where the parts of a user's own may run, and where they came from."""

import hashlib
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from fedrec.components import per_client, read, require
from fedrec.data.sources import digest
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment


def portable(field: str, text: str, engine: str) -> None:
    """Raise UserError for a component that another process cannot rebuild: one of `__main__`, as in a notebook."""
    if field != "tracker" and engine not in ("inline", "batched") and text.startswith("__main__:"):
        raise UserError(
            f"{field}: {read(text).use} must be importable by the processes of the engine {engine}, found a class of "
            "the program that was started; move it to a module, or add --engine inline"
        )


def data_digest(e: Experiment) -> str:
    """Return the SHA-256 of the files that an experiment's data are read from; "" where they are from no file."""
    described = [file for text in (e.reading.items, e.reading.users) if text for file in per_client(text).values()]
    return digest([e.data_dir, *described, e.reading.match])


def permit(parts: Iterable[tuple[str, str]], allowed: Collection[str]) -> None:
    """Raise UserError for a part, given as (field, text), that a node's own configuration does not allow."""
    for field, text in parts:
        if read(text).use not in allowed:
            names = ", ".join(sorted(allowed)) or "none"
            raise UserError(f"{field}: {read(text).use} must be among the components of this node, found {names}")


def origins(parts: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Return the `origin` of parts given as (field, text), each once."""
    return [origin(use) for use in dict.fromkeys(read(text).use for _, text in parts)]


def changes(parts: Iterable[tuple[str, str]], recorded: Sequence[Any]) -> list[str]:
    """Return what to tell of parts that are not what was recorded; they are imported."""
    before = {old.get("use"): old for old in recorded if isinstance(old, Mapping)}
    notes = []
    for field, text in parts:
        require(field, text)
        use = read(text).use
        if use in before and before[use] != origin(use):
            notes.append(f"{field}: {use} is another one than when this was recorded")
    return notes


def origin(use: str) -> dict[str, str]:
    """Return where a component came from: its distribution and version, or the SHA-256 of its module's file."""
    name = use.partition(":")[0]
    top = name.partition(".")[0]
    dists = metadata.packages_distributions().get(top)
    if dists:
        return {"use": use, "distribution": dists[0], "version": metadata.version(dists[0])}
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None or not Path(file).is_file():
        return {"use": use, "sha256": "", "file": "none: it was typed into the program"}
    return {"use": use, "sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest()}
