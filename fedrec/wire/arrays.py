"""Tensors as Flower arrays and back.

They travel as NumPy's own format without pickle. Of a thousand messages most arrays have the same few headers, which
NumPy writes and parses in a tenth of a millisecond: each is written and parsed once. Sums that are mostly zero travel
as their other entries alone.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord

from fedrec.params import Params
from fedrec.sharing import BYTES, DIMENSIONS, TENSORS, ContractError, admit_name, is_sum

Numbers = np.ndarray[Any, np.dtype[Any]]
FIXED = 10  # bytes before the text of a header: NumPy's magic, the version, the length of the text
LONGEST = 512  # bytes of a header that is worth keeping
NONZERO = "fedrec.nonzero"  # the serialisation of an array as its entries that are not zero
COUNT = np.dtype("<u8")
FLOATS = ("float32", "float64")


def pack(params: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """Return the tensors as a Flower record, sorted by name."""
    record = ArrayRecord()
    for name in sorted(params):
        value = params[name].detach().cpu().contiguous().numpy()
        record[name] = (nonzero(value) if is_sum(name) else None) or array(value)
    return record


def unpack(record: ArrayRecord) -> Params:
    """Return the tensors of a record; raises ContractError for too many, or one without pickle that is no numbers."""
    return {name: torch.from_numpy(value) for name, value in numbers(record, "").items()}


def numbers(record: ArrayRecord, what: str) -> dict[str, Numbers]:
    """Return the arrays of a record, called `what` and their name in a ContractError."""
    if len(record) > TENSORS:
        raise ContractError(f"record: must hold at most {TENSORS} arrays, found {len(record)}")
    size = sum(max(len(raw.data), dense_size(raw)) for raw in record.values())
    if size > BYTES:
        raise ContractError(f"record: must hold at most {BYTES} bytes, found {size}")
    return {name: numeric(what + admit_name("parameter", name), raw) for name, raw in record.items()}


def array(value: Numbers) -> Array:
    """Return `Array(value)`, the same bytes: those that NumPy's `save` writes for a contiguous array."""
    name, head = header(value.dtype, value.shape)
    return Array(dtype=name, shape=value.shape, stype="numpy.ndarray", data=b"".join((head, value.data)))


def numeric(name: str, raw: Array) -> Numbers:
    """Return the numbers of an array; raises ContractError if it cannot be read without pickle or holds none."""
    value = entries(name, raw) if raw.stype == NONZERO else quick(raw)
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
    """Return an array as the entries that are not zero, None where that is no smaller.

    The bytes are the number of entries, their places in C order (int32, or int64 of a larger array), and the values.
    """
    flat, place = value.reshape(-1), place_type(value.size)
    if value.dtype.name not in FLOATS or np.count_nonzero(flat) * (place.itemsize + value.itemsize) > value.nbytes:
        return None
    at = np.flatnonzero(flat)
    data = b"".join((np.array(len(at), COUNT).tobytes(), at.astype(place).tobytes(), flat[at].tobytes()))
    return Array(dtype=value.dtype.name, shape=value.shape, stype=NONZERO, data=data)


def entries(name: str, raw: Array) -> Numbers:
    """Return the array of which these are the entries that are not zero; raises ContractError if they are none."""
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
    value: Numbers = np.zeros(size, dtype)
    value[at] = np.frombuffer(data, dtype, count, COUNT.itemsize + count * place.itemsize)
    return value.reshape(shape)


def place_type(size: int) -> np.dtype[Any]:
    """Return the type of the places of an array's entries."""
    return np.dtype("<i4" if size < 2**31 else "<i8")


def dense_size(raw: Array) -> int:
    """Return the bytes that an array of entries becomes when it is read; 0 for any other."""
    sides = [side for side in raw.shape if type(side) is int and side >= 0]
    return 8 * math.prod(sides) if raw.stype == NONZERO and sides else 0


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
