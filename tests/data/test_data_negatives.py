"""Training negatives: never a training positive, else uniform, and blind to validation and test."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrec.data import Negatives, excluded, federation
from fedrec.errors import UserError
from tests.builders import synthetic


def pairs(found: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    array = np.asarray(found, dtype=np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


@given(
    n_items=st.integers(1, 12),
    found=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 11)), max_size=60),
    seed=st.integers(0, 2**32),
)
def test_a_draw_is_never_a_positive_unless_the_user_has_them_all(
    n_items: int, found: list[tuple[int, int]], seed: int
) -> None:
    positives = {(u, i % n_items) for u, i in found}
    negatives = Negatives(*pairs(sorted(positives)), n_items)
    users = np.tile(np.arange(8), 5)  # users 6 and 7 have no positive
    items = negatives.draw(users, np.random.default_rng(seed))
    assert items.dtype == np.int64
    assert ((items >= 0) & (items < n_items)).all()
    for u, i in zip(users.tolist(), items.tolist(), strict=True):
        assert (u, i) not in positives or all((u, j) in positives for j in range(n_items))


@given(found=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=40))
def test_order_and_repetition_of_the_pairs_do_not_matter(found: list[tuple[int, int]]) -> None:
    users = np.arange(4).repeat(20)
    a = Negatives(*pairs(found), 10).draw(users, np.random.default_rng(0))
    b = Negatives(*pairs(sorted(set(found))), 10).draw(users, np.random.default_rng(0))
    np.testing.assert_array_equal(a, b)


def test_draws_are_uniform_over_what_is_free() -> None:
    # User 1 may meet the items 1, 3, 4, 6, 9 of 10: 20,000 draws each, chi-squared with 4 degrees of freedom.
    negatives = Negatives(*pairs([(0, 3), (1, 0), (1, 2), (1, 5), (1, 7), (1, 8), (2, 9)]), 10)
    counts = np.bincount(negatives.draw(np.full(100_000, 1), np.random.default_rng(0)), minlength=10)
    assert np.flatnonzero(counts).tolist() == [1, 3, 4, 6, 9]
    assert ((counts[counts > 0] - 20_000) ** 2 / 20_000).sum() < 18.5  # exceeded with probability 0.001


def test_a_user_with_one_free_item_always_gets_it() -> None:
    negatives = Negatives(*pairs([(2, i) for i in range(1000) if i != 617]), 1000)
    assert set(negatives.draw(np.full(50, 2), np.random.default_rng(0)).tolist()) == {617}


def test_the_shape_of_users_is_kept() -> None:
    assert Negatives(*pairs([(0, 1)]), 5).draw(np.zeros((3, 4), dtype=np.int64), np.random.default_rng(0)).shape == (
        3,
        4,
    )


def test_train_draws_the_held_out_items_and_published_does_not() -> None:
    client = federation(synthetic(platforms=1, items=60, seed=0), clients=1, partition="platform")[0]
    assert len(client.items) < 61
    held = {
        (u, i)
        for part in (client.validation, client.test)
        for u, i in zip(part.user[part.positive].tolist(), part.item[part.positive].tolist(), strict=True)
    }
    users = np.tile(np.arange(len(client.users)), 200)
    drawn = {}
    for protocol in ("train", "published"):
        items = excluded(client, protocol).draw(users, np.random.default_rng(0))
        drawn[protocol] = set(zip(users.tolist(), items.tolist(), strict=True))
    # 200 draws from at most 60 items miss a free one with probability (59/60)^200 = 0.035.
    assert len(held & drawn["train"]) > 0.9 * len(held)
    assert not held & drawn["published"]


def test_viewed_but_not_clicked_may_be_drawn() -> None:
    client = federation(synthetic(platforms=1, items=60, seed=0), clients=1, partition="platform")[0]
    viewed = ~client.train.positive
    users = np.tile(np.arange(len(client.users)), 200)
    items = excluded(client, "train").draw(users, np.random.default_rng(0))
    key = client.train.user[viewed] * 60 + client.train.item[viewed]
    assert np.isin(key, users * 60 + items).mean() > 0.9


def test_an_unknown_protocol_is_refused() -> None:
    client = federation(synthetic(platforms=1, seed=0), clients=1)[0]
    with pytest.raises(UserError, match=r"negatives: .*did you mean 'published'"):
        excluded(client, "publishd")  # type: ignore[arg-type]
