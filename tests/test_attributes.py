"""Tasks about items: what the heads learn from, what they are measured by, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy, MultilabelAUROC, MultilabelAveragePrecision

from clients.client import Client
from clients.recommend import recommend
from clients.training import update
from fedrec.data import ClientData, pool
from fedrec.data.types import Floats
from fedrec.errors import UserError
from fedrec.evaluation.evaluate import about_items, evaluate, pointwise
from fedrec.evaluation.scorers import ModelScorer, PopularityScorer
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.holdings import clients_data, dataset
from fedrec.metrics import average_precision, macro_auc
from fedrec.models import KINDS
from fedrec.params import Params
from fedrec.report.page import write_report
from fedrec.report.tables import CLIENTS, EVERYONE, ITEMS, compare, read_run
from fedrec.sharing import SHARINGS, Sharing
from fedrec.tasks import parse_task, task_loss
from fedrec.training.local import held_out_loss
from fedrec.training.losses import batch_loss, trainable
from fedrec.training.optimisers import Optimiser
from fedrec.training.recipe import Recipe
from fedrec.training.stacks import Terms
from simulations.check import check
from simulations.distil import students_of
from simulations.engines.nodes import MANY, stacked
from simulations.run import main
from tests.builders import batches, interactions
from tests.helpers import experiment, fit

CATEGORY, BRAND, PRICE, RANK, BEHAVIOUR = map(parse_task, ("category", "brand", "price", "rank", "behaviour"))
SMALL: dict[str, Any] = {"market": {"users": 40, "items": 60, "impressions": 10}}
RECIPE = Recipe(1, 32, Optimiser("sgd", 0.1))


def small(task: str, method: str = "fedper", **fields: Any) -> Experiment:
    """Return a small experiment with tasks."""
    return experiment(method, task=task, **{**SMALL, **fields})


def started(e: Experiment, number: int = 0) -> Client:
    """Return a client of an experiment."""
    return Client(e, clients_data(e)[number], "cpu", None)


def of_classes(rng: np.random.Generator, n: int, classes: int) -> tuple[Floats, Floats]:
    """Return scores with ties and labels that contain every class."""
    score: Floats = (rng.integers(-4, 5, (n, classes)) / 2).astype(np.float32)
    label: Floats = (rng.random((n, classes)) < 0.3).astype(np.float32)
    return score, label


@pytest.mark.parametrize("seed", range(4))
def test_the_metrics_of_names_are_those_of_torchmetrics(seed: int) -> None:
    score, label = of_classes(np.random.default_rng(seed), 40, 5)
    s, y = torch.from_numpy(score), torch.from_numpy(label).int()
    # torchmetrics takes a sigmoid of what lies outside [0, 1], which keeps order and ties
    assert macro_auc(score, label > 0) == pytest.approx(float(MultilabelAUROC(5, average="macro")(s, y)), abs=1e-6)
    expected = float(MultilabelAveragePrecision(5, average="micro")(s, y))
    assert average_precision(score, label > 0) == pytest.approx(expected, abs=1e-6)
    whole, each = about_items(CATEGORY, score, label, 1.0)
    assert whole["logloss"] == pytest.approx(float(F.binary_cross_entropy_with_logits(s, y.float())), abs=1e-6)
    assert each["logloss"].shape == (40,)
    assert np.mean(each["logloss"]) == pytest.approx(whole["logloss"])


def test_a_name_with_one_class_among_the_held_out_is_no_part_of_the_macro_auc() -> None:
    # Column 0: positives at 2 and 1 above the negative at 0: 1. Column 1: one positive ties one negative and beats one
    # negative: (1/2 + 1) / 2. Columns 2 and 3 have one class.
    score = np.array([[2.0, 1.0, 5.0, 0.0], [1.0, 1.0, 3.0, 1.0], [0.0, 0.0, 1.0, 2.0]])
    label = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 1, 0]], dtype=np.bool_)
    assert macro_auc(score, label) == (1 + 0.75) / 2
    assert np.isnan(macro_auc(score[:, 2:], label[:, 2:]))


def test_average_precision_takes_equal_scores_together() -> None:
    # Thresholds 2: 1 of 1 is right, R = 1/3; 1: 2 of 3 are, R = 2/3; 0: 3 of 4, R = 1.
    score, label = np.array([2.0, 1.0, 1.0, 0.0]), np.array([True, False, True, True])
    assert average_precision(score, label) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert average_precision(score, label) == average_precision(score[[0, 2, 1, 3]], label[[0, 2, 1, 3]])
    assert np.isnan(average_precision(score, np.zeros(4, np.bool_)))


def test_the_metrics_of_a_brand_and_a_price() -> None:
    rng = np.random.default_rng(0)
    score, brand = rng.normal(size=(30, 4)).astype(np.float32), rng.integers(0, 4, 30)
    whole, _ = about_items(BRAND, score, np.eye(4, dtype=np.float32)[brand], 1.0)
    s, y = torch.from_numpy(score), torch.from_numpy(brand)
    assert whole["accuracy"] == pytest.approx(float(MulticlassAccuracy(4, average="micro")(s, y)))
    assert whole["logloss"] == pytest.approx(float(F.cross_entropy(s, y)), abs=1e-6)
    # Errors of 1 and 3 standard deviations of 0.5: 0.5 and 1.5 in units of the logarithm.
    whole, each = about_items(PRICE, np.array([[1.0], [0.0]], np.float32), np.array([[0.0], [3.0]], np.float32), 0.5)
    assert whole == pytest.approx({"mae": 1.0, "rmse": np.sqrt((0.25 + 2.25) / 2)})
    assert each["mae"].tolist() == [0.5, 1.5]


def test_the_losses_are_those_of_torch() -> None:
    score, target = torch.randn(6, 3), torch.eye(3)[[0, 1, 2, 0, 1, 2]]
    torch.testing.assert_close(task_loss(BRAND, score, target, None), F.cross_entropy(score, target, reduction="none"))
    expected = F.binary_cross_entropy_with_logits(score, target, reduction="none").mean(1)
    torch.testing.assert_close(task_loss(CATEGORY, score, target, None), expected)
    torch.testing.assert_close(task_loss(PRICE, score[:, :1], target[:, :1], None), (score - target)[:, 0].square())


def test_an_item_is_in_one_part_which_is_the_same_in_all_clients_and_for_any_split() -> None:
    e = small("category")
    whole: dict[int, tuple[bool, ...]] = {}
    for other in (e, e.model_copy(update={"split": "random"}), e.model_copy(update={"partition": "users"})):
        for data in (*clients_data(other), pool(clients_data(other))):
            parts = np.stack([data.attributes.train, data.attributes.validation, data.attributes.test], 1)
            assert (parts.sum(1) == 1).all()
            for item, row in zip(data.items.tolist(), map(tuple, parts.tolist()), strict=True):
                assert whole.setdefault(item, row) == row
    assert len(whole) == 60
    assert not np.array_equal(
        clients_data(e)[0].attributes.test, clients_data(small("category", seed=1))[0].attributes.test
    )


def test_fractions_part_the_items() -> None:
    data = clients_data(small("category", market={"users": 20, "items": 4000, "impressions": 5}, fractions=(0.2, 0.3)))[
        0
    ]
    about = data.attributes
    shares = [part.mean() for part in (about.train, about.validation, about.test)]
    # of about 3,600 items, a share has a standard deviation of 0.008
    np.testing.assert_allclose(shares, [0.5, 0.2, 0.3], atol=0.03)


def test_a_client_knows_the_attributes_of_its_own_items() -> None:
    e = small("category")
    items = dataset(e).items
    names = sorted({name for text in items["categories"] for name in text.split("|")})
    for data in (*clients_data(e), pool(clients_data(e))):
        for row, item in enumerate(data.items.tolist()):
            has = {name for name, one in zip(names, data.attributes.values["category"][row], strict=True) if one}
            assert has == set(items["categories"][item].split("|"))
        log, price = np.log(items["price"].to_numpy()[data.items]), data.attributes.values["price"][:, 0]
        np.testing.assert_allclose(np.diff(log), data.attributes.deviation * np.diff(price), atol=1e-5)


def test_batches_learn_from_training_items_alone() -> None:
    data = clients_data(small("category"))[0]
    seen = set()
    for batch in batches(data, (RANK, CATEGORY), RECIPE, np.random.default_rng(0)):
        mask, target = batch.labels["category"]
        item = batch.item.numpy()
        np.testing.assert_array_equal(mask.numpy() > 0, data.attributes.train[item])
        np.testing.assert_array_equal(target.numpy(), data.attributes.values["category"][item])
        seen |= set(item[mask.numpy() > 0].tolist())
    assert seen
    for batch in batches(data, (CATEGORY,), RECIPE, np.random.default_rng(0)):
        assert data.attributes.train[batch.item.numpy()].all()


def test_what_is_held_out_does_not_move_the_training() -> None:
    client = started(small("rank,category,brand,price", model="mlp"))
    about = client.data.attributes
    changed = {name: np.where(about.train[:, None], value, 1 - value) for name, value in about.values.items()}
    other = Client(client.experiment, with_attributes(client.data, values=changed), "cpu", None)
    a, b = (update(one, one.start(), 1).params for one in (client, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    changed = {name: np.where(about.train[:, None], 1 - value, value) for name, value in about.values.items()}
    other = Client(client.experiment, with_attributes(client.data, values=changed), "cpu", None)
    b = update(other, other.start(), 1).params
    assert not torch.equal(a["item_table"], b["item_table"])


def with_attributes(data: ClientData, **fields: Any) -> ClientData:
    """Return a client of whose items something else is known."""
    from dataclasses import replace

    return replace(data, attributes=replace(data.attributes, **fields))


def test_an_item_without_the_attribute_is_masked_out() -> None:
    client = started(small("category,brand,price"))
    about = client.data.attributes
    unknown = np.zeros(len(about.train), np.bool_)
    unknown[::3] = True
    values = {name: np.where(unknown[:, None], np.float32("nan"), value) for name, value in about.values.items()}
    other = Client(client.experiment, with_attributes(client.data, values=values), "cpu", None)
    params, loss, _ = update(other, other.start(), 1)
    assert np.isfinite(loss)
    found = evaluate(
        ModelScorer(other.model, params), other.data, other.tasks, "test", metrics=("hr@10",), candidates="full", seed=0
    )
    expected = other.data.items[about.test & ~unknown]
    assert all(np.array_equal(one.users, expected) and one.items for one in found.per_user)
    assert all(np.isfinite(value) for value in found.metrics.values())


def test_the_loss_of_a_batch_is_that_of_its_training_items() -> None:
    client = started(small("category"))
    params = {name: torch.randn_like(value) for name, value in client.start().items()}
    batch = next(iter(batches(client.data, client.tasks, RECIPE, np.random.default_rng(0))))
    q = params["item_table"][batch.item]
    logit = q @ params["attributes.category.weight"].T + params["attributes.category.bias"]
    target = torch.from_numpy(client.data.attributes.values["category"])[batch.item]
    expected = F.binary_cross_entropy_with_logits(logit, target)
    torch.testing.assert_close(batch_loss(client.model, params, client.tasks, batch, 0.0), expected)


def test_the_held_out_loss_is_of_held_out_items() -> None:
    client = started(small("brand"))
    params, about = client.start(), client.data.attributes
    rows = client.data.validation.item
    rows = rows[about.validation[rows]]
    assert len(rows)
    y = torch.from_numpy(about.values["brand"][rows])
    logit = params["attributes.brand.bias"].expand(len(rows), -1)
    found = held_out_loss(client.model, params, client.data, client.tasks, RECIPE, seed=0)
    assert found == pytest.approx(float(F.cross_entropy(logit, y)), abs=1e-6)


def test_heads_start_with_what_is_usual_and_so_does_popularity() -> None:
    client = started(small("category,brand,price"))
    about, params = client.data.attributes, client.start()
    popular = PopularityScorer.fit(client.tasks, client.data.train, len(client.data.items), about=about)
    item = np.arange(len(client.data.items))
    for task in client.tasks:
        said = ModelScorer(client.model, params).attribute(task.name, item)
        np.testing.assert_array_equal(said, popular.attribute(task.name, item))
    known = about.values["category"][about.train].mean(0)
    np.testing.assert_allclose(1 / (1 + np.exp(-popular.attribute("category", item)[0])), known.clip(1e-3), atol=1e-6)
    share = np.exp(popular.attribute("brand", item)[0])
    assert share.sum() == pytest.approx(1)
    assert share.argmax() == about.values["brand"][about.train].sum(0).argmax()
    # standardised over the training items of the whole market, of which a client carries most
    assert popular.attribute("price", item)[0, 0] == pytest.approx(about.values["price"][about.train].mean(), abs=1e-6)


@pytest.mark.parametrize("model", sorted({*KINDS} - {"esmm", "aitm"}))  # these two need click and buy
def test_training_on_an_attribute_learns_it_with_every_model(model: str) -> None:
    client = started(small("category", model=model, lr=0.05, local_epochs=20, l2=0.0))
    start = client.start()
    params = update(client, start, 1).params
    assert params.keys() == client.model.shapes(1, 1, ["category"]).keys()
    before, after = (log_loss_of(client, one) for one in (start, params))
    assert after < 0.8 * before


def log_loss_of(client: Client, params: Params) -> float:
    """Return the mean log loss of the categories of the training items that users met."""
    item = np.unique(client.data.train.item)
    item = item[client.data.attributes.train[item]]
    said = ModelScorer(client.model, params).attribute("category", item)
    return about_items(CATEGORY, said, client.data.attributes.values["category"][item], 1.0)[0]["logloss"]


def test_beside_a_ranking_alone_no_user_bias_is_trained() -> None:
    names = list(started(small("rank,category")).start())
    shared = Sharing(("item_table",))
    kept = trainable(names, (RANK, CATEGORY), shared, "all", RECIPE.optimiser)
    assert set(names) - set(kept) == {"user_bias", "heads.rank.bias"}


def test_heads_of_attributes_are_private_unless_named() -> None:
    params = started(small("rank,category", model="mmoe")).start()
    own = {"attributes.category.weight", "attributes.category.bias"}
    for name, modules in SHARINGS.items():
        assert (own <= Sharing(modules).split(params)[0].keys()) == (name == "all-but-users")
    record, _ = fit(small("rank,category", share="item_table,attributes"))
    assert set(record.shared) == {"item_table", *own}


@pytest.mark.parametrize("kind", ["uncertainty", "dwa", "rlw", "gls", "gradnorm", "aggregator"])
@pytest.mark.parametrize("model", ["mf", "mlp"])
def test_loss_weighting_weighs_tasks_about_items_too(kind: str, model: str) -> None:
    client = started(small("rank,category,price", model=model, weighting={"kind": kind}))
    weigher = client.weigher()
    assert weigher is not None
    params, loss, _ = update(client, client.start(), 1, Terms(weigher=weigher))
    assert np.isfinite(loss)
    assert bool(params["attributes.category.weight"].any())
    if kind == "gradnorm":  # the gradients of all tasks are seen, in the item table: every weight moves
        assert bool((weigher.state["weights"] != 1).all())
        assert float(weigher.state["weights"].sum()) == pytest.approx(3)


@pytest.mark.parametrize("method", ["fedavg", "fedprox", "admm", "ditto", "mr-mtl", "local", "pooled"])
def test_every_method_evaluates_tasks_about_items(method: str) -> None:
    record, _ = fit(small("rank,category;films=brand;shop=category,price", method, rounds=1))
    found = {(row["client"], row["task"], row["metric"]) for row in record.clients if row["split"] == "test"}
    expected = {("films", "brand", name) for name in ("accuracy", "logloss")}
    expected |= {("shop", "category", name) for name in ("auc", "ap", "logloss")}
    expected |= {("shop", "price", name) for name in ("mae", "rmse")}
    expected |= {("news", "category", name) for name in ("auc", "ap", "logloss")}
    assert found == expected | {("news", "rank", name) for name in ("ndcg@10", "hr@10")}


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (
            {"content": {"kind": "hashed"}},
            r"^task: category needs answers .*, but items' texts tell categories, found content.kind hashed",
        ),
        (
            {"method": "agreement", "volunteers": 5, "agreement": {"items": 5, "task": "category"}},
            r"^agreement.task: must have one score for a user and an item, found category",
        ),
    ],
)
def test_what_cannot_be_combined_is_refused(fields: dict[str, Any], error: str) -> None:
    with pytest.raises(UserError, match=error):
        small("rank,category,price", **fields)


def test_tasks_about_items_are_stacked() -> None:
    many = small("rank,category", engine="process", partition="one-user", clients=64, market={"users": 70})
    assert len(clients_data(many)) >= MANY
    assert stacked(many)
    assert stacked(small("rank;shop=rank,brand", engine="batched"))


def test_an_attribute_that_the_data_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("user,item,price\n" + "".join(f"u{n % 7},i{n % 5},{n % 5 + 1}\n" for n in range(35)))
    for task, found in (("brand", "price"), ("category", "price")):
        e = build(
            {
                "dataset": "table",
                "data_dir": path,
                "columns": "user=user,item=item,price=price",
                "task": task,
                "clients": 2,
            }
        )
        with pytest.raises(UserError, match=rf"^task {task}: must be a known attribute of the items, found {found}"):
            check(e)


def test_a_run_reports_items_where_it_means_items(tmp_path: Path) -> None:
    out = tmp_path / "run"
    size = ["--market.users", "40", "--market.items", "80", "--market.impressions", "10", "--clients", "3"]
    flags = ["--task", "rank,category,brand,price", "--rounds", "2", "--dim", "4", "--engine", "inline", "--quiet"]
    assert main([*size, *flags, "--compare", "--out", str(out)]) == 0
    items = pd.read_parquet(out / "items.parquet").query("client == 'films'")
    assert set(items["task"]) == {"category", "brand", "price"}
    assert set(pd.read_parquet(out / "users.parquet")["task"]) == {"rank"}
    e = build_of(out)
    data = next(one for one in clients_data(e) if one.name == "films")
    assert set(items["item"]) == set(dataset(e).items["key"].to_numpy()[data.items[data.attributes.test]])
    together = compare(read_run(out), together=True).set_index(["task", "metric"])["client"].to_dict()
    assert together["category", "logloss"] == together["brand", "accuracy"] == together["price", "mae"] == ITEMS
    assert together["rank", "ndcg@10"] == EVERYONE
    assert together["category", "auc"] == CLIENTS  # a mean over names has no values by item
    assert together["price", "rmse"] == ITEMS
    table = compare(read_run(out), together=True).set_index(["task", "metric"])
    every = {i for d in clients_data(build_of(out)) for i in d.items[d.attributes.test].tolist()}
    assert table.loc[("brand", "accuracy"), "users"] == len(every)  # an item of several clients counts once
    page = write_report(out).read_text("utf-8")
    assert f"{(data.attributes.test).sum()} items" in page
    assert "over each client&#39;s items" in page or "over each client's items" in page
    assert "MAE, task price, in units of the logarithm of the price" in page
    with pytest.raises(UserError, match=r"^task: must have one score .* to be taught .*, found category,brand,price"):
        students_of(build_of(out), {}, [])
    assert students_of(build_of(out), {}, ["rank"]).task == "rank"
    got = recommend(out, "films", dataset(build_of(out)).users["key"][data.users[0]], 3)
    assert got.task is not None
    assert got.task.name == "rank"


def build_of(home: Path) -> Experiment:
    """Return the experiment of a run."""
    from clients.recommend import experiment_of

    return experiment_of(home)


def test_nothing_is_recommended_by_what_is_said_of_items(tmp_path: Path) -> None:
    out = tmp_path / "run"
    size = ["--market.users", "20", "--market.items", "40", "--market.impressions", "8", "--clients", "2"]
    flags = ["--task", "category,price", "--rounds", "1", "--dim", "4", "--engine", "inline", "--quiet"]
    assert main([*size, *flags, "--out", str(out)]) == 0
    data = clients_data(build_of(out))[0]
    with pytest.raises(
        UserError, match=r"^task: films must have one that orders items for a user, found category, pri"
    ):
        recommend(out, "films", dataset(build_of(out)).users["key"][data.users[0]], 3)


def test_behaviour_is_what_a_user_did_at_most() -> None:
    # A purchase that no click is recorded for is one all the same.
    data = interactions(
        [(0, 0), (0, 1), (1, 0), (1, 1)], click=[False, True, True, False], buy=[False, False, True, True]
    )
    assert BEHAVIOUR.target(data).argmax(1).tolist() == [0, 1, 2, 2]
    assert BEHAVIOUR.rows(data).all()
    np.testing.assert_allclose(np.exp(BEHAVIOUR.start(data)), [2 / 7, 2 / 7, 3 / 7], rtol=1e-6)
    with pytest.raises(UserError, match=r"^task: must be one of .*, found 'buy'"):
        BEHAVIOUR.target(interactions([(0, 0)], click=[True]))


def test_the_most_frequent_behaviour_of_an_item_is_its_popular_one() -> None:
    # Item 0: viewed, clicked, bought once; item 1: bought twice of 2. Shares are shrunk by 5 rows of (1, 1, 3) / 5.
    data = interactions(
        [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)],
        click=[False, True, True, True, True],
        buy=[False, False, True, True, True],
    )
    popular = PopularityScorer.fit((BEHAVIOUR,), data, 3)
    score = popular.score("behaviour", np.array([0, 0, 0]), np.array([0, 1, 2]))
    expected = [[2 / 8, 2 / 8, 4 / 8], [1 / 7, 1 / 7, 5 / 7], [1 / 5, 1 / 5, 3 / 5]]
    np.testing.assert_allclose(np.exp(score), expected, rtol=1e-6)


@pytest.mark.parametrize("model", KINDS)
def test_every_model_has_three_scores_for_behaviour_and_learns_them(model: str) -> None:
    client = started(small("click,buy,behaviour", model=model, lr=0.05, local_epochs=10, l2=0.0))
    start = client.start()
    assert {name: value.shape for name, value in start.items()} == {
        name: value.shape for name, value in client.shared_like.items()
    } | {name: value.shape for name, value in client.channel.split(start)[1].items()}
    assert start["heads.behaviour.bias"].shape == (3,)
    assert start["heads.click.bias"].shape == (1,)
    params = update(client, start, 1).params
    rows = client.data.train
    target = BEHAVIOUR.target(rows)

    def loss(params: Params) -> tuple[float, float]:
        score = ModelScorer(client.model, params).score("behaviour", rows.user, rows.item)
        found = pointwise(BEHAVIOUR, score, target, rows.user)[0]
        s, y = torch.from_numpy(score), torch.from_numpy(target.argmax(1))
        assert found["logloss"] == pytest.approx(float(F.cross_entropy(s, y)), abs=1e-5)
        assert found["accuracy"] == pytest.approx(float(MulticlassAccuracy(3, average="micro")(s, y)))
        return found["logloss"], found["accuracy"]

    before, after = loss(start), loss(params)
    assert after[0] < 0.9 * before[0]
    assert after[1] >= before[1]


def test_behaviour_is_federated_measured_by_user_and_not_recommended_by(tmp_path: Path) -> None:
    out = tmp_path / "run"
    size = ["--market.users", "30", "--market.items", "40", "--market.impressions", "8", "--clients", "2"]
    flags = ["--task", "behaviour", "--share", "all-but-users", "--rounds", "1", "--dim", "4", "--engine", "inline"]
    assert main([*size, *flags, "--quiet", "--out", str(out)]) == 0
    users = pd.read_parquet(out / "users.parquet").query("client == 'films'")
    assert set(users["metric"]) == {"accuracy", "logloss"}
    e = build_of(out)
    data = clients_data(e)[0]
    assert set(users["user"]) == set(dataset(e).users["key"].to_numpy()[data.users[np.unique(data.test.user)]])
    with pytest.raises(UserError, match=r"^task: films must have one that orders items for a user, found behaviour"):
        recommend(out, "films", dataset(e).users["key"][data.users[0]], 3)


def test_under_privacy_behaviour_starts_with_no_knowledge_of_the_data() -> None:
    e = small("behaviour", privacy={"unit": "client", "where": "client", "epsilon": "8"}, weights="uniform")
    assert started(e).start()["heads.behaviour.bias"].tolist() == [0, 0, 0]
