"""The ratings study on small synthetic markets: what one round is, what is promised, and what is measured."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data
from fedrec.experiment.records import load_params
from fedrec.privacy.accounting import epsilon
from fedrec.privacy.guarantee import guarantees
from simulations.engines import launch
from simulations.studies import harness
from simulations.studies.__main__ import main
from simulations.studies.ratings import CHOSEN, LINES, NONE, Choice, best, errors, experiment_of
from tests.helpers import Here

SMALL = ["--dataset", "synthetic", "--market.users", "25", "--market.items", "60", "--market.impressions", "30"]
PRIVATE = [name for name, line in LINES.items() if line.private]


def small(line: str, budget: str, choice: Choice) -> Experiment:
    return experiment_of(line, budget, choice, SMALL, 0)


def rated(e: Experiment) -> tuple[np.ndarray, np.ndarray]:
    """Return the training and the test ratings [users, items], NaN where there are none."""
    train, test = (np.full((25, 60), math.nan) for _ in range(2))
    for data in clients_data(e):
        for table, rows in ((train, data.train), (test, data.test)):
            table[data.users[rows.user], data.items[rows.item]] = rows.rating
    return train, test


@pytest.mark.parametrize("line", PRIVATE)
def test_a_round_without_noise_adds_up_every_users_residuals_divided_by_their_norm(line: str, tmp_path: Path) -> None:
    # With z = 0 a user's bias is its mean, and what it sends is along e_u = r_u - mean, clipped to 1: e_u / |e_u|. The
    # mean over all 25 users moves z by the step; the score of the one round is 3 + (mean - 3) + z_i.
    e = small(line, "inf", Choice(1, 5.0))
    launch(e, tmp_path)
    train, test = rated(e)
    mean = np.nanmean(train, axis=1, keepdims=True)
    residual = np.nan_to_num(train - mean)
    z = 5.0 * (residual / np.linalg.norm(residual, axis=1, keepdims=True)).sum(0) / 25
    found = load_params(tmp_path / "model" / "shared.safetensors")
    assert set(found) == {"item_bias"}
    np.testing.assert_allclose(found["item_bias"][:, 0].numpy(), z, atol=2e-5)
    score = mean + z
    expected = [math.sqrt(np.nanmean((one - test) ** 2)) for one in (score, score.clip(1, 5))]
    assert list(errors(e, tmp_path)) == pytest.approx(expected, abs=1e-5)


def test_alone_a_user_predicts_its_mean(tmp_path: Path) -> None:
    e = small("users alone", NONE, CHOSEN["users alone"][NONE])
    launch(e, tmp_path)
    train, test = rated(e)
    error = math.sqrt(np.nanmean((np.nanmean(train, axis=1, keepdims=True) - test) ** 2))
    assert errors(e, tmp_path)[0] == pytest.approx(error, abs=1e-5)


def test_the_error_is_that_of_all_test_ratings_together(tmp_path: Path) -> None:
    e = small("silos alone", NONE, Choice(2, 0.01))
    launch(e, tmp_path)
    rows = pd.read_csv(tmp_path / "clients.csv")
    each = rows[rows["split"] == "test"].set_index("client")["value"]
    count = {data.name: int(np.isfinite(data.test.rating).sum()) for data in clients_data(e)}
    whole = math.sqrt(sum(count[name] * each[name] ** 2 for name in count) / sum(count.values()))
    assert len(count) == 5
    assert errors(e, tmp_path)[0] == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("line", PRIVATE)
def test_a_round_is_one_noisy_step_and_all_rounds_spend_the_budget(line: str) -> None:
    e = small(line, "2", Choice(10, 4.0))
    assert (e.privacy.unit, e.partition) in {("client", "one-user"), ("user", "users")}
    promised = guarantees(e)
    assert len(promised) == (1 if line == "users" else 5)
    for one in promised.values():
        assert (one.event.count, one.event.rate, one.rounds, one.overlap) == (1, 1.0, 10, 1)
        assert 1.99 < epsilon([one.event.times(10)], 1e-5) <= 2


def test_training_has_all_ratings_that_are_not_tested() -> None:
    e = small("users", "2", Choice(1, 1.0))
    assert not any(len(data.validation) for data in clients_data(e))
    tested = sum(len(data.test) for data in clients_data(e)) / (25 * 30)
    assert tested == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / (25 * 30)))


def test_something_was_chosen_for_every_line_and_from_its_grid() -> None:
    for name, line in LINES.items():
        assert set(CHOSEN[name]) == ({"1", "2", "4", "8", "inf"} if line.private else {NONE})
        assert set(CHOSEN[name].values()) <= set(line.grid)


def test_the_best_choice_has_the_least_error_at_its_budget() -> None:
    table = pd.DataFrame(
        {"line": ["users"] * 4, "epsilon": ["1", "1", "2", "2"], "step": [1, 2, 1, 2], "mean": [1.0, 0.9, 0.7, 0.8]}
    )
    assert best(table)["step"].tolist() == [2, 1]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the runs of the study in this process: to start one for each costs seconds."""
    monkeypatch.setattr(harness, "ProcessPoolExecutor", Here)


@pytest.mark.usefixtures("here")
def test_the_study_runs_every_line_at_every_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["ratings", "--epsilon", "1,8", "--seeds", "2", "--out", str(tmp_path / "study"), *SMALL]
    assert main(arguments) == 0
    results = pd.read_csv(tmp_path / "study" / "results.csv", keep_default_na=False)
    assert len(results) == 2 * (2 * len(PRIVATE) + len(LINES) - len(PRIVATE))
    for row in results.to_dict("records"):
        if row["epsilon"] == NONE:
            assert row["spent"] == ""
        else:
            assert 0.99 * float(row["epsilon"]) < float(row["spent"]) <= float(row["epsilon"])
    summary = pd.read_csv(tmp_path / "study" / "summary.csv")
    for (line, budget), own in results.groupby(["line", "epsilon"]):
        (row,) = summary[(summary["line"] == line) & (summary["epsilon"] == budget)].to_dict("records")
        assert (row["mean"], row["sd"]) == (pytest.approx(own["rmse"].mean()), pytest.approx(own["rmse"].std()))
    page = (tmp_path / "study" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1
    shown = capsys.readouterr().out
    assert all(name in page and name in shown for name in LINES)


@pytest.mark.usefixtures("here")
def test_the_page_names_the_clients_of_the_run(tmp_path: Path) -> None:
    arguments = [
        "ratings",
        "--lines",
        "silos alone",
        "--seeds",
        "1",
        "--clients",
        "3",
        "--out",
        str(tmp_path / "study"),
    ]
    assert main([*arguments, *SMALL]) == 0
    assert "Three silos that share nothing" in (tmp_path / "study" / "report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("here")
def test_choosing_shows_the_best_of_the_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["ratings", "--choose", "--lines", "silos alone", "--seeds", "1", "--out", str(tmp_path / "study")]
    assert main([*arguments, *SMALL[2:]]) == 0
    results = pd.read_csv(tmp_path / "study" / "results.csv")
    assert results["rounds"].tolist() == [5, 10, 20, 40]
    least = min(results.to_dict("records"), key=lambda row: float(row["rmse"]))
    assert f" {least['rounds']}  {least['step']:g}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--seeds", "0"], "seeds, workers: must be at least 1, found 0"),
        (["--lines", "user"], "lines: must be one of silos, silos alone"),
        (["--epsilon", "3"], "epsilon: must be one of 1, 2, 4, 8, inf, found '3'"),
    ],
)
def test_a_wrong_study_ends_with_one_line(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ratings", "--out", "never", *arguments, *SMALL]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
