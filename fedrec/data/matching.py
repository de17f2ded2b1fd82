"""Which keys of a platform are those of other platforms, by a file of platform, key, to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedrec.data.columns import Codes, coded
from fedrec.data.faults import line_of
from fedrec.data.reading import Raw
from fedrec.errors import UserError, choose

COLUMNS = ("platform", "key", "to")
KINDS = ("item", "user")


@dataclass(frozen=True)
class Matches:
    """The other key of keys of a platform, by (kind, platform)."""

    to: Mapping[tuple[str, str], Mapping[str, str]]
    name: str = ""

    @property
    def targets(self) -> dict[str, set[str]]:
        """The keys that are given, by kind."""
        return {kind: {to for (k, _), pairs in self.to.items() if k == kind for to in pairs.values()} for kind in KINDS}


NONE = Matches({})


def read_matches(raw: Raw) -> Matches:
    """Return what a file with the columns platform, key, to says; `kind`, where it is there, is item or user.

    Raises UserError for an empty value, another kind, and for a key that is given two others.
    """
    for column in COLUMNS:
        choose(f"column of {raw.name}", column, raw.columns)
    given = [coded(raw.columns[column]) for column in COLUMNS]
    texts = [[one.values[code] if code >= 0 else "" for code in one.code.tolist()] for one in given]
    kinds = ["item"] * len(given[0])
    if "kind" in raw.columns:
        found = coded(raw.columns["kind"])
        kinds = [found.values[code] if code >= 0 else "" for code in found.code.tolist()]
    to: dict[tuple[str, str], dict[str, str]] = {}
    for row, (kind, platform, key, other) in enumerate(zip(kinds, *texts, strict=True)):
        where = f"match: {raw.name}, {line_of(raw, row)}"
        if not (platform and key and other):
            raise UserError(f"{where}: platform, key and to must not be empty, found nothing")
        pairs = to.setdefault((choose(f"{where}: kind", kind, KINDS), platform), {})
        if pairs.setdefault(key, other) != other:
            raise UserError(f"{where}: a key must be given one other, found {key[:80]!r} is {other[:80]!r} too")
    return Matches(to, raw.name)


def matched(
    matches: Matches, kind: str, code: Codes, platform: Codes, keys: Sequence[str], platforms: Sequence[str]
) -> tuple[Codes, tuple[str, ...]]:
    """Return the codes [n] of `keys` with those of each platform's matches in their place, and a note that counts.

    `keys` are ascending, and hold the keys that are given. Raises UserError for a platform that is not there.
    """
    place = {key: index for index, key in enumerate(keys)} if matches.to else {}
    moved, unmet, changed = 0, 0, code
    for (of, name), pairs in matches.to.items():
        if of != kind:
            continue
        here = platform == list(platforms).index(choose(f"match: platform of {matches.name}", name, platforms))
        other = np.arange(len(keys), dtype=np.int32)
        for key, to in pairs.items():
            other[place.get(key, place[to])] = place[to]
        there = np.zeros(len(keys), np.bool_)
        there[code[here]] = True
        met = sum(key in place and bool(there[place[key]]) for key in pairs)
        moved, unmet = moved + met, unmet + len(pairs) - met
        changed = np.where(here, other[code], changed)
    if not (moved or unmet):
        return changed, ()
    lacking = f"; {unmet:,} are of no {kind} there" if unmet else ""
    return changed, (f"{matches.name}: {moved:,} keys of {kind}s are those of others{lacking}",)
