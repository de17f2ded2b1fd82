"""What readers of files give: columns of arrow by name, and where their rows stood."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedrec.data.types import Ints

TEXT, NUMBER, TIME = "text", "number", "time"  # what a column is read as, if it can be
SHOWN = 3  # broken rows that are named


@dataclass(frozen=True)
class Loaded:
    """The columns of a file [n] as they are typed there; `lines` as in `fedrec.data.reading.Raw`."""

    columns: Mapping[str, Any]
    lines: Ints | None
    said: tuple[str, ...] = ()


def dropped(name: str, rule: str, first: list[tuple[int, str]], rows: int, count: int) -> str:
    """Return how many lines are no rows, and what stands in the first of them; `rows` are left."""
    places = ", ".join(f"line {line} {text}" for line, text in first)
    return f"{name}: {count:,} of {rows + count:,} rows were dropped, {rows:,} remain: {rule}: {places}"


def others(count: int, rows: int) -> str:
    """Return the end of an error about the first of `count` lines that are no rows, where there are several."""
    return f" ({count:,} of {rows + count:,} rows are bad: --rows drop leaves them out)" * (count > 1)
