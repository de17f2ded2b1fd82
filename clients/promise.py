"""What a client that learns by sums is promised of the weights that it is sent, judged by its held-out rows.

Its held-out loss is f(W) = 1/2 <W, G W> - <C, W> a user, of what the rows that it has not learnt from add to the sums
over its users: validation rows, and of new users all that is known of them.
"""

import math
from dataclasses import replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from clients.client import Client
from fedrec.data.history import Sequences, sequences
from fedrec.data.types import Ints
from fedrec.models import SummedRecommender
from fedrec.models.quadratic import Matrix, scale, solve, statistics
from fedrec.models.summed import unpack
from fedrec.params import Params
from fedrec.sharing import WEIGHT

Reals = NDArray[np.float64]
GROUPS = 20  # of users, of whose mean losses the spread tells how sure the mean of all is


def excess_of_weights(client: Client, values: Params) -> float:
    """Return by how much the held-out loss at W_i is above its budget; NaN without one, or without held-out rows.

    Added to it are `budget.confidence` standard errors: of the loss where a limit is given, else of what it is above
    that of the weights which the client has alone.
    """
    rule, judge = client.experiment.budget, judge_of(client)
    given = rule.limit_of(client.data.name)
    limit = rule.margin if given is None else given
    if limit is None or not len(judge.size):
        return math.nan
    losses = judge.losses(values[WEIGHT].numpy())
    if given is None:
        losses = losses - judge.alone
    mean = float(losses @ judge.size / judge.size.sum())
    spread = float(losses.std(ddof=1)) / math.sqrt(len(losses)) if len(losses) > 1 else 0.0
    return mean + rule.confidence * spread - limit


@lru_cache(maxsize=64)
def judge_of(client: Client) -> "Judge":
    """Return what judges weights by a client's held-out rows, kept for some clients."""
    return Judge(client)


class Judge:
    """The held-out sums of a client's users, in groups of near equal size."""

    def __init__(self, client: Client) -> None:
        data, seed = client.data, client.experiment.seed
        known = data.known("validation")
        rows = data.validation.user[data.validation.positive]
        users, count = np.unique(rows), min(GROUPS, len(np.unique(rows)))
        group = np.arange(len(users)) % max(count, 1)
        before, after = sequences(data, [data.train], seed), sequences(data, [*known, data.validation], seed)
        self.client = client
        self.size = np.bincount(group, minlength=count).astype(float)
        self.sums = [self.added(before, after, users[group == one]) for one in range(count)]

    @property
    def model(self) -> SummedRecommender:
        """The client's model."""
        assert isinstance(self.client.model, SummedRecommender)
        return self.client.model

    def added(self, before: Sequences, after: Sequences, users: Ints) -> tuple[csr_array, csr_array]:
        """Return what the held-out rows of some users add to the sums, whatever the lengths of their histories."""
        model, even = self.model, self.model.quadratic.model_copy(update={"length": 0.0})
        (g, c), (old_g, old_c) = (
            statistics(model.kind, even, model.placed(of_users(part, users)), model.catalogue_size)
            for part in (after, before)
        )
        return csr_array(g - old_g), csr_array(c - old_c)

    def losses(self, w: Matrix) -> Reals:
        """Return the mean loss of a user at W [n, n], in every group."""
        found = [float((0.5 * (g @ w) - c.toarray()).ravel() @ w.ravel()) for g, c in self.sums]
        return np.asarray(np.array(found) / self.size, np.float64)

    @cached_property
    def alone(self) -> Reals:
        """The losses at the weights that the client's own sums give."""
        model = self.model
        gram, cross = unpack(model.own())
        return self.losses(solve(model.kind, model.quadratic, gram, cross) / scale(model.quadratic, np.diagonal(gram)))


def of_users(part: Sequences, users: Ints) -> Sequences:
    """Return the sequences of some users, who come in this order."""
    lengths = np.diff(part.start)[users]
    items = [part.item[part.start[user] : part.start[user + 1]] for user in users]
    return replace(part, item=np.concatenate([part.item[:0], *items]), start=np.append(0, np.cumsum(lengths)))
