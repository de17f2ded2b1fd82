"""Pairwise grids: rows in which every pair of levels of two factors that may stand together does."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product

Row = dict[str, str]
Pair = frozenset[tuple[str, str]]


def pairs(row: Mapping[str, str]) -> set[Pair]:
    """Return the pairs of (factor, level) in a row."""
    return {frozenset(pair) for pair in combinations(row.items(), 2)}


def pairwise_rows(factors: Mapping[str, Sequence[str]], refused: Callable[[Row], bool]) -> list[Row]:
    """Return rows, none of them refused, that together hold every pair that a row which is not refused can hold.

    Greedy and deterministic: a row begins with an open pair, and each further factor takes the level that closes most.
    `refused` must be able to judge a row in which factors are missing: what it refuses then, no other factor mends.
    """
    every = [
        frozenset(((a, x), (b, y)))
        for a, b in combinations(factors, 2)
        for x, y in product(factors[a], factors[b])
        if not refused({a: x, b: y})
    ]
    left, rows = dict.fromkeys(every), []
    while left:
        row = dict(next(iter(left)))
        for factor, levels in factors.items():
            if factor in row:
                continue
            fitting = [level for level in levels if not refused({**row, factor: level})]
            if not fitting:
                raise ValueError(f"{factor}: must have a level beside {row}, found none")
            row[factor] = max(fitting, key=lambda level: sum(p in left for p in pairs({**row, factor: level})))
        for pair in pairs(row):
            left.pop(pair, None)
        rows.append({factor: row[factor] for factor in factors})
    return rows
