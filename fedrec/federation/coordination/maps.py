"""The maps of a linear tie, A_i theta_i = B_i y: drawn by a named rule, or read from a file."""

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from fedrec.errors import UserError
from fedrec.rng import generator

RULES = ("identity", "orthonormal")


def client_map(rule: str, width: int, client: str, d: int, seed: int) -> Tensor:
    """Return A_i [d, k] of a client whose tables have width d, in float64: a table's rows T meet the others as T A_i.

    `identity`: the first k = `width` columns. `orthonormal`: k orthonormal columns, drawn by seed and client. Otherwise
    the tensor `CLIENT/A` of the safetensors file `rule`. Raises UserError where it does not fit.
    """
    if rule not in RULES:
        a = _tensor(rule, f"{client}/A")
        if a.shape[0] != d:
            raise UserError(
                f"coupling.maps: {client}/A must have a row for each of the {d} columns of its tables, "
                f"found shape {list(a.shape)}"
            )
        return a
    if not 1 <= width <= d:
        raise UserError(f"coupling.width: must be from 1 to the width of {client}'s tables, {d}, found {width}")
    if rule == "identity":
        return torch.eye(d, width, dtype=torch.float64)
    drawn = torch.from_numpy(generator(seed, "map", client).standard_normal((d, width)))
    columns: Tensor = torch.linalg.qr(drawn).Q
    return columns


def server_maps(rule: str, width: int, clients: Sequence[str]) -> tuple[Tensor, ...]:
    """Return every client's B_i [k_i, m] in float64: the tensor `CLIENT/B` of a file, the identity where there is none.

    Raises UserError if a file's maps do not fit: B_i must have a row for each column of A_i, and all of them one width.
    """
    if rule in RULES:
        return tuple(torch.eye(width, dtype=torch.float64) for _ in clients)
    maps: list[Tensor] = []
    for client in clients:
        k = _tensor(rule, f"{client}/A").shape[1]
        maps.append(_tensor(rule, f"{client}/B", torch.eye(k)))
        if maps[-1].shape[0] != k:
            raise UserError(
                f"coupling.maps: {client}/B must have a row for each of the {k} columns of {client}/A, "
                f"found shape {list(maps[-1].shape)}"
            )
        if maps[-1].shape[1] != maps[0].shape[1]:
            raise UserError(
                f"coupling.maps: {client}/B must have {maps[0].shape[1]} columns, as {clients[0]} has, "
                f"found shape {list(maps[-1].shape)}"
            )
    return tuple(maps)


def _tensor(file: str, name: str, default: Tensor | None = None) -> Tensor:
    value = read_maps(file).get(name, default)
    if value is None:
        raise UserError(f"coupling.maps: {file} must hold {name}, found none")
    if value.dim() != 2 or not value.is_floating_point() or not bool(value.isfinite().all()):
        raise UserError(
            f"coupling.maps: {name} must be a matrix of finite floats, found {value.dtype} with shape "
            f"{list(value.shape)}"
        )
    return value.double()


@functools.lru_cache(maxsize=2)
def read_maps(file: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, kept for the process; raises UserError."""
    if not Path(file).is_file():
        raise UserError(f"coupling.maps: must be {', '.join(RULES)} or a safetensors file, found {file!r}")
    try:
        return load_file(file)
    except Exception as error:
        raise UserError(f"coupling.maps: {file} must be a safetensors file, found {error}") from None
