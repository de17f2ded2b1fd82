import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from clients.recommend import Recommendation, experiment_of, local_row, main, nearest, recommend, show
from fedrec.data import ClientData, Dataset
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.holdings import clients_data, dataset
from fedrec.experiment.records import slug
from fedrec.params import Params

FIELDS: dict[str, Any] = {"clients": 2, "dim": 1}


def value_of(items: Any) -> Any:
    """Return distinct item factors that follow neither the order of ids nor of local rows."""
    return (np.asarray(items) * 7919 % 1009).astype(np.float32) + 1


def write_run(home: Path, **fields: Any) -> Experiment:
    """Write a run with score(u, i) = p_u q_i, where p_u is +1 for even local rows and -1 for odd, q_i = value_of(i)."""
    experiment = build({**FIELDS, **fields})
    parts = clients_data(experiment)
    items = np.unique(np.concatenate([part.items for part in parts]))
    (home / "model").mkdir(parents=True)
    (home / "experiment.json").write_text(json.dumps({"experiment": experiment.model_dump(mode="json")}))
    shared: Params = {}
    for part in parts:
        offsets = {task.name: 0.0 for task in experiment.tasks(part.name)}
        params = experiment.recommender(part.name).init(0, part.users, part.items, offsets)
        params["user_table"] = torch.tensor([[1.0 if u % 2 == 0 else -1.0] for u in range(len(part.users))])
        params["item_table"] = torch.from_numpy(value_of(part.items)[:, None])
        own, private = experiment.sharing().split(params)
        save_file(private, home / "model" / f"client-{slug(part.name)}.safetensors")
        shared |= own
    if "item_table" in shared:
        shared["item_table"] = torch.from_numpy(value_of(items)[:, None])
        shared["item_bias"] = torch.zeros(len(items), 1)
    save_file(shared, home / "model" / "shared.safetensors")
    rows = {"item": items.tolist()} if "item_table" in shared else {}
    (home / "model" / "rows.json").write_text(json.dumps(rows))
    return experiment


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Experiment]:
    home = tmp_path_factory.mktemp("runs") / "run"
    return home, write_run(home)


def key(experiment: Experiment, data: ClientData, row: int) -> str:
    return str(dataset(experiment).users["key"].iloc[data.users[row]])


def positives(data: ClientData, row: int, *names: str) -> set[int]:
    parts = [getattr(data, name) for name in names]
    return {int(data.items[i]) for part in parts for i in part.item[part.positive & (part.user == row)]}


@pytest.mark.parametrize("client", [0, 1])
@pytest.mark.parametrize("row", [0, 1, 4])
def test_the_list_is_the_catalogue_by_the_clients_own_score(
    run: tuple[Path, Experiment], client: int, row: int
) -> None:
    # p_u q_i sorts a client's catalogue by q_i for an even user, and the other way round for an odd one.
    home, experiment = run
    data = clients_data(experiment)[client]
    made = recommend(home, data.name, key(experiment, data, row), 10_000)
    sign = 1 if row % 2 == 0 else -1
    left = set(data.items.tolist()) - positives(data, row, "train", "validation")
    assert made.items.tolist() == sorted(left, key=lambda item: -sign * value_of(item))
    np.testing.assert_array_equal(made.scores, sign * value_of(made.items))
    assert positives(data, row, "test") <= set(made.items.tolist())
    assert made.task is not None
    assert made.task.name == "rank"


def test_k_cuts_the_list(run: tuple[Path, Experiment]) -> None:
    home, experiment = run
    data = clients_data(experiment)[0]
    whole, three = (recommend(home, data.name, key(experiment, data, 0), k) for k in (10_000, 3))
    assert three.items.tolist() == whole.items[:3].tolist()


@pytest.mark.parametrize("user", ["nobody", "", "17 ", "é", "other"])
def test_a_user_that_the_client_does_not_have_gets_what_is_popular(run: tuple[Path, Experiment], user: str) -> None:
    home, experiment = run
    data, other = clients_data(experiment)
    asked = key(experiment, other, 0) if user == "other" else user
    made = recommend(home, data.name, asked, 20)
    counts = pd.Series(data.items[data.train.item[data.train.positive]]).value_counts()
    assert made.task is None
    assert made.scores.tolist() == counts.iloc[:20].tolist()
    assert made.scores.tolist() == counts[made.items].tolist()


def test_a_member_of_a_pooled_run_gets_its_own_catalogue(tmp_path: Path) -> None:
    experiment = write_run(tmp_path / "run", method="pooled", share=[], pool=True)
    (pooled,) = clients_data(experiment)
    member = pooled.members[1]
    asked = key(experiment, member, 0)
    whole, own = (recommend(tmp_path / "run", name, asked, 10_000) for name in ("pooled", member.name))
    assert set(own.items.tolist()) <= set(member.items.tolist())
    carried = np.isin(whole.items, member.items)
    np.testing.assert_array_equal(whole.items[carried], own.items)
    np.testing.assert_array_equal(whole.scores[carried], own.scores)
    row = local_row(dataset(experiment), pooled, asked)
    assert row is not None
    np.testing.assert_array_equal(own.scores, (1 if row % 2 == 0 else -1) * value_of(own.items))


@pytest.mark.parametrize(("task", "used"), [("like,rank", "rank"), ("rating,like", "rating"), ("like", "like")])
def test_the_rank_task_answers_or_else_the_first(tmp_path: Path, task: str, used: str) -> None:
    experiment = write_run(tmp_path / "run", task=task)
    data = clients_data(experiment)[0]
    made = recommend(tmp_path / "run", data.name, key(experiment, data, 0), 1)
    assert made.task is not None
    assert made.task.name == used


def change(path: Path, name: str, value: torch.Tensor | None) -> None:
    params = load_file(path)
    params.pop(name, None)
    save_file(params if value is None else {**params, name: value}, path)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("experiment.json", None, "experiment.json must be a readable file (No such file or directory)"),
        ("experiment.json", b"{", "experiment.json must be JSON in UTF-8 ("),
        ("experiment.json", b"\xff", "experiment.json must be JSON in UTF-8 ("),
        ("experiment.json", b"[1]", "experiment.json must hold named values, found list"),
        ("experiment.json", b"{}", "experiment.json must have the key 'experiment'"),
        ("experiment.json", b'{"experiment": {"rounds": 0}}', "rounds: "),
        ("experiment.json", b'{"experiment": {"clients": 2, "dim": 2}}', "must have shape ["),
        ("model/rows.json", None, "rows.json must be a readable file"),
        ("model/rows.json", b"{}", "must have a row for every item of "),
        ("model/rows.json", b'{"item": [0, 1]}', "must have a row for every item of "),
        ("model/shared.safetensors", None, "shared.safetensors must be a safetensors file"),
        ("model/shared.safetensors", b"x", "shared.safetensors must be a safetensors file"),
        ("model/client-films.safetensors", None, "client-films.safetensors must be a safetensors file"),
    ],
)
def test_a_damaged_run_is_refused(tmp_path: Path, file: str, damage: bytes | None, message: str) -> None:
    write_run(tmp_path / "run")
    path = tmp_path / "run" / file
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(UserError) as caught:
        recommend(tmp_path / "run", "films", "1", 3)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "name", "value", "message"),
    [
        ("shared", "item_bias", None, "item_bias: must be sent, found missing"),
        ("client-films", "user_table", torch.zeros(3, 1), "user_table: must have shape ["),
        ("client-films", "user_bias", None, "user_bias: must be sent, found missing"),
        ("client-films", "extra", torch.zeros(1), "extra: must be a shared parameter"),
        ("client-films", "heads.rank.bias", torch.tensor([torch.nan]), "heads.rank.bias: every value must be finite"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(
    tmp_path: Path, file: str, name: str, value: torch.Tensor | None, message: str
) -> None:
    write_run(tmp_path / "run")
    change(tmp_path / "run" / "model" / f"{file}.safetensors", name, value)
    with pytest.raises(UserError) as caught:
        recommend(tmp_path / "run", "films", "1", 3)
    assert message in str(caught.value)


def test_the_command_prints_the_list(run: tuple[Path, Experiment], capsys: pytest.CaptureFixture[str]) -> None:
    home, experiment = run
    data = clients_data(experiment)[0]
    user = key(experiment, data, 0)
    assert main([str(home), "--client", data.name, "--user", user, "-k", "2"]) == 0
    out, err = capsys.readouterr()
    best = recommend(home, data.name, user, 2)
    assert err == ""
    assert out.startswith(f"{data.name} recommends to user {user}, by the task rank:")
    for item, score in zip(best.items, best.scores, strict=True):
        assert dataset(experiment).items["title"].iloc[item] in out
        assert f"{score:.4f}" in out
    assert main([str(home), "--client", data.name, "--user", "nobody"]) == 0
    assert capsys.readouterr().out.startswith(f"cold answer: {data.name} has no user 'nobody'")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: RUN_DIR, --client, --user"),
        (["RUN", "--client", "films", "--user", "1", "-k", "0"], "k: must be at least 1, found 0"),
        (["RUN", "--client", "films", "--user", "1", "-k", "-3"], "k: must be at least 1, found -3"),
        (["RUN", "--client", "films", "--user", "1", "-k", "many"], "argument -k: invalid int value: 'many'"),
        (["RUN", "--client", "film", "--user", "1"], "did you mean 'films'?"),
        (["RUN", "--client", "", "--user", "1"], "found ''"),
        (["RUN", "--client", "films", "--user", "1", "--kk", "3"], "unrecognized arguments: --kk 3"),
        (["nowhere", "--client", "films", "--user", "1"], "found 'nowhere'"),
    ],
)
def test_a_wrong_command_line_ends_with_status_2(
    run: tuple[Path, Experiment], capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert main([str(run[0]) if one == "RUN" else one for one in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


KEYS = [" 017", "17", "ÅSA  Öst", "[red]", "-5", "ann", "Bob Smith"]  # of users; and i + each are keys of items


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run on a table of such keys: every user has met every second item."""
    home = tmp_path_factory.mktemp("shop")
    pairs = [(u, f"i{i}") for k, u in enumerate(KEYS) for n, i in enumerate(KEYS) if (n + k) % 2]
    pd.DataFrame(pairs, columns=["user", "item"]).to_parquet(home / "t.parquet")
    columns, where = "user=user,item=item", home / "t.parquet"
    write_run(home / "run", clients=1, dataset="table", data_dir=where, columns=columns, partition="users")
    return home / "run"


def test_every_key_is_found_and_items_are_named_by_theirs(
    shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for key in KEYS:
        assert main([str(shop), "--client", "silo-1", f"--user={key}", "-k", "9"]) == 0
        out, err = capsys.readouterr()
        shown = repr(key) if key in (" 017", "ÅSA  Öst") else key  # in which a line would hide blanks
        assert err == "" and out.splitlines()[0] == f"silo-1 recommends to user {shown}, by the task rank:"
        items = recommend(shop, "silo-1", key, 9).items
        names = dataset(experiment_of(shop)).items["key"].iloc[items].tolist()
        assert len(names) >= 3 and max(map(len, out.splitlines())) <= 80
        assert all((repr(name) if "  " in name else name) in out for name in names)
        assert "title" not in out and "categories" not in out  # which are nothing but the keys, and nothing


@pytest.mark.parametrize(
    ("user", "near"),
    [
        ("017", ("' 017'", "'17'")),
        ("17 ", ("' 017'", "'17'")),
        ("a\u030asa  öst", ("'ÅSA  Öst'",)),
        ("bob smit", ("'Bob Smith'",)),
        ("anna", ("'ann'",)),
        ("nobody", ()),
    ],
)
def test_a_key_that_is_not_there_says_the_nearest_and_gives_the_cold_answer(
    shop: Path, capsys: pytest.CaptureFixture[str], user: str, near: tuple[str, ...]
) -> None:
    assert main([str(shop), "--client", "silo-1", "--user", user]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"cold answer: silo-1 has no user {user!r}")
    assert first.count("did you mean") == bool(near) and all(key in first for key in near)


def test_the_nearest_of_many_keys_are_found_soon() -> None:
    keys = [f"{k:06d}" for k in range(20_000)]
    assert nearest("17", keys) == ("000017",)
    assert len(nearest("01900x", keys)) == 3
    assert nearest("somebody else", keys) == ()


def test_titles_are_printed_as_they_are() -> None:
    items = pd.DataFrame({"key": ["a"], "title": ["[red]Ünï :smile: [/x]"], "categories": ["a|b"]})
    data = Dataset("toy", pd.DataFrame(), pd.DataFrame({"key": []}), items, ("p",))
    console = Console(markup=False, emoji=False, highlight=False, width=100, record=True, quiet=False, file=None)
    with console.capture() as shown:
        show(console, "p", "[u]", Recommendation(np.array([0]), np.array([2.0], np.float32), None), data)
    assert "[red]Ünï :smile: [/x]" in shown.get()
    assert "a, b" in shown.get()


def test_starting_needs_no_flower() -> None:
    code = "import sys, clients.recommend; sys.exit('flwr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
