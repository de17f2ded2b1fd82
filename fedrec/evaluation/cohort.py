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
from fedrec.evaluation.evaluate import Evaluation, Ranked, Scores, Split, assemble, rank_many, score_each
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
        product = linear_scores(cohort, shared, private, task) if linear else None
        scores = product or score_each(reader, cohort.starts["user"], task)
        return rank_many(asked_of(cohort, split), scores, metrics, candidates, seed, chosen)

    ranks = {task.name: ranked(task.name) for task in cohort.tasks if task.kind == "rank"}

    def evaluation(number: int, position: int) -> Evaluation:
        data, tasks = cohort.datas[position], cohort.tasks
        return assemble(lambda: reader(position), data, tasks, split, lambda task: ranks[task][number])

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


def linear_scores(cohort: Cohort, shared: Stack, private: Stack, task: str) -> Scores:
    """Return what scores users where `bilinear` holds: a . q_i + b b_i + c for every item, as one product of rows."""
    alone = cohort.model.kind == "item"
    names = ("item_table",) if alone else ("item_table", "item_bias")
    stack = private if names[0] in private.values else shared
    parts = [stack.values[name] for name in names]

    def table(rows: slice) -> Tensor:
        return torch.cat([*(part[rows] for part in parts), torch.ones_like(parts[0][rows, :1])], 1)

    whole, count = None if stack.each else table(slice(None)).T, int(cohort.starts["item"][1])

    def scores(users: Ints, owner: Ints, width: int) -> Tensor:
        def take(name: str) -> Tensor:
            held = private if name in private.values else shared
            return held.at(name, cohort, users if name in TABLES else owner, owner)

        w, c = take(f"heads.{task}.weight"), take(f"heads.{task}.bias")
        if not alone:
            w, c = torch.cat([take("user_table") * w[:, :-2], w[:, -1:]], 1), w[:, -2:-1] * take("user_bias") + c
        a = torch.cat([w, c], 1)
        if whole is not None:
            return (a @ whole).cpu()
        if isinstance(stack, CommonStart):
            each = torch.split(w, [part.shape[1] for part in parts], 1)
            return sum((product(stack, n, b, owner) for n, b in zip(names, each, strict=True)), c).cpu()
        first = int(owner[0])
        rows = table(slice(first * count, (int(owner[-1]) + 1) * count)).view(-1, count, a.shape[1])
        if len(rows) > len(owner):
            rows = rows.index_select(0, torch.from_numpy(owner - first).to(rows.device))
        return torch.bmm(rows, a[:, :, None])[..., 0].cpu()

    def product(stack: CommonStart, name: str, b: Tensor, owner: Ints) -> Tensor:
        """Return b . row [B, items] for every row of the tables of the clients `owner` [B]."""
        made = [torch.bmm(rows, b[part, :, None])[..., 0] for part, rows in stack.blocks(name, cohort, owner)]
        return torch.cat(made)

    return scores
