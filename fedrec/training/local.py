"""Local training of one client: a pure function from parameters and data to parameters."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedrec.data import ClientData
from fedrec.models import Recommender
from fedrec.params import Params, clone
from fedrec.sharing import Sharing
from fedrec.tasks import Task
from fedrec.training.cohort import Cohort, cohort
from fedrec.training.held_out import held_out_many
from fedrec.training.recipe import Recipe, Term
from fedrec.training.results import client, client_after, stack
from fedrec.training.stacks import NOTHING, Stack, Terms
from fedrec.training.update import Scope, train
from fedrec.training.weighting import Weigher

ONE, EMPTY = np.zeros(1, np.int64), Stack({})


def single(model: Recommender, data: ClientData, tasks: tuple[Task, ...], recipe: Recipe, seed: int) -> Cohort:
    """Return one client as a cohort."""
    return cohort([data], [model], tasks, recipe.negatives, {}, seed)


class Trained(NamedTuple):
    """What a round of training makes of one client; the loss is NaN without a row to train on."""

    params: Params
    loss: float
    personal: Params  # the personal model v; empty without it


def update_one(
    only: Cohort, start: Params, recipe: Recipe, sharing: Sharing, *, seed: int, scope: Scope, terms: Terms = NOTHING
) -> Trained:
    """Return what a round of training makes of the only client of a cohort; nothing that is given is changed."""
    before = stack([start])
    for part in train(only, before, EMPTY, recipe, sharing, seed=seed, chosen=ONE, scopes=[scope], terms=terms):
        v = terms.personal and client_after(only, terms.personal, replace(part, values=part.personal), 0)
        return Trained(client_after(only, before, part, 0), float(part.loss), v or {})
    return Trained(clone(start), float("nan"), client(only, terms.personal, 0) if terms.personal else {})


def local_update(
    model: Recommender,
    params: Params,
    data: ClientData,
    tasks: tuple[Task, ...],
    recipe: Recipe,
    sharing: Sharing,
    *,
    seed: int,
    scope: Scope,
    anchor: Mapping[str, Tensor] | None = None,
    weight: float = 1.0,
    paced: bool = False,
    shift: Mapping[str, Tensor] | None = None,
    pull: Term | None = None,
    weigher: Weigher | None = None,
    own: Mapping[str, Tensor] | None = None,
) -> tuple[Params, float]:
    """Return the parameters after one round of local training, and the mean training loss over its batches.

    Pure: `params` is not changed, and the result depends on the arguments alone. The optimiser starts afresh. `anchor`
    is the broadcast that the proximal term `mu/2 |x - z|^2` pulls the shared parameters to. `weight` multiplies the
    loss against that term (1 + mu_i of a loss budget), if `paced` the rate of Adam and Adagrad too; the loss that is
    returned is without it. `shift` is added to the gradients, also where a task sees none. `pull` is a term beside the
    loss: of a client that exchanges no part of its parameters (`fedrec.experiment.channel`), or of a teacher
    (`fedrec.distillation`). `weigher` weighs the tasks' losses for the steps and goes on to its next state; the loss
    that is returned has the fixed weights, so that it tells nothing of it. `own` are masks of shared parameters, 1 at
    what nobody else has: the phase private trains that too. Without a row to train on, the parameters come back
    unchanged and the loss is NaN.
    """
    terms = Terms(
        stack([anchor]) if anchor else None,
        stack([shift]) if shift else None,
        None if weight == 1 else torch.tensor([weight]),
        pull=pull,
        weigher=weigher,
        paced=paced,
        masks=stack([own]) if own else None,
    )
    only = single(model, data, tasks, recipe, seed)
    return update_one(only, dict(params), recipe, sharing, seed=seed, scope=scope, terms=terms)[:2]


def held_out_loss(
    model: Recommender, params: Params, data: ClientData, tasks: tuple[Task, ...], recipe: Recipe, *, seed: int
) -> float:
    """Return the loss of the validation rows of one client; see `held_out_many`."""
    only = single(model, data, tasks, recipe, seed)
    return float(held_out_many(only, stack([params]), EMPTY, recipe, seed=seed, chosen=ONE)[0])
