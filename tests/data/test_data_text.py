"""Hashed words, categories and vectors from files: known answers, unbiased inner products, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError
from safetensors.numpy import save_file

from fedrec.data.text import Content, folded, hashed, item_vectors, multi_hot, slot, tokens
from fedrec.data.types import Dataset
from fedrec.data.vectors import joined, read_vectors, unit_rows
from fedrec.errors import UserError
from tests.builders import synthetic

TEXTS = st.lists(st.text(alphabet="ab cd1.É", max_size=12), min_size=1, max_size=8)
BAGS = st.dictionaries(st.text(max_size=3), st.floats(-9, 9), max_size=6)


def catalogue(titles: list[str], categories: list[str]) -> Dataset:
    keys = [str(row) for row in range(len(titles))]
    items = pd.DataFrame({"key": keys, "title": titles, "categories": categories}, dtype="str")
    return Dataset("some", pd.DataFrame(), pd.DataFrame(), items, ("some",))


def test_a_slot_is_what_blake2b_says() -> None:
    # `printf toy | b2sum -l 128` begins 4039c73c62b2708d ea, that of story 628a391397bb05d4 55. The first eight bytes
    # are a little-endian number, so modulo 256 it is the first; the ninth is even or odd. A salt of zeros is none.
    assert slot("toy", 8) == (0, -1)
    assert slot("toy", 256) == (0x40, -1)
    assert slot("story", 8) == (2, 1)
    assert slot("story", 256) == (0x62, 1)
    assert slot("toy", 256, seed=1) != slot("toy", 256)


def test_tokens_are_lower_cased_words() -> None:
    assert tokens("Toy Story, É (1995)") == ["toy", "story", "é", "1995"]
    assert tokens(" .,") == []


def test_the_weights_are_tf_idf() -> None:
    # n = 2; a is in both texts: ln(3/3) + 1 = 1; b in one, twice: 2 (ln(3/2) + 1).
    d = 1 << 12
    (a, sign_a), (b, sign_b) = slot("a", d), slot("b", d)
    assert a != b
    expected = np.zeros((2, d))
    expected[:, a] = sign_a
    expected[0, b] = sign_b * 2 * (math.log(1.5) + 1)
    expected[0] /= math.hypot(1, 2 * (math.log(1.5) + 1))
    np.testing.assert_allclose(hashed(["b A b", "a"], d), expected, atol=1e-7)


@given(TEXTS, st.integers(1, 40), st.randoms(use_true_random=False))
def test_equal_texts_have_equal_vectors_in_any_order(texts: list[str], d: int, random: object) -> None:
    order = list(range(len(texts)))
    random.shuffle(order)  # type: ignore[attr-defined]
    vectors = hashed(texts, d)
    np.testing.assert_array_equal(hashed([texts[row] for row in order], d), vectors[order])
    for first, text in enumerate(texts):
        np.testing.assert_array_equal(vectors[first], vectors[texts.index(text)])


@given(TEXTS)
def test_a_text_with_a_word_has_norm_one(texts: list[str]) -> None:
    # In 4096 dimensions no two of these few tokens cancel each other.
    norm = np.linalg.norm(hashed(texts, 4096), axis=1)
    np.testing.assert_allclose(norm, [1.0 if tokens(text) else 0.0 for text in texts], atol=1e-6)


@given(BAGS, BAGS, st.integers(1, 9), st.integers(0, 99))
def test_folding_is_linear(x: dict[str, float], y: dict[str, float], d: int, seed: int) -> None:
    total = {token: x.get(token, 0) + 2 * y.get(token, 0) for token in {*x, *y}}
    one, two, both = folded([x, y, total], d, seed)
    np.testing.assert_allclose(both, one + 2 * two, atol=1e-9)


@pytest.mark.parametrize("d", [2, 16])
def test_inner_products_are_unbiased_over_seeds_with_the_variance_of_the_paper(d: int) -> None:
    # Lemma 2 of arXiv 0902.2206: the mean is <x, y>, the variance
    # 1/d sum_{s != t} (x_s^2 y_t^2 + x_s y_s x_t y_t).
    x = {"a": 1.0, "b": 2.0, "c": -1.0, "d": 0.5}
    y = {"a": 1.5, "b": -0.5, "c": -2.0, "e": 1.0}
    u, v = (np.array([bag.get(token, 0.0) for token in "abcde"]) for bag in (x, y))
    variance = ((u**2).sum() * (v**2).sum() + (u @ v) ** 2 - 2 * (u**2 * v**2).sum()) / d
    seeds = 4000
    products = np.array([np.prod(folded([x, y], d, seed), axis=0).sum() for seed in range(seeds)])
    assert abs(products.mean() - u @ v) < 4 * math.sqrt(variance / seeds)
    assert products.var() == pytest.approx(variance, rel=0.15)


def test_categories_are_a_column_each_up_to_the_limit() -> None:
    lists = [["b", "a"], [], ["c"]]
    assert multi_hot(lists, 3).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    np.testing.assert_array_equal(multi_hot(lists, 2), folded([{"a": 1, "b": 1}, {}, {"c": 1}], 2))
    assert multi_hot([[], []], 3).shape == (2, 0)


def test_item_vectors_join_words_and_categories_at_equal_weight() -> None:
    data = catalogue(["One", "Two", "...", "?"], ["x|y", "x|y", "z", ""])
    vectors = item_vectors(data, "hashed", 512)
    assert vectors.shape == (4, 512 + 3)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0], atol=1e-6)
    words = hashed(["One x y", "Two x y", "... z", "? "], 512)
    # The same two categories: cosine 1 there; the joint cosine is the mean of both.
    assert vectors[0] @ vectors[1] == pytest.approx((words[0] @ words[1] + 1) / 2, abs=1e-6)


def test_item_vectors_follow_the_items_and_cannot_be_spoilt() -> None:
    data = synthetic(platforms=1, items=50)
    vectors = item_vectors(data, "hashed", 64)
    mirrored = replace(data, items=data.items.iloc[::-1])
    np.testing.assert_array_equal(item_vectors(mirrored, "hashed", 64), vectors[::-1])
    spoilt = item_vectors(data, "hashed", 64)
    spoilt[:] = 7
    np.testing.assert_array_equal(item_vectors(data, "hashed", 64), vectors)


@pytest.mark.parametrize("wrong", [{"kind": "bert"}, {"dim": 0}, {"width": 3}])
def test_wrong_features_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Content.model_validate(wrong)


ROWS = arrays(
    np.float64, st.tuples(st.just(4), st.integers(1, 5)), elements=st.floats(-1e3, 1e3).map(lambda x: round(x))
)


@given(ROWS, ROWS)
def test_the_cosine_of_joined_modalities_is_the_mean_cosine(a: np.ndarray, b: np.ndarray) -> None:
    a[:, 0], b[:, 0] = 1, 2
    one, two = unit_rows(a).astype(np.float64), unit_rows(b).astype(np.float64)
    both = joined(a, b).astype(np.float64)
    np.testing.assert_allclose(both @ both.T, (one @ one.T + two @ two.T) / 2, atol=1e-6)


def test_an_item_without_a_modality_is_described_by_the_others() -> None:
    assert joined(np.array([[3.0, 4.0]]), np.zeros((1, 2))).tolist() == pytest.approx(np.array([[0.6, 0.8, 0, 0]]))
    assert not joined(np.zeros((1, 2)), np.zeros((1, 1))).any()


VECTORS = {"7": [1.0, 2.0], "NA": [3.0, 4.5], "9": [-1.0, 0.0]}


def write(folder: Path, form: str) -> Path:
    path = folder / f"images.{form}"
    frame = pd.DataFrame([[key, *row] for key, row in VECTORS.items()], columns=["key", "v10", "v2"])
    if form == "safetensors":
        save_file({key: np.array(row, dtype=np.float16) for key, row in VECTORS.items()}, path)
    elif form == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("form", ["csv", "csv.gz", "parquet", "safetensors"])
def test_vectors_are_read_by_key_and_what_is_missing_is_counted(tmp_path: Path, form: str) -> None:
    path = write(tmp_path, form)
    vectors, notes = read_vectors(path, ["NA", "8", "7"])
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[3, 4.5], [0, 0], [1, 2]]
    assert notes == (
        f"{path.name}: 1 of 3 items have no vector and get zeros",
        f"{path.name}: 1 of 3 vectors are of no item and were dropped",
    )
    assert read_vectors(path, list(VECTORS))[1] == ()
    with pytest.raises(UserError, match=r"images.*: key must be that of an item, found none of 2 items"):
        read_vectors(path, ["x", "y"])


BAD = {
    "no key": ("id,a\n1,2\n", "x.csv: must have the column 'key', .* found 1 rows of id, a"),
    "no numbers": ("key\n1\n", "x.csv: must have the column 'key'"),
    "no rows": ("key,a\n", "x.csv: must have .* found 0 rows of key, a"),
    "empty": ("", "x.csv: must be a readable CSV file"),
    "empty key": ("key,a\n1,2\n,3\n", "x.csv, column 'key', row 2: must not be empty"),
    "twice": ("key,a\n1,2\n1,3\n", "x.csv, column 'key', row 2: an item must occur once, found '1'"),
    "text": ("key,a\n1,2\n2,b\n", "x.csv, column 'a', row 2: must be a finite number, found 'b'"),
    "nothing": ("key,a,b\n1,2,\n", "x.csv, column 'b', row 1: must be a finite number"),
    "infinite": ("key,a\n1,inf\n", "x.csv, column 'a', row 1: must be a finite number, found"),
    "too large": ("key,a\n1,1e200\n", "x.csv, column 'a', row 1: must be a finite number, found"),
    "long row": ("key,a\n1,2,3\n", "x.csv: must be a readable CSV file"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_a_wrong_table_is_refused_by_its_place(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_vectors(tmp_path / "x.csv", ["1", "2"])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"1": np.ones(2), "2": np.ones(3)}, r"x.safetensors, tensor '\d': must be a vector as long as the others"),
        ({"1": np.ones((1, 2))}, r"tensor '1': must be a vector as long as the others, found \(1, 2\)"),
        ({"1": np.array([1.0, np.nan])}, "tensor '1': must hold finite numbers"),
        ({}, "must hold at least one tensor"),
    ],
)
def test_wrong_tensors_are_refused(tmp_path: Path, tensors: dict[str, np.ndarray], message: str) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=message):
        read_vectors(tmp_path / "x.safetensors", ["1", "2"])


@pytest.mark.parametrize("name", ["x.csv", "x.parquet", "x.safetensors"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="must be a readable"):
        read_vectors(tmp_path / name, ["1"])
    (tmp_path / name).write_bytes(b"\xff\x00\x01 no such format")
    with pytest.raises(UserError, match=r"must be|must have"):
        read_vectors(tmp_path / name, ["1"])
