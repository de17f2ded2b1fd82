"""Tables in Parquet: the columns that are asked for, as they are typed there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from fedrec.data.checks import reading
from fedrec.data.sources.loaded import Loaded
from fedrec.errors import UserError
from fedrec.files import largest, regular

MARK = b"PAR1"  # with which such a file begins


@contextmanager
def opened(path: Path, name: str) -> Iterator[Any]:
    """Yield a Parquet file; raises UserError for what is none."""
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    regular(path, name)
    with reading(path, "Parquet"), pq.ParquetFile(path, memory_map=True) as file:
        yield file


def parquet_columns(path: Path, name: str) -> list[str]:
    """Return the names of the columns; of nested ones those of their fields too, by dots."""
    with opened(path, name) as file:
        return [name for field in file.schema_arrow for name in names_of(field)]


def names_of(field: Any, prefix: str = "") -> Iterator[str]:
    """Yield the names of a field and of those inside it."""
    yield prefix + field.name
    if pa.types.is_struct(field.type):
        for inner in field.type:
            yield from names_of(inner, f"{prefix}{field.name}.")


def read_parquet(path: Path, name: str, wanted: Sequence[str]) -> Loaded:
    """Return the wanted columns; rows count from 1. Raises UserError for a file that is too large unpacked."""
    with opened(path, name) as file:
        size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        if size > largest():
            raise UserError(
                f"{name}: must have at most {largest()} bytes unpacked, a quarter of the memory, found {size}"
            )
        table = file.read(columns=list(dict.fromkeys(wanted)))
        columns = {column: inside(table, column) for column in wanted}
        rows = table.num_rows
    return Loaded(columns, np.arange(1, rows + 1))


def inside(table: Any, name: str) -> Any:
    """Return a column by its name, or by that of the column that it lies in and its own there, joined by dots."""
    if name in table.column_names:
        return table.column(name)
    whole = next(column for column in table.column_names if name.startswith(f"{column}."))
    part = table.select([whole])
    for _ in range(name.count(".")):
        if name in part.column_names:
            break
        part = part.flatten()
    return part.column(name)
