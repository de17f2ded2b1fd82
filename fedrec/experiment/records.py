"""The record of a run: a directory of plain files that says what was run and what came out."""

import csv
import json
import platform
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from io import SEEK_END, TextIOWrapper
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from safetensors.torch import load_file, save

from fedrec.data.types import Ints
from fedrec.errors import UserError
from fedrec.evaluation.evaluate import PerUser
from fedrec.folders import make_private, open_private, write_private
from fedrec.params import Params
from fedrec.sparse import flat, unflat

Row = dict[str, str | int | float]
SINGLE = "single-task"  # folder, among the baselines, of a run for each task of clients that have several
OWN = "own"  # folder of popularity among each client's own rows, in that of popularity among all clients'
NOT_SINGLE = "single-task.txt"  # beside it: why there is none
# Folders, among the baselines, of the runs between one without a promise and that with it, and their table.
PLAIN, UNCLIPPED, CLIPPED = "plain", "unclipped", "clipped"
CLOSED = "closed-form"  # folder, among the baselines, of models by sums beside one by gradients
NOT_CLOSED = "closed-form.txt"  # beside it: why there are fewer
PRICE = "price.csv"
ROW_STARTS = "2"  # by the hash of a row's key; before them a run started by the row's place in its file
NO_STUDENT = "student.txt"  # why an output agreement has no student
CLIENTS = ["round", "client", "split", "task", "metric", "value", "device"]  # columns of clients.csv
LEDGER = ["round", "client", "direction", "parameter", "rows", "bytes"]  # of ledger.csv
FAULTS = ["round", "client", "during", "kind", "text"]  # of faults.csv


@dataclass
class Record:
    """What the server gathers during a run; rows of `rounds.csv`, `clients.csv` and `ledger.csv`."""

    rounds: list[Row] = field(default_factory=list)
    clients: list[Row] = field(default_factory=list)
    traffic: list[tuple[tuple[str, ...], list[Row]]] = field(default_factory=list)
    shared: Params = field(default_factory=dict)
    rows: dict[str, Ints] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)  # what was lost of a run that was gone on with, and made again
    budgets: list[Row] = field(default_factory=list)
    certificate: dict[str, Any] = field(default_factory=dict)  # what proves the parameters the best there are
    summed: list[str] | None = None  # the clients whose sums the total has, where clients send sums
    privacy: dict[str, Any] = field(default_factory=dict)  # what was promised and spent
    faults: list[Row] = field(default_factory=list)  # answers that did not count
    selected_round: int = 0
    stopped: str = ""
    seconds: float = 0.0

    def score(self, number: int, split: str, metrics: Mapping[tuple[str, str, str], float], device: str) -> None:
        """Add metrics, keyed by (client or pooled member, task, metric)."""
        for (client, task, metric), value in metrics.items():
            row: Row = {"round": number, "client": client, "split": split, "task": task, "metric": metric}
            row["value"], row["device"] = value, device
            self.clients.append(row)

    def log(self, clients: Sequence[str], entries: Iterable[Any]) -> None:
        """Add to the ledger what a message held, once for each of the clients that sent or got such a message."""
        self.traffic.append((tuple(clients), [to_row(entry) for entry in entries]))

    def tally(self, alike: Iterable[tuple[Sequence[str], Iterable[Any]]]) -> None:
        """Add several messages to the ledger, see `log`."""
        for clients, entries in alike:
            self.log(clients, entries)

    @property
    def ledger(self) -> list[Row]:
        """The byte ledger: a row for each parameter of each client's messages."""
        return [{**row, "client": name} for names, rows in self.traffic for name in names for row in rows]

    def close(self, row: Row) -> None:
        """Add a finished round, with the bytes of all its messages."""
        latest = takewhile(lambda t: t[1][0]["round"] == row["round"], (t for t in reversed(self.traffic) if t[1]))
        total = {"down": 0, "up": 0}
        for names, rows in latest:
            for entry in rows:
                total[str(entry["direction"])] += len(names) * int(entry["bytes"])
        row |= {f"bytes_{way}": count for way, count in total.items()}
        self.rounds.append(row)


def slug(name: str) -> str:
    """Return a client's file name: letters, digits, dots and dashes, with a short hash where that lost something."""
    kept = re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("._")[:60]
    return kept if kept == name else f"{kept or 'client'}-{uuid.uuid5(uuid.NAMESPACE_OID, name).hex[:8]}"


def write_json(path: Path, value: Any) -> None:
    """Write JSON that any reader can parse; raises ValueError for NaN, which JSON does not have."""
    path.write_text(json_text(value), encoding="utf-8")


def json_text(value: Any) -> str:
    """Return JSON that any reader can parse; raises ValueError for NaN, which JSON does not have."""
    return json.dumps(value, indent=2, default=str, allow_nan=False, ensure_ascii=False) + "\n"


def write_tensors(path: Path, params: Params, private: bool) -> None:
    """Write tensors as a safetensors file; `private` ones are for its owner alone."""
    data = save({name: value.contiguous() for name, value in flat(params).items()})
    if private:
        write_private(path, data)
    else:
        path.write_bytes(data)


def versions() -> dict[str, str]:
    """Return the versions that a result depends on; that of the row starts says how rows of tables start."""
    names = ("flwr", "torch", "numpy", "pandas")
    return {"python": platform.python_version(), **{name: version(name) for name in names}, "row starts": ROW_STARTS}


def save_client(
    home: Path, name: str, private: Params, own: Params, per_user: Sequence[PerUser], about: Mapping[str, Any]
) -> None:
    """Write what a client keeps for itself: private parameters, its users' metrics, a description of its data.

    `own` is its copy of the shared parameters where a personal coupling or model gives every client another one.
    """
    (home / "model").mkdir(parents=True, exist_ok=True)
    write_tensors(home / "model" / f"client-{slug(name)}.safetensors", private, private=True)
    if own:
        write_tensors(home / "model" / f"own-{slug(name)}.safetensors", own, private=True)
    write_private(home / "about" / f"{slug(name)}.json", json_text(about))
    write_users(home, per_user)


def add_measured(
    home: Path, client: str, number: int, split: str, metrics: Mapping[tuple[str, str, str], float], device: str
) -> None:
    """Add to `measured/<client>.csv` what a client measured and does not tell the server."""
    path = home / "measured" / f"{slug(client)}.csv"
    make_private(path.parent)
    with TextIOWrapper(open_private(path), encoding="utf-8", newline="") as file:
        file.seek(0, SEEK_END)
        writer = csv.writer(file)
        writer.writerows([CLIENTS] * (not file.tell()))
        writer.writerows(
            [number, who, split, task, metric, value, device] for (who, task, metric), value in metrics.items()
        )


def add_failure(home: Path, client: str, text: str) -> None:
    """Add to `measured/<client>.failed` what a client failed to measure, which the server is not told."""
    path = home / "measured" / f"{slug(client)}.failed"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{client}: {text}\n")


def failures(home: Path) -> list[str]:
    """Return what all clients failed to measure by themselves."""
    files = sorted((home / "measured").glob("*.failed"))
    return [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]


def gather_measured(home: Path) -> list[Row]:
    """Return what all clients measured by themselves, by round; of what was measured twice the last."""
    files = sorted((home / "measured").glob("*.csv"))
    if not files:
        return []
    types: dict[Any, Any] = dict.fromkeys(("client", "split", "task", "metric", "device"), str)
    missing = {"value": ["", "nan"]}
    table = pd.concat([pd.read_csv(path, dtype=types, keep_default_na=False, na_values=missing) for path in files])
    rows = table.drop_duplicates(CLIENTS[:5], keep="last").to_dict("records")
    order = sorted(rows, key=lambda row: (row["round"], row["split"] == "test", natural(row["client"])))
    return cast("list[Row]", order)


def write_users(home: Path, per_user: Sequence[PerUser], together: str = "") -> None:
    """Write `users/<client>.csv`: the test metrics of every user with their weights, for paired differences.

    Those of tasks about items go to `items/<client>.csv`, by item. Of many clients `together` names the one file that
    has all of them.
    """
    files: dict[tuple[str, str], list[PerUser]] = {}
    for part in sorted(per_user, key=lambda p: p.client):
        files.setdefault(("item" if part.items else "user", together or slug(part.client)), []).append(part)
    for (unit, name), parts in files.items():
        write_private(home / f"{unit}s" / f"{name}.csv", users_table(parts, unit).to_csv(index=False))


def users_table(parts: Sequence[PerUser], unit: str = "user") -> pd.DataFrame:
    """Return the test values of every user, or other `unit`, with their weights, in one table."""
    sizes = [len(p.users) for p in parts]
    weights = [np.ones(len(p.users), np.int64) if p.weights is None else p.weights for p in parts]
    columns = {
        "client": np.repeat([p.client for p in parts], sizes),
        unit: np.concatenate([p.users for p in parts]),
        "split": "test",
        "task": np.repeat([p.task for p in parts], sizes),
        "metric": np.repeat([p.metric for p in parts], sizes),
        "value": np.concatenate([p.values for p in parts]),
        "weight": np.concatenate(weights),
    }
    return pd.DataFrame(columns)


def write_record(
    home: Path,
    record: Record,
    experiment: Mapping[str, Any],
    notes: Sequence[str] = (),
    components: Sequence[Mapping[str, str]] = (),
    sha256: str = "",
) -> None:
    """Write the server's part of a run directory.

    `notes` say what cleaning did to the data as a whole, `components` where parts of the user's own came from, `sha256`
    is that of the file that the data are in, if it is one.
    """
    (home / "model").mkdir(parents=True, exist_ok=True)
    write_csv(home / "rounds.csv", record.rounds)
    write_csv(home / "clients.csv", [*record.clients, *gather_measured(home)], CLIENTS)
    write_csv(home / "ledger.csv", record.ledger, LEDGER)
    write_csv(home / "faults.csv", record.faults, FAULTS)
    write_tensors(home / "model" / "shared.safetensors", record.shared, private=False)
    write_json(home / "model" / "rows.json", {space: ids.tolist() for space, ids in record.rows.items()})
    shared = [{"name": name, "shape": list(value.shape)} for name, value in sorted(record.shared.items())]
    about = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((home / "about").glob("*.json"))]
    private = {entry["name"]: entry for c in about for entry in c.pop("private")}
    write_json(
        home / "experiment.json",
        {
            "experiment": experiment,
            "components": list(components),
            "versions": versions(),
            "data": {
                "notes": [*notes, *record.notes],
                "sha256": sha256,
                "clients": sorted(about, key=lambda c: natural(c["name"])),
            },
            "parameters": {"shared": shared, "private": sorted(private.values(), key=lambda p: str(p["name"]))},
            "budgets": record.budgets,
            "certificate": record.certificate,
            **({} if record.summed is None else {"summed": record.summed}),
            "privacy": record.privacy,
            "selected_round": record.selected_round,
            "stopped": record.stopped,
            "resumed": record.resumed,
            "seconds": round(record.seconds, 3),
        },
    )


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: list[str] | None = None) -> None:
    """Write rows as CSV; floats keep all their digits, so that equal files mean equal results."""
    pd.DataFrame(list(rows), columns=columns).to_csv(path, index=False)


def natural(name: str) -> tuple[str | int, ...]:
    """Return a sort key under which silo-2 stands before silo-10."""
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name))


def load_params(path: Path) -> Params:
    """Return the tensors of a safetensors file; raises UserError if it is missing or damaged."""
    try:
        return unflat(load_file(path))
    except Exception as error:
        raise UserError(f"model: {path} must be a safetensors file of a finished run, found {error}") from None


def table_of(ids: Sequence[int]) -> Ints:
    """Return ids as an int64 vector."""
    return np.asarray(ids, dtype=np.int64)


def to_row(entry: Any) -> Row:
    """Return a dataclass of plain values as a row."""
    return dict(vars(entry))
