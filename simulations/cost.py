"""What a recommender costs: how many numbers it keeps, and how long it takes to score its catalogue."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from timeit import repeat

import torch
from torch import Tensor

from fedrec.evaluation.scorers import ModelScorer
from fedrec.experiment.records import table_of

BATCH = 100  # users
REPETITIONS = 30


@dataclass(frozen=True)
class Cost:
    """Parameters, and the milliseconds that scoring the whole catalogue takes for one user and for `BATCH` users."""

    parameters: int
    one_ms: float
    batch_ms: float


def cost(scorer: ModelScorer, task: str, users: int) -> Cost:
    """Return what a recommender with `users` users costs; the times are medians over `REPETITIONS`, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one, batch = (milliseconds(scorer, task, [row % users for row in range(n)]) for n in (1, BATCH))
    finally:
        torch.set_num_threads(threads)
    return Cost(parameters(scorer.params), one, batch)


def parameters(params: Mapping[str, Tensor]) -> int:
    """Return how many numbers named tensors hold."""
    return sum(value.numel() for value in params.values())


def milliseconds(scorer: ModelScorer, task: str, rows: list[int]) -> float:
    """Return the median time in which the catalogue is scored for some users; the first time does not count."""
    users = table_of(rows)
    times = repeat(lambda: scorer.score_all(task, users), number=1, repeat=REPETITIONS + 1)
    return 1000 * median(times[1:])
