"""Silos of users that an attribute has in common: by occupation, or of one range of ages."""

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from fedrec.data.types import Ints
from fedrec.errors import UserError, choose

OTHERS, UNKNOWN = "others", "unknown"


def silos_of(users: pd.DataFrame, there: Ints, column: str, count: int | None, usual: int) -> tuple[list[str], Ints]:
    """Return the silos' names, and the silo of every user, -1 of those that are not `there` (ascending ids).

    Of numbers these are `count` ranges (`usual` without it) with about as many users each, those of one value together.
    Of text every value is one; of fewer silos than values the last has the users of all but the most frequent ones.
    Raises UserError for a column that users do not have, and for more silos than values.
    """
    choose("partition: attribute of users", column, [str(name) for name in users.columns if name != "key"])
    values, silo = users[column].iloc[there], np.full(len(users), -1)
    if is_numeric_dtype(values):
        known = values.dropna()
        distinct = len(known.unique())
        names, place = _ranges(column, values, _count(column, count, distinct, min(usual, distinct)))
    else:
        text = values.fillna("").astype(str).replace("", UNKNOWN)
        often = text.value_counts(sort=False).sort_index().sort_values(ascending=False, kind="stable")
        most = _count(column, count, len(often), len(often))
        names = [str(name) for name in often.index[: most if most == len(often) else most - 1]]
        place = pd.Index(names).get_indexer(pd.Index(text))
        if most < len(often):
            names.append(OTHERS if OTHERS not in names else f"{OTHERS} than these")
            place = np.where(place < 0, most - 1, place)
    silo[there] = place
    return names, silo


def _count(column: str, count: int | None, most: int, usual: int) -> int:
    if count is not None and count > most:
        raise UserError(f"clients: must be at most the number of values of {column}, {most}, found {count}")
    return usual if count is None else count


def _ranges(column: str, values: pd.Series, count: int) -> tuple[list[str], Ints]:
    """Return the names of `count` ranges, fewer where a value has too many users, and the range of every value."""
    rank = values.rank(method="min", na_option="keep").to_numpy(np.float64)
    known = ~np.isnan(rank)
    cut = np.full(len(values), -1)
    cut[known] = np.floor((rank[known] - 1) * count / max(known.sum(), 1)).astype(np.int64)
    used, place = np.unique(cut, return_inverse=True)
    names = []
    for number in used.tolist():
        here = values[cut == number]
        names.append(f"{column}-{here.min():g}-{here.max():g}" if number >= 0 else f"{column}-{UNKNOWN}")
    return names, place
