"""What clients and server of a run agree on before anything is summed in secret, each from its own configuration."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec.errors import UserError
from fedrec.privacy.discrete import Distributed
from fedrec.privacy.encoding import Encoding
from fedrec.privacy.masks import Words
from fedrec.privacy.noise import Source
from fedrec.privacy.rule import Privacy
from fedrec.privacy.secure_sum import SecureSum


@dataclass(frozen=True)
class Terms:
    """How many clients a round asks and needs, how few may carry a row that is summed, and how numbers travel."""

    clients: int
    threshold: int
    carriers: int
    encoding: Encoding
    noise: Distributed | None = None

    def values(self, words: Words) -> NDArray[np.float64]:
        """Return the sum [P] that words stand for."""
        return (self.noise or self.encoding).values(words)

    def words(self, x: NDArray[np.float64], weight: int, source: Source) -> Words:
        """Return what a client adds [P]: its weighted vector or, where it adds noise, its clipped and noisy change."""
        return self.noise.words(x, source) if self.noise else self.encoding.words(x, weight)


def terms_of(rule: SecureSum, privacy: Privacy, clients: int, uniform: bool, noise: float | None = None) -> Terms:
    """Return the terms for rounds of so many clients; `noise` is the multiplier of the sum if they add noise to it.

    Raises UserError where they cannot hold.
    """
    threshold = rule.needed(clients)
    encoding = Encoding(rule.bound, clients, 1) if uniform else Encoding(rule.bound, clients)
    encoding.digits  # noqa: B018 - raises if the bound leaves none
    if privacy.unit != "client" or privacy.where != "sum":
        return Terms(clients, threshold, rule.carriers, encoding)
    if noise is None:
        raise UserError("privacy.noise: must be known for noise in a secure sum, found none")
    return Terms(clients, threshold, rule.carriers, encoding, Distributed(privacy.clip, noise, threshold))
