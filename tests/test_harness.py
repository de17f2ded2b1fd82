"""What all studies share: options, runs in order, files, tables."""

import os
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from fedrec.errors import UserError
from fedrec.report.study import Page, Part
from simulations.cli import arm
from simulations.studies import harness
from simulations.studies.harness import Findings, Run, Study, carry_out, conduct, facts
from simulations.studies.options import parse_options
from simulations.studies.tables import by_arm, differences, ends, spread, table_of
from tests.helpers import Here

OPTIONS: dict[str, tuple[Any, str]] = {
    "arms": ("b,a", "arms"),
    "seeds": (2, "seeds"),
    "deep": (False, "?"),
    "n": (int, "?"),
}


def plan(options: Namespace) -> list[Run]:
    flags = ["--market.users", "40", "--market.items", "40", "--clients", "2", *options.flags]
    return [
        Run({"arm": name, "seed": seed}, arm([*flags, "--seed", str(seed)]), folder=f"{name}-{seed}" if seed else "")
        for seed in range(options.seeds)
        for name in options.arms.split(",")
    ]


def measure(run: Run, home: Path) -> list[dict[str, Any]]:
    """Write where the run is, and return two rows; its folder is its own, and not there yet."""
    home.mkdir()
    (home / "seen").write_text(str(run.experiment.seed))
    return [{**run.labels, "value": run.experiment.seed + 10.0 * k} for k in range(2)]


def findings(results: pd.DataFrame, runs: Sequence[Run], options: Namespace) -> Findings:
    rows = [{"arm": name, **spread(values)} for name, values in by_arm(results, "arm").items()]
    page = Page("Title", "Words", "kicker", [Part("Part", [{"arm": str(row["arm"])} for row in rows])], facts(runs))
    return Findings(rows, page, notes=["a note"])


TOY = Study("methods", OPTIONS, plan, measure, findings, workers=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_study_keeps_the_order_of_its_runs_and_their_folders(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "ProcessPoolExecutor", Here)
    conduct(replace(TOY, workers=workers), ["--out", str(tmp_path / "out")])
    results, summary = (pd.read_csv(tmp_path / "out" / f"{name}.csv") for name in ("results", "summary"))
    assert list(zip(results["arm"], results["seed"], results["value"], strict=True)) == [
        (name, seed, seed + ten) for seed in range(2) for name in "ba" for ten in (0.0, 10.0)
    ]
    # Each seed's mean over the two rows is 5 and 6.
    assert summary.to_dict("records") == [{"arm": n, "mean": 5.5, "sd": pytest.approx(0.5**0.5)} for n in "ba"]
    # Only runs that name a folder leave one.
    assert {path.parent.name for path in (tmp_path / "out").glob("*/seen")} == {"b-1", "a-1"}
    shown, page = capsys.readouterr().out, (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert shown.startswith("kicker") and "a note" in shown and "Part" in page and "market" in page
    assert f"report: {tmp_path / 'out' / 'report.html'}" in shown


def test_a_real_pool_keeps_the_order_too(tmp_path: Path) -> None:
    runs = plan(parse_options("methods", OPTIONS, ["--arms", "b,a,c"]))
    here, there = (carry_out(TOY, workers, tmp_path / str(workers), runs[:3]) for workers in (0, 2))
    pd.testing.assert_frame_equal(here, there)


def test_one_worker_is_this_process_with_one_thread_while_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(harness, "ProcessPoolExecutor")
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        one = replace(TOY, measure=lambda run, home: [{"process": os.getpid(), "threads": torch.get_num_threads()}])
        (row,) = carry_out(one, 1, tmp_path, plan(parse_options("methods", OPTIONS, []))[:1]).to_dict("records")
        assert row == {"process": os.getpid(), "threads": 1} and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_pool_has_one_thread_a_process_and_one_run_where_that_is_asked(
    fresh: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []

    class Told(Here):
        def __init__(self, workers: int, *args: Any, **more: Any) -> None:
            super().__init__(workers)
            asked.append(
                (
                    workers,
                    args[0].get_start_method(),
                    more["initializer"],
                    more["initargs"],
                    more["max_tasks_per_child"],
                )
            )

    monkeypatch.setattr(harness, "ProcessPoolExecutor", Told)
    carry_out(replace(TOY, fresh=fresh), 3, tmp_path, [])
    assert asked == [(3, "spawn", torch.set_num_threads, (1,), 1 if fresh else None)]


def test_what_cannot_be_run_leaves_nothing(tmp_path: Path) -> None:
    for argv, text in (
        (["--seeds", "0"], "seeds: must be at least 1, found 0"),
        (["--seeds", "x"], "option --seeds: invalid int value: 'x'"),
        (["--device", "cuda:99"], "device"),  # of the check of every experiment
        (["--sequence.history", "3"], "option --sequence.history: acts only with"),  # in none of them
    ):
        with pytest.raises(UserError, match=text):
            conduct(TOY, [*argv, "--out", str(tmp_path / "out")])

    def failing(run: Run, home: Path) -> list[dict[str, Any]]:
        home.mkdir()
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        conduct(replace(TOY, measure=failing), ["--out", str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_fails_is_written_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = Findings(tables=[Part("", [{"check": "noise"}])], failed="noise")
    with pytest.raises(SystemExit, match="failed: noise"):
        conduct(replace(TOY, findings=lambda *_: bad, results="findings.csv"), ["--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "findings.csv").exists() and not (tmp_path / "out" / "report.html").exists()
    assert f"results: {tmp_path / 'out'}" in capsys.readouterr().out


def test_what_is_refined_is_run_in_place_of_the_plan(tmp_path: Path) -> None:
    def refine(runs: list[Run], options: Namespace, carry: harness.Carry, home: Path) -> list[Run]:
        tried = carry(runs[:1])
        (home / "tried").write_text(str(tried["value"].tolist()))
        return runs[1:]

    conduct(replace(TOY, refine=refine), ["--out", str(tmp_path / "out")])
    assert len(pd.read_csv(tmp_path / "out" / "results.csv")) == 3 * 2
    assert (tmp_path / "out" / "tried").read_text() == "[0.0, 10.0]"


def test_options_have_their_types_and_what_is_left_is_of_a_run() -> None:
    found = parse_options("methods", OPTIONS, ["--deep", "--rounds", "7", "--n", "3"])
    assert (found.arms, found.seeds, found.deep, found.n) == ("b,a", 2, True, 3)
    assert found.out == Path("runs/study-methods") and found.flags == ["--rounds", "7"]
    assert parse_options("methods", OPTIONS, []).n is None


def test_arms_are_paired_by_seed() -> None:
    rows = [("a", 1, 1.0), ("b", 0, 5.0), ("a", 0, 3.0), ("b", 1, 4.0), ("a", 0, 5.0)]  # as they come
    values = by_arm(pd.DataFrame(rows, columns=["arm", "seed", "value"]), "arm")
    assert {name: list(of) for name, of in values.items()} == {"a": [4.0, 1.0], "b": [5.0, 4.0]}
    gap = ends(differences(values, "b", {"gap": "a", "own": "b", "none": "c"}))
    assert list(gap) == ["gap", "gap_low", "gap_high"] and gap["gap"] == 2.0
    one = spread(np.array([3.0]))
    assert one["mean"] == 3.0 and np.isnan(one["sd"])


@pytest.mark.parametrize("width", [60, 40, 20])
def test_a_table_loses_nothing_where_it_is_narrow(width: int) -> None:
    row = {
        "arm": "a name that is rather long",
        "mean": ".1234",
        "gap [95%]": "+.034 [-.171, +.238]",
        "verdict": "clear",
    }
    console = Console(width=width, markup=False, emoji=False)
    with console.capture() as caught:
        console.print(table_of(Part("", [row]), width))
    shown = caught.get()
    assert max(map(len, shown.splitlines())) <= width
    # A number stands in one line where the numbers and the first words fit.
    assert (row["gap [95%]"] in shown) == (width == 60)
    assert not Counter("".join([*row, *row.values()])) - Counter(shown) - Counter({" ": 99})
