"""A table in memory as columns."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]

from fedrec.data.reading import Raw, Reading
from fedrec.data.sources.file import convert, settings_of
from fedrec.data.sources.loaded import Loaded
from fedrec.data.sources.raw import kinds_of
from fedrec.data.sources.roles import asked, resolve


def read_frame(frame: pd.DataFrame, columns: str, name: str, reading: Reading | None = None) -> Raw:
    """Return a DataFrame as a file of it would be read; its rows count from 1. Raises UserError."""
    frame = frame.set_axis([str(column) for column in frame.columns], axis="columns")
    settings = settings_of(reading or Reading(), "", ())
    roles, said = resolve(asked(columns, ""), list(frame.columns), name, columns)
    there = {column: as_arrow(frame[column]) for column in roles.columns}
    parsed = convert(Loaded(there, np.arange(1, len(frame) + 1)), kinds_of(roles), name, settings)
    words = [word for word in (parsed.said[0] and f"read as {parsed.said[0]}", said) if word]
    told = (f"{name}: {'; '.join(words)}",) * bool(words)
    return Raw(name, "", parsed.columns, roles.roles, roles.labels, parsed.lines, parsed.text or None, told)


def as_arrow(column: "pd.Series[Any]") -> pa.Array:
    """Return a column of pandas as one of arrow; values of several kinds as text."""
    try:
        found = pa.array(column, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        found = pa.array(column.astype("str"), pa.string(), from_pandas=True)
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
