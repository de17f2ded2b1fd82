"""Evaluation of many clients at once: `evaluate` of each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedrec.data.types import Ints
from fedrec.evaluation.asked import Asked
from fedrec.evaluation.evaluate import Evaluation, Ranked, Split, assemble, rank_many, score_each
from fedrec.evaluation.scorers import ModelScorer
from fedrec.keyed import TABLES
from fedrec.training.cohort import Cohort
from fedrec.training.common_start import CommonStart
from fedrec.training.results import client
from fedrec.training.stacks import Stack

Readers = Callable[[int], ModelScorer]  # what a client asks, by its position


def evaluate_many(
    cohort: Cohort,
    shared: Stack,
    private: Stack,
    split: Split,
    *,
    metrics: Sequence[str],
    candidates: Literal["full"] | int,
    seed: int,
    chosen: Ints | None = None,
    readers: Readers | None = None,
) -> list[Evaluation]:
    """Return what `evaluate` returns for the clients `chosen` (ascending positions in the cohort; None: all of them).

    `readers` say what a client asks where that is not its model with these parameters. A score may differ in its last
    bit from that of a client scored alone.
    """
    chosen = np.arange(len(cohort)) if chosen is None else chosen

    def stacked(position: int) -> ModelScorer:
        params = {**client(cohort, shared, position), **client(cohort, private, position)}
        return ModelScorer(cohort.models[position], params)

    reader, linear = readers or stacked, readers is None and bilinear(cohort, shared, private)

    def ranked(task: str) -> list[Ranked]:
        each = score_each(reader, cohort.starts["user"], task)

        def product(users: Ints, owner: Ints, width: int) -> Tensor:
            return linear_scores(cohort, shared, private, task, users, owner)

        return rank_many(asked_of(cohort, split), product if linear else each, metrics, candidates, seed, chosen)

    ranks = {task.name: ranked(task.name) for task in cohort.tasks if task.kind == "rank"}

    alone = all(task.kind == "rank" for task in cohort.tasks)  # what is ranked already asks no reader again
    nobody = reader(int(chosen[0])) if alone and len(chosen) else None

    def evaluation(number: int, position: int) -> Evaluation:
        one = nobody or reader(position)
        return assemble(one, cohort.datas[position], cohort.tasks, split, lambda task: ranks[task][number])

    return [evaluation(number, position) for number, position in enumerate(chosen.tolist())]


@lru_cache(maxsize=4)
def asked_of(cohort: Cohort, split: Split) -> Asked:
    """Return what is asked of a cohort, kept for a few: it is the same in every round."""
    return Asked.of(cohort.datas, split)


def bilinear(cohort: Cohort, shared: Stack, private: Stack) -> bool:
    """Tell whether all clients' scores are products with rows of items, without a body and whatever they read.

    These are the server's, or every client's own, where each has one user and as many items.
    """
    plain = cohort.model.kind in ("mf", "item") and cohort.model.tabled == (cohort.model.kind == "mf")
    if not plain or cohort.model.side.content is not None:
        return False
    items = {"item_table"} if cohort.model.kind == "item" else {"item_table", "item_bias"}
    common = not shared.each and items <= shared.values.keys() and cohort.server["item"] is None
    own = items <= private.values.keys() or (shared.each and items <= shared.values.keys())
    users, sizes = (np.diff(cohort.starts[space]) for space in ("user", "item"))
    return common or (own and bool((users == 1).all() and (sizes == sizes[0]).all()))


def linear_scores(cohort: Cohort, shared: Stack, private: Stack, task: str, users: Ints, owner: Ints) -> Tensor:
    """Return the scores [B, items] of users, where `bilinear` holds: a . q_i + b b_i + c for every item."""

    def take(name: str) -> Tensor:
        stack = private if name in private.values else shared
        return stack.at(name, cohort, users if name in TABLES else owner, owner)

    def times(name: str, a: Tensor, c: Tensor) -> Tensor:
        """Return a . row + c [B, items] for every row of a table of items and a [B, d]."""
        stack = private if name in private.values else shared
        table = stack.values[name]
        if not stack.each:
            return torch.addmm(c, a, table.T)
        if isinstance(stack, CommonStart) and name in stack.base:
            return (
                torch.cat(
                    [torch.bmm(rows, a[part, :, None])[..., 0] for part, rows in stack.blocks(name, cohort, owner)]
                )
                + c
            )
        count, first = int(cohort.starts["item"][1]), int(owner[0])
        rows = table[first * count : (int(owner[-1]) + 1) * count].view(-1, count, table.shape[1])
        if len(rows) > len(owner):
            rows = rows.index_select(0, torch.from_numpy(owner - first).to(rows.device))
        return torch.bmm(rows, a[:, :, None])[..., 0] + c

    w, c = take(f"heads.{task}.weight"), take(f"heads.{task}.bias")
    if cohort.model.kind == "item":
        return times("item_table", w, c).cpu()
    c = w[:, -2:-1] * take("user_bias") + c
    score = times("item_table", take("user_table") * w[:, :-2], c)
    return times("item_bias", w[:, -1:], score).cpu()
