"""The study of several tasks: its arms, what tunes them, and what is said of them."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from fedrec.errors import UserError
from fedrec.metrics import paired
from simulations.baselines import baseline, single_task
from simulations.studies import harness
from simulations.studies.__main__ import main
from simulations.studies.tables import points
from simulations.studies.tasks import EVERY, Arm, arms_of, balances, seeds_of, summary, tuned
from tests.helpers import Here

TINY = "--market.users 20 --market.items 40 --market.impressions 10 --clients 2 --rounds 1 --dim 4 --hidden 6,4"
SMALL = [*TINY.split(), "--experts", "2", "--engine", "inline"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny study that was tuned, of clients with two tasks and one with another."""
    out = tmp_path_factory.mktemp("study") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "ProcessPoolExecutor", Here)
        argv = ["--seeds", "2", "--tune", "7", "--grid", "lr=0.01,0.1", "--task", "click,buy;shop=rating"]
        assert main(["tasks", *argv, *SMALL, "--clients", "3", "--out", str(out)]) == 0
    return out


def test_every_arm_is_set_against_each_task_in_a_model_of_its_own(study: Path) -> None:
    results, rows = pd.read_csv(study / "results.csv"), pd.read_csv(study / "summary.csv")
    arms = [f"{where} {how} mmoe" for where in ("local", "federated") for how in ("single-task", "multi-task")]
    assert list(dict.fromkeys(rows["arm"])) == arms
    assert set(rows["task"]) == {"click", "buy"}  # shop has one task: nothing is to be compared there
    for row in rows.to_dict("records"):
        own = results[(results["task"] == row["task"]) & (results["metric"] == row["metric"])]
        means = own.groupby(["arm", "seed"])["value"].mean()
        assert (row["mean"], row["sd"]) == pytest.approx((means[row["arm"]].mean(), means[row["arm"]].std()))
        for key in ("local", "federated"):
            if row["arm"] == f"{key} single-task mmoe":
                assert pd.isna(row[f"minus_{key}"])
                continue
            p = paired(means[row["arm"]].to_numpy(), means[f"{key} single-task mmoe"].to_numpy())
            found = [row[f"minus_{key}{end}"] for end in ("", "_low", "_high")]
            assert found == pytest.approx([p.mean, p.low, p.high])
    page = (study / "report.html").read_text()
    assert all(f"{task}: {metric}" in page for task in ("click", "buy") for metric in ("AUC", "log loss"))
    assert "on the validation of seeds 7" in page


def test_validation_on_other_seeds_tunes_every_arm_and_each_task_of_a_single_task_arm(study: Path) -> None:
    tried, results = pd.read_csv(study / "tuning.csv", keep_default_na=False), pd.read_csv(study / "results.csv")
    parts = tried.groupby("arm")["part"].unique().map(sorted).to_dict()
    assert parts == {
        f"{where} {how} mmoe": [EVERY] if how == "multi-task" else ["buy", "click"]
        for where in ("local", "federated")
        for how in ("single-task", "multi-task")
    }
    assert (tried.groupby(["arm", "part"])["validation"].diff().dropna() <= 0).all()  # the best first
    assert set(results["seed"]) == {0, 1}


def test_an_arm_is_its_method_on_the_flags_with_what_was_chosen_for_it() -> None:
    flags = [*SMALL, "--task", "click,buy"]
    local, _, federated, multi = arms_of(["ple"], ["fixed"])
    chosen = Arm("ple", True, True, options=(("buy", ("--lr", "0.5")),))
    e = multi.experiments(flags, 3)[EVERY]
    assert (e.method, e.model, e.seed, e.task, e.split) == ("fedper", "ple", 3, "click,buy", "random")
    singles = federated.experiments(flags, 3)
    assert singles == {task: single_task(e, task) for task in ("click", "buy")}
    assert local.experiments(flags, 3) == {task: single_task(baseline(e, "local"), task) for task in ("click", "buy")}
    found = chosen.experiments(flags, 3)
    assert found["click"] == singles["click"]
    assert found["buy"] == singles["buy"].model_copy(update={"lr": 0.5})
    weighed = Arm("ple", True, False, "uncertainty").experiments(flags, 3)[EVERY]
    assert weighed == e.model_copy(update={"weighting": weighed.weighting}) and weighed.weighting.kind == "uncertainty"


def test_the_best_mean_validation_over_the_seeds_is_chosen() -> None:
    arm = Arm("ple", True, False)
    values = {("--lr 1", 7): 0.1, ("--lr 1", 8): 0.5, ("--lr 2", 7): 0.2, ("--lr 2", 8): 0.3}
    tried = pd.DataFrame(
        [{"arm": arm.name, "part": EVERY, "options": o, "seed": s, "validation": v} for (o, s), v in values.items()]
    )
    assert tuned([arm], tried)[0].options == ((EVERY, ("--lr", "1")),)


def test_a_seesaw_over_seeds_is_flagged_by_the_direction_of_the_metric() -> None:
    gains = {("buy", "auc"): 0.1, ("buy", "logloss"): 0.1, ("rating", "rmse"): 0.1, ("rank", "ndcg@10"): 0.0}
    rows = [
        {"client": "a", "task": task, "metric": metric, "arm": f"{how} m", "body": "m", "single": single, "seed": seed,
         "value": 0.5 + (not single) * (gain + 0.01 * seed - 0.02)}
        for (task, metric), gain in gains.items()
        for how, single in (("local single-task", True), ("federated single-task", True), ("multi-task", False))
        for seed in range(5)
    ]  # fmt: skip
    made = summary(pd.DataFrame(rows))
    (found,) = balances(made, "federated").values()
    assert (found.gained, found.lost, found.unclear) == (("buy",), ("rating",), ("rank",)) and found.seesaw
    one = next(row for row in made if row["multi"] and row["metric"] == "auc")
    half = 2.7764451 * 0.0158113883 / 5**0.5  # t of 4 degrees of freedom; the spread of .01 (0, ..., 4)
    assert [one["minus_local"], one["minus_local_high"]] == pytest.approx([0.1, 0.1 + half], rel=1e-6)


def test_a_grid_is_every_combination() -> None:
    assert points("lr=1,2;l2=3") == [("--lr", "1", "--l2", "3"), ("--lr", "2", "--l2", "3")]


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (lambda: seeds_of("100,x", 5), "tune: must be whole numbers"),
        (lambda: seeds_of("4,100", 5), "tune: must be seeds that are not reported, from 5 on, found 4"),
        (lambda: points("lr"), "grid: must be FIELD=VALUE"),
        (
            lambda: arms_of(["esmm"], ["fixed"])[0].experiments(["--task", "click,buy"], 0),
            "needs the tasks click and buy",
        ),
        (lambda: arms_of(["ple"], ["fixed"])[0].experiments(["--task", "buy"], 0), "found no client with two"),
    ],
)
def test_a_study_that_cannot_be_is_refused(made: Callable[[], object], text: str) -> None:
    with pytest.raises(UserError, match=text):
        made()
