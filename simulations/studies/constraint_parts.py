"""Platforms whose losses are quadratics of what they share: linear regressions on private, fixed features."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fedrec.models import Meta, Module
from fedrec.rng import generator
from simulations.studies.constraint_problems import HALF, NAMES, WIDTH


@dataclass(frozen=True)
class Regressions:
    """A data source: one user on each of four platforms, who has rated items that no other platform has."""

    rows: int = 40
    seed: int = 0

    def load(self) -> pd.DataFrame:
        """Return a row for each rating."""
        g = generator(self.seed, "regressions")
        parts = [
            pd.DataFrame(
                {
                    "user": name,
                    "item": [f"{name}-{self.seed}-{k}" for k in range(self.rows)],
                    "rating": g.normal(2 * g.normal(), 2.0, self.rows),
                    "platform": name,
                    "time": np.arange(self.rows),
                }
            )
            for name in NAMES
        ]
        return pd.concat(parts, ignore_index=True)


class Lines(nn.Module):
    """h(u, i) = features_i . [a, b]."""

    def __init__(self, items: int) -> None:
        super().__init__()
        self.features = nn.Embedding(items, WIDTH)
        self.a, self.b = nn.Parameter(torch.zeros(HALF)), nn.Parameter(torch.zeros(WIDTH - HALF))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Return h [B, 1]."""
        found: Tensor = self.features(item) @ torch.cat([self.a, self.b])
        return found[:, None]


@dataclass(frozen=True)
class Linear(Module):
    """A recommender of two shared blocks, `body.a` and `body.b`; the features of items are a private table."""

    tables = {"features.weight": "item"}  # noqa: RUF012
    std: float = 1.0

    def network(self, meta: Meta) -> nn.Module:
        """See Module."""
        return Lines(meta.items)
