"""The private head of a client that learns by sums: how much of its own sums it adds to the federation's."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from clients.client import Client
from clients.state import State
from fedrec.evaluation.evaluate import evaluate, held_out
from fedrec.evaluation.scorers import ModelScorer
from fedrec.experiment.holdings import reader
from fedrec.params import Params
from fedrec.sharing import Broadcast

WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # among which a client chooses
FEWEST = 20  # users with held-out rows, of whom a choice says something


def choose_head(client: Client, state: State, broadcast: Broadcast) -> State:
    """Return the state with the weight w of a client's own sums that does best on its validation.

    w = 0, the shared model, is always a candidate, and all there is for a client with few users to choose by. Ties go
    to the smaller w.
    """
    e, data = client.experiment, client.data
    held = held_out(data, "validation")
    if not e.has_heads or len(np.unique(held.user[held.positive])) < FEWEST:
        return state
    model = reader(e, data, "validation")
    scores = []
    for weight in WEIGHTS:
        params = e.sharing().join(broadcast.values, with_weight(state.now.private, weight))
        result = evaluate(
            ModelScorer(model, params),
            data,
            client.tasks,
            "validation",
            metrics=e.metrics[:1],
            candidates=e.candidates,
            seed=e.seed,
        )
        scores.append(next(iter(result.metrics.values())))
    best = WEIGHTS[int(np.argmax(scores))]
    return state._replace(now=state.now._replace(private=with_weight(state.now.private, best)))


def with_weight(private: Mapping[str, Tensor], weight: float) -> Params:
    """Return private parameters with the weight w of every head."""
    return {n: torch.full_like(v, weight) if n.startswith("heads.") else v for n, v in private.items()}
