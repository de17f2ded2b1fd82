"""A missing label or rating masks its task for its row, and nothing else: in training, evaluation, merging, pooling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from fedrec.data import ClientData, Dataset, federation, pool
from fedrec.data.checks import merged
from fedrec.data.table import table
from fedrec.data.types import known_column
from fedrec.evaluation.evaluate import evaluate
from fedrec.evaluation.scorers import ModelScorer
from fedrec.models import Recommender
from fedrec.privacy.units import Units
from fedrec.tasks import Task, parse_task, task_loss
from fedrec.training.losses import task_losses
from fedrec.training.optimisers import Optimiser
from fedrec.training.recipe import Recipe
from simulations.engines import launch
from tests.builders import batches, interactions
from tests.helpers import experiment

COLUMNS = "user=u,item=i,rating=r,time=t,platform=p,label=buy,label=click"
TASKS = tuple(map(parse_task, ("rank", "rating", "buy", "click", "behaviour")))
RECIPE = Recipe(1, 10_000, Optimiser("sgd", 0.1), num_negatives=2)


def written(path: Path, blank: str = "", share: int = 3) -> Dataset:
    """Return a table in which every third row of a column is empty, of all else the same."""
    rng = np.random.default_rng(0)
    lines = ["u,i,r,t,p,buy,click"]
    for n in range(400):
        click, buy = rng.random() < 0.5, rng.random() < 0.3
        row = {
            "u": n % 40,
            "i": (7 * n + n // 40) % 50,
            "r": 1 + n % 5,
            "t": n,
            "p": "ab"[n % 2],
            "buy": +buy,
            "click": +click,
        }
        if blank and n % share == 0:
            row[blank] = ""
        lines.append(",".join(map(str, row.values())))
    path.write_text("\n".join(lines))
    return table(path, COLUMNS)


def clients(data: Dataset) -> tuple[ClientData, ...]:
    return tuple(federation(data, clients=None, split="random", fractions=(0.2, 0.2)))


def each_loss(data: ClientData, tasks: tuple[Task, ...]) -> dict[str, torch.Tensor]:
    """Return the loss of every task on all training rows, of a model that is drawn."""
    model = Recommender("mf", 4, classes={"behaviour": 3})
    shapes = model.shapes(len(data.users), len(data.items), [task.name for task in tasks])
    rng = torch.Generator().manual_seed(0)
    params = {name: torch.randn(value.shape, generator=rng) for name, value in sorted(shapes.items())}
    (batch,) = batches(data, tasks, RECIPE, np.random.default_rng(0), model=model)
    return dict(zip([task.name for task in tasks], task_losses(model, params, tasks, batch), strict=True))


def test_a_missing_label_changes_nothing_of_another_tasks_loss(tmp_path: Path) -> None:
    whole, lacking = (clients(written(tmp_path / f"{blank}.csv", blank)) for blank in ("", "click"))
    for one, other in zip(whole, lacking, strict=True):
        a, b = each_loss(one, TASKS), each_loss(other, TASKS)
        assert all(torch.equal(a[name], b[name]) for name in ("rank", "rating", "buy"))
        assert not torch.equal(a["click"], b["click"]) and not torch.equal(a["behaviour"], b["behaviour"])


def test_a_task_learns_from_the_rows_of_which_its_label_is_known(tmp_path: Path) -> None:
    (one, _), (whole, _) = (clients(written(tmp_path / f"{blank}.csv", blank)) for blank in ("click", ""))
    known = one.train.known("click")
    assert 0 < known.sum() < len(known) and np.array_equal(known, one.train.time % 3 != 0)
    click, behaviour = TASKS[3], TASKS[4]
    assert np.array_equal(click.rows(one.train), known)
    assert click.offset(one.train) == click.offset(whole.train.take(known))
    buys = one.train.labels["buy"]
    assert np.array_equal(behaviour.rows(one.train), known | buys)  # who bought has done the most there is
    np.testing.assert_array_equal(behaviour.start(one.train), behaviour.start(whole.train.take(known | buys)))
    # All other rows are left out of its mean, as if they were not there.
    score, target = torch.arange(len(known)) / 9, torch.from_numpy(click.target(one.train))
    some = task_loss(click, score, target, None)[torch.from_numpy(known)].mean()
    kept = task_loss(
        click, score[torch.from_numpy(known)], torch.from_numpy(click.target(whole.train.take(known))), None
    )
    torch.testing.assert_close(some, kept.mean())


def test_a_test_asks_for_known_labels_alone(tmp_path: Path) -> None:
    found = []
    for blank in ("", "click"):
        data = clients(written(tmp_path / f"{blank}.csv", blank))[0]
        model = Recommender("mf", 4)
        shapes = model.shapes(len(data.users), len(data.items), [task.name for task in TASKS[:4]])
        params = {name: torch.sin(torch.arange(value.numel())).reshape(value.shape) for name, value in shapes.items()}
        scorer = ModelScorer(model, params)
        found.append(evaluate(scorer, data, TASKS[:4], "test", metrics=("hr@10",), candidates="full", seed=0))
    one, other = found
    kept = {key for key in one.metrics if key[1] != "click"}
    assert all(one.metrics[key] == other.metrics[key] for key in kept) and len(kept) == 4
    rows = {
        n: sum(
            int(p.weights.sum())
            for p in e.per_user
            if p.task == "click" and p.metric == "logloss" and p.weights is not None
        )
        for n, e in enumerate(found)
    }
    assert rows[1] == int(clients(written(tmp_path / "again.csv", "click"))[0].test.known("click").sum()) < rows[0]


def test_a_missing_first_label_is_no_positive_and_a_missing_rating_no_like(tmp_path: Path) -> None:
    rows = written(tmp_path / "t.csv", "buy").interactions
    unknown = ~rows[known_column("buy")]
    assert unknown.any() and not rows["positive"][unknown].any() and not rows["buy"][unknown].any()
    rows = written(tmp_path / "t.csv", "r").interactions
    assert (rows[known_column("like")] == rows["rating"].notna()).all() and rows["like"].sum() > 0
    assert known_column("like") not in written(tmp_path / "t.csv").interactions


def test_a_label_of_merged_rows_is_known_where_it_is_of_any(tmp_path: Path) -> None:
    rows = interactions(
        [(0, 0)] * 2 + [(0, 1)] * 2 + [(0, 2)] * 2,
        click=[False, False, False, False, True, False],
        **{"click?": [False, False, False, True, True, False]},
    )
    once = merged(rows, rows.item)
    assert once.labels["click"].tolist() == [False, False, True] and once.known("click").tolist() == [False, True, True]


def test_pooled_clients_keep_what_is_not_known(tmp_path: Path) -> None:
    parts = clients(written(tmp_path / "t.csv", "click"))
    whole = pool(parts)
    assert (
        int((~whole.train.known("click")).sum()) == sum(int((~part.train.known("click")).sum()) for part in parts) > 0
    )


def test_units_of_privacy_are_of_known_labels(tmp_path: Path) -> None:
    data = clients(written(tmp_path / "t.csv", "click"))[0]
    units = Units.of(data, TASKS[3:4], RECIPE, "interaction")
    assert units.count == int(data.train.known("click").sum())


def test_a_run_on_missing_labels_is_the_same_stacked(tmp_path: Path) -> None:
    written(tmp_path / "t.csv", "click")
    fields: dict[str, Any] = {"dataset": "table", "data_dir": tmp_path / "t.csv", "columns": COLUMNS, "clients": None}
    fields |= {"task": "rank,click,rating", "rounds": 1, "split": "random"}
    found = {}
    for engine in ("inline", "batched"):
        launch(experiment(**fields, engine=engine), tmp_path / engine)
        found[engine] = pd.read_csv(tmp_path / engine / "clients.csv")
        assert np.isfinite(found[engine]["value"]).all() and "click" in set(found[engine]["task"])
    np.testing.assert_allclose(found["inline"]["value"], found["batched"]["value"], atol=1e-5)
