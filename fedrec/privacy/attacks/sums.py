"""What sums over users tell of them: a client's G tells its items and pairs, and a known sum who is in it.

An adversary sees a sum, noisy or exact, and may know a part of it: for the promise, whose worst case this is, the users
of all others. What is left of the sum when the known part is taken away is then one user's, or none's, and noise.
"""

from collections.abc import Sequence

import numpy as np

from fedrec.data.types import Bools
from fedrec.privacy.attacks.scores import Values


def item_scores(gram: Values) -> Values:
    """Return how sure it is, for every item, that some user of a G [m, m] has it: what it adds to the diagonal [m]."""
    return np.diagonal(gram).copy()


def pair_scores(gram: Values) -> Values:
    """Return how sure it is, for every pair of items i < j, that a user has both: the triangle [m (m - 1) / 2] of G."""
    return np.asarray(gram[np.triu_indices(len(gram), 1)])


def best_guesses(scores: Values, count: int) -> Bools:
    """Return the mask [n] of the `count` targets of the largest scores, of equal ones the first."""
    guess = np.zeros(len(scores), np.bool_)
    guess[np.argsort(-scores, kind="stable")[:count]] = True
    return guess


def recovery(scores: Values, truth: Bools) -> float:
    """Return the F1 of as many guesses as there are true targets [n]; guessing at random has their share of all.

    Raises ValueError without a true target.
    """
    if not truth.any():
        raise ValueError("truth: must have a target that is in, found none")
    return float(best_guesses(scores, int(truth.sum()))[truth].mean())


def membership_scores(total: Values, known: Values, contributions: Sequence[Values]) -> Values:
    """Return how sure it is, for each of some users, that what is left of a sum [P] by what is `known` is theirs.

    `contributions` are what each would have added, [P]. The score is <left, c> / |c|: of Gaussian noise the likelihood
    ratio's, which no attack exceeds.
    """
    left = total - known
    return np.array([float(left @ one) / (float(np.linalg.norm(one)) or 1.0) for one in contributions])
