"""Newcomers: clients that join a running federation, which teaches them and learns nothing from them."""

from fedrec.errors import UserError


def arrivals(text: str) -> dict[str, int]:
    """Return the round in which each client joins, of 'shop=10;news=12'; raises UserError."""
    found: dict[str, int] = {}
    for part in text.split(";") if text else []:
        name, equals, number = part.rpartition("=")
        if not (name and equals and number.isdecimal()):
            raise UserError(f"must be clients and rounds such as 'shop=10;news=12', found {part!r}")
        if name in found:
            raise UserError(f"must name a client once, found {name} twice")
        found[name] = int(number)
    return found
