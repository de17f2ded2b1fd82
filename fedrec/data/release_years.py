"""Public classes of items: groups of alike release years."""

import re
from collections.abc import Sequence

import numpy as np

from fedrec.data.types import Ints

GROUPS = 8
YEAR = re.compile(r"\((\d{4})\)\s*$")


def year_groups(titles: Sequence[str]) -> Ints:
    """Return the group [items] of every item by the year at the end of its title, as `Toy Story (1995)` has it.

    Up to `GROUPS` groups of about as many titles, the oldest first; a title without a year is among the oldest. One
    group where fewer than half of the titles have a year.
    """
    found = [YEAR.search(title) for title in titles]
    years = np.array([int(year[1]) if year else 0 for year in found], np.int64)
    if 2 * np.count_nonzero(years) < len(years) or not len(years):
        return np.zeros(len(years), np.int64)
    edges = np.unique(np.quantile(years, np.arange(1, GROUPS) / GROUPS))
    return np.digitize(years, edges).astype(np.int64)
