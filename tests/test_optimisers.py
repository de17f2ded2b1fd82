"""Our optimisers are torch's."""

import pytest
import torch

from fedrec.optimisers import Optimiser


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
