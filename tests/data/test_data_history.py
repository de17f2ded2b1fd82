"""Histories: what was liked strictly before a row, in the split's order, by a loop; and nothing that is held out."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.data import ClientData, Interactions, before, latest, pool
from fedrec.data.history import sequences
from fedrec.data.split import chance, concatenate
from tests.builders import client, interactions

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 2), st.booleans()), max_size=20)


def clients(rows: list[tuple[int, int, int, bool]]) -> ClientData:
    """Return a client of (user, item, time, positive), each (user, item) once; one half in validation."""
    once = list({(user, item): (user, item, time, good) for user, item, time, good in rows}.values())
    made = interactions([row[:2] for row in once], positive=[row[3] for row in once])
    made = replace(made, time=np.array([row[2] for row in once], np.int64))
    half = np.arange(len(once)) % 2 == 0
    found = client(made.take(half), made.take(~half), users=4, items=6)
    return replace(found, users=np.array([2, 3, 7, 11]), items=np.array([1, 4, 5, 9, 20, 30]))


def key(data: ClientData, rows: Interactions, row: int, seed: int) -> tuple[int, float]:
    """Return what orders a user's rows: the time, then chance by global ids."""
    pair = data.users[rows.user[[row]]], data.items[rows.item[[row]]]
    return int(rows.time[row]), float(chance(*pair, seed)[0])


def liked(data: ClientData, rows: Interactions, user: int, seed: int) -> list[tuple[tuple[int, float], int]]:
    mine = [row for row in range(len(rows)) if rows.user[row] == user and rows.positive[row]]
    return sorted((key(data, rows, row, seed), int(rows.item[row])) for row in mine)


def padded(items: list[int], length: int) -> list[int]:
    return ([-1] * length + items)[-length:]


@settings(deadline=None)
@given(ROWS, st.integers(1, 5), st.integers(0, 3))
def test_a_training_row_has_what_its_user_liked_in_training_strictly_before_it(
    rows: list[tuple[int, int, int, bool]], length: int, seed: int
) -> None:
    data = clients(rows)
    found = before(data, length, seed).take(np.arange(len(data.train)))
    assert found.shape == (len(data.train), length)
    for row in range(len(data.train)):
        mine, now = liked(data, data.train, int(data.train.user[row]), seed), key(data, data.train, row, seed)
        assert found[row].tolist() == padded([item for when, item in mine if when < now], length)


@settings(deadline=None)
@given(ROWS, st.integers(1, 5), st.integers(0, 3))
def test_a_user_who_is_asked_has_what_is_known_and_nothing_that_is_held_out(
    rows: list[tuple[int, int, int, bool]], length: int, seed: int
) -> None:
    data = clients(rows)
    empty = data.train.take(np.zeros(0, np.int64))
    both = concatenate([data.train, data.validation])
    for known, every in ((data.known("validation"), data.train), (data.known("test"), both), ([empty], empty)):
        found = latest(data, known, length, seed).take(np.arange(4))
        expected = [padded([item for _, item in liked(data, every, user, seed)], length) for user in range(4)]
        assert found.tolist() == expected
        again = latest(data, known, length, seed).at(np.array([3, 3, 0], np.int64)).take(np.arange(3))
        assert again.tolist() == [expected[3], expected[3], expected[0]]
        whole = sequences(data, known, seed)
        every_user = [whole.item[a:b].tolist() for a, b in pairwise(whole.start.tolist())]
        assert every_user == [[item for _, item in liked(data, every, user, seed)] for user in range(4)]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_the_rows_and_pooling_move_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = clients([(int(u), int(i), 0, True) for u, i in rng.integers(0, 4, (30, 2))])
    shuffled = rng.permutation(len(data.train))
    other = replace(data, train=data.train.take(shuffled))
    rows = np.arange(len(data.train))
    assert np.array_equal(before(other, 3, seed).take(rows), before(data, 3, seed).take(rows)[shuffled])
    pooled = pool([replace(data, validation=data.validation.take(np.zeros(0, np.int64)))])
    mine = dict(zip(zip(data.train.user, data.train.item, strict=True), rows, strict=True))
    where = np.array([mine[pair] for pair in zip(pooled.train.user, pooled.train.item, strict=True)])
    assert np.array_equal(before(pooled, 3, seed).take(rows), before(data, 3, seed).take(rows)[where])
