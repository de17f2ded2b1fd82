"""Quadratic recommenders: what is learnt is solved for from sums over users, with a private head around it.

The shared parameters of a client are its sums G_i and C_i (`fedrec.models.quadratic`), the federation's their total.
A client scores with B_i = W + D_i: W solves (G + ridge) W = C, and D_i minimises f_i(W + D) + 1/(2 w) |D|^2 in the
metric of G. That is (G + w G_i + ridge) B_i = C + w C_i: w = 0 is the shared model, and w to infinity the client's own.
A client that is sent weights W_i instead of a total has its head in the metric of its own sums: B_i = (W_i + w A_i) /
(1 + w), where A_i is what its own sums alone give. A head that `mixes` is B_i = (1 - w) W + w A_i, with w from 0 to 1.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from fedrec.data.history import Sequences
from fedrec.data.types import Floats, Ints, Keys
from fedrec.keyed import nothing_like
from fedrec.models.pairs import from_matrix, from_symmetric, to_matrix
from fedrec.models.quadratic import EXACT, Matrix, Quadratic, Sums, inputs, precision, score, solve, statistics
from fedrec.models.recommender import Recommender
from fedrec.params import Params
from fedrec.sharing import CROSS, GRAM, SCALE, WEIGHT
from fedrec.sparse import equal, thin
from fedrec.subspace import square, triangle

GRID = 2.0**-30  # of what is added in float64
FEW = 50  # so many times fewer users than items are scored by weights that many clients have in common


def nobody() -> Sequences:
    """Return the sequences of no users."""
    return Sequences(np.zeros(0, np.int64), np.zeros(1, np.int64))


@dataclass(frozen=True)
class SummedRecommender(Recommender):
    """A recommender whose parameters are sums over users, and of each ranking task the weight w of its private head.

    sums.gram [n (n + 1) / 2] is the upper triangle of G by rows, sums.cross [n, n] is C, over all n = `catalogue_size`
    items of the public catalogue, where the client's own lie at `places`. They are float64, and float32 of many items.
    Without sums in the parameters its own stand in their place: a client that learns alone.

    `own` returns the sums over its users, `past` are their sequences as they are known when it is asked.
    """

    quadratic: Quadratic = field(default=Quadratic(), kw_only=True)
    weight: float = field(default=0.0, kw_only=True)  # w of the heads as they begin
    mixes: bool = field(default=False, kw_only=True)
    catalogue_size: int = field(default=0, kw_only=True)
    places: Ints = field(default_factory=lambda: np.zeros(0, np.int64), kw_only=True, compare=False, repr=False)
    own: Callable[[], Params] = field(default=dict, kw_only=True, compare=False, repr=False)
    past: Sequences = field(default_factory=nobody, kw_only=True, compare=False, repr=False)
    scores: Matrix | None = field(default=None, kw_only=True, compare=False, repr=False)  # of all its users

    def shapes(self, users: int, items: int, tasks: Iterable[str]) -> Params:
        """See Recommender."""
        n, dtype = self.catalogue_size, self.dtype
        like = {f"heads.{task}.weight": torch.empty(1, device="meta") for task in tasks}
        like[GRAM] = torch.empty(n * (n + 1) // 2, device="meta", dtype=dtype)
        like[CROSS] = torch.empty(n, n, device="meta", dtype=dtype)
        return {name: like[name] for name in sorted(like)}

    def init(self, seed: int, users: Keys, items: Keys, offsets: Mapping[str, float | Floats]) -> Params:
        """Return sums over nobody, and heads of the weight that is given; that of 0 is the shared model."""
        start = nothing_like(self.shapes(len(users), len(items), offsets))
        return {n: torch.full_like(v, self.weight) if n.startswith("heads.") else v for n, v in start.items()}

    @property
    def weights_like(self) -> Params:
        """Return the names, shapes and dtypes of the weights that a client may be sent in the place of a total."""
        n, dtype = self.catalogue_size, self.dtype
        shapes = {SCALE: (n,), WEIGHT: (n, n)}
        return {name: torch.empty(shape, device="meta", dtype=dtype) for name, shape in shapes.items()}

    @property
    def dtype(self) -> torch.dtype:
        """The type of its sums."""
        return torch.float64 if precision(self.catalogue_size) is np.float64 else torch.float32

    @property
    def gathers(self) -> bool:
        """See Recommender; it makes no gradients."""
        return False

    @property
    def tabled(self) -> bool:
        """See Recommender."""
        return False

    @property
    def tables(self) -> Mapping[str, str]:
        """See Recommender; its rows are of the whole catalogue."""
        return {}

    def sums(self, sequences: Sequences) -> Params:
        """Return the sums over some users with sequences of its items."""
        return self.dense(*statistics(self.kind, self.quadratic, self.placed(sequences), self.catalogue_size))

    def dense(self, gram: csr_array, cross: csr_array) -> Params:
        """Return G and C [n, n] as they travel, sparse where they are large and mostly zero.

        In float64 they are whole multiples of `GRID`, so that totals below 2^23 are exact whatever the order in which
        they are added, and what is subtracted again leaves no trace of having been there.
        """
        dtype = precision(self.catalogue_size)
        parts = [part.astype(dtype) for part in (gram, cross)]
        for part in parts if dtype is np.float64 else ():
            part.data = np.rint(part.data / GRID) * GRID
        return pack(*(part if thin(self.catalogue_size**2, part.nnz) else part.toarray() for part in parts))

    def owed(self, z: Params, number: int, seen: int) -> Params:
        """Return what the client owes the total in a round, of which the server took its answer of round `seen` last.

        `z` are the shared parameters that it was sent; what is not returned is zero.
        """
        return {} if seen else self.own()

    def placed(self, sequences: Sequences) -> Sequences:
        """Return sequences of its items by their places in the whole catalogue."""
        return replace(sequences, item=self.places[sequences.item])

    @property
    def apart(self) -> bool:
        """Whether it solves for its own items alone, of a catalogue of many; W then has a row for each of these."""
        return EXACT < self.catalogue_size != len(self.places)

    def read(self, params: Params, *items: Tensor | None) -> "SummedRecommender":
        """Return the recommender that has solved for what it scores with."""
        if self.scores is not None:
            return self
        weight = head_weight(params)
        if WEIGHT in params:
            return replace(self, scores=self.weighed(params, weight)[:, self.places])
        share = weight if self.mixes and GRAM in params else 0.0
        if GRAM in params and not self.apart and (self.mixes or not weight):
            single = params[GRAM].dtype == torch.float32
            x = inputs(self.kind, self.quadratic, self.placed(self.past), self.catalogue_size)
            x = x.astype(np.float32 if single else np.float64)
            if FEW * x.shape[0] <= x.shape[1] or single:
                # What others of this node are sent too.
                w = shared_weights(Solvable(self.kind, self.quadratic, params[GRAM], params[CROSS]))
                return replace(self, scores=self.of_own(self.mixed(x @ w, share, x)))
        gram, cross = self.over(params if GRAM in params else self.own())
        past = self.past if self.apart else self.placed(self.past)
        x = inputs(self.kind, self.quadratic, past, gram.shape[0]).astype(gram.dtype)
        if weight and GRAM in params and not self.mixes:
            own = self.over(self.own())
            gram, cross = gram + weight * own[0], cross + weight * own[1]
        scores = score(self.kind, self.quadratic, gram, cross, x)
        return replace(self, scores=self.of_own(self.mixed(scores, share, x)))

    def weighed(self, params: Params, weight: float) -> Matrix:
        """Return the scores [users, n] by weights that it was sent, and by its own sums with the weight w of a head."""
        x = inputs(self.kind, self.quadratic, self.placed(self.past), self.catalogue_size)
        scores: Matrix = x @ (params[WEIGHT] * params[SCALE]).numpy()
        return self.mixed(scores, weight if self.mixes else weight / (1 + weight), x)

    def over(self, params: Params) -> tuple[Sums, Sums]:
        """Return the G and C that it solves, of sums as they travel: over all items, or over its own."""
        gram, cross = matrices(params)
        own = self.places
        return (gram[own][:, own], cross[own][:, own]) if self.apart else (gram, cross)

    def of_own(self, scores: Matrix) -> Matrix:
        """Return the scores [users, items] of its own items."""
        return scores if scores.shape[1] == len(self.places) else scores[:, self.places]

    def mixed(self, scores: Matrix, share: float, x: csr_array) -> Matrix:
        """Return scores [B, n] of histories x [B, n] mixed with a share of those by the client's own sums alone."""
        if not share:
            return scores
        own = self.over(self.own()) if x.shape[1] == len(self.places) else matrices(self.own())
        return (1 - share) * scores + share * score(self.kind, self.quadratic, *own, x)

    def score_all(self, params: Params, task: str, user: Tensor) -> Tensor:
        """See Recommender."""
        scores = self.read(params).scores
        assert scores is not None
        return torch.from_numpy(np.asarray(scores[user.cpu().numpy()], np.float32))


@dataclass(frozen=True, eq=False)
class Solvable:
    """Sums and what is solved for; equal to any with the same values."""

    kind: str
    config: Quadratic
    gram: Tensor
    cross: Tensor

    def __hash__(self) -> int:
        return hash((self.kind, self.config, self.cross.shape))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Solvable) or (self.kind, self.config) != (other.kind, other.config):
            return False
        return equal(self.gram, other.gram) and equal(self.cross, other.cross)


@lru_cache(maxsize=1)
def shared_weights(total: Solvable) -> Matrix:
    """Return W [n, n] of sums, kept for the clients that are sent the same."""
    return solve(total.kind, total.config, *matrices({GRAM: total.gram, CROSS: total.cross}))


def head_weight(params: Mapping[str, Tensor]) -> float:
    """Return the weight w of the private head; 0 without one."""
    return next((float(value) for name, value in params.items() if name.startswith("heads.")), 0.0)


def pack(gram: Sums, cross: Sums) -> Params:
    """Return G and C [n, n] as they travel: of the symmetric G the upper triangle, row by row."""
    half = torch.from_numpy(triangle(gram)) if isinstance(gram, np.ndarray) else from_symmetric(gram)
    whole = torch.from_numpy(np.ascontiguousarray(cross)) if isinstance(cross, np.ndarray) else from_matrix(cross)
    return {GRAM: half, CROSS: whole}


def matrices(params: Mapping[str, Tensor]) -> tuple[Sums, Sums]:
    """Return G and C [n, n] of sums as they travel, sparse where these are."""
    gram, cross = params[GRAM], params[CROSS]
    return (
        to_matrix(gram) if gram.is_sparse else square(gram.numpy()),
        to_matrix(cross) if cross.is_sparse else cross.numpy(),
    )


def unpack(params: Mapping[str, Tensor]) -> tuple[Matrix, Matrix]:
    """Return G and C [n, n] of sums as they travel."""
    return square(params[GRAM].to_dense().numpy()), params[CROSS].to_dense().numpy()
