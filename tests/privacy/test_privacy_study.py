"""The privacy study: what it runs, and what its page and its terminal say."""

import re
from pathlib import Path

import pandas as pd
import pytest

from fedrec.errors import UserError
from fedrec.experiment.origins import origin
from fedrec.metrics import Paired
from fedrec.privacy.attacks.table import ATTACKS
from fedrec.privacy.audit import ALARM
from simulations.studies.__main__ import main
from simulations.studies.options import budget
from simulations.studies.privacy import SCENES, experiment_of, runs_of
from simulations.studies.privacy_page import LEAST, leak, notes, worth

SMALL = ["--seeds", "1", "--clients", "4", "--one-user", "20", "--market.users", "40", "--market.items", "80"]
SMALL += ["--rounds", "2", "--dim", "4"]


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
    assert 1.9 < accounted <= 2.0 and (table["kind"] == "bound").sum() == 3
    # At the level of `ALARM`: a bound by itself is above the accounted epsilon once in a hundred.
    assert not table.loc[table["kind"] == "check", "value"].any()
    page, shown = (out / "report.html").read_text(), capsys.readouterr().out
    assert page.count("<svg") == 5 and "it is not told where together beats alone" in page and "ALARM" not in page
    for word in ("eps 2", "eps inf", "Gaussian", "item set"):
        assert word in shown, word
    # The clients are those of the same options in a run, and every word of number is of this study.
    for word in (
        "Four platforms, each adding user-level noise",
        "20 clients, one for each user",
        "20 of 40 users",
        "films, shop, news, books",
    ):
        assert word in page, word
    for word in ("Rounds", "Seeds", "synthetic: 160 users", "One seed: no intervals over seeds"):
        assert word in page, word
    assert "silos" not in page and "Five" not in page
    # Twenty clients' item sets are told; the attributes of the ten of them that are asked about are not.
    assert attacks.loc[attacks["name"] == "item set", "groups"].eq(20).all() and "too few (" in page


def test_silos_stay_silos_and_one_user_clients_may_be_left_out(tmp_path: Path) -> None:
    out = tmp_path / "study"
    arguments = ["privacy", "--epsilon", "inf", "--workers", "1", "--out", str(out), *SMALL, "--one-user", "0"]
    assert main([*arguments, "--clients", "7", "--partition", "users", "--seeds", "2"]) == 0
    page = (out / "report.html").read_text()
    assert "Seven silos: utility" in page and "one for each user" not in page and "noise in its" not in page
    assert "over 2 paired seeds" in page and "2 seeds" in page
    assert set(pd.read_csv(out / "results.csv")["scene"]) == {"clients", "clients alone"}


def test_a_table_of_platforms_is_attacked_with_what_it_has(tmp_path: Path) -> None:
    # Users on two of three platforms each, without attributes or ratings.
    rows = [
        f"u{u},i{(u * 7 + n * 3) % 30},{'abc'[(u + n) % 3]},{n}" for u in range(30) for n in range(0, 12, 1 + u % 2)
    ]
    (path := tmp_path / "t.csv").write_text("u,i,p,t\n" + "\n".join(rows))
    arguments = ["privacy", "--epsilon", "inf", "--seeds", "1", "--one-user", "0", "--workers", "1", "--rounds", "1"]
    arguments += ["--dataset", "table", "--data-dir", str(path), "--columns", "user=u,item=i,platform=p,time=t"]
    assert main([*arguments, "--task", "rank", "--dim", "4", "--out", str(tmp_path / "study")]) == 0
    page = (tmp_path / "study" / "report.html").read_text()
    assert "Three platforms: utility" in page and "a, b, c" in page and "table, t.csv: 30 users" in page
    names = pd.read_csv(tmp_path / "study" / "results.csv").query("kind == 'attack'")["name"]
    assert "leaning" in set(names) and not names.str.contains("gender|occupation").any()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--one-user 4", "one-user: must be from 20, .* found 4"),
        ("--one-user 41", "one-user: .* to the number of users, 40, .* found 41"),
        ("--market.users 8", "one-user: .* to the number of users, 8, .* found 20"),
        ("--clients 1", "clients: must be at least 2 to learn together, found 1"),
        ("--partition one-user", "option --partition: one-user clients are a scene of their own; give --one-user"),
        ("--seed 3", "option --seed: .*; give --seeds"),
        ("--privacy.epsilon=3", "option --privacy.epsilon: .*; give --epsilon"),
        ("--seeds 0", "seeds, workers: must be at least 1, found 0"),
        ("--canaries 0", "canaries: must be at least 1, found 0"),
    ],
)
def test_what_cannot_be_told_or_does_nothing_is_refused(
    flags: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["privacy", "--epsilon", "inf", "--out", str(tmp_path / "x"), *SMALL, *flags.split()]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def attacked(*values: float, width: float = 0.1, targets: int = 100) -> pd.DataFrame:
    """Rows of an attack, one a seed, whose band is so wide to either side."""
    ends = [{"value": v, "low": max(v - width, 0.0), "high": min(v + width, 1.0)} for v in values]
    return pd.DataFrame(ends).assign(tpr=0.0, members=targets, others=100, groups=100)


def test_an_attack_on_too_few_is_named_so() -> None:
    assert leak(attacked(1.0, targets=LEAST - 1), 1) is None
    assert leak(attacked(1.0, targets=LEAST), 1) is not None


def test_a_star_is_corrected_for_the_number_of_attacks() -> None:
    # 2.2 standard errors: p = .028, enough for one attack and not for sixty.
    part = attacked(0.5 + 2.2 / 1.96 * 0.1)
    assert [one.star for tests in (1, 60) if (one := leak(part, tests))] == [True, False]
    assert (one := leak(attacked(0.99, width=0.02), 60)) and one.star and one.high == 1.0


def test_intervals_of_attacks_are_over_the_seeds_too() -> None:
    # Student's t of two seeds: mean .7, sd .1 sqrt(2), 12.706 sd / sqrt(2) = 1.27: wider than 0 to 1.
    one = leak(attacked(0.6, 0.8, width=0.05), 1)
    assert one is not None and one.auc == pytest.approx(0.7) and (one.low, one.high, one.star) == (0.0, 1.0, False)
    one = leak(attacked(0.7, 0.7, width=0.05), 1)
    assert one is not None and one.low == pytest.approx(0.65) and one.high == pytest.approx(0.75) and one.star


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
        assert not {"--clients", "--partition"} & {*scene.usual.split(), *scene.noisy.split()}
        unprotected, promised = (experiment_of(scene, text, ["--engine", "inline"]) for text in ("inf", "2"))
        assert not unprotected.privacy.active
        assert promised.privacy.active and promised.privacy.budgets == {"": 2.0}
    runs = runs_of(["1", "inf"], range(2), 10, [], 30)
    assert len(runs) == 2 * (2 * 3 + 1)
    assert {run.experiment.clients for run in runs if run.labels["scene"] == "one-user"} == {30}
    # All tests of promises share one level: at one budget and two seeds, as many as attacks and an audit, twice.
    covering = [one for one in ATTACKS if one.released and one.unit != "attribute"]
    assert {run.about.promises for run in runs} == {2 * (len(covering) + 1)} and ALARM < 0.01


def test_an_attack_of_ones_own_is_asked_judged_and_shown_like_ours(tmp_path: Path) -> None:
    own = 'tests.own_parts:Movement{"power": 2},tests.own_parts:Regulars'
    out, small = tmp_path / "study", ["--epsilon", "inf", "--canaries", "300", "--out", str(tmp_path / "study"), *SMALL]
    assert main(["privacy", "--workers", "2", "--attack", own, *small]) == 0
    table = pd.read_csv(out / "results.csv")
    attacks = {(row["scene"], row["name"]): row for row in table[table["kind"] == "attack"].to_dict("records")}
    movement, ours = attacks["clients", 'tests.own_parts:Movement{"power": 2}'], attacks["clients", "leaning"]
    # It is asked what ours is asked, and an item that was trained on moves.
    assert all(movement[name] == ours[name] for name in ("members", "others", "groups", "unit", "released"))
    assert movement["value"] > 0.5
    assert attacks["clients", "tests.own_parts:Regulars"]["unit"] == "user"
    assert ("one-user", movement["name"]) in attacks
    page = (out / "report.html").read_text()
    assert "tests.own_parts:Movement" in page and origin("tests.own_parts:Movement")["sha256"] in page
    # Each is one more test of a promise in either scene.
    plain, more = (runs_of(["1"], [0], 10, [], 30, attack)[0].about.promises for attack in ("", own))
    assert more == plain + 4


@pytest.mark.parametrize(
    ("attack", "status", "words"),
    [
        ("tests.own_parts:Movment", 2, "tests.own_parts must have the class Movment"),
        ("tests.own_parts:Grid", 2, "must have the method scores of a attack"),
        ('tests.own_parts:Movement{"pwer": 2}', 2, "did you mean 'power'"),
        ("__main__:Movement", 2, "must be a class of a module"),
        ("tests.own_parts:Short", 1, "scores must be a number for each of"),
    ],
)
def test_an_attack_that_is_none_is_refused(
    attack: str, status: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--epsilon", "inf", "--workers", "1", "--out", str(tmp_path / "study"), *SMALL, "--one-user", "0"]
    assert main(["privacy", "--attack", attack, *small]) == status
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1


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


def test_the_words_claim_what_an_interval_shows() -> None:
    sure, unsure, other = Paired(-0.2, -0.3, -0.1, 3), Paired(-0.2, -0.5, 0.1, 3), Paired(0.2, 0.1, 0.3, 3)
    said = worth("rmse", [other, unsure, sure], ["1", "4", "inf"], 3)
    assert "better at epsilon inf; worse at epsilon 1; not told apart at epsilon 4" in said and "3 comparisons" in said
    assert "better at epsilon 1; " in worth("ndcg@10", [other, sure], ["1", "inf"], 2)
    one = worth("rmse", [Paired(-0.2, float("nan"), float("nan"), 1)], ["1"], 1)
    assert "better" not in one and "one seed gives no interval" in one
