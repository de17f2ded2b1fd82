"""Files of items' and users' attributes, one row each, and other small tables whose columns have names of their own."""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

from fedrec.components import per_client
from fedrec.data.reading import Raw, Reading
from fedrec.data.sources.dialect import Told, plain
from fedrec.data.sources.file import Opened, Settings, open_file, settings_of
from fedrec.data.sources.places import find_files
from fedrec.data.sources.raw import as_raw
from fedrec.data.sources.roles import ABOUT, Asked, asked, called, check_once, have
from fedrec.errors import UserError, choose

KEY = "key"
LIKE = {"title": ("name",), "description": ("description", "beschreibung")}  # as such columns are called here alone


def read_attributes(
    files: str,
    columns: str,
    reading: Reading,
    kind: Literal["item", "user"],
    platforms: Collection[str],
    quote: str = "",
) -> tuple[Raw, ...]:
    """Return files of attributes: `items.csv`, or by platform `items.csv;shop=shop-items.csv`; "none" may `quote`.

    `columns` maps `key`, and attributes by their names, to the file's columns. Without it the key is the column that
    is called like ids of items, or users; an item's attributes are those that are called so, a user's all other
    columns. What is told of encoding, decimal sign and dates holds here too, all else is guessed. Raises UserError.
    """
    raws = []
    for platform, path in (per_client(files) if files else {}).items():
        if platform == "*":
            platform = ""
        elif platforms:  # of a column they are not known yet
            choose(f"reading.{kind}s: platform", platform, platforms)
        one = settings_of(reading, platform, platforms)
        told = Told(encoding=one.told.encoding, decimal=one.told.decimal, quote=quote)
        settings = Settings(told=told, dates=one.dates, strict=one.strict)
        ask = asked(columns, platform, (), (KEY,))
        for file in find_files(Path(path).expanduser(), f"reading.{kind}s")[0]:
            opened = open_file(file, file.name, settings, ask.columns)
            roles, said = attribute_roles(ask, opened, kind)
            raws.append(as_raw(opened, roles, settings, platform, said))
    return tuple(raws)


def attribute_roles(ask: Asked, opened: Opened, kind: str) -> tuple[Asked, str]:
    """Return which column of a file is the key, and which has which attribute; and in words what was guessed."""
    roles, columns = dict(ask.roles), list(opened.columns)
    for column in roles.values():
        choose(f"reading.{kind}_columns: column of {opened.name}", column, columns)
        check_once(columns, column, opened.name)
    if KEY not in roles:
        fits = called(kind, columns) or [column for column in columns if plain(column) in (KEY, "id")]
        if len(fits) != 1:
            raise UserError(
                f"reading.{kind}_columns: must say which column of {opened.name} is the key, as in key={columns[0]}, "
                f"found {' and '.join(fits) or 'none by its name'}{have(columns)}"
            )
        roles[KEY] = fits[0]
    if not ask.complete:
        free = [column for column in columns if column not in roles.values()]
        if kind == "item":
            named = {role: called(role, free) or [c for c in free if plain(c) in LIKE.get(role, ())] for role in ABOUT}
            roles |= {role: several[0] for role, several in named.items() if len(several) == 1 and role not in roles}
        else:
            roles |= {column: column for column in free if column not in roles and columns.count(column) == 1}
    said = ", ".join(f"{role} is {column}" for role, column in roles.items() if role not in (column, *ask.roles))
    return Asked(roles, complete=True), said


def read_plain(path: Path, reading: Reading) -> Raw:
    """Return all columns of a small table, as text; raises UserError."""
    settings = Settings(strict=reading.rows == "strict")
    opened = open_file(path, path.name, settings)
    for column in opened.columns:
        check_once(opened.columns, column, path.name)
    return as_raw(opened, Asked({}, tuple(opened.columns)), settings, "", "")
