"""Tables of JSON: an object a line, or an array of objects; nested fields by dots, as in `product.id`."""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from fedrec.data.sources.columnar import inside
from fedrec.data.sources.dialect import Dialect
from fedrec.data.sources.loaded import SHOWN, Loaded, dropped, others
from fedrec.data.sources.streams import native_text, text_of
from fedrec.errors import UserError
from fedrec.files import PEEKED

SAMPLE = 1000  # objects by which columns are told
BLOCK = 2**24  # bytes that are read at once
CHUNK = 100_000  # objects whose values are held at a time
RULE = "must be a JSON object"


def json_columns(text: str, lines: bool) -> list[str]:
    """Return the names of the fields of the first objects in a text, nested ones by dots, as they appear."""
    found: dict[str, None] = {}
    objects = of_lines(text.encode().splitlines()) if lines else of_array(text)
    for _, one in islice(objects, SAMPLE):
        if isinstance(one, dict):
            found |= dict.fromkeys(names_of(one))
    return list(found)


def names_of(one: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the names of an object's fields."""
    for name, value in one.items():
        if isinstance(value, dict):
            yield from names_of(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def of_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """Yield the number of every line that is not empty, from 1, and what it holds; None: no JSON."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                yield number, None


def of_array(text: str) -> Iterator[tuple[int, Any]]:
    """Yield the number of every member of an array, from 1, and the member, up to where the text ends or is no JSON."""
    decoder, place, number = json.JSONDecoder(), text.index("[") + 1, 1
    while True:
        while place < len(text) and text[place] in " \t\r\n,":
            place += 1
        if place >= len(text) or text[place] == "]":
            return
        try:
            one, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return
        yield number, one
        number += 1


def read_lines(path: Path, name: str, encoding: str, text: str, wanted: Sequence[str], strict: bool) -> Loaded:
    """Return the wanted fields of the object of every line; `text` is the beginning of the file.

    Objects that are alike are read by arrow, all others one by one. Raises UserError as `read_json` does.
    """
    schema = schema_of(text, wanted)
    if schema is not None:
        with native_text(path, name, Dialect(encoding=encoding)) as (file, count), suppress(pa.ArrowInvalid):
            table = parse(file, schema)
            if count == table.num_rows:  # no line is empty, and none has two objects
                columns = {column: inside(table, column) for column in wanted}
                return Loaded(columns, np.arange(1, table.num_rows + 1))
    return read_json(path, name, encoding, wanted, True, strict)


def schema_of(text: str, wanted: Sequence[str]) -> Any:
    """Return the types of wanted fields in the first objects of a text; None where they are no values of one kind."""
    first = [one for _, one in islice(of_lines(text.encode().splitlines()), SAMPLE)]
    if not all(isinstance(one, dict) and not any("." in name for name in one) for one in first):
        return None
    tree: dict[str, Any] = {}
    for column in wanted:
        *parents, leaf = column.split(".")
        kind = typed([value_at(one, column, [*parents, leaf]) for one in first]).type
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                return None
        if kind == pa.null() or leaf in place or any(listed(one, column) for one in first):
            return None
        place[leaf] = kind
    return pa.schema(fields_of(tree))


def listed(one: dict[str, Any], column: str) -> bool:
    """Return whether a field holds a list or an object, which `typed` writes as text."""
    return isinstance(value_at(one, column, column.split(".")), list | dict)


def fields_of(tree: dict[str, Any]) -> list[Any]:
    """Return nested types as fields of arrow."""
    nested = {name: pa.struct(fields_of(kind)) if isinstance(kind, dict) else kind for name, kind in tree.items()}
    return [pa.field(name, kind) for name, kind in nested.items()]


def parse(file: Any, schema: Any) -> Any:
    """Return the table of the fields of a schema, of lines of which each is an object; others raise ArrowInvalid."""
    from pyarrow import json as arrow_json

    options = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    return arrow_json.read_json(file, arrow_json.ReadOptions(block_size=BLOCK), options)


def read_json(path: Path, name: str, encoding: str, wanted: Sequence[str], lines: bool, strict: bool) -> Loaded:
    """Return the wanted fields of every object of a file.

    A line that is no object is refused, or, unless rows are `strict`, left out and counted. Raises UserError.
    """
    with text_of(path, name, Dialect(encoding=encoding)) as file:
        if lines:
            return gathered(of_lines(io.BufferedReader(file, PEEKED)), name, wanted, strict)
        text = file.read().decode()
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: must be a readable JSON file, found {' '.join(str(error).split())}") from None
    if not isinstance(whole, list):
        raise UserError(f"{name}: must be an array of JSON objects, found {type(whole).__name__}")
    return gathered(enumerate(whole, 1), name, wanted, strict)


def gathered(objects: Iterable[tuple[int, Any]], name: str, wanted: Sequence[str], strict: bool) -> Loaded:
    """Return the columns of objects, made so many at a time."""
    paths = [(column, column.split(".")) for column in wanted]
    chunks: dict[str, list[Any]] = {column: [] for column in wanted}
    lines: list[Any] = []
    first: list[tuple[int, str]] = []
    count, source = 0, iter(objects)
    while some := list(islice(source, CHUNK)):
        good = [(line, one) for line, one in some if isinstance(one, dict)]
        if len(good) < len(some):
            bad = [(line, kind_of(one)) for line, one in some if not isinstance(one, dict)]
            first, count = [*first, *bad][:SHOWN], count + len(bad)
        lines.append(np.array([line for line, _ in good], np.int64))
        for column, path in paths:
            chunks[column].append(typed([value_at(one, column, path) for _, one in good]))
    rows = sum(map(len, lines))
    if count and strict:
        raise UserError(f"{name}, line {first[0][0]}: {RULE}, found {first[0][1]}{others(count, rows)}")
    columns = {column: alike(parts) for column, parts in chunks.items()}
    said = (dropped(name, RULE, first, rows, count),) * bool(count)
    return Loaded(columns, np.concatenate([np.zeros(0, np.int64), *lines]), said)


def kind_of(one: Any) -> str:
    """Return what stands in the place of an object, in words."""
    return "no JSON" if one is None else {"list": "an array", "str": "a text"}.get(type(one).__name__, "a value")


def value_at(one: dict[str, Any], name: str, path: Sequence[str]) -> Any:
    """Return the value of a field, by its name or through the objects that it lies in; None where it is not."""
    if name in one:
        return one[name]
    value: Any = one
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def typed(values: list[Any]) -> Any:
    """Return values as numbers, truth values or text: as text where they are of several kinds; lists joined by |."""
    kinds = {type(value) for value in values} - {type(None)}
    if kinds <= {int, float} or kinds == {bool}:
        try:
            return pa.array(values)
        except pa.ArrowInvalid:  # a whole number of more than 64 bits
            pass
    return pa.array([as_text(value) for value in values], pa.string())


def as_text(value: Any) -> str | None:
    """Return a value of JSON as a text."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and not any(isinstance(part, list | dict) for part in value):
        return "|".join(str(part) for part in value)
    return json.dumps(value, ensure_ascii=False)


def alike(parts: list[Any]) -> Any:
    """Return the parts of a column as one, of the type that holds them all."""
    kinds = {part.type for part in parts} - {pa.null()}
    if len(kinds) > 1:
        kind = pa.float64() if kinds == {pa.int64(), pa.float64()} else pa.string()
    else:
        kind = next(iter(kinds), pa.null())
    return pa.chunked_array([part.cast(kind) for part in parts], kind)
