"""Any CSV or Parquet table of interactions, or one in memory, its columns mapped to roles."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from fedrec.data.checks import NAMES, canonical, check_once, read_csv, reading, refuse, showable
from fedrec.data.types import Dataset, Ints
from fedrec.errors import UserError, choose
from fedrec.files import largest, regular, unpack
from fedrec.folders import create_private

ALIASES = {"timestamp": "time", "categories": "category"}
ROLES = ("user", "item", "rating", "time", "platform", "title", "category", "price", "brand", "label")
RESERVED = ("user", "item", "platform", "time", "rating", "positive", "category", "price", "brand", "behaviour")
MISSING = ["", "nan", "NaN", "NULL", "null"]
LATEST = 1e11  # seconds, in the year 5138
UNITS = {"seconds": 1.0, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
BINARY = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def table(path: Path, columns: str) -> Dataset:
    """Return the interactions of a CSV (also packed, see `fedrec.files.unpack`) or Parquet file.

    `columns` maps roles to the file's columns, for instance `user=user,item=asin,platform=domain,label=click`. Roles:
    user and item (required), rating, time (or timestamp: seconds, a finer unit, or ISO dates), platform, title,
    category (or categories), price (a positive number), brand, and any number of labels, whose values are 0, 1, true or
    false. The same user key on two platforms is one user. The rows of a (platform, user, item) are one interaction: it
    has a label that any of them has, the last time, and the last rating. It is a positive if it has the first label
    given; without labels every interaction is, a mere view too. With ratings that reach 4, the label `like` is
    rating >= 4. Users, items and platforms are numbered in the order of their keys, whatever the order of the rows.

    Raises UserError, naming column, row (from 1 below the header) and value, for whatever cannot be read.
    """
    roles, labels, wanted = _roles(columns)
    raw = _parquet(path, wanted) if path.suffix in (".parquet", ".pq") else _csv(path, wanted)
    return _of_text(raw, path.name, roles, labels)


def from_frame(frame: pd.DataFrame, columns: str = "", name: str = "frame") -> Dataset:
    """Return the interactions of a DataFrame, read as `table` reads a file of it.

    Without `columns` every column that is called like a role has it. Raises UserError.
    """
    columns = columns or ",".join(f"{role}={role}" for role in ROLES if role in frame.columns and role != "label")
    roles, labels, wanted = _roles(columns)
    choose_columns(wanted, frame.columns, name)
    return _of_text(frame[wanted].reset_index(drop=True).astype("str"), name, roles, labels)


def choose_columns(wanted: Iterable[str], columns: Iterable[object], name: str) -> None:
    """Raise UserError for a wanted column that is not found; `name` is what errors call the table."""
    for column in wanted:
        choose(f"column of {name}", column, map(str, columns))


def _of_text(raw: pd.DataFrame, name: str, roles: Mapping[str, str], labels: tuple[str, ...]) -> Dataset:
    """Return the interactions of columns of text, see `table`; `name` is what errors call them."""
    if raw.empty:
        raise UserError(f"{name}: must hold at least one row, found an empty table")
    given = {role: raw[column].rename(f"{name}, column {column!r}") for role, column in roles.items()}
    users, user = _ids(given["user"])
    items, item = _ids(given["item"])
    platforms, platform = _ids(given["platform"]) if "platform" in given else (["all"], np.zeros(len(raw), np.int64))
    if "platform" in given:
        _names(given["platform"], platforms, platform)
    frame = pd.DataFrame({"user": user, "item": item, "platform": platform})
    frame["time"], unit = _times(given["time"]) if "time" in given else (0, ())
    frame["rating"] = _ratings(given["rating"]) if "rating" in given else np.float32("nan")
    frame["positive"] = True
    for label in labels:
        frame[label] = _binary(raw[label].rename(f"{name}, column {label!r}"))
    if labels:
        frame["positive"] = frame[labels[0]]
    interactions, notes = canonical(frame)
    if frame["rating"].max() >= 4 and "like" not in labels:
        interactions["like"] = interactions["rating"] >= 4
        labels = (*labels, "like")
    catalogue = _items(frame, items, given)
    people = pd.DataFrame({"key": pd.Series(users, dtype="str")})
    return Dataset(name, interactions, people, catalogue, tuple(platforms), labels, (*unit, *notes))


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
    with reading(path, "CSV"):
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
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    regular(path, path.name)
    with reading(path, "Parquet"), pq.ParquetFile(path) as file:
        choose_columns(wanted, file.schema_arrow.names, path.name)
        check_once(file.schema_arrow.names, wanted, path.name)
        size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        if size > largest():
            raise UserError(
                f"{path.name}: must have at most {largest()} bytes unpacked, a quarter of the memory, found {size}"
            )
        frame: pd.DataFrame = file.read(columns=wanted).to_pandas()
    return frame.reset_index(drop=True).astype("str")


def _not_utf8(path: Path) -> UserError:
    with unpack(path, path.name) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return UserError(f"{path.name}, line {number}: must be UTF-8, found {line[error.start : error.end]!r}")
    return UserError(f"{path.name}: must be UTF-8, found other bytes")


def _ids(column: pd.Series) -> tuple[list[str], Ints]:
    """Return the distinct keys in ascending order, and the index of every row's key [n]."""
    refuse(column.isna().to_numpy(), column, f"{column.name}", "must not be empty")
    codes, keys = pd.factorize(column, sort=True)
    return keys.tolist(), codes.astype(np.int64)


def _names(column: pd.Series, platforms: list[str], platform: Ints) -> None:
    """Raise UserError for a name of a platform, and so of a client, that no terminal and no option can show."""
    wrong = np.asarray([not showable(name) for name in platforms])
    refuse(wrong[platform], column, f"{column.name}", NAMES)


def _ratings(column: pd.Series) -> pd.Series:
    number = pd.to_numeric(column, errors="coerce").astype(np.float64)
    refuse(~(number.abs() < 1e30).to_numpy(), column, f"{column.name}", "a rating must be a finite number")
    return number.astype(np.float32)


def _prices(column: pd.Series) -> pd.Series:
    number = pd.to_numeric(column, errors="coerce").astype(np.float64)
    wrong = column.notna() & ~((number > 0) & (number < np.inf))
    refuse(wrong.to_numpy(), column, f"{column.name}", "a price must be a positive number")
    return number


def _binary(column: pd.Series) -> pd.Series:
    values = column.str.strip().str.lower().map(BINARY)
    refuse(values.isna().to_numpy(), column, f"{column.name}", "a label must be 0, 1, true or false")
    return values.astype(np.bool_)


def _times(column: pd.Series) -> tuple[pd.Series, tuple[str, ...]]:
    """Return whole seconds, and a note where numbers are of another unit; what is no number must be an ISO date.

    Dates without a zone are UTC. Numbers are seconds up to the year 5138; larger ones are taken for the unit in which
    they lie as near to today, and all must be of it.
    """
    number = pd.to_numeric(column, errors="coerce").astype(np.float64)
    if not number.notna().any():
        date = pd.to_datetime(column, format="ISO8601", utc=True, errors="coerce")
        refuse(date.isna().to_numpy(), column, f"{column.name}", "a time must be a number of seconds or an ISO date")
        return pd.Series(date.dt.tz_localize(None).to_numpy().astype("datetime64[s]").astype(np.int64)), ()
    size = number.abs()
    refuse(~(size < 2**63).to_numpy(), column, f"{column.name}", "a time must be a number of seconds")
    unit, scale = next((unit, scale) for unit, scale in UNITS.items() if size.max() < LATEST * scale or scale == 1e9)
    if scale == 1:
        return (number // 1).astype(np.int64), ()
    other = ((size > 0) & (size < LATEST * scale / 1000)).to_numpy()
    refuse(other, column, f"{column.name}", f"a time must be in {unit}, as the largest is")
    note = f"{column.name}: times are in {unit} and were rounded down to seconds"
    return (number // scale).astype(np.int64), (note,)


def _items(rows: pd.DataFrame, keys: list[str], given: Mapping[str, pd.Series]) -> pd.DataFrame:
    """Return the catalogue: of every item the first title, categories, price and brand that are not empty.

    The first is by platform, user and time of the rows, then by itself. Without one the title is the key, the
    categories are "", as is the brand if there are any, and the price is NaN.
    """
    items = pd.DataFrame({"key": pd.Series(keys, dtype="str")})
    nothing = pd.Series([""] * len(items), dtype="str")
    items["title"], items["categories"] = items["key"], nothing
    if "brand" in given:
        items["brand"] = nothing

    def first(column: pd.Series) -> pd.Series:
        frame = rows[["item", "platform", "user", "time"]].assign(value=column).dropna()
        frame = frame.sort_values(["platform", "user", "time", "value"]).drop_duplicates("item")
        return frame.set_index("item")["value"].reindex(items.index)

    for role, column in (("title", "title"), ("category", "categories"), ("brand", "brand")):
        if role in given:
            items[column] = first(given[role]).fillna(items[column]).astype("str")
    if "price" in given:
        items["price"] = first(_prices(given["price"]))
    return items


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
