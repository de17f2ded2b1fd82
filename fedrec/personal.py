"""Personal models: what a client trains beside the shared model, keeps to itself, and recommends with."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedrec.batches import Batch, Recipe
from fedrec.coordination import Drift, Own
from fedrec.models import Recommender
from fedrec.optimisers import Optimiser, State
from fedrec.parameters import Params, clone
from fedrec.tasks import Task
from fedrec.training import batch_loss, gradients


def mix(alpha: float, v: Mapping[str, Tensor], w: Mapping[str, Tensor]) -> Params:
    """Return alpha v + (1 - alpha) w, over the names of `v`."""
    return {name: alpha * value + (1 - alpha) * w[name] for name, value in v.items()}


def personal_model(drift: Drift, own: Own, model: Params) -> Params:
    """Return the parameters that a client recommends with, given those of the shared model and its private part.

    Ditto's is the personal copy itself, APFL's the mixture alpha v + (1 - alpha) w. Tuned has x_i in the place of z_i,
    the shared parameters as the client's last training left them (dual personalisation, arXiv 2301.08143).
    """
    if own.personal is None:
        return model
    if drift.personal == "tuned":
        return {**model, **own.personal}
    return own.personal if drift.personal == "ditto" else mix(drift.weight, own.personal, model)


@dataclass
class Apfl:
    """The personal half v of adaptive personalised learning, trained in lockstep with w (arXiv 2003.13461, Alg. 1).

    A step goes along d f(alpha v + (1 - alpha) w) / dv = alpha grad f at the mixture, on the batch and at the w of the
    shared model's own step. Under SGD the step moves the mixture by alpha^2 lr times its gradient. Adam and Adagrad get
    the same gradient, but their steps do not depend on its scale, so that they move the mixture by alpha lr.
    """

    alpha: float
    optimiser: Optimiser
    l2: float
    model: Recommender
    tasks: tuple[Task, ...]
    v: Params
    state: State = field(default_factory=dict)

    @staticmethod
    def start(alpha: float, recipe: Recipe, model: Recommender, tasks: tuple[Task, ...], v: Params) -> "Apfl":
        """Return v at the beginning of a round; `v` is not changed."""
        return Apfl(alpha, recipe.optimiser, recipe.l2, model, tasks, clone(v))

    def step(self, w: Params, names: list[str], batch: Batch, t: int) -> None:
        """Make the step of v that goes with step `t` = 1, 2, ... of a phase, in which w trains `names`."""
        if t == 1:
            self.state = self.optimiser.start({name: self.v[name] for name in names})
        with torch.no_grad():
            mixed = mix(self.alpha, self.v, w)
        for name in names:
            mixed[name].requires_grad_(True)
        grads = gradients(batch_loss(self.model, mixed, self.tasks, batch, self.l2), mixed, names, 0.0, None)
        self.optimiser.step(self.v, {name: self.alpha * g for name, g in grads.items()}, self.state, t)
