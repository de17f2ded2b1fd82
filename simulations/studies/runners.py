"""Ways to run a workload, what comes of a run, and whether two of them agree."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from fedrec.experiment.config import Experiment
from fedrec.experiment.records import load_params
from fedrec.params import Params
from simulations.studies.measure import Measured, measured

REFERENCE, LOOP = "inline", "loop"
CLOSE = 1e-5  # of parameters after one round, and
STRAYED = 1e-3  # of losses in all rounds: where sums are made in another order, Adam lets small differences grow


class Runner(NamedTuple):
    """How a workload is run: the options of its engine, and whether its result must be the reference to the bit."""

    flags: str
    exact: bool = True
    most: int = 10**9  # clients that it is measured with


RUNNERS = {
    REFERENCE: Runner("--engine inline"),
    LOOP: Runner("--engine inline", exact=False),
    "batched": Runner("--engine batched", exact=False),
    "process-1": Runner("--engine process --workers 1", exact=False),  # stacked from 64 clients on
    "process-2": Runner("--engine process --workers 2", exact=False),
    "one-by-one": Runner("--engine process --workers 1 --stack no"),
    "superlink": Runner("--engine superlink", most=10),  # a process for each client
    "ray": Runner("--engine ray"),
}


@dataclass(frozen=True)
class Result:
    """What came of a run: what it took, the mean training loss of every round, and the shared parameters."""

    row: dict[str, Any]
    losses: list[float]
    shared: Params

    def strayed(self, other: "Result") -> float:
        """Return the largest difference of a loss, over the rounds that both have."""
        gaps = [abs(a - b) for a, b in zip(self.losses, other.losses, strict=False)]
        return math.inf if any(map(math.isnan, gaps)) else max(gaps)

    def distance(self, other: "Result") -> float:
        """Return the largest difference of a shared parameter after the last round.

        Of a run with fewer rounds the losses are compared: a round's depends on the parameters before it.
        """
        if len(self.losses) != len(other.losses):
            return self.strayed(other)
        if self.shared.keys() != other.shared.keys():
            return math.inf
        gaps = [float((value - other.shared[name]).abs().max()) for name, value in self.shared.items()]
        return math.inf if any(map(math.isnan, gaps)) else max(gaps)


def attempted(plan: Mapping[str, Experiment], repeat: int, wrong: list[str]) -> list[Result]:
    """Return the results of runs in processes of their own; `wrong` gets those that fail."""
    results = []
    for name, experiment in plan.items():
        try:
            results.append(measured(experiment.model_dump(mode="json"), name == LOOP, partial(read, name, repeat)))
        except RuntimeError as error:
            wrong.append(f"{name}: {error}")
    return results


def read(runner: str, repeat: int, home: Path, took: Measured) -> Result:
    """Return what came of a run."""
    rounds = pd.read_csv(home / "rounds.csv")
    quiet = rounds[:-1]  # the last round's messages are also those of its evaluation
    row = {
        "runner": runner,
        "repeat": repeat,
        "rows": took.rows,
        "rounds": len(rounds),
        "startup": took.startup,
        "seconds": float(rounds["seconds"][1:].median()),
        "megabytes": took.megabytes,
        "bytes_down": float(quiet["bytes_down"].median()),
        "bytes_up": float(quiet["bytes_up"].median()),
    }
    return Result(row, rounds["train_loss"].tolist(), load_params(home / "model" / "shared.safetensors"))


def compare(results: Sequence[Result], first: Sequence[Result]) -> list[dict[str, Any]]:
    """Return a row for every run: what it took, against the loop of its repeat, and how far its result is off.

    `first` are results after one round, by which those are judged that need not be equal to the bit.
    """
    references = [next((r for r in runs if r.row["runner"] == REFERENCE), None) for runs in (results, first)]
    loops = {r.row["repeat"]: r.row["seconds"] for r in results if r.row["runner"] == LOOP}
    early = {r.row["runner"]: r for r in first}
    rows = []
    for result in results:
        name, off, strayed = result.row["runner"], math.inf, math.inf
        exact = RUNNERS[name].exact
        judged, reference = (result, references[0]) if exact else (early.get(name), references[1])
        if judged and reference and references[0]:
            off, strayed = judged.distance(reference), result.strayed(references[0])
        agrees = off <= (0.0 if exact else CLOSE) and strayed <= (0.0 if exact else STRAYED)
        times = loops.get(result.row["repeat"], math.nan) / result.row["seconds"] if agrees else math.nan
        rows.append({**result.row, "times": times, "difference": off, "strayed": strayed, "agrees": agrees})
    return rows
