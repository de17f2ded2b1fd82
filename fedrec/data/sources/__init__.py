"""How files become columns: places, forms, guesses, roles; typed reading, and a cache of what was parsed."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from fedrec.data.reading import Raw, Reading
from fedrec.data.sources.attributes import read_attributes, read_plain
from fedrec.data.sources.file import Settings, open_file, settings_of
from fedrec.data.sources.frame import read_frame
from fedrec.data.sources.places import Place, absolute, absolute_each, digest, listed, places
from fedrec.data.sources.raw import as_raw
from fedrec.data.sources.roles import Asked, asked, named, resolve
from fedrec.errors import choose

__all__ = ["absolute", "absolute_each", "digest", "listed", "read_attributes", "read_frame", "read_plain", "read_table"]


def read_table(data_dir: Path, columns: str, reading: Reading) -> tuple[Raw, ...]:
    """Return the files of a table as they were read, in the order of their platforms and names.

    `data_dir` is as `fedrec.data.sources.places.places` takes it. `columns` maps roles to columns, as in
    `user=uid,item=iid;shop:user=customer,item=sku`; what it lacks is guessed of what columns are usually called. Raises
    UserError for whatever cannot be read, or would have to be guessed between several.
    """
    there = places(data_dir, reading.platforms == "files")
    platforms = [place.platform for place in there if place.platform]
    for name in sorted(named(columns)):
        choose("columns: platform", name, platforms)
    names = names_of(there)
    raws = []
    for place in there:
        settings, ask = settings_of(reading, place.platform, platforms), asked(columns, place.platform)
        said = place.said
        for path in place.files:
            raw = read_file(path, names[path], place.platform, ask, settings, len(there) > 1, columns)
            raws.append(replace(raw, said=(*said, *raw.said)))
            said = ()
    check_met(raws, [asked(columns, place.platform) for place in there])
    return tuple(raws)


def names_of(there: Collection[Place]) -> dict[Path, str]:
    """Return what errors call each file: its name, with its folder's where several have one."""
    every = [path for place in there for path in place.files]
    names = [path.name for path in every]
    return {path: path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}" for path in every}


def read_file(path: Path, name: str, platform: str, ask: Asked, settings: Settings, others: bool, columns: str) -> Raw:
    """Return one file as it was read; see `resolve` for `ask`, `others` and `columns`."""
    opened = open_file(path, name, settings, ask.columns)
    roles, said = resolve(ask, opened.columns, name, columns, platform, others)
    return as_raw(opened, roles, settings, platform, said)


def check_met(raws: Collection[Raw], asks: Collection[Asked]) -> None:
    """Raise UserError for a column that is asked for, and that no file has."""
    have = {column for raw in raws for column in raw.columns}
    for ask in asks:
        for column in ask.columns:
            if column not in have:
                choose(f"column of {', '.join(raw.name for raw in raws)}", column, have)
