"""What every constraint that is given by its value must satisfy, as tests to inherit."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedrec.params import Params, clone, same
from fedrec.testing.contracts import Rebuilt

SIZES = (0.0, 1e-3, 1.0, 1e3)  # of the entries at which it is asked


class TieContract(Rebuilt):
    """A constraint g by `value(z)`, or a function of z, asked of the blocks `shapes` of some `clients`."""

    field = "tie"
    clients: ClassVar[tuple[str, ...]] = ("films", "shop")
    shapes: ClassVar[Mapping[str, tuple[int, ...]]] = {"item_table": (5, 3), "item_bias": (5, 1)}

    def value(self, z: Mapping[str, Params]) -> Tensor:
        """Return g(z)."""
        own: Any = type(self).component  # of the class: a function would be bound to the suite
        function: Callable[[Mapping[str, Params]], Tensor] = getattr(own, "value", own)
        return function(z)

    def drawn(self, size: float, seed: int = 0) -> dict[str, Params]:
        """Return blocks of every client, of entries about so large."""
        g = torch.Generator().manual_seed(seed)
        return {
            client: {n: size * torch.randn(s, generator=g, dtype=torch.float64) for n, s in self.shapes.items()}
            for client in self.clients
        }

    def slope(self, z: Mapping[str, Params]) -> tuple[Tensor, Tensor]:
        """Return signs w [m], and the slope of w'g in all entries of z, one after the other."""
        leaves = {client: {n: x.clone().requires_grad_() for n, x in part.items()} for client, part in z.items()}
        found = self.value(leaves).reshape(-1)
        w = torch.randint(0, 2, found.shape, generator=torch.Generator().manual_seed(1)).double() * 2 - 1
        flat = [x for part in leaves.values() for x in part.values()]
        grads = torch.autograd.grad(found.double() @ w, flat, allow_unused=True)
        pairs = zip(flat, grads, strict=True)
        return w, torch.cat([(torch.zeros_like(x) if g is None else g).reshape(-1) for x, g in pairs])

    def test_it_is_as_many_finite_numbers_whatever_z(self) -> None:
        """Also where all entries are 0, or large."""
        found = [self.value(self.drawn(size)) for size in SIZES]
        assert all(isinstance(one, Tensor) and bool(one.isfinite().all()) for one in found)
        assert len({one.numel() for one in found}) == 1 and found[0].numel() > 0

    def test_its_slope_is_that_of_its_values(self) -> None:
        """By autograd as by differences, and not 0 everywhere."""
        z, step = self.drawn(1.0), self.drawn(1e-6, seed=1)
        w, slope = self.slope(z)
        ends = [
            {client: {n: x + sign * step[client][n] for n, x in part.items()} for client, part in z.items()}
            for sign in (1, -1)
        ]
        high, low = (float(self.value(end).reshape(-1).double() @ w) for end in ends)
        along = float(slope @ torch.cat([x.reshape(-1) for part in step.values() for x in part.values()]))
        assert bool(slope.isfinite().all()) and bool(slope.any())
        assert abs((high - low) / 2 - along) <= 1e-4 * abs(along) + 1e-9 * (1 + abs(high))

    def test_it_changes_nothing_that_it_is_given(self) -> None:
        """It is a function."""
        z = self.drawn(1.0)
        before = {client: clone(part) for client, part in z.items()}
        first = self.value(z).clone()
        assert all(same(z[client], before[client]) for client in z)
        assert torch.equal(self.value(z), first)
