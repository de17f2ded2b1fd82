"""Client-level privacy of an update: clipped to a norm, and noise on every coordinate.

A client's data moves the sum of the clipped updates by at most the clip norm C, so that the sum with N(0, sigma^2 C^2)
on every coordinate is a Gaussian mechanism with noise multiplier sigma (arXiv 1710.06963). Weights are fixed: what the
sum is divided by depends on public numbers alone.
"""

from collections.abc import Mapping

import torch

from fedrec.keyed import Carrier, add_rows, carried, wide
from fedrec.params import Params, norm, subtract
from fedrec.privacy.noise import Source, add_noise


def clipped(x: Params, z: Params, clip: float) -> Params:
    """Return (x - z) min(1, C / |x - z|), in float64; zero if a value is not finite or no number to train."""
    change = subtract({n: v.detach().to("cpu", torch.float64) for n, v in x.items()}, {n: z[n].double() for n in x})
    if not all(bool(value.isfinite().all()) for value in change.values()):
        return {name: torch.zeros_like(value) for name, value in change.items()}
    size = norm(change)
    return {name: value * min(1.0, clip / size) for name, value in change.items()} if size > 0 else change


def noisy(change: Params, z: Params, std: float, source: Source) -> Params:
    """Return z + change + N(0, std^2) on every coordinate, in the dtypes of z."""
    return {
        name: (z[name].double() + add_noise(value, std, source)).to(z[name].dtype)
        for name, value in sorted(change.items())
    }


def noisy_mean(
    changes: Mapping[str, Params],
    carriers: Mapping[str, Carrier],
    like: Params,
    std: float,
    rate: float,
    source: Source,
) -> Params:
    """Return (sum of the clients' clipped changes + N(0, std^2)) / (rate n), each row with the n clients that carry it.

    `like` are the server's parameters. All clients of the run count in n, drawn or not, answered or not: n is public.
    """
    mean: Params = {}
    for name, value in sorted(like.items()):
        total = torch.zeros(value.shape, dtype=torch.float64)
        for client, who in carriers.items():
            if name in who.like and client in changes:
                add_rows(total, who.part(name), changes[client][name].double())
        held = wide(carried(name, carriers.values(), like).clamp(min=1.0), value)
        mean[name] = add_noise(total, std, source) / (rate * held)
    return mean
