"""A ball around what each client carries, where rows are tied by consensus and clients carry unlike rows.

A row's mean z_S over the clients S that carry it, of mass a_S = sum_{i in S} p_i, becomes z_S a_S / (a_S + t_S) with
t_S = sum_{i in S} t_i: the rows keep their direction. t_i >= 0 is the multiplier of |z_i| <= r over rho, and all of
them minimise the convex sum_S e_S a_S^2 / (a_S + t_S) + r^2 sum_i t_i with e_S = sum |z_S|^2.
"""

import math

import torch
from torch import Tensor

STEPS, ENOUGH = 200, 1e-14


def shrink(square: Tensor, mass: Tensor, member: Tensor, radius: float) -> Tensor:
    """Return the factors a_S / (a_S + t_S) [S] with which every client is within `radius`, and no smaller.

    `square` [S] is e_S, `mass` [S] a_S, and `member` [S, n] is 1 where a client carries the rows of S, else 0. By
    Newton's method on the t_i that are not held at 0, on the arc of its projection (Bertsekas 1982).
    """
    scale, limit = float((square @ member).max()), radius**2
    if scale <= limit:
        return torch.ones_like(mass)
    size = mass.mean()
    square, mass, limit = square / scale, mass / size, limit / scale

    def value(t: Tensor) -> float:
        return float((square * mass.square() / (mass + member @ t)).sum() + limit * t.sum())

    t = torch.zeros(member.shape[1], dtype=torch.float64)
    for _ in range(STEPS):
        total = mass + member @ t
        slope = limit - (square * (mass / total).square()) @ member
        free = (t > 0) | (slope < 0)
        if not free.any() or float(slope[free].abs().max()) <= ENOUGH * max(limit, ENOUGH):
            break
        inside = member[:, free]
        curve = inside.T @ ((2 * square * mass.square() / total**3)[:, None] * inside)
        curve.diagonal().add_(1e-13 * float(curve.diagonal().max()) + 1e-300)  # of clients that carry the same rows
        step = torch.zeros_like(t)
        step[free] = -torch.linalg.solve(curve, slope[free])
        part, here = 1.0, value(t)
        while True:
            new = (t + part * step).clamp(min=0)
            if value(new) <= here + 1e-4 * float(slope @ (new - t)) + 1e-15 * here or part < 1e-18:
                break
            part /= 2
        if torch.equal(new, t):
            break
        t = new
    factor = mass / (mass + member @ t)
    longest = float((square * factor.square() @ member).max())
    return factor * min(1.0, math.sqrt(limit / longest))  # what rounding left outside
