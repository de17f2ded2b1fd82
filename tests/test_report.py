"""The report: the comparison of clients with their baselines, and the page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from fedrec.errors import UserError
from fedrec.metrics import holm, paired
from fedrec.report.findings import answer, change, listing, number, size
from fedrec.report.page import write_report
from fedrec.report.tables import EVERYONE, compare, comparison, read_run
from fedrec.report.verdicts import UNCLEAR
from fedrec.rng import generator
from simulations.closing import answers
from simulations.closing import table as closing

GAINS = {"films": 0.06, "books": 0.03, "music": -0.06, "games": 0.0}  # mean of a user's ndcg@10, together minus alone
LEAK = "LEAKING PROTOCOL"


def write_results(folder: Path, clients: Mapping[str, Mapping[tuple[str, str], Any]], rounds: int) -> None:
    """Write clients.csv and users/; `clients` maps a name to {(task, metric): per-user values, or one value}."""
    (folder / "users").mkdir(parents=True)
    rows, seen = [], []
    for client, values in clients.items():
        for (task, metric), value in values.items():
            mean = float(np.sqrt(np.mean(np.square(value))) if metric == "rmse" else np.mean(value))
            for r in range(1, rounds + 1):
                rows.append(
                    [r, client, "validation", task, metric, mean * (1 - 0.8 ** (r + 1)) if r < 9 else mean * 0.86]
                )
            rows.append([min(8, rounds), client, "test", task, metric, mean])
            if isinstance(value, np.ndarray):
                seen += [[client, f"{u:03d}", "test", task, metric, x] for u, x in enumerate(value)]
    table = pd.DataFrame(rows, columns=["round", "client", "split", "task", "metric", "value"]).assign(device="cpu")
    table.to_csv(folder / "clients.csv", index=False)
    users = pd.DataFrame(seen, columns=["client", "user", "split", "task", "metric", "value"])
    for place, (_, part) in enumerate(users.groupby("client", sort=False)):
        part.to_csv(folder / "users" / f"{place}.csv", index=False)


def write_run(
    folder: Path,
    gains: dict[str, float],
    users: int = 200,
    rounds: int = 12,
    baselines: Sequence[str] = ("local", "pooled", "popularity"),
    record: dict[str, Any] | None = None,
    popular: float = -0.04,
    **options: Any,
) -> Path:
    """Write a run directory as a run does; `gains` are the planted differences of the clients against local.

    `popular` is that of popularity.
    """
    random = generator(0, "report", len(gains))
    alone = {name: random.beta(0.4, 3.5, users) for name in gains}
    ndcg = {
        "": {name: alone[name] + gain + random.normal(0, 0.05, users) * (users > 1) for name, gain in gains.items()},
        "local": alone,
        "pooled": {name: alone[name] + 0.05 + random.normal(0, 0.05, users) for name in gains},
        "popularity": {name: alone[name] + popular + random.normal(0, 0.05, users) for name in gains},
    }
    error = {"": 0.91, "local": 0.94, "pooled": 0.9, "popularity": 1.02}
    for kind, values in ndcg.items():
        if kind and kind not in baselines:
            continue
        metrics = {
            name: {("rank", "ndcg@10"): v, ("rank", "hr@10"): v * 1.8, ("rating", "rmse"): error[kind]}
            for name, v in values.items()
        }
        write_results(folder / "baselines" / kind if kind else folder, metrics, rounds)
    experiment = {
        "method": "fedper", "dataset": "synthetic", "clients": len(gains), "rounds": rounds,
        "share": ["item_table", "body"],
        "negatives": "train", "candidates": "full", "metrics": ["ndcg@10", "hr@10"], "task": "rank,rating", "seed": 3,
        "engine": "inline", "split": "leave-one-out", "lr": 0.01, **options,
    }  # fmt: skip
    client = {"users": users, "items": 1682, "train": 9000, "validation": users, "test": users, "notes": []}
    whole = {
        "experiment": experiment,
        "versions": {"python": "3.11.7", "flwr": "1.41.0", "torch": "2.13.0", "numpy": "2.4.6", "pandas": "3.1.1"},
        "data": {"clients": [{"name": name, **client} for name in gains], "notes": ["17 duplicates dropped"]},
        "parameters": {
            "shared": [
                {"name": "item_table", "shape": [1682, 32], "rows": 1682},
                {"name": "body.0.weight", "shape": [64, 64], "rows": None},
            ],
            "private": [{"name": "user_table", "shape": [users, 32]}, {"name": "heads.rank.weight", "shape": [32]}],
        },
        "selected_round": 8, "stopped": "", "seconds": 41.2,
    }  # fmt: skip
    (folder / "experiment.json").write_text(json.dumps(whole | (record or {})), encoding="utf-8")
    steps = np.arange(1, rounds + 1)
    pd.DataFrame({"round": steps, "seconds": 3.1, "clients": len(gains), "train_loss": 0.3 + 0.4 * 0.8**steps}).to_csv(
        folder / "rounds.csv", index=False
    )
    sizes = {"item_table": (1682, 215296), "body.0.weight": (0, 16384)}
    ledger = [
        [r, name, way, p, *rows]
        for r in steps for name in list(gains)[:40] for way in ("up", "down") for p, rows in sizes.items()
    ]  # fmt: skip
    pd.DataFrame(ledger, columns=["round", "client", "direction", "parameter", "rows", "bytes"]).to_csv(
        folder / "ledger.csv", index=False
    )
    return folder


class Text(HTMLParser):
    """The visible text of a page, its tags, and the addresses that it would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.hidden = 0
        self.feed(page)
        self.text = re.sub(r"\s+", " ", " ".join(self.parts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.hidden += tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag == "style"

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


def read(run: Path) -> Text:
    path = write_report(run)
    assert path == run / "report.html"
    return Text(path.read_text("utf-8"))


def test_comparison_pairs_users_and_judges_each_client(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", GAINS)
    table = comparison(run)
    rows = table[table["primary"] & (table["task"] == "rank")].set_index("client")
    assert list(rows.index) == list(GAINS)
    assert rows["verdict"].to_dict() == {
        "films": "helped",
        "books": "helped",
        "music": "hurt",
        "games": "no detectable difference",
    }
    ours, local = (
        pd.read_csv(folder / "users" / "0.csv").query("metric == 'ndcg@10'")["value"].to_numpy()
        for folder in (run, run / "baselines" / "local")
    )
    expected = paired(ours, local)
    films = rows.loc["films"]
    found = [films[f"local_{name}"] for name in ("difference", "low", "high", "users")]
    assert found == pytest.approx([expected.mean, expected.low, expected.high, 200])
    assert films["federated"] - films["local"] == pytest.approx(films["local_difference"])
    assert films["pooled_share"] == pytest.approx(films["federated"] / films["pooled"])


def test_comparison_pairs_by_user_and_not_by_place(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", GAINS)
    before = comparison(run)
    path = run / "baselines" / "local" / "users" / "0.csv"
    pd.read_csv(path, dtype=str).iloc[::-1].to_csv(path, index=False)
    columns = ["local_difference", "local_low", "local_high"]
    np.testing.assert_allclose(comparison(run)[columns], before[columns])


def test_a_lower_error_is_the_better_one(tmp_path: Path) -> None:
    table = comparison(write_run(tmp_path / "run", GAINS))
    rmse = table[table["metric"] == "rmse"]
    assert rmse["primary"].all()
    assert set(rmse["verdict"]) == {"better"}  # .91 against .94, and no per-user values: no interval
    assert rmse["local_low"].isna().all() and (rmse["local_users"] == 0).all()
    assert rmse["local_difference"].tolist() == pytest.approx([-0.03] * 4)
    assert rmse["pooled_share"].tolist() == pytest.approx([0.9 / 0.91] * 4)


def test_per_user_errors_are_judged_by_their_sign(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"a": 0.0, "b": 0.0})
    random = generator(0, "errors")
    noise = random.normal(0, 0.01, 50)
    for folder, values in ((run, (0.8, 1.2)), (run / "baselines" / "local", (1.0, 1.0))):
        (folder / "users").rename(folder / "old")
        shift = noise if folder == run else 0 * noise
        write_results(
            folder / "new", {n: {("rating", "rmse"): v + shift} for n, v in zip(("a", "b"), values, strict=True)}, 3
        )
        (folder / "new" / "users").rename(folder / "users")
        (folder / "new" / "clients.csv").replace(folder / "clients.csv")
    assert comparison(run)["verdict"].tolist() == ["helped", "hurt"]
    assert "Taking part helped a RMSE .80" in read(run).text


def test_a_federation_below_popularity_has_the_headline_that_it_deserves(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"films": 0.06, "books": 0.03}, popular=0.2)
    everyone: Any = compare(read_run(run), together=True).set_index("metric").loc["ndcg@10"]
    page, ours, popular = read(run).text, everyone["federated"], everyone["popularity"]
    gap = change(*(everyone[f"popularity_{end}"] for end in ("difference", "low", "high")))
    headline = "Working together does worse than recommending what is popular (task rank)"
    sentence = (
        f"All users, NDCG@10 (higher is better): {number(ours, 4)} together; the strongest baseline is popularity, "
    )
    sentence += f"{number(popular, 4)} ({gap} against it)."
    assert page.index(headline) < page.index(sentence) < page.index("Of 2 clients, working together helped 2.")
    assert "Helped against training alone, but still below popularity: films, books." in page
    assert "films against training alone, but it stays below popularity (" in page
    told = answers(run)
    assert told[0] == f"{headline}."
    assert sentence in told
    assert "Helped against training alone, but still below popularity: films, books." in told


def test_popularity_that_may_be_as_good_is_no_better_and_no_worse(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"films": 0.05, "books": 0.05}, popular=0.051)
    shown = compare(read_run(run), together=True).set_index("metric").loc["ndcg@10"]
    assert shown["popularity_low"] < shown["popularity_difference"] < 0 < shown["popularity_high"]
    assert "Working together is not shown to do better than recommending what is popular" in read(run).text


def test_the_strongest_baseline_is_named_first_and_pooled_is_worth_what_its_model_is(tmp_path: Path) -> None:
    page = read(write_run(tmp_path / "run", GAINS)).text
    assert "Did working together help each of them?" in page and "Working together" not in page
    assert "together; the strongest baseline is pooled, " in page
    page = read(write_run(tmp_path / "above", {"films": 0.12, "books": 0.12})).text
    assert "is no better than together: it is worth what its model is worth" in page


def test_popularity_among_the_clients_own_rows_is_named_where_it_is_the_stronger(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"films": 0.06, "books": 0.03})
    copy = write_run(tmp_path / "other", {"films": 0.06, "books": 0.03}, popular=0.3) / "baselines" / "popularity"
    copy.rename(run / "baselines" / "popularity" / "own")
    page = read(run).text
    assert "the strongest baseline is popularity among each client's own rows, " in page
    assert "Working together does worse than recommending what is popular" in page


def test_under_a_promise_popularity_is_said_not_to_be_private(tmp_path: Path) -> None:
    promised = {"words": "Epsilon 2.", "beside": "", "replay": False, "delta": 1e-5, "spent": "2", "unit": "user"}
    whole = {"privacy": {**promised, "parties": [], "people": []}}
    run = write_run(tmp_path / "run", GAINS, record=whole)
    page = read(run).text
    assert "sent to nobody, and it is not private" in page
    assert "Popularity counts the rows of all clients as they are: it is not private." in page
    assert any(
        "Popularity counts the rows of all clients as they are: it is not private." in one for one in answers(run)
    )
    console = Console(file=StringIO(), width=80)
    console.print(closing(run))
    assert "popular is not private" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "not private" not in read(write_run(tmp_path / "plain", GAINS)).text


def test_verdicts_are_corrected_for_their_number_and_say_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "many", {f"silo-{i}": 0.0065 for i in range(8)}, users=200)
    rows = comparison(run).query("metric == 'ndcg@10'").set_index("client")
    corrected = holm(rows["local_p"].tolist())
    for (_, row), p in zip(rows.iterrows(), corrected, strict=True):
        excludes = row["local_low"] > 0 or row["local_high"] < 0
        assert row["verdict"] == ("no detectable difference" if not excludes else "helped" if p < 0.05 else UNCLEAR)
    assert UNCLEAR in set(rows["verdict"])
    assert "Verdicts: 5% over all 8 of them together (Holm); intervals: 95% each." in read(run).text
    assert "Verdicts: 5% over all 8 of them together (Holm); intervals: 95% each." in answers(run)
    assert "after Holm: its interval excludes 0, but not once corrected for the other verdicts" in read(run).text


def test_values_by_user_that_do_not_make_up_the_number_shown_give_no_interval(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", GAINS)
    table = pd.read_csv(run / "clients.csv")
    films = (table["client"] == "films") & (table["split"] == "test") & (table["metric"] == "ndcg@10")
    table.loc[films, "value"] += 0.01
    table.to_csv(run / "clients.csv", index=False)
    row = comparison(run).query("client == 'films' and metric == 'ndcg@10'").iloc[0]
    assert row["local_difference"] == pytest.approx(row["federated"] - row["local"])
    assert math.isnan(row["local_low"]) and row["verdict"] == "better"


def test_all_users_are_paired_within_their_client(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", GAINS)
    everyone = compare(read_run(run), together=True).set_index("metric").loc["ndcg@10"]
    clients = comparison(run).query("metric == 'ndcg@10'")
    assert everyone["client"] == EVERYONE
    assert everyone["local_users"] == 800  # every client has a user 000: they stay apart
    assert everyone["local_difference"] == pytest.approx(clients["local_difference"].mean())  # equal sizes


def test_page_answers_the_question_for_each_client(tmp_path: Path) -> None:
    page = read(write_run(tmp_path / "run", GAINS))
    assert "Of 4 clients, working together helped 2, hurt 1, and made no detectable difference to 1." in page.text
    films = comparison(tmp_path / "run").iloc[0]
    low, high = films["local_low"], films["local_high"]
    sentence = (
        f"Taking part helped films NDCG@10 {number(films['federated'])} together against {number(films['local'])} alone"
    )
    assert f"{sentence}, {change(films['local_difference'], low, high)}, 200 users" in page.text
    assert "Taking part hurt music" in page.text
    assert "No detectable difference for games" in page.text
    assert "music lost by taking part" in page.text
    assert LEAK not in page.text
    assert "user_table private 200 × 32 – never sent" in page.text
    assert "item_table shared 1,682 × 32 1,682 10.3 MB 10.3 MB" in page.text  # 12 rounds x 4 clients x 215,296 B
    assert "17 duplicates dropped" in page.text


def test_page_needs_nothing_else_and_is_the_same_twice(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", GAINS)
    page = read(run)
    first = (run / "report.html").read_bytes()
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "img", "iframe"}
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.search(rb"url\((?!#)|@import", first)
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(pictures) == 6  # differences and validation of two tasks, training loss, bytes
    assert all(p["role"] == "img" and len(p["aria-label"] or "") > 15 for p in pictures)
    # Differences fit into 400 pixels, of which the margins leave 360: their text is no smaller than 8 pixels there.
    narrow = [p for p in pictures if p.get("class") == "narrow"]
    assert len(narrow) == 2 and b"svg.narrow { min-width: 0;" in first
    assert all(10 * 360 / float((p["viewbox"] or "").split()[2]) > 8 for p in narrow)
    write_report(run)
    assert (run / "report.html").read_bytes() == first


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", 'a"><b onmouseover="x', "$\\frac{1$", "{{ 7 * 7 }}", "NA", "名前 & co"]
)
def test_a_client_may_have_any_name(tmp_path: Path, name: str) -> None:
    page = read(write_run(tmp_path / "run", {name: 0.05, "other": -0.05}))
    assert f"Taking part helped {name} NDCG@10" in page.text
    assert not [tag for tag, _ in page.tags if tag in {"script", "b"}]


def test_leaking_protocol_stands_beside_every_number(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", GAINS, negatives="published")
    assert set(comparison(run)["protocol"]) == {LEAK}
    write_report(run)
    html = (run / "report.html").read_text("utf-8")
    tables = re.findall(r"<table>\s*<caption>(?:NDCG|HR|RMSE).*?</table>", html, flags=re.S)
    assert len(tables) == 3
    for table in tables:
        for cell in re.findall(r"<td.*?</td>", table, flags=re.S)[0:]:
            counts_users = re.fullmatch(r"<td>(?:[\d,]+|–)</td>", cell)
            assert counts_users or LEAK in cell, cell
    for numbers in re.findall(r'<p class="(?:numbers|words|muted)">(.*?)</p>', html):
        assert LEAK in numbers
    assert LEAK in html[: html.index("<style>")]  # the title
    for picture in re.findall(r"<svg.*?</svg>", html, flags=re.S)[:4]:  # differences and validation of both tasks
        assert f"{LEAK}</text>" in picture


def test_page_warns(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", GAINS, candidates=99, record={"stopped": "interrupted"}, rounds=5)
    record = json.loads((run / "experiment.json").read_text())
    record["experiment"]["rounds"] = 30
    record["data"]["clients"][0]["notes"] = ["3 users with one interaction are kept for training only"]
    record["data"]["clients"].append({"name": "empty", "users": 3, "items": 5, "train": 3, "validation": 0, "test": 0})
    (run / "experiment.json").write_text(json.dumps(record))
    extra = "5,games,test,like,auc,,cpu\n5,films,test,like,auc,0.7,cpu\n"
    with (run / "clients.csv").open("a") as file:
        file.write(extra)
    with (run / "ledger.csv").open("a") as file:
        file.write("1,films,up,user_table,0,12\n0,films,up,rows:item,332,2784\n")
    text = read(run).text
    assert "ranked among 99 sampled items" in text
    assert "The run ended early, after 5 rounds of 30." in text
    assert "films: 3 users with one interaction are kept for training only" in text
    assert "Nothing is held out, so nothing is measured, for empty." in text
    assert "The test labels have one class only, or are not known, for games." in text
    assert "A private parameter travelled The ledger names user_table." in text
    assert "user_table private 200 × 32 – 12 B 0 B" in text
    assert "rows:item message – – 2.78 kB 0 B" in text


def test_a_gain_below_zero_that_is_not_detectable_is_said_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"a": -0.0045, "b": 0.2})
    row = comparison(run).iloc[0]
    assert row["local_low"] < row["local_difference"] < 0 < row["local_high"]
    assert "No detectable gain" in read(run).text


def test_missing_baselines_are_said_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", GAINS, baselines=("popularity",))
    table = comparison(run)
    assert table["local"].isna().all() and table["pooled_share"].isna().all() and set(table["verdict"]) == {""}
    assert table["popularity_difference"].notna().all()
    text = read(run).text
    assert "Run again with --compare" in text
    assert "Not run: local, pooled" in text


def test_a_run_that_has_measured_nothing_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "experiment.json").write_text("{}")
    assert len(comparison(tmp_path)) == 0
    assert "Nothing was measured" in read(tmp_path).text


def test_no_run_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"experiment\.json"):
        comparison(tmp_path)
    (tmp_path / "experiment.json").write_text("{}")
    (tmp_path / "clients.csv").write_text("round,client\n1,a\n")
    with pytest.raises(UserError, match=r"clients\.csv: must have the columns .*split"):
        comparison(tmp_path)


def test_many_clients_are_counted_and_the_worst_are_shown(tmp_path: Path) -> None:
    random = generator(0, "many")
    gains = {f"user-{i}": float(g) for i, g in enumerate(random.normal(0.01, 0.05, 150))}
    run = write_run(tmp_path / "run", gains, users=1, rounds=2)
    page = read(run)
    table = comparison(run)
    rows = table[table["metric"] == "ndcg@10"]
    counts = rows["verdict"].value_counts()  # one user a client: no interval
    assert f"left {counts['better']} better off by a point estimate and left {counts['worse']} worse off" in page.text
    worst = rows.sort_values("local_difference").head(10)["client"]
    assert all(f" {name} worse no interval 1 " in page.text for name in worst)
    assert "All users: NDCG@10" in page.text
    assert "150 users" in page.text
    assert len((run / "report.html").read_bytes()) < 250_000


def test_numbers_read_as_in_print() -> None:
    assert [number(x) for x in (0.1124, -0.02, 1.5, 0.0, -0.0001, math.nan)] == [
        ".112",
        "−.020",
        "1.500",
        ".000",
        ".000",
        "–",
    ]
    assert change(0.018, 0.009, 0.0274) == "+.018 [+.009, +.027]"
    assert change(-0.002, -0.0001, 0.004) == "−.0020 [−.0001, +.0040]"  # three decimals would hide the sign
    assert change(0.25) == "+.250"
    assert change(math.nan) == "–"
    assert [size(x) for x in (0, 999, 1234, 215296, 10_334_208, 5e12)] == [
        "0 B",
        "999 B",
        "1.23 kB",
        "215 kB",
        "10.3 MB",
        "5000 GB",
    ]
    assert listing("abc") == "a, b, c"
    assert listing(map(str, range(20)), 3) == "0, 1, 2 and 17 more"


def test_answer_counts_every_client() -> None:
    rows = pd.DataFrame({"verdict": ["helped", "helped", "hurt", ""]})
    assert answer(rows) == "Of 4 clients, working together helped 2 and hurt 1; 1 could not be compared."
