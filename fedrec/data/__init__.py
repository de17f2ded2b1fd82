"""Data: sources, who holds what, train/validation/test, and training negatives."""

from pathlib import Path

import pandas as pd

from fedrec.components import choose_part, make, read
from fedrec.data.history import Histories, before, latest
from fedrec.data.layouts import LAYOUTS, published
from fedrec.data.negatives import Negatives, excluded
from fedrec.data.partition import federation, probe_of, public_data, view_public
from fedrec.data.pool import pool
from fedrec.data.reading import Filters, Reading
from fedrec.data.store import Clients, Listed
from fedrec.data.synthetic import Market, synthetic
from fedrec.data.table import from_frame, table
from fedrec.data.text import Content, content_vectors, public_vectors
from fedrec.data.types import WEIGHT, ClientData, Dataset, Interactions
from fedrec.errors import UserError, named

__all__ = [
    "DATASETS",
    "LAYOUTS",
    "ClientData",
    "Clients",
    "Content",
    "Dataset",
    "Filters",
    "Histories",
    "Interactions",
    "Listed",
    "Market",
    "Negatives",
    "Reading",
    "before",
    "content_vectors",
    "excluded",
    "federation",
    "from_frame",
    "latest",
    "load",
    "pool",
    "probe_of",
    "public_data",
    "public_vectors",
    "published",
    "synthetic",
    "table",
    "view_public",
]

DATASETS = ("synthetic", "table", *LAYOUTS)


def load(
    name: str,
    *,
    data_dir: Path | None,
    columns: str,
    platforms: int,
    market: Market,
    seed: int,
    reading: Reading | None = None,
    filters: Filters | None = None,
) -> Dataset:
    """Return the dataset of a name: `synthetic` with so many `platforms` of a `market`, `table`, or one of `LAYOUTS`.

    A source of one's own is given by path: a component with `load()`, which returns a Dataset, or a DataFrame that is
    read by `columns`. `table` needs `data_dir` (the file) and `columns`, and takes `reading` and `filters`, as public
    data sets do, which read `data_dir` if given. Raises UserError.
    """
    with named("dataset"):
        name = choose_part("dataset", name)
    if read(name).own:
        data = make("dataset", name).load()
        if isinstance(data, pd.DataFrame):
            return from_frame(data, columns, read(name).use, reading, filters)
        if not isinstance(data, Dataset):
            kind = type(data).__name__
            raise UserError(f"dataset: {read(name).use} must load a Dataset or a DataFrame, found {kind}")
        if WEIGHT in data.interactions:
            why = "has none of its own: return a DataFrame, and name its column (--columns weight=NAME)"
            raise UserError(f"dataset: what rows weigh is told of a table, and a Dataset {why}, found {WEIGHT}")
        for field, value in (("reading", reading), ("filters", filters)):
            if value not in (None, Reading(), Filters()):
                raise UserError(f"{field}: acts only with a table, found a Dataset that {read(name).use} has made")
        return data
    if name == "synthetic":
        return synthetic(market, platforms=platforms, seed=seed)
    if name in LAYOUTS:
        return published(name, data_dir, columns, reading, filters)
    if data_dir is None:
        raise UserError("data-dir: the dataset 'table' needs a file, found none given")
    return table(data_dir, columns, reading, filters)
