"""Clients that lie: a grid on which the messages of one arrive otherwise, and random lies, at the level of records."""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from hypothesis import strategies as st

from clients.app import clients_of
from clients.client import Client
from clients.node import Node
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data
from fedrec.sharing import Broadcast, ContractError, Contribution
from simulations.engines.inline import InlineGrid
from simulations.engines.nodes import each_alone
from tests.helpers import SpyGrid
from tests.letters import contribution_record, read_contribution

NONE: Mapping[tuple[str, int], Any] = {}
Lie = Callable[[RecordDict], RecordDict | Error | None]  # what arrives of an answer; None: nothing
KINDS = {"query.join": 0, "train": 1, "evaluate": 1}  # where a liar lies: its message and the round


class LyingGrid(SpyGrid):
    """A grid on which what one client sends arrives otherwise: `lies` by (kind of message, round)."""

    def __init__(self, e: Experiment, liar: str, lies: Mapping[tuple[str, int], Lie], home: Path | None = None) -> None:
        super().__init__(each_alone(e, home))
        names = [data.name for data in clients_data(e)]
        self.node, self.lies = list(self.nodes)[names.index(liar)], lies

    def _answer(self, message: Message) -> Message:
        reply, lie = super()._answer(message), self.lies.get(asked(message))
        return lied(of_one(lie), reply, message) if lie and message.metadata.dst_node_id == self.node else reply


class LyingNode(Node):
    """A node of whose clients one lies: about what it contributes, or in a stage of a secure sum."""

    def __init__(self, clients: Sequence[Client], liar: str, lies: Mapping[tuple[str, int], Lie]) -> None:
        super().__init__(clients)
        self.liar, self.lies = liar, lies

    def told(self, kind: str, name: str, number: int, content: RecordDict) -> RecordDict:
        """Return what arrives of what a client says; raises UserError if it says that it fails, or nothing."""
        lie = self.lies.get((kind, number))
        made = of_one(lie)(content) if lie and name == self.liar else content
        if not isinstance(made, RecordDict):
            raise UserError(str(made.reason) if made else "gone")
        return made

    def first(self, name: str) -> Contribution:
        """See Node."""
        return read_contribution(self.told("query.join", name, 0, contribution_record(super().first(name))))

    def reply(self, kind: str, name: str, sent: Broadcast) -> Contribution:
        """See Node."""
        reply = contribution_record(super().reply(kind, name, sent))
        made = read_contribution(self.told(kind, name, sent.round, reply))
        if made.client != name:
            raise ContractError(f"must answer under its own name, found {made.client!a}")
        return made

    def staged(self, kind: str, name: str, content: RecordDict) -> RecordDict:
        """See Node."""
        number = content.config_records["config"]["round"]
        return self.told(kind, name, int(cast(int, number)), super().staged(kind, name, content))


class HostsGrid(InlineGrid):
    """A grid of nodes of two clients each, one of whom lies (`lies`), or the first node itself (`wrecks`)."""

    def __init__(
        self,
        e: Experiment,
        liar: str = "",
        lies: Mapping[tuple[str, int], Lie] = NONE,
        wrecks: Mapping[tuple[str, int], Lie] = NONE,
    ) -> None:
        names = [data.name for data in clients_data(e)]
        order = sorted(range(len(names)), key=names.__getitem__)  # in which the server sums them
        parts = [order[start : start + 2] for start in range(0, len(names), 2)]
        super().__init__([LyingNode(clients_of(e, None, part), liar, lies) for part in parts], hosts=True)
        self.wrecks = wrecks

    def _answer(self, message: Message) -> Message:
        reply = super()._answer(message)
        wreck = self.wrecks.get(asked(message)) if message.metadata.dst_node_id == 2 else None
        return lied(wreck, reply, message) if wreck else reply


def of_one(lie: Lie) -> Lie:
    """Return the lie of a node's one client, which knows its name, its device and its metrics as single values."""

    def told(content: RecordDict) -> RecordDict | Error | None:
        config = content.config_records.get("config", ConfigRecord())
        if not isinstance(config.get("metric"), list):
            return lie(content)  # in a stage of a secure sum
        flat: dict[str, Any] = {name.removesuffix(".0"): record for name, record in content.items()}
        about, columns = cast("dict[str, Any]", config), cast("dict[str, Any]", content["metrics"])
        flat["config"] = ConfigRecord({key: about[key][0] for key in ("client", "device")})
        flat["metrics"] = MetricRecord(dict(zip(about["metric"], columns["value"], strict=True)))
        made = lie(RecordDict(flat))
        if not isinstance(made, RecordDict):
            return made
        found: dict[str, Any] = {
            f"{name}.0" if name in ("shared", "rows", "control") else name: r for name, r in made.items()
        }
        if isinstance(own := made.get("config"), ConfigRecord):
            values: dict[str, Any] = {
                key: [value] if type(value) in (str, bytes, int, float) else value for key, value in own.items()
            }
            rows = {"rows": [0]} if "rows" in made else {}
            found["config"] = ConfigRecord({**config, **values, **rows})
        if isinstance(metrics := made.get("metrics"), MetricRecord):
            pairs = [
                (name, v) for name, value in metrics.items() for v in (value if isinstance(value, list) else [value])
            ]
            more: Any = {"metric": [name for name, _ in pairs]}
            if isinstance(found.get("config"), ConfigRecord):
                found["config"] = ConfigRecord({**found["config"], **more})
            places = list(range(len(pairs)))
            found["metrics"] = MetricRecord(
                {"client": [0] * len(pairs), "name": places, "value": [float(v) for _, v in pairs]}
            )
        return RecordDict(found)

    return told


def asked(message: Message) -> tuple[str, int]:
    """Return the kind and the round of a message."""
    config = message.content.config_records.get("config")
    if config is None:  # to join, or of several clients in a stage of a secure sum
        parts = [r["round"] for name, r in message.content.config_records.items() if name.endswith("/config")]
        return message.metadata.message_type, int(cast(int, parts[0])) if parts else 0
    return message.metadata.message_type, int(cast(int, config["round"]))


def lied(lie: Lie, reply: Message, message: Message) -> Message:
    """Return what arrives of a reply to a message."""
    made = lie(RecordDict(dict(reply.content)))
    if made is None:
        made = Error(code=ErrorCode.MESSAGE_UNAVAILABLE, reason="gone")
    return Message(made, reply_to=message)


def silence(content: RecordDict) -> None:
    """Lose the answer."""


def with_array(name: str, change: Callable[[Array], Array], place: str = "shared") -> Lie:
    """Return the lie with another array under a name."""

    def lie(content: RecordDict) -> RecordDict:
        record = ArrayRecord(dict(content.array_records[place]))
        record[name] = change(record[name])
        return RecordDict({**content, place: record})

    return lie


def with_new(name: str) -> Lie:
    """Return the lie with one more parameter, of one zero."""
    more = Array(np.zeros(1, np.float32))
    return lambda content: RecordDict(
        {**content, "shared": ArrayRecord({**content.array_records["shared"], name: more})}
    )


def entry(value: float) -> Callable[[Array], Array]:
    """Return a change of one entry."""

    def change(array: Array) -> Array:
        found = array.numpy().copy()
        found.reshape(-1)[-1] = value
        return Array(found)

    return change


def with_config(**values: Any) -> Lie:
    """Return the lie with other values in its configuration."""
    return lambda content: RecordDict(
        {**content, "config": ConfigRecord({**content.config_records["config"], **values})}
    )


def with_metrics(**values: Any) -> Lie:
    """Return the lie with other metrics."""
    return lambda content: RecordDict(
        {**content, "metrics": MetricRecord({**content.metric_records["metrics"], **values})}
    )


def with_records(**records: Any) -> Lie:
    """Return the lie with other records; None leaves one out."""
    return lambda content: RecordDict({n: r for n, r in {**content, **records}.items() if r is not None})


def archive() -> bytes:
    """Return two arrays in NumPy's archive, which is opened where an array is expected."""
    out = BytesIO()
    np.savez(out, a=np.ones(2), b=np.ones(2))
    return out.getvalue()


def header(shape: str) -> bytes:
    """Return an array in NumPy's format that says that it has this shape."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(16)


def raw(data: bytes, shape: tuple[int, ...] = (2, 2), stype: str = "numpy.ndarray") -> Array:
    """Return an array that holds any bytes."""
    return Array(dtype="float32", shape=shape, stype=stype, data=data)


VALUES = st.sampled_from([1e13, -1e30, 1e38, 3.4e38, float("nan"), float("inf"), 1e7, -1e9])
TEXTS = st.one_of(
    st.sampled_from(["x" * 10**7, "<script>alert(1)</script>", "[bold]", "a\x1b[2Jb", "", "7" * 5000, "shop", "films"]),
    st.text(max_size=20),
)
WORDS = st.one_of(TEXTS, st.integers(-(2**63), 2**63 - 1), st.binary(max_size=9), st.lists(st.text(max_size=3)))
NUMBERS = st.one_of(
    st.sampled_from([1e308, -1e308, -1.0, 2.0**52, 1e13, float("-inf")]), st.floats(), st.integers(-9, 9)
)
FORMS = ["float32", "float64", "float16", "int64", "uint64", "uint16", "int8", ">f4", "complex64", "bool"]
DTYPES = st.sampled_from(FORMS)


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    """Return an array of any kind, or bytes that are none."""
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=9)))
    value = np.full(shape, draw(st.sampled_from([0.0, 1.0, 100.0]))).astype(draw(DTYPES))
    bad = [
        raw(draw(st.binary(max_size=60)), shape),
        raw(archive()),
        raw(header("(100000000000,)")),
        raw(header("(-1,)")),
        raw(header("(2, 2)"), (10**12,)),
        raw(header("(2, 2)"), stype="pickle"),
        raw(header("(3,)")),
    ]
    return draw(st.sampled_from([Array(value), Array(value), Array(np.asfortranarray(value)), *bad]))


@st.composite
def lies(draw: st.DrawFn) -> Lie:
    """Return a change of an answer, of any part of it."""
    word, number, place = draw(WORDS), draw(NUMBERS), draw(st.sampled_from(["shared", "rows"]))
    other = draw(st.sampled_from([ArrayRecord(), ConfigRecord({"a": 1}), MetricRecord({"a": [1.0]}), None]))
    name, key, record = (
        draw(TEXTS),
        draw(st.sampled_from(["client", "device", "x"])),
        draw(st.sampled_from(["shared", "config", "metrics", "rows", "control", "more"])),
    )
    array, value = draw(arrays()), draw(VALUES)
    error = Error(code=draw(st.integers(0, 500)), reason=name)

    def any_array(content: RecordDict) -> RecordDict:
        names = sorted(content.array_records.get(place, ArrayRecord()))
        return with_array(names[0], lambda _: array, place)(content) if names else content  # type: ignore[return-value]

    def any_entry(content: RecordDict) -> RecordDict:
        names = sorted(content.array_records.get("shared", ArrayRecord()))
        return with_array(names[-1], entry(value))(content) if names else content  # type: ignore[return-value]

    def new_array(content: RecordDict) -> RecordDict:
        made = ArrayRecord({**content.array_records["shared"], name: array})
        return RecordDict({**content, "shared": made})

    def any_metric(content: RecordDict) -> RecordDict:
        names = sorted(content.metric_records["metrics"])
        return with_metrics(**{draw_from: number})(content) if (draw_from := (names or ["x"])[0]) else content  # type: ignore[return-value]

    choices: list[Lie] = [
        any_array,
        any_entry,
        any_entry,
        new_array,
        any_metric,
        with_metrics(**{name: number}),
        with_metrics(x=[1.0, 2.0]),
        with_config(**{key: word}),
        with_records(**{record: other}),
        lambda content: error,
        lambda content: RecordDict(),
        silence,
    ]
    return draw(st.sampled_from(choices))


LISTS = st.one_of(
    st.lists(st.integers(-3, 3), max_size=5),
    st.lists(st.sampled_from([0.0, 1e308, -1.0, 1e9]), max_size=5),
    st.lists(st.sampled_from(["films", "shop", "news", "books", "x" * 10**6, "\n", ""]), max_size=5),
    st.lists(st.binary(max_size=40), max_size=5),
    st.lists(st.booleans(), max_size=5),
)


@st.composite
def wrecks(draw: st.DrawFn) -> Lie:
    """Return a change of any field of any message."""
    place, field = draw(st.integers(0, 50)), draw(st.integers(0, 50))
    array, value, how = draw(arrays()), draw(VALUES), draw(st.integers(0, 4))
    word = draw(st.one_of(WORDS, LISTS, NUMBERS))
    numbers = draw(st.one_of(st.lists(st.integers(-3, 3), max_size=5), NUMBERS))

    def wreck(content: RecordDict) -> RecordDict:
        records = dict(content)
        name = sorted(records)[place % len(records)]
        record = records[name]
        key = sorted(record)[field % len(record)] if len(record) else ""
        if how == 0:
            del records[name]
        elif how == 1 and key:
            del record[key]
        elif isinstance(record, ArrayRecord):
            usual = entry(value)(record[key]) if key and how == 2 and record[key].numpy().dtype.kind == "f" else array
            records[name] = ArrayRecord({**record, key or "x": usual})
        elif isinstance(record, MetricRecord):
            records[name] = MetricRecord({**record, key or "x": numbers})
        else:
            records[name] = ConfigRecord({**record, key or "x": word})
        return RecordDict(records)

    return wreck
