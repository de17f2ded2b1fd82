"""Exposure: what share of what a client shows its users goes to a group of items."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clients.client import Client
from fedrec.data import ClientData
from fedrec.data.types import Ints
from fedrec.errors import UserError, choose
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import dataset
from fedrec.models import Recommender
from fedrec.params import Params
from fedrec.rng import generator
from fedrec.tasks import Task

PEOPLE = 256  # users that stand for all
POPULAR = 0.2  # of the items, those with most training rows: the others are the tail, the group unless one is named


@dataclass(frozen=True)
class Shown:
    """What a client shows: of its users [n], the share of the softmax of their scores that goes to a group [items]."""

    model: Recommender
    task: str
    users: Tensor
    group: Tensor

    def share(self, params: Mapping[str, Tensor]) -> Tensor:
        """Return e = mean_u sum_{i in group} softmax(s_u)_i, differentiable."""
        device = next(iter(params.values())).device
        scores = self.model.score_all(dict(params), self.task, self.users.to(device))
        return scores.softmax(1)[:, self.group.to(device)].sum(1).mean()

    def exposure(self, params: Mapping[str, Tensor]) -> float:
        """Return e as a number."""
        return float(self.share(params).detach())


@dataclass(frozen=True)
class Pull:
    """The augmented term step/2 (e - goal)^2 beside a client's loss."""

    shown: Shown
    goal: float
    step: float

    def __call__(self, params: Params, *_: object) -> Tensor:
        """Return the term."""
        return self.step / 2 * (self.shown.share(params) - self.goal).square()


def shown_by(client: Client) -> Shown:
    """Return what a client shows; raises UserError for one that does not rank, or has nothing of the group."""
    e, data = client.experiment, client.data
    task = ranked(client.tasks, data)
    users = generator(e.seed, "exposure", data.name).permutation(len(data.users))[:PEOPLE]
    return Shown(client.model, task, torch.from_numpy(np.sort(users)), torch.from_numpy(group_of(e, data)))


def ranked(tasks: Sequence[Task], data: ClientData) -> str:
    """Return the task by which a client shows what it shows; raises UserError for one that does not rank."""
    for task in tasks:
        if task.kind == "rank":
            return task.name
    names = ", ".join(task.name for task in tasks)
    raise UserError(f"tie: exposure must be of clients that rank, found {data.name} with {names}")


def group_of(e: Experiment, data: ClientData) -> Ints:
    """Return the items of a client whose exposure is tied, ascending; raises UserError if they are none, or all."""
    group = of_category(e, data) if e.coupling.shown else np.sort(tail(data))
    if not 0 < len(group) < len(data.items):
        rule = f"tie: exposure must be of some items of {data.name} and not of all"
        raise UserError(f"{rule}, found {len(group)} of {len(data.items)}")
    return group


def tail(data: ClientData) -> Ints:
    """Return the items that are seldom met."""
    met = np.bincount(data.train.item, minlength=len(data.items))
    return np.argsort(-met, kind="stable")[math.ceil(POPULAR * len(met)) :]


def of_category(e: Experiment, data: ClientData) -> Ints:
    """Return the items of the category that is named; raises UserError for an unknown one."""
    texts = dataset(e).items["categories"].tolist()
    choose("coupling.shown", e.coupling.shown, {one for text in texts for one in text.split("|")} - {""})
    return np.flatnonzero([e.coupling.shown in texts[item].split("|") for item in data.items.tolist()])
