"""Public data sets by name: as their owners publish them, read as a user's own files are."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fedrec.data.assembly import Described, assemble
from fedrec.data.layouts.fetch import cached, find, missing, packed, unpacked
from fedrec.data.layouts.known import LAYOUTS
from fedrec.data.layouts.layout import Layout
from fedrec.data.reading import Filters, Raw, Reading
from fedrec.data.sources import read_attributes, read_plain, read_table
from fedrec.data.sources.places import stem
from fedrec.data.types import Dataset
from fedrec.errors import UserError

__all__ = ["LAYOUTS", "Layout", "published"]

# What of `Reading` says how files of interactions are written.
WRITTEN = ("format", "delimiter", "encoding", "decimal", "quote", "dates", "header", "platforms")
KINDS: tuple[Literal["item", "user"], ...] = ("item", "user")


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
    folder, files = _files(name, layout, data_dir)
    if layout.load is not None:
        return layout.load(folder)
    usual = Reading()
    own = {field: value for field, value in reading or usual if value != getattr(usual, field)}
    given = layout.reading.model_copy(update={"platforms": "column", **own})
    raws: Sequence[Raw]
    if layout.raw is not None:
        idle = ["columns"] * bool(columns) + [f"reading.{field}" for field in own if field in WRITTEN]
        if idle:
            raise UserError(f"{idle[0]}: acts only with files that are read as tables are, found {name}")
        raws = [layout.raw(files)]
    else:
        by_file = layout.reading.platforms == "files"
        where = ";".join(f"{stem(path)}={path}" for path in files) if by_file else files[0]
        raws = read_table(Path(where), columns or layout.columns, given)
    platforms = [raw.platform for raw in raws if raw.platform]
    items, users = (_attributes(kind, layout.reading, given, folder, platforms) for kind in KINDS)
    match = read_plain(given.match, given) if given.match is not None else None
    filters = filters or Filters()
    if not layout.catalogue and not filters.item_least:
        filters = filters.model_copy(update={"item_least": 1})  # leaves out what nobody met
    data = assemble(name, raws, given, filters, Described(items, users, match))
    untried = "" if layout.tried else "; its layout was tried on a few lines, not on the whole of it"
    return _finished(replace(data, notes=(f"{layout.about}; terms: {layout.terms}{untried}", *data.notes)), layout)


def _files(name: str, layout: Layout, data_dir: Path | None) -> tuple[Path, list[Path]]:
    """Return the folder of a data set, and its files of interactions; raises UserError."""
    inside = [file for file in (layout.files, layout.reading.items, layout.reading.users) if file]
    if data_dir is not None and data_dir.is_file() and not packed(data_dir):
        return data_dir.parent, [data_dir]
    if data_dir is None:
        folder = cached(name, layout, inside)
    else:
        folder = unpacked(data_dir, inside) if packed(data_dir) and not data_dir.is_dir() else data_dir
    folder = folder / name if (folder / name).is_dir() else folder
    files = find(folder, layout.files)
    if not files and layout.load is None:
        raise UserError(f"data-dir: {folder} must hold {layout.files}, found none; {missing(layout)}")
    if layout.raw is None and layout.reading.platforms == "column":
        if len(files) > 1:
            several = ", ".join(str(file.relative_to(folder)) for file in files)
            raise UserError(f"data-dir: {folder} must hold one {layout.files}, found {several}")
        folder = files[0].parent if files else folder
    return folder, files


def _attributes(
    kind: Literal["item", "user"], stated: Reading, given: Reading, folder: Path, platforms: Sequence[str]
) -> list[Raw]:
    """Return the files of attributes of items or users: others that are given, or those of a layout that are there."""
    files, columns = getattr(given, f"{kind}s"), getattr(given, f"{kind}_columns")
    if files != getattr(stated, f"{kind}s"):
        return [*read_attributes(files, columns, given, kind, platforms)]
    found = list[Raw]()
    for path in find(folder, files) if files else ():
        platform = stem(path).removeprefix(files.partition("*")[0]) if platforms else "*"
        if platform in (*platforms, "*"):
            found += read_attributes(f"{platform}={path}", columns, given, kind, platforms, given.quote)
    return found


def _finished(data: Dataset, layout: Layout) -> Dataset:
    """Return the data set with categories parted by '|', and `like` as its layout says."""
    categories = data.items["categories"].str.replace(layout.parted, "|", regex=False)
    data = replace(data, items=data.items.assign(categories=categories.replace("(no genres listed)", "")))
    if layout.like is None:
        return data
    like = data.interactions["rating"] > layout.like
    return replace(data, interactions=data.interactions.assign(positive=like, like=like), labels=("like",))
