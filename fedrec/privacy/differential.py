"""Differentially private local training (DP-SGD): what leaves a silo hides every interaction, or every user."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedrec.data import ClientData, before
from fedrec.errors import UserError
from fedrec.keyed import TABLES
from fedrec.models import Recommender
from fedrec.params import Params, clone, flatten, unflatten
from fedrec.privacy.clipping import clipped
from fedrec.privacy.gradients import unit_gradients
from fedrec.privacy.noise import Source, add_noise
from fedrec.privacy.units import Units
from fedrec.rng import derive
from fedrec.sharing import Sharing
from fedrec.tasks import Task
from fedrec.training import transforms
from fedrec.training.kernels import handwritten
from fedrec.training.learner import Learner
from fedrec.training.losses import trainable
from fedrec.training.recipe import Recipe
from fedrec.training.results import stack

CELLS = 2**15  # cells of a part of a step
DENSE = 2**22  # entries of a part's gradients of the body and the heads
OUTPUTS = 2**22  # entries of what a part's layers put out, in float64, where autograd keeps all of them


@dataclass(frozen=True)
class Mechanism:
    """What a step of DP-SGD (arXiv 1607.00133, algorithm 1) protects, and its clip C, noise sigma and sampling rate q.

    The noise has standard deviation sigma C in every coordinate. Neighbours differ in one unit's interactions, which
    one of them has not: its term is zeroed out. Raises UserError for a number out of range.
    """

    unit: Literal["interaction", "user"]
    clip: float
    noise: float
    rate: float

    def __post_init__(self) -> None:
        finite = self.clip < math.inf or self.noise == 0
        for name, value, sound, rule in (
            ("clip", self.clip, self.clip > 0 and finite, "positive and, with noise, finite"),
            ("noise", self.noise, 0 <= self.noise < math.inf, "at least 0 and finite"),
            ("rate", self.rate, 0 < self.rate <= 1, "above 0 and at most 1"),
        ):
            if not sound:
                raise UserError(f"privacy.{name}: must be {rule}, found {value}")

    @property
    def passes(self) -> int:
        """How many steps stand for one epoch: ceil(1 / q)."""
        return math.ceil(1 / self.rate - 1e-9)

    def noisy(self, names: list[str], sharing: Sharing) -> list[str]:
        """Return which of the trained `names` are clipped and noised.

        All of them, but for a user's own rows where users are protected and the rows stay in the silo: they are a
        function of that user's data, of what was released and of when the user was drawn, and go into no other user's
        gradient. This is the billboard model of joint differential privacy, as in arXiv 2107.09802 and "Differentially
        Private Model Personalization" (Jain et al., NeurIPS 2021). That a row remembers the user's earlier coins costs
        nothing: given what was released and all coins of the others, a step is a mixture of shifts by at most C that
        a coin of its own lets in with probability q, and no such mixture is worse than its worst shift. Heads and a
        body that stay are noised nevertheless, for they go into every user's gradient.
        """
        shared = sharing.split({name: torch.empty(0) for name in names})[0]
        return [n for n in names if self.unit == "interaction" or TABLES.get(n) != "user" or n in shared]


def private_steps(
    model: Recommender, tasks: tuple[Task, ...], recipe: Recipe, sharing: Sharing, mechanism: Mechanism
) -> int:
    """Return how many noisy steps a round makes: a function of public numbers alone, to be booked by the accountant.

    It is epochs x ceil(1 / q) for every phase that trains anything noisy.
    """
    names = list(model.shapes(1, 1, [task.name for task in tasks]))
    trained = [trainable(names, tasks, sharing, phase, recipe.optimiser) for phase in recipe.phases]
    phases = sum(bool(mechanism.noisy(part, sharing)) for part in trained)
    return phases * recipe.epochs * mechanism.passes


def private_update(
    model: Recommender,
    params: Params,
    data: ClientData,
    tasks: tuple[Task, ...],
    recipe: Recipe,
    sharing: Sharing,
    mechanism: Mechanism,
    source: Source,
    *,
    seed: int,
    scope: tuple[str | int, ...],
    anchor: Mapping[str, Tensor] | None = None,
    shift: Mapping[str, Tensor] | None = None,
) -> tuple[Params, float]:
    """Return the parameters after one round of private training, and the mean loss of the units that were drawn.

    A drop-in for `local_update`. The shared parameters may leave the silo. Everything else may not: neither a user's
    own rows nor THE LOSS, which is exact and for the silo's own eyes. Every phase makes epochs x ceil(1 / q) steps. A
    step draws every unit with probability q (Poisson sampling, by `source`), and moves the noisy parameters along

        (sum_u w_u g_u min(1, C / |w_u g_u|) + sigma C N(0, I)) / B,   g_u = gradient of `batch_loss` on u's rows,

    with noise on every coordinate. The number of interactions is not public, so B is not what was drawn:
    - user: w_u = u's number of rows, so that a user counts by its rows until it is clipped; B = q x number of users.
    - interaction: w_u = 1, B = `recipe.batch_size`, what a step is taken to draw; q is not derived from it.
    A user's own rows (see `Mechanism.noisy`) make their step along g_u alone, unclipped, when u is drawn. The L2
    penalty is part of g_u. Behind the noise come the transforms of `recipe`, the proximal term `mu (x - anchor)` and
    `shift`: anchor and shift must be functions of what was released, and a transform gets nothing else, no user's own
    row and no gradient of one. A unit whose gradient is not finite counts as one without interactions.

    The heads' initial bias must not come from the data (`Task.offset` does): start from a public number.
    """
    params = clone(params)
    # Streams of their own: how many coins there are is private, and must not move the noise.
    past = before(data, model.sequence.history, seed) if model.sequence.active else None
    units, coins = Units.of(data, tasks, recipe, mechanism.unit, past), source.spawn()
    size = mechanism.rate * len(data.users) if mechanism.unit == "user" else float(recipe.batch_size)
    room = parts(params, str(next(iter(params.values())).device), handwritten(model, tasks))
    stacked, tie, moved = (stack([part or {}]).values for part in (params, anchor if recipe.mu else None, shift))
    covered = {name: stacked[name] for name in mechanism.noisy(list(params), sharing)}
    owner = {name: value.new_zeros(len(value), dtype=torch.int64) for name, value in covered.items() if name in TABLES}
    chain, losses = transforms.chain(recipe.transforms, recipe.mu, tie, moved, {}), list[Tensor]()
    for number, phase in enumerate(recipe.phases):
        names = trainable(params, tasks, sharing, phase, recipe.optimiser)
        noisy = mechanism.noisy(names, sharing)
        own = {name: stacked[name] for name in names if name not in noisy}
        still = {name: torch.zeros_like(params[name]) for name in moved if name not in names}
        w = Learner(covered, [*noisy, *still], recipe.optimiser, True, chain, owner)
        v = Learner(own, list(own), recipe.optimiser, True)
        for t in range(1, (recipe.epochs * mechanism.passes if names else 0) + 1):
            chosen = np.flatnonzero(coins.uniform(units.count) <= mechanism.rate)
            negatives = derive(seed, "private", *scope, number, t)
            into, rows = ({name: torch.zeros_like(params[name]) for name in part} for part in (noisy, own))
            for batch in units.batches(chosen, negatives, *room):
                grads = unit_gradients(model, params, tasks, batch, recipe.l2, names)
                weight = batch.rows if mechanism.unit == "user" else torch.ones_like(batch.rows)
                clipped(grads, batch, weight, mechanism.clip, into, rows)
                losses.append(grads.loss)
            w.step({}, stack([still | release_mean(into, mechanism, size, source)]).values, t)
            v.step({}, rows, t)
    return params, float(torch.cat(losses).double().nanmean()) if losses else math.nan


def release_mean(sums: Params, mechanism: Mechanism, size: float, source: Source) -> Params:
    """Return (sum + sigma C N(0, I)) / size of the clipped sums."""
    if not sums:
        return {}
    std = mechanism.noise * mechanism.clip if mechanism.noise else 0.0  # the clip may be infinite
    total = add_noise(flatten(sums), std, source)
    return {name: value.to(sums[name].dtype) for name, value in unflatten(total.div_(size), sums).items()}


def parts(params: Params, device: str, by_hand: bool) -> tuple[int, str, int]:
    """Return what bounds the parts of a step, so that it fits in memory.

    They are those of `Units.batches`: cells, the device, and how many units where they are padded to one length.
    """
    dense = {name: value.numel() for name, value in params.items() if name not in TABLES}
    most = DENSE // max(1, sum(dense.values()))
    if by_hand:
        return max(1, min(CELLS, most)), device, 0
    width = sum(size for name, size in dense.items() if name.endswith("bias"))  # a bias for every output of a layer
    return min(CELLS // 2, OUTPUTS // max(1, width)), device, max(1, most // 2)  # float64 takes twice the room
