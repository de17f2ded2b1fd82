"""Named tensors: the vector-space operations that the other rooms need."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fedrec.sparse import entries, equal, plus

Params = dict[str, Tensor]
PART = 2**24  # entries that are squared at a time, to bound memory
# What a parameter may be at most: no recommender comes near, and squares of it summed over any table stay far below the
# largest number in single precision (3e38).
LARGEST = 1e12


def covers(modules: Iterable[str], name: str) -> bool:
    """Return whether a module names `name`, matched at dots: `body` covers `body.0.weight`, never `body2.weight`."""
    return any(name == module or name.startswith(module + ".") for module in modules)


def clone(params: Mapping[str, Tensor]) -> Params:
    """Return a copy that shares no memory with `params`."""
    return {name: value.detach().clone() for name, value in params.items()}


def add(a: Mapping[str, Tensor], b: Mapping[str, Tensor], scale: float = 1.0) -> Params:
    """Return a + scale * b, over the names of `a`; both carry the same names and shapes."""
    return {name: plus(value, b[name], scale) for name, value in a.items()}


def subtract(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Params:
    """Return a - b, over the names of `a`."""
    return add(a, b, -1.0)


def mix(share: Mapping[str, float], v: Mapping[str, Tensor], w: Mapping[str, Tensor]) -> Params:
    """Return a v + (1 - a) w with the share a of each parameter, over the names of `v`; of a = 1 it is v itself."""
    return {n: x if share[n] == 1 else share[n] * x + (1 - share[n]) * w[n] for n, x in v.items()}


def norm(params: Mapping[str, Tensor]) -> float:
    """Return the Euclidean norm of all entries together, summed in float64."""
    parts = (part for value in params.values() for part in torch.split(entries(value).reshape(-1), PART))
    return math.sqrt(math.fsum(float(part.double().square().sum()) for part in parts))


def finite(value: Tensor) -> bool:
    """Return whether every entry is a number of at most LARGEST in size; an empty tensor has none that is not."""
    found = entries(value)
    if not found.numel():
        return True
    low, high = found.aminmax()  # either is NaN if an entry is
    return low.item() >= -LARGEST and high.item() <= LARGEST


def flatten(params: Mapping[str, Tensor]) -> Tensor:
    """Return all entries as one vector [P], in the order of the sorted names."""
    if not params:
        return torch.zeros(0)
    return torch.cat([params[name].reshape(-1) for name in sorted(params)])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> Params:
    """Return the inverse of `flatten` for the names and shapes of `like`."""
    sizes = {name: like[name].numel() for name in sorted(like)}
    if sum(sizes.values()) != vector.numel():
        raise ValueError(f"vector: must have {sum(sizes.values())} entries, found {vector.numel()}")
    parts = dict(zip(sizes, torch.split(vector, list(sizes.values())), strict=True))
    return {name: parts[name].reshape(value.shape) for name, value in like.items()}


def to(params: Mapping[str, Tensor], device: str) -> Params:
    """Return the same values on `device`."""
    return {name: value.to(device) for name, value in params.items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Return whether the names and all entries are equal."""
    return a.keys() == b.keys() and all(equal(value, b[name]) for name, value in a.items())
