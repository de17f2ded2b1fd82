"""The impressions of Microsoft News, a line for all that a user was shown at once, as interactions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.csv as csv  # type: ignore[import-untyped]

from fedrec.data.checks import reading, refuse
from fedrec.data.reading import Raw
from fedrec.data.types import Ints
from fedrec.files import unpack

COLUMNS = ("impression", "user", "time", "history", "shown")
WRITTEN = "%m/%d/%Y %I:%M:%S %p"


def impressions(paths: Sequence[Path]) -> Raw:
    """Return what was shown, `N1-1 N2-0` where N1 was clicked, and the clicks of each user before the first of it.

    Those have no times in `history`: they are given one a second before the other, up to the user's first line. Raises
    UserError for a line of another form.
    """
    lines = pa.concat_tables([_lines(path) for path in paths])
    user, time = lines["user"].combine_chunks().dictionary_encode(), lines["time"].to_numpy()
    shown, line = _parts(lines["shown"])
    first = _first(user.indices.to_numpy(), time)
    known, place = _parts(lines["history"].take(pa.array(first)))
    line = np.concatenate([first[place], line])
    # Of n clicks the last is one second before the line, the first n.
    before = np.searchsorted(place, place, "right") - np.arange(len(place))
    times = time[line]
    times[: len(place)] -= before
    clicked = pc.equal(pc.utf8_slice_codeunits(shown, -1), "1").to_numpy(zero_copy_only=False)
    note = (
        f"mind: {len(place):,} earlier clicks have no time: each is a second before the next, and the user's first line"
    )
    return Raw(
        name=paths[0].name,
        platform="",
        columns={
            "user": user.take(pa.array(line)),
            "item": pa.concat_arrays([known, pc.utf8_slice_codeunits(shown, 0, -2)]),
            "time": times,
            "click": np.concatenate([np.ones(len(place), np.bool_), clicked]),
        },
        roles={"user": "user", "item": "item", "time": "time"},
        labels=("click",),
        said=(note,) if len(place) else (),
    )


def _lines(path: Path) -> Any:
    """Return user, time, history and what was shown of every line of a file, times in seconds."""
    with reading(path, "MIND"), unpack(path, path.name) as file:
        types = dict.fromkeys(COLUMNS, pa.string())
        table = csv.read_csv(
            file,
            read_options=csv.ReadOptions(column_names=list(COLUMNS)),
            parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=csv.ConvertOptions(column_types=types, strings_can_be_null=False),
        )
    when = pc.strptime(table["time"], WRITTEN, "s", error_is_null=True)
    shown, line = _parts(table["shown"])
    told = pc.match_substring_regex(shown, r"^.+-[01]$").to_numpy(zero_copy_only=False)
    for bad, column, rule in (
        (pc.equal(table["user"], "").to_numpy(), "user", "a user must not be empty"),
        (pc.is_null(when).to_numpy(), "time", "a time must be like 11/15/2019 8:55:22 AM"),
        (np.bincount(line[~told], minlength=len(table)) > 0, "shown", "what was shown must be like N1-1 N2-0"),
    ):
        refuse(bad, table[column].to_pylist() if bad.any() else (), f"{path.name}", rule, "line")
    return table.select(["user", "history", "shown"]).append_column("time", when.cast(pa.int64()))


def _parts(column: Any) -> tuple[Any, Ints]:
    """Return the words of a column of text [n], and the row of each."""
    words = pc.split_pattern(column.combine_chunks(), " ")
    word, row = pc.list_flatten(words), pc.list_parent_indices(words).to_numpy()
    there = pc.not_equal(word, "")
    return word.filter(there), row[there.to_numpy(zero_copy_only=False)]


def _first(user: Ints, time: Ints) -> Ints:
    """Return the earliest line of every user, by user."""
    order = np.argsort(time, kind="stable")
    return np.asarray(order[np.unique(user[order], return_index=True)[1]])
