"""What a node of one or more clients is sent, and what it answers, as Flower records and back; and the byte ledger.

What clients have in common travels once. A node of several may also add up what they would send, where the server needs
only the sum. What arrives is input: it is parsed, and then admitted against the sharing contract by the caller.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, TypeVar, cast

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedrec.data.types import Ints
from fedrec.keyed import TABLES, Subtotal
from fedrec.params import LARGEST, Params
from fedrec.sharing import (
    FAR,
    METRIC,
    NAME,
    Broadcast,
    ContractError,
    Contribution,
    admit_device,
    admit_names,
)
from fedrec.wire.arrays import array, numbers, pack, unpack

T = TypeVar("T")
R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord)
NOTHING: Params = {}
Packed = dict[int, tuple[Params, ArrayRecord]]  # by the id of what was packed, which lives as long
ALONE = -1  # the chunk of a client whose own contribution is wanted
TEXT = 1000  # characters of the reason why a client failed
ABOUT = ("keep", "seen", "shared", "control", "rows")  # columns of a call, one entry for each client
# Fields of a message's configuration; those with a usual value are left out where they have it, for all clients.
USUAL = {"control": -1, "rows": -1, "chunk": ALONE, "weight": 0.0}
NONE = ("told", "failed", "reason", "sums")
CALL = frozenset({"round", "split", "rho", "client", "told", "chunk", "weight", *ABOUT})
ANSWERS = frozenset({"client", "device", "shared", "rows", "metric", "failed", "reason", "sums"})
NEEDED = {fields: fields - USUAL.keys() - set(NONE) for fields in (CALL, ANSWERS)}
QUOTED = 100  # characters of what a message held, in an error


@dataclass(frozen=True)
class Entry:
    """One line of the byte ledger: a parameter of one message. Bytes are the serialised array with its header."""

    round: int
    client: str
    direction: str
    parameter: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class Call:
    """What the clients of a node are sent, and, for those of whom only the sum is wanted, their chunk and weight p_i.

    The order of `broadcasts` is that of the sums. `told` are the metrics that go with an answer that is summed: whoever
    adds up leaves out a client whose metrics the server would refuse, with all that it had been summed with.
    """

    broadcasts: dict[str, Broadcast]
    chunks: dict[str, tuple[int, float]] = field(default_factory=dict)
    told: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answers:
    """What a node answers for its clients: contributions, the sums that stand for their tensors, and failures.

    A client whose tensors are part of a sum contributes its metrics alone.
    """

    contributions: list[Contribution]
    subtotals: list[Subtotal] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class _Distinct:
    """Numbers things so that equal ones travel once."""

    def __init__(self, content: RecordDict, prefix: str, many: bool, packed: Packed | None = None) -> None:
        self.content, self.prefix, self.many = content, prefix, many
        self.packed: Packed = {} if packed is None else packed
        self.numbers: dict[Any, int] = {}

    def add(self, params: Params | None) -> int:
        """Return the number of a client's tensors; -1 for None."""
        if params is None:
            return -1
        params = params or NOTHING
        if id(params) not in self.numbers:
            if id(params) not in self.packed:
                self.packed[id(params)] = (params, pack(params))
            self.numbers[id(params)] = self.record(self.packed[id(params)][1])
        return self.numbers[id(params)]

    def ids(self, rows: Mapping[str, Ints]) -> int:
        """Return the number of a client's row ids; -1 for none, which is all but for joining and for newcomers."""
        if not rows:
            return -1
        if id(rows) not in self.numbers:
            self.numbers[id(rows)] = self.record(ids_record(rows))
        return self.numbers[id(rows)]

    def record(self, record: ArrayRecord) -> int:
        """Return the number of a record, the same for equal content."""
        digest = blake2b(digest_size=16)
        for name, raw in record.items() if self.many else ():
            digest.update(f"{name} {len(raw.data)} ".encode())
            digest.update(raw.data)
        key = digest.digest()
        if key not in self.numbers:
            self.numbers[key] = len([name for name in self.content if name.startswith(self.prefix)])
            self.content[f"{self.prefix}{self.numbers[key]}"] = record
        return self.numbers[key]


def call_record(call: Call, packed: Packed | None = None) -> RecordDict:
    """Return the content of a message to a node; `packed` has what messages to other nodes have in common with it."""
    content, sent = RecordDict(), list(call.broadcasts.values())
    values, controls, rows = (
        _Distinct(content, prefix, len(sent) > 1, packed) for prefix in ("shared.", "control.", "rows.")
    )
    first = sent[0]
    chunks = [call.chunks.get(name, (ALONE, 0.0)) for name in call.broadcasts]
    content["config"] = _compact(
        {
            "round": first.round,
            "split": first.split,
            "rho": first.rho,
            "client": list(call.broadcasts),
            "told": list(call.told),
            "keep": [b.keep for b in sent],
            "seen": [b.seen for b in sent],
            "shared": [values.add(b.values) for b in sent],
            "control": [controls.add(b.control) for b in sent],
            "rows": [rows.ids(b.rows) for b in sent],
            "chunk": [chunk for chunk, _ in chunks],
            "weight": [weight for _, weight in chunks],
        }
    )
    return content


def read_call(content: RecordDict) -> Call:
    """Return what the server sent to a node; raises ContractError for a malformed message, or one that holds more."""
    config = _config(content, CALL, "shared.", "control.", "rows.")
    names = _strings(config, "client")
    columns = {n: _whole(config, n, len(names)) for n in (*ABOUT, "chunk")}
    columns["weight"] = _column(config, "weight", len(names))
    if not all(0 <= weight <= FAR for weight in columns["weight"]):
        raise ContractError("config weight: must be numbers from 0, found others")
    values, controls = _tensors(content, "shared."), _tensors(content, "control.")
    ids = [read_ids(record) for record in _records(content, "rows.")]
    head = {name: config.get(name) for name in ("round", "split", "rho")}
    if type(head["round"]) is not int or head["split"] not in ("validation", "test"):
        raise ContractError(f"config: must hold round, split and rho, found {quoted(head)}")
    admit_rho(head["rho"])
    cache: dict[tuple[float, ...], Broadcast] = {}  # equal ones are one object, which need be looked at once
    broadcasts = {}
    for name, about in zip(names, zip(*(columns[n] for n in ABOUT), strict=True), strict=True):
        if about not in cache:
            keep, seen, shared, control, row = about
            cache[about] = Broadcast(
                values=_pick(values, shared),
                control=None if control == -1 else _pick(controls, control),
                rows={} if row == -1 else _pick(ids, row),
                keep=bool(keep),
                seen=int(seen),
                **cast(dict[str, Any], head),
            )
        broadcasts[name] = cache[about]
    chunks = {
        name: (int(chunk), float(weight))
        for name, chunk, weight in zip(names, columns["chunk"], columns["weight"], strict=True)
        if chunk != ALONE
    }
    return Call(broadcasts, chunks, tuple(_strings(config, "told", METRIC)))


def answers_record(answers: Answers) -> RecordDict:
    """Return the content of a node's answer."""
    content, many = RecordDict(), len(answers.contributions) > 1
    values, rows = _Distinct(content, "shared.", many), _Distinct(content, "rows.", many)
    metrics: dict[str, int] = {}
    triples: list[tuple[int, int, float]] = []
    for place, reply in enumerate(answers.contributions):
        for name, value in sorted(reply.metrics.items()):
            triples.append((place, metrics.setdefault(name, len(metrics)), value))
    replies = answers.contributions
    content["config"] = _compact(
        {
            "client": [reply.client for reply in replies],
            "device": [reply.device for reply in replies],
            "shared": [values.add(reply.values) for reply in replies],
            "rows": [rows.ids(reply.rows) for reply in replies],
            "metric": list(metrics),
            "failed": list(answers.failed),
            "reason": list(answers.failed.values()),
            "sums": len(answers.subtotals),
        }
    )
    content["metrics"] = MetricRecord(
        {
            "client": [place for place, _, _ in triples],
            "name": [name for _, name, _ in triples],
            "value": [value for _, _, value in triples],
        }
    )
    for place, part in enumerate(answers.subtotals):
        content[f"sum.{place}"] = pack(part.values)
        content[f"of.{place}"] = ConfigRecord(
            {"client": list(part.clients), "gap": part.gap, **{n: list(counts) for n, counts in part.counts.items()}}
        )
    return content


def read_answers(content: RecordDict) -> Answers:
    """Return what a node answered; raises ContractError for a malformed message, or one that holds more."""
    config = _config(content, ANSWERS, "metrics", "shared.", "rows.", "sum.", "of.")
    names, devices = _strings(config, "client"), _list(config, "device")
    for device in set(devices):
        admit_device(device)
    columns = {name: _column(config, name, len(names)) for name in ("shared", "rows")}
    if len(devices) != len(names):
        raise ContractError(f"config: must hold a device for each of {len(names)} clients, found {len(devices)}")
    metrics = _metrics(content, _strings(config, "metric", METRIC), len(names))
    values = _tensors(content, "shared.")
    rows = [read_ids(record) for record in _records(content, "rows.")]
    contributions = [
        Contribution(name, _pick(values, shared), metrics[place], devices[place], _pick(rows, row) if row != -1 else {})
        for place, (name, shared, row) in enumerate(zip(names, columns["shared"], columns["rows"], strict=True))
    ]
    failed, reasons = _strings(config, "failed"), texts("config reason", config.get("reason", []))
    if len(failed) != len(reasons):
        raise ContractError(f"config: must hold a reason for each failed client, found {len(reasons)}")
    return Answers(contributions, _subtotals(content, config), dict(zip(failed, reasons, strict=True)))


def _subtotals(content: RecordDict, config: ConfigRecord) -> list[Subtotal]:
    count = config.get("sums", 0)
    if type(count) is not int or count < 0:
        raise ContractError(f"config: must hold the number of sums, found {quoted(count)}")
    sums = []
    for place in range(count):
        about, values = part(content, f"of.{place}", ConfigRecord), content.get(f"sum.{place}")
        gap = about.get("gap")
        if not isinstance(values, ArrayRecord) or type(gap) is not float or not 0 <= gap <= FAR:
            raise ContractError(f"sum {place}: must hold tensors and a gap that is finite and not negative")
        clients = tuple(_strings(about, "client"))
        counts = {name: _counts(about, name, len(clients)) for name in about.keys() - {"client", "gap"}}
        sums.append(Subtotal(clients, unpack(values), gap, counts))
    return sums


def _metrics(content: RecordDict, names: Sequence[str], clients: int) -> list[dict[str, float]]:
    record = part(content, "metrics", MetricRecord)
    columns = [record.get(name) for name in ("client", "name", "value")]
    if not all(isinstance(column, list) for column in columns) or len({len(cast("list[Any]", c)) for c in columns}) > 1:
        raise ContractError("metrics: must hold three columns of one length")
    metrics: list[dict[str, float]] = [{} for _ in range(clients)]
    for place, name, value in zip(*cast("list[list[Any]]", columns), strict=True):
        if not (type(place) is type(name) is int and 0 <= place < clients and 0 <= name < len(names)):
            raise ContractError(f"metrics: must name a client and a metric of the message, found {place}, {name}")
        metrics[int(place)][names[int(name)]] = float(value)
    return metrics


def _compact(fields: dict[str, Any]) -> ConfigRecord:
    """Return a configuration without what is as usual."""
    unusual = {n: v for n, v in fields.items() if n not in USUAL or set(v) - {USUAL[n]}}
    return ConfigRecord({n: v for n, v in unusual.items() if v or n not in NONE})


def _config(content: RecordDict, fields: frozenset[str], *others: str) -> ConfigRecord:
    """Return the configuration of a message; raises ContractError if it is not whole, or not all beside `others`."""
    for name in content:
        if name != "config" and (name if "." not in name else f"{name.partition('.')[0]}.") not in others:
            allowed = ", ".join(sorted(other.strip(".") for other in ("config", *others)))
            raise ContractError(f"record {plain(name)}: must be one of {allowed}")
    config = content.get("config")
    if not isinstance(config, ConfigRecord):
        raise ContractError("record config: must be sent, found missing or of another kind")
    if not NEEDED[fields] <= config.keys() <= fields:
        raise ContractError(f"config: must hold {', '.join(sorted(fields))}, found {quoted(sorted(config))}")
    return config


def _strings(config: ConfigRecord, name: str, most: int = NAME) -> list[str]:
    return admit_names(f"config {name}", _list(config, name), most)


def _list(config: ConfigRecord, name: str) -> list[Any]:
    column = config.get(name, [] if name in NONE else None)
    if not isinstance(column, list):
        raise ContractError(f"config {name}: must be a list, found {type(column).__name__}")
    return cast("list[Any]", column)


def _column(config: ConfigRecord, name: str, length: int) -> list[float]:
    column = config.get(name, [USUAL[name]] * length if name in USUAL else None)
    if not isinstance(column, list) or len(column) != length or not set(map(type, column)) <= {bool, int, float}:
        raise ContractError(f"config {name}: must hold a number for each of {length} clients")
    return cast("list[float]", column)


def _whole(config: ConfigRecord, name: str, length: int) -> list[float]:
    column = _column(config, name, length)
    if not set(map(type, column)) <= {bool, int}:
        raise ContractError(f"config {name}: must hold whole numbers, found others")
    return column


def _counts(config: ConfigRecord, name: str, length: int) -> list[int]:
    return [int(count) for count in _whole(config, name, length)]


def _records(content: RecordDict, prefix: str) -> list[ArrayRecord]:
    # Not through `array_records`, which copies and checks the whole message at every access.
    records = {n: record for n, record in content.items() if n.startswith(prefix) and isinstance(record, ArrayRecord)}
    if set(records) != {f"{prefix}{place}" for place in range(len(records))}:
        raise ContractError(f"record {prefix}: must be numbered from 0, found {quoted(sorted(records))}")
    return [records[f"{prefix}{place}"] for place in range(len(records))]


def _tensors(content: RecordDict, prefix: str) -> list[Params]:
    return [unpack(record) for record in _records(content, prefix)]


def _pick(parts: Sequence[T], place: float) -> T:
    if not (0 <= place < len(parts) and place == int(place)):
        raise ContractError(f"part: must be one of the {len(parts)} that were sent, found {place}")
    return parts[int(place)]


def ids_record(rows: Mapping[str, Ints]) -> ArrayRecord:
    """Return global row ids, by key space, as a record."""
    return ArrayRecord({space: array(ids) for space, ids in sorted(rows.items())})


def read_ids(record: ArrayRecord) -> dict[str, Ints]:
    """Return the row ids of a record; raises ContractError for what is no numeric array."""
    return numbers(record, "rows ")


def admit_rho(value: object) -> float:
    """Return a penalty rho; raises ContractError for what is none."""
    if not isinstance(value, float) or not 0 <= value <= LARGEST:
        raise ContractError(f"rho: must be a number from 0 to {LARGEST:g}, found {quoted(value)}")
    return value


def texts(name: str, value: object) -> list[str]:
    """Return a list of texts of any kind, shortened; raises ContractError for anything else."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ContractError(f"{name}: must be a list of texts, found {type(value).__name__}")
    return [str(text)[:TEXT] for text in value]


def plain(name: str) -> str:
    """Return the name of a record, as it may be quoted in an error."""
    return quoted(name).strip("'")


def quoted(value: object) -> str:
    """Return what was found, as it may be quoted in an error: in ASCII, and its beginning only."""
    text = ascii(value) if not isinstance(value, ConfigRecord) else ascii(dict(value))
    return text if len(text) <= QUOTED else f"{text[:QUOTED]}..."


def part(record: RecordDict, name: str, kind: type[R]) -> R:
    """Return one record of a message, an empty one if there is none of that kind.

    Not through `array_records` and the like, which copy and check the whole message at every access.
    """
    inner = record.get(name)
    return inner if isinstance(inner, kind) else kind()


def ledger(content: RecordDict, number: int, client: str, direction: str) -> list[Entry]:
    """Return one entry for each array of a message about one client, in the order of their names."""
    entries = []
    for place in ("rows", "shared", "control"):
        records = (record for name, record in content.items() if name.partition(".")[0] == place)
        arrays = (item for record in records if isinstance(record, ArrayRecord) for item in record.items())
        for name, raw in sorted(arrays, key=lambda item: item[0]):
            count = raw.shape[0] if raw.shape and (name in TABLES or place == "rows") else 0
            label = name if place == "shared" else f"{place}:{name}"
            entries.append(Entry(number, client, direction, label, count, len(raw.data)))
    return entries
