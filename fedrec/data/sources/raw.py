"""A file that is known, and the roles of its columns, as one value: what the rest of the package sees of it."""

from fedrec.data.reading import Raw
from fedrec.data.sources.cache import parse_once
from fedrec.data.sources.file import Opened, Settings, kind_of
from fedrec.data.sources.roles import Asked


def kinds_of(roles: Asked) -> dict[str, str]:
    """Return what each column is read as; one with several roles as a number or a time, if any role needs that.

    The weight of a user or an item is an attribute of any kind.
    """
    kinds, rows = {column: kind_of("label") for column in roles.columns}, "user" in roles.roles
    typed = {c: kind_of(role) for role, c in roles.roles.items() if rows or role != "weight"}
    return kinds | {c: kind for c, kind in typed.items() if kind != kind_of("label")}


def as_raw(opened: Opened, roles: Asked, settings: Settings, platform: str, said: str) -> Raw:
    """Return a file with its columns of some roles; `said` is what was guessed of them. Raises UserError."""
    parsed = parse_once(opened, kinds_of(roles), settings)
    how, *lost = parsed.said
    words = [f"read as {how}"] * bool(how) + [said] * bool(said)
    told = (f"{opened.name}: {'; '.join(words)}",) * bool(words)
    text = parsed.text or None
    return Raw(opened.name, platform, parsed.columns, roles.roles, roles.labels, parsed.lines, text, (*told, *lost))
