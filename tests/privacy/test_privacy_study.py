"""The privacy study: what it runs, and what its page and its terminal say."""

from pathlib import Path

import pandas as pd
import pytest

from fedrec.errors import UserError
from simulations.studies.__main__ import main
from simulations.studies.privacy import SCENES, budget, experiment_of, jobs_of
from simulations.studies.privacy_page import notes, worth

SMALL = ["--clients", "6", "--market.users", "60", "--market.items", "80", "--rounds", "2", "--dim", "4"]


def test_the_study_runs_every_setting_at_every_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    arguments = ["privacy", "--epsilon", "2,inf", "--canaries", "300", "--workers", "1", "--out", str(out), *SMALL]
    assert main(arguments) == 0
    table = pd.read_csv(out / "results.csv", dtype={"epsilon": str})
    assert {(row.scene, row.epsilon) for row in table.itertuples()} == {
        *((scene.name, text) for scene in SCENES for text in ("2", "inf")),
        *((f"{scene.name} alone", "inf") for scene in SCENES),
        ("audit", "2"),
    }
    attacks = table[table["kind"] == "attack"]
    assert {"item set", "loss, insider", "user leaning"} <= set(attacks["name"])
    assert attacks["low"].le(attacks["value"]).all() and attacks["value"].le(attacks["high"]).all()
    unprotected = attacks[(attacks["name"] == "item set") & (attacks["epsilon"] == "inf")]
    assert float(unprotected["value"].iloc[0]) > 0.99
    accounted = float(table.loc[table["kind"] == "accounted", "value"].iloc[0])
    assert 1.9 < accounted <= 2.0 and table[table["kind"] == "bound"]["value"].le(accounted).all()
    page, shown = (out / "report.html").read_text(), capsys.readouterr().out
    assert page.count("<svg") == 5 and "Together beats alone" in page and "ALARM" not in page
    for word in ("eps 2", "eps inf", "Gaussian", "item set"):
        assert word in shown, word


@pytest.mark.parametrize("more", ["--model mlp", "--model mmoe", "--task rating,click", "--share item_bias"])
def test_what_some_attacks_cannot_read_is_attacked_by_the_others(more: str, tmp_path: Path) -> None:
    out = tmp_path / "study"
    assert main(["privacy", "--epsilon", "inf", "--workers", "1", "--out", str(out), *SMALL, *more.split()]) == 0
    table = pd.read_csv(out / "results.csv")
    attacks = set(table.loc[table["kind"] == "attack", "name"])
    assert not {"ratings", "inversion"} & attacks  # which need an item bias beside the table
    assert ("user leaning" in attacks) == more.startswith("--model")


@pytest.mark.parametrize("text", ["0", "-1", "two", "", "nan"])
def test_a_wrong_budget_is_named(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="epsilon"):
        budget(text)
    assert main(["privacy", "--epsilon", f"1,{text}"]) == 2
    assert "epsilon" in capsys.readouterr().err


def test_only_a_budget_brings_a_promise() -> None:
    for scene in SCENES:
        unprotected, promised = (experiment_of(scene, text, ["--engine", "inline"]) for text in ("inf", "2"))
        assert not unprotected.privacy.active
        assert promised.privacy.active and promised.privacy.budgets == {"": 2.0}
    assert len(jobs_of(["1", "inf"], range(2), 10, [])) == 2 * (2 * 3 + 1)


def test_a_broken_promise_and_an_alarm_come_first() -> None:
    rows = [
        {"scene": "silos", "epsilon": "1", "seed": 0, "kind": "attack", "name": "a", "value": 0.9, "violates": True},
        {"scene": "audit", "epsilon": "1", "seed": 0, "kind": "accounted", "name": "accounted", "value": 1.0},
        {"scene": "audit", "epsilon": "1", "seed": 0, "kind": "bound", "name": "Gaussian", "value": 1.5},
        {"scene": "audit", "epsilon": "1", "seed": 0, "kind": "bound", "name": "f-DP", "value": 0.5},
        {"scene": "audit", "epsilon": "1", "seed": 0, "kind": "check", "name": "noise", "value": 1.0, "text": "quiet"},
    ]
    found = notes(pd.DataFrame(rows))
    assert len(found) == 3
    assert "breaks the promise of epsilon 1" in found[0] and "noise: quiet" in found[1]
    assert "bound Gaussian at 99% is 1.50" in found[2] and "in a hundred" in found[2]
    assert notes(pd.DataFrame([{**row, "value": 0.1, "violates": False} if row["kind"] != "accounted" else row
                               for row in rows if row["kind"] != "check"])) == []  # fmt: skip


def test_the_words_say_where_taking_part_pays() -> None:
    assert worth("rmse", [1.2, 0.9], 1.0, ["1", "inf"]).endswith("at epsilon inf only.")
    assert worth("rmse", [1.2, 1.1], 1.0, ["1", "inf"]).endswith("at no budget.")
    assert worth("ndcg@10", [1.2, 1.1], 1.0, ["1", "inf"]).endswith("at every budget.")
