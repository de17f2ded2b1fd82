"""How a client trains in a round, the rows that a step of it sees, and the terms that its objective may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from fedrec.errors import UserError
from fedrec.params import Params
from fedrec.training.optimisers import Optimiser
from fedrec.training.transforms import Transform

Phase = Literal["all", "private", "shared"]


@dataclass(frozen=True)
class Recipe:
    """How a client trains in one round: `epochs` passes for every phase, then it stops."""

    epochs: int
    batch_size: int
    optimiser: Optimiser
    phases: tuple[Phase, ...] = ("all",)
    negatives: Literal["train", "published"] = "train"
    num_negatives: int = 1
    l2: float = 0.0
    mu: float = 0.0  # proximal weight of the shared parameters (FedProx, arXiv 1812.06127, eq. 2)
    hidden: float = 0.0  # probability that the id of a row's item, or of a sampled one, is hidden from the model
    transforms: tuple[Transform, ...] = ()  # of the user's own, of the loss's gradients
    objective: tuple[Objective, ...] = ()  # of the user's own, beside the losses


@dataclass(frozen=True)
class Batch:
    """One minibatch on a device: rows [B], sampled items [B, m] (None without a rank task), per task (mask, target).

    `history` [B, L] is what the row's user had liked before the row, for a model that reads it; `keep` [B, 1 + m] is 0
    where the id of the row's item, or of its m-th sampled one, is hidden from the model; `share` [B] is what a row
    counts in a mean over rows, 0 for padding, which no task's mask has either; None: 1 / B. `weights` [B] multiply the
    losses of a task's rows; None: by 1.
    """

    user: Tensor
    item: Tensor
    negative: Tensor | None
    labels: dict[str, tuple[Tensor, Tensor]]
    history: Tensor | None = None
    keep: Tensor | None = None
    share: Tensor | None = None
    weights: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Reference:
    """What a term may compare with: `scores` of every task by name, and the parameters at the round's `start`.

    Scores are of a batch's rows [B]; of a rank task those of the item and its sampled ones [B, 1 + m], of one about
    items [B, C].
    """

    start: Params
    scores: Callable[[Params, Batch], dict[str, Tensor]]


Term = Callable[..., Tensor]  # (params, batch, reference), as of an `Objective`; ours may ignore what stands behind


class Objective(Protocol):
    """A term of the user's own."""

    def value(self, params: Params, batch: Batch, ctx: Reference) -> Tensor:
        """Return the term at the parameters of one client, for the batch of a step."""


def term(part: Objective) -> Term:
    """Return the term of a part of the user's own; it raises UserError for what is no number."""

    def value(params: Params, batch: Batch, ctx: Reference) -> Tensor:
        result: Any = part.value(params, batch, ctx)
        if not isinstance(result, Tensor) or result.shape:
            shown = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise UserError(f"objective: {type(part).__qualname__} must return a tensor [], found {shown}")
        return result

    return value
