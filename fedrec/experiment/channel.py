"""What a client exchanges: x_i(theta). Its shared blocks (`fedrec.sharing`), its logits, or its tables under a map."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedrec.data import ClientData, probe_of, public_data
from fedrec.data.types import Ints
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import dataset, reader
from fedrec.federation.agreement import Scale
from fedrec.federation.coordination.maps import client_map
from fedrec.keyed import CROSS, PAIR, TABLES
from fedrec.models import Recommender
from fedrec.models.quadratic import EXACT
from fedrec.params import Params
from fedrec.sharing import Sharing
from fedrec.training.recipe import Term

LOGITS = "logits"


@dataclass(frozen=True)
class Mapped(ABC):
    """A channel whose x does not determine theta: a client keeps all its parameters, and is pulled by a loss term."""

    def split(self, params: Mapping[str, Tensor]) -> tuple[Params, Params]:
        """Return (x, what the client keeps)."""
        with torch.no_grad():
            return self.x(params), dict(params)

    def join(self, shared: Mapping[str, Tensor], private: Mapping[str, Tensor]) -> Params:
        """Return the parameters of a client that received z and keeps the rest."""
        return dict(private)

    @abstractmethod
    def x(self, params: Mapping[str, Tensor]) -> Params:
        """Return what is exchanged, differentiable in theta."""

    def pull(self, anchor: Params, rho: float, rng: np.random.Generator) -> Term:
        """Return the term rho/2 |x(theta) - anchor|^2, a sum over all entries of x, whatever the batch."""

        def value(params: Params, *_: object) -> Tensor:
            return rho / 2 * torch.stack([(v - anchor[n]).square().sum() for n, v in self.x(params).items()]).sum()

        return value


Channel = Sharing | Mapped  # turns parameters into what is sent, and what is received into where a client starts


@dataclass(frozen=True)
class Linear(Mapped):
    """x = T A for every shared table T [rows, d], with the client's own A [d, k]: unlike widths meet in width k."""

    sharing: Sharing
    a: Tensor

    def x(self, params: Mapping[str, Tensor]) -> Params:
        """See Mapped."""
        tables = self.sharing.split(params)[0]
        return {name: table @ self.a.to(table) for name, table in tables.items()}


@dataclass(frozen=True)
class Logits(Mapped):
    """x = the logits of a task at the public pairs [n] that a client can answer for (FedMD, arXiv 1910.03581, Alg. 1).

    `ids` [n] are the pairs' global ids; `user`, `item` [n] their local rows, sorted by user. What a ranking loss leaves
    open differs between unlike recommenders: `centred` takes each user's mean away, `standard` also divides by their
    standard deviation: x_ui = (s_ui - m_u) / sqrt(var_u + EPS), over the user's entries of this client.
    """

    model: Recommender
    task: str
    ids: Ints
    user: Tensor
    item: Tensor
    scale: Scale = "raw"
    batch: int = 8192

    EPS: ClassVar[float] = 1e-6  # below it the logits of a user do not differ

    def x(self, params: Mapping[str, Tensor]) -> Params:
        """See Mapped."""
        return {LOGITS: self.logits(dict(params), slice(None))}

    def logits(self, params: Params, part: slice | Tensor) -> Tensor:
        """Return the scaled logits at some entries; they must be all entries of the users that they are of."""
        device, user, item = next(iter(params.values())).device, self.user[part], self.item[part]
        score = self.model.head(params, self.task, self.model.features(params, user.to(device), item.to(device)))
        if self.scale == "raw":
            return score
        _, of, counts = torch.unique_consecutive(user, return_inverse=True, return_counts=True)
        group, count = of.to(device), counts.to(device)
        centred: Tensor = score - (score.new_zeros(len(count)).index_add(0, group, score) / count)[group]
        if self.scale == "centred":
            return centred
        variance = score.new_zeros(len(count)).index_add(0, group, centred.square()) / count
        standard: Tensor = centred * (variance + self.EPS).rsqrt()[group]
        return standard

    def pull(self, anchor: Params, rho: float, rng: np.random.Generator) -> Term:
        """Return the term rho/2 |x(theta) - anchor|^2, over the whole probe if it is small.

        Of a larger one every call draws users from `rng`, and counts their entries for all: the expectation is equal.
        """
        target = anchor[LOGITS]
        users, start = torch.unique_consecutive(self.user, return_inverse=True)
        drawn = len(users) * self.batch // max(len(self.user), 1)
        if drawn >= len(users):
            return super().pull(anchor, rho, rng)

        def value(params: Params, *_: object) -> Tensor:
            chosen = np.sort(rng.permutation(len(users))[: max(drawn, 1)])
            part = torch.isin(start, torch.from_numpy(chosen)).nonzero().squeeze(1)
            gap = self.logits(params, part) - target[part.to(target.device)]
            return rho / 2 * len(users) / len(chosen) * gap.square().sum()

        return value


@dataclass(frozen=True)
class Both(Mapped):
    """Shared parameters and, beside them, logits: a client starts from the first and is pulled to both."""

    sharing: Sharing
    logits: Logits

    def split(self, params: Mapping[str, Tensor]) -> tuple[Params, Params]:
        """See Mapped."""
        shared, private = self.sharing.split(params)
        return {**shared, **self.logits.split(params)[0]}, private

    def join(self, shared: Mapping[str, Tensor], private: Mapping[str, Tensor]) -> Params:
        """See Mapped."""
        return self.sharing.join(without_logits(shared), private)

    def x(self, params: Mapping[str, Tensor]) -> Params:
        """See Mapped."""
        return {**self.sharing.split(params)[0], **self.logits.x(params)}

    def pull(self, anchor: Params, rho: float, rng: np.random.Generator) -> Term:
        """See Mapped; of the logits alone, since the shared parameters have a proximal term of their own."""
        return self.logits.pull(anchor, rho, rng)


def without_logits(shared: Mapping[str, Tensor]) -> Params:
    """Return what is exchanged but for the logits."""
    return {name: value for name, value in shared.items() if name != LOGITS}


def row_ids(shared: Mapping[str, Tensor], data: ClientData, channel: Channel) -> dict[str, Ints]:
    """Return the global row ids of the key spaces that a client's shared tables need, and sums over many items."""
    ids = {"user": data.users, "item": data.items}
    if isinstance(channel, Logits | Both):
        ids["probe"] = (channel.logits if isinstance(channel, Both) else channel).ids
    rows = {TABLES[name]: ids[TABLES[name]] for name in shared if name in TABLES}
    many = CROSS in shared and EXACT < len(shared[CROSS]) != len(data.items)
    return rows | {PAIR: data.items} if many else rows  # see `SummedRecommender.apart`


def channel_of(experiment: Experiment, data: ClientData) -> Channel:
    """Return what a client exchanges; raises UserError if a map does not fit it."""
    e, model = experiment, reader(experiment, data, "train")
    if e.agreement.active:
        chosen, count, ids = e.agreement, len(dataset(e).items), probe(e)
        ids = ids[np.isin(ids % count, data.items) & np.isin(ids // count, data.users)]
        user, item = np.searchsorted(data.users, ids // count), np.searchsorted(data.items, ids % count)
        rows = torch.from_numpy(user), torch.from_numpy(item)
        logits = Logits(model, chosen.task, ids, *rows, chosen.scale, chosen.batch)
        return Both(e.sharing(), logits) if e.share else logits
    if e.coupling.kind == "linear":
        return Linear(e.sharing(), client_map(e.coupling.maps, e.coupling.width, data.name, model.dim, e.seed))
    return e.sharing()


@lru_cache(maxsize=2)
def public(experiment: Experiment) -> ClientData:
    """Return what is known of the volunteers, split as a client's; only the training rows are given to anybody."""
    e = experiment
    return public_data(dataset(e), volunteers=e.volunteers, split=e.split, fractions=e.fractions, seed=e.seed)


@lru_cache(maxsize=2)
def probe(experiment: Experiment) -> Ints:
    """Return the global ids of the public pairs whose logits travel."""
    return probe_of(public(experiment), experiment.agreement.items, experiment.seed)
