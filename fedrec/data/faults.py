"""Rows that cannot be taken as they are: refused by their place, or dropped and counted, never repaired."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from fedrec.data.reading import Raw
from fedrec.data.types import Bools, Ints
from fedrec.errors import UserError

SHOWN = 3  # rows of each reason that are named


@dataclass(frozen=True)
class Fault:
    """Why rows of a file are bad: a reason in a word, the column, the rule that it breaks, and where [n]."""

    reason: str
    column: str
    rule: str
    bad: Bools


def settle(raw: Raw, faults: Sequence[Fault], rows: Literal["strict", "drop"]) -> tuple[Bools | None, tuple[str, ...]]:
    """Return which rows of a file count [n] (None: all), and what is said of the others.

    A row is counted by the first of its `faults`. Raises UserError for the first bad row where rows are strict, and
    where none is left.
    """
    some = [fault for fault in faults if fault.bad.any()]
    if not some:
        return None, ()
    bad = np.logical_or.reduce([fault.bad for fault in some])
    lost, n = int(bad.sum()), len(bad)
    if rows == "strict":
        first = int(np.argmax(bad))
        fault = next(fault for fault in some if fault.bad[first])
        rest = f" ({lost:,} of {n:,} rows are bad: --rows drop leaves them out)" if lost > 1 else ""
        where = f"{raw.name}, {line_of(raw, first)}, column {fault.column!r}"
        raise UserError(f"{where}: {fault.rule}, found {value_at(raw, fault.column, first)}{rest}")
    if lost == n:
        raise UserError(f"{raw.name}: must have a row that is not bad, found {n:,} bad rows, {some[0].rule}")
    said, taken = [], np.zeros(n, np.bool_)
    for fault in some:
        mine: Ints = np.flatnonzero(fault.bad & ~taken)
        taken |= fault.bad
        if len(mine):
            places = [f"{line_of(raw, i)} {value_at(raw, fault.column, i)}" for i in mine[:SHOWN].tolist()]
            said.append(f"{fault.reason} {len(mine):,} ({fault.rule}: {', '.join(places)})")
    return ~bad, (f"{raw.name}: {lost:,} of {n:,} rows were dropped, {n - lost:,} remain: {'; '.join(said)}",)


def line_of(raw: Raw, row: int) -> str:
    """Return where a row is in its file."""
    return f"line {row + 2 if raw.lines is None else int(raw.lines[row])}"


def value_at(raw: Raw, column: str, row: int) -> str:
    """Return what stands in a column of a row, as it is shown."""
    stood = (raw.text or {}).get(column)
    value: Any = (raw.columns[column] if stood is None else stood)[row]
    value = value.as_py() if hasattr(value, "as_py") else value
    if value is None or (not isinstance(value, list | dict) and pd.isna(value)) or value == "":
        return "nothing"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return repr(str(value))[:80]
