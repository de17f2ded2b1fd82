"""The messages of secure sums as Flower records and back. What arrives is input: it is parsed.

Every list is as long as the round has clients, every key and share has its fixed size: no length depends on data.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedrec.privacy.encoding import Layout
from fedrec.privacy.masks import KEY, TAG, Words
from fedrec.privacy.secure_sum import Keys, Member, Stage
from fedrec.privacy.shamir import SHARE
from fedrec.sharing import BYTES, METRIC, Broadcast, ContractError, admit_device, admit_name
from fedrec.wire.arrays import array, numbers
from fedrec.wire.messages import Call, Entry, Packed, call_record, ledger, part, plain, quoted, read_call, read_ids

KINDS: dict[Stage, str] = {
    "keys": "train.keys",
    "shares": "train.shares",
    "masked": "train.masked",
    "unmask": "train.unmask",
}
STAGES = frozenset(KINDS.values())
SEALED = 2 * SHARE + TAG  # bytes of the sealed shares of a client's two secrets
PARTS = ("shared.0", "config")  # of a message that also is a call


@dataclass(frozen=True)
class Masked:
    """What a client is sent to train on: the broadcast, its peers' sealed shares, and the layout of the vector."""

    broadcast: Broadcast
    sealed: list[tuple[str, bytes]]
    layout: Layout


@dataclass(frozen=True)
class Sum:
    """What a client answers: its vector under the masks, and what it tells of its training."""

    client: str
    words: Words
    metrics: dict[str, float]
    device: str


def keys_call(number: int) -> RecordDict:
    """Return the request for a round's keys."""
    return RecordDict({"config": _record(round=number)})


def read_number(content: RecordDict, *others: str) -> int:
    """Return the round of a message that holds these other records only; raises ContractError."""
    _only(content, "config", *others)
    config = part(content, "config", ConfigRecord)
    number = config.get("round")
    if len(config) != 1 or type(number) is not int or not 0 < number < 2**63:
        raise ContractError(f"config: must hold the round alone, found {quoted(config)}")
    return number


def keys_answer(client: str, keys: Keys) -> RecordDict:
    """Return a client's public keys."""
    return RecordDict({"config": _record(client=client), "keys": _record(mask=keys.mask, seal=keys.seal)})


def read_keys(content: RecordDict, client: str) -> Keys:
    """Return what `keys_answer` wrote for this client; raises ContractError."""
    _from(content, client, "keys")
    record = part(content, "keys", ConfigRecord)
    if len(record) != 2:
        raise ContractError(f"keys: must be mask and seal, found {quoted(sorted(record))}")
    return Keys(_bytes("mask", record.get("mask"), KEY), _bytes("seal", record.get("seal"), KEY))


def roster_call(number: int, roster: Mapping[str, Keys]) -> RecordDict:
    """Return the keys of all clients of a round, for each of them."""
    masks, seals = [keys.mask for keys in roster.values()], [keys.seal for keys in roster.values()]
    table = _record(client=list(roster), mask=masks, seal=seals)
    return RecordDict({"config": _record(round=number), "roster": table})


def read_roster(content: RecordDict) -> tuple[int, list[tuple[str, Keys]]]:
    """Return the round and the keys by client; raises ContractError."""
    number = read_number(content, "roster")
    names, masks, seals = _table(content, "roster", mask=KEY, seal=KEY)
    return number, [(name, Keys(*keys)) for name, *keys in zip(names, masks, seals, strict=True)]


def shares_answer(client: str, shares: Mapping[str, bytes]) -> RecordDict:
    """Return a client's shares: sealed ones for its peers, or those that unmask the sum."""
    table = _record(client=list(shares), share=list(shares.values()))
    return RecordDict({"config": _record(client=client), "shares": table})


def read_shares(content: RecordDict, client: str, size: int, names: Sequence[str]) -> dict[str, bytes]:
    """Return a share of `size` bytes for each of the names and nobody else; raises ContractError."""
    _from(content, client, "shares")
    clients, shares = _table(content, "shares", share=size)
    if sorted(clients) != sorted(names):
        raise ContractError(f"shares: must be one for each of {len(names)} clients, found {len(clients)} for others")
    return dict(zip(clients, shares, strict=True))


def masked_call(client: str, asked: Masked, packed: Packed | None = None) -> RecordDict:
    """Return the message on which a client trains; `packed` is as in `call_record`."""
    content = call_record(Call({client: asked.broadcast}), packed)
    content["shares"] = _record(client=[name for name, _ in asked.sealed], share=[text for _, text in asked.sealed])
    content["layout"] = ConfigRecord({name: list(shape) for name, shape in asked.layout.shapes.items()})
    content["rows"] = ArrayRecord({name: array(ids) for name, ids in sorted(asked.layout.rows.items())})
    return content


def read_masked(content: RecordDict) -> Masked:
    """Return what `masked_call` wrote; raises ContractError."""
    _only(content, *PARTS, "shares", "layout", "rows")
    sent = read_call(RecordDict({name: content[name] for name in PARTS if name in content})).broadcasts
    if len(sent) != 1:
        raise ContractError(f"config client: must be one, found {len(sent)}")
    names, sealed = _table(content, "shares", share=SEALED)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in part(content, "layout", ConfigRecord).items():
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise ContractError(f"layout {quoted(name)}: must be a shape, found {type(shape).__name__}")
        shapes[admit_name("layout", name)] = tuple(cast("list[int]", shape))
    if sum(8 * math.prod(shape) for shape in shapes.values()) > BYTES:
        raise ContractError(f"layout: must be of at most {BYTES} bytes, found more")
    rows = read_ids(part(content, "rows", ArrayRecord))
    (broadcast,) = sent.values()
    return Masked(broadcast, list(zip(names, sealed, strict=True)), Layout(dict(sorted(shapes.items())), rows))


def masked_answer(answer: Sum) -> RecordDict:
    """Return a client's masked vector."""
    config = _record(client=answer.client, device=answer.device)
    metrics = MetricRecord({name: answer.metrics[name] for name in sorted(answer.metrics)})
    return RecordDict({"config": config, "masked": ArrayRecord({"sum": array(answer.words)}), "metrics": metrics})


def read_masked_answer(content: RecordDict, client: str, size: int) -> Sum:
    """Return the masked vector [size] of this client; raises ContractError."""
    _only(content, "config", "masked", "metrics")
    config, record = part(content, "config", ConfigRecord), part(content, "masked", ArrayRecord)
    if config.keys() != {"client", "device"} or config["client"] != client:
        raise ContractError(f"config: must hold the client {client} and its device, found {quoted(config)}")
    if list(record) != ["sum"]:
        raise ContractError(f"masked: must be one sum, found {quoted(sorted(record))}")
    words = numbers(record, "masked ")["sum"]
    if words.dtype != np.uint64 or words.shape != (size,):
        raise ContractError(f"masked sum: must be {size} words of 64 bits, found {list(words.shape)} of {words.dtype}")
    return Sum(client, words, read_metrics(content), admit_device(config["device"]))


def read_metrics(content: RecordDict) -> dict[str, float]:
    """Return the metrics of a message; raises ContractError for more than one number under a name."""
    metrics: dict[str, float] = {}
    for name, value in part(content, "metrics", MetricRecord).items():
        admit_name("metric", name, METRIC)
        if isinstance(value, list):
            raise ContractError(f"metric {name}: must be one number, found {len(value)}")
        metrics[name] = float(value)
    return metrics


def unmask_call(number: int, survivors: Sequence[str], dropped: Sequence[str]) -> RecordDict:
    """Return who is in the sum, and who dropped out after the shares were dealt."""
    peers = _record(survivors=list(survivors), dropped=list(dropped))
    return RecordDict({"config": _record(round=number), "peers": peers})


def read_unmask(content: RecordDict) -> tuple[int, list[str], list[str]]:
    """Return the round, the survivors and the dropped; raises ContractError."""
    number, record = read_number(content, "peers"), part(content, "peers", ConfigRecord)
    if len(record) != 2:
        raise ContractError(f"peers: must be survivors and dropped, found {quoted(sorted(record))}")
    return number, strings("survivors", record.get("survivors")), strings("dropped", record.get("dropped"))


def member_record(member: Member) -> ConfigRecord:
    """Return what a client keeps of a round, for its own memory."""
    fields = ("name", "round", "threshold", "most", "stage", "mask_key", "seal_key", "seed")
    return _record(
        **{name: getattr(member, name) for name in fields},
        roster=list(member.roster),
        mask=[keys.mask for keys in member.roster.values()],
        seal=[keys.seal for keys in member.roster.values()],
        dealer=list(member.shares),
        share=list(member.shares.values()),
    )


def read_member(record: ConfigRecord) -> Member:
    """Return what `member_record` wrote."""
    fields = cast("dict[str, Any]", dict(record))
    roster, mask, seal, dealer, share = (fields.pop(name) for name in ("roster", "mask", "seal", "dealer", "share"))
    keys = {name: Keys(a, b) for name, a, b in zip(roster, mask, seal, strict=True)}
    return Member(**fields, roster=keys, shares=dict(zip(dealer, share, strict=True)))


def secure_ledger(content: RecordDict, number: int, client: str, direction: str) -> list[Entry]:
    """Return the entries of the byte ledger for a message of a secure sum."""
    entries = ledger(content, number, client, direction)
    metrics = part(content, "metrics", MetricRecord)
    if metrics:
        entries.append(Entry(number, client, direction, "metrics", 0, sum(len(name) + 8 for name in metrics)))
    for name, raw in part(content, "masked", ArrayRecord).items():
        entries.append(Entry(number, client, direction, f"masked:{name}", 0, len(raw.data)))
    for place in ("keys", "roster", "shares", "layout", "peers"):
        record = part(content, place, ConfigRecord)
        if record:
            size = sum(_size(value) for value in record.values())
            entries.append(Entry(number, client, direction, place, 0, size))
    return entries


def _size(value: object) -> int:
    if isinstance(value, list):
        return sum(map(_size, value))
    return len(value) if isinstance(value, bytes | str) else 8


def _record(**values: Any) -> ConfigRecord:
    return ConfigRecord(values)


def _only(content: RecordDict, *allowed: str) -> None:
    for name in content:
        if name not in allowed:
            raise ContractError(f"record {plain(name)}: must be one of {', '.join(sorted(allowed))}")


def _from(content: RecordDict, client: str, *others: str) -> None:
    _only(content, "config", *others)
    config = part(content, "config", ConfigRecord)
    if dict(config) != {"client": client}:
        raise ContractError(f"config: must hold the client {client} alone, found {quoted(config)}")


def _table(content: RecordDict, place: str, **sizes: int) -> list[list[Any]]:
    """Return the column of names and those of byte strings of fixed sizes."""
    record = part(content, place, ConfigRecord)
    if set(record) != {"client", *sizes}:
        raise ContractError(f"{place}: must hold client, {', '.join(sizes)}, found {quoted(sorted(record))}")
    columns: list[list[Any]] = [strings(f"{place} client", record.get("client"))]
    for name, size in sizes.items():
        column = record.get(name)
        if not isinstance(column, list) or len(column) != len(columns[0]):
            raise ContractError(f"{place} {name}: must be one for each client, found another number")
        columns.append([_bytes(f"{place} {name}", value, size) for value in column])
    return columns


def _bytes(name: str, value: object, size: int) -> bytes:
    if not isinstance(value, bytes) or len(value) != size:
        fault = f"{len(value)} bytes" if isinstance(value, bytes) else type(value).__name__
        raise ContractError(f"{name}: must be {size} bytes, found {fault}")
    return value


def strings(name: str, value: object) -> list[str]:
    """Return a list of texts; raises ContractError for anything else."""
    if not isinstance(value, list):
        raise ContractError(f"{name}: must be a list of names, found {type(value).__name__}")
    return [admit_name(name, text) for text in value]
