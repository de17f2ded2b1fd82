"""Gradient inversion of a batch: which users rated which items, from one step of SGD on them.

What deep leakage from gradients finds by optimisation (arXiv 1906.08935), factorisation gives by linear algebra: the
gradient of an item's row is a combination of the vectors of the few users in the batch who rated it. Of the batch's
records k of item i, with residuals e_k = p_k . q_i + b_i + c - r_k,

    B/(2 lr) (z - x)_i = sum_k (e_k p_k + l2 q_i)

is solved for few users by orthogonal matching pursuit.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedrec.data.types import Ints
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import initial
from fedrec.privacy.attacks.scores import Values
from fedrec.privacy.attacks.targets import Records
from fedrec.privacy.transcript import Exchanged, Transcript
from fedrec.training.recipe import Recipe

TERMS = 8  # users of one item in a batch that are looked for; d = 32 equations tell about so many of a thousand


def gradient(round_: Exchanged, *, recipe: Recipe, size: int) -> tuple[dict[str, Values], dict[str, Values]]:
    """Return z and B/(2 lr) (z - x) of the item table [items, d] and its biases [items, 1], B the `size` of a batch."""
    z = {name: np.asarray(round_.z[name].double().numpy()) for name in ("item_table", "item_bias")}
    x = {name: np.asarray(round_.x[name].double().numpy()) for name in z}
    return z, {name: (z[name] - x[name]) * size / (2 * recipe.optimiser.rate(name)) for name in z}


def pursuit(g: Values, atoms: Values, each: Values, tolerance: float = 1e-3) -> tuple[Ints, Values]:
    """Return rows [k] of `atoms` [m, d] and coefficients e [k] with sum_k (e_k a_k + each) = g [d], and few terms.

    Orthogonal matching pursuit: the atom with the largest cosine to what is left comes next, then all are refitted.
    """
    length = np.linalg.norm(atoms, axis=1)
    chosen: list[int] = []
    e = np.zeros(0)
    left: NDArray[np.float64] = g
    while len(chosen) < min(TERMS, len(g)) and np.linalg.norm(left) > tolerance * np.linalg.norm(g):
        chosen.append(int(np.argmax(np.abs(atoms @ left) / np.maximum(length, 1e-12))))
        target = g - len(chosen) * each
        e = np.asarray(np.linalg.lstsq(atoms[chosen].T, target, rcond=None)[0], np.float64)
        left = np.asarray(target - e @ atoms[chosen], np.float64)
    return np.asarray(chosen, np.int64), e


def membership(transcript: Transcript, records: Records, *, experiment: Experiment, population: int) -> Values:
    """Return the coefficient [n] that every record's user has in the first update of its item's row, 0 without one.

    It is |e_k| / |e| of `pursuit`. Known beside the transcript: hyper-parameters and seed, and with them the vectors
    that the users of a `population` of so many global ids start with.
    """
    everybody, recipe = np.arange(population), experiment.recipe()

    def score(client: str, part: Records, place: Tensor) -> Values:
        round_, scores = next(iter(transcript.of(client))), np.zeros(len(part))
        model, size = experiment.recommender(client), max(int(transcript.joined[client].metrics.get("examples", 1)), 1)
        atoms = initial(experiment, model, everybody, part.item[:0], {})["user_table"].double().numpy()
        z, g = gradient(round_, recipe=recipe, size=size)
        for row in np.unique(place.numpy()):
            rows = np.flatnonzero(place.numpy() == row)
            chosen, e = pursuit(g["item_table"][row], atoms, recipe.l2 * z["item_table"][row])
            share = np.zeros(population)
            share[chosen] = np.abs(e) / max(float(np.linalg.norm(e)), 1e-300)
            scores[rows] = share[part.user[rows]]
        return scores

    return records.scored(transcript, score)
