"""How rows of tables start: by the text of their key, wherever they stand, and normal."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from clients.client import Client
from fedrec.experiment.holdings import clients_data, keys
from fedrec.keyed import TABLES
from fedrec.models.tables import BLOCK, table_rows
from fedrec.params import Params
from fedrec.rng import normal_rows
from tests.helpers import experiment

TEXTS = st.lists(st.text(max_size=4), unique=True, min_size=1, max_size=2 * BLOCK + 3)


def rows(texts: list[str], seed: int = 0, name: str = "item_table", dim: int = 3) -> np.ndarray:
    return table_rows(seed, name, np.array(texts, object), dim)


@given(TEXTS, st.data(), st.integers(0, 2**40))
def test_a_row_starts_alike_in_any_order_and_among_any_others(texts: list[str], data: st.DataObject, seed: int) -> None:
    whole = dict(zip(texts, rows(texts, seed), strict=True))
    part = data.draw(st.permutations(texts))[: data.draw(st.integers(0, len(texts)))]
    found = rows(part, seed)
    assert found.shape == (len(part), 3) and found.dtype == np.float32
    assert all(np.array_equal(row, whole[text]) for row, text in zip(found, part, strict=True))


def test_a_number_starts_as_its_text() -> None:
    assert np.array_equal(table_rows(1, "user_table", np.array([7, -1]), 4), rows(["7", "-1"], 1, "user_table", 4))


def test_rows_are_a_callers_own() -> None:
    ids = np.arange(3)
    table_rows(0, "item_table", ids, 2, std=1.0)[:] = 7.0
    assert not (table_rows(0, "item_table", ids, 2, std=1.0) == 7.0).any()


def test_another_seed_another_table_and_another_key_give_other_rows() -> None:
    texts = [str(i) for i in range(1000)]
    every = [rows(texts), rows(texts, 1), rows(texts, name="user_table"), rows([f"{text} " for text in texts])]
    every.append(rows([f"{i}\ud800" for i in range(1000)]))  # what is no Unicode is a key too
    flat = np.concatenate(every)
    assert len(np.unique(flat, axis=0)) == len(flat)
    near = np.abs(np.corrcoef(np.stack([one.ravel() for one in every]))) - np.eye(len(every))
    assert near.max() < 4 / math.sqrt(every[0].size)


def test_rows_are_normal_and_their_entries_have_nothing_to_do_with_one_another() -> None:
    n, dim = 4000, 32
    found = rows([f"B{i:09d}" for i in range(n)], dim=dim).astype(np.float64) / 0.1
    error = 1 / math.sqrt(found.size)
    assert abs(found.mean()) < 4 * error and abs(found.var() - 1) < 4 * math.sqrt(2) * error
    assert kstest(found.ravel(), "norm").pvalue > 0.01
    assert kstest(found[:, 0], "norm").pvalue > 0.01 and kstest(found[0], "norm").pvalue > 0.01
    among = np.corrcoef(found.T) - np.eye(dim)
    after = np.corrcoef(found[:-1].ravel(), found[1:].ravel())[0, 1]
    assert np.abs(among).max() < 5 / math.sqrt(n) and abs(after) < 4 * error


def test_the_start_is_what_it_was_in_any_process() -> None:
    """Literal numbers: whoever changes them changes every result, and raises `fedrec.experiment.records.ROW_STARTS`."""
    code = "from fedrec.rng import *; print(normal_rows(7, 'init', 'item_table', keys=['17', ''], width=2).tolist())"
    here = normal_rows(7, "init", "item_table", keys=["17", ""], width=2)
    assert here == pytest.approx(np.array(START), rel=1e-6)
    for hashed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hashed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
        assert done.stdout.strip() == str(here.tolist())


START = [[0.02720751240849495, -0.8980236649513245], [0.2504730820655823, -0.9137126207351685]]


def test_a_node_that_knows_no_more_than_its_own_rows_starts_them_alike(tmp_path: Path) -> None:
    """One file has all platforms; the other has one of them, without most of its users and items."""
    told = [f"u{u},i{(u * 7 + k) % 23},{'ab'[(u + k) % 2]}" for u in range(12) for k in range(9)]
    mine = [line for line in told if line.endswith("b") and line[1] != "1" and ",i2" not in line]
    started: list[dict[str, Params]] = []
    for place, lines in enumerate((told, mine[::-1])):
        path = tmp_path / f"{place}.csv"
        path.write_text("\n".join(["user,item,platform", *lines, ""]))
        columns = "user=user,item=item,platform=platform"
        e = experiment(clients=None, dataset="table", data_dir=path, columns=columns, partition="platform")
        (data,) = (one for one in clients_data(e) if one.name == "b")
        texts = {"user": keys(e)[0][data.users], "item": keys(e)[1][data.items]}
        tables = {name: value for name, value in Client(e, data, "cpu", None).start().items() if name in TABLES}
        started.append({n: dict(zip(texts[TABLES[n]], value, strict=True)) for n, value in tables.items()})
    few, many = started[1], started[0]
    assert {"user_table", "item_table"} <= few.keys() == many.keys()
    for name, table in few.items():
        assert 2 < len(table) < len(many[name])
        assert all(torch.equal(row, many[name][key]) for key, row in table.items())
    places = [list(tables["item_table"]).index("i5") for tables in (few, many)]
    assert places[0] != places[1], "a row that stood in one place would start alike by its place too"
