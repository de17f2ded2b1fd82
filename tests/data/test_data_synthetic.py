"""The synthetic market: what is planted is there."""

from __future__ import annotations

import time
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from fedrec.data import Dataset, Market, load
from fedrec.errors import UserError
from fedrec.experiment.config import build
from tests.builders import synthetic


def auc(score: NDArray[np.float64], label: NDArray[np.bool_]) -> float:
    """The probability that a positive scores above a negative (Mann-Whitney)."""
    rank = pd.Series(score).rank().to_numpy()
    n, m = int(label.sum()), int((~label).sum())
    return float((rank[label].sum() - n * (n + 1) / 2) / (n * m))


def matrix(data: Dataset, platform: int) -> NDArray[np.float64]:
    """Clicks of one platform [users, items]: 1, 0, and NaN where an item was not shown."""
    rows = data.interactions[data.interactions["platform"] == platform]
    user = rows["user"].to_numpy() - rows["user"].min()
    clicks = np.full((user.max() + 1, len(data.items)), np.nan)
    clicks[user, rows["item"]] = rows["click"]
    return clicks


def transfer_auc(data: Dataset) -> float:
    """AUC of platform 0's clicks, predicted from item vectors learned on the others: SVD there, a ridge per user here.

    Half of a user's impressions fit his taste, the other half are predicted.
    """
    others = np.concatenate([matrix(data, p) for p in range(1, len(data.platforms))])
    centred = np.nan_to_num(others - np.nanmean(others, axis=1, keepdims=True))
    _, scale, vectors = np.linalg.svd(centred, full_matrices=False)
    k = 6
    features = np.column_stack([centred.mean(0), vectors[:k].T * scale[:k]])
    features = (features - features.mean(0)) / features.std(0)
    score, label = [], []
    for row in matrix(data, 0):
        shown = np.flatnonzero(~np.isnan(row))
        fit, held = shown[::2], shown[1::2]
        x, y = features[fit], row[fit] - row[fit].mean()
        w = np.linalg.solve(x.T @ x + 10 * np.eye(k + 1), x.T @ y)
        score.append(features[held] @ w)
        label.append(row[held] == 1)
    return float(np.mean([auc(s, t) for s, t in zip(score, label, strict=True) if 0 < t.sum() < len(t)]))


def test_same_seed_same_market_and_another_seed_another() -> None:
    a, b, c = (synthetic(platforms=2, seed=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(a.interactions, b.interactions)
    pd.testing.assert_frame_equal(a.users, b.users)
    pd.testing.assert_frame_equal(a.items, b.items)
    assert not a.interactions["item"].equals(c.interactions["item"])


def test_the_frame_is_canonical() -> None:
    data = synthetic(platforms=3, seed=1)
    frame = data.interactions
    assert not frame.duplicated(["platform", "user", "item"]).any()
    pd.testing.assert_frame_equal(frame, frame.sort_values(["platform", "user", "time", "item"]))
    types = {name: str(frame[name].dtype) for name in ("user", "item", "platform", "time", "rating", "positive", "buy")}
    assert types == dict.fromkeys(("user", "item", "platform", "time"), "int64") | {
        "rating": "float32",
        "positive": "bool",
        "buy": "bool",
    }
    assert data.platforms == ("films", "shop", "news")
    assert (frame["user"] // 120 == frame["platform"]).all()
    assert not frame.duplicated(["user", "time"]).any()
    assert data.users["key"].is_unique
    assert data.items["key"].is_unique


def test_behaviours_nest_and_have_their_rates() -> None:
    frame = synthetic(platforms=5, seed=0).interactions
    assert (frame["click"] | ~frame["buy"]).all()
    assert frame["positive"].equals(frame["click"])
    assert frame["rating"].notna().equals(frame["click"])
    assert set(frame["rating"].dropna()) == {1, 2, 3, 4, 5}
    rates = frame.groupby("platform")[["click", "buy"]].mean()
    assert rates["click"].between(0.25, 0.40).all()
    assert rates["buy"].between(0.05, 0.10).all()


def test_each_platform_shows_only_the_catalogue_it_carries() -> None:
    data = synthetic(platforms=5, seed=0)
    for p, name in enumerate(data.platforms):
        carried = data.items[f"carried_{name}"]
        assert 0.8 <= carried.mean() <= 1
        assert carried[data.interactions.loc[data.interactions["platform"] == p, "item"]].all()
    assert not data.items["carried_films"].equals(data.items["carried_shop"])


@pytest.mark.parametrize("similarity", [0.0, 0.7, 1.0])
def test_popularity_is_zipf_in_the_truth_and_skewed_in_the_data(similarity: float) -> None:
    data = synthetic(platforms=2, similarity=similarity, seed=0)
    assert data.truth is not None
    for p in range(2):
        # Sorted from the highest, log popularity is -0.8 log(rank): a line of slope -0.8.
        rank = np.log(np.arange(1, 401))
        np.testing.assert_allclose(np.sort(data.truth.popularity[p])[::-1], -0.8 * rank, atol=1e-12)
        counts = np.bincount(data.interactions.query("platform == @p")["item"], minlength=400)
        assert np.sort(counts)[-80:].sum() > 0.4 * counts.sum()  # a uniform market would give the top fifth 0.2
        # Taste decides too what is shown; were popularity ignored, the correlation of 400 items would be 0 +- 0.05.
        assert np.corrcoef(np.log1p(counts), data.truth.popularity[p])[0, 1] > 0.25


def test_similarity_is_the_planted_correlation() -> None:
    # Both are sqrt(1 - d^2) common + d own with d = 1 - s, so that they correlate by 1 - d^2.
    for similarity, expected in ((0.0, 0.0), (0.5, 0.75), (0.7, 0.91), (1.0, 1.0)):
        data = synthetic(platforms=2, similarity=similarity, seed=0, items=3000)
        assert data.truth is not None
        a, b = (taste.ravel() for taste in data.truth.item_taste)
        assert np.corrcoef(a, b)[0, 1] == pytest.approx(expected, abs=0.03)
    np.testing.assert_array_equal(a, b)
    assert data.truth is not None
    np.testing.assert_array_equal(*data.truth.popularity)


def test_a_conflicting_platform_has_the_clones_tastes_negated() -> None:
    truth = synthetic(platforms=3, similarity=1, conflicting=1, seed=0).truth
    assert truth is not None
    np.testing.assert_array_equal(truth.item_taste[0], truth.item_taste[1])
    np.testing.assert_array_equal(truth.item_taste[0], -truth.item_taste[2])
    # Popularity is reversed by rank: the most popular item is the least popular there.
    np.testing.assert_array_equal(np.argsort(truth.popularity[0]), np.argsort(truth.popularity[2])[::-1])


def test_clones_teach_each_other_and_strangers_do_not() -> None:
    clones = np.mean([transfer_auc(synthetic(platforms=5, similarity=1, seed=s)) for s in range(3)])
    strangers = np.mean([transfer_auc(synthetic(platforms=5, similarity=0, seed=s)) for s in range(3)])
    # About 2,400 clicks and views a market are predicted: the standard error of an AUC is near 0.01.
    assert clones > 0.62
    assert strangers == pytest.approx(0.5, abs=0.03)


def test_the_truth_predicts_clicks() -> None:
    data = synthetic(platforms=2, similarity=0, seed=0)
    assert data.truth is not None
    frame = data.interactions
    user, item, platform = (frame[name].to_numpy() for name in ("user", "item", "platform"))
    liking = (data.truth.user_taste[platform, user] * data.truth.item_taste[platform, item]).sum(1)
    assert auc(liking, frame["click"].to_numpy()) > 0.8


def test_attributes_show_in_clicks() -> None:
    # Mean clicked item taste of a user, along the axes that attributes follow, differs by attribute.
    data = synthetic(platforms=1, users=1000, seed=0)
    assert data.truth is not None
    clicked = data.interactions[data.interactions["click"]]
    taste = pd.DataFrame(data.truth.item_taste[0][clicked["item"]]).groupby(clicked["user"].to_numpy()).mean()
    people = data.users.loc[taste.index]
    assert auc(taste[0].to_numpy(), (people["gender"] == "F").to_numpy()) > 0.65
    assert np.corrcoef(taste[1], people["age"])[0, 1] > 0.25
    assert people["age"].between(18, 80).all()
    assert people["occupation"].nunique() == 6


def test_categories_follow_taste() -> None:
    data = synthetic(platforms=1, similarity=1, items=2000, seed=0)
    assert data.truth is not None
    taste = pd.DataFrame(data.truth.item_taste[0])
    first = data.items["categories"].str.split("|").str[0]
    # Share of variance between categories; 8 of 2000 labels at random would explain 7/1999 = 0.004.
    explained = 1 - (taste - taste.groupby(first).transform("mean")).var().sum() / taste.var().sum()
    assert explained > 0.1


def test_prices_and_brands_follow_the_common_taste() -> None:
    data = synthetic(platforms=1, similarity=1, items=4000, seed=0)
    assert data.truth is not None
    taste = data.truth.item_taste[0]  # of clones it is the common one
    x = np.column_stack([np.ones(len(taste)), taste])
    log_price = np.log(data.items["price"].to_numpy())
    rest = log_price - x @ np.linalg.lstsq(x, log_price)[0]
    # Taste along a unit vector has a variance of 0.25 in the log, give or take the few categories' part; noise 0.0625.
    assert rest.std() == pytest.approx(0.25, rel=0.05)
    assert 1 - rest.var() / log_price.var() == pytest.approx(0.8, abs=0.1)
    assert log_price.mean() == pytest.approx(np.log(20), abs=0.3)
    brand = data.items["brand"]
    assert brand.nunique() == 10
    # Twice as often as the most frequent brand, the nearest centre of tastes is that of the item's own brand.
    centre = pd.DataFrame(taste).groupby(brand).mean()
    nearest = ((taste[:, None] - centre.to_numpy()) ** 2).sum(2).argmin(1)
    assert (centre.index[nearest] == brand).mean() > 2 * brand.value_counts(normalize=True).iloc[0]


def test_prices_and_brands_draw_nothing_that_the_rest_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with_goods = synthetic(platforms=2, seed=3)
    module = import_module("fedrec.data.synthetic")
    monkeypatch.setattr(module, "_goods", lambda taste, seed: pd.DataFrame(index=range(len(taste))))
    without = synthetic(platforms=2, seed=3)
    pd.testing.assert_frame_equal(with_goods.interactions, without.interactions)
    pd.testing.assert_frame_equal(with_goods.users, without.users)
    pd.testing.assert_frame_equal(with_goods.items.drop(columns=["price", "brand"]), without.items)


def test_titles_are_readable_and_unique() -> None:
    titles = synthetic(platforms=1, items=3706, seed=0).items["title"]
    assert titles.is_unique
    assert titles[0].startswith("The Quiet Harbour (")
    assert titles.str.fullmatch(r"The \w+ \w+( \d+)? \([a-z]+\)").all()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"platforms": 0}, "platforms: .* found 0"),
        ({"conflicting": 3}, "conflicting: .* found 3"),
        ({"impressions": 400}, "items: must be at least 500"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, float], named: str) -> None:
    with pytest.raises(UserError, match=named):
        synthetic(**{"platforms": 2, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"similarity": 1.5}, {"similarity": float("nan")}, {"conflicting": -1}, {"users": 0}]
)
def test_fields_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=rf"market\.{name}: .* found {value}"):
        build({"market": wrong})


def test_the_smallest_market_stands() -> None:
    data = synthetic(platforms=1, users=1, items=2, impressions=1)
    assert len(data.interactions) == 1


def test_a_market_of_movielens_1m_size_is_made_in_seconds() -> None:
    start = time.perf_counter()
    data = synthetic(platforms=1, users=6040, items=3706, impressions=166)
    assert len(data.interactions) == 6040 * 166
    assert time.perf_counter() - start < 10


def test_load_gives_a_market_of_the_size_asked_for() -> None:
    data = load("synthetic", data_dir=None, columns="", platforms=7, market=Market(users=10), seed=0)
    assert (len(data.platforms), len(data.users)) == (7, 70)


def test_load_offers_the_nearest_dataset() -> None:
    with pytest.raises(UserError, match=r"dataset: .*did you mean 'synthetic'"):
        load("sythetic", data_dir=None, columns="", platforms=5, market=Market(), seed=0)
    with pytest.raises(UserError, match=r"data-dir: .*needs a file"):
        load("table", data_dir=None, columns="user=u,item=i", platforms=5, market=Market(), seed=0)
