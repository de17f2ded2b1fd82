"""What several tasks in one client gain or lose: a run for each task, their balance, and the choice of the round."""

import json
import math
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedrec.experiment.records import NOT_SINGLE, SINGLE
from fedrec.report.findings import warnings
from fedrec.report.page import write_report
from fedrec.report.several import Balance, balance, balance_of, balances, transfer
from fedrec.report.tables import CLIENTS, EVERYONE, compare, read_run
from server.scores import NEAR_ZERO, selection_scores
from simulations.baselines import comparisons, single_task
from simulations.closing import notes, several
from simulations.run import main
from tests.helpers import experiment

TINY = "--market.users 20 --market.items 60 --market.impressions 10 --clients 3 --rounds 4 --dim 4 --engine inline"
MIXED = ["--task", "click,buy*0.5;shop=rating", "--hidden", "6,4", "--experts", "2", "--model", "mmoe"]


def test_every_client_that_has_the_task_has_it_alone_and_nothing_else_changes() -> None:
    e = experiment(task="rank-bce,like*0.5;shop=buy, rank*2;news=rating")
    one = single_task(e, "rank")
    assert one.task == "rank-bce;shop=rank;news=rating"
    assert single_task(e, "buy").task == "rank-bce;shop=buy;news=rating"
    assert one.model_copy(update={"task": e.task}) == e


def test_a_run_of_clients_with_one_task_each_is_compared_with_no_run_for_each_task() -> None:
    others, why = comparisons(experiment(task="rank;shop=rating"))
    assert (list(others), why) == (["local", "pooled"], {})
    others, why = comparisons(experiment("local", task="rating;shop=rating,click"))
    assert (list(others), why) == (["pooled", "single-task/rating", "single-task/click"], {})
    assert others["single-task/click"] == experiment("local", task="rating;shop=click")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"model": "esmm", "task": "click,buy"}, "model: esmm needs the tasks click and buy"),
        ({"model": "aitm", "task": "click,buy"}, "model: aitm needs two or more of the tasks"),
        ({"method": "agreement", "task": "rank,click", "volunteers": 5}, "every client must have the task rank"),
        (
            {"task": "rank,click", "privacy": {"unit": "user", "epsilon": "8"}, "weights": "uniform"},
            "a privacy budget of its",
        ),
    ],
)
def test_where_tasks_cannot_be_parted_the_reason_is_told(fields: dict[str, Any], why: str) -> None:
    others, found = comparisons(experiment(**fields))
    assert list(others)[:2] == ["local", "pooled"] and not any(name.startswith(SINGLE) for name in others)
    assert why in found[NOT_SINGLE]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two clients with two tasks and one with another, with its baselines."""
    out = tmp_path_factory.mktemp("several") / "out"
    assert main([*TINY.split(), *MIXED, "--eval-every", "2", "--quiet", "--out", str(out)]) == 0
    return out


def test_the_run_of_a_task_is_what_a_run_of_that_task_alone_is(compared: Path, tmp_path: Path) -> None:
    folder = compared / "baselines" / "single-task"
    assert sorted(path.name for path in folder.iterdir()) == ["buy", "click"]
    argv = [*TINY.split(), *MIXED, "--task", "buy;shop=rating", "--eval-every", "2", "--no-compare", "--quiet"]
    assert main([*argv, "--out", str(tmp_path / "buy")]) == 0
    assert (tmp_path / "buy" / "clients.csv").read_text() == (folder / "buy" / "clients.csv").read_text()


def test_every_task_of_every_client_is_measured_in_every_evaluated_round(compared: Path) -> None:
    rows = pd.read_csv(compared / "clients.csv")
    measured = rows[rows["split"] == "validation"].groupby("round")[["client", "task", "metric"]]
    expected = {(name, task, metric) for name in ("films", "news") for task in ("click", "buy")
                for metric in ("auc", "logloss")} | {("shop", "rating", "rmse")}  # fmt: skip
    found = {number: set(part.itertuples(index=False, name=None)) for number, part in measured}
    assert found == {2: expected, 4: expected}
    page = (compared / "report.html").read_text()
    for task in ("click", "buy", "rating"):
        assert f"Validation by round, task {task}; each panel" in page


def test_what_is_compared_is_what_both_runs_measured_of_clients_with_several_tasks(compared: Path) -> None:
    run = read_run(compared)
    table = transfer(run)
    assert set(table["client"]) == {"films", "news"} and set(table["task"]) == {"click", "buy"}
    for row in table.to_dict("records"):
        key = (row["client"], row["task"], row["metric"])
        assert row["together"] == run.federated.test()[key]
        assert row["single"] == run.singles[row["task"]].test()[key]
    losses = table[table["metric"] == "logloss"]
    ours, alone = (
        r.users.query("client == 'films' and task == 'buy' and metric == 'logloss'").set_index("user")
        for r in (run.federated, run.singles["buy"])
    )
    assert list(ours.index) == list(alone.index)
    one = losses[(losses["client"] == "films") & (losses["task"] == "buy")].iloc[0]
    gap = (ours["weight"] * (ours["value"] - alone["value"])).sum() / ours["weight"].sum()  # the mean over rows
    assert one["difference"] == pytest.approx(gap) == pytest.approx(one["together"] - one["single"])
    assert one["low"] < one["difference"] < one["high"] and one["users"] == len(ours)
    assert list(table["speaks"]) == list(table["metric"] == "auc")
    assert table["low"].notna().all()


USERS = 40


def whole(metric: str, value: Any) -> float:
    """Return the test value of a client whose users have these, with one row each."""
    return float(np.sqrt(np.mean(np.square(value))) if metric == "rmse" else np.mean(value))


def results(folder: Path, values: Mapping[tuple[str, str, str], Any]) -> None:
    """Write test values: a number for each user, or one of the client."""
    (folder / "users").mkdir(parents=True)
    rows = [[1, *key[:1], "test", *key[1:], whole(key[2], value)] for key, value in values.items()]
    pd.DataFrame(rows, columns=["round", "client", "split", "task", "metric", "value"]).to_csv(
        folder / "clients.csv", index=False
    )
    users = [
        [key[0], str(user), "test", *key[1:], one]
        for key, value in values.items()
        if isinstance(value, np.ndarray)
        for user, one in enumerate(value)
    ]
    columns = ["client", "user", "split", "task", "metric", "value"]
    pd.DataFrame(users, columns=columns).to_csv(folder / "users" / "all.csv", index=False)


def written(home: Path, gains: Mapping[tuple[str, str, str], float], clients: tuple[str, ...] = ("films",)) -> Path:
    """Write a run whose tasks differ by `gains`, with a spread of .1, from those of runs of their own."""
    spread = np.linspace(-0.1, 0.1, USERS)
    alone = {key: np.full(USERS, 0.5) if key[2] != "auc" else 0.5 for key in gains}
    ours = {key: alone[key] + gain + (spread if key[2] != "auc" else 0) for key, gain in gains.items()}
    results(home, ours)
    for task in {key[1] for key in gains}:
        results(home / "baselines" / "single-task" / task, {key: v for key, v in alone.items() if key[1] == task})
    sizes = dict.fromkeys(("users", "items", "train", "validation", "test"), USERS)
    record = {
        "experiment": {"metrics": ["ndcg@10"]},
        "data": {"clients": [{"name": name, **sizes} for name in clients]},
    }
    (home / "experiment.json").write_text(json.dumps(record))
    return home


SEESAW = {
    ("films", "rank", "ndcg@10"): 0.1,  # more is better
    ("films", "rating", "rmse"): 0.1,  # less is better
    ("films", "buy", "auc"): -0.2,  # has no interval
    ("films", "buy", "logloss"): 0.001,
    ("films", "click", "logloss"): -0.1,
}


def test_a_task_that_loses_while_another_gains_is_flagged_by_the_direction_of_its_metric(tmp_path: Path) -> None:
    run = read_run(written(tmp_path / "run", SEESAW))
    found = balances(transfer(run))
    assert found == {"films": Balance(("rank", "click"), ("rating",), ("buy",))}
    assert found["films"].seesaw and found["films"].words == ("SEESAW: rank, click gained, rating lost, buy unclear")
    (warning,) = [w for w in warnings(run, compare(run)) if "Seesaw" in w.title]
    assert warning.tone == "bad" and "films (rank, click gained, rating lost, buy unclear)" in warning.text
    page = write_report(tmp_path / "run").read_text()
    assert "films: SEESAW: rank, click gained, rating lost, buy unclear." in page
    console = Console(file=StringIO(), width=100)
    console.print(several(tmp_path / "run"))
    assert isinstance(console.file, StringIO)
    shown = console.file.getvalue()
    assert "1 of 1 clients with a seesaw" in shown
    lines = {line.split()[1]: line.split() for line in shown.splitlines() if line.startswith("films ")}
    # Over all rows: the root of .6^2 and the mean square of the spread, .0035.
    assert lines["rating"][2:5] == ["rmse", ".6029", ".5000"] and lines["rating"][-1] == "lost"
    assert lines["buy"][2] == "logloss" and lines["buy"][-1] == "unclear"


def test_the_interval_of_all_users_may_see_what_no_client_sees(tmp_path: Path) -> None:
    """The spread's t-interval is about .019 for 40 users and .013 for 80; a gain of .015 lies between."""
    gains = {(c, t, m): g for c in ("films", "shop") for t, m, g in (("rank", "ndcg@10", 0.015), ("buy", "auc", -1.0))}
    run = read_run(written(tmp_path / "run", gains, ("films", "shop")))
    assert all(found == Balance((), (), ("rank",), ("buy",)) for found in balances(transfer(run)).values())
    together = transfer(run, together=True)
    assert balance_of(together) == Balance(("rank",), (), (), ("buy",))
    assert dict(zip(together["task"], together["client"], strict=True)) == {"rank": EVERYONE, "buy": CLIENTS}
    assert together.set_index("task")["users"].to_dict() == {"rank": 2 * USERS, "buy": 0}


def test_several_tasks_that_are_simply_unclear_are_said_to_be(tmp_path: Path) -> None:
    home = written(tmp_path / "run", {("films", "rank", "ndcg@10"): 0.01, ("films", "rating", "rmse"): 0.01})
    run = read_run(home)
    assert not [w for w in warnings(run, compare(run)) if "task" in w.title.lower()]
    assert "no task clearly gained or lost by the others (rank, rating)" in write_report(home).read_text()


def test_why_there_is_no_comparison_stands_in_the_report_and_on_the_terminal(tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["--task", "click,buy", "--model", "esmm", "--hidden", "4", "--rounds", "1", "--quiet", "--out", str(out)]
    assert main([*TINY.split(), *argv]) == 0
    reason = "P(click) P(buy | click), but one is missing, found task click"
    assert f"Not compared: model: esmm needs the tasks click and buy, of which it learns {reason}." in (
        out / "report.html"
    ).read_text().replace("&#34;", '"')
    assert [note for note in notes(out) if reason in note] and several(out) is None


@given(st.lists(st.sampled_from(["helped", "hurt", "no detectable difference", "better", "worse", "equal", ""])))
def test_every_task_has_one_place_in_the_balance(verdicts: list[str]) -> None:
    found = balance((str(place), one) for place, one in enumerate(verdicts))
    assert sorted(int(task) for tasks in found for task in tasks) == list(range(len(verdicts)))
    assert found.seesaw == ("helped" in verdicts and "hurt" in verdicts)


SELECT = ("ndcg@10", "logloss", "rmse")


def test_one_task_selects_by_its_metric_and_several_by_the_mean_of_logarithms() -> None:
    one = {
        ("a", "rank", "ndcg@10"): 0.3,
        ("a", "rank", "hr@10"): 0.9,
        ("b", "buy", "auc"): 0.8,
        ("b", "buy", "logloss"): 0.2,
    }
    assert selection_scores(one, SELECT) == {"a": 0.3, "b": -0.2}
    several = {
        ("a", "rank", "ndcg@10"): 0.3,
        ("a", "buy", "auc"): 0.9,
        ("a", "buy", "logloss"): 0.2,
        ("a", "click", "logloss"): 0.6,
    }
    expected = (math.log(0.31) - math.log(0.21) - math.log(0.61)) / 3
    assert selection_scores(several, SELECT)["a"] == pytest.approx(expected)
    assert selection_scores({("a", "rank", "ndcg@10"): math.nan, ("b", "buy", "auc"): 0.5}, SELECT) == {}


@given(st.floats(0.05, 0.9), st.floats(0.05, 0.9), st.floats(0.5, 2.0))
def test_a_round_in_which_every_task_is_better_is_better(rank: float, loss: float, error: float) -> None:
    def score(by: float) -> float:
        values = {
            ("a", "rank", "ndcg@10"): rank * by,
            ("a", "buy", "logloss"): loss / by,
            ("a", "r", "rmse"): error / by,
        }
        return selection_scores(values, SELECT)["a"]

    assert score(1.02) > score(1.0) > score(0.98)
    zero = selection_scores({("a", "rank", "ndcg@10"): 0.0, ("a", "buy", "logloss"): loss}, SELECT)["a"]
    assert zero == pytest.approx((math.log(NEAR_ZERO) - math.log(loss + NEAR_ZERO)) / 2)


def test_a_task_that_is_a_hundredth_of_another_in_scale_has_as_much_say() -> None:
    """Buy's log loss falls by a tenth, click's rises by a twentieth: by their mean the round would be the worse."""
    before = {("a", "click", "logloss"): 0.60, ("a", "buy", "logloss"): 0.20}
    after = {("a", "click", "logloss"): 0.63, ("a", "buy", "logloss"): 0.18}
    assert sum(after.values()) > sum(before.values())
    assert selection_scores(after, SELECT)["a"] > selection_scores(before, SELECT)["a"]
