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
# Where sums are made in another order the largest difference may be so much, of parameters after one round, and
CLOSE = 1e-5
# if it is more, of the same in float64. A sum that is rounded otherwise may have the other sign at the kink of a ReLU,
# whose derivative then differs by 1, and Adam makes a step of that; with 53 bits no sum is so close to 0. What another
# rounding does not explain is as large in float64.
CLOSE_IN_DOUBLE = 1e-8
STRAYED = 1e-3  # of losses in all rounds


class Runner(NamedTuple):
    """How a workload is run: the options of its engine, and whether its result must be the reference to the bit."""

    flags: str
    exact: bool = True
    one_process: bool = False  # so that it can be run in float64
    most: int = 10**9  # clients that it is measured with


RUNNERS = {
    REFERENCE: Runner("--engine inline", one_process=True),
    LOOP: Runner("--engine inline", exact=False, one_process=True),
    "batched": Runner("--engine batched", exact=False, one_process=True),
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


def attempted(plan: Mapping[str, Experiment], repeat: int, wrong: list[str], double: bool = False) -> list[Result]:
    """Return the results of runs in processes of their own, if `double` in float64; `wrong` gets those that fail."""
    results = []
    for name, experiment in plan.items():
        job = experiment.model_dump(mode="json")
        try:
            results.append(measured(job, name == LOOP, partial(read, name, repeat), double))
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


def apart(results: Sequence[Result]) -> dict[str, float]:
    """Return, by runner, how far the results after one round are from the reference; infinity without one."""
    reference = next((result for result in results if result.row["runner"] == REFERENCE), None)
    return {result.row["runner"]: result.distance(reference) if reference else math.inf for result in results}


def doubtful(first: Sequence[Result]) -> list[str]:
    """Return the runners to run in float64, with the reference: whose results after one round are not close to it."""
    far = [name for name, off in apart(first).items() if off > CLOSE and RUNNERS[name].one_process]
    return [REFERENCE, *far] if far else []


def compare(results: Sequence[Result], first: Sequence[Result], double: Sequence[Result] = ()) -> list[dict[str, Any]]:
    """Return a row for every run: what it took, against the loop of its repeat, and how far its result is off.

    `first` are results after one round, by which those are judged that need not be equal to the bit; `double` are the
    same in float64, of those that are not close. Where nothing was run in float64 the difference there is NaN.
    """
    reference = next((result for result in results if result.row["runner"] == REFERENCE), None)
    loops = {r.row["repeat"]: r.row["seconds"] for r in results if r.row["runner"] == LOOP}
    early, in_double = apart(first), apart(double)
    rows = []
    for result in results:
        name, off, fine, strayed = result.row["runner"], math.inf, math.nan, math.inf
        if reference:
            strayed = result.strayed(reference)
        if RUNNERS[name].exact:
            off = result.distance(reference) if reference else math.inf
            agrees = off == strayed == 0
        else:
            off, fine = early.get(name, math.inf), in_double.get(name, math.nan)
            agrees = (off <= CLOSE or fine <= CLOSE_IN_DOUBLE) and strayed <= STRAYED
        times = loops.get(result.row["repeat"], math.nan) / result.row["seconds"] if agrees else math.nan
        seen = {"difference": off, "difference_in_double": fine, "strayed": strayed, "agrees": agrees}
        rows.append({**result.row, "times": times, **seen})
    return rows
