"""How files of interactions are read, what their rows mean, and which of them count; and one file as it was read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from fedrec.data.types import Ints


class Reading(BaseModel, frozen=True, extra="forbid"):
    """How a table is read. What is empty is guessed, and said.

    Texts may differ by platform: 'VALUE;platform=VALUE', as in 'comma;shop=semicolon'.
    """

    format: str = Field("", description="of files: csv, parquet, jsonl, json, recbole, sequences; one, or by platform")
    delimiter: str = Field("", description="of a CSV: comma, semicolon, tab, pipe, or the characters themselves")
    encoding: str = Field("", description="of text: utf-8, latin-1, cp1252, utf-16 ...")
    decimal: str = Field("", description="decimal sign of a CSV: point or comma")
    quote: str = Field("", description="quoting character of a CSV, or none")
    dates: str = Field("", description="form of written dates, as in %d.%m.%Y")
    header: str = Field("", description="whether the first line names the columns: yes or no (then 1, 2 ...)")
    platforms: Literal["column", "files"] = Field(
        "column", description="of a folder or glob: who is a platform, by a column, or each file"
    )
    rows: Literal["strict", "drop"] = Field("strict", description="a bad row is refused, or dropped and counted")
    events: str = Field("", description="labels of the values of an event column: 'click=view;buy=purchase,order'")
    repeats: Literal["once", "count"] = Field(
        "once", description="rows of one user and item are one interaction; count: it weighs as much as they are many"
    )
    scale: str = Field("", description="lowest and highest rating: '1..5;shop=0..10'")
    normalise: bool = Field(False, description="bring ratings of stated scales to 1..5")
    items: str = Field("", description="files of items' attributes: one, or by platform")
    item_columns: str = Field("", description="their columns: key=NAME[,title=,category=,brand=,price=,description=]")
    users: str = Field("", description="files of users' attributes: one, or by platform")
    user_columns: str = Field("", description="their columns: key=NAME[,age=,gender=,region= or any name]")
    match: Path | None = Field(None, description="file of platform,key,to: items that have other keys on a platform")


class Filters(BaseModel, frozen=True, extra="forbid"):
    """Which interactions of a table count; 0 or empty: all. Counts before and after are said."""

    core: int = Field(0, ge=0, description="k-core: users and items have at least so many, again and again")
    user_least: int = Field(0, ge=0, description="interactions that a user has at least")
    user_most: int = Field(0, ge=0, description="interactions that a user has at most")
    item_least: int = Field(0, ge=0, description="interactions that an item has at least")
    item_most: int = Field(0, ge=0, description="interactions that an item has at most")
    since: str = Field("", description="first time that counts: a date, or seconds")
    until: str = Field("", description="time from which none count: a date, or seconds")


@dataclass(frozen=True)
class Raw:
    """One file of one platform as it was read: n rows of columns by the file's own names.

    `columns` are pyarrow or numpy arrays [n] as typed as the file allows: text (may be dictionary-encoded), or numbers;
    a missing value is null or NaN. Written dates and numbers with another decimal sign are read by then. `roles` maps
    roles to columns, those that were guessed included; `labels` are columns of labels, in the order given.
    """

    name: str  # what errors call the file
    platform: str  # "": a column tells, or there is one
    columns: Mapping[str, Any]
    roles: Mapping[str, str]
    labels: tuple[str, ...] = ()
    lines: Ints | None = None  # of each row in its file, from 1; None: 1 + the row, below a header of one line
    text: Mapping[str, Any] | None = None  # what stood in columns that could not be read as what their role needs
    said: tuple[str, ...] = ()  # what was guessed, in words
