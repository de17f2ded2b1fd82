"""A table of interactions that a program holds in memory, as a file that whoever trains on it can read."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from fedrec.errors import UserError, choose
from fedrec.folders import create_private

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
