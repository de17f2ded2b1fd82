"""Attribute inference: gender, age group or occupation of a user, from its item set, its vector or its update.

The adversary knows the attributes of some users (auxiliary knowledge) and has the same features of them: a logistic
regression on those tells the others'.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec.data.types import Bools, Ints
from fedrec.privacy.attacks.membership import Held
from fedrec.privacy.attacks.recovery import direction, item_scores, item_set
from fedrec.privacy.attacks.scores import Values
from fedrec.privacy.transcript import Transcript
from fedrec.seeds import generator
from fedrec.tasks import Task


def item_sets(transcript: Transcript, clients: Sequence[str], *, tasks: tuple[Task, ...]) -> Values:
    """Return the item sets [clients, items] that `recovery` finds of one-user clients, as vectors of unit length."""
    return unit(np.stack([item_set(item_scores(transcript, client, tasks=tasks)) for client in clients]))


def updates(transcript: Transcript, clients: Sequence[str]) -> Values:
    """Return the movement of every item's row in all rounds [clients, items], as vectors of unit length."""
    return unit(np.stack([np.sum([direction(one) for one in transcript.of(client)], axis=0) for client in clients]))


def vectors(transcript: Transcript, users: Ints, *, held: Mapping[str, Held]) -> Values:
    """Return the vectors and biases [users, d + 1] of users, from their platforms' last round; for an insider of all.

    A user table that is shared is in the transcript, and what is held of it does not count.
    """
    found: dict[int, NDArray[np.float64]] = {}
    for client, one in held.items():
        sent = list(transcript.of(client))[-1].x
        tables = [{**one.private, **sent}[name] for name in ("user_table", "user_bias")]
        rows = torch.cat(tables, dim=1).double().numpy()
        found |= dict(zip(one.users.tolist(), rows, strict=True))
    return np.stack([found[user] for user in users.tolist()])


def unit(rows: NDArray[np.generic]) -> Values:
    """Return rows [n, d] scaled to length 1; a row of zeros stays."""
    rows = np.asarray(rows, np.float64)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300), np.float64)


def infer(features: Values, *, known: Values, attribute: Bools, l2: float = 1.0, steps: int = 50) -> Values:
    """Return the logit [n] that users with `features` [n, d] have an attribute.

    Auxiliary knowledge: features `known` [m, d] of other users and whether those have it, `attribute` [m]. Logistic
    regression on standardised columns, min_w sum_j log(1 + e^(-y_j w.x_j)) + l2/2 |w|^2 with |x_j|^2 about 1, by
    Newton's method (reweighted least squares) in the space of the m users: w = X^T a.
    """
    mean, scale = known.mean(0), known.std(0)
    scale = np.where(scale > 1e-9, scale, np.inf) * np.sqrt(max(int((scale > 1e-9).sum()), 1))
    x, y = (known - mean) / scale, attribute.astype(np.float64)
    gram, a = x @ x.T + 1.0, np.zeros(len(y))  # + 1: an intercept, that is penalised as little as it matters
    for _ in range(steps):
        f = gram @ a
        p = 1 / (1 + np.exp(-f))
        weight = np.maximum(p * (1 - p), 1e-9)
        before, a = a, np.linalg.solve(gram + np.diag(l2 / weight), f + (y - p) / weight)
        if float(np.abs(a - before).max()) < 1e-6 * float(np.abs(a).max() + 1e-12):
            break
    return np.asarray(((features - mean) / scale @ x.T + 1.0) @ a)


def crossed(features: Values, attribute: Bools, *, folds: int = 5, seed: int = 0, l2: float = 1.0) -> Values:
    """Return what `infer` says of every user [n] when the attributes of the other folds' users are known: for scoring.

    Every fold's logits have its own intercept, so that they are compared after their ranks within the fold.
    """
    fold = generator(seed, "folds").permutation(len(attribute)) % folds
    found = np.zeros(len(attribute))
    for k in range(folds):
        out = fold == k
        found[out] = ranks(infer(features[out], known=features[~out], attribute=attribute[~out], l2=l2))
    return found


def ranks(scores: Values) -> Values:
    """Return where every score [n] lies among all, from 0 to 1, equal ones in the middle of their places."""
    ordered = np.sort(scores)
    below = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
    return np.asarray(below / (2 * max(len(scores), 1)), np.float64)


def one_hot(labels: Sequence[str], least: int = 20) -> Bools:
    """Return which user has which label [users, labels], for the labels of at least `least` users."""
    values, counts = np.unique(np.asarray(labels, dtype=str), return_counts=True)
    return np.asarray(np.asarray(labels, dtype=str)[:, None] == values[counts >= least])


def each(features: Values, attribute: Bools) -> Values:
    """Return `crossed` scores of every column of `attribute` [users, k], column by column, [users * k].

    They are ranks within a column, so that a frequent label does not pass for a likely one: chance is an AUC of 1/2.
    """
    return np.concatenate([ranks(crossed(features, column)) for column in attribute.T])


def from_item_sets(
    transcript: Transcript, *, clients: Sequence[str], tasks: tuple[Task, ...], attribute: Bools
) -> Values:
    """Return `each` by the item sets of one-user clients; `attribute` [clients, k] is known of all but who is asked."""
    return each(item_sets(transcript, clients, tasks=tasks), attribute)


def from_updates(transcript: Transcript, *, clients: Sequence[str], attribute: Bools) -> Values:
    """Return `each` by the updates of one-user clients; `attribute` [clients, k] is known of all but who is asked."""
    return each(updates(transcript, clients), attribute)


def from_vectors(transcript: Transcript, *, users: Ints, held: Mapping[str, Held], attribute: Bools) -> Values:
    """Return `each` by the users' vectors, for an insider of all platforms; `attribute` [users, k] as above."""
    return each(vectors(transcript, users, held=held), attribute)
