"""A task: which label a head predicts, by which loss and weight; and the grammar that names tasks per client."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fedrec.components import PATH, make, number, per_client, read, split_at
from fedrec.data.types import Attributes, Bools, Floats, Interactions, known_column
from fedrec.errors import UserError, choose
from fedrec.metrics import Values

Loss = Literal["bpr", "bce", "mse", "ce", "own"]
Kind = Literal["rank", "rating", "binary", "multi-label", "multi-class", "value", "own"]
NOTHING = Attributes()


@dataclass(frozen=True)
class Task:
    """One head of a client: `rank` (bpr or bce with sampled negatives), `rating` (mse) or a binary label (bce).

    Or an attribute of items, which a head on q_i tells: `category` (bce), `brand` (ce) or `price` (mse). It learns from
    the items of the training rows, of those that `Attributes` gives to training.

    Or `behaviour` (ce), what a user did with an item at most: no more than viewed it, clicked or bought it.

    Or one of the user's own, the component that `part` stands for: `target(data)` is a number for each row, NaN where
    there is nothing to learn, and `loss(score, target)` what a row [B] costs. It may have `metrics(score, target)`,
    values [n] by name beside its loss, and `baseline(mean)`, the score that says a mean target: that itself without it.
    """

    name: str
    kind: Kind
    loss: Loss
    weight: float = 1.0
    part: str = ""

    @property
    def own(self) -> Any:
        """The component of a task of the user's own."""
        return make("task", self.part)

    @property
    def attribute(self) -> bool:
        """Whether it is about items, whoever meets them."""
        return self.name in ATTRIBUTES

    @property
    def classes(self) -> int:
        """How many scores its head on h has, as classes of an interaction; 0 for the one score of any other task."""
        return BEHAVIOURS if self.name == "behaviour" else 0

    @property
    def prior(self) -> float:
        """What the head's bias starts with where nothing may be known of the data: the middle of five stars, or 0."""
        return 3.0 if self.kind == "rating" else 0.0

    def rows(self, data: Interactions, about: Attributes = NOTHING) -> Bools:
        """Return the mask [n] of the interactions that this task learns from; `about` are the client's items."""
        if self.attribute:
            return (about.train & about.known(self.name))[data.item]
        if self.kind == "rank":
            return data.positive
        if self.kind in ("rating", "own"):
            return np.isfinite(self._values(data))
        if self.classes:  # who bought has done the most that there is
            return data.known("buy") & (data.known("click") | self._label(data, "buy"))
        return data.known(self.name)

    def target(self, data: Interactions, about: Attributes = NOTHING) -> Floats:
        """Return the target [n]: 1 for rank, the rating (0 where masked out), or the binary label.

        Of an attribute [n, C], 0 where it is not known; of behaviour [n, 3], 1 in the column of what was done.
        """
        if self.attribute:
            return np.nan_to_num(about.values[self.name])[data.item]
        if self.classes:
            click, buy = (self._label(data, name) for name in ("click", "buy"))
            return np.eye(self.classes, dtype=np.float32)[np.where(buy, 2, np.where(click, 1, 0))]
        if self.kind == "rank":
            return np.ones(len(data), dtype=np.float32)
        if self.kind == "rating":
            return np.nan_to_num(data.rating).astype(np.float32)
        if self.kind == "own":  # what is masked out must have a loss too: it is multiplied by 0
            values, known = self._values(data), self.rows(data)
            return np.where(known, values, values[known].mean() if known.any() else 1).astype(np.float32)
        return self._label(data, self.name).astype(np.float32)

    def _values(self, data: Interactions) -> Floats:
        if self.kind == "rating":
            return data.rating
        return numbers(f"task {self.part}: target", self.own.target(data), len(data)).astype(np.float32)

    def _label(self, data: Interactions, name: str) -> Bools:
        if name not in data.labels:
            choose(
                "task", name, ["rank", "rank-bce", "rating", *data.labels.keys() - set(map(known_column, data.labels))]
            )
        return data.labels[name]

    def start(self, data: Interactions) -> float | Floats:
        """Return the head's initial bias: `offset`, or of behaviour the logarithms of the shares [3]."""
        return log_shares(self.target(data)[self.rows(data)]) if self.classes else self.offset(data)

    def offset(self, data: Interactions) -> float:
        """Return the bias that a head of one score starts with: the mean rating, the logit of the base rate, or 0."""
        mask = self.rows(data)
        if self.kind == "rank" or not mask.any():
            return 0.0
        mean = float(self.target(data)[mask].mean(dtype=np.float64))
        if self.kind in ("rating", "own"):
            return float(self.said(mean))
        mean = min(max(mean, 1e-3), 1 - 1e-3)
        return float(np.log(mean / (1 - mean)))

    def said(self, mean: Any) -> Any:
        """Return the score that says a mean number: that itself, or the `baseline` of a task of the user's own."""
        return self.own.baseline(mean) if self.part and hasattr(self.own, "baseline") else mean

    def measured(self, score: Floats, target: Floats) -> dict[str, Values]:
        """Return what a task of the user's own measures of rows [n]: its loss, and its metrics; raises UserError."""
        where, each = f"task {self.part}", task_loss(self, torch.from_numpy(score), torch.from_numpy(target), None)
        extra = self.own.metrics(score, target) if hasattr(self.own, "metrics") else {}
        for name in extra:
            choose(f"{where}: metric", name, BY_ROW)
        return {name: numbers(f"{where}: {name}", v, len(score)) for name, v in {"loss": each, **extra}.items()}

    def usual(self, about: Attributes) -> Floats:
        """Return what the head of an attribute starts with, and says of every item [C]: what is usual in training.

        The logits of the rates of a category's names, the log shares of a brand's (one item added to each), or the
        mean. Raises UserError for an attribute that the items do not have.
        """
        if self.name not in about.values:
            names = ", ".join(sorted(about.values)) or "none"
            raise UserError(f"task {self.name}: must be a known attribute of the items, found {names}")
        value = about.values[self.name][about.train & about.known(self.name)].astype(np.float64)
        if self.kind == "multi-class":
            return log_shares(value)
        mean = value.mean(0) if len(value) else np.zeros(value.shape[1])
        if self.kind == "multi-label":
            mean = np.clip(mean, 1e-3, 1 - 1e-3)
            mean = np.log(mean / (1 - mean))
        return mean.astype(np.float32)


def numbers(thing: str, values: Any, rows: int) -> Values:
    """Return what the user's own code says of rows [rows]; raises UserError for anything but a number of each."""
    array = np.asarray(values)
    if array.shape != (rows,) or array.dtype.kind not in "fiub":
        raise UserError(f"{thing} must be a number for each of {rows} rows, found {array.dtype} {list(array.shape)}")
    return array.astype(np.float64)


def log_shares(rows: NDArray[np.floating]) -> Floats:
    """Return the logarithms of the classes' shares [C] of rows [n, C], one row added to each."""
    logs: Floats = np.log((rows.sum(0, dtype=np.float64) + 1) / (len(rows) + rows.shape[1])).astype(np.float32)
    return logs


BEHAVIOURS = 3  # view, click, buy
BY_ROW = ("mae", "logloss", "accuracy")  # what a task of the user's own may measure beside its loss, by row
ATTRIBUTES = ("category", "brand", "price")  # what is public of items
OURS: dict[str, tuple[str, Kind, Loss]] = {
    "rank": ("rank", "rank", "bpr"),
    "rank-bce": ("rank", "rank", "bce"),
    "rating": ("rating", "rating", "mse"),
    "behaviour": ("behaviour", "multi-class", "ce"),
    "category": ("category", "multi-label", "bce"),
    "brand": ("brand", "multi-class", "ce"),
    "price": ("price", "value", "mse"),
}


def task_loss(task: Task, score: Tensor, target: Tensor, negative: Tensor | None) -> Tensor:
    """Return the loss of every row [B].

    `score` [B] is the head's output for the row's item, `negative` [B, m] for m sampled items (rank only).
    bpr: -mean_m log sigmoid(s - s_m) (arXiv 1205.2618, eq. 5); bce: binary cross entropy, for rank summed over the
    positive and its negatives; mse: squared error. Of an attribute, `score` and `target` are [B, C]: bce and mse are
    means over C, ce is the cross entropy of the softmax, of behaviour too. Raises UserError for a loss
    of the user's own that is no tensor [B].
    """
    if task.part:
        loss = task.own.loss(score, target)
        if not isinstance(loss, Tensor) or loss.shape != score.shape:
            kind = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise UserError(f"task {task.part}: loss must return a tensor {list(score.shape)}, found {kind}")
        return loss
    if task.loss == "ce":
        return score.logsumexp(-1) - (target * score).sum(-1)
    if task.attribute:
        each = (score - target).square() if task.loss == "mse" else F.softplus(score) - target * score
        return each.mean(-1)
    if task.loss == "mse":
        return (score - target).square()
    if task.kind == "rank":
        assert negative is not None
        if task.loss == "bpr":
            return F.softplus(negative - score.unsqueeze(-1)).mean(-1)
        return F.softplus(-score) + F.softplus(negative).sum(-1)
    return F.softplus(score) - target * score


def parse_task(text: str) -> Task:
    """Return the task that `NAME` or `NAME*WEIGHT` names: rank, rank-bce, rating, an attribute, or a binary label.

    Or one of the user's own, by path, which is not imported; its head has the name of its class.
    """
    name, *weights = split_at(text.strip(), "*")
    name, weight_text = name.rstrip(), "*".join(weights).strip()
    weight = number(weight_text) if weights else 1.0
    if not 0 < weight < np.inf:
        raise UserError(f"task {name}: the weight must be a positive and finite number, found {weight_text!r}")
    if ":" in name:
        use = read(name).use
        called = use.rpartition(":")[2]
        if not PATH.fullmatch(use):
            raise UserError(f"task: must be a name or MODULE:CLASS, found {use[:100]!r}")
        if called in OURS:
            raise UserError(f"task: a class must not be called as a task of ours, found {use}")
        return Task(called, "own", "own", weight, name)
    if not name.replace("_", "").replace("-", "").isalnum():
        raise UserError(f"task: must be rank, rank-bce, rating or the name of a binary label, found {text!r}")
    return Task(*OURS.get(name, (name, "binary", "bce")), weight)


def tasks_of(text: str, client: str) -> tuple[Task, ...]:
    """Return the tasks of a client, given the experiment's `task` text, for instance `rank,rating*0.5;shop=click`."""
    lists = lists_of(text)
    if client not in lists and "*" not in lists:
        raise UserError(f"task: client {client!r} has no task in {text!r}")
    return lists[client] if client in lists else lists["*"]


@lru_cache(maxsize=64)  # which is asked for each of many clients
def lists_of(named: str) -> Mapping[str, tuple[Task, ...]]:
    """Return the tasks of every client that a `task` text names, and of "*", see `tasks_of`."""
    lists = dict[str, tuple[Task, ...]]()
    for client, chosen in per_client(named).items():
        tasks = tuple(parse_task(part) for part in split_at(chosen, ","))
        if len({task.name for task in tasks}) < len(tasks):
            raise UserError(f"task: a client may name a task once, found {chosen!r}")
        lists[client] = tasks
    return MappingProxyType(lists)


def names_of(text: str, chosen: Callable[[Task], object]) -> str:
    """Return the tasks that some client has and that are chosen, joined by commas; "" without one."""
    tasks = [task for client in per_client(text) for task in tasks_of(text, client)]
    return ",".join(dict.fromkeys(task.name for task in tasks if chosen(task)))


def several(text: str) -> str:
    """Return the tasks with a head of several scores, see `names_of`."""
    return names_of(text, lambda task: task.attribute or task.classes)
