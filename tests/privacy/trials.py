"""A small silo to audit."""

from functools import cache

from fedrec.data import ClientData, federation
from tests.builders import synthetic


@cache
def silo() -> tuple[ClientData, int, int]:
    """Return a silo of 60 users, and how many users and items there are in all."""
    whole = synthetic(platforms=2, users=60, items=80, impressions=30)
    return federation(whole, clients=2)[0], len(whole.users), len(whole.items)
