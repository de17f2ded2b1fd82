import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from fedrec.errors import UserError
from fedrec.experiment.acting import acting
from fedrec.experiment.config import Experiment, Method
from simulations.cli import Command, overrides, parse
from simulations.help import MOST, TOPICS
from simulations.methods import METHODS, usual
from simulations.options import CHOSEN, FIELDS, GROUPS, OPTIONS, flatten, leaves, nest, shown

ROOT = Path(__file__).parents[1]


def write(folder: Path, name: str, content: str | dict[str, Any]) -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def refusal(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(argv)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_nothing_given_but_a_model_is_the_default_experiment() -> None:
    assert parse(["--model", "mf"]) == Command(Experiment(), None, quiet=False, compare=True, every=1)


def test_flags_that_are_no_fields() -> None:
    command = parse(["--model", "mf", "--out", "runs/a b", "--quiet", "--compare"])
    assert command == Command(Experiment(), Path("runs/a b"), quiet=True, compare=True, every=1)


def test_every_field_is_a_flag_and_every_name_in_a_group_is_a_field() -> None:
    assert {path.partition(".")[0] for path in FIELDS} == set(Experiment.model_fields)
    assert set(" ".join(GROUPS.values()).split()) <= set(Experiment.model_fields)
    assert {"--local-epochs", "--data-dir", "--out", "--config"} <= set(OPTIONS)


def test_values_are_read_by_the_type_of_the_field() -> None:
    flags = "--clients 3 --model mlp --hidden 8,4 --candidates 99 --metrics mrr,hr@5 --skew 0.5 --lr 1e-3"
    made = parse(flags.split()).experiment
    assert (made.clients, made.hidden, made.candidates) == (3, (8, 4), 99)
    assert (made.metrics, made.skew, made.lr) == (("mrr", "hr@5"), 0.5, 0.001)


def test_none_and_the_empty_list_can_be_written(tmp_path: Path) -> None:
    config = write(tmp_path, "c.json", {"clients": 5, "skew": 0.5})
    made = parse(["--config", config, "--clients", "none", "--skew=none", "--share", ""]).experiment
    assert (made.clients, made.skew, made.share) == (None, None, ())


def test_the_last_of_a_repeated_flag_counts() -> None:
    assert parse(["--rounds", "3", "--rounds", "5"]).experiment.rounds == 5
    assert not parse(["--pool", "--no-pool"]).experiment.pool


def test_relative_places_of_platforms_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = Path.cwd()
    places = "films=films.csv;shop=exports/*.jsonl"
    argv = ["--dataset", "table", "--data-dir", places, "--columns", "user=u,item=i"]
    argv += ["--reading.items", "items.csv;shop=shop.csv", "--reading.match", "match.csv"]
    e = parse(argv).experiment
    assert str(e.data_dir) == f"films={here}/films.csv;shop={here}/exports/*.jsonl"
    assert e.reading.items == f"{here}/items.csv;shop={here}/shop.csv"
    assert e.reading.match == here / "match.csv"
    assert (
        overrides({"dataset": "table", "data-dir": str(e.data_dir), "columns": "user=u,item=i"}).data_dir == e.data_dir
    )


def test_a_relative_data_dir_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = tmp_path / "ml-100k"
    assert parse(["--dataset", "ml-100k", "--data-dir", "ml-100k"]).experiment.data_dir == here
    assert (
        parse(["--config", write(tmp_path, "c.toml", 'dataset = "ml-100k"\ndata_dir = "ml-100k"')]).experiment.data_dir
        == here
    )
    assert overrides({"dataset": "ml-100k", "data-dir": "ml-100k"}).data_dir == here


@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_its_value(name: str) -> None:
    made = parse(["--method", name, "--optimiser", "sgd", "--volunteers", "9"]).experiment
    assert Method(**made.model_dump(include=set(Method.model_fields))) == METHODS[name]


def test_a_flag_wins_over_its_method_whatever_the_order() -> None:
    first = parse(["--share", "body", "--method", "fedrep"]).experiment
    assert first == parse(["--method", "fedrep", "--share", "body"]).experiment
    assert (first.share, first.phases) == (("body",), ("private", "shared"))


def test_precedence_from_defaults_to_flags(tmp_path: Path) -> None:
    file = {"method": "fedprox", "coupling": {"rho": 0.5}, "rounds": 7, "dim": 4}
    made = parse(["--config", write(tmp_path, "c.json", file), "--rounds", "9"]).experiment
    assert made.share == METHODS["fedprox"].share  # the file's method over the defaults
    assert made.coupling.rho == 0.5  # the file's field over its method
    assert (made.rounds, made.dim) == (9, 4)  # the flag over the file's field


@pytest.mark.parametrize("saved", ["fedrep", "pooled", "fedprox"])
def test_a_method_on_the_command_line_leaves_nothing_of_the_saved_one(tmp_path: Path, saved: str) -> None:
    record = {"experiment": parse(["--method", saved, "--rounds", "3"]).experiment.model_dump(mode="json")}
    made = parse(["--config", write(tmp_path, "experiment.json", record), "--method", "fedper"]).experiment
    assert made == parse(["--method", "fedper", "--rounds", "3"]).experiment


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "method": st.sampled_from(sorted({*METHODS} - {"agreement", "scaffold"})),  # these need more than a name
            "rounds": st.integers(1, 1_000_000),
            "lr": st.floats(min_value=1e-30, max_value=1e5),
            "clients": st.none() | st.integers(1, 1000),
            "candidates": st.just("full") | st.integers(1, 10_000),
            "dataset": st.just("table"),
            "split": st.just("random"),
            "fractions": st.just((0.25, 0.5)),
            "share": st.lists(st.sampled_from(["item_table", "body", "heads.rank"]), unique=True).map(tuple),
            "columns": st.text(st.characters(codec="utf-8", exclude_characters="\0")),
            "data_dir": st.just(Path("/data/Größe 1")),
            "seed": st.integers(0, 2**63 - 1),
        },
    )
)
def test_a_saved_experiment_repeats_the_experiment(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    experiment = Experiment(**values)
    experiment = acting(experiment, usual(experiment))
    dumped = experiment.model_dump(mode="json")
    config = write(tmp_path_factory.getbasetemp(), "saved.json", {"experiment": dumped, "versions": {"python": "3"}})
    assert parse(["--config", config]).experiment == experiment
    assert overrides({"rounds": 1, "experiment": json.dumps(dumped)}) == experiment


def test_json_and_toml_say_the_same(tmp_path: Path) -> None:
    as_json = write(tmp_path, "c.json", {"method": "local", "local_epochs": 2, "metrics": ["mrr"], "lr": 1})
    as_toml = write(tmp_path, "c.toml", 'method = "local"\nlocal-epochs = 2\nmetrics = ["mrr"]\nlr = 1\n')
    in_table = write(tmp_path, "d.toml", '[experiment]\nmethod = "local"\nlocal_epochs = 2\nmetrics = "mrr"\nlr = 1\n')
    marked = write(tmp_path, "d.json", '\ufeff{"method": "local", "local_epochs": 2, "metrics": ["mrr"], "lr": 1.0}')
    first, *others = [parse(["--config", config]).experiment for config in (as_json, as_toml, in_table, marked)]
    assert (first.local_epochs, first.metrics) == (2, ("mrr",))
    assert all(other == first for other in others)


def test_flower_run_config_is_resolved_like_flags() -> None:
    flags = "--rounds 3 --method fedrep --local-epochs 2 --metrics mrr --clients none"
    run_config: dict[str, Any] = {
        "rounds": 3,
        "method": "fedrep",
        "local-epochs": 2,
        "metrics": "mrr",
        "clients": "none",
    }
    assert overrides(run_config) == parse(flags.split()).experiment
    assert overrides({"local_epochs": 2, "experiment": ""}).local_epochs == 2


def test_the_defaults_that_flower_is_told_are_true() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"]
    assert config.pop("out") == ""  # the folder of the record, which is no part of the experiment
    assert overrides(config) == parse([]).experiment


@pytest.mark.parametrize(
    ("run_config", "message"),
    [
        ({"roundz": 3}, "run-config: 'roundz' is no field of an experiment; did you mean rounds?"),
        ({"local-epochs": 0}, "run-config: local-epochs: .* greater than or equal to 1, found 0"),
        ({"method": "fedrpe"}, "run-config: method: .* found 'fedrpe'; did you mean 'fedrep'?"),
        ({"experiment": "{"}, "run-config experiment: must be JSON"),
        ({"experiment": "[1]"}, "run-config experiment: must hold named fields, found list"),
        ({"experiment": '{"rounds": 0}'}, "rounds: .* found 0"),
    ],
)
def test_a_wrong_run_config_is_refused(run_config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        overrides(run_config)


@pytest.mark.parametrize(
    ("argv", "start", "end"),
    [
        (["--roundz", "3"], "option --roundz: ", "did you mean --rounds?"),
        (["--roundz=3"], "option --roundz: ", "did you mean --rounds?"),
        (["--round", "3"], "option --round: ", "did you mean --rounds?"),  # no abbreviations
        (["--local_epochs", "3"], "option --local_epochs: ", "did you mean --local-epochs?"),
        (["--größe", "3"], "option --größe: ", "see --help"),
        (["-5"], "option -5: ", "see --help"),
        (["--"], "option --: ", "see --help"),
        (["films"], "argument 'films': ", "as in --rounds 20"),
        (["--rounds"], "option --rounds: ", "expected one argument"),
        (["--rounds", "--quiet"], "option --rounds: ", "expected one argument"),
        (["--quiet=5"], "option --quiet: ", "'5'"),
        (["--rounds", "x"], "option --rounds: ", "found 'x'"),
        (["--rounds", ""], "option --rounds: ", "found ''"),
        (["--rounds", "-1"], "option --rounds: ", "found '-1'"),
        (["--rounds", "2.5"], "option --rounds: ", "found '2.5'"),
        (["--rounds", "nan"], "option --rounds: ", "found 'nan'"),
        (["--lr", "nan"], "option --lr: ", "found 'nan'"),
        (["--lr", "inf"], "option --lr: ", "found 'inf'"),
        (["--lr=-1e-3"], "option --lr: ", "found '-1e-3'"),
        (["--market.similarity", "nan"], "option --market.similarity: ", "found 'nan'"),
        (["--skew", "nan"], "option --skew: ", "found 'nan'"),
        (["--clients", "0"], "option --clients: ", "found 0"),
        (["--clients", "٣"], "option --clients: ", "found '٣'"),
        (["--dataset", "ml-100"], "option --dataset: ", "did you mean 'ml-100k'?"),
        (["--dataset", ""], "option --dataset: ", "found ''"),
        (["--method", "fedrpe"], "option --method: ", "did you mean 'fedrep'?"),
        (["--method", ""], "option --method: ", "found ''"),
        (["--method", "fédrep"], "option --method: ", "did you mean 'fedrep'?"),
        (["--partition", "user"], "option --partition: ", "found 'user'; did you mean 'users'?"),
        (["--hidden", "64,x"], "option --hidden: ", "found 'x'"),
        (["--phases", "al"], "option --phases: ", "found 'al'"),
        (["--candidates", "0"], "option --candidates: ", "found 0"),
        (["--candidates", "ful"], "option --candidates: ", "found 'ful'"),
        (["--fractions", "0.1,nan"], "option --fractions: ", "found 0.1, nan"),
        (["--data-dir", ""], "option --data-dir: ", "found ''"),
        (["--out", ""], "option --out: ", "found ''"),
        (["--config", ""], "option --config: ", "found ''"),
        (["--config", "missing.json"], "option --config: ", "found 'missing.json' (No such file or directory)"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(argv: list[str], start: str, end: str) -> None:
    message = refusal(*argv)
    assert message.startswith(start), message
    assert message.endswith(end), message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.json", '{"roundz": 3}', ": 'roundz' is no field of an experiment; did you mean rounds?"),
        ("c.json", '{"clients": {"n": 1}}', ": 'clients.n' is no field of an experiment; did you mean clients?"),
        ("c.json", '{"clients": {}}', ": clients: input should be a valid integer, found {}"),
        ("c.json", '{"experiment": {"dim": "x"}}', ": dim: "),
        ("c.json", '{"lr": NaN}', ": lr: "),
        ("c.json", '{"method": "fedrpe"}', ": method: "),
        ("c.json", '{"method": 3}', ": method: "),
        ("c.json", '{"rounds": ', " must be JSON in UTF-8 ("),
        ("c.json", "", " must be JSON in UTF-8 ("),
        ("c.json", "[" * 100_000, " must be JSON in UTF-8 ("),
        ("c.json", "[1]", " must hold named values, found list"),
        ("c.json", '{"experiment": null}', " must hold named fields, found NoneType"),
        ("c.toml", "rounds =", " must be TOML in UTF-8 ("),
        ("c.toml", "rounds = 0", ": rounds: "),
    ],
)
def test_a_wrong_config_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    config = write(tmp_path, name, content)
    assert config + message in refusal("--config", config)


def test_a_config_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(b"\xff\xfe\x00")
    assert "must be JSON in UTF-8" in refusal("--config", str(tmp_path / "c.json"))
    assert "must be a regular file, found a folder" in refusal("--config", str(tmp_path))


def test_an_error_names_the_flag_rather_than_the_file(tmp_path: Path) -> None:
    config = write(tmp_path, "c.json", {"rounds": 5})
    assert refusal("--config", config, "--rounds", "0").startswith("option --rounds: ")


def helped(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Return what is printed for help."""
    with pytest.raises(SystemExit) as stopped:
        parse(argv)
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_the_first_page_of_help_is_short_and_true(capsys: pytest.CaptureFixture[str]) -> None:
    page = helped(capsys, "--help")
    assert page == helped(capsys, "-h") and len(page.splitlines()) <= 60
    assert max(map(len, page.splitlines())) < 80
    defaults = flatten(Experiment().model_dump()) | CHOSEN
    for group in MOST.values():
        for name, (_, default) in group.items():
            option = name.split()[0]
            assert option in OPTIONS
            path = option.removeprefix("--").replace("-", "_")
            if default:
                assert default == shown(defaults[path])
    assert all(name in page for name in (*METHODS, *TOPICS))


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_of_help_has_what_it_is_about(topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = helped(capsys, "--help", topic)
    known = {"taking-part": "--quorum", "methods": "fedrep", "sharings": "shared-body", "all": "--lora.rank"}
    known |= {"data": "--skew", "method": "--coupling.rho", "training": "--lr ", "running": "--workers"}
    known |= {"privacy": "--secure.bound", "evaluation": "--candidates"}
    assert known[topic] in page
    assert topic in ("all", "privacy") or "--secure.bound" not in page


def test_help_beside_a_part_tells_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    page = helped(capsys, "--model", "mmoe;shop=tests.own_parts:TwoTower", "--help")
    assert "--model.experts" in page and "the same as --experts [4]" in " ".join(page.split())
    assert "--model.width            int [8]" in page
    assert refusal("--model", "tests.own_parts:Tower", "--help").startswith(
        "model: tests.own_parts must have the class"
    )
    assert "did you mean 'privacy'" in refusal("--help", "privaci")


def test_help_names_every_flag_with_its_true_default(capsys: pytest.CaptureFixture[str]) -> None:
    shown = " ".join(helped(capsys, "--help", "all").split())
    defaults = flatten(Experiment().model_dump()) | CHOSEN
    for path, info in FIELDS.items():
        assert f"--{path.replace('_', '-')} " in shown.replace(",", " ")
        default = defaults[path]
        text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        expected = {"None": "none", "": "''"}.get(text, text)
        assert f"{info.description} [{expected}]" in shown
    assert all(f" {name} " in shown for name in [*METHODS, "examples:"])
    assert max(map(len, shown.split(" "))) < 118


def test_a_nested_field_is_given_alone(tmp_path: Path) -> None:
    config = write(tmp_path, "c.toml", "[market]\nusers = 7\nsimilarity = 0.1\n")
    made = parse(["--config", config, "--market.similarity", "0.5"]).experiment
    assert made.market == Experiment().market.model_copy(update={"users": 7, "similarity": 0.5})
    assert overrides({"market.users": 7, "market.similarity": 0.5}) == made
    assert refusal("--market.user", "7").endswith("did you mean --market.users?")
    assert refusal("--config", write(tmp_path, "d.toml", "market = 3")).startswith(f"{tmp_path / 'd.toml'}: 'market'")


class Inner(BaseModel):
    kind: str = "none"
    rho: float = 0.0


class Outer(BaseModel):
    rounds: int = 1
    coupling: Inner = Inner()


def test_the_fields_of_a_nested_model_have_dotted_paths() -> None:
    assert [path for path, _ in leaves(Outer)] == ["rounds", "coupling.kind", "coupling.rho"]
    assert flatten(Outer().model_dump()) == {"rounds": 1, "coupling.kind": "none", "coupling.rho": 0.0}


TREES: st.SearchStrategy[Any] = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1), max_leaves=8
)


@given(st.dictionaries(st.sampled_from("abc"), TREES))
def test_nest_is_the_inverse_of_flatten(tree: dict[str, Any]) -> None:
    assert nest(flatten(tree)) == tree
