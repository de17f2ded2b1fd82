"""Quality against bytes: what is paired, what is counted, and what is said of it."""

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedrec.errors import UserError
from simulations.engines import launch
from simulations.studies.__main__ import main
from simulations.studies.compression import ARMS, measure, plan, summary

TINY = ["--market.users", "30", "--market.items", "40", "--rounds", "2"]


def planned(arms: str, *flags: str, seeds: int = 2) -> list[Any]:
    """Return the runs that options ask for."""
    return plan(Namespace(arms=arms, seeds=seeds, margin=0.002, flags=[*TINY, *flags]))


def test_every_codec_runs_with_and_without_feedback_beside_none() -> None:
    runs = planned(",".join(ARMS))
    assert len(runs) == 2 * (2 * len(ARMS) - 1)
    assert len({run.experiment.model_dump_json() for run in runs}) == len(runs)
    first = [run for run in runs if run.labels["seed"] == 0]
    assert not first[0].experiment.codec.active
    for run in first[1:]:
        assert run.experiment.codec.active
        assert run.experiment.codec.feedback == (not run.labels["arm"].endswith("without feedback"))
    plain = {run.experiment.model_copy(update={"codec": first[0].experiment.codec}).model_dump_json() for run in first}
    assert len(plain) == 1


def test_what_cannot_be_left_out_has_no_control_and_what_cannot_act_is_refused() -> None:
    assert {run.labels["arm"] for run in planned("4-bit", "--method", "admm")} == {"none", "4-bit"}
    with pytest.raises(UserError, match=r"codec\.kind: acts only with something that is shared"):
        planned("4-bit", "--method", "local")
    with pytest.raises(UserError, match="did you mean '4-bit'"):
        planned("4bit")


def test_the_bytes_are_those_of_the_ledger(tmp_path: Path) -> None:
    run = planned("4-bit", seeds=1)[1]
    rows = measure(run, tmp_path / "a")
    launch(run.experiment, tmp_path / "b")
    sums = {"up": 0, "down": 0}
    with (tmp_path / "b" / "ledger.csv").open() as file:
        for row in csv.DictReader(file):
            sums[row["direction"]] += int(row["bytes"])
    assert {(row["run_up"], row["run_down"]) for row in rows} == {(sums["up"], sums["down"])}
    assert len(rows) == 5 and {row["metric"] for row in rows} == {"ndcg@10"}


def test_differences_are_paired_by_seed_and_judged_by_their_whole_interval() -> None:
    none, noise = np.array([0.1, 0.2, 0.3, 0.4]), np.array([1e-4, -1e-4, 1e-4, -1e-4])
    arms = {"none": none, "same": none + noise, "worse": none - 0.01 + noise, "wild": none - 30 * noise}
    table = pd.DataFrame(
        [
            {"arm": name, "seed": seed, "value": value + 0.001 * client, "up": 8.0, "run_up": 9, "run_down": 9}
            for seed in range(4)
            for name, values in arms.items()
            for client, value in ((-1, values[seed]), (1, values[seed]))
        ]
    )
    found = {row["arm"]: row for row in summary(table, "ndcg@10", 0.002)}
    assert [row["within"] for row in found.values()] == ["", "yes", "no", "unclear"]
    assert found["worse"]["minus_none"] == pytest.approx(-0.01) and found["worse"]["verdict"] == "hurt"
    half = 3.182446 * noise.std(ddof=1) / 2  # Student's t with 3 degrees of freedom
    assert found["same"]["minus_none_high"] == pytest.approx(half, rel=1e-5)


def test_the_study_has_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["compression", "--arms", "3-bit", "--seeds", "2", "--workers", "1", "--out", str(out), *TINY]) == 0
    shown, page = capsys.readouterr().out, (out / "report.html").read_text(encoding="utf-8")
    assert "3-bit off" in shown and "margin: 0.002" in shown and "3-bit without feedback" in page
    assert list(pd.read_csv(out / "summary.csv")["arm"]) == ["none", "3-bit", "3-bit without feedback"]
