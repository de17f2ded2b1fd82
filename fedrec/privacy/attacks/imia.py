"""Interaction-level membership inference on a one-user client by shadow training (IMIA, arXiv 2301.10964)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from fedrec.data.types import Bools, Ints
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import initial
from fedrec.params import Params
from fedrec.privacy.attacks.recovery import STILL, distance
from fedrec.privacy.attacks.scores import Values
from fedrec.privacy.transcript import Exchanged, Transcript
from fedrec.rng import generator
from fedrec.training.losses import trainable


def imia(
    transcript: Transcript, client: str, *, experiment: Experiment, user: int, keep: float = 0.5, seed: int = 0
) -> Values:
    """Return how sure it is, for every item that a client carries [items], that its user interacted with it.

    The paper's loop: give the items that moved in the first round fake labels, as many positive ones as the client says
    it has; train a shadow of the client on them, from the same broadcast; confirm the labels of the fraction `keep` of
    items whose rows came nearest to the client's; label the rest anew. An item's score is its confirmed label, +1 or
    -1, the larger the sooner it was confirmed. For clients whose task is a ranking. Known beside the transcript: hyper-
    parameters and seed, and with the global id of the `user` the vector that it starts with (the paper draws one).
    """
    round_ = next(iter(transcript.of(client)))
    rng, far = generator(seed, "imia", client), distance(round_)
    open_ = np.flatnonzero(far > STILL * float(far.max(initial=0.0)))
    touched, quota = open_, int(transcript.joined[client].metrics.get("examples", len(open_) / 5))
    scores = np.full(len(far), -3.0)
    label = np.zeros(len(far), np.bool_)
    for turn in range(20):
        left = max(min(quota - int((scores > 0).sum()), len(open_)), 0)
        label[open_] = False
        label[rng.permutation(open_)[:left]] = True
        x = shadow(round_, transcript.ids(client, "item_table"), touched, label, experiment, user)
        parts = [(round_.x[name] - x[name]).double() for name in ("item_table", "item_bias") if name in x]
        gap = torch.cat(parts, dim=1).norm(dim=1).numpy()[open_]  # of every item's row, table and bias
        order = np.argsort(gap, kind="stable")[: max(1, round(keep * len(open_)))]
        sure = open_[order]
        scores[sure] = np.where(label[sure], 1.0, -1.0) * (1 + 1 / (1 + turn))
        open_ = np.setdiff1d(open_, sure)
        if not len(open_):
            break
    scores[open_] = 0.0
    return scores


def shadow(round_: Exchanged, items: Ints, touched: Ints, label: Bools, experiment: Experiment, user: int) -> Params:
    """Return what a client would send if `label` [items] told its positives among the items that it `touched`.

    Every step is on all of them: binary cross entropy, in which the negatives count as much as those that are sampled.
    """
    e, task = experiment, experiment.tasks(round_.client)[0]
    model, recipe, sharing = e.recommender(round_.client), e.recipe(), e.sharing()
    private = sharing.split(initial(e, model, np.asarray([user]), items, {task.name: 0.0}))[1]
    params = {name: value.clone() for name, value in sharing.join(round_.z, private).items()}
    item, liked = torch.from_numpy(touched), torch.from_numpy(label[touched])
    count = max(int(liked.sum()), 1)
    each = 1.0 if task.loss == "bpr" else float(recipe.num_negatives)
    weight = torch.where(liked, 1.0, -each * count / max(len(item) - count, 1)) / count
    names = trainable(params, (task,), sharing, "all", recipe.optimiser)
    state = recipe.optimiser.start({name: params[name] for name in names})
    for t in range(1, recipe.epochs * len(recipe.phases) + 1):
        leaves = {name: params[name].requires_grad_(True) for name in names}
        s = model.head(params, task.name, model.features(params, torch.zeros_like(item), item))
        loss = (weight.abs() * F.softplus(-s * weight.sign())).sum()
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        params = {name: value.detach() for name, value in params.items()}
        filled = {
            name: torch.zeros_like(params[name]) if g is None else g for name, g in zip(names, grads, strict=True)
        }
        recipe.optimiser.step(params, filled, state, t)
    return sharing.split(params)[0]


def catalogue_imia(
    transcript: Transcript, *, clients: Sequence[str], users: Ints, experiment: Experiment, seed: int
) -> Values:
    """Return `imia` of one-user clients, whose `users` [clients] are named by global id, laid end to end."""
    pairs = zip(clients, users.tolist(), strict=True)
    return np.concatenate([imia(transcript, c, experiment=experiment, user=u, seed=seed) for c, u in pairs])
