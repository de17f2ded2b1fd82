"""Named tensors form a vector space; seeds depend on every part of their scope."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrec.params import add, flatten, norm, subtract, unflatten
from fedrec.rng import derive, generator

SHAPES = st.dictionaries(
    st.text("abc.", min_size=1, max_size=4), st.lists(st.integers(1, 3), max_size=2), min_size=1, max_size=4
)
SCOPES = st.lists(st.one_of(st.text(max_size=3), st.integers(0, 99)), max_size=4)


def drawn(shapes: dict[str, list[int]], seed: int) -> dict[str, torch.Tensor]:
    rng = generator(seed, "test")
    return {name: torch.from_numpy(rng.standard_normal(shape)).reshape(shape) for name, shape in shapes.items()}


@given(SHAPES)
def test_unflatten_inverts_flatten(shapes: dict[str, list[int]]) -> None:
    params = drawn(shapes, 0)
    back = unflatten(flatten(params), params)
    assert list(back) == list(params)
    assert all(torch.equal(back[name], params[name]) for name in params)
    assert abs(norm(params) - float(flatten(params).norm())) < 1e-12


@given(SHAPES)
def test_subtract_undoes_add(shapes: dict[str, list[int]]) -> None:
    a, b = drawn(shapes, 0), drawn(shapes, 1)
    back = subtract(add(a, b), b)
    assert all(torch.allclose(back[name], a[name], atol=1e-12) for name in a)


def test_flatten_of_nothing_is_empty() -> None:
    assert flatten({}).shape == (0,)


@given(SCOPES, SCOPES)
def test_different_scopes_give_different_seeds(a: list[str | int], b: list[str | int]) -> None:
    assert (derive(7, *a) == derive(7, *b)) == (a == b)
    assert 0 <= derive(7, *a) < 2**63


def test_scopes_do_not_meet_by_concatenation() -> None:
    assert derive(0, "a", 12) != derive(0, "a1", 2)
    assert derive(0, "1") != derive(0, 1)
    assert generator(3, "x").integers(0, 2**60) == generator(3, "x").integers(0, 2**60)
