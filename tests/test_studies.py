"""Studies, run as a user runs them."""

import math
import re
from pathlib import Path

import pandas as pd
import pytest

from fedrec.errors import UserError
from fedrec.experiment.config import Experiment
from fedrec.report.findings import DASH
from fedrec.report.study import interval
from fedrec.report.tables import LEAKING
from fedrec.sharing import MIXING
from simulations.studies import harness, published, sequences
from simulations.studies.__main__ import main
from simulations.studies.methods import experiment_of
from tests.helpers import Here

SMALL = ["--market.users", "40", "--market.items", "40", "--rounds", "2", "--dim", "4", "--clients", "2"]


def test_the_methods_study_pairs_every_method_with_training_alone(tmp_path: Path) -> None:
    chosen = "local,pooled,fedper,scaffold:optimiser=sgd:lr=10"
    arguments = ["methods", "--methods", chosen, "--seeds", "2", "--workers", "1", "--out", str(tmp_path / "study")]
    assert main([*arguments, *SMALL]) == 0
    results = pd.read_csv(tmp_path / "study" / "results.csv")
    summary = pd.read_csv(tmp_path / "study" / "summary.csv")
    assert set(results["method"]) == {*chosen.split(","), "popularity"} == set(summary["method"])
    for row in summary.to_dict("records"):
        own = results[(results["method"] == row["method"]) & (results["metric"] == row["metric"])]
        assert row["mean"] == pytest.approx(own["value"].mean())
        if row["method"] != "local":
            alone = results[(results["method"] == "local") & (results["metric"] == row["metric"])]
            gain = own.groupby("seed")["value"].mean() - alone.groupby("seed")["value"].mean()
            assert row["minus_local"] == pytest.approx(gain.mean())
    assert "scaffold:optimiser=sgd:lr=10" in (tmp_path / "study" / "report.html").read_text()


def test_the_study_of_sequences_compares_encoders_with_rows_on_known_and_on_new_users(tmp_path: Path) -> None:
    small = [*SMALL, "--partition", "users", "--fractions", "0.2,0.2", "--rounds", "1", "--sequence.history", "3"]
    assert main(["sequences", "--seeds", "2", "--out", str(tmp_path / "study"), *small]) == 0
    results, rows, choices = (pd.read_csv(tmp_path / "study" / f"{n}.csv") for n in ("results", "summary", "choices"))
    lines = {f"{model} {way}" for model in sequences.MODELS for way in sequences.WAYS} | {"popularity"}
    assert set(results["method"]) == lines
    assert {split: set(part["method"]) for split, part in rows.groupby("split")} == dict.fromkeys(
        sequences.SPLITS, lines
    )
    assert set(results["seed"]) == {0, 1}
    for row in choices.to_dict("records"):
        assert row["options"] in sequences.MODELS[row["model"]][1]
    means = results.groupby(["split", "method", "seed"])["value"].mean()
    row = next(
        row for row in rows.to_dict("records") if (row["split"], row["method"]) == ("new-users", "sasrec federated")
    )
    mine = means["new-users", "sasrec federated"]
    assert row["mean"] == pytest.approx(mine.mean()) and row["sd"] == pytest.approx(mine.std())
    assert row["gain"] == pytest.approx((mine - means["new-users", "sasrec local"]).mean())
    assert row["minus_mf"] == pytest.approx((mine - means["new-users", "mf federated"]).mean())
    assert row["minus_popularity"] == pytest.approx((mine - means["new-users", "popularity"]).mean())


def test_sharing_flags_are_for_what_is_federated() -> None:
    flags = ["--share", "user_table,user_bias"]
    assert experiment_of("fedper", flags).share == ("user_table", "user_bias")
    assert experiment_of("fedavg", flags).share == ("user_table", "user_bias", *MIXING, "towers", "heads", "attributes")
    assert experiment_of("local", flags).share == ()
    assert experiment_of("pooled", flags).pool
    own = experiment_of("scaffold:optimiser=sgd:lr=10", flags)
    assert (own.optimiser, own.lr) == ("sgd", 10.0)


TINY = [
    "--dataset",
    "synthetic",
    "--market.users",
    "40",
    "--market.items",
    "40",
    "--clients",
    "6",
    "--rounds",
    "2",
    "--dim",
    "4",
]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the jobs of a study in this process: to start one for each costs seconds."""
    monkeypatch.setattr(harness, "ProcessPoolExecutor", Here)


@pytest.mark.usefixtures("here")
def test_the_published_study_shows_both_protocols_and_says_which_one_leaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["published", "--seeds", "2", "--out", str(tmp_path / "study"), *TINY]) == 0
    results, rows = (pd.read_csv(tmp_path / "study" / f"{name}.csv") for name in ("results", "summary"))
    assert set(results["method"]) == set(published.LINES) == set(rows["method"])
    for row in rows.to_dict("records"):
        own = results[(results[["method", "metric", "protocol"]] == [row[k] for k in ("method", "metric", "protocol")])
                      .all(axis=1)]  # fmt: skip
        assert list(own["seed"]) == [0, 1]
        assert (row["mean"], row["sd"]) == (pytest.approx(own["value"].mean()), pytest.approx(own["value"].std()))
        draws = row["protocol"] == "published" and row["method"] != published.POPULARITY
        assert row["warning"] == LEAKING if draws else row["warning"] != row["warning"]
    page = (tmp_path / "study" / "report.html").read_text(encoding="utf-8")
    # Beside every leaking number: five lines, two metrics; the authors' numbers belong to MovieLens.
    assert page.count(LEAKING) == 5 * 2
    assert "0.439" not in page
    assert capsys.readouterr().out.count("PROTOCOL") == 5 * 2
    by_protocol = results[results["method"] == published.POPULARITY].groupby("protocol")["value"]
    assert by_protocol.get_group("published").tolist() == by_protocol.get_group("train").tolist()


def test_the_published_study_has_the_published_settings() -> None:
    lines = {
        name: published.experiments(line, [*TINY, "--rounds", "7"], "published", 3)
        for name, line in published.LINES.items()
    }
    (dual,) = lines["PFedRec, dual"]
    assert (dual.share, dual.drift.personal, dual.model, dual.weights) == (("item_table",), "tuned", "item", "uniform")
    assert (dual.lr, dual.lrs, dual.rounds, dual.seed) == (0.1, f"item_table={0.1 * 40 * 80!r}", 7, 3)
    (server,) = lines["server table, private head"]
    assert server == dual.model_copy(update={"drift": dual.drift.model_copy(update={"personal": "none"})})
    (full,) = lines["PFedRec, dual, full ranking"]
    assert full == dual.model_copy(update={"candidates": "full"})
    (alone,) = lines["local alone"]
    assert alone == dual.model_copy(update={"method": "local", "share": (), "drift": server.drift})
    pooled = lines["pooled matrix factorisation"]
    assert len(set(pooled)) == len(published.GRID) == len({(e.lr, e.l2) for e in pooled})
    assert all((e.pool, e.model, e.lrs, e.drift.personal) == (True, "mf", "", "none") for e in pooled)


def test_what_validation_likes_best_is_tested(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = published.run_of("pooled matrix factorisation", "train", 0, TINY)

    def trained(experiment: Experiment, options: str) -> published.Outcome:
        validation = {0.003: float("nan"), 0.01: experiment.l2}[experiment.lr]
        return published.Outcome({"hr@10": 1 - experiment.l2}, validation, options=options)

    monkeypatch.setattr(published, "trained", trained)
    (row,) = published.measure(run, tmp_path / "run")
    assert (row["value"], row["validation"], row["options"]) == (0.97, 0.03, "--lr 0.01 --l2 0.03")


def test_a_run_of_the_published_study_has_a_process_of_its_own(tmp_path: Path) -> None:
    run = published.run_of(published.POPULARITY, "train", 0, TINY)
    here = pd.DataFrame(published.measure(run, tmp_path / "run"))
    there = harness.carry_out(published.STUDY, 1, tmp_path, [run])
    pd.testing.assert_frame_equal(there.drop(columns="megabytes"), here.drop(columns="megabytes"))
    assert (there["megabytes"] > 50).all() and published.STUDY.fresh


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["methodz"], "study: must be one of"),
        (["methods", "--methods", "fedperr"], "methods: must be one of"),
        (["published", "--seeds", "0"], "seeds, workers: must be at least 1, found 0"),
        (["published", "--out", "never", "--lrs", "item_tabel=1", *TINY], "lrs: must be one of adapter, attention, "),
        (["published", "--out", "never", "--lrs", "item_table=x", *TINY], "option --lrs: must be MODULE=RATE"),
        (["methods", "--seeds", "0"], "seeds, workers: must be at least 1, found 0"),
        (["methods", "--methods", "fedper:lrr=1"], "option --lrr: no such option"),
        (["methods", "--methods", "scaffold"], "drift.correction: scaffold needs steps of SGD at one rate"),
    ],
)
def test_a_wrong_study_ends_with_one_line(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_a_method_of_a_study_must_exist() -> None:
    with pytest.raises(UserError, match="did you mean 'fedper'"):
        experiment_of("fedpr", [])


def test_one_seed_has_no_interval_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["methods", "--methods", "local,pooled,fedper", "--seeds", "1", "--workers", "1"]
    assert main([*arguments, "--out", str(tmp_path / "study"), *SMALL]) == 0
    shown, page = capsys.readouterr().out, (tmp_path / "study" / "report.html").read_text()
    text = re.sub(r"<style.*?</style>|<svg.*?</svg>|<[^>]*>", " ", page, flags=re.S)
    for seen in (shown, text):
        assert "one seed: no interval" in seen
        assert not re.search(r"\bnan\b", seen) and "95% interval over" not in seen


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"gain": 0.01, "gain_low": -0.005, "gain_high": 0.025}, "+0.0100 [−0.0050, +0.0250]"),
        ({"gain": 0.01, "gain_low": math.nan, "gain_high": math.nan}, "+0.0100"),
        ({"gain": math.nan, "gain_low": math.nan, "gain_high": math.nan}, DASH),
    ],
)
def test_an_interval_that_is_not_there_is_not_printed(row: dict[str, float], text: str) -> None:
    assert interval(row, "gain") == text
