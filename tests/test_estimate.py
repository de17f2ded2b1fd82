"""Whether what a run is said to take is near what it takes, and what the estimate grows with."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fedrec.report.findings import size
from simulations.cli import parse
from simulations.estimate import TRUST, Estimate, estimate, lasting
from simulations.studies.measure import Measured, measured

MARKET = ["--market.users", "300", "--market.items", "1000", "--market.impressions", "60", "--engine", "inline"]
MANY = ["--partition", "one-user", "--market.users", "1000", "--market.items", "1000", "--market.impressions", "60"]
RUNS = [
    ["--clients", "3", *MARKET, "--model", "mf", "--rounds", "20"],
    [*MANY, "--engine", "batched", "--model", "mf", "--rounds", "3", "--eval-every", "3"],
    ["--clients", "3", *MARKET, "--market.items", "2500", "--model", "slist"],
    ["--clients", "3", *MARKET, "--model", "mf", "--rounds", "5", "--engine", "process", "--workers", "2"],
]


def took(*argv: str, compare: bool = False) -> Estimate:
    return estimate(parse(argv).experiment, compare)


@pytest.mark.soak
@pytest.mark.parametrize("argv", RUNS, ids=["silos", "one user each", "sums", "processes"])
def test_an_estimate_is_near_what_a_run_takes(argv: list[str], tries: Callable[[int, int], int]) -> None:
    tries(0, 1)
    e = parse(argv).experiment
    found, before = estimate(e, False), resource.getrusage(resource.RUSAGE_CHILDREN)

    def read(home: Path, took: Measured) -> Any:
        return took.megabytes * 2**20, pd.read_csv(home / "rounds.csv")

    peak, rounds = measured(e.model_dump(mode="json"), False, read)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert len(rounds) == e.rounds and seconds > 1
    assert found.memory / TRUST <= peak <= found.memory * TRUST
    assert found.time / TRUST <= seconds <= found.time * TRUST


SMALL = ["--market.users", "30", "--market.items", "60", "--market.impressions", "12", "--engine", "inline"]


def test_what_an_estimate_grows_with() -> None:
    base = took("--clients", "2", *SMALL, "--model", "mf", "--rounds", "10")
    assert took("--clients", "2", *SMALL, "--model", "mf", "--rounds", "20").seconds["rounds"] == pytest.approx(
        2 * base.seconds["rounds"]
    )
    assert took("--clients", "2", *SMALL, "--model", "mlp", "--rounds", "10").time > base.time
    wide = took("--clients", "2", *SMALL, "--model", "mf", "--rounds", "10", "--dim", "65")
    assert wide.bytes["tables"] == pytest.approx(2 * base.bytes["tables"])
    # Baselines are trained as long as the run, each, and the closed forms beside them.
    assert took("--clients", "2", *SMALL, "--model", "mf", "--rounds", "10", compare=True).seconds["baselines"] > (
        base.seconds["rounds"] + base.seconds["evaluation"]
    )
    # A private item table is held by every client.
    alone = took("--partition", "one-user", *SMALL, "--model", "mf", "--share", "")
    shared = took("--partition", "one-user", *SMALL, "--model", "mf")
    assert alone.bytes["tables"] > 10 * shared.bytes["tables"]


def test_of_sums_the_catalogue_counts() -> None:
    one, two = (took("--clients", "2", *SMALL, "--model", "slist", "--market.items", str(n)) for n in (100, 200))
    assert two.bytes["tables"] == pytest.approx(4 * one.bytes["tables"])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3.21, "3.2 seconds"),
        (45, "45 seconds"),
        (119, "119 seconds"),
        (150, "2.5 minutes"),
        (9000, "2.5 hours"),
        (86_400 * 3, "3 days"),
    ],
)
def test_times_are_said_in_their_unit(seconds: float, text: str) -> None:
    assert lasting(seconds) == text


def test_the_words_of_an_estimate_say_that_it_is_one() -> None:
    found = took("--clients", "2", *SMALL, "--model", "mf")
    assert found.words().startswith(f"about {size(found.memory)} of memory") and "by estimate" in found.words()
    assert sum(found.bytes.values()) == found.memory and sum(found.seconds.values()) == found.time
