"""Evaluation of many clients at once: `evaluate` of each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedrec.data.split import concatenate
from fedrec.data.types import Bools, ClientData, Interactions, Ints
from fedrec.evaluation import CHUNK, Evaluation, Split, assemble, mask_of, smallest
from fedrec.metrics import Values, ranking_metrics, ranks
from fedrec.parameters import Params
from fedrec.scorers import ModelScorer
from fedrec.seeds import generator
from fedrec.sharing import TABLES
from fedrec.training.changed import Block, Changed
from fedrec.training.cohort import Cohort, owners
from fedrec.training.results import client, on
from fedrec.training.rows import edges
from fedrec.training.stacks import Stack

ITEMS = ("item_table", "item_bias")
Ranked = tuple[Ints, dict[str, Values]]


def evaluate_many(
    cohort: Cohort,
    shared: Stack | Changed,
    private: Stack,
    split: Split,
    *,
    metrics: Sequence[str],
    candidates: Literal["full"] | int,
    seed: int,
    chosen: Ints | None = None,
) -> list[Evaluation]:
    """Return what `evaluate` returns for the clients `chosen` (ascending positions in the cohort; None: all of them).

    Same candidates, same rule of ties; a score may differ in its last bit from that of a client scored alone.
    """
    chosen = np.arange(len(cohort)) if chosen is None else chosen
    shared = shared.full() if isinstance(shared, Changed) else shared
    ranked = {
        task.name: rank_many(cohort, shared, private, task.name, split, metrics, candidates, seed, chosen)
        for task in cohort.tasks
        if task.kind == "rank"
    }

    def one(number: int, position: int) -> Evaluation:
        alone = len(ranked) < len(cohort.tasks)  # some task scores its rows by the client's own parameters
        scorer = ModelScorer(cohort.model, both(cohort, shared, private, position) if alone else {})
        return assemble(scorer, cohort.datas[position], cohort.tasks, split, lambda task: ranked[task][number])

    return [one(number, position) for number, position in enumerate(chosen.tolist())]


def rank_many(
    cohort: Cohort,
    shared: Stack | Changed,
    private: Stack,
    task: str,
    split: Split,
    metrics: Sequence[str],
    candidates: Literal["full"] | int,
    seed: int,
    chosen: Ints,
) -> list[Ranked]:
    """Return what `rank_users` returns for the clients `chosen`."""
    first, items = cohort.starts["user"], np.diff(cohort.starts["item"])
    train, validation, test = (Columns(cohort, name) for name in ("train", "validation", "test"))
    held, known = (validation, [train]) if split == "validation" else (test, [train, validation])
    users = np.unique(held.rows.user[held.rows.positive])
    owner = np.searchsorted(first, users, side="right") - 1
    asked = np.isin(owner, chosen)
    users, owner = users[asked], owner[asked]
    keys = candidate_keys(cohort, owner, split, seed) if candidates != "full" else None
    anew = any(data.new is not None for data in cohort.datas)
    found: list[Ints] = []
    for start in range(0, len(users), CHUNK):
        part, who = users[start : start + CHUNK], owner[start : start + CHUNK]
        width = int(items[who].max())
        beyond = np.arange(width) >= items[who][:, None]
        if anew:
            beyond = ~np.stack([open_to(cohort.datas[position], split, width) for position in who.tolist()])
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
    bounds = zip(chosen, *(np.searchsorted(users, first[chosen + last]) for last in (0, 1)), strict=True)
    return [(users[a:b] - first[c], {name: value[a:b] for name, value in values.items()}) for c, a, b in bounds]


class Columns:
    """The rows of one split of all clients: flat users, local items."""

    def __init__(self, cohort: Cohort, split: Literal["train", "validation", "test"]) -> None:
        """Lay the rows of `split` end to end."""
        parts: list[Interactions] = [getattr(data, split) for data in cohort.datas]
        rows = concatenate(parts)
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


def open_to(data: ClientData, split: Split, width: int) -> Bools:
    """Return the mask [width] of what a client offers at a split, false behind its catalogue."""
    mask = np.zeros(width, dtype=np.bool_)
    mask[: len(data.items)] = data.offered(split)
    return mask


def padded(values: Values, width: int) -> Values:
    """Return `values` filled up to `width`."""
    return np.pad(values, (0, width - len(values)), constant_values=2.0) if len(values) < width else values


def both(cohort: Cohort, shared: Stack | Changed, private: Stack, position: int) -> Params:
    """Return all parameters of one client."""
    own = shared.client(cohort, position) if isinstance(shared, Changed) else client(cohort, shared, position)
    return {**own, **client(cohort, private, position)}


@torch.no_grad()
def score_many(
    cohort: Cohort, shared: Stack | Changed, private: Stack, task: str, users: Ints, owner: Ints, width: int
) -> Tensor:
    """Return the scores [B, width] of the catalogues of flat `users` [B] of the clients `owner`, 0 behind their end."""
    if bilinear(cohort, shared):
        return linear_scores(cohort, shared, private, task, users, owner)
    scores = torch.zeros((len(users), width))
    edge = np.searchsorted(owner, np.unique(owner))
    for a, b in zip(edge, [*edge[1:], len(owner)], strict=True):
        position = int(owner[a])
        params = both(cohort, shared, private, position)
        local = on(users[a:b] - cohort.starts["user"][position], params["item_table"])
        mine = cohort.model.score_all(params, task, local)
        scores[a:b, : mine.shape[1]] = mine.cpu()
    return scores


def bilinear(cohort: Cohort, shared: Stack | Changed) -> bool:
    """Tell whether all clients score the rows of the server's item tables, or of their own copies, without a body."""
    server = shared.blocks[0].z if isinstance(shared, Changed) else {} if shared.each else shared.values
    items = {"item_table"} if cohort.model.kind == "item" else {"item_table", "item_bias"}
    return cohort.model.kind != "mlp" and items <= server.keys() and cohort.server["item"] is None


def linear_scores(
    cohort: Cohort, shared: Stack | Changed, private: Stack, task: str, users: Ints, owner: Ints
) -> Tensor:
    """Return `score_many` where `bilinear` holds."""
    if isinstance(shared, Stack):
        return Linear.of(cohort, shared, private, task, users, owner).scores(shared.values).cpu()
    scores = torch.empty((len(users), int(cohort.starts["item"][1])))
    for block in shared.blocks:
        found = np.flatnonzero(np.isin(owner, block.clients))
        if not len(found):
            continue
        who = np.searchsorted(block.clients, owner[found])
        linear = Linear.of(cohort, block, private, task, users[found], owner[found])
        part = linear.scores(block.z)
        for j, count in zip(*np.unique(who, return_counts=True), strict=True):
            rows, place = block.own(cohort, "item", int(j))
            a = int(np.searchsorted(who, j))
            mine = linear.scores({name: block.values[name][place] for name in ITEMS if name in block.z}, a, a + count)
            part[a : a + count].index_copy_(1, on(rows, part), mine)
        scores[torch.from_numpy(found)] = part.cpu()
    return scores


@dataclass(frozen=True)
class Linear:
    """Users of a model without a body: the score of an item is a . q_i + b b_i + c."""

    a: Tensor  # [B, d]
    b: Tensor | None  # [B, 1]; None for a model without biases
    c: Tensor  # [B, 1]

    @staticmethod
    def of(cohort: Cohort, shared: Stack | Block, private: Stack, task: str, users: Ints, owner: Ints) -> Linear:
        """Return flat `users` [B] of the clients `owner` [B]."""

        def take(name: str) -> Tensor:
            if name in private.values:
                return private.at(name, cohort, users if name in TABLES else owner, owner)
            return shared.at(name, cohort, users if name in TABLES else owner, owner)

        w, c = take(f"heads.{task}.weight"), take(f"heads.{task}.bias")
        if cohort.model.kind == "item":
            return Linear(w, None, c)
        return Linear(take("user_table") * w[:, :-2], w[:, -1:], w[:, -2:-1] * take("user_bias") + c)

    def scores(self, items: Params, start: int = 0, stop: int | None = None) -> Tensor:
        """Return the scores of users start to stop for the rows of item tables."""
        part = slice(start, stop)
        found = torch.addmm(self.c[part], self.a[part], items["item_table"].T)
        return found if self.b is None else found.add_(self.b[part] * items["item_bias"].T)
