"""Quadratic recommenders whose clients answer with their sums' action on a subspace; see `fedrec.models.subspace`.

What is shared has a row for each item of a client: the subspace, what the clients answer, and the diagonal of G. The
head is as in `fedrec.models.summed`, (G + w G_i) within the subspace, under the ridge of the federation's items.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from fedrec.data.history import Sequences
from fedrec.data.types import Floats, Keys
from fedrec.models.quadratic import Matrix, inputs, statistics
from fedrec.models.subspace import LowRank, Projection, act, begin, find, fit, project
from fedrec.models.summed import SummedRecommender, head_weight
from fedrec.params import Params
from fedrec.sharing import ANSWER, BASIS, DIAGONAL, EXTENT, INNER, RIDGE, SUMS
from fedrec.subspace import Subspace, leading, metric, square, triangle

Statistics = tuple[csr_array, csr_array]


@dataclass(frozen=True)
class ProjectedRecommender(SummedRecommender):
    """A recommender whose parameters are tables [items, k], small sums, and the weight w of its private head.

    item_sums.basis [items, k] is V, item_sums.answer [items, k] the total of C'V, item_sums.diagonal [items] that of G,
    sums.inner and sums.ridge [k (k + 1) / 2] upper triangles of V'GV and of V's metric, sums.extent [2] the number of
    all items and the sum of the whole diagonal. Tables are float32, what is small float64. `counts` returns G and C
    over its own items and users, `first` the rows of V before the first pass; of a public V, `columns` are its k.
    """

    subspace: Subspace = field(default=Subspace(), kw_only=True)
    counts: Callable[[], Statistics] | None = field(default=None, kw_only=True, compare=False, repr=False)
    first: Callable[[], Matrix] | None = field(default=None, kw_only=True, compare=False, repr=False)
    columns: int | None = field(default=None, kw_only=True)
    found: LowRank | None = field(default=None, kw_only=True, compare=False, repr=False)
    histories: csr_array | None = field(default=None, kw_only=True, compare=False, repr=False)

    def shapes(self, users: int, items: int, tasks: Iterable[str]) -> Params:
        """See Recommender."""
        k = self.width
        half = (k * (k + 1) // 2,)
        shapes = {BASIS: (items, k), ANSWER: (items, k), DIAGONAL: (items,), INNER: half, RIDGE: half, EXTENT: (2,)}
        like = {f"heads.{task}.weight": torch.empty(1, device="meta") for task in tasks}
        like |= {name: torch.empty(shape, device="meta", dtype=dtype(name)) for name, shape in shapes.items()}
        return {name: like[name] for name in sorted(like)}

    def init(self, seed: int, users: Keys, items: Keys, offsets: Mapping[str, float | Floats]) -> Params:
        """Return the subspace before the first pass, whose rows are of items' keys, sums over nobody, and no heads."""
        start = super().init(seed, users, items, offsets)
        basis = self.first() if self.first else begin(start[BASIS].shape[1], seed, [str(key) for key in items])
        return start | {BASIS: typed(BASIS, basis)}

    @property
    def width(self) -> int:
        """The columns k of its tables."""
        return min(self.subspace.k, self.catalogue_size) if self.columns is None else self.columns

    def statistics(self, sequences: Sequences) -> Statistics:
        """Return G and C of some users with sequences of its items."""
        return statistics(self.kind, self.quadratic, sequences, len(self.places))

    def sums(self, sequences: Sequences) -> Params:
        """Return what it would be sent after all rounds if it were the only client."""
        assert self.first is not None
        gram, cross = self.ready
        basis = find(self.subspace, gram, cross, self.first())
        if self.subspace.basis:  # of some items it may have fewer directions than of all
            basis = leading(basis, self.width)
        sums = project(gram, cross, basis)
        tables = {BASIS: basis, ANSWER: sums.outer, DIAGONAL: sums.diagonal, INNER: triangle(sums.inner)}
        tables[RIDGE] = triangle(metric(basis, sums.diagonal, self.quadratic.popular))
        tables[EXTENT] = np.array([len(basis), sums.mass])
        return {name: typed(name, value) for name, value in tables.items()}

    @property
    def ready(self) -> Statistics:
        """G and C over its own users."""
        return self.counts() if self.counts else self.statistics(self.past)

    def owed(self, z: Params, number: int, seen: int) -> Params:
        """See SummedRecommender: in a pass C V or C'V, then the sums of the last V; the diagonal once, before all."""
        (gram, cross), basis = self.ready, z[BASIS].numpy()
        told = {} if seen else {DIAGONAL: gram.diagonal()}
        if number <= self.subspace.turns:
            told[ANSWER] = act(cross, basis, self.subspace.transposed(number))
        elif seen <= self.subspace.turns:
            sums = project(gram, cross, basis)
            told |= {ANSWER: sums.outer, INNER: triangle(sums.inner)}
        return {name: typed(name, value) for name, value in told.items()}

    def read(self, params: Params, *items: Tensor | None) -> "ProjectedRecommender":
        """Return the recommender that has solved for what it scores with."""
        if self.found is not None:
            return self
        weight = head_weight(params)
        shared = params if BASIS in params else self.own()
        basis, extent = shared[BASIS].numpy(), shared[EXTENT].numpy()
        total = Projection(
            square(shared[INNER].numpy()), shared[ANSWER].numpy(), shared[DIAGONAL].numpy(), float(extent[1])
        )
        if weight and BASIS in params:
            total = total.plus(project(*self.ready, basis), weight)
        config = self.quadratic.model_copy(update={"ridge": self.subspace.ridge * self.quadratic.ridge})
        found = fit(self.kind, config, basis, square(shared[RIDGE].numpy()), total, int(extent[0]) or 1)
        x = inputs(self.kind, self.quadratic, self.past, len(self.places))
        return replace(self, found=found, histories=x)

    def score_all(self, params: Params, task: str, user: Tensor) -> Tensor:
        """See Recommender."""
        ready = self.read(params)
        assert ready.found is not None and ready.histories is not None
        return torch.from_numpy(np.asarray(ready.found.score(ready.histories[user.cpu().numpy()]), np.float32))


def dtype(name: str) -> torch.dtype:
    """Return the type of a parameter."""
    return torch.float64 if name.startswith(SUMS) else torch.float32


def typed(name: str, value: Matrix) -> Tensor:
    """Return the value of a parameter in its type."""
    return torch.from_numpy(value).to(dtype(name))
