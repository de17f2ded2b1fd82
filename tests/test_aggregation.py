"""The weighted mean: each row over the clients that carry it, exact for equal inputs, in one order."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrec.keyed import Carrier, carrier, catalogue, gather, mean
from fedrec.params import Params
from fedrec.rng import generator
from fedrec.sharing import ContractError

CATALOGUES = st.lists(st.sets(st.integers(0, 12), min_size=1), min_size=1, max_size=5)


def joined(
    catalogues: list[set[int]], seed: int, weights: list[float] | None = None
) -> tuple[list[tuple[Carrier, Params]], np.ndarray]:
    rows = [{"item": np.array(sorted(ids))} for ids in catalogues]
    server = catalogue(rows)
    rng = generator(seed, "test")
    found = []
    for i, one in enumerate(rows):
        values = {
            "item_table": torch.from_numpy(rng.standard_normal((len(one["item"]), 2), dtype=np.float32)),
            "b": torch.ones(1) * i,
        }
        found.append((carrier(f"c{i}", values, one, server, 1.0 if weights is None else weights[i]), values))
    return found, server["item"]


@given(CATALOGUES, st.integers(0, 5))
def test_a_row_is_the_mean_over_its_carriers(catalogues: list[set[int]], seed: int) -> None:
    updates, ids = joined(catalogues, seed, weights := [1.0 + i for i in range(len(catalogues))])
    z = mean(updates)
    for position, item in enumerate(ids):
        carrying = [
            (w, v["item_table"][sorted(c).index(item)])
            for c, w, (_, v) in zip(catalogues, weights, updates, strict=True)
            if item in c
        ]
        expected = sum(w * v.double() for w, v in carrying) / sum(w for w, _ in carrying)
        assert torch.allclose(z["item_table"][position].double(), torch.as_tensor(expected), atol=1e-6)
    share = np.array(weights) / sum(weights)
    assert float(z["b"]) == pytest.approx(float(share @ np.arange(len(weights))), abs=1e-6)


@given(CATALOGUES, st.integers(0, 5))
def test_the_mean_of_what_everybody_agrees_on_is_that_to_the_bit(catalogues: list[set[int]], seed: int) -> None:
    updates, ids = joined(catalogues, seed)
    table = torch.from_numpy(generator(seed, "z").standard_normal((len(ids), 2), dtype=np.float32))
    z = {"item_table": table, "b": torch.tensor([0.1])}
    again = mean([(who, gather(z, who)) for who, _ in updates], z)
    assert all(torch.equal(again[name], z[name]) for name in z)


def test_the_mean_is_of_the_clients_type_or_of_the_one_asked_for() -> None:
    rows = {"item": np.arange(1)}
    values = {"item_table": torch.full((1, 2), 0.1, dtype=torch.float64), "b": torch.tensor([0.1])}
    who = carrier("a", values, rows, rows, 1.0)
    assert {name: v.dtype for name, v in mean([(who, values)]).items()} == {n: v.dtype for n, v in values.items()}
    assert torch.equal(mean([(who, values)])["item_table"], values["item_table"])
    assert {v.dtype for v in mean([(who, values)], dtype=torch.float64).values()} == {torch.float64}


def test_rows_that_nobody_sent_keep_their_value() -> None:
    updates, _ = joined([{0, 1}, {1, 2}], 0)
    z = {"item_table": torch.full((3, 2), 9.0), "b": torch.zeros(1)}
    after = mean(updates[:1], z)
    assert torch.equal(after["item_table"][2], z["item_table"][2])
    assert torch.equal(after["item_table"][:2], updates[0][1]["item_table"])


def test_a_client_without_a_parameter_does_not_weigh_in() -> None:
    rows = {"item": np.array([0])}
    values = [{"heads.rank.bias": torch.tensor([2.0])}, {"heads.buy.bias": torch.tensor([5.0])}]
    updates = [(carrier(str(i), v, rows, rows, 1.0), v) for i, v in enumerate(values)]
    assert {name: float(v) for name, v in mean(updates).items()} == {"heads.rank.bias": 2.0, "heads.buy.bias": 5.0}


def test_a_table_must_come_with_its_row_ids() -> None:
    server = {"item": np.arange(3)}
    with pytest.raises(ContractError, match=r"^item_table: must come with 2 row ids, found 3"):
        carrier("a", {"item_table": torch.zeros(2, 1)}, {"item": np.arange(3)}, server, 1.0)
    with pytest.raises(ContractError, match=r"^item_table: must come with 2 row ids, found none"):
        carrier("a", {"item_table": torch.zeros(2, 1)}, {}, server, 1.0)


@pytest.mark.parametrize("name", ["item_table", "body.0.weight"])
def test_clients_that_disagree_on_a_shape_are_refused(name: str) -> None:
    rows = {"item": np.arange(2)}
    values = [{name: torch.zeros(2, 3)}, {name: torch.zeros(2, 4)}]
    with pytest.raises(ContractError, match=rf"^{name}: must have"):
        mean([(carrier(str(i), v, rows, rows, 1.0), v) for i, v in enumerate(values)])
