"""A table of interactions in files, or in memory: how it is read, and what its columns mean."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from fedrec.data.assembly import Described, assemble
from fedrec.data.reading import Filters, Raw, Reading
from fedrec.data.sources import read_attributes, read_frame, read_plain, read_table
from fedrec.data.sources.roles import asked, resolve
from fedrec.data.types import Dataset
from fedrec.errors import UserError
from fedrec.folders import create_private

SHOWN = 3  # files that a dataset is named after


def table(path: Path, columns: str, reading: Reading | None = None, filters: Filters | None = None) -> Dataset:
    """Return the interactions of files, see `fedrec.data.sources.read_table` for them and `assemble` for their rows.

    `columns` maps roles to columns, for instance `user=user,item=asin,platform=domain,label=click`. Roles: user and
    item (needed), rating, weight (a positive number), time (or timestamp: seconds, a finer unit, or written dates),
    platform, title, category (or categories), price (a positive number), brand, description, event (see `--events`),
    and any number of labels, whose values are 0, 1, true or false; an empty rating or label is not known. Raises
    UserError, naming line, column and value, for whatever cannot be read.
    """
    reading, filters = reading or Reading(), filters or Filters()
    raws = [*read_table(path, columns, reading)]
    name, described = called(raws), describe(reading, raws)
    return assemble(name, taken(raws), reading, filters, described)


def taken(raws: list[Raw]) -> Iterator[Raw]:
    """Yield what is in a list, which keeps none of it: a file's columns are large."""
    while raws:
        yield raws.pop(0)


def called(raws: Sequence[Raw]) -> str:
    """Return what a dataset of some files is called."""
    names = [raw.name for raw in raws]
    return ", ".join(names) if len(names) <= SHOWN else f"{len(names)} files, {names[0]} to {names[-1]}"


def from_frame(
    frame: pd.DataFrame,
    columns: str = "",
    name: str = "frame",
    reading: Reading | None = None,
    filters: Filters | None = None,
) -> Dataset:
    """Return the interactions of a DataFrame, read as `table` reads a file of it; its lines count from 1.

    Raises UserError.
    """
    reading, filters = reading or Reading(), filters or Filters()
    return assemble(name, [read_frame(frame, columns, name, reading)], reading, filters, describe(reading, ()))


def describe(reading: Reading, raws: Sequence[Raw]) -> Described:
    """Return the files that describe items and users of the interactions in `raws`, and match keys, as they are read.

    Raises UserError.
    """
    for kind in ("item", "user"):
        if getattr(reading, f"{kind}_columns") and not getattr(reading, f"{kind}s"):
            raise UserError(f"reading.{kind}_columns: acts only with a file (add --reading.{kind}s FILE), found none")
    platforms = [raw.platform for raw in raws if raw.platform]
    return Described(
        read_attributes(reading.items, reading.item_columns, reading, "item", platforms),
        read_attributes(reading.users, reading.user_columns, reading, "user", platforms),
        read_plain(reading.match, reading) if reading.match is not None else None,
    )


FRAME = "data.parquet"  # in the folder of a run


def columns_text(columns: Mapping[str, str | Iterable[str]]) -> str:
    """Return the columns by role as `fedrec.data.table` reads them; several labels are a list.

    Raises UserError for a name that cannot be written so.
    """
    several = {role: [names] if isinstance(names, str) else list(names) for role, names in columns.items()}
    parts = [(role, str(name)) for role, names in several.items() for name in names]
    for role, name in parts:
        if {*",;"} & {*name} or name != name.strip():
            raise UserError(
                f"columns: the name of {role} must have no comma or semicolon, and no blank around it, found {name!r}"
            )
    return ",".join(f"{role}={name}" for role, name in parts)


def write_frame(frame: pd.DataFrame, columns: str, path: Path) -> None:
    """Write the columns that are mapped, and no other, to a Parquet file for its owner alone.

    Raises UserError if one of them is missing, twice there, or of values that no table can hold.
    """
    if not isinstance(frame, pd.DataFrame):
        raise UserError(f"data: must be a pandas DataFrame, found {type(frame).__name__}")
    frame = frame.set_axis([str(name) for name in frame.columns], axis="columns")
    ask = asked(columns, "")
    known = frame.columns[frame.columns.isin(ask.columns)]
    if known.has_duplicates:
        raise UserError(f"data: each column must be there once, found {', '.join(known)}")
    kept = frame[resolve(ask, list(frame.columns), "data", columns)[0].columns]
    with create_private(path) as file:
        try:
            kept.to_parquet(file, index=False)
        except (ValueError, TypeError) as error:
            raise UserError(f"data: must be columns of one kind of value each, found {error}") from None
