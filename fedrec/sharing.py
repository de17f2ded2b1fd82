"""The contract: which parameters a client shares, and what a message may carry.

What is not named is private. Tables are shared by global row id, so that clients with different catalogues meet in the
rows that they have in common.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fedrec.data.types import Ints
from fedrec.errors import ContractError as ContractError
from fedrec.errors import choose
from fedrec.keyed import CROSS as CROSS
from fedrec.keyed import GRAM as GRAM
from fedrec.keyed import PAIR, PARAMETERS, TABLES, carrier
from fedrec.keyed import SUMS as SUMS
from fedrec.params import LARGEST, Params, covers, finite
from fedrec.sparse import entries

# What a recommender may have: matrix factorisation has no body and an MLP no biases, adapters and lora need content, a
# sequence encoder takes the place of what is of users, and only multi-task bodies have the rest. The heads of tasks
# about items are `attributes`.
ITEMS = ("item_table", "item_bias", "adapter", "lora", "sums", "item_sums")
BODY = ("body", "sequence")
MIXING = ("experts", "gates", "attention", "stitch", "transfer", "tasks", "extraction")
# What may be sent in the place of the total of sums over pairs of items, see `fedrec.models.summed`.
WEIGHT, SCALE = (f"{SUMS}{name}" for name in ("weight", "scale"))
# Sums in a subspace, see `fedrec.models.projected`: tables with a row for each item, and what is of no item.
ITEM_SUMS = "item_sums."
BASIS, ANSWER, DIAGONAL = (f"{ITEM_SUMS}{name}" for name in ("basis", "answer", "diagonal"))
INNER, RIDGE, EXTENT = (f"{SUMS}{name}" for name in ("inner", "ridge", "extent"))
# Sums of implicit ALS, see `fedrec.models.factors`: what the server solves for, and what clients tell of their users.
FACTORS, SECOND, FIRST, LIKES = (f"{ITEM_SUMS}{name}" for name in ("factors", "second", "first", "likes"))
EVERYTHING, COUNT, EVERYONE, USERS = (f"{SUMS}{name}" for name in ("everything", "items", "everyone", "users"))
OF_ITEMS, OF_USERS = (FACTORS, EVERYTHING, COUNT), (SECOND, FIRST, LIKES, EVERYONE, USERS)
MODULES = (*PARAMETERS, "adapter", "lora", "sums", *BODY, "domain", *MIXING, "towers", "heads", "attributes")
# What clients share, by name: ever more of a model, from what is known of items to all that is neither of users nor of
# one platform: `domain` travels under its own name only.
SHARINGS = {
    "embeddings": ITEMS,
    "shared-body": (*ITEMS, *BODY),
    "all-but-towers": (*ITEMS, *BODY, *MIXING),
    "all-but-heads": (*ITEMS, *BODY, *MIXING, "towers"),
    "all-but-users": (*ITEMS, *BODY, *MIXING, "towers", "heads", "attributes"),
}
# What a message may hold beside what a client's contract says of it.
NAME = 255  # characters of the name of a client or a parameter
METRIC = 3 * NAME  # of a metric, which may be client/task/metric
PARAMETER = re.compile(r"[\w.-]{1,255}")
DEVICE = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
TENSORS = 10_000  # of one message
DIMENSIONS = 8
BYTES = 2**32  # of the tensors of one message
FAR = 1e100  # size of a metric; sums and squares of such are still numbers
EXAMPLES = 1e12  # training rows that a client may say that it has
EXAMPLES_ALONE = frozenset({"examples"})


def is_sum(name: str) -> bool:
    """Return whether a parameter is a sum over users, or what sums are asked for with."""
    return name.startswith((SUMS, ITEM_SUMS))


def filled(values: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Return how many entries of every sum over users are not zero."""
    return {name: int(entries(value).count_nonzero()) for name, value in values.items() if is_sum(name)}


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
    by key space, for newcomers only, who may have others. `targets` are those of tied losses, which a client takes
    out of the values.
    """

    round: int
    values: Params
    keep: bool = False
    split: str = "validation"
    rho: float = 0.0
    seen: int = 0
    control: Params | None = None
    rows: dict[str, Ints] = field(default_factory=dict)
    targets: Params = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
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
            flat = entries(value).reshape(-1)
            position = int((~(flat.abs() <= LARGEST)).to(torch.uint8).argmax())
            worst = float(flat[position])
            rule = f"at most {LARGEST:g} in size" if math.isfinite(worst) else "finite"
            raise ContractError(f"{name}: every value must be {rule}, found {worst} at entry {position}")
    missing = like.keys() - received.keys()
    if missing:
        raise ContractError(f"{min(missing)}: must be sent, found missing")
    return {name: received[name] for name in like}


def admit_round(number: int, rounds: int) -> int:
    """Return the number of a round that a client's own configuration has; raises ContractError for any other."""
    if not 1 <= number <= rounds:
        raise ContractError(f"round: must be from 1 to the {rounds} of the run, found {number}")
    return number


def admit_first(received: Mapping[str, torch.Tensor]) -> Params:
    """Return the tensors that a client joins with if they are such as parameters can be; raises ContractError."""
    for name, value in received.items():
        if not PARAMETER.fullmatch(name):
            raise ContractError(f"{name!a:.80}: a parameter must be named by letters, digits, dots and dashes")
        if value.dtype not in (torch.float32, torch.float64):
            raise ContractError(f"{name}: must be of float32 or float64, found {value.dtype}")
    return admit(received, received)


def admit_start(reply: Contribution, known: dict[tuple[int, int], Params] | None = None) -> Contribution:
    """Return what a client joined with, if its tensors are parameters, its row ids fit them and its examples a number.

    Tensors and ids that are `known`, by their identities, were admitted for another client, and are kept there. Raises
    ContractError.
    """
    key, known = (id(reply.values), id(reply.rows)), {} if known is None else known
    if key not in known:
        admit_first(reply.values)
    examples = admit_metrics(reply.metrics, EXAMPLES_ALONE).get("examples", -1.0)
    if not 0 <= examples <= EXAMPLES:
        raise ContractError(f"examples: must be a number from 0 to {EXAMPLES:g}, found {examples}")
    if key not in known:
        admit_rows(reply.rows)
        carrier(reply.client, reply.values, reply.rows, reply.rows, 1.0)
        known[key] = reply.values
    return reply


def admit_name(what: str, value: object, most: int = NAME) -> str:
    """Return a name: a text of 1 to `most` characters, none of which moves the cursor; raises ContractError."""
    if not isinstance(value, str):
        raise ContractError(f"{what}: must be a text, found {type(value).__name__}")
    if not 0 < len(value) <= most:
        raise ContractError(f"{what}: must have 1 to {most} characters, found {len(value)}")
    if not value.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in value):
        raise ContractError(f"{what}: must have no control characters, found {value[:40]!a}")
    return value


def admit_names(what: str, values: Sequence[object], most: int = NAME) -> list[str]:
    """Return names, see `admit_name`: one after the other only where one of them may be wrong; raises ContractError."""
    texts = [value for value in values if isinstance(value, str)]
    lengths = {len(text) for text in texts} or {1}
    if len(texts) == len(values) and min(lengths) > 0 and max(lengths) <= most and "".join(texts).isprintable():
        return texts
    return [admit_name(what, value, most) for value in values]


def admit_device(value: object) -> str:
    """Return the name of a device, such as cuda:0; raises ContractError."""
    if not isinstance(value, str):
        raise ContractError(f"device: must be a text, found {type(value).__name__}")
    if not DEVICE.fullmatch(value):
        text = f"{len(value)} characters" if len(value) > 64 else ascii(value)
        raise ContractError(f"device: must be 1 to 64 letters, digits, dots, colons and dashes, found {text}")
    return value


def admit_metrics(received: Mapping[str, float], allowed: Iterable[str]) -> dict[str, float]:
    """Return `received` if every name is on the allow-list, else raise ContractError."""
    permitted = allowed if isinstance(allowed, frozenset) else frozenset(allowed)
    for name in received:
        if name not in permitted:
            raise ContractError(f"metric {name}: must be on the allow-list ({', '.join(sorted(permitted))})")
    for name, value in received.items():
        if FAR < abs(value) < math.inf:
            raise ContractError(f"metric {name}: must be at most {FAR:g} in size, found {value}")
    return dict(received)


def admit_told(reply: Contribution, names: frozenset[str]) -> None:
    """Raise ContractError unless an answer to a training round tells all of `names`, as numbers to calculate with."""
    for name in sorted(names):
        value = reply.metrics.get(name)
        if value is None:
            raise ContractError(f"metric {name}: must be sent, found missing")
        if math.isinf(value):
            raise ContractError(f"{name}: must be finite, found {value}")
        if name in ("gap", "mu") and not value >= 0:
            raise ContractError(f"{name}: must be finite and not negative, found {value}")
        if name == "steps" and not (0 <= value < 2**53 and value == int(value)):
            raise ContractError(f"{name}: must be a whole number from 0, found {value}")


def admit_rows(rows: Mapping[str, Ints]) -> dict[str, Ints]:
    """Return `rows` if every id list is a strictly ascending list of non-negative int64 ids of a known key space."""
    spaces = {PAIR, *TABLES.values()}
    for space, ids in rows.items():
        if space not in spaces:
            raise ContractError(f"rows {space}: must be one of {', '.join(sorted(spaces))}")
        if ids.dtype != np.int64 or ids.ndim != 1:
            raise ContractError(
                f"rows {space}: must be a vector of int64, found {ids.dtype} with shape {list(ids.shape)}"
            )
        if len(ids) and (ids[0] < 0 or bool((np.diff(ids) <= 0).any())):
            raise ContractError(f"rows {space}: must be non-negative and strictly ascending, found otherwise")
    return dict(rows)
