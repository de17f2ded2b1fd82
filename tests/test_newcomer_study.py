"""The study of a platform that joins late: every arm on the newcomer's own test data, the same for a seed."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from fedrec.experiment.holdings import clients_data
from simulations.apps import apps_for
from simulations.studies import newcomer
from simulations.studies.__main__ import main
from simulations.studies.harness import Run
from simulations.studies.methods import experiment_of
from simulations.studies.newcomer import ARMS
from tests.helpers import run_inline

SMALL = ["--market.users", "40", "--market.items", "40", "--rounds", "2", "--dim", "4"]


@pytest.mark.soak
def test_the_newcomer_study_compares_one_client_with_itself(tmp_path: Path, tries: Callable[[int, int], int]) -> None:
    tries(0, 1)
    arguments = ["newcomer", "--joins", "3", "--seeds", "2", "--workers", "1", "--out", str(tmp_path / "study")]
    assert main([*arguments, *SMALL, "--rounds", "4", "--clients", "3", "--volunteers", "10"]) == 0
    results = pd.read_csv(tmp_path / "study" / "results.csv")
    assert set(results["method"]) == {*ARMS, "popularity"} and set(results["client"]) == {"shop"}
    assert results.groupby(["method", "seed", "metric"]).size().eq(1).all()
    summary = pd.read_csv(tmp_path / "study" / "summary.csv").set_index(["method", "metric"])
    values = results.pivot_table(index="seed", columns=["method", "metric"], values="value")
    gain = values["late", "ndcg@10"] - values["local", "ndcg@10"]
    assert summary.loc[("late", "ndcg@10"), "minus_local"] == pytest.approx(gain.mean())
    page = (tmp_path / "study" / "report.html").read_text(encoding="utf-8")
    assert "alone for the T - R + 1 rounds" in page and "joins in round" in page


def test_who_is_alone_in_the_newcomer_study_is_what_it_is_in_a_run_of_everybody_alone(tmp_path: Path) -> None:
    e = experiment_of("local", [*SMALL, "--clients", "3", "--engine", "inline"])
    run = Run({"method": "local", "seed": 0, "client": "shop"}, e)
    found = pd.DataFrame(newcomer.measure(run, tmp_path / "alone")).set_index("metric")["value"]
    every = pd.read_csv(tmp_path / "alone" / "clients.csv")
    assert set(every["client"]) == {"shop"}
    (tmp_path / "all").mkdir()
    run_inline(*apps_for(e, tmp_path / "all"), 3)
    rows = pd.read_csv(tmp_path / "all" / "clients.csv")
    last = rows[(rows["client"] == "shop") & (rows["split"] == "validation") & (rows["round"] == 2)]
    mine = every[(every["split"] == "validation") & (every["round"] == 2)]
    assert mine.set_index("metric")["value"].to_dict() == last.set_index("metric")["value"].to_dict()
    assert found.notna().all()


def test_the_newcomer_of_a_study_may_be_named_by_its_size() -> None:
    e = experiment_of("fedper", ["--partition", "users", "--skew", "0.5", "--clients", "4", "--market.users", "40"])
    sizes = {data.name: len(data.users) for data in clients_data(e)}
    assert sizes[newcomer.newcomer(e, "smallest")] == min(sizes.values()) < max(sizes.values())
    assert sizes[newcomer.newcomer(e, "largest")] == max(sizes.values())
    assert newcomer.newcomer(e, "") == "silo-4"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--joins", "1"], "joins: must be a round from 2 to 19, found 1"),
        (["--joins", "20"], "joins: must be a round from 2 to 19, found 20"),
        (["--client", "new"], "client: must be one of books, films, "),
        (["--seeds", "0"], "seeds, workers: must be at least 1, found 0"),
        (["--federated", "admm"], "but newcomers send nothing, found newcomers shop="),
    ],
)
def test_a_wrong_study_ends_with_one_line(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["newcomer", *arguments]) == 2
    assert text in (error := capsys.readouterr().err) and error.count("\n") == 1
