"""From files as they were read to a dataset: rows of all platforms, known by their keys, merged, filtered, in order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]

from fedrec.data.catalogue import Sheet, attributes_of_rows, carried, empty, item_table, read_sheet, user_table
from fedrec.data.checks import canonical
from fedrec.data.columns import TEXT, Codes, Column, together
from fedrec.data.events import check_found, parse_events
from fedrec.data.filters import sizes, steps, window_words, within
from fedrec.data.matching import NONE, Matches, matched, read_matches
from fedrec.data.reading import Filters, Raw, Reading
from fedrec.data.rows import Rows, read_rows
from fedrec.data.scales import LIKED, Scales, check_platforms, liked, normalise, parse_scales, scale_notes
from fedrec.data.types import WEIGHT, Bools, Dataset, Floats, Ints, known_column
from fedrec.errors import UserError

WEIGHTS = "weights of interactions: "  # how a note on them begins


@dataclass(frozen=True)
class Described:
    """Files that describe items and users, and the one that matches their keys."""

    items: Sequence[Raw] = ()
    users: Sequence[Raw] = ()
    match: Raw | None = None


class Names(NamedTuple):
    """The ascending keys of users, items and platforms that codes stand for."""

    user: list[str]
    item: list[str]
    platform: list[str]


def assemble(
    name: str, raws: Iterable[Raw], reading: Reading, filters: Filters, described: Described | None = None
) -> Dataset:
    """Return the dataset of some files of interactions, in which equal keys are equal users and items.

    Users, items and platforms are numbered in the order of their keys, whatever the order of files and rows. The rows
    of a (platform, user, item) are one interaction (`canonical`). It is a positive if it has the first label given, of
    a file without labels always. With ratings that reach 4, or a stated scale, the label `like` is a rating in the
    upper quarter of its platform's scale, 4 of 1..5; it is not known where there is no rating.

    A file of items of one platform is its catalogue, one of all platforms describes items, and is the catalogue where
    there is one platform; with filters of items only those that are left are in it. Files are read one after the other.
    Raises UserError for bad rows (see `settle`), and for whatever is asked for that cannot act.
    """
    described, notes = described or Described(), list[str]()
    parts, scales = _read(raws, reading, notes), parse_scales(reading.scale)
    matches = NONE if described.match is None else read_matches(described.match)
    items, users = (
        [read_sheet(raw, reading, kind, matches, notes) for raw in files]
        for kind, files in (("item", described.items), ("user", described.users))
    )
    frame, names = _joined(parts, items, matches, notes)
    for field, given in (("scale", scales), ("items", _by_platform(items)), ("users", _by_platform(users))):
        check_platforms(f"reading.{field}", given, names.platform)
    rated = any(part.rating is not None for part in parts)
    if rated:
        frame = _rated(frame, names.platform, reading, scales, notes)
    of_rows = attributes_of_rows(parts, frame, len(names.item))
    held = [_windowed(frame, all(part.time is not None for part in parts), filters, notes)]
    labels = tuple(dict.fromkeys(label for part in parts for label in part.labels))
    weighed = dict.fromkeys(part.weighed for part in parts if part.weighed)
    del frame, parts  # which are large
    rows, said = canonical(held.pop())
    notes += said
    rows = _filtered(rows, filters, notes)
    notes += _weight_notes(rows, weighed)
    if rated and "like" not in labels and _with_likes(rows, names.platform, reading, scales, notes):
        labels = (*labels, "like")
    left = _left(rows, names, items, filters, notes)
    rows, names = _compressed(rows, names, left)
    catalogue = item_table(names.item, {role: column[left.item] for role, column in of_rows.items()}, items)
    for platform, sheets in _by_platform(items).items() if len(names.platform) > 1 else ():
        if platform in names.platform:
            here = rows["platform"].to_numpy() == names.platform.index(platform)
            catalogue[f"carried_{platform}"] = carried(names.item, sheets, rows["item"].to_numpy()[here])
    people = user_table(names.user, users)
    return Dataset(name, rows, people, catalogue, tuple(names.platform), labels, tuple(notes))


def _read(raws: Iterable[Raw], reading: Reading, notes: list[str]) -> list[Rows]:
    """Return the rows of files that count; `notes` gets what is said of them. Raises UserError for what cannot act."""
    events, scales, parts = parse_events(reading.events), parse_scales(reading.scale), list[Rows]()
    for raw in raws:
        part, said = read_rows(raw, reading, events, scales)
        parts.append(part)
        notes += said
        del raw  # which is large
    _check(parts, reading)
    if events.values:
        check_found(events, set().union(*(part.events for part in parts)))
    return parts


def _by_platform(sheets: Iterable[Sheet]) -> dict[str, list[Sheet]]:
    """Return the files that are of one platform, by its name."""
    found: dict[str, list[Sheet]] = {}
    for sheet in sheets:
        if sheet.platform:
            found.setdefault(sheet.platform, []).append(sheet)
    return found


def _check(parts: Sequence[Rows], reading: Reading) -> None:
    """Raise UserError for what cannot act on these rows."""
    if not parts:
        raise UserError("data-dir: must hold a file of interactions, found none")
    if reading.events and all(part.logs is None for part in parts):
        raise UserError("events: need a column of events (columns: event=NAME), found none")
    if (reading.scale or reading.normalise) and all(part.rating is None for part in parts):
        field = "scale" if reading.scale else "normalise"
        raise UserError(f"reading.{field}: needs ratings (columns: rating=NAME), found none")


def _joined(
    parts: list[Rows], sheets: Sequence[Sheet], matches: Matches, notes: list[str]
) -> tuple[pd.DataFrame, Names]:
    """Return the rows of all parts by global codes, and what these stand for; `notes` gets what is said of it.

    The parts are left without keys: they would be there twice.
    """
    platform, texts = together([part.platform for part in parts])
    names = {"platform": texts.to_pylist()}
    extra = matches.targets
    extra["item"] |= {key for sheet in sheets for key in sheet.keys}
    codes = {}
    for kind in ("user", "item"):
        code, texts = together([getattr(part, kind) for part in parts], pa.array(sorted(extra[kind]), TEXT))
        names[kind] = texts.to_pylist()
        codes[kind], said = matched(matches, kind, code, platform, names[kind], names["platform"])
        notes += said
    for place, part in enumerate(parts):
        parts[place] = replace(part, user=empty(0), item=empty(0), platform=empty(0), size=len(part))
    columns = {**codes, "platform": platform, **_values(parts)}
    if len(names["platform"]) > 1 and not matches.to:
        notes.append("a key is the same user, or item, on every platform (--reading.match names those that are not)")
    return pd.DataFrame(columns, copy=False), Names(names["user"], names["item"], names["platform"])


def _values(parts: Sequence[Rows]) -> dict[str, Column]:
    """Return times, ratings, positives, labels and weights of all parts, one after the other."""

    def all_of(role: str, missing: float, kind: type[np.generic]) -> Column:
        each = [getattr(part, role) for part in parts]
        if len(each) == 1 and each[0] is not None:
            return np.asarray(each[0], kind)
        filled = [np.full(len(p), missing, kind) if one is None else one for p, one in zip(parts, each, strict=True)]
        return np.concatenate(filled).astype(kind, copy=False)

    columns = {"time": all_of("time", 0, np.int64), "rating": all_of("rating", np.nan, np.float32)}
    columns["positive"] = all_of("positive", True, np.bool_)
    if any(part.weight is not None for part in parts):
        columns[WEIGHT] = all_of("weight", 1, np.float32)
    of_events = frozenset[str]().union(*(part.logs or () for part in parts))
    for label in dict.fromkeys(label for part in parts for label in part.labels):
        has, known = list[Bools](), list[Bools]()
        for part in parts:
            one = part.labels.get(label)
            has.append(np.zeros(len(part), np.bool_) if one is None else one.has)
            every = part.logs is not None and label in of_events if one is None else one.known is None
            known.append(np.full(len(part), every) if one is None or one.known is None else one.known)
        columns[label] = np.concatenate(has)
        if not all(mask.all() for mask in known):
            columns[known_column(label)] = np.concatenate(known)
    return columns


def _rated(
    frame: pd.DataFrame, platforms: Sequence[str], reading: Reading, scales: Scales, notes: list[str]
) -> pd.DataFrame:
    """Return the rows with ratings on one scale, where that is asked for; note what is to be said of scales."""
    rating: Floats = frame["rating"].to_numpy()
    platform: Codes = frame["platform"].to_numpy()
    notes += scale_notes(rating, platform, platforms, scales)
    if reading.normalise:
        frame["rating"], said = normalise(rating, platform, platforms, scales)
        notes += said
    return frame


def _with_likes(
    rows: pd.DataFrame, platforms: Sequence[str], reading: Reading, scales: Scales, notes: list[str]
) -> bool:
    """Add the label `like` to rows, if there is a scale to tell it by, and note where it is not 4; return whether."""
    rating = rows["rating"].to_numpy()
    unknown = np.isnan(rating)
    if unknown.all() or not (scales or (rating >= LIKED).any()):
        return False
    least = liked(platforms, scales, reading.normalise)
    rows["like"] = rating >= least[rows["platform"].to_numpy()]
    if unknown.any():
        rows[known_column("like")] = ~unknown
    rated = np.unique(rows["platform"].to_numpy()[~unknown]).tolist()
    if (least[rated] != LIKED).any():
        words = ", ".join(f"{least[code]:g}" + f" on {platforms[code]}" * (len(rated) > 1) for code in rated)
        notes.append(f"like is a rating of at least {words}, the upper quarter of the stated scale")
    return True


def _weight_notes(rows: pd.DataFrame, columns: Iterable[str]) -> list[str]:
    """Return by which columns rows are weighed, or by their repeats, and what they weigh, in words."""
    if WEIGHT not in rows:
        return []
    weight, names = rows[WEIGHT], ", ".join(columns)
    by = f"the column {names}" if names else "how often a user met an item"
    return [f"{WEIGHTS}{weight.min():g} to {weight.max():g}, mean {weight.mean():.3g}, by {by}"]


def _windowed(frame: pd.DataFrame, timed: bool, filters: Filters, notes: list[str]) -> pd.DataFrame:
    """Return the rows whose time counts, and note how many are left."""
    if not (filters.since or filters.until):
        return frame
    if not timed:
        field = "since" if filters.since else "until"
        raise UserError(f"filters.{field}: needs the times of all rows (columns: time=NAME), found none")
    kept = frame[within(frame["time"].to_numpy(), filters)]
    notes.append(_step(window_words(filters), frame, kept, "rows"))
    return kept.reset_index(drop=True)


def _filtered(rows: pd.DataFrame, filters: Filters, notes: list[str]) -> pd.DataFrame:
    """Return the interactions that count, and note how many are left behind each filter."""
    before = rows
    for words, kept in steps(rows["user"].to_numpy(), rows["item"].to_numpy(), filters):
        after = rows[kept]
        notes.append(_step(words, before, after, "interactions"))
        before = after
    return before if before is rows else before.reset_index(drop=True)


def _step(words: str, before: pd.DataFrame, after: pd.DataFrame, what: str) -> str:
    """Return what a filter left, in words; raises UserError where that is nothing."""
    had, left = (sizes(frame["user"].to_numpy(), frame["item"].to_numpy(), what) for frame in (before, after))
    if not len(after):
        raise UserError(f"filters: must leave a row, found none of {had} with {words}")
    return f"filter, {words}: {left} are left of {had}"


class Left(NamedTuple):
    """Which users, items and platforms are in the dataset: masks of `Names`."""

    user: Bools
    item: Bools
    platform: Bools


def _left(rows: pd.DataFrame, names: Names, sheets: Sequence[Sheet], filters: Filters, notes: list[str]) -> Left:
    """Return what rows name, and the items of a catalogue; note what it lacks, and which platforms are gone."""
    there = Left(*(np.zeros(len(keys), np.bool_) for keys in names))
    for kind, mask in there._asdict().items():
        mask[rows[kind].to_numpy()] = True
    if gone := [name for name, left in zip(names.platform, there.platform, strict=True) if not left]:
        notes.append(f"nothing is left of {', '.join(gone)}: no client")
    if not sheets:
        return there
    seen = int(there.item.sum())
    if not (filters.core or filters.item_least or filters.item_most):
        index = pd.Index(names.item, dtype="str")
        for sheet in sheets:
            if sheet.platform or len(names.platform) == 1:
                there.item[index.get_indexer(pd.Index(sheet.keys, dtype="str"))] = True
    described = {key for sheet in sheets for key in sheet.keys}
    held = {name for name, left in zip(names.item, there.item, strict=True) if left}
    notes.append(
        f"the catalogue has {len(held):,} items, of which {len(held) - seen:,} have no interaction and "
        f"{len(held - described):,} no line in {', '.join(sheet.name for sheet in sheets)}; "
        f"{len(described - held):,} lines are left out, of items that have none"
    )
    return there


def _compressed(rows: pd.DataFrame, names: Names, left: Left) -> tuple[pd.DataFrame, Names]:
    """Return the rows by the codes of what is left, and its names."""
    for kind, mask in left._asdict().items():
        if not mask.all():
            place: Ints = np.cumsum(mask) - 1
            rows[kind] = place[rows[kind].to_numpy()]
    some = ([key for key, one in zip(keys, mask, strict=True) if one] for keys, mask in zip(names, left, strict=True))
    return rows, Names(*some)
