"""The files of a layout as one table in memory, which `fedrec.data.table` reads."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from fedrec.components import per_client
from fedrec.data.checks import reading as reading_file
from fedrec.data.reading import Raw, Reading
from fedrec.data.table import from_frame
from fedrec.data.types import Dataset
from fedrec.files import unpack

SIGNS = {"comma": ",", "tab": "\t", "semicolon": ";", "pipe": "|"}


def read_files(files: Sequence[Path], columns: str, reading: Reading) -> Dataset:
    """Return the interactions of files of one form, with what files of attributes say of items and users."""
    frames = [_frame(path, reading) for path in files]
    if reading.platforms == "files":
        frames = [frame.assign(platform=path.name.split(".")[0]) for path, frame in zip(files, frames, strict=True)]
        columns += ",platform=platform"
    return _described(pd.concat(frames, ignore_index=True), columns, reading)


def from_raw(raw: Raw, reading: Reading) -> Dataset:
    """Return the interactions of a file that is read already."""
    frame = pd.DataFrame({name: np.asarray(column) for name, column in raw.columns.items()})
    roles = [f"{role}={column}" for role, column in raw.roles.items()] + [f"label={name}" for name in raw.labels]
    data = _described(frame, ",".join(roles), reading)
    return replace(data, notes=(*raw.said, *data.notes))


def _frame(path: Path, reading: Reading) -> pd.DataFrame:
    """Return the columns of a file as text."""
    with reading_file(path, "table"), unpack(path, path.name) as file:
        if reading.format == "jsonl" or ".jsonl" in path.name:
            return pd.DataFrame([{name: _text(value) for name, value in json.loads(line).items()} for line in file])
        sign = SIGNS.get(reading.delimiter, reading.delimiter)
        text = file.read().decode(reading.encoding or "utf-8").replace(sign, sign if len(sign) == 1 else "\x1f")
        frame: pd.DataFrame = pd.read_csv(
            io.StringIO(text),
            sep=sign if len(sign) == 1 else "\x1f",
            header=None if reading.header == "no" else 0,
            quoting=csv.QUOTE_NONE if reading.quote == "none" else csv.QUOTE_MINIMAL,
            dtype="str",
            keep_default_na=False,
            na_values=[""],
        )
    if reading.header == "no":
        frame.columns = pd.Index([str(place + 1) for place in range(frame.shape[1])])
    return frame


def _text(value: object) -> object:
    return "|".join(map(str, value)) or None if isinstance(value, list) else value


def _described(frame: pd.DataFrame, columns: str, reading: Reading) -> Dataset:
    """Return the interactions of a table, its events as labels, and attributes by key."""
    roles = _mapping(columns)
    if event := roles.pop("event", ""):
        columns = ",".join(part for part in columns.split(",") if not part.startswith("event="))
        for label, values in per_client(reading.events).items():
            frame[label] = frame[event].isin(values.split(",")).astype("int")
            columns += f",label={label}"
    for role, column in _sheet(reading.items, reading.item_columns, reading).items():
        if role != "description":
            frame[f"item's {role}"] = frame[roles["item"]].map(column)
            columns += f",{role}=item's {role}"
    data = from_frame(frame, columns)
    about = _sheet(reading.users, reading.user_columns, reading)
    users = data.users.assign(**{role: data.users["key"].map(column) for role, column in about.items()})
    return replace(data, users=users)


def _mapping(columns: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in columns.split(",") if part)


def _sheet(files: str, columns: str, reading: Reading) -> "dict[str, pd.Series[str]]":
    """Return what files say of each key, by role."""
    if not files:
        return {}
    names = _mapping(columns)
    frame = pd.concat([_frame(Path(file), reading) for file in files.split(";")])
    frame = frame.drop_duplicates(names["key"]).set_index(names.pop("key"))
    return {role: frame[name] for role, name in names.items()}
