"""One client as its own configuration describes it: what it shares, how it trains, how it measures."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from fedrec.components import per_client
from fedrec.data import ClientData
from fedrec.data.types import Floats
from fedrec.experiment.channel import Channel, channel_of
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import initial, reader, tasks_for, weights_sent
from fedrec.federation.coordination import Link
from fedrec.models import FactorRecommender, Recommender, SummedRecommender
from fedrec.params import Params
from fedrec.sharing import OF_USERS
from fedrec.tasks import Task
from fedrec.training.cohort import Cohort
from fedrec.training.local import single
from fedrec.training.recipe import Recipe
from fedrec.training.weighting import Weigher

T = TypeVar("T")


class common(cached_property[T]):
    """What a client makes once; one that is `like` another takes the other's."""

    @overload
    def __get__(self, client: None, owner: type[Any] | None = None) -> "common[T]": ...

    @overload
    def __get__(self, client: object, owner: type[Any] | None = None) -> T: ...

    def __get__(self, client: Any, owner: type[Any] | None = None) -> Any:
        """Return the value."""
        return super().__get__(client if client is None or client.like is None else client.like, owner)


@dataclass(frozen=True)
class Client:
    """One client as its own configuration describes it."""

    experiment: Experiment
    data: ClientData
    device: str
    home: Path | None  # where it keeps its private files at the end
    like: "Client | None" = field(default=None, repr=False, compare=False)  # of its kind

    @common
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of this client."""
        return tasks_for(self.experiment, self.data)

    @common
    def model(self) -> Recommender:
        """The recommender of this client."""
        return reader(self.experiment, self.data, "train")

    @common
    def recipe(self) -> Recipe:
        """How it trains in a round."""
        return self.experiment.recipe()

    @cached_property
    def cohort(self) -> Cohort:
        """The client as a cohort of its own."""
        return single(self.model, self.data, self.tasks, self.recipe, self.experiment.seed)

    @common
    def channel(self) -> Channel:
        """What this client exchanges, and how."""
        return channel_of(self.experiment, self.data)

    @property
    def newcomer(self) -> bool:
        """Whether it joins later, to be taught alone."""
        return self.data.name in self.experiment.arrivals

    @cached_property
    def setting(self) -> tuple[str, ...]:
        """All that decides a round beside its inputs: noise may be made again only where nothing differs.

        The same sums are the same to the bit on one kind of processor and under one version alone.
        """
        arithmetic = (torch.__version__, torch.backends.cpu.get_cpu_capability())
        return self.experiment.model_dump_json(), self.device, *arithmetic

    @cached_property
    def told(self) -> Params:
        """What files tell of its items beside their ids, of which its gradients are made too."""
        content, values = self.model.side.content, self.data.attributes.values
        tensors = {} if content is None else {"content": content}
        return tensors | {task.name: torch.from_numpy(values[task.name]) for task in self.tasks if task.attribute}

    @property
    def noisy(self) -> bool:
        """Whether it adds the noise that lets its own answers leave."""
        return self.experiment.privacy.active and not self.experiment.privacy.trusting

    def start(self) -> Params:
        """Return its initial parameters."""
        return initial(self.experiment, self.model, self.data.users, self.data.items, self.offsets())

    def offsets(self) -> dict[str, float | Floats]:
        """Return what the heads of its tasks start with."""
        private = self.experiment.silent  # the mean of a client's ratings is about its users
        tasks = [task for task in self.tasks if not task.attribute]
        return {task.name: task.prior if private else task.start(self.data.train) for task in tasks}

    def weigher(self, state: Mapping[str, Tensor] | None = None) -> Weigher | None:
        """Return its loss weighting in a state, else in the first one; None with fixed weights, or of one task."""
        rule = self.experiment.weighting
        if not rule.active or len(self.tasks) == 1:
            return None
        return Weigher(rule, self.recipe.optimiser, dict(state or rule.start(len(self.tasks))))

    @common
    def shared_like(self) -> Params:
        """Return the names, shapes and dtypes of what it shares, without data."""
        names = [task.name for task in self.tasks]
        shapes = self.model.shapes(len(self.data.users), len(self.data.items), names)
        return self.channel.split(shapes)[0]

    @property
    def received_like(self) -> Params:
        """Return the names, shapes and dtypes of what it is sent, without data."""
        if isinstance(self.model, SummedRecommender) and weights_sent(self.experiment):
            return self.model.weights_like
        if isinstance(self.model, FactorRecommender):
            return {name: value for name, value in self.shared_like.items() if name not in OF_USERS}
        return self.shared_like | {block: torch.zeros(1) for block in self.experiment.coupling.priced}

    def link(self, shared: Params) -> Link | None:
        """Return the link of a client that joins with its shared parameters; None without duals."""
        return Link.start(shared, self.experiment.coupling.rho) if self.experiment.coupling.duals else None


def kinds(experiment: Experiment) -> Callable[[ClientData], Hashable]:
    """Return what tells of a client's data what kind it is: of two clients of one kind, one may be `like` the other."""
    e = experiment
    named = {name for text in (e.task, e.model, str(e.dim)) for name in per_client(text)}
    alone = e.solves or e.agreement.active or e.coupling.kind == "linear"

    def kind(data: ClientData) -> Hashable:
        if alone or data.members or data.name in named:
            return data.name
        return len(data.users), id(data.items), id(data.attributes)

    return kind
