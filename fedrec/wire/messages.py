"""Broadcast and Contribution to Flower records and back, and the byte ledger.

What arrives is input: it is parsed, and then admitted against the sharing contract by the caller.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedrec.data.types import Ints
from fedrec.keyed import TABLES
from fedrec.parameters import LARGEST
from fedrec.sharing import METRIC, Broadcast, ContractError, Contribution, admit_device, admit_name
from fedrec.wire.arrays import array, numbers, pack, unpack

T = TypeVar("T", ArrayRecord, ConfigRecord, MetricRecord)
RECORDS = {"shared", "rows", "metrics", "config"}
TEXT = 1000  # characters of the reason why a client failed
QUOTED = 100  # characters of what a message held, in an error
CONFIG = {"round": int, "keep": bool, "split": str, "rho": float, "seen": int}


@dataclass(frozen=True)
class Entry:
    """One line of the byte ledger: a parameter of one message. Bytes are the serialised array with its header."""

    round: int
    client: str
    direction: str
    parameter: str
    rows: int
    bytes: int


def broadcast_record(message: Broadcast, shared: ArrayRecord | None = None) -> RecordDict:
    """Return the content of a message to a client; `shared` is its packed values if the caller has them already."""
    config = ConfigRecord({name: getattr(message, name) for name in CONFIG})
    content = RecordDict({"shared": pack(message.values) if shared is None else shared, "config": config})
    if message.control is not None:
        content["control"] = pack(message.control)
    if message.rows:
        content["rows"] = ids_record(message.rows)
    return content


def read_broadcast(record: RecordDict) -> Broadcast:
    """Return what the server sent; raises ContractError if the message holds anything else."""
    only(record, {"shared", "config", "control", "rows"})
    config = part(record, "config", ConfigRecord)
    found = {name: config.get(name) for name in CONFIG}
    fits = all(type(found[name]) is kind for name, kind in CONFIG.items()) and len(config) == len(CONFIG)
    if not fits or found["split"] not in ("validation", "test"):
        raise ContractError(f"config: must hold {', '.join(CONFIG)}, found {quoted(config)}")
    admit_rho(found["rho"])
    return Broadcast(
        values=unpack(part(record, "shared", ArrayRecord)),
        control=unpack(part(record, "control", ArrayRecord)) if "control" in record else None,
        rows=read_ids(part(record, "rows", ArrayRecord)),
        **cast(dict[str, Any], found),
    )


def contribution_record(message: Contribution) -> RecordDict:
    """Return the content of a client's reply."""
    content = RecordDict(
        {
            "shared": pack(message.values),
            "metrics": MetricRecord({name: message.metrics[name] for name in sorted(message.metrics)}),
            "config": ConfigRecord({"client": message.client, "device": message.device}),
        }
    )
    if message.rows:
        content["rows"] = ids_record(message.rows)
    return content


def read_contribution(record: RecordDict) -> Contribution:
    """Return what a client sent; raises ContractError if the message is malformed or holds anything else."""
    only(record, RECORDS)
    config = part(record, "config", ConfigRecord)
    if config.keys() != {"client", "device"}:
        raise ContractError(f"config: must hold client and device, found {quoted(sorted(config))}")
    client, device = admit_name("client", config["client"]), admit_device(config["device"])
    metrics = read_metrics(record)
    rows = read_ids(part(record, "rows", ArrayRecord))
    return Contribution(client, unpack(part(record, "shared", ArrayRecord)), metrics, device, rows)


def ids_record(rows: Mapping[str, Ints]) -> ArrayRecord:
    """Return global row ids, by key space, as a record."""
    return ArrayRecord({space: array(ids) for space, ids in sorted(rows.items())})


def read_ids(record: ArrayRecord) -> dict[str, Ints]:
    """Return the row ids of a record; raises ContractError for what is no numeric array."""
    return numbers(record, "rows ")


def read_metrics(record: RecordDict) -> dict[str, float]:
    """Return the metrics of a message; raises ContractError for more than one number under a name."""
    found: dict[str, float] = {}
    for name, value in part(record, "metrics", MetricRecord).items():
        admit_name("metric", name, METRIC)
        if isinstance(value, list):
            raise ContractError(f"metric {name}: must be one number, found {len(value)}")
        found[name] = float(value)
    return found


def admit_rho(value: object) -> float:
    """Return a penalty rho; raises ContractError for what is none."""
    if not isinstance(value, float) or not 0 <= value <= LARGEST:
        raise ContractError(f"rho: must be a number from 0 to {LARGEST:g}, found {quoted(value)}")
    return value


def texts(name: str, value: object) -> list[str]:
    """Return a list of texts of any kind, shortened; raises ContractError for anything else."""
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ContractError(f"{name}: must be a list of texts, found {type(value).__name__}")
    return [str(one)[:TEXT] for one in value]


def plain(name: str) -> str:
    """Return the name of a record, as it may be quoted in an error."""
    return quoted(name).strip("'")


def quoted(value: object) -> str:
    """Return what was found, as it may be quoted in an error: in ASCII, and its beginning only."""
    text = ascii(value) if not isinstance(value, ConfigRecord) else ascii(dict(value))
    return text if len(text) <= QUOTED else f"{text[:QUOTED]}..."


def only(record: RecordDict, allowed: set[str]) -> None:
    """Raise ContractError unless the message holds only the allowed records, and the ones that every message has."""
    for name in record:
        if name not in allowed:
            raise ContractError(f"record {plain(name)}: must be one of {', '.join(sorted(allowed))}")
    needed = {"shared": ArrayRecord, "config": ConfigRecord} | (
        {"metrics": MetricRecord} if "metrics" in allowed else {}
    )
    for name, kind in needed.items():
        if not isinstance(record.get(name), kind):
            raise ContractError(f"record {name}: must be sent, found missing or of another kind")


def part(record: RecordDict, name: str, kind: type[T]) -> T:
    """Return one record of a message, an empty one if there is none of that kind.

    Not through `array_records` and the like, which copy and check the whole message at every access.
    """
    found = record.get(name)
    return found if isinstance(found, kind) else kind()


def ledger(record: RecordDict, number: int, client: str, direction: str) -> list[Entry]:
    """Return one entry for each array of a message, one for its metrics, in the order of their names."""
    entries = []
    for place in ("rows", "shared", "control"):
        for name, one in sorted(part(record, place, ArrayRecord).items()):
            count = one.shape[0] if one.shape and (name in TABLES or place == "rows") else 0
            label = name if place == "shared" else f"{place}:{name}"
            entries.append(Entry(number, client, direction, label, count, len(one.data)))
    metrics = part(record, "metrics", MetricRecord)
    if metrics:
        entries.append(Entry(number, client, direction, "metrics", 0, sum(len(name) + 8 for name in metrics)))
    return entries
