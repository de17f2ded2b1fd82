"""What a secure sum adds up: every client's tensors in one vector of Z_2^64, at places that all of them agree on.

A client with weight p_i sends p_i x_i and p_i, entry by entry and row by row, so that of the sums one gets the weighted
mean of every row over the clients that carry it, and no client's weight is known.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec.data.types import Ints
from fedrec.errors import UserError
from fedrec.keyed import TABLES
from fedrec.params import Params
from fedrec.privacy.masks import Words
from fedrec.sharing import ContractError, admit_rows

HEAVIEST = 2**24  # the largest weight: 16.7 million examples of a client
FINEST = 40  # binary digits after the point: with a bound up to 2^12 a float64 holds such a number exactly
COARSEST = 12


@dataclass(frozen=True)
class Encoding:
    """Fixed-point numbers: x is the integer round(2^f x), with the largest f at which no sum can wrap.

    The sum of `clients` numbers up to `bound` with weights up to `weight` stays below 2^63 in magnitude, and the mean
    is off by at most 2^-(f+1), whatever the weights. In 32 bits, weights of 20,000 examples would leave x no digits.
    """

    bound: float
    clients: int
    weight: int = HEAVIEST

    def __post_init__(self) -> None:
        if self.digits < COARSEST:
            raise UserError(
                f"secure.bound: must leave {COARSEST} binary digits after the point for {self.clients} clients, found "
                f"{self.bound:g}, which leaves {self.digits}"
            )

    @property
    def digits(self) -> int:
        """The number f of binary digits after the point."""
        largest = math.log2(self.clients) + math.log2(self.weight) + math.log2(self.bound)
        return min(math.floor(62 - largest + 1e-9), FINEST)

    def words(self, x: NDArray[np.float64], weight: int) -> Words:
        """Return p x [P] as words.

        Raises ContractError for a number that is not finite or beyond the bound, without the number: it would travel.
        """
        if not 1 <= weight <= self.weight:
            raise ContractError(f"weight: must be from 1 to {self.weight}, found another")
        if not np.isfinite(x).all():
            raise ContractError("update: every value must be finite, found one that is not")
        if len(x) and np.abs(x).max() > self.bound:
            raise ContractError(f"update: every value must be at most secure.bound {self.bound:g}, found a larger one")
        scaled = np.rint(x * 2.0**self.digits).astype(np.int64)
        return np.asarray((scaled * weight).view(np.uint64))

    def values(self, words: Words) -> NDArray[np.float64]:
        """Return the sum [P] that words stand for."""
        return np.asarray(words.view(np.int64).astype(np.float64) * 2.0**-self.digits)


@dataclass(frozen=True)
class Layout:
    """Where everybody's tensors lie in the vector: names, shapes, and the global row ids of every table by its name.

    First come the entries of all tensors in the order of their names, then their masses: one for each row of a table,
    one for any other tensor. All of it is public. Of a client `ids` are its row ids by key space.
    """

    shapes: dict[str, tuple[int, ...]]
    rows: dict[str, Ints]

    @property
    def size(self) -> int:
        """The number P of entries."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def masses(self) -> int:
        """The number of masses."""
        return sum(self.height(name) for name in self.shapes)

    def height(self, name: str) -> int:
        """Return the number of masses of a tensor."""
        return self.shapes[name][0] if name in TABLES else 1

    def check(self, like: Params) -> None:
        """Raise ContractError if a client's tensors, whose shapes are `like`, have no place in the vector."""
        for name, shape in self.shapes.items():
            if (name in TABLES) != (name in self.rows) or (name in TABLES and shape[:1] != (len(self.rows[name]),)):
                raise ContractError(f"layout {name}: must have a row id for each row of a table, found {list(shape)}")
        for name, value in like.items():
            skip = name in TABLES
            if name in self.shapes and self.shapes[name][skip:] != tuple(value.shape[skip:]):
                raise ContractError(f"layout {name}: must be {list(value.shape)}, found {list(self.shapes[name])}")
        for name, rows in self.rows.items():
            admit_rows({TABLES.get(name, name): rows})

    def inside(self, name: str, ids: Mapping[str, Ints]) -> NDArray[np.bool_]:
        """Return which of a client's rows of a table [rows] have a place; of another tensor [1], whether it has."""
        if name in TABLES:
            return np.isin(ids[TABLES[name]], self.rows.get(name, np.zeros(0, np.int64)))
        return np.full(1, name in self.shapes)

    def lay(self, values: Params, ids: Mapping[str, Ints]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return a client's entries [P], zero where it has none, and which masses [M] are its own."""
        entries, held = [np.zeros(0)], [np.zeros(0, np.bool_)]
        for name, shape in self.shapes.items():
            full, mask = np.zeros(shape), np.zeros(self.height(name), dtype=np.bool_)
            if name in values and name in TABLES:
                inside = self.inside(name, ids)
                places = np.searchsorted(self.rows[name], ids[TABLES[name]][inside])
                full[places], mask[places] = values[name].double().numpy()[inside], True
            elif name in values:
                full, mask[:] = values[name].double().numpy(), True
            entries.append(full.reshape(-1))
            held.append(mask)
        return np.concatenate(entries), np.concatenate(held)

    def take(self, entries: NDArray[np.float64], masses: NDArray[np.float64]) -> tuple[Params, Params]:
        """Return the tensors and their masses of a vector: the inverse of `lay`."""
        values: Params = {}
        mass: Params = {}
        start = first = 0
        for name, shape in self.shapes.items():
            size, height = math.prod(shape), self.height(name)
            values[name] = torch.from_numpy(entries[start : start + size].reshape(shape).copy())
            mass[name] = torch.from_numpy(masses[first : first + height].copy())
            start, first = start + size, first + height
        return values, mass

    def pick(self, entries: NDArray[np.float64], like: Params, ids: Mapping[str, Ints]) -> Params:
        """Return a client's part of a vector [P] in the shapes and dtypes of `like`, zero where it has no place."""
        values, _ = self.take(entries, np.zeros(self.masses))
        part: Params = {}
        for name, value in like.items():
            part[name] = torch.zeros(value.shape, dtype=value.dtype)
            if name in self.rows:
                inside = self.inside(name, ids)
                places = np.searchsorted(self.rows[name], ids[TABLES[name]][inside])
                part[name][torch.from_numpy(inside)] = values[name][torch.from_numpy(places)].to(value.dtype)
            elif name in self.shapes:
                part[name] = values[name].to(value.dtype)
        return part
