"""The item tower over content: what the id of an item adds to what its content says of it."""

import numpy as np
from torch import Tensor

from fedrec.data.types import Floats
from fedrec.params import Params
from fedrec.rng import generator


def adapter(table: str) -> str:
    """Return the name of the adapter that speaks to a table of items: item_table, or item_bias."""
    return f"adapter.{table}"


def first_adapter(seed: int, table: str, rows: int, d: int, std: float) -> Floats:
    """Return the initial A [rows, d] of a table, N(0, std^2): A c has the deviation `std` for |c| = 1, as rows have."""
    drawn: Floats = generator(seed, "init", "adapter", table).normal(0, std, (rows, d)).astype(np.float32)
    return drawn


def spoken(params: Params, table: str, content: Tensor, item: Tensor | None = None) -> Tensor:
    """Return A c_i [B, rows] for content [items, d] and local rows `item` [B], else for all items."""
    a = params[adapter(table)]
    content = content.to(a.device) if a.is_meta else content  # where shapes alone are asked, no row can be
    if item is not None and len(item) < len(content):
        return content.index_select(0, item.to(content.device)).to(a.device) @ a.T
    # Of more rows than there are items most repeat one.
    rows = content.to(a.device) @ a.T
    return rows if item is None else rows.index_select(0, item)


def described(
    params: Params, table: str, content: Tensor, item: Tensor | None = None, keep: Tensor | None = None
) -> Tensor:
    """Return keep_i E_i + A c_i [B, rows] for local rows `item` [B], else for all items.

    E is what is known of an item by its id alone, and starts at zero: what nobody has met is described by its content
    (the mean of E_i given c_i, as in the regression priors of Agarwal and Chen, KDD 2009). Where `keep` [B] is 0, E_i
    is hidden, so that A learns to do without (DropoutNet, Volkovs et al., NeurIPS 2017).
    """
    e = params[table] if item is None else params[table].index_select(0, item)
    own = e if keep is None else keep.unsqueeze(1) * e
    return own + spoken(params, table, content, item)


def kept(rows: int, width: int, dropout: float, rng: np.random.Generator) -> Floats:
    """Return keep [rows, width] (float32): 0 with the probability `dropout`, each on its own, else 1."""
    return (rng.random((rows, width)) >= dropout).astype(np.float32)
