"""Sequences: a line for each user, which has the user and then the items in their order."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from fedrec.data.sources.dialect import Dialect
from fedrec.data.sources.loaded import SHOWN, Loaded, dropped, others
from fedrec.data.sources.streams import text_of
from fedrec.data.sources.values import flat
from fedrec.data.types import Ints
from fedrec.errors import UserError

COLUMNS = ["user", "item", "time"]
WIDE = 8  # columns that a table without names of them has at most
RULE = "must have a user and an item, parted by blanks"


def are_sequences(text: str) -> bool:
    """Return whether lines are words parted by blanks alone: not all of one number, or many whole numbers each."""
    if any(sign in text for sign in (",", ";", "\t", "|", "::", '"')):
        return False
    lines = [words for line in text.splitlines() if (words := line.split())]
    counts = {len(words) for words in lines}
    if min(counts, default=0) < 2:
        return False
    return len(counts) > 1 or (min(counts) > WIDE and all(word.isdecimal() for words in lines for word in words))


def read_sequences(path: Path, name: str, encoding: str, strict: bool) -> Loaded:
    """Return the user, the item and the place, from 1, of every item of a file, whose lines are in no order.

    A line without an item is refused, or, unless rows are `strict`, left out and counted. Raises UserError for a user
    with two lines, and as `text_of` does.
    """
    with text_of(path, name, Dialect(encoding=encoding)) as file:
        text = pa.array([file.read()], pa.large_binary()).cast(pa.large_string())
    lines = pc.utf8_trim_whitespace(pc.list_flatten(pc.split_pattern(text, "\n")))
    number: Ints = np.flatnonzero(pc.not_equal(lines, "").to_numpy(zero_copy_only=False))
    words = pc.utf8_split_whitespace(lines.take(pa.array(number)))
    count = flat(pc.list_value_length(words)).astype(np.int64)
    every, start = pc.list_flatten(words), np.cumsum(count) - count
    good, bad = np.flatnonzero(count > 1), number[count == 1] + 1
    if len(bad) and strict:
        raise UserError(f"{name}, line {bad[0]}: {RULE}, found one word{others(len(bad), len(good))}")
    users, number, sizes = every.take(pa.array(start[good])), number[good] + 1, count[good] - 1
    check_once(users, number, name)
    of = np.repeat(np.arange(len(good), dtype=np.int32), sizes)
    place = np.arange(len(of)) - (np.cumsum(sizes) - sizes)[of] + 1
    items = every.take(pa.array(start[good][of] + place))
    first = [(int(line), "one word") for line in bad[:SHOWN]]
    said = (dropped(name, RULE, first, len(good), len(bad)),) * bool(first)
    columns = {"user": pa.DictionaryArray.from_arrays(pa.array(of), users), "item": items, "time": pa.array(place)}
    return Loaded(columns, number[of], said)


def check_once(users: Any, line: Ints, name: str) -> None:
    """Raise UserError for a user with two lines."""
    codes = users.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    _, first = np.unique(codes, return_index=True)
    if len(first) < len(codes):
        again = int(np.setdiff1d(np.arange(len(codes)), first)[0])
        raise UserError(f"{name}, line {line[again]}: a user must have one line, found {users[again].as_py()!r} again")
