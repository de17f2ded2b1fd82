"""The split new-items: what is new is new to everybody, met by nobody in training, and ranked among what is new."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clients.client import Client
from fedrec.data import Clients, excluded, federation, pool, public_data, view_public
from fedrec.data.split import new_items
from fedrec.evaluation.evaluate import evaluate
from fedrec.evaluation.scorers import PopularityScorer
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data
from fedrec.tasks import parse_task
from fedrec.training.local import local_update
from simulations.engines import launch
from tests.builders import client, interactions, synthetic
from tests.helpers import experiment, fit

MARKET = {"users": 40, "items": 120, "impressions": 15}
IDS = st.lists(st.integers(0, 10**6), min_size=1, max_size=50, unique=True).map(lambda ids: np.array(sorted(ids)))


def federated(partition: Any = "platform", seed: int = 0) -> Clients:
    market = synthetic(platforms=3, seed=1, **MARKET)
    return federation(market, clients=3, partition=partition, split="new-items", fractions=(0.2, 0.3), seed=seed)


@given(IDS, st.integers(0, 50), st.data())
def test_what_is_new_depends_on_the_id_and_the_seed_alone(ids: Any, seed: int, data: st.DataObject) -> None:
    validation, test = new_items(ids, (0.2, 0.3), seed)
    assert not (validation & test).any()
    one = data.draw(st.integers(0, len(ids) - 1))
    alone = new_items(ids[one : one + 1], (0.2, 0.3), seed)
    assert (bool(alone[0][0]), bool(alone[1][0])) == (bool(validation[one]), bool(test[one]))


def test_the_fractions_are_those_of_the_items() -> None:
    # sd of a share of 20,000: at most 0.0033
    first, second = (new_items(np.arange(20_000), (0.2, 0.3), seed) for seed in (0, 1))
    assert [mask.mean() for mask in first] == pytest.approx([0.2, 0.3], abs=0.014)
    assert (first[1] & second[1]).mean() == pytest.approx(0.09, abs=0.009)  # another seed, others


@pytest.mark.parametrize("partition", ["platform", "users"])
def test_every_row_is_of_the_part_of_its_item_at_every_client(partition: str) -> None:
    fate: dict[int, str] = {}
    for data in (*(parts := federated(partition)), pool(parts)):
        assert data.new is not None
        for split in ("train", "validation", "test"):
            rows = getattr(data, split)
            assert len(rows)
            assert data.offered(split)[rows.item].all()
            for item in data.items[data.offered(split)]:
                assert fate.setdefault(int(item), split) == split
        masks = [data.offered(split) for split in ("train", "validation", "test")]
        assert (np.sum(masks, axis=0) == 1).all()


def test_nothing_that_is_new_is_a_negative() -> None:
    for data in federated():
        users = np.repeat(np.arange(len(data.users)), 200)
        for protocol in ("train", "published"):
            drawn = excluded(data, protocol).draw(users, np.random.default_rng(0))
            assert data.offered("train")[drawn].all()
        old = replace(data, new=None)
        assert not data.offered("train")[excluded(old, "train").draw(users, np.random.default_rng(0))].all()


class Fixed:
    """Scores every item by a number."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = torch.tensor(scores)

    def score_all(self, task: str, user: Any) -> torch.Tensor:
        return self.scores.expand(len(user), -1)

    def attribute(self, task: str, item: Any) -> Any:
        raise NotImplementedError

    def score(self, task: str, user: Any, item: Any) -> Any:
        return self.scores[item].numpy()


@pytest.mark.parametrize(("candidates", "ndcg"), [("full", 1 / np.log2(3)), (2, 1 / np.log2(3))])
def test_new_items_are_ranked_among_those_that_are_new_at_the_split(candidates: Any, ndcg: float) -> None:
    # The test item 3 scores 3; of items 4 and 5, new with it, one scores more: rank 2, whatever the old ones score.
    made = client(interactions([(0, 0)]), interactions([(0, 2)]), interactions([(0, 3)]), users=1, items=6)
    new = (np.array([0, 0, 1, 0, 0, 0], bool), np.array([0, 0, 0, 1, 1, 1], bool))
    scorer, task = Fixed([9, 9, 9, 3, 2, 4]), (parse_task("rank"),)
    options: Any = {"metrics": ("ndcg@10",), "candidates": candidates, "seed": 0}
    found = evaluate(scorer, replace(made, new=new), task, "test", **options)
    assert found.metrics["films", "rank", "ndcg@10"] == pytest.approx(ndcg)
    found = evaluate(scorer, replace(made, new=new), task, "validation", **options)
    assert found.metrics["films", "rank", "ndcg@10"] == 1  # it is alone
    whole = evaluate(scorer, made, task, "test", metrics=("mrr",), candidates="full", seed=0)
    assert whole.metrics["films", "rank", "mrr"] == pytest.approx(1 / 3)  # behind 1 and 5; 0 and 2 are known


def test_popularity_knows_nothing_of_new_items_and_a_tie_counts_against_it() -> None:
    task = (parse_task("rank"),)
    for data in federated():
        scorer = PopularityScorer.fit(task, data.train, len(data.items))
        found = evaluate(scorer, data, task, "test", metrics=("hr@5",), candidates="full", seed=0)
        assert found.metrics[data.name, "rank", "hr@5"] == 0
        assert data.offered("test").sum() > 10


def test_volunteers_have_met_nothing_that_is_new() -> None:
    market = synthetic(platforms=3, seed=1, **MARKET)
    options: Any = {"split": "new-items", "fractions": (0.2, 0.3), "seed": 0, "volunteers": 9}
    for data in federation(market, clients=3, **options):
        assert data.offered("train")[data.train.item].all()
        view = view_public(public_data(market, **options), data.name, data.items)
        assert view.new is not None
        assert data.new is not None
        assert np.array_equal(view.new, data.new)


def small(**fields: Any) -> Experiment:
    return experiment(market=MARKET, split="new-items", fractions=(0.2, 0.3), **fields)


CONTENT = {"kind": "hashed", "dim": 8, "dropout": 0.3}
RUNS: list[dict[str, Any]] = [
    {"method": "fedper"},
    {"method": "fedper", "optimiser": "adagrad", "negatives": "published"},
    {"method": "fedadam"},
    {"method": "fedavgm"},
    {"method": "admm"},
    {"method": "mr-mtl"},
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: "-".join(run.values()))
def test_no_row_of_a_new_item_ever_moves(run: dict[str, Any]) -> None:
    e = small(**run, content=CONTENT)
    record, _ = fit(e)
    for data in clients_data(e):
        new = ~data.offered("train")
        ids = record.rows["item"]
        for table in ("item_table", "item_bias"):
            rows = record.shared[table][np.searchsorted(ids, data.items)]
            assert not rows[new].any()
            assert rows[~new].any()


@pytest.mark.parametrize("method", ["local", "pooled"])
def test_alone_no_row_of_a_new_item_moves_either(method: str) -> None:
    e = small(method=method, content=CONTENT, l2=0.1)
    for data in clients_data(e):
        one = Client(e, data, "cpu", None)
        params, _ = local_update(
            one.model, one.start(), data, one.tasks, e.recipe(), e.sharing(), seed=0, scope=(data.name, 1)
        )
        assert not params["item_table"][~data.offered("train")].any()


def test_stacked_clients_rank_and_draw_as_single_ones_do() -> None:
    runs = [fit_by(small(engine=engine, optimiser="sgd", lr=0.5)) for engine in ("inline", "batched")]
    assert len(runs[0]) == len(runs[1]) > 0
    assert runs[0] == pytest.approx(runs[1], abs=1e-6)


def fit_by(e: Experiment) -> list[float]:
    """Return all metrics of a run by its engine."""
    with TemporaryDirectory() as folder:
        launch(e, Path(folder))
        return pd.read_csv(Path(folder) / "clients.csv")["value"].tolist()
