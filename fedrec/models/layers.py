"""Layers of networks as pure functions of named parameters, and the sizes of the parameters that they read."""

from collections.abc import Mapping, Sequence
from itertools import count, pairwise, takewhile

from torch import Tensor
from torch.nn import functional as F

from fedrec.params import Params

Sizes = dict[str, tuple[int, ...]]


def ordered(params: Mapping[str, Tensor]) -> list[str]:
    """Return the tasks that parameters are for, in the order of their representations."""
    return sorted(name.split(".")[1] for name in params if name.startswith("heads.") and name.endswith(".bias"))


def linear(params: Params, path: str, h: Tensor) -> Tensor:
    """Return W h + b [B, n_out] of the layer at a path."""
    return F.linear(h, params[f"{path}.weight"], params[f"{path}.bias"])


def depth(params: Params, path: str) -> range:
    """Return the numbers of the layers at a path, all that there are."""
    return range(next(layer for layer in count() if f"{path}.{layer}.weight" not in params))


def mlp(params: Params, path: str, h: Tensor, first: int = 0) -> Tensor:
    """Return h [B, n] after the layers at a path, all that there are from the `first` on, each with ReLU."""
    for layer in depth(params, path)[first:]:
        h = F.relu(linear(params, f"{path}.{layer}", h))
    return h


def networks(params: Params, path: str) -> list[str]:
    """Return the paths of the numbered networks at a path, all that there are: experts, or a basis."""
    return [f"{path}.{k}" for k in takewhile(lambda k: f"{path}.{k}.0.weight" in params, count())]


def layers(path: str, widths: Sequence[int]) -> Sizes:
    """Return the sizes of linear layers between `widths` at a path."""
    return {
        f"{path}.{layer}.{part}": size
        for layer, (n_in, n_out) in enumerate(pairwise(widths))
        for part, size in (("weight", (n_out, n_in)), ("bias", (n_out,)))
    }


def towers(width: int, hidden: tuple[int, ...], tasks: Sequence[str]) -> Sizes:
    """Return the sizes of the tasks' towers over h_t of a width."""
    return {name: size for task in tasks for name, size in layers(f"towers.{task}", (width, *hidden)).items()}
