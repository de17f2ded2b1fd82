"""Newcomers: clients that join a running federation, which teaches them and learns nothing from them."""

import math

from fedrec.errors import UserError


def arrivals(text: str, rounds: float = math.inf) -> dict[str, int]:
    """Return the round in which each client joins a run of so many, of 'shop=10;news=12'; raises UserError."""
    found: dict[str, int] = {}
    for part in text.split(";") if text else []:
        name, equals, number = part.rpartition("=")
        if not (name and equals and number.isdecimal()):
            raise UserError(f"must be clients and rounds such as 'shop=10;news=12', found {part!r}")
        if name in found:
            raise UserError(f"must name a client once, found {name} twice")
        found[name] = int(number)
        if not 1 <= found[name] < rounds:
            raise UserError(f"must join in a round from 1 to {rounds - 1}, found {name}={number}")
    return found
