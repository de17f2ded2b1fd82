"""Studies, run as a user runs them."""

from pathlib import Path

import pandas as pd
import pytest

from fedrec.errors import UserError
from simulations.studies.__main__ import main
from simulations.studies.methods import experiment_of

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


def test_sharing_flags_are_for_what_is_federated() -> None:
    flags = ["--share", "user_table,user_bias"]
    assert experiment_of("fedper", flags).share == ("user_table", "user_bias")
    assert experiment_of("fedavg", flags).share == ("user_table", "user_bias", "heads")
    assert experiment_of("local", flags).share == ()
    assert experiment_of("pooled", flags).pool
    own = experiment_of("scaffold:optimiser=sgd:lr=10", flags)
    assert (own.optimiser, own.lr) == ("sgd", 10.0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["methodz"], "study: must be one of"),
        (["methods", "--methods", "fedperr"], "methods: must be one of"),
        (["methods", "--seeds", "0"], "seeds, workers: must be at least 1, found 0"),
        (["methods", "--methods", "fedper:lrr=1"], "option --lrr: no such option"),
        (["methods", "--methods", "scaffold"], "optimiser: must be sgd for SCAFFOLD"),
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
