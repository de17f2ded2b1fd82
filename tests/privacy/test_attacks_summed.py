"""Attacks on a run by sums: sums tell what each client has; of noisy totals the promise says how little is told."""

from pathlib import Path
from statistics import NormalDist

import pandas as pd
import pytest

from fedrec.experiment.config import Experiment
from fedrec.privacy.attacks.scores import Result, violates
from fedrec.privacy.attacks.summed import ATTACKS
from fedrec.privacy.guarantee import sums_plan
from simulations.studies.__main__ import main
from simulations.witness import case_of, witness
from tests.helpers import experiment

KNOWN = "user, all others known"


def summed(noise: float) -> Experiment:
    rule = {"unit": "user", "where": "sum", "noise": noise, "replay": True}
    market = {"users": 400, "items": 30, "impressions": 20}
    return experiment(model="slist", clients=4, partition="users", market=market, privacy=rule,
                      secure={"active": True}, rounds=2)  # fmt: skip


def attacked(e: Experiment, home: Path) -> dict[str, Result]:
    """Return what every attack makes of what the server of a run saw."""
    home.mkdir()
    seen = witness(e, home)
    case = case_of(e, seen)
    return {one.name: one.result(seen.transcript, case) for one in ATTACKS if one.fits(case)}


def test_a_noisy_total_tells_no_client_and_of_a_user_what_the_promise_allows(tmp_path: Path) -> None:
    """Who knows all others has the likelihood ratio of N(1, s^2) and N(0, s^2): its AUC is Phi(1 / (s sqrt(2)))."""
    e = summed(1.5)
    found = attacked(e, tmp_path / "run")
    assert set(found) == {"items of a client", "pairs of a client", "user of a client", KNOWN}
    assert all(result.chance for name, result in found.items() if name != KNOWN)
    best = found[KNOWN]
    assert len(sums_plan(e).second) == 1  # of pairs: the catalogue has no release years
    expected = NormalDist().cdf(1 / (1.5 * (2 * 4 / 3) ** 0.5))
    assert best.auc_low - 0.05 < expected < best.auc_high + 0.05
    assert not violates(best, 4.0, 1e-5)


def test_totals_with_less_noise_than_is_booked_are_found_out(tmp_path: Path) -> None:
    found = attacked(summed(0.05), tmp_path / "run")
    assert found[KNOWN].auc == 1
    assert violates(found[KNOWN], 1.0, 1e-5)


def test_the_study_attacks_sums_with_a_promise_and_without(tmp_path: Path) -> None:
    words = "--sums --epsilon 2,inf --seeds 1 --workers 1 --clients 4 --partition users"
    words += " --market.users 120 --market.items 60 --privacy.replay"
    assert main(["privacy", *words.split(), "--out", str(tmp_path / "study")]) == 0
    table = pd.read_csv(tmp_path / "study" / "results.csv", dtype={"epsilon": str})
    rows = table[table["kind"] == "attack"].to_dict("records")
    attacks = {(row["name"], row["epsilon"]): row for row in rows}
    for name in ("items of a client", "pairs of a client"):
        assert attacks[name, "inf"]["f1"] == attacks[name, "inf"]["value"] == 1
        assert attacks[name, "2"]["chance"]
    assert attacks["user of a client", "inf"]["value"] > 0.8
    assert attacks["user of a client", "2"]["chance"]
    assert (KNOWN, "inf") not in attacks and not any(row["violates"] for row in rows)
    alone = table[table["scene"] == "clients alone"]
    assert set(alone["kind"]) == {"local", "popularity", "slist-local"}
    page = (tmp_path / "study" / "report.html").read_text()
    assert "knows every user" in page and "canaries" not in page


def test_one_user_clients_are_no_scene_of_sums(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy", "--sums", "--one-user", "30", "--out", str(tmp_path / "study")]) == 2
    assert "one-user: is no scene of sums" in capsys.readouterr().err
