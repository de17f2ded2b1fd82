"""The student of a server: it learns from logits alone."""

import torch
from torch import Tensor

from fedrec.errors import UserError
from fedrec.models import Recommender
from fedrec.optimisers import Optimiser
from fedrec.parameters import Params, finite
from fedrec.seeds import generator


def distil(
    model: Recommender,
    params: Params,
    task: str,
    user: Tensor,
    item: Tensor,
    logits: Tensor,
    *,
    optimiser: Optimiser,
    batch_size: int,
    epochs: int,
    l2: float,
    seed: int,
) -> Params:
    """Return the student's parameters after `epochs` passes over the pairs: theta ~ argmin mean (s_ui - z_ui)^2.

    `user`, `item` [n] are rows of the student's tables and `logits` [n] the consensus z of the teachers, as ensemble
    distillation has it (FedDF, arXiv 2006.07242, eq. 1) with squared errors for scores; plus `l2` times the penalty of
    the rows. Nothing else is known of the teachers or their data. `params` is where the student starts, left unchanged.
    Raises UserError if it diverged: a pass has a loss, or ends with parameters, that are not finite.
    """
    params = {name: value.detach().clone().requires_grad_(True) for name, value in params.items()}
    names, state, t = sorted(params), optimiser.start(params), 0
    for epoch in range(epochs):
        order = torch.from_numpy(generator(seed, "distil", epoch).permutation(len(user)))
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            u, i = user[part], item[part]
            error = model.head(params, task, model.features(params, u, i)) - logits[part]
            loss = error.square().mean() + l2 * model.penalty(params, u, i).mean()
            found = torch.autograd.grad(loss, [params[name] for name in names])
            t += 1
            optimiser.step(params, dict(zip(names, found, strict=True)), state, t)
        if not (finite(loss) and all(finite(value) for value in params.values())):
            rule = f"lr: must be small enough for a finite student, found {optimiser.lr}, with which it diverged"
            raise UserError(f"{rule} in pass {epoch + 1} of {epochs}")
    return {name: value.detach() for name, value in params.items()}
