"""Attribute inference: gender, age group or occupation of a user, from its item set, its vector or its update.

The adversary knows the attributes of some users (auxiliary knowledge) and has the same features of them: a logistic
regression on those tells the others'. Not by cross-validation: scores that come from one another's attributes vary
together, and a band that takes them for independent covers chance in 84 to 88 % of the cases, not in 95.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec.data.types import Bools, Ints
from fedrec.privacy.attacks.membership import Held
from fedrec.privacy.attacks.recovery import direction, item_scores, item_set
from fedrec.privacy.attacks.scores import Values, ranks
from fedrec.privacy.transcript import Transcript
from fedrec.tasks import Task

COMPONENTS = 100


def unit(rows: NDArray[np.generic]) -> Values:
    """Return rows [n, d] scaled to length 1; a row of zeros stays."""
    rows = np.asarray(rows, np.float64)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300), np.float64)


def infer(features: Values, *, known: Values, attributes: Bools, l2: float = 1.0) -> Values:
    """Return the logits [n, k] that users with `features` [n, d] have attributes.

    Auxiliary knowledge: features `known` [m, d] of other users and which of the attributes they have [m, k]. One
    logistic regression each, on the first principal components of the standardised features, at most `COMPONENTS`.
    """
    mean, deviation = known.mean(0), known.std(0)
    moving = deviation > 1e-9
    scale = np.where(moving, deviation, np.inf) * math.sqrt(max(int(moving.sum()), 1))  # so that |x| is about 1
    x = (known - mean) / scale
    size, axes = np.linalg.eigh(x @ x.T)  # x = axes sqrt(size) v^T
    main = size > max(1e-9 * float(size[-1]), 1e-12)
    main[:-COMPONENTS] = False
    back = axes[:, main] / np.sqrt(np.maximum(size[main], 1e-300))
    train, new = (np.column_stack([part @ x.T @ back, np.ones(len(part))]) for part in (x, (features - mean) / scale))
    return np.column_stack([new @ logistic(train, column, l2) for column in attributes.T])


def logistic(x: Values, attribute: Bools, l2: float, steps: int = 50) -> Values:
    """Return argmin_w sum_j log(1 + e^(-y_j w.x_j)) + l2/2 |w|^2 [d] by Newton's method, x [m, d], y = +-1 [m]."""
    y, w = attribute.astype(np.float64), np.zeros(x.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-x @ w))
        curvature = (x.T * (p * (1 - p))) @ x + l2 * np.eye(len(w))
        step = np.linalg.solve(curvature, x.T @ (y - p) - l2 * w)
        w = w + step
        if float(np.abs(step).max()) < 1e-6 * (1 + float(np.abs(w).max())):
            break
    return w


def infer_ranks(features: Values, known: Bools, attributes: Bools) -> Values:
    """Return how likely it is that users have attributes, column by column, as one vector [k * users not known].

    `features` [users, d] are of all users, `attributes` [users known, k] of those in the mask `known` [users]. Every
    column has its own intercept: logits are compared after their ranks within it, so that a frequent attribute does not
    pass for a likely one, and chance is an AUC of 1/2.
    """
    return np.asarray(ranks(infer(features[~known], known=features[known], attributes=attributes)).T.ravel())


def one_hot(values: Sequence[str], least: int = 20) -> Bools:
    """Return which user has which value [users, k], for the values of at least `least` users.

    Raises ValueError if there is none.
    """
    kinds, counts = np.unique(np.asarray(values, dtype=str), return_counts=True)
    if counts.max(initial=0) < least:
        raise ValueError(f"values: {least} users must have one in common, found {counts.max(initial=0)}")
    return np.asarray(np.asarray(values, dtype=str)[:, None] == kinds[counts >= least])


def from_item_sets(
    transcript: Transcript, *, clients: Sequence[str], tasks: tuple[Task, ...], known: Bools, attributes: Bools
) -> Values:
    """Return `infer_ranks` by the item sets that `recovery` finds of one-user `clients`, as vectors of unit length."""
    sets = [item_set(item_scores(transcript, client, tasks=tasks)) for client in clients]
    return infer_ranks(unit(np.stack(sets)), known, attributes)


def from_updates(transcript: Transcript, *, clients: Sequence[str], known: Bools, attributes: Bools) -> Values:
    """Return `infer_ranks` by the movement of every item's row in all rounds of one-user `clients`, at unit length."""
    moved = [np.sum([direction(round_) for round_ in transcript.of(client)], axis=0) for client in clients]
    return infer_ranks(unit(np.stack(moved)), known, attributes)


def from_vectors(
    transcript: Transcript, *, users: Ints, held: Mapping[str, Held], known: Bools, attributes: Bools
) -> Values:
    """Return `infer_ranks` by the vectors of `users`, with a bias if they have one, for an insider of all platforms.

    They are those of the platforms' last round. A user table that is shared is in the transcript, and what is held of
    it does not count.
    """
    vectors: dict[int, NDArray[np.float64]] = {}
    for client, kept in held.items():
        params = {**kept.private, **list(transcript.of(client))[-1].x}
        tables = [params[name] for name in ("user_table", "user_bias") if name in params]
        rows = torch.cat(tables, dim=1).double().numpy()
        vectors |= dict(zip(kept.users.tolist(), rows, strict=True))
    return infer_ranks(np.stack([vectors[user] for user in users.tolist()]), known, attributes)
