"""What a reader is shown: differences of the numbers beside them, popularity of all clients, the strongest baseline."""

import json
import math
import re
from html import unescape
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from fedrec.data import pool
from fedrec.evaluation.evaluate import evaluate
from fedrec.evaluation.scorers import PopularityScorer
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.holdings import clients_data
from fedrec.report.findings import number
from fedrec.report.page import write_report
from fedrec.report.tables import CLIENTS, EVERYONE, compare, comparison, read_run
from simulations.baselines import baseline, run_popularity
from simulations.closing import several, table
from simulations.run import main
from tests.helpers import experiment

MARKET = "--market.users 40 --market.items 60 --market.impressions 12 --dim 4 --engine inline --split random"
MEANS = ("ndcg@10", "hr@10")  # over users; the others are over rows


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three clients with every kind of metric that has values by user."""
    out = tmp_path_factory.mktemp("shown") / "out"
    tasks = ["--task", "rank,rating,click,behaviour", "--metrics", "ndcg@10,hr@10"]
    assert main([*MARKET.split(), "--clients", "3", "--rounds", "2", *tasks, "--quiet", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def phones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one client for each user."""
    out = tmp_path_factory.mktemp("phones") / "out"
    few = [*MARKET.split(), "--engine", "batched", "--partition", "one-user", "--rounds", "1", "--task", "rank,rating"]
    assert main([*few, "--lr", "0.0001", "--split", "leave-one-out", "--quiet", "--out", str(out)]) == 0
    return out


def printed(shown: object) -> str:
    """Return what a wide terminal shows, its numbers as Python reads them."""
    console = Console(file=StringIO(), width=200)
    console.print(shown)
    return str(console.file.getvalue()).replace("−", "-")  # type: ignore[attr-defined]


def value(text: str) -> float:
    return float(text.replace("\N{MINUS SIGN}", "-"))


def cells(page: str) -> list[tuple[str, list[tuple[float, float]]]]:
    """Return, of every row of the page's comparisons, `together` and each baseline with its difference."""
    rows = []
    for row in re.findall(r"<tr[^>]*><th scope=\"row\">(?:(?!</tr>).)*class=\"ours\">.*?</tr>", page, re.S):
        ours = re.search(r'class="ours">([^<\s]+)', row)
        found = re.findall(r"<td>([^<\s]+)<small>([^<\s\[]+)", row)
        if ours and found:
            rows.append((ours[1], [(value(a), value(b)) for a, b in found]))
    return rows


def test_every_difference_is_that_of_the_numbers_beside_it(ran: Path) -> None:
    for together in (False, True):
        found = compare(read_run(ran), together)
        assert set(found["metric"]) == {*MEANS, "rmse", "auc", "logloss", "accuracy"}
        for other in ("local", "pooled", "popularity"):
            np.testing.assert_allclose(found["federated"] - found[other], found[f"{other}_difference"], atol=1e-12)
            assert found[f"{other}_low"].notna().all() and (found[f"{other}_users"] > 1).all()
            inside = (found[f"{other}_low"] <= found[f"{other}_difference"]) & (
                found[f"{other}_difference"] <= found[f"{other}_high"]
            )
            assert inside.all()
    page = unescape(write_report(ran).read_text("utf-8"))
    rows = cells(page)
    assert len(rows) == 7 * 4  # seven metrics of the tasks, three clients and all of them
    for ours, others in rows:
        assert len(others) == 3
        assert all(abs(value(ours) - other - gap) <= 0.0016 for other, gap in others)
    lines = re.findall(r"^(.*\S) +([.\d]+) +([.\d]+) +([+-][.\d]+)(?: |$)", printed(table(ran)), re.M)
    assert len(lines) == 4 * 4
    assert all(abs(float(ours) - float(alone) - float(gap)) <= 0.0007 for _, ours, alone, gap in lines)
    single = re.findall(r"^(.*\S) +([.\d]+) +([.\d]+) +([+-][.\d]+) \[", printed(several(ran)), re.M)
    assert len(single) == 4 * 4
    assert all(abs(float(ours) - float(alone) - float(gap)) <= 0.0007 for _, ours, alone, gap in single)


def test_the_values_by_user_make_up_the_values_of_clients_csv(ran: Path) -> None:
    whole: Any = comparison(ran).set_index(["client", "task", "metric"])["federated"]
    users = pd.read_parquet(ran / "users.parquet")
    assert {"rmse", "auc", "auc-negatives", "ndcg@10"} <= set(users["metric"])
    for (client, task, metric), rows in users.groupby(["client", "task", "metric"]):
        v, w = rows["value"].to_numpy(), rows["weight"].to_numpy()
        mean = math.sqrt(w @ v**2 / w.sum()) if metric == "rmse" else w @ v / w.sum()
        assert mean == pytest.approx(whole[client, task, "auc" if metric == "auc-negatives" else metric])
        assert (w == 1).all() == (metric in MEANS)


def test_all_users_are_measured_over_all_their_rows(ran: Path, phones: Path) -> None:
    # Of a phone with one test row, RMSE is |error|: the mean over phones would be their MAE.
    run = read_run(phones)
    each = run.federated.test().reset_index().query("metric == 'rmse'")["value"].dropna().to_numpy()
    shown = compare(run, together=True).query("metric == 'rmse'").iloc[0]
    assert shown["client"] == EVERYONE
    assert shown["federated"] == pytest.approx(math.sqrt(np.square(each).mean()))
    assert shown["federated"] > each.mean() + 0.01
    assert f"{EVERYONE}: RMSE {number(shown['federated'])} together" in unescape(
        write_report(phones).read_text("utf-8")
    )
    clients = comparison(ran).query("metric == 'auc'")
    shown = compare(read_run(ran), together=True).query("metric == 'auc'").iloc[0]
    assert (shown["client"], shown["federated"]) == (CLIENTS, pytest.approx(clients["federated"].mean()))
    assert shown["local_low"] < shown["local_difference"] < shown["local_high"]


def test_popularity_is_of_all_clients(phones: Path) -> None:
    e = build(json.loads((phones / "experiment.json").read_text())["experiment"])
    parts = clients_data(baseline(e, "local"))
    everybody = pool(parts)
    scorer = PopularityScorer.fit(e.tasks("pooled"), everybody.train, len(everybody.items))
    shown = read_run(phones).baselines["popularity"].test()
    for part in parts:
        assert np.array_equal(part.items, everybody.items)  # so the pooled counts are those of the client's catalogue
        found = evaluate(scorer, part, e.tasks(part.name), "test", metrics=e.metrics, candidates="full", seed=e.seed)
        for key, expected in found.metrics.items():
            assert shown[key] == pytest.approx(expected, nan_ok=True)
    own = read_run(phones).own
    assert (
        own is not None and (own.test().xs("ndcg@10", level="metric").dropna() < 0.2).all()
    )  # nothing else is popular there


def test_popularity_adds_up_what_is_common_and_knows_only_the_clients_catalogue(tmp_path: Path) -> None:
    e = experiment("fedper", task="rating", dataset="synthetic", market={"users": 30, "items": 40, "impressions": 10})
    run_popularity(e, tmp_path / "popularity")
    parts = clients_data(baseline(e, "local"))
    rated = pd.concat(
        pd.DataFrame({"item": part.items[part.train.item], "rating": part.train.rating.astype(np.float64)})
        for part in parts
    ).dropna()
    found = pd.read_csv(tmp_path / "popularity" / "clients.csv").set_index(["client", "metric"])["value"]
    assert len({tuple(part.items) for part in parts}) > 1
    for part in parts:
        known = rated[rated["item"].isin(part.items)]
        groups = known.groupby("item")["rating"].agg(["sum", "size"]).reindex(part.items).fillna(0)
        usual = (groups["sum"] + 5 * known["rating"].mean()) / (groups["size"] + 5)
        error = usual.to_numpy()[part.test.item] - part.test.rating
        assert found[part.name, "rmse"] == pytest.approx(math.sqrt(np.nanmean(error**2)), rel=1e-5)


def test_public_volunteers_count_once_among_all_clients(tmp_path: Path) -> None:
    def popular(e: Experiment, name: str) -> pd.Series:
        run_popularity(e, tmp_path / name)
        return pd.read_csv(tmp_path / name / "clients.csv")["value"]

    fields = {"dataset": "synthetic", "partition": "users", "clients": 4, "task": "rating"}
    e = experiment("fedper", volunteers=10, market={"users": 40, "items": 40, "impressions": 10}, **fields)
    parts = clients_data(baseline(e, "local"))
    everybody = {
        (int(part.users[u]), int(part.items[i]))
        for part in parts
        for u, i in zip(part.train.user, part.train.item, strict=True)
    }
    assert len(everybody) < sum(len(part.train) for part in parts)
    rows = pd.DataFrame(sorted(everybody), columns=["user", "item"])
    assert rows.duplicated().sum() == 0
    frame = pd.concat(
        pd.DataFrame({"user": p.users[p.train.user], "item": p.items[p.train.item], "rating": p.train.rating})
        for p in parts
    ).drop_duplicates(["user", "item"])
    frame = frame.dropna()
    groups = frame.groupby("item")["rating"].agg(["sum", "size"]).reindex(parts[0].items).fillna(0)
    usual = (groups["sum"] + 5 * frame["rating"].mean()) / (groups["size"] + 5)
    expected = [math.sqrt(np.nanmean(np.square(usual.to_numpy()[part.test.item] - part.test.rating))) for part in parts]
    assert popular(e, "a").tolist() == pytest.approx(expected, rel=1e-5)
