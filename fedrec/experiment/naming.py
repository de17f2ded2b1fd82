"""Names of clients, as files have them and in their order."""

import re
import uuid


def slug(name: str) -> str:
    """Return a client's file name: letters, digits, dots and dashes, with a short hash where that lost something."""
    kept = re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("._")[:60]
    return kept if kept == name else f"{kept or 'client'}-{uuid.uuid5(uuid.NAMESPACE_OID, name).hex[:8]}"


def natural(name: str) -> tuple[str | int, ...]:
    """Return a sort key under which silo-2 stands before silo-10."""
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name))
