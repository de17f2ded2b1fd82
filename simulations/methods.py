"""The methods, as values. A method is what its fields say; composing them needs no new class.

The table holds plain fields, so that whoever wants the names need not load what the values are made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from fedrec.federation.methods import TABLE

if TYPE_CHECKING:
    from fedrec.experiment.config import Experiment, Method


class Methods(Mapping[str, "Method"]):
    """The methods by name; a value is made when it is asked for."""

    def __getitem__(self, name: str) -> Method:
        from fedrec.experiment.config import Method

        return Method(method=name, **TABLE[name])

    def __iter__(self) -> Iterator[str]:
        return iter(TABLE)

    def __len__(self) -> int:
        return len(TABLE)

    def __contains__(self, name: object) -> bool:
        return name in TABLE

    def __repr__(self) -> str:
        return f"METHODS({', '.join(TABLE)})"


METHODS = Methods()


def usual(experiment: Experiment) -> Method:
    """Return the method that an experiment names: what its values say is no option that somebody gave."""
    from fedrec.experiment.config import Method

    return METHODS.get(experiment.method, Method())
