"""The studies of speed and scale, on tiny sizes: what they run, what they compare, and that a wrong result is seen."""

import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fedrec.data import table as read_table
from fedrec.errors import UserError
from fedrec.experiment.config import build
from fedrec.experiment.holdings import clients_data
from fedrec.experiment.records import load_params
from fedrec.params import Params
from fedrec.training.gradients import At
from fedrec.training.learner import Learner
from simulations.cli import arm, parse
from simulations.engines import launch
from simulations.studies import runners, scale, speed
from simulations.studies.__main__ import main
from simulations.studies.loop import run_loop
from simulations.studies.measure import Measured, measured
from simulations.studies.runners import LOOP, REFERENCE, RUNNERS, Result, Runner, compare
from simulations.studies.triples import by_us
from simulations.studies.workloads import COLUMNS, W1, W2, Workload

SMALL = (
    replace(W1, platforms=2, users=12, items=20, mean=6, rounds=2),
    replace(W2, users=9, items=30, mean=8, least=3, rounds=3),
)


@pytest.mark.parametrize("workload", [W1, W2], ids=lambda w: str(w.name))
def test_the_workloads_are_those_of_the_issue(workload: Workload, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    workload.table(0).to_csv(path, index=False)
    parts = clients_data(parse(workload.experiment(path)).experiment)
    rows = np.array([len(data.train) for data in parts])
    assert {len(data.items) for data in parts} == {workload.items}
    assert {len(data.validation) for data in parts} == {len(data.test) for data in parts}
    if workload.name == "W1":
        assert [len(data.users) for data in parts] == [1_000] * 5
        assert rows.tolist() == [20_000] * 5
    else:
        # The mean of 943 such lognormal sizes has a standard error of 106 sqrt(exp(.81) - 1) / sqrt(943) = 3.9.
        assert len(parts) == 943
        assert {len(data.users) for data in parts} == {1}
        assert rows.min() == 20
        assert abs(rows.mean() - 106) < 3 * 3.9
        assert sorted(rows) == sorted(workload.sizes(0, 0))


def test_a_workload_is_a_function_of_its_seed(tmp_path: Path) -> None:
    first, again, other = (SMALL[1].table(seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    assert not first["item"].equals(other["item"])
    assert not first.duplicated(["user", "item"]).any()
    path = tmp_path / "table.csv"
    first.to_csv(path, index=False)
    assert len(read_table(path, COLUMNS).interactions) == len(first)


def test_too_few_users_cannot_meet_all_items() -> None:
    with pytest.raises(UserError, match="users: must be enough to meet 2000 items, found 10"):
        replace(W1, users=10).table(0)


@pytest.mark.parametrize("workload", SMALL, ids=lambda w: str(w.name))
def test_the_loop_trains_as_the_engines_do(workload: Workload, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    workload.table(0).to_csv(path, index=False)
    e = parse([*workload.experiment(path), "--engine", "inline"]).experiment
    results = []
    for name, run in ((REFERENCE, launch), (LOOP, run_loop)):
        home = tmp_path / name
        home.mkdir()
        run(e, home, lambda row: None)
        results.append(runners.read(name, 0, home, Measured(1.0, 1.0, 1)))
    one, other = results
    assert one.distance(other) < 1e-6
    assert one.strayed(other) < 1e-6
    assert len(other.losses) == workload.rounds


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Let studies run in this process; return the engines that were run, `loop` for the loop."""
    ran: list[str] = []

    def fake(experiment: Mapping[str, Any], loop: bool, read: Any, double: bool = False) -> Any:
        e, home = build(dict(experiment)), tmp_path / f"run-{len(ran)}"
        ran.append(LOOP if loop else e.engine)
        home.mkdir()
        engine = e.engine if e.engine == "batched" else "inline"
        torch.set_default_dtype(torch.float64 if double else torch.float32)
        try:
            (run_loop if loop else launch)(e.model_copy(update={"engine": engine}), home, lambda row: None)
        finally:
            torch.set_default_dtype(torch.float32)
        return read(home, Measured(2.0, 100.0, sum(len(data.train) for data in clients_data(e))))

    monkeypatch.setattr(runners, "measured", fake)
    monkeypatch.setattr(scale, "measured", fake)
    return ran


def test_the_study_of_speed_compares_runners_within_a_repeat(in_process: list[str], tmp_path: Path) -> None:
    out = tmp_path / "study"
    assert speed.study(SMALL, ["one-by-one", "superlink"], 2, 0, out) == []
    results, summary = pd.read_csv(out / "results.csv"), pd.read_csv(out / "summary.csv")
    assert in_process[:2] == ["inline", "loop"]  # after one round
    assert in_process[2:6] == ["inline", "loop", "process", "superlink"]
    assert len(results) == 2 * 2 * 4
    for _, own in results.groupby(["workload", "repeat"]):
        loop = float(own[own["runner"] == LOOP]["seconds"].iloc[0])
        np.testing.assert_allclose(own["times"].to_numpy(), loop / own["seconds"].to_numpy())
    assert (results.loc[results["runner"] != LOOP, "difference"] == 0).all()
    assert results["agrees"].all()
    assert (results.loc[results["runner"] != LOOP, ["bytes_up", "bytes_down"]] > 0).all(axis=None)
    for row in summary.to_dict("records"):
        own = results[(results["workload"] == row["workload"]) & (results["runner"] == row["runner"])]
        assert row["times"] == pytest.approx(own["times"].median())
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2 and "WRONG" not in page


@pytest.mark.parametrize(("wrong", "runner"), [("process", "one-by-one"), ("loop", "loop")])
def test_a_fast_runner_with_a_wrong_result_cannot_win(
    wrong: str, runner: str, in_process: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = runners.read

    def spoilt(name: str, repeat: int, home: Path, took: Measured) -> Result:
        result = right(name, repeat, home, took)
        if in_process[-1] == wrong:
            result.shared["item_table"][1, 2] += 2e-5
        return result

    monkeypatch.setattr(runners, "read", spoilt)
    out = tmp_path / "study"
    (told,) = speed.study(SMALL[:1], ["one-by-one"], 1, 0, out)
    assert re.match(rf"W1 {runner}: WRONG RESULT, by (2|1\.99|2\.0\d)e-05", told)
    summary = pd.read_csv(out / "summary.csv").set_index("runner")
    assert summary["agrees"].to_dict() == {REFERENCE: True, LOOP: True, "one-by-one": True} | {runner: False}
    assert summary["times"].isna().to_dict()[runner]
    assert "WRONG RESULT" in (out / "report.html").read_text(encoding="utf-8")


STEP = Learner.step


def round_coarsely(self: Learner, at: At, grads: Params, t: int) -> None:
    STEP(self, at, grads, t)
    value = self.view["item_table"]
    value.mul_(1 + 1_000 * torch.finfo(value.dtype).eps)


def step_shorter(self: Learner, at: At, grads: Params, t: int) -> None:
    value = self.view["body.0.bias"][0]  # of one client
    before = value.clone()
    STEP(self, at, grads, t)
    value.lerp_(before, 0.1)


def swap_rows(self: Learner, at: At, grads: Params, t: int) -> None:
    STEP(self, at, grads, t)
    self.view["item_table"][:2] = self.view["item_table"][:2].flip(0)


def lose_a_row(self: Learner, at: At, grads: Params, t: int) -> None:
    grads["item_table"][0] = 0
    STEP(self, at, grads, t)


@pytest.mark.parametrize(
    ("step", "right"), [(round_coarsely, True), (step_shorter, False), (swap_rows, False), (lose_a_row, False)]
)
def test_stacked_clients_may_round_otherwise_and_do_nothing_else_otherwise(
    step: Any, right: bool, in_process: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Learner, "step", lambda *args: (step if in_process[-1] == "batched" else STEP)(*args))
    out = tmp_path / "study"
    told = speed.study(SMALL[:1], ["batched"], 1, 0, out)
    assert in_process == ["inline", "loop", "batched", "inline", "batched", "inline", "loop", "batched"]
    seen = pd.read_csv(out / "summary.csv").set_index("runner").loc["batched"]
    assert seen["agrees"] == right == np.isfinite(seen["times"]) == (seen["difference_in_double"] < 1e-8)
    assert seen["difference"] > 1e-5
    line = rf"W1 batched: WRONG RESULT, by {seen['difference']:.2g}, in float64 {seen['difference_in_double']:.2g}, "
    assert [text[: len(line)] for text in told] == [line] * (not right)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"in float64 {seen['difference_in_double']:.2g}" in page and ("WRONG RESULT" in page) != right


def test_losses_that_stray_and_what_is_no_number_do_not_agree() -> None:
    def result(name: str, losses: list[float], value: float = 0.0) -> Result:
        row = {"runner": name, "repeat": 0, "seconds": 1.0}
        return Result(row, losses, {"item_table": torch.full((2, 2), value)})

    def agrees(one: Result, early: Result, double: float | None = None) -> bool:
        start = [] if double is None else [result(REFERENCE, [1.0]), result(LOOP, [1.0], double)]
        rows = compare([result(REFERENCE, [1.0, 2.0]), one], [result(REFERENCE, [1.0]), early], start)
        return bool(rows[1]["agrees"])

    assert agrees(result(LOOP, [1.0, 2.0]), result(LOOP, [1.0], 2e-3), 9e-9)
    assert not agrees(result(LOOP, [1.0, 2.0]), result(LOOP, [1.0], 2e-3), 2e-8)
    assert not agrees(result(LOOP, [1.0, 2.0]), result(LOOP, [1.0], 2e-3), float("nan"))
    assert not agrees(result(LOOP, [1.0, 2.002]), result(LOOP, [1.0], 2e-3), 0.0)
    assert agrees(result(LOOP, [1.0, 2.0005], 9.0), result(LOOP, [1.0], 9e-6))
    assert not agrees(result(LOOP, [1.0, 2.002]), result(LOOP, [1.0]))
    assert not agrees(result(LOOP, [1.0, 2.0]), result(LOOP, [1.0], 2e-5))
    assert not agrees(result(LOOP, [1.0, float("nan")]), result(LOOP, [1.0]))
    assert not agrees(result(LOOP, [1.0, 2.0]), result(LOOP, [1.0], float("nan")))
    assert agrees(result("ray", [1.0]), result(LOOP, [1.0]))  # of fewer rounds the losses are compared
    assert not agrees(result("ray", [1.0 + 1e-12]), result(LOOP, [1.0]))
    assert not agrees(result("one-by-one", [1.0, 2.0], 1e-9), result(LOOP, [1.0]))


def test_what_cannot_run_is_named(in_process: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "find_spec", lambda name: None)
    monkeypatch.setitem(RUNNERS, "superlink", Runner("--engine superlink", most=3))
    assert speed.study(SMALL[1:], ["ray", "superlink"], 1, 0, tmp_path / "study") == []
    page = (tmp_path / "study" / "report.html").read_text(encoding="utf-8")
    assert "ray was skipped on W2: the package ray is not installed" in page
    assert "superlink was skipped on W2" in page
    assert set(in_process) == {"inline", "loop"}


def test_a_run_that_fails_fails_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(experiment: Mapping[str, Any], loop: bool, read: Any, double: bool) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(runners, "measured", failing)
    with pytest.raises(SystemExit, match=r"failed: inline: out of memory"):
        main(["speed", "--workloads", "W2", "--runners", "inline", "--out", str(tmp_path / "study")])
    assert not list(tmp_path.iterdir())


def test_a_run_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    SMALL[1].table(0).to_csv(path, index=False)
    e = parse([*SMALL[1].experiment(path), "--engine", "process", "--workers", "1"]).experiment
    took, rounds = measured(
        e.model_dump(mode="json"), False, lambda home, took: (took, (home / "rounds.csv").read_text())
    )
    assert took.rows == sum(SMALL[1].sizes(0, 0))
    assert took.startup > 0.1
    assert took.megabytes > 200  # two processes that have loaded PyTorch
    assert rounds.count("\n") == 1 + SMALL[1].rounds


def test_a_run_can_be_measured_in_float64(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    SMALL[1].table(0).to_csv(path, index=False)
    job = parse([*SMALL[1].experiment(path), "--engine", "batched"]).experiment.model_dump(mode="json")
    found = measured(job, False, lambda home, took: load_params(home / "model" / "shared.safetensors"), double=True)
    assert {value.dtype for value in found.values()} == {torch.float64}


def test_a_measured_run_that_fails_tells_its_last_words(tmp_path: Path) -> None:
    e = parse(SMALL[1].experiment(tmp_path / "nothing.csv")).experiment
    with pytest.raises(RuntimeError, match=r"UserError: .*nothing\.csv"):
        measured(e.model_dump(mode="json"), False, lambda home, took: None)


MARKET = [
    "--market.users",
    "12",
    "--market.items",
    "40",
    "--market.impressions",
    "8",
    "--dim",
    "4",
    "--engine",
    "inline",
]


def test_the_study_of_scale_runs_more_and_more_clients(in_process: list[str], tmp_path: Path) -> None:
    out = tmp_path / "study"
    assert main(["scale", "--clients", "3,6,12", "--repeats", "2", "--out", str(out), *MARKET]) == 0
    results, summary = pd.read_csv(out / "results.csv"), pd.read_csv(out / "summary.csv")
    assert results["clients"].tolist() == [3, 6, 12] * 2
    assert summary["clients"].tolist() == [3, 6, 12]
    assert summary["interactions"].is_monotonic_increasing
    assert (summary["bytes"] / summary["clients"]).nunique() == 1  # everybody sends the same table
    assert "<svg" in (out / "report.html").read_text(encoding="utf-8")


def test_a_straight_line_is_recognised_and_another_curve_is_not() -> None:
    x = [500.0, 1_000, 2_000, 4_000, 6_040]
    line = scale.straight(x, [2.0 + 0.01 * value for value in x])
    assert (line.slope, line.at, line.squared) == pytest.approx((0.01, 2.0, 1.0))
    assert line.ratio == pytest.approx(62.4 / 6_040 / (7.0 / 500))
    through = scale.straight(x, [0.01 * value for value in x])
    assert through.ratio == pytest.approx(1.0)
    square = scale.straight(x, [value**2 for value in x])
    assert square.ratio == pytest.approx(6_040 / 500)
    assert square.squared < 0.97


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["speed", "--runners", "inlin"], "runners: must be one of"),
        (["speed", "--workloads", "W3"], "workloads: must be one of W1, W2"),
        (["speed", "--repeats", "0"], "repeats: must be at least 1, found 0"),
        (["speed", "--rounds", "3"], "option --rounds: no such option"),
        (["scale", "--repeats", "0"], "repeats: must be at least 1, found 0"),
        (["scale", "--clients", "many"], "clients: "),
        (["scale", "--clients", "3", "--rounds", "1"], "rounds: must be at least 2"),
    ],
)
def test_a_wrong_option_ends_with_one_line(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_the_study_of_triples_counts_them_on_every_runner_and_asks_for_what_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--market.users", "40", "--market.items", "60", "--clients", "2", "--dim", "4", "--repeats", "1"]
    assert main(["triples", *flags, "--rounds", "3", "--out", str(tmp_path / "study")]) == 0
    table = pd.read_csv(tmp_path / "study" / "summary.csv")
    assert table[["runner", "loss"]].to_numpy().tolist() == [
        [runner, loss] for loss in ("rank", "rank-bce") for runner in ("pooled", "silos", "stacked")
    ]
    assert (table["speed"] > 0).all() and table["ratio"][0] == 1
    monkeypatch.setitem(sys.modules, "implicit.bpr", None)
    for more, words in ((["--runners", "implicit"], "needs the package implicit"), (["--rounds", "2"], "at least 3")):
        assert main(["triples", *flags, *more, "--out", str(tmp_path / "none")]) == 2
        assert words in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_triples_are_rows_times_epochs_times_sampled_items_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--market.users", "40", "--market.items", "60", "--clients", "2"]
    e = arm([*flags, "--rounds", "4", "--local-epochs", "3", "--num-negatives", "5"])
    seconds = iter((10.0, 10.5, 12.5, 99.0))  # of the rounds between the first and the last .5 and 2
    monkeypatch.setattr("simulations.studies.triples.time.process_time", lambda: next(seconds))
    monkeypatch.setattr("simulations.engines.launch", lambda e, home, told: [told({}) for _ in range(e.rounds)])
    rows = sum(int(data.train.positive.sum()) for data in clients_data(e))
    assert by_us(e, tmp_path) == rows * 3 * 5 / 1.25
