"""Evaluation of many clients at once: `evaluate` of each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedrec.data.types import Bools, Interactions, Ints
from fedrec.evaluation import CHUNK, Evaluation, ModelScorer, Split, assemble, mask_of, smallest
from fedrec.metrics import Values, ranking_metrics, ranks
from fedrec.parameters import Params
from fedrec.seeds import generator
from fedrec.sharing import TABLES
from fedrec.stacking.cohort import Cohort, concatenated, edges, owners
from fedrec.stacking.results import client, on
from fedrec.stacking.update import Stack

Ranked = tuple[Ints, dict[str, Values]]


def evaluate_many(
    cohort: Cohort,
    shared: Stack,
    private: Stack,
    split: Split,
    *,
    metrics: Sequence[str],
    candidates: Literal["full"] | int,
    seed: int,
) -> list[Evaluation]:
    """Return what `evaluate` returns for every client of the cohort, in its order; same candidates, same rule of ties.

    A score may differ in its last bit from that of a client scored alone.
    """
    ranked = {
        task.name: rank_many(cohort, shared, private, task.name, split, metrics, candidates, seed)
        for task in cohort.tasks
        if task.kind == "rank"
    }

    def one(position: int) -> Evaluation:
        scorer = ModelScorer(cohort.model, both(cohort, shared, private, position))
        return assemble(scorer, cohort.datas[position], cohort.tasks, split, lambda task: ranked[task][position])

    return [one(position) for position in range(len(cohort))]


def rank_many(
    cohort: Cohort,
    shared: Stack,
    private: Stack,
    task: str,
    split: Split,
    metrics: Sequence[str],
    candidates: Literal["full"] | int,
    seed: int,
) -> list[Ranked]:
    """Return what `rank_users` returns for every client."""
    first, items = cohort.starts["user"], np.diff(cohort.starts["item"])
    train, validation, test = (Columns(cohort, name) for name in ("train", "validation", "test"))
    held, known = (validation, [train]) if split == "validation" else (test, [train, validation])
    users = np.unique(held.rows.user[held.rows.positive])
    owner = np.searchsorted(first, users, side="right") - 1
    keys = candidate_keys(cohort, owner, split, seed) if candidates != "full" else None
    found: list[Ints] = []
    for start in range(0, len(users), CHUNK):
        part, who = users[start : start + CHUNK], owner[start : start + CHUNK]
        width = int(items[who].max())
        beyond = np.arange(width) >= items[who][:, None]
        relevant, excluded = (
            held.mask(part, who, width),
            np.logical_or.reduce([c.mask(part, who, width) for c in known]),
        )
        if candidates != "full" and keys is not None:
            met = np.logical_or.reduce([beyond, *(c.mask(part, who, width) for c in (train, validation, test))])
            excluded = ~smallest(np.stack([padded(next(keys), width) for _ in part]), met, candidates)
        scores = score_many(cohort, shared, private, task, part, who, width)
        found += ranks(scores, torch.from_numpy(relevant), torch.from_numpy(excluded | beyond))
    values = ranking_metrics(found, metrics)
    edge = np.searchsorted(users, first)
    return [
        (users[a:b] - first[c], {name: value[a:b] for name, value in values.items()})
        for c, (a, b) in enumerate(pairwise(edge))
    ]


class Columns:
    """The rows of one split of all clients: flat users, local items."""

    def __init__(self, cohort: Cohort, split: Literal["train", "validation", "test"]) -> None:
        """Lay the rows of `split` end to end."""
        parts: list[Interactions] = [getattr(data, split) for data in cohort.datas]
        rows = concatenated(parts)
        user = cohort.starts["user"][owners(parts)] + rows.user
        self.rows = Interactions(user, rows.item, rows.time, rows.rating, rows.positive)
        self.edge = edges(np.array([len(part) for part in parts]))

    def mask(self, users: Ints, owner: Ints, width: int) -> Bools:
        """Return `mask_of` these rows for ascending flat `users` of the clients `owner`."""
        near = self.rows.take(np.arange(self.edge[owner[0]], self.edge[owner[-1] + 1]))
        return mask_of([near], users, width)


def candidate_keys(cohort: Cohort, owner: Ints, split: Split, seed: int) -> Iterator[Values]:
    """Yield, for every user, the keys [items] by which `sample_candidates` chooses for it."""
    last, rng = -1, generator(seed)
    for position in owner.tolist():
        if position != last:
            last, rng = position, generator(seed, "candidates", cohort.datas[position].name, split)
        yield rng.random(len(cohort.datas[position].items))


def padded(values: Values, width: int) -> Values:
    """Return `values` filled up to `width`."""
    return np.pad(values, (0, width - len(values)), constant_values=2.0) if len(values) < width else values


def both(cohort: Cohort, shared: Stack, private: Stack, position: int) -> Params:
    """Return all parameters of one client."""
    return {**client(cohort, shared, position), **client(cohort, private, position)}


@torch.no_grad()
def score_many(
    cohort: Cohort, shared: Stack, private: Stack, task: str, users: Ints, owner: Ints, width: int
) -> Tensor:
    """Return the scores [B, width] of the catalogues of flat `users` [B] of the clients `owner`, 0 behind their end."""
    one_table = "item_table" in shared.values and not shared.each and cohort.server["item"] is None
    if cohort.model.kind == "mf" and one_table and "item_bias" in shared.values:
        p, b_u, w, c = (
            (shared if name in shared.values else private).at(name, cohort, users if name in TABLES else owner, owner)
            for name in ("user_table", "user_bias", f"heads.{task}.weight", f"heads.{task}.bias")
        )
        q, b_i = shared.values["item_table"], shared.values["item_bias"]
        return ((p * w[:, :-2]) @ q.T + w[:, -2:-1] * b_u + w[:, -1:] * b_i.T + c).cpu()
    some = {**shared.values, **private.values}["item_table"]
    scores = some.new_zeros((len(users), width), device="cpu")
    edge = np.searchsorted(owner, np.unique(owner))
    for a, b in zip(edge, [*edge[1:], len(owner)], strict=True):
        position = int(owner[a])
        local = on(users[a:b] - cohort.starts["user"][position], some)
        mine = cohort.model.score_all(both(cohort, shared, private, position), task, local)
        scores[a:b, : mine.shape[1]] = mine.cpu()
    return scores
