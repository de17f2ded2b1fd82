"""A tracker is told of a run as it goes, under every engine alike; what fails in it fails nothing else."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import fedrec
from fedrec.errors import UserError
from simulations.apps import read_for_server
from simulations.run import main
from simulations.studies.__main__ import main as study
from tests.own_parts import Lines

SMALL = ["--clients", "3", "--rounds", "3", "--quiet", "--market.users", "24", "--market.items", "30"]
LINES = "tests.own_parts:Lines"


def lines(path: Path) -> list[list[Any]]:
    """Return what a tracker was told."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(out: Path, *options: str) -> int:
    """Run with a tracker that writes beside the folder of the run; return the status."""
    tracker = ["--tracker", LINES, "--tracker.path", str(out.with_suffix(".jsonl"))]
    return main([*SMALL, *tracker, "--out", str(out), *options])


@pytest.mark.parametrize("engine", ["inline", "process"])
def test_a_tracker_is_told_the_experiment_every_round_and_the_summary(engine: str, tmp_path: Path) -> None:
    assert run(tmp_path / "run", "--engine", engine) == 0
    (start, experiment), *rounds, (end, summary) = lines(tmp_path / "run.jsonl")
    record = json.loads((tmp_path / "run" / "experiment.json").read_text())
    assert (start, experiment, end) == ("start", record["experiment"], "end")
    assert [part["use"] for part in record["components"]] == [LINES]
    # Of the run alone, not of its baselines.
    told = pd.DataFrame([row for _, row in rounds])
    pd.testing.assert_frame_equal(told, pd.read_csv(tmp_path / "run" / "rounds.csv"), check_exact=True)
    expected = fedrec.load_run(tmp_path / "run").summary(all_metrics=True)
    pd.testing.assert_frame_equal(pd.DataFrame(summary), expected, check_dtype=False)
    assert expected["alone"].notna().all()
    alone = json.loads((tmp_path / "run" / "baselines" / "local" / "experiment.json").read_text())
    assert alone["experiment"]["tracker"] == "none" and alone["components"] == []


def test_it_changes_nothing_of_the_result(tmp_path: Path) -> None:
    assert run(tmp_path / "run", "--no-compare", "--engine", "inline") == 0
    assert main([*SMALL, "--no-compare", "--engine", "inline", "--out", str(tmp_path / "plain")]) == 0
    one, other = ((tmp_path / name / "clients.csv").read_text() for name in ("run", "plain"))
    assert one == other


def test_one_that_fails_in_a_round_is_told_once_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", "--no-compare", "--engine", "inline", "--tracker.fails", "2") == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "tracker" in line]
    assert len(told) == 1 and "OSError: the disk is full; the run goes on without it" in told[0]
    assert [event for event, _ in lines(tmp_path / "run.jsonl")] == ["start", "1"]
    assert len(pd.read_csv(tmp_path / "run" / "rounds.csv")) == 3


def test_one_that_fails_at_the_start_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", "--engine", "inline", "--tracker.fails", "start") == 2
    told = capsys.readouterr().err
    assert "start: OSError: the disk is full" in told and told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_every_run_of_a_process_has_a_tracker_of_its_own_also_in_python(tmp_path: Path) -> None:
    small: dict[str, Any] = {"clients": 2, "rounds": 1, "engine": "inline", "compare": False, "market": {"users": 24}}
    for name in ("one", "two"):
        fedrec.run(tracker=Lines(str(tmp_path / "both.jsonl")), out=tmp_path / name, **small)
    assert [event for event, _ in lines(tmp_path / "both.jsonl")] == ["start", "1", "end"] * 2


def test_where_no_tracker_would_be_told_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study(["methods", "--seeds", "1", "--tracker", LINES, "--out", str(tmp_path / "study")]) == 2
    assert "option --tracker: is for a single run" in capsys.readouterr().err
    assert main([*SMALL, "--tracker", "tensorboard"]) == 2
    assert "tracker: must be one of none, found 'tensorboard'" in capsys.readouterr().err

    class Context:
        """What Flower gives a ServerApp."""

        run_config = {"clients": 2, "tracker": LINES}  # noqa: RUF012
        run_id = 1

    with pytest.raises(UserError, match="tracker: must be none where Flower starts the run"):
        read_for_server(Context(), 2)  # type: ignore[arg-type]
