"""The sharing contract: split and join are inverse, names match at dots, and nothing else is admitted."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrec.errors import UserError
from fedrec.params import covers
from fedrec.sharing import ContractError, Sharing, admit, admit_metrics, admit_rows

NAMES = st.lists(st.sampled_from(["body", "body2", "head", "0", "1", "10", "weight"]), min_size=1, max_size=3).map(
    ".".join
)
PARAMS = st.dictionaries(NAMES, st.integers(0, 9).map(lambda i: torch.full((2,), float(i))), max_size=8)
MODULES = st.lists(NAMES, max_size=3).map(tuple)


@given(PARAMS, MODULES)
def test_join_inverts_split(params: dict[str, torch.Tensor], modules: tuple[str, ...]) -> None:
    sharing = Sharing(modules)
    shared, private = sharing.split(params)
    assert not shared.keys() & private.keys()
    joined = sharing.join(shared, private)
    assert joined.keys() == params.keys()
    assert all(joined[name] is params[name] for name in params)
    again = sharing.split(joined)
    assert (again[0].keys(), again[1].keys()) == (shared.keys(), private.keys())


@given(PARAMS)
def test_what_is_not_named_is_private(params: dict[str, torch.Tensor]) -> None:
    assert Sharing(()).split(params) == ({}, params)


@pytest.mark.parametrize(
    ("module", "name", "expected"),
    [
        ("body", "body.0.weight", True),
        ("body", "body", True),
        ("body", "body2.weight", False),
        ("body.1", "body.10.weight", False),
        ("body.0", "body.0.weight", True),
        ("0.weight", "body.0.weight", False),
        ("", "body", False),
    ],
)
def test_modules_match_at_dots(module: str, name: str, expected: bool) -> None:
    assert covers((module,), name) is expected


def test_join_refuses_a_parameter_that_is_both() -> None:
    with pytest.raises(ContractError, match=r"^w: .*either shared or private"):
        Sharing.join({"w": torch.zeros(1)}, {"w": torch.zeros(1)})


def test_a_misspelt_module_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"share: .*found 'item_tabel'; did you mean 'item_table'"):
        Sharing(("item_tabel",)).check(["item_table", "heads.rank.weight"])
    Sharing(("item_table", "heads.rank", "body")).check(["item_table", "heads.rank.weight"])


LIKE = {"w": torch.zeros(2, 3), "b": torch.zeros(1)}


def test_admit_returns_what_matches() -> None:
    received = {"b": torch.ones(1), "w": torch.ones(2, 3)}
    assert list(admit(received, LIKE)) == ["w", "b"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"heads.rank": torch.zeros(1)}, r"^heads.rank: must be a shared parameter \(b, w\), found unknown name"),
        ({"w": torch.zeros(3, 2)}, r"^w: must have shape \[2, 3\], found \[3, 2\]"),
        ({"w": torch.zeros(2, 3, dtype=torch.float64)}, r"^w: must have dtype torch.float32, found torch.float64"),
        ({"b": torch.tensor([float("nan")])}, r"^b: every value must be finite, found nan at entry 0"),
        (
            {"w": torch.tensor([[0, 0, 0], [0, float("-inf"), 0]])},
            r"^w: every value must be finite, found -inf at entry 4",
        ),
    ],
)
def test_admit_names_parameter_rule_and_value(change: dict[str, torch.Tensor], text: str) -> None:
    with pytest.raises(ContractError, match=text):
        admit({**{name: value.clone() for name, value in LIKE.items()}, **change}, LIKE)


def test_admit_refuses_a_missing_parameter() -> None:
    with pytest.raises(ContractError, match=r"^b: must be sent, found missing"):
        admit({"w": torch.zeros(2, 3)}, LIKE)


def test_metrics_outside_the_allow_list_are_refused() -> None:
    assert admit_metrics({"loss": 1.0}, ["loss"]) == {"loss": 1.0}
    with pytest.raises(ContractError, match=r"^metric age: must be on the allow-list \(loss\)"):
        admit_metrics({"loss": 1.0, "age": 40.0}, ["loss"])


@pytest.mark.parametrize("ids", [[3, 1], [1, 1], [-1, 2]])
def test_row_ids_must_ascend(ids: list[int]) -> None:
    with pytest.raises(ContractError, match="rows item: must be non-negative and strictly ascending"):
        admit_rows({"item": np.array(ids)})


def test_row_ids_must_be_of_a_known_space_and_type() -> None:
    assert admit_rows({"item": np.array([0, 4])})["item"].tolist() == [0, 4]
    with pytest.raises(ContractError, match="rows genre: must be one of item, pair, probe, user"):
        admit_rows({"genre": np.array([0])})
    with pytest.raises(ContractError, match="rows item: must be a vector of int64, found float64"):
        admit_rows({"item": np.array([0.0])})
