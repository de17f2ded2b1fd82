"""The private head of a client that learns by sums: how much of its own sums it adds to the federation's."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from clients.client import Client
from clients.state import State
from fedrec.evaluation.evaluate import Evaluation, evaluate, held_out
from fedrec.evaluation.scorers import ModelScorer
from fedrec.experiment.holdings import dataset, reader
from fedrec.experiment.kept import is_kept, load_kept
from fedrec.models import NoisyRecommender
from fedrec.models.noisy import ALONE
from fedrec.models.quadratic import EXACT
from fedrec.models.released import SHARES
from fedrec.params import Params
from fedrec.sharing import Broadcast

WEIGHTS = (0.0, 1.0, 4.0)  # among which a client chooses
OF_NOISY = (ALONE, *(1 / share for share in SHARES if share))  # where the others' sums have noise
FEWEST = 20  # users with held-out rows, of whom a choice says something


def choose_head(client: Client, state: State, broadcast: Broadcast) -> tuple[State, Evaluation | None]:
    """Return the state with the weight w of a client's own sums, chosen on its validation, and how that does there.

    It is the smallest w, from 0 (the shared model), that is within one standard error of the best one: the error is of
    the mean of the users' differences. A client with few users to choose by has w = 0, as have all
    whose sums over pairs are of so many items that each w would take a minute. A w that is given stays.
    """
    e, data = client.experiment, client.data
    if kept_head(client):
        return state, None
    held = held_out(data, "validation")
    many = len(dataset(e).items) > EXACT and not e.sums.active
    if not e.chooses_heads or many or len(np.unique(held.user[held.positive])) < FEWEST:
        return state, None
    model = reader(e, data, "validation")
    if isinstance(model, NoisyRecommender):
        return choose_share(client, state, broadcast, model), None
    results = []
    for weight in WEIGHTS:
        params = e.sharing().join(broadcast.values, with_weight(state.now.private, weight))
        result = evaluate(
            ModelScorer(model, params),
            data,
            client.tasks,
            "validation",
            metrics=e.metrics,
            candidates=e.candidates,
            seed=e.seed,
        )
        results.append(result)
    scores = np.array([result.per_user[0].values for result in results])
    gap = scores[scores.mean(1).argmax()] - scores
    best = int(np.argmax(gap.mean(1) <= gap.std(1, ddof=1) / gap.shape[1] ** 0.5))
    private = with_weight(state.now.private, WEIGHTS[best])
    return state._replace(now=state.now._replace(private=private)), results[best]


def choose_share(client: Client, state: State, broadcast: Broadcast, model: NoisyRecommender) -> State:
    """Return the state with the weight w of a client's own exact sums beside the noisy ones of others.

    It is the best on validation by the mean gain of all places, which tells more of few users than a first page does;
    to be alone is among the choices, and is taken where nothing is better.
    """
    e, data, found = client.experiment, client.data, []
    for weight in OF_NOISY:
        scorer = ModelScorer(model, e.sharing().join(broadcast.values, with_weight(state.now.private, weight)))
        every = (f"ndcg@{len(data.items)}",)
        result = evaluate(scorer, data, client.tasks, "validation", metrics=every, candidates=e.candidates, seed=e.seed)
        found.append(float(result.per_user[0].values.mean()))
    best = with_weight(state.now.private, OF_NOISY[int(np.argmax(found))])
    return state._replace(now=state.now._replace(private=best))


def kept_head(client: Client) -> Params:
    """Return the head that a client keeps of a run that is gone on from; nothing where it is to choose one."""
    e = client.experiment
    if e.start is None or e.retune or not e.chooses_heads:
        return {}
    name = client.data.name
    kept = load_kept(e.start, name) if is_kept(e.start, name) else {}
    return {name: value for name, value in kept.items() if name.startswith("heads.")}


def with_weight(private: Mapping[str, Tensor], weight: float) -> Params:
    """Return private parameters with the weight w of every head."""
    return {n: torch.full_like(v, weight) if n.startswith("heads.") else v for n, v in private.items()}
