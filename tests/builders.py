"""Interactions and clients written by hand."""

from collections.abc import Sequence

import numpy as np

from fedrec.data import ClientData, Interactions


def interactions(
    pairs: Sequence[tuple[int, int]],
    rating: Sequence[float] | None = None,
    positive: Sequence[bool] | None = None,
    **labels: Sequence[bool],
) -> Interactions:
    """Return (user, item) pairs as interactions: without ratings, all positive, unless said otherwise."""
    n = len(pairs)
    array = np.asarray(pairs, np.int64).reshape(n, 2)
    return Interactions(
        array[:, 0].copy(),
        array[:, 1].copy(),
        np.arange(n),
        np.asarray([np.nan] * n if rating is None else rating, np.float32),
        np.asarray([True] * n if positive is None else positive, np.bool_),
        {name: np.asarray(column, np.bool_) for name, column in labels.items()},
    )


def client(
    train: Interactions,
    validation: Interactions | None = None,
    test: Interactions | None = None,
    *,
    users: int,
    items: int,
    name: str = "films",
) -> ClientData:
    """Return a client with global ids 0, 1, ... ."""
    nothing = train.take(np.zeros(0, np.int64))
    return ClientData(
        name,
        np.arange(users),
        np.arange(items),
        train,
        nothing if validation is None else validation,
        nothing if test is None else test,
    )
