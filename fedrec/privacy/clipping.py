"""The clipped sum of gradients by unit: one unit moves it by at most the clip."""

import torch
from torch import Tensor

from fedrec.keyed import TABLES
from fedrec.params import Params
from fedrec.privacy.gradients import Gradients
from fedrec.privacy.units import Batch

SLACK = 1 - 2.0**-18  # what float32 may add to a norm


def clipped(gradients: Gradients, batch: Batch, weight: Tensor, clip: float, into: Params, own: Params) -> None:
    """Add the sum over units of w_u g_u min(1, C / |w_u g_u|) to `into`, whose names are clipped together.

    Write the gradients of the units' own rows, unclipped, to those of their users in `own`. A unit whose gradient is
    not finite, or whose norm overflows, adds nothing to either.
    """
    norm = gradients.norms(into)
    sound = norm.isfinite()
    for name in own:
        sound &= gradients.dense[name].isfinite().flatten(1).all(1)
    factor = torch.where(sound, torch.minimum(weight.double(), SLACK * clip / norm), 0.0).float()
    whole = bool(sound.all())
    for name, total in into.items():
        if name in gradients.dense:
            value, f, index = gradients.dense[name], factor, batch.user
        else:
            value, f, index = gradients.pairs[name], factor[gradients.unit], gradients.item
        value = value * f.view(-1, *[1] * (value.dim() - 1))
        if not whole:
            value = value.nan_to_num(0.0, 0.0, 0.0)  # 0 times what is not finite
        if name in TABLES:
            total.index_add_(0, index, value)
        else:
            total += value.sum(0)
    for name, total in own.items():
        value = gradients.dense[name]
        total[batch.user] = torch.where(sound.view(-1, *[1] * (value.dim() - 1)), value, 0.0)
