"""Tables whose lines are rows of columns parted by a delimiter: read by type, and as text where that cannot be."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from pyarrow import csv

from fedrec.data.sources.dialect import Dialect, lines_of_header, rows_in
from fedrec.data.sources.loaded import NUMBER, SHOWN, TIME, Loaded, dropped, others
from fedrec.data.sources.streams import lines_of, native_text, separator
from fedrec.data.sources.values import LARGEST, MISSING, coded
from fedrec.errors import UserError

BLOCK = 2**24  # bytes of a table that are read at once
CODES = pa.dictionary(pa.int32(), pa.string())
WHOLE = re.compile(r"-?\d{1,18}")
DECIMAL = re.compile(r"-?\d+(\.\d*)?([eE][+-]?\d{1,2})?")


def read_delimited(
    path: Path, name: str, dialect: Dialect, text: str, kinds: Mapping[int, str], strict: bool
) -> Loaded:
    """Return columns of a file, by position, each read as its kind if all of it can be, else as text.

    `text` is the beginning of the file. A row that has more or fewer fields than the first is refused, or, unless rows
    are `strict`, left out and counted. Raises UserError.
    """
    sample = rows_in(text, dialect.delimiter, dialect.quote)
    width, below = len(sample[0]), sample[dialect.header :]
    types = {at: type_of(kind, (row[at] for row in below if at < len(row)), dialect) for at, kind in kinds.items()}
    top = dialect.above + lines_of_header(text, dialect)
    while True:
        broken: list[int] = []
        with native_text(path, name, dialect) as (file, lines_there):
            try:
                table = parse(file, dialect, width, top, types, broken)
            except pa.ArrowInvalid as error:
                reason = " ".join(str(error).split())
                if not (unread := unreadable(reason, types)):
                    raise UserError(f"{name}: must be a readable CSV file, found {reason}") from None
                types |= dict.fromkeys(unread, CODES)
                continue
        huge = [at for at, kind in types.items() if kind == pa.float64() and not bounded(table.column(str(at)))]
        if not huge:
            break
        types |= dict.fromkeys(huge, CODES)
    columns = {str(at): restored(table.column(str(at)), dialect) for at in kinds}
    rows = table.num_rows
    if not broken and lines_there == rows + top:
        return Loaded(columns, None if top == 1 else np.arange(1, rows + 1) + top)
    lines, bad = lines_of(path, name, dialect, width)
    if len(lines) != rows:
        raise UserError(
            f"{name}: must have quotes in pairs, found {rows:,} or {len(lines):,} rows, as one reads them; "
            "say --reading.quote none if no character quotes"
        )
    rule = f"must have {width} fields, as the first row has"
    if bad and strict:
        raise UserError(f"{name}, line {bad[0][0]}: {rule}, found {bad[0][1]}{others(len(bad), rows)}")
    said = (dropped(name, rule, [(line, str(size)) for line, size in bad[:SHOWN]], rows, len(bad)),) * bool(bad)
    return Loaded(columns, lines, said)


def type_of(kind: str, values: Iterable[str], dialect: Dialect) -> Any:
    """Return the type to read a column as, by its first values."""
    if kind not in (NUMBER, TIME):
        return CODES
    some = [value.strip().replace(dialect.decimal, ".") for value in values if value not in MISSING]
    if kind == TIME and all(WHOLE.fullmatch(value) for value in some):
        return pa.int64()
    return pa.float64() if all(DECIMAL.fullmatch(value) for value in some) else CODES


def parse(file: Any, dialect: Dialect, width: int, top: int, types: Mapping[int, Any], broken: list[int]) -> Any:
    """Return the table of some columns by position; rows of another width are left out, and `broken` has an entry."""

    def leave_out(row: Any) -> str:
        broken.append(row.actual_columns)
        return "skip"

    return csv.read_csv(
        file,
        csv.ReadOptions(block_size=BLOCK, skip_rows=top, column_names=[str(at) for at in range(width)]),
        csv.ParseOptions(
            delimiter=separator(dialect),
            quote_char=dialect.quote[:1] or False,
            escape_char=dialect.quote[1:] or False,
            newlines_in_values=bool(dialect.quote),
            invalid_row_handler=leave_out,
        ),
        csv.ConvertOptions(
            column_types={str(at): kind for at, kind in types.items()},
            include_columns=[str(at) for at in types],
            null_values=MISSING,
            strings_can_be_null=True,
            decimal_point=dialect.decimal,
        ),
    )


def restored(column: Any, dialect: Dialect) -> Any:
    """Return a column of text with the delimiter again where another character stands for it, in quotes."""
    if column.type != CODES or separator(dialect) == dialect.delimiter or not dialect.quote:
        return column
    text = coded(column)
    words = pc.replace_substring(text.dictionary, separator(dialect), dialect.delimiter)
    return pa.DictionaryArray.from_arrays(text.indices, words)


def unreadable(reason: str, types: Mapping[int, Any]) -> list[int]:
    """Return the columns that are not read as text yet and that an error is about: one, or all if it names none."""
    typed = [at for at, kind in types.items() if kind != CODES]
    named = re.search(r"In CSV column #(\d+)", reason)
    return [int(named[1])] if named and int(named[1]) in typed else typed


def bounded(column: Any) -> bool:
    """Return whether all numbers of a column are finite, and none is too large to be one."""
    return pc.all(pc.less(pc.abs(column), LARGEST)).as_py() is not False
