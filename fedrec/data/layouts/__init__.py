"""Public data sets by name: as their owners publish them, read as a user's own files are."""

from dataclasses import replace
from pathlib import Path

from fedrec.data.layouts.fetch import cached, find, missing, packed, unpacked
from fedrec.data.layouts.known import LAYOUTS
from fedrec.data.layouts.layout import Layout
from fedrec.data.layouts.plain import from_raw, read_files
from fedrec.data.reading import Filters, Reading
from fedrec.data.types import Dataset
from fedrec.errors import UserError

__all__ = ["LAYOUTS", "Layout", "published"]


def published(
    name: str,
    data_dir: Path | None = None,
    columns: str = "",
    reading: Reading | None = None,
    filters: Filters | None = None,
) -> Dataset:
    """Return a data set of `LAYOUTS`, from a folder, an archive as downloaded, a file of interactions, or the cache.

    `columns`, and what of `reading` is not as it is by default, come before those of the layout. Raises UserError,
    which says what to fetch from where if it is not at hand, and as `fedrec.data.table` does.
    """
    layout = LAYOUTS[name]
    inside = [file for file in (layout.files, layout.reading.items, layout.reading.users) if file]
    alone = data_dir is not None and data_dir.is_file() and not packed(data_dir)
    if data_dir is None:
        folder = cached(name, layout, inside)
    elif packed(data_dir) and not data_dir.is_dir():
        folder = unpacked(data_dir, inside)
    else:
        folder = data_dir.parent if alone else data_dir
    if layout.load is not None:
        return layout.load(folder)
    files = [data_dir] if alone and data_dir else find(folder, layout.files)
    if not files:
        raise UserError(f"data-dir: {folder} must hold {layout.files}, found none; {missing(name, layout)}")
    given = _stated(layout.reading, folder, reading or Reading())
    if layout.raw is not None:
        data = from_raw(layout.raw(files), given)
    else:
        data = read_files(files, columns or layout.columns, given)
    untried = "" if layout.tried else "; its layout was tried on a few lines, not on the whole of it"
    note = f"{layout.about}; terms: {layout.terms}{untried}"
    return _finished(replace(data, name=name, notes=(note, *data.notes)), layout)


def _stated(stated: Reading, folder: Path, given: Reading) -> Reading:
    """Return how to read, with the files of attributes that are in the folder."""
    patterns = {"items": stated.items, "users": stated.users}
    files = {role: ";".join(map(str, find(folder, name))) for role, name in patterns.items() if name}
    usual = Reading()
    own = {field: value for field, value in given if value != getattr(usual, field)}
    return stated.model_copy(update={**files, **own})


def _finished(data: Dataset, layout: Layout) -> Dataset:
    """Return the data set with categories parted by '|', and `like` as its layout says."""
    categories = data.items["categories"].str.strip("[]").str.replace(layout.parted, "|", regex=False)
    data = replace(data, items=data.items.assign(categories=categories.replace("(no genres listed)", "")))
    if layout.like is None:
        return data
    like = data.interactions["rating"] > layout.like
    return replace(data, interactions=data.interactions.assign(positive=like, like=like), labels=("like",))
