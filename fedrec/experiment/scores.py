"""The metrics of clients by round, kept by column: in millions of rows every text stands once."""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd

Row = dict[str, str | int | float]
CLIENTS = ["round", "client", "split", "task", "metric", "value", "device"]  # columns of `clients.csv`
TEXTS = ("client", "split", "task", "metric", "device")
LARGE = 100_000  # rows from which the metrics of clients are written as Parquet
FILES = ("clients.csv", "clients.parquet")


class Scores(Sequence[Row]):
    """Rows of `clients.csv`, which may be added to."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self.round, self.value = array("q"), array("d")
        self.codes = {name: array("i") for name in TEXTS}
        self.texts: dict[str, dict[str, int]] = {name: {} for name in TEXTS}
        self.pairs = [(self.codes[name], self.texts[name]) for name in TEXTS]
        for row in rows:
            self.add(*(row[name] for name in CLIENTS))

    def add(self, number: int, client: str, split: str, task: str, metric: str, value: float, device: str) -> None:
        """Add a row."""
        self.round.append(number)
        self.value.append(value)
        for (codes, known), text in zip(self.pairs, (client, split, task, metric, device), strict=True):
            codes.append(known.setdefault(text, len(known)))

    def __len__(self) -> int:
        return len(self.round)

    def __iter__(self) -> Iterator[Row]:
        return iter(self[:])

    @overload
    def __getitem__(self, place: int) -> Row: ...

    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...

    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        if isinstance(place, int):
            return self[place:][:1][0]
        table = self.frame()[place].astype(dict.fromkeys(TEXTS, object))
        return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]

    def __repr__(self) -> str:
        return repr(self[:])

    def frame(self, start: int = 0) -> pd.DataFrame:
        """Return the rows from `start` on as a table, texts as categories."""
        columns: dict[str, Any] = {"round": np.array(self.round, np.int64), "value": np.array(self.value)}
        for name in TEXTS:
            known = pd.Index(list(self.texts[name]), dtype="str")
            columns[name] = pd.Categorical.from_codes(np.array(self.codes[name], np.int32), known)
        return pd.DataFrame(columns)[CLIENTS].iloc[start:]

    def packed(self, start: int = 0) -> bytes:
        """Return the rows from `start` on as a Parquet file."""
        return parquet(self.frame(start))

    def unpack(self, data: bytes) -> None:
        """Add the rows that `packed` wrote."""
        from pyarrow import BufferReader  # type: ignore[import-untyped]

        for row in read_parquet(BufferReader(data)).itertuples(index=False) if data else ():
            self.add(*row)


def parquet(table: pd.DataFrame) -> bytes:
    """Return a table as a Parquet file, of which repeated texts are coded; it is read without categories."""
    from pyarrow import Table
    from pyarrow.parquet import write_table  # type: ignore[import-untyped]

    out = BytesIO()
    write_table(Table.from_pandas(table, preserve_index=False), out, store_schema=False)
    return out.getvalue()


def read_parquet(source: Any) -> pd.DataFrame:
    """Return the table of a Parquet file; raises an exception of pyarrow's or OSError for a damaged one."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(source) as file:
        found: pd.DataFrame = file.read().to_pandas()
    return found


def write_clients(home: Path, scores: Scores, measured: Sequence[Row] = ()) -> None:
    """Write the metrics of clients, and what they `measured` by themselves: `clients.csv`, of many rows Parquet.

    Floats keep all their digits, so that equal files mean equal results.
    """
    table = scores.frame()
    if measured:
        table = pd.concat([table.astype(dict.fromkeys(TEXTS, "str")), pd.DataFrame(measured, columns=CLIENTS)])
    small, large = (home / name for name in FILES)
    if len(table) < LARGE:
        table.to_csv(small, index=False)
    else:
        large.write_bytes(parquet(table))
    (large if len(table) < LARGE else small).unlink(missing_ok=True)  # of a run that was shorter
