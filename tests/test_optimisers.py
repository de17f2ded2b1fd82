"""Our optimisers are torch's."""

from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrec.errors import UserError
from fedrec.params import Params, clone
from fedrec.training.optimisers import Optimiser, rates


@pytest.mark.parametrize("kind", ["sgd", "adam", "adagrad"])
def test_steps_equal_those_of_torch(kind: str) -> None:
    theirs = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad}[kind]
    target = torch.linspace(-1, 2, 12).reshape(3, 4)
    mine = {"w": torch.zeros(3, 4)}
    other = torch.zeros(3, 4, requires_grad=True)
    reference = theirs([other], lr=0.05)
    optimiser = Optimiser(kind, 0.05)  # type: ignore[arg-type]
    state = optimiser.start(mine)
    for t in range(1, 40):
        optimiser.step(mine, {"w": 4 * (mine["w"] - target) ** 3}, state, t)
        reference.zero_grad()
        ((other - target) ** 4).sum().backward()  # type: ignore[no-untyped-call]
        reference.step()
        assert torch.allclose(mine["w"], other.detach(), atol=1e-6)


PATHS = {"item_table": (3, 2), "heads.rank.weight": (2,), "heads.rank2.weight": (2,), "body.0.bias": (1,)}
RATE = st.floats(1e-3, 1e4, allow_nan=False)


def values(seed: int) -> Params:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=g, dtype=torch.float64) for name, shape in PATHS.items()}


@given(RATE, st.dictionaries(st.sampled_from(["item_table", "heads", "heads.rank", "body"]), RATE), st.integers(0, 9))
def test_a_modules_own_rate_is_a_scale_of_its_gradients_under_sgd(lr: float, lrs: dict[str, float], seed: int) -> None:
    optimiser, grads = Optimiser("sgd", lr, tuple(lrs.items())), values(seed + 100)
    found, expected = values(seed), values(seed)
    optimiser.step(found, grads, {}, 1)
    scaled = {name: g * (optimiser.rate(name) / lr) for name, g in grads.items()}
    Optimiser("sgd", lr).step(expected, scaled, {}, 1)
    assert all(torch.allclose(found[name], expected[name], rtol=1e-9, atol=1e-9) for name in found)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adagrad"])
def test_every_module_steps_as_under_an_optimiser_of_its_own(kind: Literal["sgd", "adam", "adagrad"]) -> None:
    together = Optimiser(kind, 0.1, (("item_table", 3.0), ("heads", 0.02)))
    start = values(0)
    mine, state = clone(start), together.start(start)
    for t in range(1, 5):
        together.step(mine, values(t), state, t)
    for name, rate in {"item_table": 3.0, "heads.rank.weight": 0.02, "body.0.bias": 0.1}.items():
        alone = Optimiser(kind, rate)
        other = {name: start[name].clone()}
        kept = alone.start(other)
        for t in range(1, 5):
            alone.step(other, {name: values(t)[name]}, kept, t)
        assert torch.equal(mine[name], other[name]), name


def test_a_rate_is_matched_at_dots_and_the_longest_path_wins() -> None:
    optimiser = Optimiser("sgd", 1.0, (("heads.rank", 3.0), ("heads", 2.0)))
    found = [optimiser.rate(name) for name in PATHS]
    assert found == [1.0, 3.0, 2.0, 1.0]


def test_rates_are_read_in_order() -> None:
    assert rates("") == ()
    assert rates("item_table=13456, heads.rank = 1e-1") == (("item_table", 13456.0), ("heads.rank", 0.1))
    assert rates("heads=0") == (("heads", 0.0),)


@pytest.mark.parametrize(
    "text", ["item_table", "=1", "item_table=", "item_table=x", "heads=-1", "heads=nan", "heads=inf", "a=1,"]
)
def test_a_rate_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"must be MODULE=RATE parts with finite rates of at least 0, found '"):
        rates(text)


def test_a_module_has_one_rate() -> None:
    with pytest.raises(UserError, match="must name every module once, found 'heads' twice"):
        rates("heads=1,heads=2")
