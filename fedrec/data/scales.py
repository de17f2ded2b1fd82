"""Scales of ratings: what is stated of each platform, what is found, and what is suspicious of it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from fedrec.components import number, per_client
from fedrec.data.columns import Codes
from fedrec.data.types import Bools, Floats
from fedrec.errors import UserError, choose

STARS = (1.0, 5.0)  # what scales are brought to
LIKED = 4.0  # of a scale that nobody stated
FEW = 0.01  # the share of ratings that may be an outlier
FAR = 4.0  # how far it lies away, in ranges of all others, of which there are `SOME`
SOME = 10


class Scale(NamedTuple):
    """The lowest and the highest rating."""

    low: float
    high: float

    @property
    def liked(self) -> float:
        """Where its upper quarter begins, 4 of 1..5."""
        return self.high - (self.high - self.low) / 4

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"


Scales = Mapping[str, Scale]  # by platform, "*": of all others


def parse_scales(text: str) -> Scales:
    """Return the scale of each platform ("*": of all others) that a text like `1..5;shop=0..10` states."""
    scales = {}
    for platform, part in (per_client(text) if text else {}).items():
        low, dots, high = part.partition("..")
        scale = Scale(number(low), number(high))
        if not (dots and -1e9 < scale.low < scale.high < 1e9):
            raise UserError(f"reading.scale: must be LOWEST..HIGHEST, as in 1..5, found {part[:100]!r}")
        scales[platform] = scale
    return scales


def check_platforms(field: str, given: Mapping[str, object], platforms: Sequence[str]) -> None:
    """Raise UserError for what is given of a platform that is not there."""
    for platform in sorted(given.keys() - {"*"}):
        choose(f"{field}: platform", platform, platforms)


def bounds(scales: Scales, platforms: Sequence[str]) -> tuple[Floats, Floats]:
    """Return the lowest and highest rating of platforms [n], NaN where none is stated."""
    each = [scales.get(name, scales.get("*", Scale(np.nan, np.nan))) for name in platforms]
    low, high = (np.asarray([scale[side] for scale in each], np.float32) for side in (0, 1))
    return low, high


def outside(rating: Floats, platform: Codes, low: Floats, high: Floats) -> Bools:
    """Return which ratings [n] are beyond the stated scale of their platform."""
    return np.asarray((rating < low[platform]) | (rating > high[platform]), np.bool_)


def liked(platforms: Sequence[str], scales: Scales, normalised: bool) -> Floats:
    """Return the least rating that is liked on each platform [n]: the upper quarter of its scale, or 4."""
    if normalised:
        return np.full(len(platforms), Scale(*STARS).liked, np.float32)
    each = [scales.get(name, scales.get("*")) for name in platforms]
    return np.asarray([LIKED if scale is None else scale.liked for scale in each], np.float32)


def normalise(
    rating: Floats, platform: Codes, platforms: Sequence[str], scales: Scales
) -> tuple[Floats, tuple[str, ...]]:
    """Return ratings [n] brought from the scale of their platform to 1..5, and what is said of that.

    Raises UserError for a platform with ratings whose scale nobody stated.
    """
    low, high = bounds(scales, platforms)
    rated = np.zeros(len(platforms), np.bool_)
    rated[platform[~np.isnan(rating)]] = True
    for name in np.asarray(platforms, dtype=object)[rated & np.isnan(low)]:
        raise UserError(
            f"reading.normalise: the scale of {name} must be stated (as in --reading.scale 1..5), found none"
        )
    least, most = STARS
    with np.errstate(invalid="ignore"):
        slope = (most - least) / (high - low)
    brought = (least + (rating - low[platform]) * slope[platform]).astype(np.float32)
    each = [
        f"{name} from {scales.get(name, scales.get('*'))}" for name, has in zip(platforms, rated, strict=True) if has
    ]
    return brought, (f"ratings were brought to {Scale(*STARS)}: {', '.join(each)}",)


def scale_notes(rating: Floats, platform: Codes, platforms: Sequence[str], scales: Scales) -> tuple[str, ...]:
    """Return the range of each platform's ratings in words, and suspicions: scales that differ, a lone outlier."""
    ranges, odd = {}, []
    for code, name in enumerate(platforms):
        counts = pd.Series(rating[platform == code] if len(platforms) > 1 else rating).value_counts().sort_index()
        if len(counts):
            ranges[name] = Scale(float(counts.index[0]), float(counts.index[-1]))
            if name not in scales and "*" not in scales and (far := outlier(counts)):
                odd.append(f"SUSPICION: {far} (of {name}) lies far outside: state the scale (--reading.scale 1..5)")
    if not ranges:
        return ()
    said = [f"{scale.low:g} to {scale.high:g}" + f" on {name}" * (len(platforms) > 1) for name, scale in ranges.items()]
    found = [f"ratings are from {', '.join(said)}"]
    unstated = {name: scale for name, scale in ranges.items() if name not in scales and "*" not in scales}
    if len(unstated) > 1 and not odd and _differ(list(unstated.values())):
        odd.append(
            "SUSPICION: platforms rate on scales that differ: state them (--reading.scale '1..5;shop=0..10'), and "
            "bring them together (--reading.normalise)"
        )
    beyond = {name: scale for name, scale in unstated.items() if scale.high > STARS[1]}
    if beyond and not odd:
        name, scale = next(iter(beyond.items()))
        odd.append(
            f"SUSPICION: ratings reach {scale.high:g}, and like is still a rating of at least {LIKED:g}: state the "
            f"scale (--reading.scale {scale.low:g}..{scale.high:g})"
        )
    return (*found, *odd)


def _differ(ranges: Sequence[Scale]) -> bool:
    """Return whether one scale goes further than another by half of it, or more."""
    highs = [scale.high for scale in ranges]
    return max(highs) - min(highs) >= max(1.0, 0.5 * abs(min(highs)))


def outlier(counts: "pd.Series[int]") -> str:
    """Return a few ratings that lie further away from all others than four times their range, in words; "" without any.

    `counts` are the numbers of each rating, ascending by rating.
    """
    value, count = counts.index.to_numpy(np.float64), counts.to_numpy(np.int64)
    few = max(1, int(FEW * count.sum()))
    for name, v, c in (("highest", value, count), ("lowest", -value[::-1], count[::-1])):
        beyond = np.cumsum(c[::-1])[::-1][1:]  # ratings above each but the last
        gap, range_ = np.diff(v), v[:-1] - v[0]
        far = (
            (beyond <= few)
            & (count.sum() - beyond >= SOME)
            & (gap > FAR * np.maximum(range_, 1.0))
            & (np.arange(len(gap)) > 0)
        )
        if far.any():
            number_, rated = int(beyond[np.argmax(far)]), float(value[-1] if name == "highest" else value[0])
            return f"a rating of {rated:g}" if number_ == 1 else f"{number_:,} ratings up to {rated:g}"
    return ""
