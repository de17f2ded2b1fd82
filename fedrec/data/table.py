"""Any CSV or Parquet table of interactions, or one in memory, its columns mapped to roles."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedrec.components import per_client
from fedrec.data.assembly import Described, assemble
from fedrec.data.checks import check_once, read_csv
from fedrec.data.checks import reading as reading_file
from fedrec.data.columns import RESERVED
from fedrec.data.matching import COLUMNS as MATCHED
from fedrec.data.reading import Filters, Raw, Reading
from fedrec.data.types import Dataset
from fedrec.errors import UserError, choose
from fedrec.files import largest, regular, unpack
from fedrec.folders import create_private

ALIASES = {"timestamp": "time", "categories": "category"}
ITEM_ROLES = ("title", "category", "price", "brand", "description")
ROLES = ("user", "item", "rating", "time", "platform", *ITEM_ROLES, "event", "label")
MISSING = ["", "nan", "NaN", "NULL", "null"]


def table(
    path: Path,
    columns: str,
    reading: Reading | None = None,
    filters: Filters | None = None,
) -> Dataset:
    """Return the interactions of a CSV (also packed, see `fedrec.files.unpack`) or Parquet file, see `assemble`.

    `columns` maps roles to the file's columns, for instance `user=user,item=asin,platform=domain,label=click`. Roles:
    user and item (required), rating, time (or timestamp: seconds, a finer unit, or ISO dates), platform, title,
    category (or categories), price (a positive number), brand, description, event (see `--events`), and any number of
    labels, whose values are 0, 1, true or false; an empty rating or label is not known. Raises UserError, naming line,
    column and value, for whatever cannot be read.
    """
    reading, filters = reading or Reading(), filters or Filters()
    return assemble(path.name, [read_raw(path, columns)], reading, filters, describe(reading))


def from_frame(
    frame: pd.DataFrame,
    columns: str = "",
    name: str = "frame",
    reading: Reading | None = None,
    filters: Filters | None = None,
) -> Dataset:
    """Return the interactions of a DataFrame, read as `table` reads a file of it; its lines count from 1.

    Without `columns` every column that is called like a role has it. Raises UserError.
    """
    reading, filters = reading or Reading(), filters or Filters()
    columns = columns or ",".join(f"{role}={role}" for role in ROLES if role in frame.columns and role != "label")
    roles, labels, wanted = _roles(columns)
    choose_columns(wanted, frame.columns, name)
    lines = np.arange(1, len(frame) + 1)
    raw = Raw(name, "", {column: frame[column].array for column in wanted}, roles, labels, lines)
    return assemble(name, [raw], reading, filters, describe(reading))


def read_raw(path: Path, columns: str) -> Raw:
    """Return a file of interactions as it is read, and what its columns are; raises UserError."""
    roles, labels, wanted = _roles(columns)
    return Raw(path.name, "", _read(path, wanted), roles, labels)


def describe(reading: Reading) -> Described:
    """Return the files that describe items and users, and match keys, as they are read; raises UserError."""
    items, users = (
        _sheets(files, columns, field, known)
        for files, columns, field, known in (
            (reading.items, reading.item_columns, "reading.items", ITEM_ROLES),
            (reading.users, reading.user_columns, "reading.users", ()),
        )
    )
    match = None
    if reading.match is not None:
        columns = _header(reading.match)
        match = Raw(reading.match.name, "", _read(reading.match, [c for c in (*MATCHED, "kind") if c in columns]), {})
    return Described(items, users, match)


def _sheets(files: str, columns: str, field: str, known: tuple[str, ...]) -> list[Raw]:
    """Return the files of attributes of all platforms, or of each; raises UserError."""
    if not files:
        if columns:
            raise UserError(
                f"{field[:-1].replace('.', '.')}_columns: acts only with a file (add --{field} FILE), found none"
            )
        return []
    mapped = by_platform(columns)
    raws = []
    for platform, file in per_client(files).items():
        text = mapped.get(platform, mapped.get("*", ""))
        roles: dict[str, str] = {}
        for part in filter(None, text.split(",")):
            role, equals, column = (piece.strip() for piece in part.partition("="))
            if not (equals and role and column) or role in roles:
                raise UserError(f"{field[:-1]}_columns: must be role=column, each role once, found {part[:100]!r}")
            role = ALIASES.get(role, role)
            roles[choose(f"{field[:-1]}_columns", role, ["key", *known]) if known else role] = column
        if "key" not in roles:
            raise UserError(f"{field[:-1]}_columns: must map key (as in key=id,...), found {text[:100]!r}")
        path = Path(file)
        raws.append(Raw(path.name, "" if platform == "*" else platform, _read(path, list(roles.values())), roles))
    return raws


def by_platform(text: str) -> dict[str, str]:
    """Return `{platform: mapping, "*": of all others}` of a text like `key=id,title=name;shop=key=nr`."""
    parts: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        platform, equals, rest = part.partition("=")
        inner = rest.partition(",")[0]
        name, mapping = (platform.strip(), rest) if equals and "=" in inner else ("*", part)
        if name in parts:
            raise UserError(f"columns: every platform may be named once, found {name!r} twice")
        parts[name] = mapping
    return parts


def choose_columns(wanted: Iterable[str], columns: Iterable[object], name: str) -> None:
    """Raise UserError for a wanted column that is not found; `name` is what errors call the table."""
    for column in wanted:
        choose(f"column of {name}", column, map(str, columns))


def _read(path: Path, wanted: list[str]) -> dict[str, Any]:
    """Return the wanted columns of a CSV or Parquet file."""
    frame = _parquet(path, wanted) if path.suffix in (".parquet", ".pq") else _csv(path, wanted)
    return {column: frame[column].array for column in wanted}


def _header(path: Path) -> list[str]:
    """Return the names of a file's columns."""
    if path.suffix in (".parquet", ".pq"):
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        with reading_file(path, "Parquet"), pq.ParquetFile(path) as file:
            return [str(name) for name in file.schema_arrow.names]
    with reading_file(path, "CSV"):
        return [str(name) for name in read_csv(path, [], dtype="str", nrows=0).columns]


def _roles(columns: str) -> tuple[dict[str, str], tuple[str, ...], list[str]]:
    """Return the column of every role, the label columns in the order given, and all columns, each once."""
    roles: dict[str, str] = {}
    labels: list[str] = []
    for part in filter(None, columns.split(",")):
        role, equals, column = (text.strip() for text in part.partition("="))
        if not (equals and column):
            raise UserError(f"columns: must be role=column, found {part!r}")
        role = choose("columns", role, [*ROLES, *ALIASES])
        role = ALIASES.get(role, role)
        if role in roles or (role == "label" and column in labels):
            raise UserError(f"columns: each role must be given once, found {part!r} again")
        if role != "label":
            roles[role] = column
        elif column in RESERVED:
            raise UserError(f"columns: a label must not be named {', '.join(RESERVED)}, found {column!r}")
        else:
            labels.append(column)
    for role in ("user", "item"):
        if role not in roles:
            raise UserError(f"columns: must map {role} (as in user=user,item=item), found {columns!r}")
    return roles, tuple(labels), list(dict.fromkeys([*roles.values(), *labels]))


def _csv(path: Path, wanted: list[str]) -> pd.DataFrame:
    """Return the wanted columns as text."""
    with reading_file(path, "CSV"):
        try:
            frame = read_csv(path, wanted, dtype="str", na_values=MISSING)
        except pd.errors.EmptyDataError:
            raise UserError(f"{path.name}: must hold at least one row, found an empty file") from None
        except UnicodeDecodeError:
            raise _not_utf8(path) from None
    choose_columns(wanted, frame.columns, path.name)
    return frame[wanted]


def _parquet(path: Path, wanted: list[str]) -> pd.DataFrame:
    """Return the wanted columns as text."""
    import pyarrow.parquet as pq

    regular(path, path.name)
    with reading_file(path, "Parquet"), pq.ParquetFile(path) as file:
        choose_columns(wanted, file.schema_arrow.names, path.name)
        check_once(file.schema_arrow.names, wanted, path.name)
        size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        if size > largest():
            raise UserError(
                f"{path.name}: must have at most {largest()} bytes unpacked, a quarter of the memory, found {size}"
            )
        frame: pd.DataFrame = file.read(columns=wanted).to_pandas()
    return frame.reset_index(drop=True)


def _not_utf8(path: Path) -> UserError:
    with unpack(path, path.name) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return UserError(f"{path.name}, line {number}: must be UTF-8, found {line[error.start : error.end]!r}")
    return UserError(f"{path.name}: must be UTF-8, found other bytes")


FRAME = "data.parquet"  # in the folder of a run


def columns_text(columns: Mapping[str, str | Iterable[str]]) -> str:
    """Return the columns by role as `fedrec.data.table` reads them; several labels are a list.

    Raises UserError for a name that cannot be written so.
    """
    several = {role: [names] if isinstance(names, str) else list(names) for role, names in columns.items()}
    parts = [(role, str(name)) for role, names in several.items() for name in names]
    for role, name in parts:
        if "," in name or name != name.strip():
            raise UserError(f"columns: the name of {role} must have no comma and no blank around it, found {name!r}")
    return ",".join(f"{role}={name}" for role, name in parts)


def write_frame(frame: pd.DataFrame, columns: str, path: Path) -> None:
    """Write the columns that are mapped, and no other, to a Parquet file for its owner alone.

    Raises UserError if one of them is missing, twice there, or of values that no table can hold.
    """
    if not isinstance(frame, pd.DataFrame):
        raise UserError(f"data: must be a pandas DataFrame, found {type(frame).__name__}")
    frame = frame.set_axis([str(name) for name in frame.columns], axis="columns")
    names = list(dict.fromkeys(part.partition("=")[2].strip() for part in columns.split(",") if "=" in part))
    for name in names:
        choose("column of data", name, frame.columns)
    kept = frame.loc[:, frame.columns.isin(names)]
    if len(kept.columns) > len(names):
        raise UserError(f"data: each column must be there once, found {', '.join(kept.columns)}")
    with create_private(path) as file:
        try:
            kept.to_parquet(file, index=False)
        except (ValueError, TypeError) as error:
            raise UserError(f"data: must be columns of one kind of value each, found {error}") from None
