"""The record of a run: a directory of plain files that says what was run and what came out."""

import csv
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from io import SEEK_END, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from safetensors.torch import load_file, save

from fedrec.data.types import Ints
from fedrec.errors import UserError
from fedrec.experiment.kept import ABOUT, as_parquet, describe_clients
from fedrec.experiment.naming import natural as natural
from fedrec.experiment.naming import slug as slug
from fedrec.experiment.peruser import join_users
from fedrec.experiment.scores import CLIENTS, Scores
from fedrec.experiment.scores import Row as Row
from fedrec.experiment.scores import write_clients as write_clients
from fedrec.experiment.traffic import LEDGER as LEDGER
from fedrec.experiment.traffic import MANY, SUMMED, Traffic
from fedrec.folders import make_private, open_private, write_private
from fedrec.params import Params
from fedrec.sparse import flat, unflat

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
FAULTS = ["round", "client", "during", "kind", "text"]  # of faults.csv


@dataclass
class Record:
    """What the server gathers during a run; rows of `rounds.csv`, `clients.csv` and `ledger.csv`."""

    rounds: list[Row] = field(default_factory=list)
    clients: Scores = field(default_factory=Scores)
    traffic: Traffic = field(default_factory=Traffic)
    shared: Params = field(default_factory=dict)
    rows: dict[str, Ints] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)  # what was lost of a run that was gone on with, and made again
    budgets: list[Row] = field(default_factory=list)
    certificate: dict[str, Any] = field(default_factory=dict)  # what proves the parameters the best there are
    ties: list[Row] = field(default_factory=list)  # how every constraint of named blocks stands in the selected round
    summed: list[str] | None = None  # the clients whose sums the total has, where clients send sums
    privacy: dict[str, Any] = field(default_factory=dict)  # what was promised and spent
    faults: list[Row] = field(default_factory=list)  # answers that did not count
    selected_round: int = 0
    stopped: str = ""
    seconds: float = 0.0

    def score(self, number: int, split: str, metrics: Mapping[tuple[str, str, str], float], device: str) -> None:
        """Add metrics, keyed by (client or pooled member, task, metric)."""
        for (client, task, metric), value in metrics.items():
            self.clients.add(number, client, split, task, metric, value, device)

    def log(self, clients: Sequence[str], entries: Iterable[Any]) -> None:
        """Add to the ledger what a message held, once for each of the clients that sent or got such a message."""
        self.traffic.add(tuple(clients), [to_row(entry) for entry in entries])

    def tally(self, alike: Iterable[tuple[Sequence[str], Iterable[Any]]]) -> None:
        """Add several messages to the ledger, see `log`."""
        for clients, entries in alike:
            self.log(clients, entries)

    @property
    def ledger(self) -> list[Row]:
        """The byte ledger, see `Traffic.rows`."""
        return self.traffic.rows()

    def close(self, row: Row) -> None:
        """Add a finished round, with the bytes of all its messages."""
        row |= {f"bytes_{way}": count for way, count in self.traffic.close(row["round"]).items()}
        self.rounds.append(row)


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
    text = "".join([",".join(CLIENTS) + "\n", *(path.read_text(encoding="utf-8").partition("\n")[2] for path in files)])
    table = pd.read_csv(StringIO(text), dtype=types, keep_default_na=False, na_values=missing)
    rows = table.drop_duplicates(CLIENTS[:5], keep="last").to_dict("records")
    order = sorted(rows, key=lambda row: (row["round"], row["split"] == "test", natural(row["client"])))
    return cast("list[Row]", order)


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
    join_users(home)
    record.traffic.fold(0)
    write_clients(home, record.clients, gather_measured(home))
    write_csv(home / "ledger.csv", record.ledger, SUMMED if record.traffic.many() else LEDGER)
    write_csv(home / "faults.csv", record.faults, FAULTS)
    write_tensors(home / "model" / "shared.safetensors", record.shared, private=False)
    write_json(home / "model" / "rows.json", {space: ids.tolist() for space, ids in record.rows.items()})
    shared = [{"name": name, "shape": list(value.shape)} for name, value in sorted(record.shared.items())]
    about = describe_clients(home)
    private = {entry["name"]: entry for c in about for entry in c.pop("private")}
    if len(about) >= MANY:
        write_private(home / ABOUT, as_parquet(about))
    write_json(
        home / "experiment.json",
        {
            "experiment": experiment,
            "components": list(components),
            "versions": versions(),
            "data": {
                "notes": [*notes, *record.notes],
                "sha256": sha256,
                "clients": ABOUT if len(about) >= MANY else about,
            },
            "parameters": {"shared": shared, "private": sorted(private.values(), key=lambda p: str(p["name"]))},
            "budgets": record.budgets,
            "certificate": record.certificate,
            **({"ties": record.ties} if record.ties else {}),
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
