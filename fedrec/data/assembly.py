"""From files as they were read to a dataset: rows of all platforms, known by their keys, merged, filtered, in order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]

from fedrec.data import filters as counts
from fedrec.data import scales as stars
from fedrec.data.catalogue import Sheet, attributes_of_rows, carried, item_table, read_sheet, user_table
from fedrec.data.checks import canonical
from fedrec.data.columns import TEXT, Codes, together
from fedrec.data.events import check_found, parse_events
from fedrec.data.matching import NONE, Matches, matched, read_matches
from fedrec.data.reading import Filters, Raw, Reading
from fedrec.data.rows import Rows, read_rows
from fedrec.data.scales import Scale
from fedrec.data.types import Bools, Dataset, Floats, Ints, known_column
from fedrec.errors import UserError


@dataclass(frozen=True)
class Described:
    """Files that describe items and users, and the matches of their keys."""

    items: Sequence[Raw] = ()
    users: Sequence[Raw] = ()
    match: Raw | None = None


def assemble(
    name: str,
    raws: Iterable[Raw],
    reading: Reading,
    filters: Filters,
    described: Described,
) -> Dataset:
    """Return the dataset of some files of interactions, in which equal keys are equal users and items.

    Users, items and platforms are numbered in the order of their keys, whatever the order of files and rows. The rows
    of a (platform, user, item) are one interaction (`canonical`). It is a positive if it has the first label given, of
    a platform without labels always. With ratings that reach 4, or a stated scale, the label `like` is a rating in the
    upper quarter of its platform's scale, 4 of 1..5; it is not known where there is no rating.

    A file of items of one platform is its catalogue, one of all platforms describes items, and is the catalogue where
    there is one platform; with filters of items only those that are left are in it.

    Raises UserError for bad rows (see `settle`), and for whatever is asked for that cannot act.
    """
    events, scales = parse_events(reading.events), stars.parse_scales(reading.scale)
    parts, notes = list[Rows](), list[str]()
    for raw in raws:
        part, said = read_rows(raw, reading, events, scales)
        parts.append(part)
        notes += said
    _check(parts, reading, scales)
    if events.values:
        check_found(events, set().union(*(part.events for part in parts)))
    matches = NONE if described.match is None else read_matches(described.match)
    sheets: dict[str, list[Sheet]] = {"item": [], "user": []}
    for kind, files in (("item", described.items), ("user", described.users)):
        for raw in files:
            sheet, said = read_sheet(raw, reading, kind, matches)
            sheets[kind].append(sheet)
            notes += said
    rows, names = _joined(parts, sheets["item"], matches, notes)
    return _dataset(name, parts, rows, names, sheets, filters, reading, scales, notes)


@dataclass(frozen=True)
class Names:
    """The ascending keys of users, items and platforms that codes stand for."""

    user: list[str]
    item: list[str]
    platform: list[str]


def _check(parts: Sequence[Rows], reading: Reading, scales: dict[str, Scale]) -> None:
    """Raise UserError for what cannot act on these rows."""
    if not parts:
        raise UserError("data-dir: must hold a file of interactions, found none")
    if reading.events and not any(part.logs for part in parts):
        raise UserError("events: need a column of events (columns: event=NAME), found none")
    rated = any(part.rating is not None for part in parts)
    if (scales or reading.normalise) and not rated:
        raise UserError(
            f"reading.{'scale' if scales else 'normalise'}: needs ratings (columns: rating=NAME), found none"
        )


def _joined(
    parts: list[Rows], items: Sequence[Sheet], matches: Matches, notes: list[str]
) -> tuple[pd.DataFrame, Names]:
    """Return the rows of all parts by global codes, and what these stand for; `notes` gets what is said of it.

    The parts are left without keys: they would be there twice.
    """
    platform, platforms = together([part.platform for part in parts])
    targets = matches.targets
    extra = {
        "user": sorted(targets["user"]),
        "item": sorted({*targets["item"], *(k for one in items for k in one.keys)}),
    }
    codes, names = {}, {"platform": platforms.to_pylist()}
    for kind in ("user", "item"):
        code, texts = together([getattr(part, kind) for part in parts], pa.array(extra[kind], TEXT))
        names[kind] = texts.to_pylist()
        codes[kind], said = matched(matches, kind, code, platform, names[kind], names["platform"])
        notes += said
    for place, part in enumerate(parts):
        parts[place] = replace(part, user=part.user.take(slice(0)), item=part.item.take(slice(0)), size=len(part))
    columns = {**codes, "platform": platform, **_values(parts)}
    if len(names["platform"]) > 1 and not matches.to:
        notes.append("a key is the same user, or item, on every platform (--reading.match names those that are not)")
    return pd.DataFrame(columns, copy=False), Names(names["user"], names["item"], names["platform"])


def _values(parts: Sequence[Rows]) -> dict[str, "np.ndarray[tuple[int], np.dtype[np.generic]]"]:
    """Return times, ratings, positives and labels of all parts, one after the other."""

    def all_of(role: str, missing: float, kind: type[np.generic]) -> "np.ndarray[tuple[int], np.dtype[np.generic]]":
        each = [getattr(part, role) for part in parts]
        if len(each) == 1 and each[0] is not None:
            return np.asarray(each[0], kind)
        filled = [np.full(len(p), missing, kind) if one is None else one for p, one in zip(parts, each, strict=True)]
        return np.concatenate(filled).astype(kind, copy=False)

    columns = {"time": all_of("time", 0, np.int64), "rating": all_of("rating", np.nan, np.float32)}
    columns["positive"] = all_of("positive", True, np.bool_)
    for label in dict.fromkeys(label for part in parts for label in part.labels):
        has, known = list[Bools](), list[Bools]()
        for part in parts:
            one = part.labels.get(label)
            has.append(np.zeros(len(part), np.bool_) if one is None else one.has)
            every = part.logs if one is None else one.known is None
            known.append(np.full(len(part), every) if one is None or one.known is None else one.known)
        columns[label] = np.concatenate(has)
        if not all(mask.all() for mask in known):
            columns[known_column(label)] = np.concatenate(known)
    return columns


def _dataset(
    name: str,
    parts: Sequence[Rows],
    frame: pd.DataFrame,
    names: Names,
    sheets: dict[str, list[Sheet]],
    filters: Filters,
    reading: Reading,
    scales: dict[str, Scale],
    notes: list[str],
) -> Dataset:
    """Return the dataset of rows by global codes: merged, filtered, and with what is known of users and items."""
    platform: Codes = frame["platform"].to_numpy()
    stars.check_platforms(scales, names.platform)
    if any(part.rating is not None for part in parts):
        rating: Floats = frame["rating"].to_numpy()
        notes += stars.notes(rating, platform, names.platform, scales, reading.normalise)
        if reading.normalise:
            frame["rating"], said = stars.normalise(rating, platform, names.platform, scales)
            notes += said
    of_rows = attributes_of_rows(parts, frame, len(names.item))
    labels = tuple(dict.fromkeys(label for part in parts for label in part.labels))
    frame = _windowed(frame, parts, filters, notes)
    rows, said = canonical(frame)
    notes += said
    del frame
    rows = _filtered(rows, filters, notes)
    least = stars.liked(names.platform, scales, reading.normalise)[rows["platform"].to_numpy()]
    rating = rows["rating"].to_numpy()
    if "like" not in labels and (((scales or reading.normalise) and not np.isnan(rating).all()) or (rating >= 4).any()):
        rows["like"] = rating >= least
        if np.isnan(rating).any():
            rows[known_column("like")] = ~np.isnan(rating)
        labels = (*labels, "like")
        notes += _liked(names.platform, scales, reading)
    rows, users, items, platforms, kept = _compressed(rows, names, sheets["item"], filters, notes)
    of_rows = {role: column[kept] for role, column in of_rows.items()}
    catalogue, people = item_table(items, of_rows, sheets["item"]), user_table(users, sheets["user"])
    for sheet in sheets["item"] if len(platforms) > 1 else ():
        if sheet.platform in platforms:
            seen = np.zeros(len(items), np.bool_)
            seen[rows["item"].to_numpy()[rows["platform"].to_numpy() == platforms.index(sheet.platform)]] = True
            catalogue[f"carried_{sheet.platform}"] = carried(items, sheet, seen)
    return Dataset(name, rows, people, catalogue, tuple(platforms), labels, tuple(notes))


def _liked(platforms: Sequence[str], scales: dict[str, Scale], reading: Reading) -> tuple[str, ...]:
    """Return what is said of the label `like` where a scale is another one than 1..5."""
    if not scales or reading.normalise:
        return ()
    least = dict(zip(platforms, stars.liked(platforms, scales, normalised=False).tolist(), strict=True))
    several = len(set(least.values())) > 1
    said = ", ".join(
        f"{value:g}" + f" on {name}" * several for name, value in least.items() if several or name == platforms[0]
    )
    return (
        (f"like is a rating of at least {said}, the upper quarter of the stated scale",)
        if set(least.values()) != {4}
        else ()
    )


def _windowed(frame: pd.DataFrame, parts: Sequence[Rows], filters: Filters, notes: list[str]) -> pd.DataFrame:
    """Return the rows whose time counts, and note how many are left."""
    if not (filters.since or filters.until):
        return frame
    if not all(part.time is not None for part in parts):
        field = "since" if filters.since else "until"
        raise UserError(f"filters.{field}: needs the times of all rows (columns: time=NAME), found none")
    kept = frame[counts.within(frame["time"].to_numpy(), filters)]
    notes.append(_step(counts.window_words(filters), frame, kept, "rows"))
    return kept.reset_index(drop=True)


def _filtered(rows: pd.DataFrame, filters: Filters, notes: list[str]) -> pd.DataFrame:
    """Return the interactions that count, and note how many are left behind each filter."""
    before, last = rows, None
    for words, kept in counts.steps(rows["user"].to_numpy(), rows["item"].to_numpy(), filters):
        last = rows[kept]
        notes.append(_step(words, before, last))
        before = last
    return rows if last is None else last.reset_index(drop=True)


def _step(words: str, before: pd.DataFrame, after: pd.DataFrame, what: str = "interactions") -> str:
    """Return what a filter left, in words; raises UserError where that is nothing."""
    had, left = (counts.sizes(frame["user"].to_numpy(), frame["item"].to_numpy(), what) for frame in (before, after))
    if not len(after):
        raise UserError(f"filters: must leave a row, found none of {had} with {words}")
    return f"filter {words}: {left} are left of {had}"


def _compressed(
    rows: pd.DataFrame, names: Names, sheets: Sequence[Sheet], filters: Filters, notes: list[str]
) -> tuple[pd.DataFrame, list[str], list[str], list[str], Ints]:
    """Return the rows by codes of what is there: users, items and platforms, and the items' former codes."""
    there = {kind: np.zeros(len(getattr(names, kind)), np.bool_) for kind in ("user", "item", "platform")}
    for kind, mask in there.items():
        mask[rows[kind].to_numpy()] = True
    if gone := [name for name, left in zip(names.platform, there["platform"], strict=True) if not left]:
        notes.append(f"nothing is left of {', '.join(gone)}, which is no client")
    seen, of_items = int(there["item"].sum()), bool(filters.core or filters.item_least or filters.item_most)
    one = len(names.platform) == 1
    if not of_items and (catalogues := [sheet for sheet in sheets if one or sheet.platform]):
        index = pd.Index(names.item, dtype="str")
        for sheet in catalogues:
            there["item"][index.get_indexer(pd.Index(sheet.keys, dtype="str"))] = True
    if sheets:
        described = set().union(*(sheet.keys for sheet in sheets))
        held = [name for name, left in zip(names.item, there["item"], strict=True) if left]
        lacking, files = sum(name not in described for name in held), ", ".join(sheet.name for sheet in sheets)
        unseen = int(there["item"].sum()) - seen
        notes.append(
            f"the catalogue has {len(held):,} items: {unseen:,} that nobody met, {lacking:,} that "
            f"{files} lack; {len(described) - len(held) + lacking:,} lines are of none"
        )
    for kind, mask in there.items():
        if not mask.all():
            place = np.cumsum(mask, dtype=np.int32) - np.int32(1)
            rows[kind] = place[rows[kind].to_numpy()]
    left = [
        [name for name, is_left in zip(getattr(names, kind), mask, strict=True) if is_left]
        for kind, mask in there.items()
    ]
    return rows, *left, np.flatnonzero(there["item"])
