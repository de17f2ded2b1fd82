"""Checkpoints: the server's state, and what else is needed to go on from a round as if nothing had happened.

A folder of checkpoints has one folder for each round, written beside it and renamed: it is there whole or not at all.
Its manifest has the SHA-256 of every file, and it says which run it is of. Of old rounds only the rows of the record
stay. They are their owner's alone: clients' private state is among them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors.torch import load, save

from fedrec.errors import UserError
from fedrec.experiment.scores import Scores
from fedrec.folders import make_private, remove, store
from fedrec.keyed import gather
from fedrec.params import Params
from fedrec.sharing import ContractError
from fedrec.sparse import flat, unflat
from server.scores import Best, Key, Score
from server.state import State

KEPT = 2  # checkpoints that can be gone on from
RECORD, SCORES, MANIFEST = "record.json", "clients.parquet", "manifest.json"


@dataclass(frozen=True)
class Snapshot:
    """The server's side after a round: its tensors, its numbers, and the rows of the record since the last snapshot.

    Of `clients` the rows are in files, see `Scores.packed`.
    """

    round: int
    tensors: Params
    numbers: dict[str, Any]
    record: dict[str, list[Any]]
    clients: Sequence[bytes] = ()


@dataclass
class Checkpoints:
    """Writes a checkpoint of every `every`-th round below `root`.

    `nodes` lets the engine write the clients' private state into a folder and returns the files; `settle` tells it that
    the folder has its final name, `restore` to go back to it. `about` says what is run, as JSON can hold it. `found` is
    what a run is to go on from.
    """

    root: Path
    nodes: Callable[[Path], Sequence[Path]]
    settle: Callable[[Path], None]
    restore: Callable[[Path], None]
    every: int = 1
    about: Mapping[str, Any] = field(default_factory=dict)
    found: "Checkpoint | None" = None

    def due(self, number: int) -> bool:
        """Return whether a round is to be saved."""
        return number % self.every == 0

    def save(self, snapshot: Snapshot) -> None:
        """Write the checkpoint of a round, and thin out those before."""
        final = self.root / f"{snapshot.round:06d}"
        folder = self.root / f".{final.name}"
        remove(folder)
        make_private(self.root)
        make_private(folder)
        # A copy: tensors of a model may share memory, which the format does not allow.
        tensors = {name: value.detach().cpu().clone().contiguous() for name, value in flat(snapshot.tensors).items()}
        files = {
            "server.safetensors": save(tensors),
            "server.json": json.dumps({"about": self.about, "numbers": snapshot.numbers}).encode(),
            RECORD: json.dumps(snapshot.record).encode(),
            SCORES: b"".join(snapshot.clients),
        }
        manifest = {name: sha256(data).hexdigest() for name, data in files.items()}
        for name, data in files.items():
            store(folder / name, data)
        manifest |= {path.name: sha256(path.read_bytes()).hexdigest() for path in self.nodes(folder)}
        store(folder / MANIFEST, json.dumps(manifest).encode())
        remove(final)  # a damaged one may stand in its place
        folder.rename(final)
        self.settle(final)
        for old in complete(self.root)[:-KEPT]:
            for path in old.iterdir():
                if path.name not in (RECORD, SCORES, MANIFEST):
                    path.unlink()

    def go_on(self, point: "Checkpoint") -> None:
        """Let the engine go back to a checkpoint; those after it are damaged, and what they hold is made again."""
        self.restore(point.folder)
        for later in complete(self.root):
            if int(later.name) > point.snapshot.round:
                remove(later)


@dataclass(frozen=True)
class Checkpoint:
    """What to go on from: a folder, its state with all rows, what is run; `refused` are damaged ones."""

    folder: Path
    snapshot: Snapshot
    about: Mapping[str, Any] = field(default_factory=dict)
    refused: tuple[str, ...] = field(default=())


def latest(root: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole; None if there is none at all.

    One that is damaged is refused by name and the one before it is used. Raises UserError if all are damaged.
    """
    refused: list[str] = []
    folders = complete(root)
    for place in range(len(folders) - 1, -1, -1):
        if place < len(folders) - 1 and not (folders[place] / "server.json").exists():
            continue  # thinned out
        try:
            return replace(read(folders[: place + 1]), refused=tuple(refused))
        except Exception as error:  # whatever a file may hold
            refused.append(f"checkpoint {folders[place].name} is refused: {explain(error)}")
    if refused:
        raise UserError(f"resume: {root} must hold a whole checkpoint, found none ({'; '.join(refused)})")
    return None


def read(folders: Sequence[Path]) -> Checkpoint:
    """Return the last of some checkpoints with the rows of all; raises an exception for a damaged file."""
    last = folders[-1]
    content = read_files(last, list(manifest_of(last)))
    record: dict[str, list[Any]] = {}
    clients = []
    for folder in folders:
        files = read_files(folder, [RECORD, SCORES])
        clients.append(files[SCORES])
        for name, rows in json.loads(files[RECORD]).items():
            record.setdefault(name, []).extend(rows)
    server, tensors = json.loads(content["server.json"]), unflat(load(content["server.safetensors"]))
    snapshot = Snapshot(int(last.name), tensors, server["numbers"], record, clients)
    return Checkpoint(last, snapshot, server["about"])


def explain(error: Exception) -> str:
    """Return what is wrong with a file, in one line."""
    if isinstance(error, OSError):
        return f"{Path(error.filename or '').name} must be a readable file ({error.strerror})"
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) else f"must be what was written, found {type(error).__name__}: {text}"


def read_files(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Return the content of files of a checkpoint; raises ValueError if one differs from its checksum."""
    manifest, files = manifest_of(folder), {}
    for name in names:
        files[name] = (folder / name).read_bytes()
        if sha256(files[name]).hexdigest() != manifest[name]:
            raise ValueError(f"{name} must have the checksum of the manifest, found another")
    return files


def manifest_of(folder: Path) -> dict[str, str]:
    """Return the checksum of every file of a checkpoint; raises ValueError if it is damaged."""
    content = json.loads((folder / MANIFEST).read_bytes())
    if not isinstance(content, dict) or not {"server.safetensors", "server.json", RECORD, SCORES} <= content.keys():
        raise ValueError(f"{MANIFEST} must name the files of a checkpoint, found other content")
    return content


def complete(root: Path) -> list[Path]:
    """Return the folders of checkpoints that were written to the end, oldest first."""
    folders = (path for path in root.glob("[0-9]*") if path.is_dir() and path.name.isdecimal())
    return sorted(folders, key=lambda folder: int(folder.name))


ROWS = ("rounds", "traffic", "notes", "resumed", "faults")  # and, for themselves, `clients`


def take(c: State, number: int, since: dict[str, int]) -> Snapshot:
    """Return the state after a round; of the record the rows that are new, `since` the counts of the last snapshot."""
    tensors = {f"tie/{name}": value for name, value in c.tie.state().items()}
    tensors |= {f"best/{name}": value for name, value in c.best.z.items()}
    if c.plan.coupling.personal:  # else a part of z
        for place, name in enumerate(c.best.parts):
            tensors |= {f"part/{place}/{key}": value for key, value in c.best.parts[name].items()}
    if c.control:
        tensors |= {f"control/{name}": value for name, value in c.control.c.items()}
    if c.buffer:
        for began, z in c.buffer.past.items():
            tensors |= {f"past/{began}/{name}": value for name, value in z.items()}
    numbers = {
        "clients": list(c.carriers),
        "stale": c.stale,
        "seen": c.seen,
        "improved": sorted(c.improved),
        "prices": c.prices,
        "last": vars(c.scores.last),
        "keys": alike(c.scores.keys),
        "best": {
            "round": c.best.round,
            "score": vars(c.best.score),
            "prices": c.best.prices,
            "proof": c.best.certificate,
        },
        "newcomers": c.newcomers.state(),
        "buffer": c.buffer.state() if c.buffer else {},
        "seconds": c.record.seconds,
    }
    record = {name: getattr(c.record, name)[since.get(name, 0) :] for name in ROWS}
    return Snapshot(number, tensors, numbers, record, [c.record.clients.packed(since.get("clients", 0))])


def alike(keys: Mapping[str, tuple[Key, ...]]) -> list[Any]:
    """Return what each client has measured, for JSON: once what many have in common, with their names."""
    found: dict[tuple[tuple[str, str, str], ...], list[str]] = {}
    for client, each in keys.items():
        found.setdefault(tuple((who if who != client else "", task, metric) for who, task, metric in each), []).append(
            client
        )
    return list(found.items())


def apart(alike: Sequence[Any]) -> dict[str, tuple[Key, ...]]:
    """Return the inverse of `alike`, but for the order."""
    return {
        client: tuple((who or client, task, metric) for who, task, metric in each)
        for each, names in alike
        for client in names
    }


def put_back(c: State, snapshot: Snapshot) -> None:
    """Bring a state whose clients have joined to a snapshot; raises ContractError if they are others."""
    numbers = snapshot.numbers
    if numbers["clients"] != list(c.carriers):
        raise ContractError(f"clients: must be those of the checkpoint, found {len(c.carriers)} that have joined")
    c.tie.restore(under("tie/", snapshot.tensors))
    c.parts = {name: c.tie.part(name) for name in c.carriers}
    if c.control:
        c.control.c = under("control/", snapshot.tensors)
    c.stale, c.seen, c.improved, c.prices = (numbers[n] for n in ("stale", "seen", "improved", "prices"))
    c.improved = set(c.improved)
    c.scores.last = Score(**numbers["last"])
    c.scores.keys = apart(numbers["keys"])
    about, z = numbers["best"], under("best/", snapshot.tensors)
    if about["round"]:
        # What every client was sent is a part of z, unless the coupling is personal.
        own = {name: under(f"part/{place}/", snapshot.tensors) for place, name in enumerate(c.carriers)}
        parts = own if c.plan.coupling.personal else {name: gather(z, who) for name, who in c.carriers.items()}
        c.best = Best(about["round"], Score(**about["score"]), z, parts, about["prices"], about["proof"])
    c.newcomers.restore(numbers["newcomers"])
    if c.buffer:
        began = c.buffer.began(numbers["buffer"])
        c.buffer.restore(numbers["buffer"], {n: under(f"past/{n}/", snapshot.tensors) for n in began})
    for name in ROWS:
        getattr(c.record, name)[:] = snapshot.record[name]
    c.record.traffic[:] = [(tuple(names), rows) for names, rows in c.record.traffic]
    c.record.clients = Scores()
    for part in snapshot.clients:
        c.record.clients.unpack(part)
    c.record.seconds = numbers["seconds"]


def under(prefix: str, tensors: Params) -> Params:
    """Return the tensors with a prefix, without it, sorted as a mean has them and the format has not."""
    return {name.removeprefix(prefix): tensors[name] for name in sorted(tensors) if name.startswith(prefix)}
