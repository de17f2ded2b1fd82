"""What clients keep to themselves at the end of a run: their own parameters, and what they say of their data.

Few clients of a node have a file each, many have one file together: tensors of one name end to end.
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from fedrec.data.types import Keys
from fedrec.errors import UserError
from fedrec.evaluation.evaluate import PerUser
from fedrec.experiment.naming import natural, slug
from fedrec.experiment.peruser import write_users
from fedrec.experiment.scores import parquet, read_parquet
from fedrec.experiment.traffic import MANY
from fedrec.folders import write_private
from fedrec.params import Params
from fedrec.sparse import flat, unflat
from fedrec.training.moved import Moved

PRIVATE, OWN = "client", "own"  # private parameters; copies of shared ones, where every client has another
ABOUT = "about.parquet"  # of a run with many clients: what they say of their data
JSON = " as JSON"  # behind the name of a column


class Keeping(NamedTuple):
    """What one client keeps: private parameters, a copy `own` of shared ones or nothing, and what is known of its data.

    That is a description `about` them, and what was measured of its users at the test.
    """

    client: str
    private: Mapping[str, Tensor]
    own: Params
    about: Mapping[str, Any]
    per_user: Sequence[PerUser] = ()


Shelf = list[Keeping]  # what clients of a node keep, until all of it is written


def keep(home: Path, clients: Sequence[Keeping], keys: tuple[Keys, Keys]) -> None:
    """Write what clients of a node keep, and the test values of their users and items, by the `keys` of all."""
    first, many = clients[0].client, len(clients) >= MANY
    (home / "model").mkdir(parents=True, exist_ok=True)  # with what is shared, which is for all
    for kind, parts in ((PRIVATE, [one.private for one in clients]), (OWN, [one.own for one in clients])):
        names = [one.client for one, part in zip(clients, parts, strict=True) if part or kind == PRIVATE]
        there = [part for part in parts if part or kind == PRIVATE]
        if many and names:
            write_private(home / "model" / f"{kind}s-with-{slug(first)}.safetensors", stacked(names, there))
            continue
        for name, part in zip(names, there, strict=True):
            data = save({key: value.contiguous() for key, value in flat(part).items()})
            write_private(home / "model" / f"{kind}-{slug(name)}.safetensors", data)
    if many:
        write_private(home / "about" / f"with-{slug(first)}.parquet", as_parquet([one.about for one in clients]))
    else:
        for one in clients:
            text = json.dumps(one.about, indent=2, allow_nan=False, ensure_ascii=False)
            write_private(home / "about" / f"{slug(one.client)}.json", text + "\n")
    write_users(home, [part for one in clients for part in one.per_user], keys, part=first)


def stacked(names: Sequence[str], parts: Sequence[Mapping[str, Tensor]]) -> bytes:
    """Return a safetensors file of several clients' tensors, those of one name and form end to end.

    Beside tensor `NUMBER` stands `NUMBER.rows` [clients], how many rows of it each client has, -1 for none at all.
    Where all are `Moved` from one base, that is there once, as `base.NAME`.
    """
    first = parts[0]
    base = first.base if isinstance(first, Moved) else {}
    if base and all(isinstance(part, Moved) and part.base is base for part in parts):
        parts = [part.tensors() for part in parts if isinstance(part, Moved)]
    else:
        base = {}
    alike: dict[tuple[str, torch.dtype, torch.Size, bool], list[tuple[int, Tensor]]] = {}
    for place, part in enumerate(parts):
        for name, value in flat(part).items():
            alike.setdefault((name, value.dtype, value.shape[1:], not value.dim()), []).append((place, value))
    arrays = {f"base.{name}": value for name, value in base.items()}
    for number, values in enumerate(alike.values()):
        each = [value if value.dim() else value.reshape(1) for _, value in values]
        rows = torch.full((len(parts),), -1)
        rows[[place for place, _ in values]] = torch.tensor([len(value) for value in each])
        arrays |= {str(number): torch.cat(each), f"{number}.rows": rows}
    about = {"clients": names, "tensors": [[name, scalar] for name, _, _, scalar in alike], "base": [*base]}
    return save(arrays, {"about": json.dumps(about)})


def load_kept(home: Path, client: str, kind: str = PRIVATE) -> Params:
    """Return what a client of a run keeps; raises UserError if it is missing or damaged."""
    path, found = home / "model" / f"{kind}-{slug(client)}.safetensors", "none"
    try:
        for path in places(home, client, kind):
            return load_one(path, client) if path.stem.startswith(f"{kind}s-with-") else unflat(load_file(path))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        found = str(error)
    raise UserError(f"model: {path} must be a safetensors file of a finished run, found {found}")


def is_kept(home: Path, client: str) -> bool:
    """Return whether a client has kept its private parameters in the folder of a run."""
    return any(True for _ in places(home, client, PRIVATE))


def places(home: Path, client: str, kind: str) -> Iterator[Path]:
    """Yield the files that have what a client keeps, the newest first."""
    alone = home / "model" / f"{kind}-{slug(client)}.safetensors"
    files = [path for path in (alone, *(home / "model").glob(f"{kind}s-with-*.safetensors")) if path.exists()]
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if path == alone or client in index_of(path, path.stat().st_mtime_ns).clients:
            yield path


class Index(NamedTuple):
    """Where each client's own is in a file of many: of every tensor its name, whether it is a number, its rows."""

    clients: Mapping[str, int]
    tensors: Sequence[tuple[str, bool, Tensor]]
    base: Params  # what all have but for some rows; nothing where each client's are whole


@functools.lru_cache(maxsize=8)
def index_of(path: Path, changed: int) -> Index:
    """Return the index of a file that was changed at a time, kept for the process."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
        rows = [file.get_tensor(f"{number}.rows") for number in range(len(about["tensors"]))]
        base = {name: file.get_tensor(f"base.{name}") for name in about.get("base", ())}
    tensors = [(str(name), bool(scalar), each) for (name, scalar), each in zip(about["tensors"], rows, strict=True)]
    return Index({name: place for place, name in enumerate(about["clients"])}, tensors, base)


def load_one(path: Path, client: str) -> Params:
    """Return what one client has in a file of many."""
    index, found = index_of(path, path.stat().st_mtime_ns), {}
    place = index.clients[client]
    with safe_open(path, "pt") as file:
        for number, (name, scalar, rows) in enumerate(index.tensors):
            if (count := int(rows[place])) >= 0:
                start = int(rows[:place].clamp(min=0).sum())
                value = file.get_slice(str(number))[start : start + count]
                found[name] = value[0] if scalar else value
    return dict(Moved.read(index.base, unflat(found))) if index.base else unflat(found)


def describe_clients(home: Path) -> list[dict[str, Any]]:
    """Return what all clients of a run say of their data, in their order; of one that did so twice the last."""
    said: dict[str, dict[str, Any]] = {}
    for path in sorted((home / "about").glob("*"), key=lambda path: path.stat().st_mtime_ns):
        if path.suffix == ".parquet":
            said |= {str(one["name"]): one for one in read_rows(path)}
        elif path.suffix == ".json":
            one = json.loads(path.read_text(encoding="utf-8"))
            said[str(one["name"])] = one
    return sorted(said.values(), key=lambda one: natural(one["name"]))


def as_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return rows with values of any kind as a Parquet file; what is neither text nor number is JSON."""
    columns: dict[str, list[Any]] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        plain = all(isinstance(value, str | int | float) for value in values)
        columns[name if plain else f"{name}{JSON}"] = values if plain else [*map(json.dumps, values)]
    return parquet(pd.DataFrame(columns))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows that `as_parquet` wrote."""
    table, columns = read_parquet(path), {}
    for name, values in table.items():
        key = str(name)
        known = {text: json.loads(text) for text in values.unique()} if key.endswith(JSON) else None
        columns[key.removesuffix(JSON)] = values.tolist() if known is None else [known[text] for text in values]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
