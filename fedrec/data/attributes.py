"""The public attributes of a catalogue, and which of its items the tasks about them learn from."""

import numpy as np

import fedrec.rng as seeds
from fedrec.data.split import chance
from fedrec.data.text import multi_hot
from fedrec.data.types import Attributes, Dataset, Floats, Ints

MOST = 1000  # names of categories or brands; one head has a row for each


def attributes_of(dataset: Dataset, fractions: tuple[float, float], seed: int) -> Attributes:
    """Return what is public of all items of a dataset; see `Attributes`.

    `fractions` of the items are for validation and test. The part of an item depends on the item and the seed alone, so
    that it is the same in all clients: the table of items is shared, and what one client learns of an item's attributes
    stands in the row from which another would be tested. Which interactions are held out has nothing to do with it.
    Names are those of the whole catalogue, sorted; the logarithm of a price is standardised over the training items.
    An attribute that no item has, or with more than `MOST` names, is left out.
    """
    items = dataset.items
    validation, test = fractions
    ids: Ints = np.arange(len(items), dtype=np.int64)
    u = chance(np.zeros_like(ids), ids, seeds.derive(seed, "attributes"))
    train = u >= validation + test
    has = {"category": [list(filter(None, text.split("|"))) for text in items["categories"]]}
    if "brand" in items:
        has["brand"] = [list(filter(None, [text])) for text in items["brand"]]
    values: dict[str, Floats] = {}
    for name, lists in has.items():
        if 0 < len({label for names in lists for label in names}) <= MOST:
            some = np.array([bool(names) for names in lists], dtype=np.bool_)
            values[name] = np.where(some[:, None], multi_hot(lists, MOST), np.float32("nan"))
    deviation = 1.0
    if "price" in items and items["price"].notna().any():
        log = np.log(items["price"].to_numpy(np.float64))
        seen = log[train & np.isfinite(log)]
        mean, spread = (float(seen.mean()), float(seen.std())) if len(seen) else (0.0, 1.0)
        deviation = spread or 1.0
        values["price"] = ((log - mean) / deviation).astype(np.float32)[:, None]
    return Attributes(values, train, ~train & (u >= test), u < test, deviation)
