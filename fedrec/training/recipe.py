"""How a client trains in a round, and the rows that a step of it sees."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fedrec.optimisers import Optimiser
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


@dataclass(frozen=True)
class Batch:
    """One minibatch on a device: rows [B], sampled items [B, m] (None without a rank task), per task (mask, target).

    `history` [B, L] is what the row's user had liked before the row, for a model that reads it; `keep` [B, 1 + m] is 0
    where the id of the row's item, or of its m-th sampled one, is hidden from the model; `share` [B] is what a row
    counts in a mean over rows, 0 for padding, which no task's mask has either; None: 1 / B.
    """

    user: Tensor
    item: Tensor
    negative: Tensor | None
    labels: dict[str, tuple[Tensor, Tensor]]
    history: Tensor | None = None
    keep: Tensor | None = None
    share: Tensor | None = None
