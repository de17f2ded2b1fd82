"""Tensors as Flower arrays and back.

They travel as NumPy's own format without pickle. Of a thousand messages most arrays have the same few headers, which
NumPy writes and parses in a tenth of a millisecond: each is written and parsed once. Sums that are mostly zero travel
as their other entries alone.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord

from fedrec.params import Params
from fedrec.sharing import BYTES, CROSS, DIMENSIONS, GRAM, TENSORS, ContractError, admit_name, is_sum
from fedrec.sparse import entries, from_places, places, thin

Numbers = np.ndarray[Any, np.dtype[Any]]
FIXED = 10  # bytes before the text of a header: NumPy's magic, the version, the length of the text
LONGEST = 512  # bytes of a header that is worth keeping
NONZERO = "fedrec.nonzero"  # the serialisation of an array as its entries that are not zero
COUNT = np.dtype("<u8")
FLOATS = ("float32", "float64")
PAIRS = 2**36  # of items, of which a message may have some


def pack(params: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """Return the tensors as a Flower record, sorted by name."""
    record = ArrayRecord()
    for name in sorted(params):
        value = params[name].detach().cpu()
        if value.is_sparse:
            record[name] = listed(value.shape, places(value), entries(value).numpy())
            continue
        dense = value.contiguous().numpy()
        record[name] = (nonzero(dense) if is_sum(name) else None) or array(dense)
    return record


def unpack(record: ArrayRecord) -> Params:
    """Return the tensors of a record; raises ContractError for too many, or one without pickle that is no numbers."""
    admit_size(record)
    return {admit_name("parameter", name): tensor(name, raw) for name, raw in record.items()}


def numbers(record: ArrayRecord, what: str) -> dict[str, Numbers]:
    """Return the arrays of a record, called `what` and their name in a ContractError."""
    admit_size(record)
    return {name: numeric(what + admit_name("parameter", name), raw) for name, raw in record.items()}


def admit_size(record: ArrayRecord) -> None:
    """Raise ContractError for a record of too many arrays, or of arrays that are too large when they are read."""
    if len(record) > TENSORS:
        raise ContractError(f"record: must hold at most {TENSORS} arrays, found {len(record)}")
    size = sum(max(len(raw.data), read_size(name, raw)) for name, raw in record.items())
    if size > BYTES:
        raise ContractError(f"record: must hold at most {BYTES} bytes, found {size}")


def tensor(name: str, raw: Array) -> torch.Tensor:
    """Return the tensor of an array, of many pairs of items sparse where its entries are few; raises ContractError."""
    if raw.stype != NONZERO:
        return torch.from_numpy(numeric(name, raw))
    at, values = entries_of(name, raw)
    if not stays_sparse(name, raw.shape, len(at)):
        return torch.from_numpy(numeric(name, raw))
    return from_places(at.astype(np.int64), torch.from_numpy(values.copy()), tuple(raw.shape))


def array(value: Numbers) -> Array:
    """Return `Array(value)`, the same bytes: those that NumPy's `save` writes for a contiguous array."""
    name, head = header(value.dtype, value.shape)
    return Array(dtype=name, shape=value.shape, stype="numpy.ndarray", data=b"".join((head, value.data)))


def numeric(name: str, raw: Array) -> Numbers:
    """Return the numbers of an array; raises ContractError if it cannot be read without pickle or holds none."""
    value = scattered(name, raw) if raw.stype == NONZERO else quick(raw)
    if value is None:
        try:
            value = raw.numpy()
        except Exception as error:  # whatever a header that is not NumPy's own makes it raise
            raise ContractError(f"{name}: must be a NumPy array without objects, found {error}") from None
    if not isinstance(value, np.ndarray):  # an archive of several, which `raw.numpy` opens too
        raise ContractError(f"{name}: must be one NumPy array, found {type(value).__name__}")
    if value.dtype.kind not in "fiu" or value.dtype.itemsize > 8 or not value.dtype.isnative:
        raise ContractError(f"{name}: must be numeric, found {value.dtype}")
    if (raw.dtype, tuple(raw.shape)) != (str(value.dtype), value.shape):
        raise ContractError(
            f"{name}: must be {value.dtype} of {list(value.shape)}, as its data say, found another form"
        )
    if value.ndim > DIMENSIONS:
        raise ContractError(f"{name}: must have at most {DIMENSIONS} dimensions, found {value.ndim}")
    return np.ascontiguousarray(value).reshape(value.shape)


def quick(raw: Array) -> Numbers | None:
    """Return the array if it is of the usual kind: numbers in C order, and exactly as many as its header says."""
    data = raw.data
    if raw.stype != "numpy.ndarray" or data[:8] != b"\x93NUMPY\x01\x00":
        return None
    end = FIXED + int.from_bytes(data[8:FIXED], "little")
    known = form(data[:end]) if end <= LONGEST else None
    if known is None:
        return None
    dtype, shape = known
    if len(data) - end != math.prod(shape) * dtype.itemsize:
        return None
    return np.frombuffer(data, dtype, offset=end).reshape(shape).copy()


def nonzero(value: Numbers) -> Array | None:
    """Return an array as the entries that are not zero, None where that is no smaller."""
    flat, place = value.reshape(-1), place_type(value.size)
    if value.dtype.name not in FLOATS or np.count_nonzero(flat) * (place.itemsize + value.itemsize) > value.nbytes:
        return None
    at = np.flatnonzero(flat)
    return listed(value.shape, at, flat[at])


def stand_in(like: Mapping[str, torch.Tensor], counts: Mapping[str, int]) -> Params:
    """Return tensors that travel in as many bytes as those of which so many entries are not zero."""
    found = Params()
    for name, value in like.items():
        size, count = value.numel(), counts.get(name, value.numel())
        if count * (place_type(size).itemsize + value.element_size()) > size * value.element_size():
            found[name] = torch.ones((), dtype=value.dtype).expand(value.shape)
        else:
            found[name] = from_places(np.arange(count), torch.ones(count, dtype=value.dtype), value.shape)
    return found


def listed(shape: Sequence[int], at: Numbers, values: Numbers) -> Array:
    """Return the array that has `values` at ascending places in C order, and is zero elsewhere.

    The bytes are the number of entries, their places (int32, or int64 of a larger array), and the values.
    """
    place = place_type(math.prod(shape))
    data = b"".join((np.array(len(at), COUNT).tobytes(), at.astype(place).tobytes(), values.tobytes()))
    return Array(dtype=values.dtype.name, shape=tuple(shape), stype=NONZERO, data=data)


def entries_of(name: str, raw: Array) -> tuple[Numbers, Numbers]:
    """Return the places of the entries of an array that are not zero, and these; raises ContractError."""
    shape, data = tuple(raw.shape), raw.data
    if raw.dtype not in FLOATS or not all(type(side) is int and side >= 0 for side in shape):
        raise ContractError(f"{name}: must be float32 or float64 of a shape, found {raw.dtype!a:.40} of {shape!a:.40}")
    size, dtype = math.prod(shape), np.dtype(raw.dtype)
    place = place_type(size)
    count = int(np.frombuffer(data[: COUNT.itemsize], COUNT)[0]) if len(data) >= COUNT.itemsize else -1
    if count < 0 or len(data) != COUNT.itemsize + count * (place.itemsize + dtype.itemsize):
        raise ContractError(f"{name}: must hold as many entries as it says, found {len(data)} bytes")
    at = np.frombuffer(data, place, count, COUNT.itemsize)
    if count and (at[0] < 0 or at[-1] >= size or bool((at[1:] <= at[:-1]).any())):
        raise ContractError(f"{name}: must have entries at ascending places below {size}, found others")
    return at, np.frombuffer(data, dtype, count, COUNT.itemsize + count * place.itemsize)


def scattered(name: str, raw: Array) -> Numbers:
    """Return the array of which these are the entries that are not zero; raises ContractError if they are none."""
    at, values = entries_of(name, raw)
    value: Numbers = np.zeros(math.prod(raw.shape), values.dtype)
    value[at] = values
    return value.reshape(tuple(raw.shape))


def stays_sparse(name: str, shape: Sequence[int], count: int) -> bool:
    """Return whether so many entries are read as a sparse tensor: sums over pairs of many items, under any suffix."""
    size, pair = math.prod(shape), len(shape) in (1, 2) and name.partition(":")[0] in (GRAM, CROSS)
    return pair and size <= PAIRS and thin(size, count)


def place_type(size: int) -> np.dtype[Any]:
    """Return the type of the places of an array's entries."""
    return np.dtype("<i4" if size < 2**31 else "<i8")


def read_size(name: str, raw: Array) -> int:
    """Return the bytes that an array of entries becomes when it is read; 0 for any other."""
    if raw.stype != NONZERO or not all(type(side) is int and side >= 0 for side in raw.shape):
        return 0
    size = math.prod(raw.shape)
    most = len(raw.data) // (place_type(size).itemsize + 4)  # entries
    return 3 * len(raw.data) if stays_sparse(name, raw.shape, most) else 8 * size


@lru_cache(maxsize=256)
def header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[str, bytes]:
    """Return the name of a dtype, and the header that NumPy's `save` writes for an array in C order."""
    out = BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, description)
    return str(dtype), out.getvalue()


@lru_cache(maxsize=256)
def form(head: bytes) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
    """Return the dtype and shape of a header of version 1.0, None if it is malformed or not of the usual kind."""
    try:
        file = BytesIO(head)
        np.lib.format.read_magic(file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError:
        return None
    usual = dtype.kind in "fiu" and not fortran and all(size >= 0 for size in shape)
    return (dtype, shape) if usual and file.tell() == len(head) else None
