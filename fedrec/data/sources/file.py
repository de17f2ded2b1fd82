"""One file, whatever its form: what it is and which columns it has, then the columns that are asked for."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]

from fedrec.components import per_client
from fedrec.data.checks import reading as readable
from fedrec.data.reading import Reading
from fedrec.data.sources.columnar import MARK, parquet_columns, read_parquet
from fedrec.data.sources.delimited import read_delimited
from fedrec.data.sources.dialect import (
    Dialect,
    Told,
    choose_decimal,
    choose_dialect,
    choose_encoding,
    described,
    lines_above,
    rows_in,
    sample_text,
)
from fedrec.data.sources.loaded import NUMBER, TEXT, TIME, Loaded
from fedrec.data.sources.objects import json_columns, read_json, read_lines
from fedrec.data.sources.roles import BY_NAME
from fedrec.data.sources.sequences import COLUMNS, are_sequences, read_sequences
from fedrec.data.sources.streams import Undecodable
from fedrec.data.sources.values import SAMPLE, coded, combined, numbers, of_text, times
from fedrec.data.types import Ints
from fedrec.errors import UserError, choose, named
from fedrec.files import PEEKED, regular, unpack

FORMATS = ("csv", "parquet", "jsonl", "json", "recbole", "sequences")
BY_END = {".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
TYPED = re.compile(r"(.+):(token|float|token_seq|float_seq)")  # a column of a RecBole file
DELIMITED = ("csv", "recbole")
ACTS = {"delimiter": ("csv",), "quote": ("csv",), "header": ("csv",)}  # options that act on some forms alone
NUMBERS = ("rating", "price", "weight")  # roles


@dataclass(frozen=True)
class Settings:
    """How the files of one platform are read, as the options say; "" what is to be guessed."""

    format: str = ""
    told: Told = field(default_factory=Told)
    dates: str = ""
    strict: bool = True


@dataclass(frozen=True)
class Opened:
    """A file that is known: its form, the names of its columns, and how its text begins and is written."""

    path: Path
    name: str
    form: str
    columns: tuple[str, ...]
    dialect: Dialect = field(default_factory=Dialect)
    text: str = ""
    lists: frozenset[str] = frozenset()  # columns whose texts are words parted by blanks


@dataclass(frozen=True)
class Parsed:
    """Columns of a file as `fedrec.data.reading.Raw` has them; `said` is first how it was read, then what was lost."""

    columns: Mapping[str, Any]
    lines: Ints | None
    text: Mapping[str, Any]
    said: tuple[str, ...]


def settings_of(reading: Reading, platform: str, platforms: Collection[str]) -> Settings:
    """Return how the files of a platform are read; raises UserError for a platform that is not there."""
    values = {}
    for name in ("format", "delimiter", "encoding", "decimal", "quote", "dates", "header"):
        text = getattr(reading, name)
        with named(f"reading.{name}"):
            by_name = {"*": text} if not text.strip() or text == ";" else per_client(text)
        for other in by_name.keys() - {"*", *platforms}:
            choose(f"reading.{name}: platform", other, platforms)
        values[name] = by_name.get(platform, by_name.get("*", ""))
    if values["format"]:
        choose("reading.format", values["format"], FORMATS)
    told = Told(**{name: values[name] for name in ("encoding", "delimiter", "quote", "header", "decimal")})
    return Settings(values["format"], told, values["dates"], reading.rows == "strict")


def open_file(path: Path, name: str, settings: Settings, wanted: Collection[str] = ()) -> Opened:
    """Return what a file is, by what is told, by its name and by how it begins; raises UserError."""
    regular(path, name)
    with readable(path, settings.format or "CSV"), unpack(path, name) as file:
        sample = file.read(PEEKED)
        whole = not file.peek(1)
    form = settings.format or BY_END.get(path.suffix.lower()) or ("parquet" if sample.startswith(MARK) else "")
    if form == "parquet":
        return check_acts(Opened(path, name, form, tuple(parquet_columns(path, name))), settings)
    if not sample.strip():
        raise UserError(f"{name}: must hold at least one row, found an empty file")
    encoding, certain = choose_encoding(sample, whole, settings.told.encoding, name)
    text = sample_text(sample, whole, encoding, name)
    form = form or form_of(text)
    opened = Opened(path, name, form, (), Dialect(encoding=encoding, certain=certain), text)
    if form in ("json", "jsonl"):
        columns = tuple(json_columns(text, form == "jsonl"))
        if not columns:
            raise UserError(f"{name}: must hold JSON objects, found none in its first lines")
        opened = replace(opened, columns=columns)
    elif form == "sequences":
        opened = replace(opened, columns=tuple(COLUMNS))
    else:
        opened = of_lines(opened, whole, settings, wanted)
    return check_acts(opened, settings)


def form_of(text: str) -> str:
    """Return the form of a text by how it begins."""
    start = text.lstrip("\ufeff \t\r\n")
    if start.startswith("{"):
        return "jsonl"
    if re.match(r"\[\s*\{", start):
        return "json"
    if all(TYPED.fullmatch(field) for field in start.splitlines()[0].split("\t")):
        return "recbole"
    return "sequences" if are_sequences(text) else "csv"


def of_lines(opened: Opened, whole: bool, settings: Settings, wanted: Collection[str]) -> Opened:
    """Return a file of delimited lines, whose text is `whole` or not, with columns and dialect; raises UserError."""
    encoding, text = opened.dialect.encoding, opened.text
    if opened.form == "recbole":
        dialect = Dialect(encoding, "\t", "", certain=opened.dialect.certain)
        typed = [TYPED.fullmatch(field.strip()) for field in rows_in(text, "\t", "")[0]]
        if not all(typed):
            raise UserError(f"{opened.name}, line 1: must be names with types, as user_id:token, found {text[:60]!r}")
        pairs = [(found[1], found[2]) for found in typed if found]
        lists = frozenset(name for name, kind in pairs if kind.endswith("_seq"))
        return replace(opened, columns=tuple(name for name, _ in pairs), dialect=dialect, lists=lists)
    above = lines_above(text)
    text = "".join(text.splitlines(keepends=True)[above:])
    chosen = choose_dialect(text, whole, settings.told, wanted, BY_NAME, opened.name)
    dialect = replace(chosen, encoding=encoding, above=above, certain=opened.dialect.certain)
    first = rows_in(text, dialect.delimiter, dialect.quote)[0]
    columns = [field.strip() for field in first] if dialect.header else [str(at + 1) for at in range(len(first))]
    return replace(opened, columns=tuple(columns), dialect=dialect, text=text)


def check_acts(opened: Opened, settings: Settings) -> Opened:
    """Return the file; raises UserError for what is told and cannot act on its form."""
    for name, forms in ACTS.items():
        if (value := getattr(settings.told, name)) and opened.form not in forms:
            raise UserError(
                f"reading.{name}: acts only on files of csv, found {value} for {opened.name} ({opened.form})"
            )
    if settings.told.encoding and opened.form == "parquet":
        raise UserError(
            f"reading.encoding: acts only on text, found {settings.told.encoding} for {opened.name} (parquet)"
        )
    return opened


def load_columns(opened: Opened, kinds: Mapping[str, str], settings: Settings) -> tuple[Loaded, Dialect]:
    """Return some columns of a file by name as they are there, and how its text was written after all.

    A text that is no UTF-8 below its beginning, in which nothing told, is read as latin-1. Raises UserError.
    """
    path, name, dialect, wanted = opened.path, opened.name, opened.dialect, list(kinds)
    try:
        with readable(path, {"csv": "CSV", "parquet": "Parquet"}.get(opened.form, opened.form)):
            if opened.form == "parquet":
                return read_parquet(path, name, wanted), dialect
            if opened.form == "sequences":
                return read_sequences(path, name, dialect.encoding, settings.strict), dialect
            if opened.form == "jsonl":
                return read_lines(path, name, dialect.encoding, opened.text, wanted, settings.strict), dialect
            if opened.form == "json":
                return read_json(path, name, dialect.encoding, wanted, False, settings.strict), dialect
            dialect = with_decimal(opened, kinds, settings)
            places = {column: opened.columns.index(column) for column in wanted}
            by_place = {places[column]: kind for column, kind in kinds.items()}
            found = read_delimited(path, name, dialect, opened.text, by_place, settings.strict)
            return replace(found, columns={column: found.columns[str(at)] for column, at in places.items()}), dialect
    except Undecodable:
        if dialect.certain or settings.told.encoding:
            raise
        later = replace(opened, dialect=replace(opened.dialect, encoding="cp1252", certain=True))
        return load_columns(later, kinds, settings)


def with_decimal(opened: Opened, kinds: Mapping[str, str], settings: Settings) -> Dialect:
    """Return the dialect with the decimal sign of the columns of numbers, by their first values."""
    dialect = opened.dialect
    rows = rows_in(opened.text, dialect.delimiter, dialect.quote)[dialect.header :]
    places = {column: opened.columns.index(column) for column, kind in kinds.items() if kind == NUMBER}
    values = [row[at] for at in places.values() for row in rows if at < len(row)]
    where = f"{opened.name}, {', '.join(places)}"
    decimal, grouped = choose_decimal(values, settings.told.decimal, where)
    return replace(dialect, decimal=decimal, grouped=grouped)


def kind_of(role: str) -> str:
    """Return what a column is read as for a role."""
    return NUMBER if role in NUMBERS else TIME if role == "time" else TEXT


def parse(opened: Opened, kinds: Mapping[str, str], settings: Settings) -> Parsed:
    """Return some columns of a file by name, read as what they are wanted as; raises UserError."""
    loaded, dialect = load_columns(opened, kinds, settings)
    sign = (dialect.decimal, dialect.grouped) if opened.form in DELIMITED else None
    parsed = convert(loaded, kinds, opened.name, settings, sign, opened.lists)
    how = ", ".join([*guessed(opened, dialect, settings), *filter(None, parsed.said[:1])])
    return replace(parsed, said=(how, *parsed.said[1:]))


def convert(
    loaded: Loaded,
    kinds: Mapping[str, str],
    thing: str,
    settings: Settings,
    sign: tuple[str, bool] | None = None,
    lists: Collection[str] = (),
) -> Parsed:
    """Return columns read as what they are wanted as.

    `sign` is the decimal sign of numbers as text, and whether thousands are grouped; None: told by each column. Texts
    of `lists` are words parted by blanks. Raises UserError, naming `thing`, for what would be guessed between several.
    """
    columns: dict[str, Any] = {}
    text: dict[str, Any] = {}
    said: list[str] = []
    for name, kind in kinds.items():
        column, unread, where = loaded.columns[name], None, f"{thing}, column {name!r}"
        try:
            if kind == NUMBER:
                own = sign
                if own is None and of_text(column.type):
                    own = choose_decimal(coded(column).dictionary[:SAMPLE].to_pylist(), settings.told.decimal, where)
                columns[name], unread = numbers(column, *(own or (".", False)))
            elif kind == TIME:
                columns[name], unread, form = times(column, settings.dates, where)
                said += [f"{name} like {datetime(2023, 12, 31).strftime(form)}"] * bool(form)
            else:
                columns[name] = coded(column, name in lists) if of_text(column.type) else combined(column)
        except pa.ArrowException:
            raise UserError(f"{where}: must be {kind}s, found {column.type}") from None
        if unread is not None:
            text[name] = unread
    return Parsed(columns, loaded.lines, text, (", ".join(said), *loaded.said))


def guessed(opened: Opened, dialect: Dialect, settings: Settings) -> list[str]:
    """Return what was guessed of a file's form and is not usual, in words."""
    if opened.form == "csv":
        return described(dialect, settings.told)
    by_name = opened.path.suffix.lower() in BY_END
    rest = described(replace(dialect, delimiter=",", quote='"'), settings.told)
    return [opened.form] * (not settings.format and not by_name) + rest
