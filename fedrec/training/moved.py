"""Parameters that are others' but for some rows, as they lie in memory: what a client's own training left them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrec.keyed import TABLES
from fedrec.params import Params


@dataclass(frozen=True)
class Moved(Mapping[str, Tensor]):
    """Named tensors: those of `base`, with other rows of its tables, and any other parameter whole.

    Many clients may have one base, which like the values must not be changed in place; what is asked for is made anew.
    """

    base: Params
    rows: dict[str, Tensor]  # key space -> [R] ascending rows
    changed: Params  # tables of the base [R, d]; any other parameter whole

    def __getitem__(self, name: str) -> Tensor:
        """Return one parameter."""
        value = self.changed[name]
        part = name in TABLES and name in self.base
        return self.base[name].index_copy(0, self.rows[TABLES[name]], value) if part else value

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self.changed)

    def __len__(self) -> int:
        """Return how many parameters there are."""
        return len(self.changed)

    @property
    def like(self) -> Params:
        """Tensors of the same names and shapes."""
        return {name: self.base.get(name, value) for name, value in self.changed.items()}

    @staticmethod
    def start(base: Params) -> "Moved":
        """Return what is `base` as it is."""
        rows = {TABLES[name]: torch.zeros(0, dtype=torch.int64) for name in base if name in TABLES}
        return Moved(base, rows, {name: value[:0] if name in TABLES else value for name, value in base.items()})

    def tensors(self) -> Params:
        """Return all but the base as named tensors, of which `read` makes it again."""
        rows = {f"rows/{space}": value for space, value in self.rows.items()}
        return rows | {f"changed/{name}": value for name, value in self.changed.items()}

    @staticmethod
    def read(base: Params, tensors: Mapping[str, Tensor]) -> "Moved":
        """Return the inverse of `tensors`."""
        parts: dict[str, Params] = {"rows": {}, "changed": {}}
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            parts[kind][name] = value
        return Moved(base, parts["rows"], parts["changed"])
