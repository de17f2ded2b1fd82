"""What a client of a problem of one's own minimises its objective by."""

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]
LocalSolver = Callable[[Loss, Tensor], Tensor]  # (objective, start) -> approximate minimiser


def gradient_steps(steps: int, lr: float) -> LocalSolver:
    """Return a local solver of so many gradient steps of size `lr`."""

    def run(objective: Loss, start: Tensor) -> Tensor:
        theta = start.detach()
        for _ in range(steps):
            leaf = theta.clone().requires_grad_(True)
            (g,) = torch.autograd.grad(objective(leaf), leaf)
            theta = theta - lr * g
        return theta

    return run


def downhill(hessian: Tensor, g: Tensor) -> Tensor:
    """Return H^-1 g; where H is not positive, with the absolute values of its eigenvalues."""
    factor, wrong = torch.linalg.cholesky_ex(hessian)
    if not int(wrong):
        return torch.cholesky_solve(g[:, None], factor)[:, 0]
    values, vectors = torch.linalg.eigh((hessian + hessian.T) / 2)
    sizes = values.abs().clamp(min=1e-8 * float(values.abs().max()))
    found: Tensor = vectors @ ((vectors.T @ g) / sizes)
    return found


def newton(steps: int = 50, tolerance: float = 1e-12) -> LocalSolver:
    """Return a local solver by Newton's method with backtracking; of an objective that is not convex a local minimum.

    It stops when a step is below `tolerance` relative to theta, or the gradient below `tolerance` of the first: after
    one step for a quadratic.
    """

    def run(objective: Loss, start: Tensor) -> Tensor:
        theta, first = start.detach(), 0.0
        for _ in range(steps):
            leaf = theta.clone().requires_grad_(True)
            value = objective(leaf)
            (g,) = torch.autograd.grad(value, leaf, create_graph=True)
            size = float(g.detach().norm())
            if size <= tolerance * first:
                break
            first = first or size
            identity = torch.eye(len(theta), dtype=theta.dtype)
            (hessian,) = torch.autograd.grad(g, leaf, identity, is_grads_batched=True)
            step = downhill(hessian.detach(), g.detach())
            t, before, slope = 1.0, float(value.detach()), float(g.detach() @ step)
            slack = 1e-14 * (1 + abs(before))  # where rounding can tell
            while t > 1e-10 and float(objective(theta - t * step)) > before - 1e-4 * t * slope + slack:  # Armijo
                t /= 2
            theta = theta - t * step
            if float(step.norm()) <= tolerance * (1 + float(theta.norm())):
                break
        return theta

    return run
