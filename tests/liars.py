"""Clients that lie: a grid on which the messages of one arrive otherwise, and random lies, at the level of records."""

from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from hypothesis import strategies as st

from clients.app import client_app
from fedrec.experiment import Experiment
from fedrec.holdings import clients_data
from simulations.engines.host import Host
from simulations.engines.local import LocalGrid
from tests.helpers import SpyGrid

NONE: Mapping[tuple[str, int], Any] = {}
Lie = Callable[[RecordDict], RecordDict | Error | None]  # what arrives of an answer; None: nothing
KINDS = {"query.join": 0, "train": 1, "evaluate": 1}  # where a liar lies: its message and the round


class LyingGrid(SpyGrid):
    """A grid on which what one client sends arrives otherwise: `lies` by (kind of message, round)."""

    def __init__(self, e: Experiment, liar: str, lies: Mapping[tuple[str, int], Lie], home: Path | None = None) -> None:
        super().__init__(client_app(lambda _: (e, home)), len(clients_data(e)))
        names = [data.name for data in clients_data(e)]
        self.node, self.lies = list(self.contexts)[names.index(liar)], lies

    def _answer(self, message: Message) -> Message:
        reply, lie = super()._answer(message), self.lies.get(asked(message))
        return lied(lie, reply, message) if lie and message.metadata.dst_node_id == self.node else reply


class HostsGrid(LocalGrid):
    """A grid of hosts of two clients each, one of whom lies (`lies`), or the first host itself (`wrecks`)."""

    hosts = True

    def __init__(
        self,
        e: Experiment,
        liar: str = "",
        lies: Mapping[tuple[str, int], Lie] = NONE,
        wrecks: Mapping[tuple[str, int], Lie] = NONE,
    ) -> None:
        super().__init__()
        names = [data.name for data in clients_data(e)]
        honest = client_app(lambda _: (e, None))

        def app(message: Message, context: Context) -> Message:
            reply, lie = honest(message, context), lies.get(asked(message))
            who = names[int(context.node_config["partition-id"])]
            return lied(lie, reply, message) if lie and who == liar else reply

        order = sorted(range(len(names)), key=names.__getitem__)  # in which the server sums them
        parts = [order[start : start + 2] for start in range(0, len(names), 2)]
        self.each = {2 + k: Host(cast(ClientApp, app), part, len(names)) for k, part in enumerate(parts)}
        self.wrecks = wrecks

    def get_node_ids(self) -> Iterable[int]:
        """Return the hosts' node ids."""
        return list(self.each)

    def _answer(self, message: Message) -> Message:
        host = self.each[message.metadata.dst_node_id]
        reply = Message(host.answer(message.metadata.message_type, message.content), reply_to=message)
        wreck = self.wrecks.get(asked(message)) if message.metadata.dst_node_id == 2 else None
        return lied(wreck, reply, message) if wreck else reply


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
