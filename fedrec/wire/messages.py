"""Broadcast and Contribution to Flower records and back, and the byte ledger.

Arrays travel as NumPy's own format without pickle. What arrives is input: it is parsed, and then admitted against the
sharing contract by the caller.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedrec.data.types import Ints
from fedrec.parameters import Params
from fedrec.sharing import TABLES, Broadcast, ContractError, Contribution

RECORDS = {"shared", "rows", "metrics", "config"}
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


def pack(params: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """Return the tensors as a Flower record, sorted by name."""
    return ArrayRecord({name: Array(params[name].detach().cpu().contiguous().numpy()) for name in sorted(params)})


def unpack(record: ArrayRecord) -> Params:
    """Return the tensors of a record; raises ContractError if one cannot be read without pickle or is no number."""
    params: Params = {}
    for name, array in record.items():
        params[name] = torch.from_numpy(numeric(name, array).copy())
    return params


def numeric(name: str, array: Array) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the numbers of an array; raises ContractError if it cannot be read without pickle or holds none."""
    try:
        value = array.numpy()
    except Exception as error:  # whatever a header that is not NumPy's own makes it raise
        raise ContractError(f"{name}: must be a NumPy array without objects, found {error}") from None
    if value.dtype.kind not in "fiu" or value.dtype.itemsize > 8 or not value.dtype.isnative:
        raise ContractError(f"{name}: must be numeric, found {value.dtype}")
    return np.asarray(value)


def broadcast_record(message: Broadcast) -> RecordDict:
    """Return the content of a message to a client."""
    config = ConfigRecord({name: getattr(message, name) for name in CONFIG})
    content = RecordDict({"shared": pack(message.values), "config": config})
    if message.control is not None:
        content["control"] = pack(message.control)
    return content


def read_broadcast(record: RecordDict) -> Broadcast:
    """Return what the server sent; raises ContractError if the message holds anything else."""
    only(record, {"shared", "config", "control"})
    config = record.config_records["config"]
    found = {name: config.get(name) for name in CONFIG}
    fits = all(type(found[name]) is kind for name, kind in CONFIG.items()) and len(config) == len(CONFIG)
    if not fits or found["split"] not in ("validation", "test"):
        raise ContractError(f"config: must hold {', '.join(CONFIG)}, found {dict(config)}")
    control = record.array_records.get("control")
    return Broadcast(
        values=unpack(record.array_records["shared"]),
        control=None if control is None else unpack(control),
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
        content["rows"] = ArrayRecord({space: Array(ids) for space, ids in sorted(message.rows.items())})
    return content


def read_contribution(record: RecordDict) -> Contribution:
    """Return what a client sent; raises ContractError if the message is malformed or holds anything else."""
    only(record, RECORDS)
    config = record.config_records["config"]
    client, device = config.get("client"), config.get("device")
    if not isinstance(client, str) or not isinstance(device, str) or len(config) != 2:
        raise ContractError(f"config: must hold client and device, found {sorted(config)}")
    metrics: dict[str, float] = {}
    for name, value in record.metric_records["metrics"].items():
        if isinstance(value, list):
            raise ContractError(f"metric {name}: must be one number, found {len(value)}")
        metrics[name] = float(value)
    sent = record.array_records.get("rows", ArrayRecord())
    rows: dict[str, Ints] = {space: numeric(f"rows {space}", array) for space, array in sent.items()}
    return Contribution(client, unpack(record.array_records["shared"]), metrics, device, rows)


def only(record: RecordDict, allowed: set[str]) -> None:
    """Raise ContractError unless the message holds only the allowed records, and the ones that every message has."""
    for name in record:
        if name not in allowed:
            raise ContractError(f"record {name}: must be one of {', '.join(sorted(allowed))}")
    needed = {"shared": set(record.array_records), "config": set(record.config_records)}
    if "metrics" in allowed:
        needed["metrics"] = set(record.metric_records)
    for name, present in needed.items():
        if name not in present:
            raise ContractError(f"record {name}: must be sent, found missing")


def ledger(record: RecordDict, number: int, client: str, direction: str) -> list[Entry]:
    """Return one entry for each array of a message, one for its metrics, in the order of their names."""
    entries = []
    for part in ("rows", "shared", "control"):
        for name, array in sorted(record.array_records.get(part, ArrayRecord()).items()):
            count = array.shape[0] if name in TABLES or part == "rows" else 0
            label = name if part == "shared" else f"{part}:{name}"
            entries.append(Entry(number, client, direction, label, count, len(array.data)))
    metrics = record.metric_records.get("metrics")
    if metrics:
        entries.append(Entry(number, client, direction, "metrics", 0, sum(len(name) + 8 for name in metrics)))
    return entries
