"""Objective terms: each is what autograd makes of it, for one client and for one among many, also of a second model."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedrec.errors import UserError
from fedrec.models import Recommender
from fedrec.params import norm, subtract
from fedrec.training.local import local_update, single, update_one
from fedrec.training.losses import scores
from fedrec.training.optimisers import Optimiser
from fedrec.training.recipe import Objective, Recipe
from fedrec.training.results import stack
from fedrec.training.stacks import NOTHING, Terms
from tests.builders import batches, by_autograd
from tests.own_parts import Decay, Idle, Remembered, Ridge
from tests.test_stacking import case, check
from tests.test_training import BODY, ITEMS, RATING, SGD, small, start
from tests.test_transforms import MODEL, PLAIN, SHARED, TASKS, both, noise

TERMS = pytest.mark.parametrize("term", [Remembered(2.0), Ridge(3.0)], ids=["remembered", "ridge"])


@TERMS
@pytest.mark.parametrize("optimiser", ["sgd", "adagrad"])
@pytest.mark.parametrize("given", [{}, {"anchor": noise(SHARED, 0), "weight": 1.7}], ids=["plain", "pulled"])
def test_a_term_is_what_autograd_makes_of_it(given: dict[str, Any], optimiser: Any, term: Objective) -> None:
    """Not weighed as the loss is, beside a transform; and the loss that is told is without it."""
    recipe = replace(PLAIN, optimiser=Optimiser(optimiser, 0.05), transforms=(Decay(0.1),), mu=0.7 * bool(given))
    mine, other = both(replace(recipe, objective=(term,)), **given)
    for key, value in other.items():
        torch.testing.assert_close(mine[key], value, atol=1e-5, rtol=1e-5)
    assert norm(subtract(mine, both(recipe, **given)[0])) > 1e-3
    one = replace(recipe, epochs=1, batch_size=1000)
    usual: dict[str, Any] = {"seed": 3, "scope": ("films", 1), **given}
    told = [
        local_update(MODEL, start(MODEL, TASKS), small(), TASKS, each, BODY, **usual)[1]
        for each in (one, replace(one, objective=(term,)))
    ]
    assert told[0] == told[1]


def test_a_pull_of_a_table_to_the_start_is_the_proximal_term_of_it() -> None:
    """mu / 2 |x - z|^2 by autograd, one client at a time, against mu (x - z) behind the gradients of all together."""
    recipe = Recipe(2, 5, Optimiser("adam", 0.03), num_negatives=2)
    c = case(replace(recipe, mu=0.7), tasks="rank-bce", share=("item_table",), ragged=True, anchored="start")
    check(c, c.parts())
    mine = replace(c, recipe=replace(recipe, objective=(Ridge(0.7),)), terms=NOTHING)
    check(mine, mine.parts())


@TERMS
def test_a_client_among_others_is_what_autograd_makes_of_it(term: Objective) -> None:
    recipe = Recipe(2, 5, SGD, ("private", "shared"), num_negatives=2, objective=(term,))
    c = case(recipe, tasks="three", ragged=True, sizes=(9, 0, 30, 17, 1), shifted=True, weighted=True)
    check(c, c.parts())
    free = replace(c, recipe=replace(recipe, objective=()))
    assert norm(subtract(free.after(free.parts())[0][0], c.reference[0][0])) > 1e-3


def test_a_second_model_has_the_term_at_its_mixture_and_from_the_start_of_that() -> None:
    recipe, data = replace(PLAIN, objective=(Remembered(2.0),)), small()
    w, usual = start(MODEL, TASKS), {"seed": 3, "scope": ("films", 1)}
    v = {name: value + other for (name, value), other in zip(w.items(), noise(w, 5).values(), strict=True)}
    found = []
    for one in (recipe, replace(recipe, objective=())):
        terms = Terms(personal=stack([v]), share=dict.fromkeys(v, 0.4))
        made = update_one(single(MODEL, data, TASKS, one, 3), w, one, BODY, terms=terms, **usual)  # type: ignore[arg-type]
        other = by_autograd(MODEL, w, data, TASKS, one, BODY, v=v, alpha=0.4, **usual)  # type: ignore[arg-type]
        for key in w:
            torch.testing.assert_close(made.params[key], other[0][key], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(made.personal[key], other[2][key], atol=1e-5, rtol=1e-5)
        found.append(made.personal)
    assert norm(subtract(*found)) > 1e-3


def test_a_term_that_is_no_number_is_named() -> None:
    with pytest.raises(UserError, match=r"objective: Idle must return a tensor \[\], found \[2\]"):
        both(replace(PLAIN, objective=(Idle((2,)),)))


@pytest.mark.parametrize("kind", ["mf", "ple"])
def test_scores_are_those_of_the_rows_and_of_what_was_sampled(kind: Any) -> None:
    model, data = Recommender(kind, 3, (4, 3), experts=2), small()
    params = start(model, (*TASKS, RATING))
    (batch,) = batches(data, TASKS, replace(PLAIN, batch_size=1000), np.random.default_rng(0), model=model)
    assert batch.negative is not None and batch.negative.shape == (len(batch.item), 2)
    found, each = scores(model, params, TASKS, batch), torch.cat([batch.item[:, None], batch.negative], 1)
    for task in TASKS:
        every = model.score_all(params, task.name, batch.user)
        assert every.shape == (len(batch.item), ITEMS)
        rows = every.gather(1, each)
        torch.testing.assert_close(found[task.name], rows if task.kind == "rank" else rows[:, 0])
