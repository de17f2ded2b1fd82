"""Going on from sums: who is forgotten leaves nothing, who is new is added, and nobody else is asked."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrec.data.history import Sequences
from fedrec.data.types import Ints
from fedrec.errors import UserError
from fedrec.experiment.earlier import experiment_of
from fedrec.experiment.holdings import clients_data, dataset
from fedrec.experiment.records import load_params, write_tensors
from fedrec.federation.coordination.totals import Total
from fedrec.keyed import Carrier
from fedrec.models.quadratic import solve
from fedrec.models.summed import SummedRecommender, unpack
from fedrec.params import Params
from fedrec.privacy.attacks.forgotten import Profiles, co_occurrences
from fedrec.privacy.attacks.scores import judge
from fedrec.privacy.guarantee import terms
from fedrec.report import page
from fedrec.report.changes import changes
from fedrec.report.results import Results, read_results
from fedrec.sharing import CROSS, GRAM
from simulations import unlearn
from simulations.run import main as run
from tests.test_quadratic import of

SMALL = ["--market.users", "40", "--market.items", "30", "--no-compare", "--quiet", "--engine", "inline"]
ROOT = Path(__file__).resolve().parent.parent
SECRET = [*SMALL, "--clients", "5", "--model", "slist", "--secure.active"]
NAMES = ("books", "films", "news", "shop")


def made(out: Path, *options: object) -> Path:
    assert run([*map(str, options), "--out", str(out)]) == 0
    return out


def made_apart(name: str, out: Path, *options: object) -> Path:
    """Do what a command asks for in a process of its own, since a SuperLink leaves open sockets behind."""
    command = [sys.executable, "-m", f"simulations.{name}", *map(str, options), "--out", str(out)]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, timeout=200)
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four clients by sums."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "write_report", lambda *_, **__: None)
        return made(tmp_path_factory.mktemp("runs") / "whole", *SMALL, "--clients", 4, "--model", "slist")


@pytest.fixture(autouse=True)
def without_a_page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page takes longer than all the rest: one test alone reads it."""
    if "the_page" not in request.node.name:
        monkeypatch.setattr(page, "write_report", lambda *_, **__: None)


def forget(home: Path, out: Path, *options: object) -> Path:
    assert unlearn.main([str(home), "--quiet", "--out", str(out), *map(str, options)]) == 0
    return out


def total(home: Path) -> Params:
    return load_params(home / "model" / "shared.safetensors")


def same(one: Path, other: Path) -> None:
    """The total is the same to the bit, and so is what is solved for and measured with heads chosen in the same way."""
    for name, value in total(one).items():
        assert torch.equal(value, total(other)[name]), name


def table(home: Path, name: str) -> list[dict[str, str]]:
    with (home / name).open() as file:
        return list(csv.DictReader(file))


def record(home: Path) -> Any:
    return json.loads((home / "experiment.json").read_text())


def people(home: Path, client: str) -> list[str]:
    """Return the keys of a client's users."""
    e = experiment_of(home)
    (data,) = (data for data in clients_data(e) if data.name == client)
    return [str(key) for key in dataset(e).users["key"].to_numpy()[data.users]]


def heads(home: Path) -> dict[str, float]:
    """Return the weight of every client's private head."""
    paths = (home / "model").glob("client-*.safetensors")
    return {p.stem.removeprefix("client-"): float(load_params(p)["heads.rank.weight"]) for p in paths}


def listed(path: Path, keys: Sequence[str]) -> Path:
    path.write_text("".join(f"{key}\n" for key in keys))
    return path


def never_had(path: Path, home: Path, users: dict[str, list[str]]) -> list[str]:
    """Return the options of a run from the start without some users."""
    rows = [f"{name},{key}\n" for name, keys in users.items() for key in keys]
    path.write_text("".join(["client,user\n", *rows]))
    return [*SMALL, "--clients", "4", "--model", str(record(home)["experiment"]["model"]), "--forgotten", str(path)]


def test_a_run_without_a_client_is_as_if_it_had_never_had_it(whole: Path, tmp_path: Path) -> None:
    gone = forget(whole, tmp_path / "gone", "--client", "shop", "--retune")
    never = made(tmp_path / "never", *SMALL, "--clients", 4, "--model", "slist", "--without", "shop")
    same(gone, never)
    assert table(gone, "clients.csv") == table(never, "clients.csv")
    assert record(gone)["summed"] == ["books", "films", "news"] == record(never)["summed"]
    assert any(not torch.equal(value, total(whole)[name]) for name, value in total(gone).items())
    assert {path.name for path in (gone / "model").glob("client-*")} == {
        f"client-{n}.safetensors" for n in NAMES if n != "shop"
    }


def test_nobody_is_asked_for_sums_but_who_leaves(whole: Path, tmp_path: Path) -> None:
    gone = forget(whole, tmp_path / "gone", "--client", "news")
    sent = [r for r in table(gone, "ledger.csv") if r["direction"] == "up" and r["parameter"].startswith("sums.")]
    assert {row["client"] for row in sent if row["round"] != "0"} == {"news"}
    assert all(int(row["bytes"]) < 16 for row in sent if row["round"] == "0")  # nobody joins with any
    asked = [r for r in table(gone, "ledger.csv") if r["direction"] == "down" and r["client"] == "news"]
    assert len(asked) == 2  # the one message of its round, and no evaluation


def test_heads_stay_as_they_were_chosen_unless_they_are_chosen_again(whole: Path, tmp_path: Path) -> None:
    odd = shutil.copytree(whole, tmp_path / "odd")
    for name in NAMES:  # a choice that nobody would make
        write_tensors(
            odd / "model" / f"client-{name}.safetensors", {"heads.rank.weight": torch.tensor([0.125])}, private=True
        )
    kept = forget(odd, tmp_path / "kept", "--client", "books")
    assert set(heads(kept).values()) == {0.125}
    assert "Kept, and not unlearned" in " ".join(json.loads((kept / "unlearned.json").read_text())["words"])
    again = forget(odd, tmp_path / "again", "--client", "books", "--retune")
    never = made(tmp_path / "never", *SMALL, "--clients", 4, "--model", "slist", "--without", "books")
    assert heads(again) == heads(never)
    assert "Kept, and" not in " ".join(json.loads((again / "unlearned.json").read_text())["words"])


def test_a_run_without_users_is_as_if_it_had_never_had_them(whole: Path, tmp_path: Path) -> None:
    keys = people(whole, "films")[3:9]
    gone = forget(whole, tmp_path / "gone", "--client", "films", "--users", listed(tmp_path / "keys", keys), "--retune")
    never = made(tmp_path / "never", *never_had(tmp_path / "users.csv", whole, {"films": keys}))
    same(gone, never)
    assert table(gone, "clients.csv") == table(never, "clients.csv")
    e = experiment_of(gone)
    assert not set(keys) & set(people(gone, "films"))
    assert len(people(gone, "books")) == len(people(whole, "books"))
    assert e.forgotten == gone / "forgotten.csv"
    assert (gone / "forgotten.csv").stat().st_mode & 0o077 == 0
    gone.rename(tmp_path / "moved")
    assert experiment_of(tmp_path / "moved").forgotten == tmp_path / "moved" / "forgotten.csv"
    assert not set(keys) & set(people(tmp_path / "moved", "films"))


def test_who_left_and_comes_back_is_added_alone_and_the_total_is_the_first_again(whole: Path, tmp_path: Path) -> None:
    gone = forget(whole, tmp_path / "gone", "--client", "shop")
    few = listed(tmp_path / "keys", people(gone, "news")[:5])
    fewer = forget(gone, tmp_path / "fewer", "--client", "news", "--users", few)
    assert record(fewer)["summed"] == ["books", "films", "news"]
    back = made(tmp_path / "back", "--from", fewer, "--without", "", "--forgotten", "none", "--no-compare", "--quiet")
    same(back, whole)
    sent = [r for r in table(back, "ledger.csv") if r["direction"] == "up" and r["parameter"].startswith("sums.")]
    assert {row["client"] for row in sent if row["round"] == "1"} == {"news", "shop"}
    assert {row["client"] for row in table(back, "changes.csv")} == set(NAMES)


def test_an_answer_that_was_lost_is_added_later(whole: Path, tmp_path: Path) -> None:
    lost = made(tmp_path / "lost", *SMALL, "--clients", 4, "--model", "slist", "--dropout", "1:films")
    assert record(lost)["summed"] == ["books", "news", "shop"]
    late = made(tmp_path / "late", "--from", lost, "--dropout", 0, "--no-compare", "--quiet")
    same(late, whole)
    assert record(late)["summed"] == sorted(NAMES)
    forgotten = forget(lost, tmp_path / "forgotten", "--client", "films")  # of whom there is nothing to subtract
    same(forgotten, lost)


def test_a_change_that_is_lost_ends_the_run_where_the_total_would_be_wrong(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    never_had(tmp_path / "users.csv", whole, {name: people(whole, name)[:3] for name in ("films", "news")})
    options = ["--from", whole, "--forgotten", tmp_path / "users.csv", "--dropout", "1:films", "--no-compare"]
    assert run([*map(str, options), "--quiet", "--out", str(tmp_path / "out")]) == 1
    assert "the total has other sums of films" in capsys.readouterr().err
    assert not (tmp_path / "out" / "experiment.json").exists()


@pytest.mark.soak
def test_twenty_cases_of_clients_and_users_equal_a_run_that_never_had_them(
    tmp_path: Path, tries: Callable[[int, int], int]
) -> None:
    engines = ("inline", "process", "batched", "superlink")
    for number in range(tries(2, 20)):
        rng = np.random.default_rng(number)
        engine, kind = engines[number // 2] if number < 8 else "inline", ("slist", "ease", "slit")[number % 3]
        size = ["--market.users", rng.integers(25, 45), "--market.items", rng.integers(26, 40), "--engine", engine]
        options = [*SMALL, *size, "--clients", 5, "--model", kind, "--seed", number]
        apart = engine == "superlink"
        first = (partial(made_apart, "run") if apart else made)(tmp_path / f"{number}-first", *options)
        names = [data.name for data in clients_data(experiment_of(first))]
        if number % 2:
            client = str(rng.choice(names))
            keys = rng.choice(people(first, client), rng.integers(1, 12), replace=False).tolist()
            file = listed(tmp_path / f"{number}-keys", keys)
            who = ["--client", client, "--users", file]
            never_had(tmp_path / f"{number}.csv", first, {client: keys})
            options += ["--forgotten", tmp_path / f"{number}.csv"]
        else:
            clients = ",".join(rng.choice(names, rng.integers(1, 3), replace=False))
            who = ["--client", clients]
            options += ["--without", clients]
        out = tmp_path / f"{number}-gone"
        gone = made_apart("unlearn", out, first, *who) if apart else forget(first, out, *who)
        never = made(tmp_path / f"{number}-never", *options, "--engine", "inline")
        same(gone, never)
        fits = [solve(kind, experiment_of(first).quadratic, *unpack(total(home))) for home in (gone, never)]
        assert np.abs(fits[0] - fits[1]).max() <= 1e-6 * np.abs(fits[1]).max()


def test_of_a_secure_sum_is_subtracted_what_is_revealed(tmp_path: Path) -> None:
    options = [*SMALL, "--clients", 4, "--model", "slist", "--secure.active"]
    first = made(tmp_path / "first", *options)
    gone = forget(first, tmp_path / "gone", "--client", "shop", "--reveal")
    never = made(tmp_path / "never", *options, "--without", "shop")
    for name, value in total(never).items():
        torch.testing.assert_close(total(gone)[name], value, rtol=0, atol=1e-6 * float(value.abs().max()))
    assert record(gone)["summed"] == ["books", "films", "news"]
    assert not record(gone)["experiment"]["secure"]["active"]


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five clients, of whose sums the server has the total alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "write_report", lambda *_, **__: None)
        return made(tmp_path_factory.mktemp("runs") / "secret", *SECRET)


def test_of_two_that_leave_a_secure_sum_nobody_is_told_more_than_what_they_add_up_to(
    secret: Path, tmp_path: Path
) -> None:
    first, second, *stay = names = [data.name for data in clients_data(experiment_of(secret))]
    gone = forget(secret, tmp_path / "gone", "--client", f"{first},{second}")
    never = made(tmp_path / "never", *SECRET, "--without", f"{first},{second}")
    same(gone, never)
    assert record(gone)["summed"] == sorted(stay)
    e = experiment_of(gone)
    assert e.secure.active and (terms(e).clients, terms(e).threshold) == (5, 5)  # of one that is missing the other's
    sent = [r for r in table(gone, "ledger.csv") if r["direction"] == "up" and r["round"] == "1"]
    assert {row["client"] for row in sent if row["parameter"] == "masked:sum"} == {*names}
    assert not any(row["parameter"].startswith("sums.") for row in sent)
    words = json.loads((gone / "unlearned.json").read_text())["words"]
    assert words[0].startswith(f"All 5 clients add up in secret, and all but {first}, {second} add zero")
    assert set(heads(gone)) == set(stay) and all(heads(gone)[name] == heads(secret)[name] for name in stay)


@pytest.mark.soak
def test_users_of_two_clients_leave_a_secure_sum_together(
    secret: Path, tmp_path: Path, tries: Callable[[int, int], int]
) -> None:
    tries(0, 1)
    first, *_, last = (data.name for data in clients_data(experiment_of(secret)))
    users = {name: people(secret, name)[2:6] for name in (first, last)}
    file = listed(tmp_path / "keys", [key for keys in users.values() for key in keys])
    gone = forget(secret, tmp_path / "gone", "--client", f"{first},{last}", "--users", file)
    never_had(tmp_path / "users.csv", secret, users)
    same(gone, made(tmp_path / "never", *SECRET, "--forgotten", tmp_path / "users.csv"))


@pytest.mark.parametrize(
    ("leave", "text"), [(1, "let another leave with them, or add --reveal"), (3, "of more than two"), (4, "needs 3")]
)
def test_where_one_would_be_told_nobody_leaves_a_secure_sum(
    secret: Path, tmp_path: Path, leave: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one that leaves, or of one that is left, the sums are what the server is told; of two the other's."""
    names = [data.name for data in clients_data(experiment_of(secret))][:leave]
    assert unlearn.main([str(secret), "--client", ",".join(names), "--out", str(tmp_path / "out")]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


USERS = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=6)


def sums(users: list[list[int]], dtype: torch.dtype = torch.float64) -> Params:
    model = SummedRecommender("slist", 1, (), 0.1, 1, 0.0, catalogue_size=6, places=np.arange(6))
    return {name: value.to(dtype) for name, value in model.sums(of(users)).items()}


@given(USERS, USERS, st.sampled_from([torch.float64, torch.float32]))
def test_what_is_subtracted_leaves_no_trace(stay: list[list[int]], leave: list[list[int]], dtype: torch.dtype) -> None:
    """In float64 whatever the order; where only those who leave had two items, 0 also in float32."""
    own = sums(stay, dtype)
    tie = Total(0.0, dict[str, Carrier](), {name: torch.zeros_like(value) for name, value in own.items()})
    for part in (own, sums(leave, dtype)):
        tie.move({name: value.double() for name, value in part.items()})
    tie.move({name: -value.double() for name, value in sums(leave, dtype).items()})
    for name, value in own.items():
        assert bool((tie.z[name][value == 0] == 0).all())
        torch.testing.assert_close(tie.z[name], value, rtol=1e-6, atol=1e-6)
        assert dtype == torch.float32 or torch.equal(tie.z[name], value)


def test_the_sums_lie_on_a_grid_so_fine_that_nothing_is_lost() -> None:
    for name, value in sums([[0, 1, 2, 3], [3, 1], [5, 4, 2]]).items():
        assert torch.equal(value * 2**30, (value * 2**30).round()), name


def profiles(seed: int, users: int, items: int = 60) -> list[Ints]:
    """Return users with tastes: half of their items are of one of three groups."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 3, users)
    return [
        np.unique(np.concatenate([rng.integers(20 * group, 20 * group + 20, 8), rng.integers(0, items, 6)]))
        for group in groups
    ]


def gram_of(users: list[Ints], items: int = 60) -> np.typing.NDArray[np.float64]:
    model = SummedRecommender("slist", 1, (), 0.1, 1, 0.0, catalogue_size=items, places=np.arange(items))
    lengths = [len(user) for user in users]
    params = model.sums(Sequences(np.concatenate(users), np.append(0, np.cumsum(lengths))))
    return np.asarray(unpack(params)[0], np.float64)


def test_membership_of_the_forgotten_falls_to_chance_and_is_plain_to_whoever_kept_both() -> None:
    """Of 120 alike users 60, drawn at random, were there and are forgotten: asked is who was; 40 stay.

    The score of a user is the mean over the items. The new total knows none of them: 120 are exchangeable.
    """
    asked, stay = profiles(1, 120), profiles(2, 40)
    truth = np.random.default_rng(3).permutation(np.repeat([True, False], 60))
    members = [user for user, inside in zip(asked, truth, strict=True) if inside]
    before, after = gram_of([*stay, *members]), gram_of(stay)
    scale = np.maximum(np.diagonal(before), 1e-9)
    targets = Profiles([user[:-1] for user in asked], [user[-1:] for user in asked])

    def attack(gram: np.typing.NDArray[np.float64]) -> Any:
        scores = co_occurrences(gram, scale, targets)
        means = np.bincount(targets.users, scores * targets.truth) / np.bincount(targets.users, targets.truth)
        return judge(means, truth)

    assert attack(after).chance
    assert attack(before).auc_low > 0.5
    assert attack(before - after).auc_low > attack(before).auc
    one = [user for user in asked if user is not members[0]]
    alone = Profiles([members[0], *one], [np.array([0]), *[np.array([0])] * len(one)])
    gone = gram_of([*stay, members[0]]) - gram_of(stay)
    scores = co_occurrences(gone, scale, alone)[alone.truth]
    means = np.bincount(alone.users[alone.truth], scores) / np.bincount(alone.users[alone.truth])
    assert means.argmax() == 0  # of a single user who left, the difference is the profile


def test_the_page_says_what_changed_for_whom_and_what_is_still_told(whole: Path, tmp_path: Path) -> None:
    gone = forget(whole, tmp_path / "gone", "--client", "films")
    rows = changes(read_results(whole), read_results(gone))
    assert {str(row["client"]) for row in rows} == set(NAMES) - {"films"}
    for row in rows:
        assert float(row["before"]) + float(row["difference"]) == pytest.approx(float(row["after"]))
        assert float(row["low"]) <= float(row["difference"]) <= float(row["high"])
    html, about = (gone / "report.html").read_text(), json.loads((gone / "unlearned.json").read_text())
    assert all(words in html for words in ("What it changed, and for whom", "obody but films", "with both models"))
    attack = about["attack"]
    assert attack["both"]["auc"] > max(attack["before"]["auc"], attack["after"]["auc"])
    assert attack["after"]["auc_low"] < 0.5 < attack["before"]["auc_low"]


def test_a_change_is_over_the_users_that_both_runs_have_tested(whole: Path) -> None:
    results = read_results(whole)
    some = set(results.users["user"].iloc[::3])
    fewer = Results(results.clients, results.users[results.users["user"].isin(some)])
    test = fewer.users.groupby(["client", "task", "metric"])["value"].mean()
    clients = fewer.clients[fewer.clients["split"] == "test"].set_index(["client", "task", "metric"])
    clients["value"] = test.reindex(clients.index)
    for row in changes(results, Results(clients.reset_index(), fewer.users)):
        assert float(row["before"]) == pytest.approx(float(row["after"]), abs=1e-12)
        assert 1 < int(row["users"]) < 40


def test_a_model_by_gradients_is_trained_again_without_the_client(tmp_path: Path) -> None:
    options = [*SMALL, "--clients", 3, "--model", "mf", "--dim", 4, "--rounds", 2]
    first = made(tmp_path / "first", *options)
    gone = forget(first, tmp_path / "gone", "--client", "shop")
    never = made(tmp_path / "never", *options, "--without", "shop")
    same(gone, never)
    about = json.loads((gone / "unlearned.json").read_text())
    assert not about["exact"]
    assert "trained again from the start" in about["words"][0]
    assert "It took 2 rounds" in about["words"][-1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--client", "shoop"], "did you mean 'shop'"),
        ([], "--client: must name who leaves"),
        (["--client", ",".join(NAMES)], "must leave a client"),
        (["--client", "shop", "--users", "nowhere"], "--users: nowhere must be a text file"),
        (["--client", "shop", "--users", "{nobody}"], "must be keys of users of shop, found 'nobody'"),
        (["--users", "{none}"], "must be keys of users of the run, found none"),
        (["--client", "shop", "--users", "{shop}"], "found all (take --client shop)"),
        (["--client", "shop", "--reveal"], "--reveal: acts only with"),
        (["--client", "shop", "--out", "{whole}"], "must be a new or an empty folder"),
    ],
)
def test_a_wrong_input_ends_with_one_line(
    whole: Path, tmp_path: Path, options: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "nobody": str(listed(tmp_path / "nobody", ["nobody"])),
        "none": str(listed(tmp_path / "none", [])),
        "shop": str(listed(tmp_path / "shop", people(whole, "shop"))),
        "whole": str(whole),
    }
    before = sorted(path.name for path in whole.parent.iterdir())
    assert unlearn.main([str(whole), *(option.format(**files) for option in options)]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
    assert sorted(path.name for path in whole.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"privacy": {"unit": "user", "epsilon": "8"}, "model": "mf"}, "a new noisy release of everything"),
        ({"secure": {"active": True}}, "add --reveal"),
        ({"share": ()}, "share something"),
        ({"pool": True}, "learn together"),
    ],
)
def test_what_cannot_be_unlearnt_is_refused_in_words(whole: Path, fields: dict[str, Any], text: str) -> None:
    e = experiment_of(whole).model_copy(update={k: v for k, v in fields.items() if not isinstance(v, dict)})
    for name, values in fields.items():
        if isinstance(values, dict):
            e = e.model_copy(update={name: getattr(e, name).model_copy(update=values)})
    with pytest.raises(UserError, match=text):
        unlearn.without(whole, e, unlearn.Leaving(("shop",), {}), retune=False, reveal=False)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--quadratic.past", "3"], "quadratic.past: must be 1.0 as in the run to go on from"),
        (["--model", "ease"], "model: must be slist as in the run to go on from"),
        (["--clients", "3"], "start: must lose no client but those that leave"),
        (["--without", ",".join(NAMES)], "without: must leave a client"),
        (["--secure.active"], "take --no-secure.active to tell the server"),
        (["--config", "x.toml"], "option --from: takes what is not given from the run"),
    ],
)
def test_sums_that_are_others_are_not_added(
    whole: Path, tmp_path: Path, options: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--from", str(whole), *options, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_solved_with_may_be_others_without_asking_anybody(whole: Path, tmp_path: Path) -> None:
    other = made(tmp_path / "other", "--from", whole, "--quadratic.ridge", 40, "--no-compare", "--quiet")
    same(other, whole)
    sent = [r for r in table(other, "ledger.csv") if r["round"] == "1" and r["parameter"].startswith("sums.")]
    assert {row["direction"] for row in sent} == {"down"}
    assert table(other, "clients.csv") != table(whole, "clients.csv")
    assert GRAM in total(other) and CROSS in total(other)
