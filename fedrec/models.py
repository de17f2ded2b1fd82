"""Recommenders as pure functions of named parameters: tables, a shared body, one private head per task."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedrec.data.types import Floats, Ints
from fedrec.parameters import Params
from fedrec.seeds import generator

BLOCK = 64
Kind = Literal["mf", "mlp", "item"]


@functools.lru_cache(maxsize=1024)
def table_block(seed: int, name: str, block: int, dim: int) -> Floats:
    """Return the standard normal block [BLOCK, dim] of a table, kept for the process: one-user clients share most."""
    rows: Floats = generator(seed, "init", name, block).standard_normal((BLOCK, dim), dtype=np.float32)
    rows.flags.writeable = False
    return rows


def table_rows(seed: int, name: str, ids: Ints, dim: int, std: float = 0.1) -> Floats:
    """Return the initial rows [len(ids), dim] of a table, each a function of (seed, name, global id) alone.

    Rows are drawn in blocks of ids, so that clients with different catalogues start from the same row without either of
    them drawing the whole table.
    """
    blocks, position = np.unique(ids // BLOCK, return_inverse=True)
    drawn = [table_block(seed, name, int(b), dim) for b in blocks]
    values = np.concatenate(drawn) if drawn else np.zeros((0, dim), np.float32)
    rows: Floats = values.take(position * BLOCK + ids % BLOCK, axis=0) * np.float32(std)
    return rows


@dataclass(frozen=True)
class Recommender:
    """Matrix factorisation, an MLP over user and item tables, or an item table alone, with a linear head per task.

    mf:   h(u, i) = [p_u * q_i, b_u, b_i]   (the body is the product; it has no parameters)
    mlp:  h(u, i) = MLP([p_u, q_i]), ReLU between layers of the widths `hidden`
    item: h(u, i) = q_i, so that a client's head is its users' common taste (arXiv 2301.08143)
    score_t(u, i) = w_t . h(u, i) + c_t

    The tables start with the standard deviation `std`.
    """

    kind: Kind
    dim: int
    hidden: tuple[int, ...] = (64, 32)
    std: float = 0.1

    def shapes(self, users: int, items: int, tasks: Iterable[str]) -> Params:
        """Return tensors without data (on the meta device) that have the names, shapes and dtypes of the parameters."""
        sizes: dict[str, tuple[int, ...]] = {"item_table": (items, self.dim)}
        widths = (2 * self.dim, *self.hidden)
        if self.kind != "item":
            sizes["user_table"] = (users, self.dim)
        if self.kind == "mf":
            sizes |= {"user_bias": (users, 1), "item_bias": (items, 1)}
        elif self.kind == "mlp":
            for layer, (n_in, n_out) in enumerate(pairwise(widths)):
                sizes |= {f"body.{layer}.weight": (n_out, n_in), f"body.{layer}.bias": (n_out,)}
        head = {"mf": self.dim + 2, "mlp": widths[-1], "item": self.dim}[self.kind]
        for task in tasks:
            sizes |= {f"heads.{task}.weight": (head,), f"heads.{task}.bias": (1,)}
        return {name: torch.empty(sizes[name], device="meta") for name in sorted(sizes)}

    def init(self, seed: int, users: Ints, items: Ints, offsets: dict[str, float]) -> Params:
        """Return initial parameters for global user and item ids; `offsets` gives the bias of every task's head."""
        arrays: dict[str, Floats] = {"item_table": table_rows(seed, "item_table", items, self.dim, self.std)}
        if self.kind != "item":
            arrays["user_table"] = table_rows(seed, "user_table", users, self.dim, self.std)
        if self.kind == "item":
            bound = self.dim**-0.5
            head = generator(seed, "init", "head").uniform(-bound, bound, self.dim).astype(np.float32)
        elif self.kind == "mf":
            arrays["user_bias"] = np.zeros((len(users), 1), np.float32)
            arrays["item_bias"] = np.zeros((len(items), 1), np.float32)
            head = np.ones(self.dim + 2, np.float32)
        else:
            widths = (2 * self.dim, *self.hidden)
            for layer, (n_in, n_out) in enumerate(pairwise(widths)):
                rng = generator(seed, "init", "body", layer)
                arrays[f"body.{layer}.weight"] = rng.normal(0, (2 / n_in) ** 0.5, (n_out, n_in)).astype(np.float32)
                arrays[f"body.{layer}.bias"] = np.zeros(n_out, np.float32)
            head = generator(seed, "init", "head").normal(0, widths[-1] ** -0.5, widths[-1]).astype(np.float32)
        for task, offset in offsets.items():
            arrays[f"heads.{task}.weight"] = head.copy()
            arrays[f"heads.{task}.bias"] = np.array([offset], np.float32)
        return {name: torch.from_numpy(arrays[name]) for name in sorted(arrays)}

    def features(self, params: Params, user: Tensor, item: Tensor) -> Tensor:
        """Return h [B, width] for local row indices `user` [B] and `item` [B]."""
        q = params["item_table"].index_select(0, item)
        if self.kind == "item":
            return q
        p = params["user_table"].index_select(0, user)
        if self.kind == "mf":
            b_u, b_i = params["user_bias"].index_select(0, user), params["item_bias"].index_select(0, item)
            return torch.cat([p * q, b_u, b_i], dim=1)
        return self._mlp(params, torch.cat([p, q], dim=1), first=0)

    def head(self, params: Params, task: str, features: Tensor) -> Tensor:
        """Return the scores [B] of a task's head for features [B, width]."""
        return features @ params[f"heads.{task}.weight"] + params[f"heads.{task}.bias"]

    def score_all(self, params: Params, task: str, user: Tensor) -> Tensor:
        """Return the scores [B, items] of every item of the catalogue for users [B]."""
        q = params["item_table"]
        if self.kind == "item":
            return self.head(params, task, q).expand(len(user), -1)
        p = params["user_table"].index_select(0, user)
        if self.kind == "mf":
            w, c = params[f"heads.{task}.weight"], params[f"heads.{task}.bias"]
            b_u, b_i = params["user_bias"].index_select(0, user), params["item_bias"]
            return (p * w[:-2]) @ q.T + w[-2] * b_u + w[-1] * b_i.T + c
        weight, bias = params["body.0.weight"], params["body.0.bias"]
        left, right = p @ weight[:, : self.dim].T, q @ weight[:, self.dim :].T + bias
        rows = [self.head(params, task, self._mlp(params, F.relu(one + right), first=1)) for one in left]
        return torch.stack(rows) if rows else p.new_zeros((0, q.shape[0]))

    def penalty(self, params: Params, user: Tensor, item: Tensor) -> Tensor:
        """Return |p_u|^2 + |q_i|^2 (and the biases' squares) [B]: the L2 penalty of the rows that a batch touches."""
        pairs = [("user_table", user), ("item_table", item), ("user_bias", user), ("item_bias", item)]
        present = [params[name].index_select(0, row).square().sum(1) for name, row in pairs if name in params]
        return torch.stack(present).sum(0)

    def _mlp(self, params: Params, h: Tensor, first: int) -> Tensor:
        for layer in range(first, len(self.hidden)):
            h = F.relu(F.linear(h, params[f"body.{layer}.weight"], params[f"body.{layer}.bias"]))
        return h
