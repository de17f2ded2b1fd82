"""The contract: which parameters a client shares, and what a message may carry.

What is not named is private. Tables are shared by global row id, so that clients with different catalogues meet in the
rows that they have in common.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from fedrec.data.types import Ints
from fedrec.errors import choose
from fedrec.parameters import Params, covers, finite

# What is keyed by rows, and the key space of the rows: parameters, and the logits on the public probe.
PARAMETERS = {"item_table": "item", "item_bias": "item", "user_table": "user", "user_bias": "user"}
TABLES = {**PARAMETERS, "logits": "probe"}
# What a recommender may have: matrix factorisation has no body and an MLP no biases, adapters and lora need content, a
# sequence encoder takes the place of what is of users, and only multi-task bodies have the rest. The heads of tasks
# about items are `attributes`.
ITEMS = ("item_table", "item_bias", "adapter", "lora")
BODY = ("body", "sequence")
MIXING = ("experts", "gates", "attention", "stitch", "transfer", "tasks", "extraction")
MODULES = (*PARAMETERS, "adapter", "lora", *BODY, "domain", *MIXING, "towers", "heads", "attributes")
# What clients share, by name: ever more of a model, from what is known of items to all that is neither of users nor of
# one platform: `domain` travels under its own name only.
SHARINGS = {
    "embeddings": ITEMS,
    "shared-body": (*ITEMS, *BODY),
    "all-but-towers": (*ITEMS, *BODY, *MIXING),
    "all-but-heads": (*ITEMS, *BODY, *MIXING, "towers"),
    "all-but-users": (*ITEMS, *BODY, *MIXING, "towers", "heads", "attributes"),
}


class ContractError(ValueError):
    """A message broke the sharing contract; the text names the parameter, the rule and the value found."""


@dataclass(frozen=True)
class Sharing:
    """The shared modules by path; every parameter outside them is private."""

    modules: tuple[str, ...]

    def split(self, params: Mapping[str, torch.Tensor]) -> tuple[Params, Params]:
        """Return (shared, private); `join` is the inverse."""
        shared = {name: value for name, value in params.items() if covers(self.modules, name)}
        private = {name: value for name, value in params.items() if name not in shared}
        return shared, private

    @staticmethod
    def join(shared: Mapping[str, torch.Tensor], private: Mapping[str, torch.Tensor]) -> Params:
        """Return the parameters whose `split` is (shared, private), ordered by name.

        Raises ContractError if a name is in both.
        """
        both = shared.keys() & private.keys()
        if both:
            raise ContractError(f"{min(both)}: a parameter is either shared or private, found in both")
        merged = {**shared, **private}
        return {name: merged[name] for name in sorted(merged)}

    def check(self, names: Iterable[str]) -> None:
        """Raise UserError if a shared module is no part of any recommender: a typo would silently share nothing."""
        known = list(names)
        for module in self.modules:
            if not any(covers((module,), name) for name in known):
                choose("share", module, MODULES)


@dataclass(frozen=True)
class Broadcast:
    """What the server sends to one client: its rows of the shared tables, the other shared tensors, and the round.

    `keep` tells the client that the state it evaluated last is the best so far; `seen` is the round of its last
    contribution that the server took; `rho` is the present penalty where it adapts; `control` is the client's part of
    the server's control variate, for training under SCAFFOLD only; `rows` are the global ids of the rows that are sent,
    by key space, for newcomers only, who may have others.
    """

    round: int
    values: Params
    keep: bool = False
    split: str = "validation"
    rho: float = 0.0
    seen: int = 0
    control: Params | None = None
    rows: dict[str, Ints] = field(default_factory=dict)


@dataclass(frozen=True)
class Contribution:
    """What a client sends back: its shared tensors, metrics from the allow-list, and its device."""

    client: str
    values: Params
    metrics: dict[str, float] = field(default_factory=dict)
    device: str = "cpu"
    rows: dict[str, Ints] = field(default_factory=dict)  # global row ids by key space; sent once, when joining


def admit(received: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor]) -> Params:
    """Return `received` if it has exactly the names, shapes and dtypes of `like` and only finite values.

    Raises ContractError that names the parameter, the rule and the value found.
    """
    for name, value in received.items():
        if name not in like:
            raise ContractError(
                f"{name}: must be a shared parameter ({', '.join(sorted(like)) or 'none'}), found unknown name"
            )
        expected = like[name]
        if value.shape != expected.shape:
            raise ContractError(f"{name}: must have shape {list(expected.shape)}, found {list(value.shape)}")
        if value.dtype != expected.dtype:
            raise ContractError(f"{name}: must have dtype {expected.dtype}, found {value.dtype}")
        if not finite(value):
            position = int((~torch.isfinite(value)).reshape(-1).to(torch.uint8).argmax())
            found = float(value.reshape(-1)[position])
            raise ContractError(f"{name}: every value must be finite, found {found} at entry {position}")
    missing = like.keys() - received.keys()
    if missing:
        raise ContractError(f"{min(missing)}: must be sent, found missing")
    return {name: received[name] for name in like}


def admit_round(number: int, rounds: int) -> int:
    """Return the number of a round that a client's own configuration has; raises ContractError for any other."""
    if not 1 <= number <= rounds:
        raise ContractError(f"round: must be from 1 to the {rounds} of the run, found {number}")
    return number


def admit_metrics(received: Mapping[str, float], allowed: Iterable[str]) -> dict[str, float]:
    """Return `received` if every name is on the allow-list, else raise ContractError."""
    permitted = allowed if isinstance(allowed, frozenset) else frozenset(allowed)
    for name in received:
        if name not in permitted:
            raise ContractError(f"metric {name}: must be on the allow-list ({', '.join(sorted(permitted))})")
    return dict(received)


def admit_rows(rows: Mapping[str, Ints]) -> dict[str, Ints]:
    """Return `rows` if every id list is a strictly ascending list of non-negative int64 ids of a known key space."""
    for space, ids in rows.items():
        if space not in set(TABLES.values()):
            raise ContractError(f"rows {space}: must be one of {', '.join(sorted(set(TABLES.values())))}")
        if ids.dtype != np.int64 or ids.ndim != 1:
            raise ContractError(
                f"rows {space}: must be a vector of int64, found {ids.dtype} with shape {list(ids.shape)}"
            )
        if len(ids) and (ids[0] < 0 or bool((np.diff(ids) <= 0).any())):
            raise ContractError(f"rows {space}: must be non-negative and strictly ascending, found otherwise")
    return dict(rows)
