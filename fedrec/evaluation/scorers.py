"""What is evaluated, as a value: a recommender with its parameters, or what is popular."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedrec.data.types import Attributes, Floats, Interactions, Ints
from fedrec.metrics import Values
from fedrec.models import Recommender
from fedrec.params import Params
from fedrec.tasks import NOTHING, Task


class Scorer(Protocol):
    """What is evaluated: a trained model, or a baseline."""

    def score_all(self, task: str, user: Ints) -> Tensor:
        """Return the scores [B, items] of the whole catalogue for local users [B]."""
        ...

    def score(self, task: str, user: Ints, item: Ints) -> Floats:
        """Return the scores [n] of pairs: a rating, or a logit; [n, C] of a task of several classes."""
        ...

    def attribute(self, task: str, item: Ints) -> Floats:
        """Return what is said of an attribute [n, C] of items [n]: logits, or a number."""
        ...


@dataclass(frozen=True)
class ModelScorer:
    """A recommender with its parameters."""

    model: Recommender
    params: Params

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.params.values())).device

    @cached_property
    def ready(self) -> Recommender:
        """The model that has read the content of the catalogue."""
        with torch.no_grad():
            return self.model.read(self.params)

    @torch.no_grad()
    def score_all(self, task: str, user: Ints) -> Tensor:
        """See Scorer."""
        return self.ready.score_all(self.params, task, torch.from_numpy(user).to(self.device)).cpu()

    @torch.no_grad()
    def score(self, task: str, user: Ints, item: Ints) -> Floats:
        """See Scorer."""
        users, items = torch.from_numpy(user).to(self.device), torch.from_numpy(item).to(self.device)
        features = self.ready.features(self.params, users, items)
        scores: Floats = self.model.head(self.params, task, features).cpu().numpy()
        return scores

    @torch.no_grad()
    def attribute(self, task: str, item: Ints) -> Floats:
        """See Scorer."""
        items = torch.from_numpy(item).to(self.device)
        score: Floats = self.ready.attribute(self.params, task, items).cpu().numpy()
        return score


@dataclass(frozen=True)
class Tally:
    """What training rows say of every item, by task: their number [items], and the sum of their targets [items, C]."""

    count: dict[str, Values]
    total: dict[str, Values]

    @staticmethod
    def of(tasks: Sequence[Task], parts: Sequence[tuple[Interactions, Ints]], items: int) -> "Tally":
        """Add up the rows of `parts`, each with the places [n] of its rows' items among `items`."""
        tally = Tally({}, {})
        for task in tasks:
            if task.attribute:
                continue
            count, total = np.zeros(items), np.zeros((items, task.classes or 1))
            for rows, item in parts:
                mask = task.rows(rows)
                place, target = item[mask], task.target(rows)[mask].astype(np.float64).reshape(-1, task.classes or 1)
                count += np.bincount(place, minlength=items)
                total += np.stack([np.bincount(place, column, items) for column in target.T], 1)
            tally.count[task.name], tally.total[task.name] = count, total
        return tally

    def take(self, items: Ints) -> "Tally":
        """Return what is said of some items."""
        count, total = ({name: value[items] for name, value in table.items()} for table in (self.count, self.total))
        return Tally(count, total)


@dataclass(frozen=True)
class PopularityScorer:
    """The non-personal baseline: an item's count of positives, its mean rating, or the logit of its label's rate.

    Means are shrunk to the mean over all items by `prior` rows, so that an unseen item gets that mean. Of an attribute
    it says of every item what is usual among the training items (`Task.usual`).
    """

    tables: dict[str, Floats]  # task -> [items], [items, C] with several classes, or [C] of an attribute

    @staticmethod
    def fit(
        tasks: Sequence[Task], train: Interactions, items: int, prior: float = 5.0, about: Attributes = NOTHING
    ) -> "PopularityScorer":
        """Count over the training data of one client with `items` items, of which `about` is known."""
        return PopularityScorer.of(tasks, Tally.of(tasks, [(train, train.item)], items), prior, about)

    @staticmethod
    def of(tasks: Sequence[Task], tally: Tally, prior: float = 5.0, about: Attributes = NOTHING) -> "PopularityScorer":
        """Return what follows from counts over training data."""
        tables: dict[str, Floats] = {}
        for task in tasks:
            if task.attribute:
                tables[task.name] = task.usual(about)
                continue
            count, total = tally.count[task.name], tally.total[task.name]
            if task.kind == "rank":
                tables[task.name] = count.astype(np.float32)
                continue
            usual = total.sum(0) / max(count.sum(), 1)
            value = (total + prior * usual) / (count + prior)[:, None]
            if task.classes:
                tables[task.name] = np.log(np.maximum(value, 1e-4)).astype(np.float32)
                continue
            if task.kind == "binary":
                clipped = np.clip(value, 1e-4, 1 - 1e-4)
                value = np.log(clipped / (1 - clipped))
            if task.part:
                value = np.asarray(task.said(value))
            tables[task.name] = value[:, 0].astype(np.float32)
        return PopularityScorer(tables)

    def score_all(self, task: str, user: Ints) -> Tensor:
        """See Scorer."""
        return torch.from_numpy(self.tables[task]).expand(len(user), -1)

    def score(self, task: str, user: Ints, item: Ints) -> Floats:
        """See Scorer."""
        return self.tables[task][item]

    def attribute(self, task: str, item: Ints) -> Floats:
        """See Scorer."""
        return np.broadcast_to(self.tables[task], (len(item), len(self.tables[task])))
