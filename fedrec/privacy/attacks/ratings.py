"""Rating recovery: what a one-user client gave its items, from one round of its training (matrix factorisation)."""

import math

import numpy as np
from torch import Tensor

from fedrec.data.types import Ints
from fedrec.experiment.config import Experiment
from fedrec.privacy.attacks.recovery import STILL, distance
from fedrec.privacy.attacks.scores import Values
from fedrec.privacy.attacks.targets import Records
from fedrec.privacy.transcript import Exchanged, Transcript
from fedrec.training.recipe import Recipe

SCALE = np.arange(1.0, 6.0)


def recovered_ratings(
    round_: Exchanged, *, recipe: Recipe, offset: float | None = None, prior: Values | None = None
) -> tuple[Ints, Values]:
    """Return the positions [n] among the client's items that its user rated, and the ratings [n], 1 to 5.

    Known beside the round: the hyper-parameters; and either the head's `offset`, which a client that shares its head
    tells, or a `prior`, the frequencies [5] of the ratings in public. One step of SGD on a user's n ratings moves

        b_i by -lr (2/n) (e_i + l2 b_i),   q_i by -lr (2/n) (e_i p_u + l2 q_i),   e_i = p_u . q_i + b_i + c - r_i

    so that the b_i give e_i, and with them the q_i give p_u. A shift of all ratings that c follows changes no gradient:
    only that they are whole numbers of the scale, and the offset or the prior, tell c. Several steps are taken for one
    of their sum, which holds as long as the residuals change little.
    """
    far = distance(round_)
    touched = np.flatnonzero(far > STILL * float(far.max(initial=0.0)))
    if not len(touched):
        return touched, np.zeros(0)
    z = {name: round_.z[name].double()[touched] for name in ("item_table", "item_bias")}
    x = {name: round_.x[name].double()[touched] for name in ("item_table", "item_bias")}
    n, lr = len(touched), {name: recipe.optimiser.rate(name) for name in z}
    if "heads.rating.bias" in round_.z:
        offset = float(round_.z["heads.rating.bias"])
    passes = recipe.epochs * sum(phase != "private" for phase in recipe.phases)
    size = min(n, recipe.batch_size)
    g = {name: (z[name] - x[name]) * size / (2 * lr[name] * passes) - recipe.l2 * z[name] for name in z}
    e = g["item_bias"][:, 0]
    p = (g["item_table"] * e[:, None]).sum(0) / e.square().sum()
    known = (z["item_table"] @ p + z["item_bias"][:, 0] - e).numpy()  # r_i - c
    c = fitting(known, prior) if offset is None else offset
    return touched, np.clip(np.rint(known + c), SCALE[0], SCALE[-1])


def rating_scores(transcript: Transcript, records: Records, *, experiment: Experiment, prior: Values) -> Values:
    """Return the rating [n] that the first round of every record's one-user client gives away, 0 where it gives none.

    Known beside the transcript: hyper-parameters, the `prior` of ratings, and for which items it is asked.
    """

    def score(client: str, part: Records, item: Tensor) -> Values:
        rated, rating = recovered_ratings(next(iter(transcript.of(client))), recipe=experiment.recipe(), prior=prior)
        table = np.zeros(len(transcript.ids(client, "item_table")))
        table[rated] = rating
        return np.asarray(table[item.numpy()])

    return records.scored(transcript, score)


def fitting(known: Values, prior: Values | None) -> float:
    """Return the c for which r = known + c [n] are whole numbers of the scale, the most frequent ones in public.

    The fraction of c is the circular mean of those of -known. Of what is left it is the one with the fewest ratings
    outside the scale, then with the highest likelihood under `prior` [5].
    """
    turn = np.exp(-2j * math.pi * known).sum()
    fraction = math.atan2(turn.imag, turn.real) / (2 * math.pi)
    weight = np.log(np.maximum(np.full(5, 0.2) if prior is None else prior / prior.sum(), 1e-12))

    def fits(c: float) -> tuple[float, float]:
        r = np.rint(known + c).astype(np.int64)
        outside = (r < 1) | (r > 5)
        return -float(outside.sum()), float(weight[r[~outside] - 1].sum())

    middle = float(np.median(known))  # is on the scale as well
    low, high = math.floor(1 - middle) - 1, math.ceil(5 - middle) + 1
    return max((fraction + shift for shift in range(low, high + 1)), key=fits)
