"""Weights of interactions: a row of weight 2 is that row twice, whatever makes the gradient; or they are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from fedrec.data import Interactions, federation, from_frame, pool
from fedrec.data.checks import merged
from fedrec.data.reading import Reading
from fedrec.data.split import concatenate
from fedrec.errors import UserError
from fedrec.experiment.choice import why_steps
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.holdings import clients_data, dataset
from fedrec.models import Recommender
from fedrec.params import Params
from fedrec.privacy.secret import digest
from fedrec.report.profile import profile
from fedrec.report.profile_screen import sums
from fedrec.sharing import Sharing
from fedrec.tasks import parse_task
from fedrec.training.cohort import groups, relative
from fedrec.training.local import EMPTY, held_out_loss, local_update
from fedrec.training.optimisers import Optimiser
from fedrec.training.recipe import Recipe
from fedrec.training.results import client_after, stack
from fedrec.training.update import train
from simulations.baselines import comparisons
from simulations.check import check
from simulations.profile import brief
from tests.builders import client, interactions
from tests.helpers import shared_by
from tests.own_parts import Events

TASKS = tuple(map(parse_task, ("click", "rating*0.5")))
ROWS = [(0, 1), (0, 2), (1, 2), (1, 0), (2, 3), (2, 1)]
RATED = [5.0, np.nan, 3.0, 1.0, np.nan, 2.0]
CLICKS = [True, False, True, True, False, False]
# Two rows of weight 2: one that is rated, and one that is not, so that the tasks' rows weigh other means.
TWICE = np.array([2, 1, 1, 1, 2, 1], np.float32)
WHOLE = Recipe(3, 100, Optimiser("sgd", 0.5))
MAKERS = {"kernel": ("mf", 1), "kernel of several": ("mlp", 3), "autograd": ("mmoe", 1), "vmap": ("mmoe", 3)}


def rows(weight: Any = None, twice: bool = False) -> Interactions:
    """Return six rows with weights, or those that would weigh 2 a second time."""
    given = replace(
        interactions(ROWS, RATED, click=CLICKS), weight=None if weight is None else np.asarray(weight, np.float32)
    )
    return given if not twice else concatenate([given, given.take(TWICE == 2)])


def trained(maker: str, *parts: Interactions, recipe: Recipe = WHOLE) -> Params:
    """Return the parameters of the first client after a round, alone or in one program with some of other rows."""
    kind, count = MAKERS[maker]
    model = Recommender(kind, 3, (4, 3))
    others = [rows(TWICE).take(np.arange(2 + k)) for k in range(count - 1)]
    datas = [client(part, users=3, items=5, name=f"c{k}") for k, part in enumerate([*parts, *others])]
    (cohort,) = groups(datas, [model] * count, [TASKS] * count, "train", {})
    rng = torch.Generator().manual_seed(0)
    like = model.shapes(3, 5, [task.name for task in TASKS])
    start = stack([{n: torch.randn(v.shape, generator=rng) for n, v in like.items()}] * count)
    chosen = np.arange(count)
    (part,) = train(cohort, start, EMPTY, recipe, Sharing(()), seed=0, chosen=chosen, scopes=[("c",)] * count)
    return client_after(cohort, start, part, cohort.members.index(0))


@pytest.mark.parametrize("maker", list(MAKERS))
def test_a_row_of_weight_two_is_that_row_twice(maker: str) -> None:
    plain, twice, weighted = trained(maker, rows()), trained(maker, rows(twice=True)), trained(maker, rows(TWICE))
    for name, value in twice.items():
        torch.testing.assert_close(weighted[name], value, atol=1e-6, rtol=1e-5)
    assert any(not torch.allclose(weighted[name], plain[name], atol=1e-3) for name in plain)


@pytest.mark.parametrize("maker", list(MAKERS))
def test_equal_weights_are_none_to_the_bit(maker: str) -> None:
    batches = replace(WHOLE, batch_size=2, l2=0.01, optimiser=Optimiser("adam", 0.1))
    plain, equal = (trained(maker, rows(weight), recipe=batches) for weight in (None, [0.3] * 6))
    assert all(torch.equal(plain[name], equal[name]) for name in plain)


@pytest.mark.parametrize("loss", ["rank", "rank-bce"])
def test_weights_act_on_ranking_whose_items_are_sampled(loss: str) -> None:
    model, tasks = Recommender("mf", 3), (parse_task(loss),)

    def after(weight: Any) -> Params:
        data, start = client(rows(weight), users=3, items=5), model.shapes(3, 5, ["rank"])
        rng = torch.Generator().manual_seed(0)
        params = {n: torch.randn(v.shape, generator=rng) for n, v in start.items()}
        return local_update(model, params, data, tasks, WHOLE, Sharing(()), seed=0, scope=("c",))[0]

    plain, equal, heavy, scaled = (after(w) for w in (None, [3] * 6, TWICE, 64 * TWICE))
    assert all(torch.equal(plain[n], equal[n]) and torch.equal(heavy[n], scaled[n]) for n in plain)
    assert not torch.allclose(plain["item_table"], heavy["item_table"], atol=1e-3)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(1e-9, 1e9), st.booleans()), min_size=1, max_size=30),
)
def test_what_rows_weigh_is_one_on_average_for_each_client_and_task(found: list[tuple[int, float, bool]]) -> None:
    owner, weight, mask = (np.array(column) for column in zip(*found, strict=True))
    scaled = relative(weight.astype(np.float32), mask, owner, 4)
    assert np.isfinite(scaled).all()
    for c in np.unique(owner[mask]):
        here = mask & (owner == c)
        assert scaled[here].mean(dtype=float) == pytest.approx(1, rel=1e-5)
        assert scaled[here] / scaled[here].max() == pytest.approx(weight[here] / weight[here].max(), rel=1e-5)


def test_what_is_measured_on_held_out_rows_has_no_weights() -> None:
    model, params = Recommender("mf", 3), {}
    params = {n: torch.ones(v.shape) for n, v in model.shapes(3, 5, [task.name for task in TASKS]).items()}
    losses = [
        held_out_loss(model, params, client(rows(), rows(w), users=3, items=5), TASKS, WHOLE, seed=0)
        for w in (None, TWICE)
    ]
    assert losses[0] == losses[1]


@given(st.permutations(range(6)))
def test_weights_of_rows_that_are_merged_add_up_in_any_order(order: list[int]) -> None:
    pairs, weight = [(0, 1), (0, 1), (0, 1), (1, 1), (0, 2), (0, 2)], [0.1, 0.2, 1e7, 4, 1, 2]
    each = replace(interactions(pairs), weight=np.asarray(weight, np.float32)).take(np.array(order))
    once = merged(each, each.user * 3 + each.item)
    assert once.weight is not None and once.weight.tolist() == [np.float32(1e7 + 0.3), 3, 4]


EVENTS = pd.DataFrame(
    {
        "user": ["k", "k", "k", "k", "m", "m"],
        "item": ["a", "a", "a", "b", "a", "b"],
        "event": ["view", "view", "buy", "view", "look", "view"],
        "n": ["2", "1", "4", "0.5", "1", "3"],
    }
)


def table(columns: str = "", **reading: Any) -> pd.DataFrame:
    form = Reading(**{"events": "buy=buy;click=view;ignore=look", **reading})
    return from_frame(EVENTS, f"user=user,item=item,event=event{columns}", reading=form).interactions


def test_repeats_are_counted_if_asked_for_and_what_is_ignored_is_not() -> None:
    plain, counted, weighed = table(), table(repeats="count"), table(",weight=n")
    assert counted["weight"].tolist() == [3, 1, 1] and counted["weight"].dtype == np.float32
    assert weighed["weight"].tolist() == [7, 0.5, 3]
    for other in (counted, weighed):
        pd.testing.assert_frame_equal(other.drop(columns="weight"), plain)


def test_weights_go_wherever_rows_go() -> None:
    n = 40
    frame = pd.DataFrame({"u": np.repeat(np.arange(n), 6) // 2, "i": np.tile(np.arange(6), n), "p": [*"xxyyyy"] * n})
    frame["w"] = 100.0 * frame["u"] + frame["i"] + 1
    frame["t"] = np.arange(len(frame))
    data = from_frame(frame, "user=u,item=i,platform=p,weight=w,time=t")
    for partition in ("platform", "users"):
        parts = federation(data, clients=2, partition=partition, volunteers=3)
        for one in (*parts, pool(parts)):
            for part in (one.train, one.validation, one.test):
                users, items = (data.users["key"].astype(float), data.items["key"].astype(float))
                told = 2 * (100 * users[one.users[part.user]].to_numpy() + items[one.items[part.item]].to_numpy() + 1)
                assert part.weight is not None and part.weight.tolist() == told.tolist()


def test_other_weights_are_another_input_of_noise() -> None:
    plain, a, b = rows(), rows(TWICE), rows([1] * 6)
    assert len({digest(plain), digest(a), digest(b)}) == 3 and digest(a) == digest(rows(TWICE))


SMALL: dict[str, Any] = {"dataset": "tests.own_parts:Events", "engine": "inline", "rounds": 2, "dim": 4}
COLUMNS = "user=user,item=item,platform=platform,time=time"
COUNT: dict[str, Any] = {"columns": COLUMNS, "reading": {"repeats": "count"}}
MUCH: dict[str, Any] = {"columns": f"{COLUMNS},weight=much"}


def made(**fields: Any) -> Experiment:
    return build({**SMALL, **fields})


def test_engines_agree(tmp_path: Path) -> None:
    homes = {name: tmp_path / name for name in ("inline", "process", "plain", "batched")}
    plain = shared_by(made(columns=COLUMNS), homes["plain"])
    assert shared_by(made(**MUCH), homes["inline"]) == shared_by(made(**MUCH, engine="process"), homes["process"])
    assert shared_by(made(**MUCH, engine="batched"), homes["batched"]) != plain
    one, other = (load_file(homes[name] / "model" / "shared.safetensors") for name in ("inline", "batched"))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-5, rtol=1e-5)


NOISE: dict[str, Any] = {"epsilon": "8"}
REFUSED = [
    (
        {**COUNT, "model": "ials"},
        "reading.repeats: count needs steps along gradients, but a model by sums",
    ),
    ({**MUCH, "model": "ease"}, "columns: weight=much needs steps along gradients, but a model by sums is solved for"),
    (
        {**MUCH, "weights": "uniform", "privacy": {**NOISE, "unit": "user"}},
        "columns: weight=much needs losses of rows that weigh what the data say, but a weight is relative to all rows, "
        "which no clip bounds, found privacy.unit user",
    ),
    ({**COUNT, "weights": "uniform", "privacy": {**NOISE, "unit": "interaction"}}, "found privacy.unit interaction"),
    (
        {**MUCH, "reading": {"repeats": "count"}},
        "reading.repeats: acts only with .* without a column of weights",
    ),
    ({"dataset": "synthetic", "reading": {"repeats": "count"}}, "reading.repeats: acts only with a table "),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED)
def test_where_weights_cannot_act_they_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check(made(**fields))


def test_noise_on_whole_clients_covers_what_rows_weigh() -> None:
    check(made(**COUNT, weights="uniform", privacy={**NOISE, "unit": "client"}))


def test_a_model_that_nobody_names_learns_by_gradients_and_is_compared_with_sums_over_the_same_rows() -> None:
    assert why_steps(made(**COUNT)) == "reading.repeats count needs steps along gradients"
    others, _ = comparisons(made(**COUNT))
    assert {e.reading.repeats for name, e in others.items() if e.solves} == {"once"}
    assert {e.reading.repeats for name, e in others.items() if not e.solves} == {"count"}
    others, why = comparisons(made(**MUCH))
    assert not any(e.solves for e in others.values()) and "sums, which know no weights" in "".join(why.values())


def test_a_label_is_not_called_as_the_weight_and_a_dataset_has_none_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"columns: a label must not be named .*, weight, .* found 'weight'"):
        from_frame(EVENTS, "user=user,item=item,label=weight")
    whole = from_frame(EVENTS, "user=user,item=item,event=event,weight=n", reading=Reading(events="buy=buy;click=*"))
    monkeypatch.setattr(Events, "load", lambda self: whole)
    with pytest.raises(UserError, match="dataset: what rows weigh is told of a table"):
        clients_data(made(columns=COLUMNS, seed=7))


def test_the_look_and_the_lines_before_a_run_name_the_weights() -> None:
    for fields, by in ((COUNT, "how often a user met an item"), (MUCH, "the column much")):
        (line,) = (line for line in brief(made(**fields)) if "weights" in line)
        assert line.startswith("weights of interactions: 1 to ") and line.endswith(f", by {by}")
        lines = [*sums(profile(dataset(made(**fields))))]
        assert lines.count(line) == 1
    assert not any("weights" in line for line in brief(made(columns=COLUMNS)))
