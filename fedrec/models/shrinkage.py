"""Symmetric sums with noise: what eigenvalues say of those without it, and a recommender of what is left."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array, diags_array

from fedrec.data.types import Ints
from fedrec.models.contributions import Values


def shrink_eigenvalues(matrix: Values, noise: float) -> Values:
    """Return a positive semidefinite matrix [m, m] of one with symmetric noise, `noise` the deviation on its diagonal.

    Off the diagonal noise is smaller by sqrt(2): its eigenvalues end at e = noise sqrt(2 m). One of l > e comes of y =
    (l + sqrt(l^2 - e^2)) / 2, and its eigenvector has the cosine squared 1 - (e / (2 y))^2 with the true one (arXiv
    0910.2120): y times that is kept. All others are noise. Without noise nothing changes.
    """
    values, vectors = np.linalg.eigh(matrix)
    edge = noise * np.sqrt(2.0 * len(matrix))
    kept = values > max(edge, np.finfo(np.float64).tiny)  # half of less is 0, by which is divided
    found, vectors = values[kept], vectors[:, kept]
    true = (found + np.sqrt(found**2 - edge**2)) / 2
    return np.asarray((vectors * (true * (1 - (edge / (2 * true)) ** 2))) @ vectors.T)


@dataclass(frozen=True)
class Pairs:
    """A linear model B [m, m] of weighted histories over a head, with zero diagonal, and popularity beside it.

    A user's items of the head have their `weight` [m]; what B says of an item is divided by its weight.
    """

    head: Ints
    weight: Values
    popularity: Values  # [items]
    model: Values

    @staticmethod
    def of(matrix: Values, noise: float, head: Ints, weight: Values, popularity: Values) -> "Pairs":
        """Return EASE (arXiv 1905.03375) of a noisy gram [m, m] of weighted histories, shrunk, ridge noise sqrt(m)."""
        m = len(head)
        system = shrink_eigenvalues(matrix, noise) + max(noise * np.sqrt(m), 1e-9) * np.eye(m)
        inverse = np.linalg.inv(system)
        model = -inverse / np.diagonal(inverse)
        np.fill_diagonal(model, 0)
        return Pairs(head, weight, popularity, model)

    def scores(self, x: csr_array) -> Values:
        """Return the scores [B, items] of histories x [B, items]; outside the head, below them, by popularity."""
        inside = csr_array(x[:, self.head] @ diags_array(self.weight))
        scores = np.tile(self.popularity / max(float(self.popularity.max()), 1e-12) * 1e-9, (x.shape[0], 1))
        scores[:, self.head] += (inside @ self.model) / self.weight
        return scores
