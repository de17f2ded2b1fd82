"""Fixed-point numbers in Z_2^64 never wrap unseen, and everybody's entries lie at one place."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.errors import UserError
from fedrec.privacy.encoding import COARSEST, FINEST, HEAVIEST, Encoding, Layout
from fedrec.sharing import ContractError

IDS = {"item": np.array([2, 5, 9])}


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_a_weighted_mean_is_off_by_half_a_step_at_most(data: st.DataObject) -> None:
    n, bound = data.draw(st.integers(3, 40)), data.draw(st.sampled_from([0.5, 1.0, 64.0, 4096.0]))
    coding = Encoding(bound, n)
    weights = data.draw(st.lists(st.integers(1, HEAVIEST), min_size=n, max_size=n))
    x = np.array(data.draw(st.lists(st.floats(-bound, bound), min_size=n, max_size=n)))
    total = np.zeros(1, np.uint64)
    for value, p in zip(x, weights, strict=True):
        total += coding.words(np.array([value]), p)
    # The reference sums in Python's integers and fractions, which are exact.
    exact = sum(round(float(v) * 2**coding.digits) * p for v, p in zip(x, weights, strict=True))
    assert int(total.view(np.int64)[0]) == exact
    mean = float(coding.values(total)[0]) / sum(weights)
    assert abs(mean - math.fsum(float(v) * p for v, p in zip(x, weights, strict=True)) / sum(weights)) <= (
        2.0 ** -(coding.digits + 1) + 1e-15 * bound
    )


@pytest.mark.parametrize("clients", [3, 5, 1000])
@pytest.mark.parametrize("weight", [1, HEAVIEST])
@pytest.mark.parametrize("bound", [1.0, 64.0])
def test_the_largest_sum_there_is_does_not_wrap_and_one_more_digit_might(
    clients: int, weight: int, bound: float
) -> None:
    coding = Encoding(bound, clients, weight)
    for sign in (1.0, -1.0):
        total = coding.words(np.array([sign * bound]), weight) * np.uint64(clients)
        assert coding.values(total)[0] == sign * bound * weight * clients
    assert coding.digits == FINEST or 2 * clients * weight * bound * 2.0**coding.digits >= 2**62


def test_the_default_leaves_a_float32_its_digits() -> None:
    """5 clients, bound 64: 62 - log2(5 * 2^24 * 64) = 29.7, so that 29 digits are left, and an error of 10^-9."""
    assert Encoding(64.0, 5).digits == 29 and Encoding(64.0, 5, 1).digits == FINEST


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ContractError, match="must be finite"):
        Encoding(64.0, 5).words(np.array([0.0, value]), 1)


def test_what_is_beyond_the_bound_is_refused_and_not_told() -> None:
    with pytest.raises(ContractError, match=r"at most secure.bound 64, found a larger one") as caught:
        Encoding(64.0, 5).words(np.array([0.0, -64.125]), 1)
    assert "64.125" not in str(caught.value)


@pytest.mark.parametrize("weight", [0, -1, HEAVIEST + 1])
def test_a_weight_beyond_its_bound_is_refused(weight: int) -> None:
    with pytest.raises(ContractError, match="weight"):
        Encoding(64.0, 5).words(np.zeros(1), weight)


def test_a_bound_that_leaves_no_digits_is_refused() -> None:
    with pytest.raises(UserError, match=f"secure.bound: must leave {COARSEST} binary digits"):
        Encoding(1e9, 5)


def layout() -> Layout:
    rows = np.array([2, 4, 9])
    return Layout({"body": (2, 2), "item_bias": (3, 1), "item_table": (3, 2)}, {"item_bias": rows, "item_table": rows})


def values() -> dict[str, torch.Tensor]:
    return {
        "body": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "heads": torch.tensor([9.0]),
        "item_table": torch.tensor([[20.0, 21.0], [50.0, 51.0], [90.0, 91.0]]),
    }


def test_entries_lie_at_their_rows_and_zero_elsewhere() -> None:
    x, held = layout().lay(values(), IDS)
    assert x.tolist() == [1, 2, 3, 4, 0, 0, 0, 20, 21, 0, 0, 90, 91] and layout().size == 13
    assert held.tolist() == [True, False, False, False, True, False, True] and layout().masses == 7
    found, mass = layout().take(x, held.astype(np.float64))
    assert found["item_table"].tolist() == [[20, 21], [0, 0], [90, 91]] and mass["item_table"].tolist() == [1, 0, 1]
    assert found["body"].tolist() == [[1, 2], [3, 4]] and mass["body"].tolist() == [1]


def test_a_client_picks_its_part_and_knows_what_has_no_place() -> None:
    x, _ = layout().lay(values(), IDS)
    mine = layout().pick(x, values(), IDS)
    assert mine["item_table"].tolist() == [[20, 21], [0, 0], [90, 91]] and mine["heads"].tolist() == [0]
    inside = {name: layout().inside(name, IDS).tolist() for name in values()}
    assert inside == {"body": [True], "heads": [False], "item_table": [True, False, True]}


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (Layout({"body": (4,)}, {}), "body"),
        (Layout({"item_table": (3, 5)}, {"item_table": np.array([1, 2, 3])}), "item_table"),
        (Layout({"item_table": (3, 2)}, {"item_table": np.array([1, 2])}), "row id for each row"),
        (Layout({"item_table": (3, 2)}, {}), "row id for each row"),
        (Layout({"body": (2, 2)}, {"body": np.array([1, 2])}), "row id for each row"),
        (Layout({"item_table": (2, 2)}, {"item_table": np.array([2, 1])}), "ascending"),
        (Layout({"item_table": (2, 2)}, {"item_table": np.array([-1, 1])}), "non-negative"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(wrong: Layout, text: str) -> None:
    with pytest.raises(ContractError, match=text):
        wrong.check(values())


def test_an_empty_layout_holds_nothing() -> None:
    x, held = Layout({}, {}).lay(values(), IDS)
    assert len(x) == len(held) == 0
