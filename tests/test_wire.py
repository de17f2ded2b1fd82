"""Messages: what is packed comes back, what is not allowed is refused, and the ledger counts the bytes that travel."""

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedrec.params import finite
from fedrec.sharing import Broadcast, ContractError, Contribution
from fedrec.wire import ledger, pack, unpack
from fedrec.wire.arrays import array, numeric, quick
from server.cohorts import Tally
from tests.letters import broadcast_record, contribution_record, read_broadcast, read_contribution

ARRAYS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))


NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=5)


@given(st.dictionaries(NAMES, ARRAYS, max_size=3))
def test_unpack_inverts_pack_to_the_bit(arrays: dict[str, np.ndarray]) -> None:
    params = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
    back = unpack(pack(params))
    assert back.keys() == params.keys()
    assert all(
        back[n].numpy().tobytes() == params[n].numpy().tobytes() and back[n].shape == params[n].shape for n in params
    )


def test_messages_come_back() -> None:
    sent = Broadcast(3, {"w": torch.arange(3.0)}, keep=True, split="test")
    got = read_broadcast(broadcast_record(sent, "shop"))
    assert (got.round, got.keep, got.split) == (3, True, "test")
    assert torch.equal(got.values["w"], sent.values["w"])
    reply = Contribution("shop", {"w": torch.ones(2)}, {"loss": 0.5}, "cpu", {"item": np.array([2, 5])})
    back = read_contribution(contribution_record(reply))
    assert (back.client, back.metrics, back.device) == ("shop", {"loss": 0.5}, "cpu")
    assert back.rows["item"].tolist() == [2, 5]


def test_the_bytes_of_a_message_are_a_function_of_its_content() -> None:
    reply = Contribution("shop", {"w": torch.ones(2)}, {"loss": 0.5, "a": 1.0})
    other = Contribution("shop", {"w": torch.ones(2)}, {"a": 1.0, "loss": 0.5})
    assert contribution_record(reply).object_id == contribution_record(other).object_id


def test_an_array_with_objects_is_refused_and_never_unpickled() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    record = ArrayRecord({"w": Array("object", (1,), "numpy.ndarray", buffer.getvalue())})
    with pytest.raises(ContractError, match=r"^w: must be a NumPy array without objects"):
        unpack(record)


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x93NUMPY\x01\x00\xff\xff"])
def test_a_damaged_array_is_refused(data: bytes) -> None:
    with pytest.raises(ContractError, match=r"^w: must be a NumPy array"):
        unpack(ArrayRecord({"w": Array("float32", (1,), "numpy.ndarray", data)}))


def test_text_is_no_parameter() -> None:
    with pytest.raises(ContractError, match=r"^w: must be numeric"):
        unpack(ArrayRecord({"w": Array(np.array(["secret"]))}))


def test_a_client_cannot_smuggle_a_record() -> None:
    record = contribution_record(Contribution("shop", {}))
    record["extra"] = ConfigRecord({"users": "1,2,3"})
    with pytest.raises(ContractError, match=r"^record extra: must be one of"):
        read_contribution(record)


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        ("shared.0", "^part: must be one of the 0 that"),
        ("metrics", "^metrics: must"),
        ("config", "^record config: must"),
    ],
)
def test_a_missing_record_is_refused(missing: str, text: str) -> None:
    record = contribution_record(Contribution("shop", {}))
    del record[missing]
    with pytest.raises(ContractError, match=text):
        read_contribution(record)


def test_the_server_cannot_ask_for_more() -> None:
    record = broadcast_record(Broadcast(1, {}), "shop")
    record["metrics"] = MetricRecord({"send-private": 1})
    with pytest.raises(ContractError, match=r"^record metrics: must be one of config, control, rows, shared"):
        read_broadcast(record)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"round": "x"}, "^config: must hold round, split and rho"),
        ({"split": "train"}, "^config: must hold round, split and rho"),
        ({"more": 1}, "^config: must hold chunk, client"),
        ({"keep": [0, 1]}, "^config keep: must hold a number for each of 1 clients"),
        ({"seen": [0.5]}, "^config seen: must hold whole numbers"),
        ({"rho": -1.0}, "^rho: must be a number from 0"),
    ],
)
def test_a_malformed_config_is_refused(change: dict[str, Any], text: str) -> None:
    record = broadcast_record(Broadcast(1, {}), "shop")
    record["config"] = ConfigRecord({**record["config"], **change})  # type: ignore[dict-item]
    with pytest.raises(ContractError, match=text):
        read_broadcast(record)


def test_a_config_that_is_not_whole_is_refused() -> None:
    record = RecordDict({"shared.0": ArrayRecord(), "config": ConfigRecord({"round": 1})})
    with pytest.raises(ContractError, match=r"^config: must hold chunk, client, .* found .*round"):
        read_broadcast(record)


def test_the_ledger_counts_what_travels() -> None:
    content = contribution_record(
        Contribution("shop", {"item_table": torch.zeros(7, 4), "body.0.bias": torch.zeros(3)}, {"loss": 1.0})
    )
    entries = ledger(content, 2, "shop", "up")
    assert [(e.parameter, e.rows) for e in entries] == [("body.0.bias", 0), ("item_table", 7)]
    header = 128  # NumPy's format pads its header to a multiple of 64 bytes
    assert [e.bytes for e in entries] == [header + 3 * 4, header + 7 * 4 * 4]
    arrays = sum(len(array.data) for array in content.array_records["shared.0"].values())
    assert arrays == sum(e.bytes for e in entries)
    tally = Tally(2, "up")
    tally.add("shop", {"w": torch.zeros(1)}, metrics={"loss": 1.0})
    ((names, told),) = tally.alike.values()
    assert names == ["shop"] and [(e.parameter, e.bytes) for e in told] == [
        ("w", header + 4),
        ("metrics", len("loss") + 8),
    ]


@given(
    dtype=st.sampled_from([np.float32, np.float64, np.int64, np.int32, np.uint8, np.float16]),
    shape=st.lists(st.integers(0, 4), max_size=4).map(tuple),
)
def test_arrays_are_the_bytes_that_numpy_saves_and_come_back(dtype: type, shape: tuple[int, ...]) -> None:
    value: np.ndarray = np.arange(math.prod(shape)).astype(dtype).reshape(shape)
    ours, theirs = array(value), Array(value)
    assert (ours.dtype, ours.shape, ours.stype, ours.data) == (theirs.dtype, theirs.shape, theirs.stype, theirs.data)
    back = quick(ours)
    assert back is not None and back.dtype == value.dtype and np.array_equal(back, value)
    assert back.flags.writeable


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY\x01\x00",
        b"\x93NUMPY\x01\x00\xff\xff{}",
        Array(np.zeros(3)).data[:-1],
        Array(np.zeros(3)).data + b"\0",
        Array(np.zeros((2, 3))).data.replace(b"(2, 3)", b"(2,-3)"),
        Array(np.asfortranarray(np.zeros((2, 3)))).data,
    ],
)
def test_arrays_of_another_kind_are_left_to_numpy(data: bytes) -> None:
    assert quick(Array("float64", (3,), "numpy.ndarray", data)) is None


def test_an_array_of_objects_is_refused() -> None:
    data = Array(np.zeros(3)).data.replace(b"'<f8'", b"'|O' ")
    with pytest.raises(ContractError, match="without objects"):
        numeric("table", Array("object", (3,), "numpy.ndarray", data))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_entry_that_is_not_finite_is_found_among_many(bad: float) -> None:
    value = torch.ones(7, 5)
    assert finite(value)
    value[3, 2] = bad
    assert not finite(value)
    value[4, 1] = -bad
    assert not finite(value)


def test_a_number_is_finite_if_its_squares_can_be_summed() -> None:
    assert finite(torch.tensor([1e12, -1e12])) and finite(torch.zeros(0))
    for value in (1.1e12, -3e38, math.nan, math.inf):
        assert not finite(torch.tensor([0.0, value, -value]))
