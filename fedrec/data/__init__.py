"""Data: sources, who holds what, train/validation/test, and training negatives."""

from __future__ import annotations

from pathlib import Path

from fedrec.data.content import Content, content_vectors
from fedrec.data.history import Histories, before, latest
from fedrec.data.movielens import movielens
from fedrec.data.negatives import Negatives, Protocol, excluded
from fedrec.data.partition import Partition, federation, public_data
from fedrec.data.public import probe_of, viewed
from fedrec.data.split import Split, pool
from fedrec.data.synthetic import Market, synthetic
from fedrec.data.table import table
from fedrec.data.types import ClientData, Dataset, Interactions, Truth
from fedrec.errors import UserError, choose

__all__ = [
    "DATASETS",
    "ClientData",
    "Content",
    "Dataset",
    "Histories",
    "Interactions",
    "Market",
    "Negatives",
    "Partition",
    "Protocol",
    "Split",
    "Truth",
    "before",
    "content_vectors",
    "excluded",
    "federation",
    "latest",
    "load",
    "movielens",
    "pool",
    "probe_of",
    "public_data",
    "synthetic",
    "table",
    "viewed",
]

DATASETS = ("synthetic", "ml-100k", "table")


def load(
    name: str,
    *,
    data_dir: Path | None,
    columns: str,
    platforms: int,
    market: Market,
    seed: int,
) -> Dataset:
    """Return the dataset of a name: `synthetic` with so many `platforms` of a `market`, `ml-100k`, or `table`.

    `table` needs `data_dir` (the file) and `columns`; `ml-100k` reads `data_dir` if given. Raises UserError.
    """
    choose("dataset", name, DATASETS)
    if name == "synthetic":
        return synthetic(platforms=platforms, seed=seed, **market.model_dump())
    if name == "ml-100k":
        return movielens(data_dir)
    if data_dir is None:
        raise UserError("data-dir: the dataset 'table' needs a file, found none given")
    return table(data_dir, columns)
