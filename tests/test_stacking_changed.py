"""Shared parameters that clients keep as their own training left them, without a table for each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from fedrec.evaluation import evaluate
from fedrec.optimisers import Optimiser
from fedrec.parameters import Params
from fedrec.scorers import ModelScorer
from fedrec.training.changed import Block, Changed
from fedrec.training.evaluation import evaluate_many
from fedrec.training.recipe import Recipe
from fedrec.training.results import client, trained
from fedrec.training.stacks import Stack
from tests.test_stacking import ADAM, ITEMS, Case, case


@dataclass
class Followed:
    """Rounds of some clients, kept both ways."""

    c: Case
    changed: Changed
    dense: list[Params]
    z: Stack

    @staticmethod
    def start(c: Case) -> Followed:
        everyone = range(len(c.cohort))
        return Followed(
            c, Changed.start(c.cohort, c.shared), [client(c.cohort, c.shared, p) for p in everyone], c.shared
        )

    def round(self, z: Stack, chosen: list[int], seed: int) -> None:
        """Train `chosen` from z; keep what they made."""
        now, who = replace(self.c, shared=z, seed=seed), np.array(chosen)
        parts = now.parts(chunk=2, chosen=who)
        self.changed = self.changed.trained(self.c.cohort, z, [Block.of(z, part) for part in parts], who)
        for position in chosen:
            self.dense[position] = client(self.c.cohort, z, position)
        for part in parts:
            for j, position in enumerate(part.clients.tolist()):
                self.dense[position] = trained(self.c.cohort, z, part, j)


def followed(**options: Any) -> Followed:
    """Return three rounds, two of them of some clients; client 4 has no row to train on."""
    found = Followed.start(case(ADAM, share=("item_table", "item_bias", "body", "heads"), **options))
    moved = [Stack({n: v + 0.5 * i for n, v in found.z.values.items()}, each=False) for i in (0, 1, 2)]
    found.round(moved[0], [0, 1, 2, 3, 4], 0)
    found.round(moved[1], [0, 1, 4], 1)
    found.round(moved[2], [1, 2], 2)
    return found


def same(changed: Changed, found: Followed, dense: list[Params]) -> None:
    for position, expected in enumerate(dense):
        mine = changed.client(found.c.cohort, position)
        assert mine.keys() == expected.keys()
        assert all(torch.equal(mine[name], expected[name]) for name in expected)


KINDS = pytest.mark.parametrize("kind", ["mf", "mlp", "item"])
RAGGED = pytest.mark.parametrize("ragged", [False, True])


@KINDS
@RAGGED
def test_every_client_has_what_its_last_training_made(kind: str, ragged: bool) -> None:
    found = followed(kind=kind, ragged=ragged, tasks="rank-bce")
    same(
        Changed.start(found.c.cohort, found.c.shared),
        found,
        [client(found.c.cohort, found.c.shared, p) for p in range(5)],
    )
    same(found.changed, found, found.dense)
    assert len({id(block.z) for block in found.changed.blocks}) == 3


def test_a_round_keeps_the_rows_that_it_touched_alone() -> None:
    found = followed(tasks="click", sizes=(2, 1, 3, 2, 0))
    rows = sum(len(block.values["item_table"]) for block in found.changed.blocks)
    assert rows == sum(len(np.unique(data.train.item)) for data in found.c.cohort.datas) < 5 * ITEMS


def test_the_best_of_some_clients_can_be_kept_and_what_is_kept_does_not_change() -> None:
    found = followed(tasks="rank-bce")
    best, before = found.changed, list(found.dense)
    found.round(Stack({n: -v for n, v in found.z.values.items()}, each=False), [0, 2, 3], 3)
    same(best, found, before)
    mixed = best.mixed(found.changed, np.array([2, 4]))
    same(mixed, found, [*before[:2], found.dense[2], before[3], found.dense[4]])
    assert best.mixed(best, np.zeros(0, np.int64)) == best


@KINDS
def test_it_is_restored_from_named_tensors(kind: str) -> None:
    found = followed(kind=kind, tasks="rank-bce")
    tensors = found.changed.tensors()
    again = Changed.restore({name: value.clone() for name, value in tensors.items()})
    same(again, found, found.dense)
    assert len({id(block.z) for block in again.blocks}) == 3


@KINDS
@RAGGED
@pytest.mark.parametrize("candidates", ["full", 3])
def test_every_client_is_evaluated_with_its_own(kind: str, ragged: bool, candidates: Any) -> None:
    found = followed(kind=kind, ragged=ragged, tasks="three")
    c, options = found.c, {"metrics": ("ndcg@3", "mrr"), "candidates": candidates, "seed": 5}
    # Small whole numbers: scores are exact, and many are equal.
    whole = Changed.restore(
        {n: (2 * v).round() if v.is_floating_point() else v for n, v in found.changed.tensors().items()}
    )
    private = Stack({name: (2 * value).round() for name, value in c.private.values.items()})
    for chosen in (np.arange(5), np.array([1, 3])):
        for one, position in zip(
            evaluate_many(c.cohort, whole, private, "test", **options, chosen=chosen), chosen.tolist(), strict=True
        ):
            params = {**whole.client(c.cohort, position), **client(c.cohort, private, position)}
            expected = evaluate(
                ModelScorer(c.cohort.model, params), c.cohort.datas[position], c.cohort.tasks, "test", **options
            )
            assert {k: repr(v) for k, v in one.metrics.items()} == {k: repr(v) for k, v in expected.metrics.items()}


@KINDS
def test_what_is_light_is_trained_again_to_the_same_bits(kind: str) -> None:
    found = followed(kind=kind, tasks="rank-bce", ragged=True)
    light = found.changed.light()
    assert not any(block.values or block.rows for block in light.blocks if block.again)
    same(light.full(), found, found.dense)
    found.round(Stack({n: -v for n, v in found.z.values.items()}, each=False), [0, 2], 3)
    mixed = light.mixed(found.changed.light(), np.array([0, 1, 2]))
    same(mixed, found, found.dense)
    tensors, expected = mixed.tensors(), mixed.full().tensors()
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())


def test_what_would_keep_tensors_of_every_client_alive_is_not_made_again() -> None:
    for options in ({"each": True}, {"anchored": "elsewhere"}, {"shifted": True}):
        c = case(Recipe(1, 5, Optimiser("sgd", 0.1), mu=0.5), **options)
        assert all(part.again is None for part in c.parts())
    assert all(part.again for part in case(ADAM).parts())
