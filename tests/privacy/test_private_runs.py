"""Runs with a promise of privacy: what travels, what is booked before it does, and what survives a crash."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import ArrayRecord

from clients.client import Client
from clients.secure import source
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.holdings import clients_data
from fedrec.experiment.privacy import Privacy
from fedrec.experiment.records import Row, load_params
from fedrec.keyed import carrier
from fedrec.privacy.account import promise
from fedrec.privacy.accounting import Event, epsilon
from fedrec.privacy.books import Books
from fedrec.privacy.guarantee import SERVER, guarantees
from fedrec.privacy.ledger import Group, Ledger, OverBudget
from fedrec.privacy.secret import digest
from fedrec.report.facts import facts
from fedrec.report.tables import read_run
from server.faults import ClientFailure
from server.release import Release
from simulations.engines import launch
from simulations.run import main
from tests.helpers import SpyGrid, experiment, fit
from tests.letters import read_contribution

USER = {"unit": "user", "epsilon": "4"}
CLIENT = {"unit": "client", "noise": 1.0}


def private(method: str = "fedper", privacy: dict[str, Any] | None = None, **fields: Any) -> Experiment:
    return experiment(method, privacy=privacy or USER, weights="uniform", **fields)


def metrics_of(grid: SpyGrid) -> set[str]:
    return {name for message in grid.received for name in read_contribution(message.content).metrics}


def lengths(grid: SpyGrid) -> list[list[tuple[str, int]]]:
    """Return the records of every message that the server gets, with the bytes of each."""
    return [
        [
            (
                name,
                sum(len(array.data) for array in record.values()) if isinstance(record, ArrayRecord) else len(record),
            )
            for name, record in sorted(message.content.items())
        ]
        for message in grid.received
    ]


UNITS: dict[str, dict[str, Any]] = {
    "interaction": {"unit": "interaction", "noise": 1.0, "rate": 0.5},
    "user": USER,
    "server": CLIENT,
    "client": {**CLIENT, "where": "client"},
}


@pytest.mark.parametrize("unit", UNITS)
def test_nothing_leaves_a_client_but_what_the_promise_covers(unit: str, tmp_path: Path) -> None:
    # Two markets of one form: as many users, items and rows carried, other interactions. A client's answers have the
    # same records of the same lengths, and no number beside the shared tensors depends on the data.
    grids = [
        fit(private(privacy=UNITS[unit], seed=seed, partition="users"), tmp_path / f"{seed}")[1] for seed in (0, 1)
    ]
    assert lengths(grids[0]) == lengths(grids[1])
    for grid in grids:
        assert metrics_of(grid) == {"examples"}
        for message in grid.received:
            found = read_contribution(message.content)
            assert found.values.keys() <= {"item_table", "item_bias"}
            assert found.metrics in ({}, {"examples": 1.0})


def test_clients_measure_for_themselves_and_the_record_gathers_it(tmp_path: Path) -> None:
    e = private()
    launch(e, tmp_path)
    clients = pd.read_csv(tmp_path / "clients.csv")
    names = {data.name for data in clients_data(e)}
    for split, numbers in (("validation", {1, 2}), ("test", {2})):
        rows = clients[clients["split"] == split]
        assert set(rows["client"]) == names and set(rows["round"]) == numbers
    assert clients["value"].notna().all()
    assert not (clients["split"] == "train").any(), "a training loss would have been told"
    rounds = pd.read_csv(tmp_path / "rounds.csv")
    assert rounds["train_loss"].isna().all() and rounds["validation"].isna().all()


def test_a_run_says_what_it_promised_and_spent(tmp_path: Path) -> None:
    e = private(privacy={**USER, "rate": 0.5}, local_epochs=1)
    launch(e, tmp_path)
    promised = read_run(tmp_path).record["privacy"]
    (g, *_) = guarantees(e).values()
    # One epoch of 1 / q = 2 steps in each of 2 rounds, booked as what they were.
    assert [p["steps"] for p in promised["parties"]] == [4, 4, 4]
    spent = epsilon([Event(g.event.sigma, 0.5, 4)], 1e-5)
    assert 3.9 < spent <= 4 and math.isclose(float(promised["spent"]), spent, abs_tol=2e-3)
    for word in ("user", "zero-out", "Poisson", "0.5", "1e-05", "PLD"):
        assert word in promised["words"], word


@pytest.mark.parametrize("unit", UNITS)
def test_no_secret_is_left_of_a_finished_run(unit: str, tmp_path: Path) -> None:
    launch(private(privacy=UNITS[unit]), tmp_path)
    assert not list(tmp_path.rglob("*.secret")) and list(tmp_path.rglob("*.jsonl"))


def test_noise_differs_between_runs_and_replays_only_when_asked(tmp_path: Path) -> None:
    def shared(name: str, **privacy: Any) -> dict[str, torch.Tensor]:
        launch(private(privacy={**USER, **privacy}), tmp_path / name)
        return load_params(tmp_path / name / "model" / "shared.safetensors")

    one, two = shared("one"), shared("two")
    assert not torch.equal(one["item_table"], two["item_table"])
    three, four = shared("three", replay=True), shared("four", replay=True)
    assert torch.equal(three["item_table"], four["item_table"])
    assert read_run(tmp_path / "three").stamp() == "NOT PRIVATE"
    assert read_run(tmp_path / "one").stamp() == ""


HOLDS = ("fedavg", "fedrep", "fedprox", "admm", "mr-mtl", "graph", "ditto", "fednova", "pcgrad", "fedadam", "median")
NOT = ("apfl", "no-harm", "local", "pooled")


@pytest.mark.parametrize("method", [*HOLDS, *NOT])
def test_user_level_privacy_composes_with_a_method_or_says_why_not(method: str, tmp_path: Path) -> None:
    if method in NOT:
        with pytest.raises(UserError, match=r"found|since"):
            private(method, rounds=1)
        return
    launch(private(method, rounds=1), tmp_path)
    assert len(pd.read_csv(tmp_path / "rounds.csv")) == 1


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "data-dependent weights": ({"weights": "examples"}, "weights"),
    "stopping by validation": ({"patience": 3}, "patience"),
    "a budget of losses": ({"budget": {"margin": 0.1}, "coupling": {"rho": 1.0, "duals": True}}, "budget"),
    "public volunteers": ({"volunteers": 5}, "volunteers"),
    "no noise at all": ({"privacy": {"unit": "user"}}, "privacy"),
    "noise in a sum of silos": ({"privacy": {**USER, "where": "client"}}, "privacy.where"),
    "sampling inside a whole client": ({"privacy": {**CLIENT, "rate": 0.5}}, "privacy.rate"),
    "duals of whole clients": (
        {"privacy": CLIENT, "coupling": {"rho": 1.0, "duals": True}},
        "coupling.duals: .* noisy mean",
    ),
    "personal z of whole clients": (
        {"privacy": CLIENT, "coupling": {"kind": "graph", "rho": 1.0}},
        "kind: graph .* noisy mean",
    ),
    "weights by gradients": ({"privacy": CLIENT, "descent": {"aggregator": "pcgrad"}}, "descent.aggregator"),
    "a robust rule on whole clients": (
        {"privacy": CLIENT, "robust": {"kind": "median"}},
        "robust.kind: median needs every client's answer by itself",
    ),
    "budgets of clients in one sum": (
        {"privacy": {"unit": "client", "epsilon": "2;films=1"}},
        "privacy.where: must be client",
    ),
    "a budget of nothing": ({"privacy": {"unit": "user", "epsilon": "0"}}, "privacy.epsilon"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_promise_does_not_cover_is_refused_with_the_reason(name: str) -> None:
    fields, found = REFUSED[name]
    with pytest.raises(UserError, match=found):
        build({**experiment().model_dump(), "weights": "uniform", "privacy": USER, **fields})


def test_stacked_training_inside_a_silo_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--stack", "yes", "--privacy.unit", "user", "--privacy.noise", "1", "--weights", "uniform"]) == 2
    assert "needs clients that each train by themselves" in capsys.readouterr().err


def test_a_budget_ends_the_run_before_the_round_that_would_exceed_it(tmp_path: Path) -> None:
    # sigma 5, one step a round: 1 / sigma^2 adds up, so that 8 rounds are as one of sigma 5 / sqrt(8).
    budget = epsilon([Event(5.0, 1.0, 3)], 1e-5)
    e = private(privacy={"unit": "user", "noise": 5.0, "epsilon": f"{budget * 1.001}"}, rounds=6, local_epochs=1)
    launch(e, tmp_path)
    run = read_run(tmp_path)
    assert len(run.rounds) == 3 and run.record["stopped"] == "budget"
    assert all(len(Ledger(path).entries) == 3 for path in (tmp_path / "privacy").glob("*.jsonl"))


def test_a_client_refuses_by_itself_and_sends_nothing(tmp_path: Path) -> None:
    # A server that asks for more rounds than the client's own ledger allows.
    before = private(
        privacy={"unit": "user", "noise": 5.0, "epsilon": "1.2", "ledger": str(tmp_path / "books")}, rounds=1
    )
    _, grid = fit(before, tmp_path / "one")
    trained = [m for m in grid.received if read_contribution(m.content).values]
    own = guarantees(before)["films"]
    ledger = Ledger(tmp_path / "books" / "films.jsonl")
    while True:
        try:
            ledger.book(9, own.event, own.budget, "another run")
        except OverBudget:
            break
    books = {path.name: path.read_text() for path in (tmp_path / "books").glob("films.jsonl")}
    with pytest.raises((UserError, ClientFailure), match="films"):
        fit(before, tmp_path / "two")
    assert trained and books == {path.name: path.read_text() for path in (tmp_path / "books").glob("films.jsonl")}


def test_a_ledger_outlives_the_run(tmp_path: Path) -> None:
    e = private(
        privacy={"unit": "user", "noise": 5.0, "epsilon": "2", "ledger": str(tmp_path / "books")}, local_epochs=1
    )
    for number in (1, 2):
        launch(e, tmp_path / f"{number}")
        assert len(Ledger(tmp_path / "books" / "films.jsonl").entries) == 2 * number
    one, two = (float(read_run(tmp_path / n).record["privacy"]["spent"]) for n in "12")
    assert two > one and math.isclose(two, epsilon([Event(5.0, 1.0, 4)], 1e-5), abs_tol=2e-3)


class Killed(Exception):
    """Ends a run at once, as if the process had been killed."""


@pytest.mark.parametrize("unit", ["user", "server"])
def test_a_resumed_run_repeats_its_noise_and_books_nothing_twice(unit: str, tmp_path: Path) -> None:
    e = private(privacy=UNITS[unit], rounds=4)

    def killed(row: Row) -> None:
        if row["round"] == 3:
            raise Killed

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for home in (whole, broken):  # one secret, so that the two runs can be compared
        (home / "privacy").mkdir(parents=True)
        for name in (*guarantees(e), SERVER):
            (home / "privacy" / f"{name}.secret").write_bytes(np.random.default_rng(len(name)).bytes(32))
    launch(e, whole, every=1)
    with pytest.raises(Killed):
        launch(e, broken, on_round=killed, every=1)
    launch(e, broken, every=1)
    for name in ("shared", *(() if unit == "server" else ("client-films",))):
        a, b = (load_params(home / "model" / f"{name}.safetensors") for home in (whole, broken))
        assert all(torch.equal(a[key], b[key]) for key in a), name
    for who in guarantees(e):
        entries = [Ledger(home / "privacy" / f"{who}.jsonl").entries for home in (whole, broken)]
        assert [entry.round for entry in entries[1]] == [1, 2, 3, 4]
        assert [entry.inputs for entry in entries[0]] == [entry.inputs for entry in entries[1]]


@pytest.mark.parametrize("unit", ["user", "client", "server"])
def test_a_run_that_is_broken_off_in_its_final_test_is_tested_again_and_trains_no_more(
    unit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = private(privacy=UNITS[unit], rounds=3)

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr("server.strategy.assess", killed)
        launch(e, tmp_path, every=2)  # the last round has a checkpoint all the same
    before = {who: Ledger(tmp_path / "privacy" / f"{who}.jsonl").entries for who in guarantees(e)}
    launch(e, tmp_path, every=2)
    assert before == {who: Ledger(tmp_path / "privacy" / f"{who}.jsonl").entries for who in guarantees(e)}
    tested = pd.read_csv(tmp_path / "clients.csv").query("split == 'test'")
    assert set(tested["client"]) == {data.name for data in clients_data(e)}


def test_other_data_gets_other_noise_under_the_same_secret(tmp_path: Path) -> None:
    # What two neighbours would differ in must not be left when the noise is taken away: it is not the same noise.
    e = private(rounds=1, local_epochs=1, optimiser="sgd")
    found = []
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        home = tmp_path / name
        (home / "privacy").mkdir(parents=True)
        (home / "privacy" / "films.secret").write_bytes(bytes(range(32)))
        g = guarantees(e)["films"]
        data = clients_data(private(rounds=1, seed=seed))[0]
        found.append(Books(g, home, 0).quiet(1, digest("train", 1, data.train)).normal(100))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_person_whom_two_silos_hold_pays_for_both(tmp_path: Path) -> None:
    # The synthetic market's platforms share no user; a table does. Two shops, of which one person is in both.
    rows = [
        f"u{u},i{i},{shop}" for shop, users in (("a", range(20)), ("b", range(19, 40))) for u in users for i in range(6)
    ]
    (tmp_path / "t.csv").write_text("user,item,shop\n" + "\n".join(rows) + "\n")
    table: dict[str, Any] = {
        "dataset": "table",
        "data_dir": tmp_path / "t.csv",
        "columns": "user=user,item=item,platform=shop",
    }
    e = private(privacy={"unit": "user", "epsilon": "3"}, clients=2, local_epochs=1, **table)
    assert {g.overlap for g in guarantees(e).values()} == {2}
    launch(e, tmp_path / "run")
    promised = read_run(tmp_path / "run").record["privacy"]
    both, *others = promised["people"]
    assert both["silos"] == ["a", "b"] and both["people"] == 1 and [p["people"] for p in others] == [19, 20]
    assert 2.9 < float(both["spent"]) <= 3 and all(float(p["spent"]) < 2.3 for p in others)
    assert float(promised["spent"]) == float(both["spent"])
    assert "catalogue" in promised["beside"], "of a table the catalogue is made of the data"


def test_each_silo_has_the_noise_of_its_own_budget(tmp_path: Path) -> None:
    e = private("mr-mtl", privacy={"unit": "user", "epsilon": "4;films=1;shop=inf"})
    found = guarantees(e)
    assert found["films"].event.sigma > found["news"].event.sigma > found["shop"].event.sigma == 0
    launch(e, tmp_path)
    spent = {p["who"]: p["spent"] for p in read_run(tmp_path).record["privacy"]["parties"]}
    assert float(spent["films"]) <= 1 < float(spent["news"]) <= 4 and spent["shop"] == "without bound"


def test_unlike_budgets_are_told_client_by_client(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--weights", "uniform", "--privacy.unit", "user", "--privacy.epsilon", "4;films=1;shop=inf",
                 "--method", "mr-mtl", "--rounds", "1", "--engine", "inline", "--no-compare", "--market.users", "40",
                 "--market.items", "60", "--out", str(tmp_path / "run")]  # fmt: skip
    assert main(arguments) == 0
    run = read_run(tmp_path / "run")
    printed = " ".join(capsys.readouterr().out.split())
    page = " ".join((tmp_path / "run" / "report.html").read_text().split())
    for text in (printed, page.replace("&#39;", "'"), run.record["privacy"]["words"]):
        assert "The promise is not the same for all. For shop: no guarantee for a user (zero-out" in text
        assert "For films: epsilon 1 at delta 1e-05 for a user," in text
        assert "For books, music and news: epsilon 4 at delta 1e-05 for a user," in text
        assert "No guarantee" not in text
    assert facts(run)["Privacy"] == "epsilon 1 to 4 at delta 1e-05 for a user; no guarantee in shop"


def test_one_promise_for_all_is_told_once() -> None:
    one, two, none = Event(2.0), Event(5.0), Event(0.0)
    alike = Privacy(unit="client", where="client", noise=2.0)
    assert told(alike, {"a": one, "b": one}).startswith("Epsilon ")
    assert told(alike, {"a": one, "b": two}).startswith("Epsilon ")  # earlier runs: the least of it holds for both
    assert told(alike, {"a": none, "b": none}).startswith("No guarantee for a client")
    unlike = Privacy(unit="client", where="client", epsilon="9;b=1")
    many = {**{f"c{k}": one for k in range(20)}, "b": two}
    assert "For c0, c1, c10, c11, c12 and 15 others: epsilon " in told(unlike, many)
    assert "For b: epsilon " in told(unlike, many)


def told(rule: Privacy, spent: dict[str, Event]) -> str:
    events = {who: [event] for who, event in spent.items()}
    return promise(rule, [Group((who,), 0, epsilon(of, rule.delta)) for who, of in events.items()], events)


def test_clients_are_drawn_by_poisson_sampling_from_the_secret(tmp_path: Path) -> None:
    e = private(privacy=CLIENT, participation=0.3)
    (g,) = guarantees(e).values()
    assert g.event.rate == 0.3
    names = [f"c{k}" for k in range(200)]
    drawn = [len(Release(Books(g, tmp_path / str(k), 0)).drawn(names, n)) for k in range(2) for n in range(1, 101)]
    # Binomial(200, 0.3): mean 60, variance 42; the mean of 200 draws is within 4 standard errors.
    assert abs(np.mean(drawn) - 60) < 4 * math.sqrt(42 / 200) and 25 < np.var(drawn) < 65
    one = Release(Books(g, tmp_path / "0", 0))
    assert one.drawn(names, 1) == one.drawn(names, 1) != Release(Books(g, tmp_path / "1", 0)).drawn(names, 1)


def test_a_second_mean_of_one_draw_is_not_amplified_again(tmp_path: Path) -> None:
    # The coins of a round are drawn once. Of two means of the same clients each would tell as much as if all were in.
    e = private(privacy=CLIENT, participation=0.3)
    (g,) = guarantees(e).values()
    like = {"body": torch.zeros(3, 1)}
    release = Release(Books(g, tmp_path, 0))
    for value in (1.0, 2.0, 1.0, 2.0):
        answers = {"a": {"body": torch.full((3, 1), value)}}
        release.change(1, answers, {"a": like}, {"a": carrier("a", like, {}, {}, 1.0)}, like)
    release.change(2, {}, {}, {"a": carrier("a", like, {}, {}, 1.0)}, like)
    entries = Ledger(tmp_path / "privacy" / "server.jsonl").entries
    assert [(entry.round, entry.event.rate) for entry in entries] == [(1, 0.3), (1, 1.0), (2, 0.3)]


def test_a_round_may_pass_without_anybody_drawn(tmp_path: Path) -> None:
    launch(private(privacy=CLIENT, participation=0.02, rounds=8), tmp_path)
    assert (pd.read_csv(tmp_path / "rounds.csv")["clients"] == 0).any()


def test_the_replay_stamp_stands_on_the_terminal_and_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--rounds", "1", "--weights", "uniform", "--privacy.unit", "user", "--privacy.noise", "1",
                 "--privacy.replay", "--engine", "inline", "--no-compare", "--out", str(tmp_path / "run")]  # fmt: skip
    assert main(arguments) == 0
    told = capsys.readouterr().out.splitlines()
    assert "NOT PRIVATE" in next(line for line in told if line.startswith("Test"))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "NOT PRIVATE" in page.split("</title>")[0] and page.count("NOT PRIVATE") > 5


def test_the_name_of_a_run_is_made_once(tmp_path: Path) -> None:
    one = Books(next(iter(guarantees(private(privacy=CLIENT)).values())), tmp_path / "a", 0)
    assert one.run == one.run == replace(one).run != replace(one, home=tmp_path / "b").run


def test_a_damaged_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "privacy").mkdir()
    (tmp_path / "privacy" / "films.secret").write_bytes(b"short")
    g = guarantees(private())["films"]
    with pytest.raises(UserError, match="32 bytes, found 5"):
        Books(g, tmp_path, 0).quiet(1, b"")


def test_workers_and_inline_keep_the_same_books(tmp_path: Path) -> None:
    for engine in ("inline", "process"):
        launch(private(engine=engine, workers=2, privacy={**USER, "replay": True}), tmp_path / engine)
    a, b = (load_params(tmp_path / engine / "model" / "shared.safetensors") for engine in ("inline", "process"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    parties = [
        json.loads((tmp_path / n / "experiment.json").read_text())["privacy"]["parties"] for n in ("inline", "process")
    ]
    assert parties[0] == parties[1]


@pytest.mark.parametrize(
    ("unit", "where", "secure", "scale"),
    [
        # What is made of sigma C: lr / B for a step of 20 users, or of the 50 interactions that a batch stands for.
        ("interaction", "server", False, 0.1 / 50),
        ("user", "server", False, 0.1 / 20),
        ("user", "server", True, 0.1 / 20 / math.sqrt(3)),  # the mean of three silos' own noises
        ("client", "client", False, 1.0),
        ("client", "client", True, 1 / math.sqrt(3)),
        ("client", "server", False, 1 / 3),  # one noise, in the sum of three
        ("client", "sum", True, 1 / 3),
    ],
)
def test_the_noise_that_is_released_is_the_noise_that_is_booked(
    unit: str, where: str, secure: bool, scale: float, tmp_path: Path
) -> None:
    # Rows of the shared table that no data touches show the noise alone: sigma C, times what is made of a sum.
    e = private(
        rounds=1, local_epochs=1, optimiser="sgd", lr=0.1, l2=0.0, batch_size=50, task="rating", partition="users",
        market={"users": 60, "items": 300, "impressions": 20}, secure={"active": secure, "threshold": 3},
        privacy={"unit": unit, "where": where, "noise": 2.0, "clip": 0.5},
    )  # fmt: skip
    record, grid = fit(e, tmp_path)
    parts = clients_data(e)
    start = read_contribution(grid.received[0].content).values  # all begin alike
    whole = secure or (unit == "client" and where == "server")  # only what is made of all clients is released
    released = [record.shared] if whole else [read_contribution(m.content).values for m in grid.received[3:6]]
    touched = np.unique(np.concatenate([data.items[data.train.item] for data in parts]))
    still = torch.from_numpy(np.setdiff1d(np.arange(len(start["item_table"])), touched))
    for after in released:
        noise = (after["item_table"] - start["item_table"]).double()[still]
        expected = 2.0 * 0.5 * scale
        # The standard error of a standard deviation from n numbers is 1 / sqrt(2 n) of it.
        assert noise.numel() > 150
        assert abs(float(noise.std()) / expected - 1) < 4.5 / math.sqrt(2 * noise.numel())


def test_noise_in_a_sum_is_fresh_when_a_round_is_repeated_and_is_booked_again(tmp_path: Path) -> None:
    # The second sum may be over other clients: with the same noise their difference would show a few clients' parts.
    rule = {"unit": "client", "where": "sum", "noise": 1.0}
    e = private(privacy=rule, secure={"active": True})
    client = Client(e, clients_data(e)[0], "cpu", tmp_path)
    x = client.channel.split(client.start())[0]
    found = [source(client, 1, x, x) for _ in range(2)]
    assert found[0] and found[1] and found[0].bytes(16) != found[1].bytes(16)
    assert [entry.round for entry in Ledger(tmp_path / "privacy" / f"{client.data.name}.jsonl").entries] == [1, 1]
