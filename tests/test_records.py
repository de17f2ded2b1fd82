"""What a run leaves on the disk: by key, privately, in few files, and readable in its earlier form."""

import json
import re
import stat
from dataclasses import astuple
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import fedrec
from clients.recommend import params_of
from fedrec.errors import UserError
from fedrec.evaluation.differences import Side, difference
from fedrec.evaluation.evaluate import PerUser
from fedrec.experiment.holdings import clients_data, dataset, keys
from fedrec.experiment.kept import OWN, Keeping, describe_clients, is_kept, keep, load_kept
from fedrec.experiment.peruser import PLACE, join_users, write_users
from fedrec.experiment.records import Record, load_params, natural
from fedrec.experiment.scores import CLIENTS, FILES, LARGE, Scores, parquet, write_clients
from fedrec.experiment.traffic import MANY, SUMMED, Traffic
from fedrec.folders import remove
from fedrec.metrics import NEGATIVES
from fedrec.params import Params
from fedrec.report.gaps import differences
from fedrec.report.page import write_report
from fedrec.report.results import Results, read_clients, read_results
from fedrec.report.tables import compare, comparison, read_run
from fedrec.rng import generator
from simulations.closing import answers
from simulations.closing import table as closing
from simulations.engines import launch
from simulations.run import main
from tests.helpers import experiment, same
from tests.test_report import GAINS, Text, write_run
from tests.test_resume import Killed, into, until

FORMER = Path(__file__).parent / "golden" / "report.json"
KEYS = (np.array(["u0", "u1", "u2", "u3"], object), np.array(["i0", "i1", "i2"], object))
PHONES: dict[str, Any] = {"users": 70, "items": 30, "impressions": 6}


def per_user(client: str, users: list[int], values: list[float], **fields: Any) -> PerUser:
    return PerUser(client, "rank", "ndcg@10", np.array(users), np.array(values), **fields)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(scope="module")
def phones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of 70 clients of one user, on one node, in programs."""
    out = tmp_path_factory.mktemp("phones") / "run"
    size = [f"--market.{name}={value}" for name, value in PHONES.items()]
    flags = ["--partition", "one-user", "--clients", "70", "--engine", "batched", "--rounds", "2", "--dim", "4"]
    assert main([*size, *flags, "--no-compare", "--quiet", "--method", "ditto", "--out", str(out)]) == 0
    return out


def test_users_and_items_are_known_by_their_keys(tmp_path: Path) -> None:
    parts = [per_user("shop", [3, 0], [0.5, 1.0]), per_user("films", [1], [0.25], weights=np.array([4]))]
    write_users(tmp_path, [*parts, per_user("films", [2], [0.1], items=True)], KEYS)
    users, items = (pd.read_parquet(tmp_path / f"{unit}.parquet") for unit in ("users", "items"))
    columns = ["client", "user", "task", "metric", "value", "weight"]
    assert list(users) == columns and list(items) == [name.replace("user", "item") for name in columns]
    assert users[["client", "user", "value", "weight"]].to_numpy().tolist() == [
        ["films", "u1", 0.25, 4],
        ["shop", "u3", 0.5, 1],
        ["shop", "u0", 1.0, 1],
    ]
    assert items[["client", "item"]].to_numpy().tolist() == [["films", "i2"]]


def test_a_runs_users_are_those_of_its_data_by_key(tmp_path: Path) -> None:
    e = experiment("fedper", rounds=1)
    launch(e, tmp_path)
    found = pd.read_parquet(tmp_path / "users.parquet")
    for data in clients_data(e):
        mine = dataset(e).users["key"].to_numpy()[data.users[np.unique(data.test.user[data.test.positive])]]
        assert sorted(found.loc[found["client"] == data.name, "user"].unique()) == sorted(mine)
    assert not (tmp_path / "users").exists()


def test_parts_of_two_nodes_are_one_file_whoever_wrote_them(tmp_path: Path) -> None:
    films, shop = per_user("films", [1, 0], [0.5, 0.25]), per_user("shop", [2], [0.125])
    for name, parts in {"one": [[films, shop]], "two": [[shop], [films]]}.items():
        for part in parts:
            write_users(tmp_path / name, part, KEYS, part[0].client)
        assert mode(tmp_path / name / "users" / f"{parts[0][0].client}.parquet") == 0o600
        assert len(read_results(tmp_path / name).users) == 3  # also where nobody has joined them
        join_users(tmp_path / name)
        assert mode(tmp_path / name / "users.parquet") == 0o600
    assert (tmp_path / "one" / "users.parquet").read_bytes() == (tmp_path / "two" / "users.parquet").read_bytes()


def test_what_a_client_wrote_again_counts_once_and_last(tmp_path: Path) -> None:
    for name, value in (("films", 0.5), ("other", 0.75)):
        write_users(tmp_path, [per_user("films", [1], [value])], KEYS, name)
    join_users(tmp_path)
    assert pd.read_parquet(tmp_path / "users.parquet")["value"].tolist() == [0.75]


def test_the_earlier_form_is_read_and_its_places_are_no_keys(tmp_path: Path) -> None:
    old = write_run(tmp_path / "old", GAINS)
    assert (old / "users" / "0.csv").exists() and (old / "clients.csv").exists()
    run = read_run(old)
    assert set(run.federated.users["user"]) == {f"{PLACE}{user:03d}" for user in range(200)}
    assert comparison(old).query("client == 'films' and metric == 'ndcg@10'")["local_users"].tolist() == [200]
    new = run.federated.users.assign(user=run.federated.users["user"].str.removeprefix(PLACE))
    mixed = differences(run.federated, Results(run.federated.clients, new))
    assert {gap.n for gap in mixed.values()} == {0}, "places must never be paired with keys"


def test_a_damaged_file_of_users_is_named(tmp_path: Path) -> None:
    old = write_run(tmp_path, GAINS)
    (old / "users.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"^run: .*users.parquet must be a table of users, found "):
        read_run(old)


def test_a_folder_is_read_once_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path, GAINS)
    opened: list[str] = []
    read = pd.read_csv

    def spy(path: Path, **options: Any) -> pd.DataFrame:
        opened.append(str(path))
        found: pd.DataFrame = read(path, **options)
        return found

    monkeypatch.setattr(pd, "read_csv", spy)
    first = read_run(run)
    write_report(run)
    console = Console(file=StringIO())
    console.print(closing(run))
    assert answers(run) and len(opened) == len(set(opened)) and read_run(run) is first
    assert first.by_client is read_run(run).by_client
    table = comparison(run)
    table["client"] = ""  # a caller's own
    assert "films" in set(comparison(run)["client"])
    rows = read(run / "clients.csv")
    rows[rows["client"] != "films"].to_csv(run / "clients.csv", index=False)
    assert "films" not in set(comparison(run)["client"])


tensors = st.dictionaries(
    st.sampled_from(["user_table", "heads.rank.weight", "heads.rank.bias"]),
    st.sampled_from([(), (0, 2), (1, 2), (3, 2), (3, 1), (2,)]),
)


@settings(max_examples=15, deadline=None)
@given(shapes=st.lists(tensors, min_size=MANY, max_size=MANY + 3))
def test_what_many_clients_keep_is_one_file_and_every_tensor_comes_back(
    shapes: list[dict[str, tuple[int, ...]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    home, rng = tmp_path_factory.mktemp("kept"), generator(0, "kept")
    parts: list[Params] = [
        {name: torch.from_numpy(rng.random(shape)) * torch.ones(()) for name, shape in one.items()} for one in shapes
    ]
    names = [f"a/{number}" for number in range(len(parts))]
    keeping = [Keeping(n, one, {}, {"name": n, "notes": [n], "users": 1}) for n, one in zip(names, parts, strict=True)]
    keep(home, keeping, KEYS)
    files = [path for path in home.rglob("*") if path.is_file()]
    assert len(files) == 2 and all(mode(path) == 0o600 for path in files)
    for name, part in zip(names, parts, strict=True):
        found = load_kept(home, name)
        assert found.keys() == part.keys()
        assert all(found[key].shape == value.shape and torch.equal(found[key], value) for key, value in part.items())
    assert describe_clients(home) == [dict(one.about) for one in keeping]
    assert is_kept(home, names[0]) and not is_kept(home, "nobody")
    with pytest.raises(
        UserError, match=r"^model: .*client-nobody.* must be a safetensors file of a finished run, found none"
    ):
        load_kept(home, "nobody")


def test_of_what_was_kept_twice_the_newest_counts(tmp_path: Path) -> None:
    for value, count in ((1.0, MANY), (2.0, 1), (3.0, MANY)):
        clients = [Keeping(f"c{n}", {"w": torch.full((1,), value)}, {}, {"name": f"c{n}"}) for n in range(count)]
        keep(tmp_path, clients[::-1] if value == 3 else clients, KEYS)
        assert load_kept(tmp_path, "c0")["w"].item() == value


def test_many_clients_leave_few_files_and_each_finds_its_own(phones: Path) -> None:
    names = sorted(str(path.relative_to(phones)) for path in phones.rglob("*") if path.is_file())
    assert not [name for name in names if name.startswith("users/")]
    assert len([name for name in names if name.startswith(("model/", "about/"))]) == 5, names
    e = fedrec.load_run(phones).experiment
    for data in clients_data(e)[::23]:
        kept, own = load_kept(phones, data.name), load_kept(phones, data.name, OWN)
        found = params_of(phones, e, data)
        assert {**kept, **own}.keys() == found.keys()
        assert all(torch.equal(found[name], value) for name, value in {**kept, **own}.items())
    (answer,) = [fedrec.load_run(phones).recommend(data.name, keys(e)[0][data.users[0]], 3)]
    assert len(answer) == 3
    assert mode(phones / "about.parquet") == 0o600


def test_the_ledger_of_many_clients_has_counts_and_sums(phones: Path) -> None:
    rows = pd.read_csv(phones / "ledger.csv")
    assert list(rows) == SUMMED
    tested = json.loads((phones / "experiment.json").read_text())["selected_round"]
    other = rows[rows["round"] == 3 - tested]
    tables = other[other["parameter"] == "item_table"].set_index("direction")
    assert tables["messages"].to_dict() == {"down": 140, "up": 70}  # down to train, and to evaluate
    row = pd.read_csv(phones / "rounds.csv").set_index("round").loc[3 - tested]
    total = other.groupby("direction")["bytes"].sum()
    assert (total["up"], total["down"]) == (row["bytes_up"], row["bytes_down"])
    assert not rows.duplicated(SUMMED[:3]).any()


def message(number: int, direction: str, size: int) -> list[dict[str, str | int | float]]:
    return [{"round": number, "direction": direction, "parameter": "w", "rows": 2, "bytes": size}]


@pytest.mark.parametrize("count", [MANY - 1, MANY])
def test_what_travelled_is_the_same_in_sum_with_few_and_with_many(count: int) -> None:
    names, traffic, plain = [f"c{n}" for n in range(count)], Traffic(), Traffic()
    plain.named = True
    for one in (traffic, plain):
        one.add(names, message(0, "up", 8))
        for number in (1, 2):
            one.add(names[: count // 2], message(number, "down", 100))
            one.add(names[count // 2 :], message(number, "down", 10))
            one.add(names[:1], message(number, "up", 7))
            assert one.close(number) == {"down": 100 * (count // 2) + 10 * (count - count // 2), "up": 7}
    sums = pd.DataFrame(traffic.rows()).groupby(["round", "direction"])[["rows", "bytes"]].sum()
    few = pd.DataFrame(plain.rows()).groupby(["round", "direction"])[["rows", "bytes"]].sum()
    assert traffic.many() == (count >= MANY) == (len(traffic.rows()) == 5)
    if count < MANY:
        pd.testing.assert_frame_equal(sums, few)
    else:
        assert sums["bytes"].tolist() == few["bytes"].tolist()
        assert pd.DataFrame(traffic.rows())["messages"].tolist() == [count, count, 1, count, 1]
    assert len(plain.rows()) == count * 3 + 2


def test_metrics_of_clients_are_the_same_as_text_and_as_parquet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record()
    record.score(1, "train", {("007", "all", "loss"): 0.1 + 0.2}, "cpu")
    record.score(1, "test", {("NA", "rank", "ndcg@10"): float("nan"), ("NA", "rank", "hr@10"): 1.0}, "")
    measured: list[Any] = [dict(zip(CLIENTS, (2, "007", "test", "rank", "mrr", 0.5, "cpu"), strict=True))]
    write_clients(tmp_path, record.clients, measured)
    text = read_clients(tmp_path)
    monkeypatch.setattr("fedrec.experiment.scores.LARGE", 4)
    write_clients(tmp_path, record.clients, measured)
    assert [path.name for path in tmp_path.iterdir()] == [FILES[1]], "one form must take the place of the other"
    pd.testing.assert_frame_equal(read_clients(tmp_path), text, check_exact=True)
    assert text["client"].tolist() == ["007", "NA", "NA", "007"] and LARGE > 10_000


def test_rows_of_metrics_are_a_sequence_and_survive_a_checkpoint() -> None:
    rows = [dict(zip(CLIENTS, (n, f"c{n % 2}", "test", "rank", "mrr", n / 3, "cpu"), strict=True)) for n in range(5)]
    scores = Scores(rows)
    assert len(scores) == 5 and list(scores) == rows and scores[-1] == rows[-1] and scores[1:3] == rows[1:3]
    again = Scores(rows[:2])
    again.unpack(scores.packed(2))
    assert list(again) == rows


def test_clients_are_compared_together_as_each_would_be_by_itself() -> None:
    rng, rows, tests = generator(0, "together"), [], []
    for number in range(40):
        for metric, most in (("mrr", 1), ("rmse", 1), ("logloss", 4), ("accuracy", 2)):
            n = int(rng.integers(1, 6))
            ours, theirs, w = rng.random(n), rng.random(n), rng.integers(1, most + 1, n).astype(float)
            if number == 7:
                theirs = ours - 0.25  # all differ alike
            side = Side(np.arange(n), ours, theirs, w)
            rows += [
                [f"c{number}", str(u), "test", "t", metric, *v] for u, v in enumerate(zip(ours, theirs, w, strict=True))
            ]
            tests.append([1, f"c{number}", "t", metric, "test", *side.means(metric), difference(metric, [side])])
    users = pd.DataFrame(rows, columns=["client", "user", "split", "task", "metric", "ours", "theirs", "weight"])
    clients = pd.DataFrame(tests, columns=["round", "client", "task", "metric", "split", "ours", "theirs", "gap"])
    order = rng.permutation(len(users))
    one, other = (
        Results(clients.assign(value=clients[name]), users.assign(value=users[name]).iloc[place])
        for name, place in (("ours", slice(None)), ("theirs", order))
    )
    found, counts = differences(one, other), set()
    for key, gap in zip(clients[["client", "task", "metric"]].itertuples(index=False), clients["gap"], strict=True):
        np.testing.assert_allclose(astuple(found[tuple(key)]), astuple(gap), rtol=1e-9, atol=1e-12, err_msg=str(key))
        counts.add(gap.n)
    assert counts == {1, 2, 3, 4, 5}


def five(folder: Path) -> Path:
    """Write a run of five clients in the earlier form, with metrics of every kind, of users who count differently."""
    write_run(folder, dict.fromkeys(FIVE, 0.0), users=1, rounds=2, baselines=("local", "popularity"))
    rng = generator(0, "five")
    measured = {("rank", "ndcg@10"): 1, ("rating", "rmse"): 5, ("click", "auc"): 4, ("click", "logloss"): 9}
    for kind, shift in (("", 0.05), ("baselines/local", 0.0), ("baselines/popularity", -0.1)):
        remove(folder / kind / "users")
        (folder / kind / "users").mkdir()
        means, users = [], []
        for number, client in enumerate(FIVE):
            for (task, metric), most in measured.items():
                v, w = rng.random(12) * 0.5 + shift * (number - 1), rng.integers(1, most + 1, 12)
                mean = float(np.sqrt(w @ v**2 / w.sum()) if metric == "rmse" else w @ v / w.sum())
                means.append([2, client, "test", task, metric, mean, "cpu"])
                users += [[client, u, "test", task, metric, x, y] for u, x, y in zip(range(12), v, w, strict=True)]
                if metric == "auc":  # the other side, whose mean is the same
                    users += [[client, u, "test", task, NEGATIVES, mean, 1] for u in range(12)]
        pd.DataFrame(means, columns=CLIENTS).to_csv(folder / kind / "clients.csv", index=False)
        columns = ["client", "user", "split", "task", "metric", "value", "weight"]
        pd.DataFrame(users, columns=columns).to_csv(folder / kind / "users" / "all.csv", index=False)
    return folder


FIVE = ("films", "books", "music", "games", "news")


def told(home: Path) -> dict[str, Any]:
    """Return what is said of a run: its comparisons, and the lines on the terminal."""
    tables = {name: compare(read_run(home), name == "all users") for name in ("clients", "all users")}
    found = {name: json.loads(table.to_json(orient="split", double_precision=15)) for name, table in tables.items()}
    return {**found, "answers": answers(home)}


def test_what_is_said_of_five_clients_is_what_was_said_before(tmp_path: Path) -> None:
    kept, found = json.loads(FORMER.read_text()), told(five(tmp_path))
    assert found["answers"] == kept["answers"]
    for name in ("clients", "all users"):
        assert found[name]["columns"] == kept[name]["columns"]
        for row, other in zip(found[name]["data"], kept[name]["data"], strict=True):
            assert [pytest.approx(x, rel=1e-11) if isinstance(x, float) else x for x in other] == row


def test_both_forms_say_the_same(tmp_path: Path) -> None:
    old, new = five(tmp_path / "old"), five(tmp_path / "new")
    for folder in (new, new / "baselines" / "local", new / "baselines" / "popularity"):
        table = pd.read_csv(folder / "users" / "all.csv", dtype={"user": str}).drop(columns="split")
        remove(folder / "users")
        (folder / "users.parquet").write_bytes(parquet(table))
    assert json.dumps(told(new)) == json.dumps(told(old))
    assert write_report(new).read_text() == write_report(old).read_text()


def many(folder: Path, gains: dict[str, float]) -> Path:
    """Write a run of many clients of one user, as `write_run` does of few."""
    write_run(folder, {"phone-0": 0.0}, users=1, rounds=2)
    for kind in ("", "local"):
        home = folder / "baselines" / kind if kind else folder
        values = {name: 0.5 + gain * (not kind) for name, gain in gains.items()}
        rows = [(2, name, "test", "rank", "ndcg@10", value, "cpu") for name, value in values.items()]
        write_clients(home, Scores([dict(zip(CLIENTS, row, strict=True)) for row in rows]))
        remove(home / "users")
        write_users(home, [per_user(name, [0], [value]) for name, value in values.items()], KEYS)
    for name in ("pooled", "popularity"):
        remove(folder / "baselines" / name)
    return folder


def test_many_clients_have_quantiles_and_the_worst_few_and_a_small_page(tmp_path: Path) -> None:
    gains = {f"phone-{n}": 0.1 * (n / 299 - 0.3) for n in range(300)}
    run = many(tmp_path / "run", gains)
    page = write_report(run)
    text = Text(page.read_text(encoding="utf-8")).text
    rows = comparison(run).query("metric == 'ndcg@10'")
    gain = rows["local_difference"]
    (line,) = re.findall(r"Together minus alone (\S+) (\S+) (\S+) (\S+) (\S+) (\S+) (\S+) (\S+)", text)[:1]
    shown = [float(cell.replace("\N{MINUS SIGN}", "-")) for cell in line[1:7]]
    assert int(line[0]) == 300
    assert shown == pytest.approx([gain.mean(), *np.quantile(gain, [0.05, 0.25, 0.5, 0.75, 0.95])], abs=5e-4)
    assert line[7] == f"{(gain < 0).mean():.0%}" and (gain < 0).mean() > 0.1
    assert page.stat().st_size < 200_000 and text.count("phone-") < 200
    console = Console(file=StringIO(), width=120)
    console.print(closing(run))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    bad = rows.loc[gain.sort_values(kind="stable").index[:5], "client"].tolist()
    assert [name for name in bad if any(f"worst: {name} " in one for one in lines)] == bad
    assert len([one for one in lines if "phone-" in one]) == 5 and any("median of 300" in one for one in lines)
    assert any(one.startswith("Of 300 clients, working together left") for one in answers(run))


def test_a_run_of_many_clients_that_is_gone_on_with_leaves_the_same_files(tmp_path: Path) -> None:
    e = experiment("fedper", rounds=3, partition="one-user", clients=70, market=PHONES, engine="batched")
    whole, broken = into(tmp_path / "whole", e), tmp_path / "broken"
    for number in (2, 3):
        with pytest.raises(Killed):
            into(broken, e, on_round=until(number), every=1)
    same(whole, into(broken, e, every=1))
    rows = pd.read_csv(whole / "ledger.csv")
    assert set(rows["round"]) == {0, 1, 2, 3} and list(rows) == SUMMED
    assert not list((whole / "model").glob("client-*")) and (whole / "users.parquet").exists()


def test_clients_that_are_trained_one_by_one_on_a_node_keep_their_files_together_too(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"model": "slist", "partition": "one-user", "clients": 70, "market": PHONES, "rounds": 1}
    one, each = (
        into(tmp_path / engine, experiment("fedper", engine=engine, **fields)) for engine in ("batched", "inline")
    )
    assert len([*(one / "model").glob("client*")]) == len([*(one / "model").glob("clients-with-*")]) == 1
    assert len([*(each / "model").glob("client-*")]) == 70
    assert (one / "users.parquet").read_bytes() == (each / "users.parquet").read_bytes()
    said = describe_clients(each)
    assert describe_clients(one) == said
    for client in said[::23]:
        mine, other = (load_kept(home, client["name"]) for home in (one, each))
        assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def test_a_record_of_many_clients_is_read_as_one_of_few(phones: Path) -> None:
    whole = json.loads((phones / "experiment.json").read_text())
    assert whole["data"]["clients"] == "about.parquet"
    said = read_run(phones).record["data"]["clients"]
    names = [data.name for data in clients_data(fedrec.load_run(phones).experiment)]
    assert [one["name"] for one in said] == sorted(names, key=natural)
    assert {one["users"] for one in said} == {1} and all(one["tasks"] == ["rank"] for one in said)
    assert "70" in Text((phones / "report.html").read_text()).text
    assert load_params(phones / "model" / "shared.safetensors").keys() == {"item_table", "item_bias"}
