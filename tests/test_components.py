"""Parts of a user's own: written down, rebuilt anywhere, refused where they cannot be, recorded as what they are."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrec.components import Part, as_json, make, per_client, read, split_at, text_of, with_fields
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment, build
from fedrec.federation.coordination import Coupling
from fedrec.federation.coordination.operators import MeanRegularised, Operator
from fedrec.models import ModuleRecommender, Recommender
from simulations.check import check
from simulations.cli import parse
from simulations.methods import METHODS
from simulations.run import main
from tests.own_parts import Factors, Grid, Huber, Precision, TwoTower

USUAL = ["--clients", "3", "--rounds", "2", "--no-compare", "--quiet", "--metrics", "ndcg@10,hr@10"]
SMALL = [*USUAL, "--market.users", "30", "--market.items", "40", "--market.impressions", "30"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda one: st.lists(one) | st.dictionaries(st.text(), one)
)


def trained(out: Path, *options: str) -> dict[str, Any]:
    """Run, and return the record."""
    small = USUAL if "--dataset" in options else SMALL
    assert main([*small, "--out", str(out), *options]) == 0
    found: dict[str, Any] = json.loads((out / "experiment.json").read_text())
    return found


def refused(*options: str) -> str:
    """Return what is said of options that are refused."""
    with pytest.raises(UserError) as error:
        parse([*SMALL, *options])
    return str(error.value)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), JSON, max_size=3))
def test_a_part_is_read_as_it_was_written(fields: dict[str, Any]) -> None:
    part = Part("a.b:C", fields)
    assert read(str(part)) == part
    assert build({"model": {"use": "a.b:C", **fields}}).model == str(part)
    assert per_client(f"mf;shop={part}") == {"*": "mf", "shop": str(part)}
    assert list(split_at(f"{part};{part}")) == [str(part)] * 2


def test_the_ways_to_write_a_part_down_are_one_value() -> None:
    text = 'tests.own_parts:TwoTower{"width": 6}'
    command = parse([*SMALL, "--model", "tests.own_parts:TwoTower", "--model.width", "6"]).experiment
    assert make("model", command.model) == TwoTower(width=6)
    for given_as in (text, {"use": "tests.own_parts:TwoTower", "width": 6}, TwoTower(width=6)):
        e = build({"model": given_as})
        assert e.model == text
        record = e.model_dump(mode="json")
        assert record["model"] == {"use": "tests.own_parts:TwoTower", "width": 6}
        assert build(json.loads(json.dumps(record))) == e
    assert build({"model": TwoTower}).model == build({"model": TwoTower()}).model == "tests.own_parts:TwoTower"
    tasks = build({"task": ["rank", "click*2", Huber(delta=2)]})
    assert tasks.task == 'rank,click*2,tests.own_parts:Huber{"delta": 2}'
    assert build(json.loads(json.dumps(tasks.model_dump(mode="json")))) == tasks
    typed = parse([*SMALL, "--task", "rank,click*2,tests.own_parts:Huber", "--task.delta", "2"]).experiment
    assert tasks.tasks("shop")[2].own == typed.tasks("shop")[2].own == Huber(delta=2)
    assert build({"task": Huber(delta=2)}).model_dump(mode="json")["task"] == {
        "use": "tests.own_parts:Huber",
        "delta": 2,
    }
    assert build({"metrics": [Precision(k=3), "mrr"]}).metrics == ("tests.own_parts:Precision@3", "mrr")


def test_fields_go_to_the_clients_that_have_the_part() -> None:
    e = parse(
        [
            *SMALL,
            "--model",
            "mf;shop-1=tests.own_parts:TwoTower",
            "--model.width",
            "16;shop-1=4",
            "--share",
            "embeddings",
        ]
    ).experiment
    assert e.dim == "16;shop-1=4"
    assert read(per_client(e.model)["shop-1"]).fields == {"width": "4"}
    assert e.recommender("shop-1").shapes(2, 3, ["rank"])["item_table.item.weight"].shape == (3, 4)
    assert with_fields("mf;a=m:C;b=m:C", {"x": "1;b=2"}) == 'mf;a=m:C{"x": "1"};b=m:C{"x": "2"}'


def test_fields_of_our_own_parts_are_the_old_options() -> None:
    new = parse([*SMALL, "--model", "mlp", "--model.width", "8", "--model.hidden", "6,4"]).experiment
    assert new == parse([*SMALL, "--model", "mlp", "--dim", "8", "--hidden", "6,4"]).experiment
    new = parse([*SMALL, "--method", "graph", "--coupling.kind.strength", "0.5"]).experiment
    assert new.coupling.strength == 0.5
    assert build({"model": "mf"}) == Experiment()
    with pytest.raises(UserError, match=r"model: mlp has no fields in the text, found \{'width': 8\}"):
        build({"model": {"use": "mlp", "width": 8}})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--model", "tests.own_parts:TwoTowers"],
            "must have the class TwoTowers, found none; did you mean 'TwoTower'?",
        ),
        (["--model", "tests.own_part:TwoTower"], "must be importable, found ModuleNotFoundError"),
        (["--model", "os:system"], "must be a component, a frozen dataclass or a frozen pydantic model"),
        (["--coupling.kind", "tests.own_parts:Thawed"], "must be a component"),
        (["--model", "tests.own_parts:Grid"], "must have the method network of a recommender"),
        (["--model", "tests.own_parts:TwoTower", "--model.widht", "3"], "did you mean 'width'"),
        (["--model", "tests.own_parts:TwoTower", "--model.width", "many"], "model.width"),
        (["--model", "mlp", "--model.widht", "3"], "did you mean 'width'"),
        (["--model", "mlpp"], "did you mean 'mlp'"),
        (["--task", "rank,tests.own_parts:Hubert"], "tests.own_parts must have the class Hubert"),
        (["--task", "tests.own_parts:Grid"], "must have the method target of a task"),
        (["--task", "tests.own_parts:Huber", "--task.dleta", "3"], "did you mean 'delta'"),
        (["--task", "rank", "--task.delta", "3"], "option --task.delta: rank has no fields of its own"),
        (["--task", "tests.own_parts:Huber,tests.own_parts:Huber*2"], "a client may name a task once"),
        (["--task", 'tests.own_parts:Huber;shop=tests.own_parts:Huber{"delta": 2}'], "task: Huber must be one for all"),
        (["--task", "a b:C"], "must be a name or MODULE:CLASS"),
        (["--task", "tests.own_parts:rank"], "must not be called as a task of ours"),
        (["--task", "tests.own_parts:Summed"], "loss must return a tensor [2], found []"),
        (
            ["--task", "tests.own_parts:Huber", "--engine", "process", "--stack", "yes"],
            "a loss of one's own may know one client alone",
        ),
        (["--metrics.k", "3"], "option --metrics.k: no such option; did you mean --metrics?"),
        (["--model", "a b:C"], "must be a name or MODULE:CLASS"),
        (["--descent.aggregator", "meen"], "did you mean 'mean'"),
        (["--coupling.kind", "graf"], "did you mean 'graph'"),
        (["--transform", "curv"], "transform: must be one of none, found 'curv'"),
        (["--transform", "tests.own_parts:Grid"], "must have the method init of a transform"),
        (["--objective", "tests.own_parts:Decay"], "must have the method value of a term"),
        (["--drift.personal", "dito"], "did you mean 'ditto'"),
        (["--task", "rank,click", "--weighting.kind", "gradnrom"], "did you mean 'gradnorm'"),
    ],
)
def test_what_is_no_part_is_refused_by_name(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*SMALL, "--out", str(tmp_path / "run"), "--engine", "inline", *options]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1


def test_a_part_that_another_process_cannot_rebuild_is_refused_before_anything_runs(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    lines = Path("tests/own_parts.py").read_text()
    call = f"import sys\nfrom simulations.run import main\nsys.exit(main({SMALL!r} + sys.argv[1:]))"
    program.write_text(f"{lines}\nif __name__ == '__main__':\n    " + call.replace("\n", "\n    "))
    model = ["--model", "__main__:TwoTower", "--out", str(tmp_path / "run")]

    def run(engine: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(program), *model, "--engine", engine]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    told = run("process")
    assert told.returncode == 2
    assert "move it to a module, or add --engine inline" in told.stderr
    assert not (tmp_path / "run").exists()
    done = run("inline")
    assert done.returncode == 0, done.stderr

    class Inside(TwoTower):
        """A class that no other process can name."""

    with pytest.raises(UserError, match="define it at the top of a module"):
        text_of(Inside())


def test_a_method_is_what_it_is_called() -> None:
    """Its name alone is the method, and no other name is one."""
    for name, method in METHODS.items():
        fields: dict[str, Any] = {} if name != "scaffold" else {"optimiser": "sgd"}
        fields |= {"volunteers": 9} if name == "agreement" else {}
        for e in (Experiment(method=name, **fields), build({"method": name, **fields})):
            assert {key: getattr(e, key) for key in type(method).model_fields} == dict(method)
    assert Experiment(method="admm", coupling={"rho": 0.5}).coupling == Coupling(rho=0.5, duals=True)
    with pytest.raises(UserError, match=r"method: must be one of .* did you mean 'fedrep'"):
        build({"method": "fedrap"})
    with pytest.raises(ValueError, match="method: must be one of"):
        Experiment(method="nonsense")


class Deeper(Experiment):
    """An experiment whose record lies: `mf` is not what it trains."""

    def recommender(self, client: str) -> Recommender:
        """See Experiment."""
        return Recommender("mf", 2)


class Halved(Coupling):
    """A coupling whose record lies."""

    def operator(self, clients: Sequence[str]) -> Operator:
        """See Coupling."""
        return MeanRegularised(1e9)


@pytest.mark.parametrize("engine", ["inline", "process", "batched"])
@pytest.mark.parametrize(
    ("e", "words"),
    [
        (Deeper(), "experiment: must be of the class Experiment itself"),
        (Experiment(coupling=Halved(rho=0.1)), "coupling: must be of the class Coupling itself"),
    ],
)
def test_a_record_that_would_lie_is_refused_before_anything_runs(e: Experiment, words: str, engine: str) -> None:
    with pytest.raises(UserError, match=words):
        check(e.model_copy(update={"engine": engine}))


# A part of every seam by its field: what it is, and its own fields.
CHOSEN = {
    "model": ["tests.own_parts:TwoTower", "--model.width", "4"],
    "task": ["rank,tests.own_parts:Huber*0.5", "--task.delta", "2"],
    "metrics": ["ndcg@10,tests.own_parts:Precision@3"],
    "transform": ["tests.own_parts:Curv", "--transform.weight", "50"],
    "descent.aggregator": ["tests.own_parts:Powered", "--descent.aggregator.power", "9"],
    "dataset": ["tests.own_parts:Grid", "--dataset.users", "14"],
    "coupling.ties": ['item_table: tests.own_parts:Near{"radius": 0.1} <= 0', "--method", "admm"],
    "coupling.kind": ["tests.own_parts:Shrunk", "--coupling.kind.radius", "2", "--coupling.rho", "0.001"],
}


@pytest.mark.parametrize("fields", [list(CHOSEN)[:5], list(CHOSEN)[5:]], ids=["client and server", "data and server"])
def test_parts_are_used_by_every_process_recorded_and_repeated(fields: list[str], tmp_path: Path) -> None:
    """Several at a time; each acts, since without it the numbers are others."""

    def options(*chosen: str) -> list[str]:
        words = [word for field in chosen for word in (f"--{field}", *CHOSEN[field])]
        return [*words, *(["--clients", "2"] if "dataset" in fields else [])]

    record = trained(tmp_path / "inline", *options(*fields), "--engine", "inline")
    trained(tmp_path / "process", *options(*fields), "--engine", "process", "--workers", "2")
    again = ["--config", str(tmp_path / "inline" / "experiment.json"), "--no-compare", "--quiet"]
    assert main([*again, "--out", str(tmp_path / "again")]) == 0
    for field in fields:
        others = [other for other in fields if other != field]
        trained(tmp_path / field, *options(*others), "--engine", "inline")
    files = {
        name: (tmp_path / name / "clients.csv").read_text().replace("process", "inline")
        for name in ("inline", "process", "again", *fields)
    }
    assert files["inline"] == files["process"] == files["again"]
    assert all(files[field] != files["inline"] for field in fields)
    uses = {part["use"]: part["sha256"] for part in record["components"]}
    for field in fields:
        (use,) = re.findall(r"tests\.own_parts:\w+", CHOSEN[field][0])
        assert use in json.dumps(record["experiment"][field.partition(".")[0]])
        assert len(uses.pop(use)) == 64
    assert not uses


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a distribution that gives short names to parts, two of which are ours."""
    names = {"towers": "TwoTower", "precision": "Precision", "grid": "Grid", "powered": "Powered", "shrunk": "Shrunk"}
    names |= {"mf": "Factors", "mean": "Powered"}
    lines = ["[fedrec.components]", *(f"{name} = tests.own_parts:{one}" for name, one in names.items())]
    (folder := tmp_path / "site" / "plugin-1.0.dist-info").mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path / "site")


def test_an_installed_part_has_a_short_name(plugin: None, capsys: pytest.CaptureFixture[str]) -> None:
    e = build({"model": "mf;shop-1=towers", "dataset": "grid", "metrics": "precision@3,mrr"})
    assert (e.model, e.dataset) == ("mf;shop-1=tests.own_parts:TwoTower", "tests.own_parts:Grid")
    assert e.metrics == ("tests.own_parts:Precision@3", "mrr")
    typed = parse([*SMALL, "--model", "towers", "--model.width", "4", "--descent.aggregator", "powered"]).experiment
    assert typed.model == 'tests.own_parts:TwoTower{"width": "4"}'
    assert typed.descent.aggregator == "tests.own_parts:Powered"
    given = build({"coupling": {"kind": {"use": "shrunk", "radius": 2}, "rho": 0.1}})
    assert given.coupling.kind == 'tests.own_parts:Shrunk{"radius": 2}'
    with pytest.raises(SystemExit):
        parse(["--model", "towers", "--help"])
    assert "--model.width" in capsys.readouterr().out
    assert "did you mean 'towers'" in refused("--model", "towres")


def test_a_name_of_ours_is_ours_and_asks_for_no_installed_parts(plugin: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrec.components.metadata.entry_points", None)
    assert parse([*SMALL, "--model", "mf", "--model.width", "4"]).experiment.model == "mf"
    assert build({"descent": {"aggregator": "mean"}}).descent.aggregator == "mean"


def test_a_part_that_has_changed_since_it_was_recorded_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path / "one", "--metrics", "ndcg@10,tests.own_parts:Precision@3", "--engine", "inline")
    path = tmp_path / "one" / "experiment.json"
    record = json.loads(path.read_text())
    record["components"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(record))
    command = parse(["--config", str(path)])
    assert any("tests.own_parts:Precision" in note and "another" in note for note in command.notes)


def test_a_module_that_computes_mf_is_mf() -> None:
    """h = p * q is mf without biases: the same losses and gradients, to rounding, for the same numbers."""
    from fedrec.tasks import parse_task
    from fedrec.training.losses import batch_loss
    from fedrec.training.recipe import Batch

    own = ModuleRecommender("mlp", 4, module=Factors())
    mf = Recommender("mf", 4)
    users, items = torch.arange(5).numpy(), torch.arange(7).numpy()
    params = own.init(0, users, items, {"rank": 0.0, "rating": 3.0})
    assert {name for name in params if name.startswith(("user_table", "item_table"))} == {
        "user_table.p.weight",
        "item_table.q.weight",
    }
    same = {"user_table": params["user_table.p.weight"], "item_table": params["item_table.q.weight"]}
    same |= {"user_bias": torch.zeros(5, 1), "item_bias": torch.zeros(7, 1)}
    for task in ("rank", "rating"):
        w = torch.cat([params[f"heads.{task}.weight"], torch.ones(2)])
        same |= {f"heads.{task}.weight": w, f"heads.{task}.bias": params[f"heads.{task}.bias"]}
    tasks = tuple(map(parse_task, ("rank", "rating")))
    ones = torch.ones(3)
    batch = Batch(
        torch.tensor([0, 1, 4]),
        torch.tensor([2, 6, 2]),
        torch.tensor([[0, 1], [3, 3], [5, 4]]),
        {"rank": (ones, ones), "rating": (ones, torch.tensor([1.0, 5.0, 3.0]))},
    )
    losses = [float(batch_loss(model, one, tasks, batch, 0.1)) for model, one in ((own, params), (mf, same))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    scores = [model.score_all(one, "rank", torch.tensor([3, 0])) for model, one in ((own, params), (mf, same))]
    torch.testing.assert_close(*scores)


def test_rows_of_a_table_start_alike_wherever_they_lie() -> None:
    own = ModuleRecommender("mlp", 4, module=TwoTower())
    few = own.init(3, torch.arange(2).numpy(), torch.tensor([5, 70]).numpy(), {"rank": 0.0})
    many = own.init(3, torch.arange(9).numpy(), torch.arange(100).numpy(), {"rank": 0.0})
    assert torch.equal(few["item_table.item.weight"], many["item_table.item.weight"][[5, 70]])
    assert torch.equal(few["body.mix.weight"], many["body.mix.weight"])
    assert {name: v.shape for name, v in few.items()} == {
        name: v.shape for name, v in own.shapes(2, 2, ["rank"]).items()
    }


def test_a_frame_is_read_as_its_file(tmp_path: Path) -> None:
    from fedrec.data import from_frame, table

    frame = Grid().load()
    frame.to_csv(tmp_path / "grid.csv", index=False)
    columns = "user=user,item=item,platform=platform,time=time"
    one, two = from_frame(frame, columns), table(tmp_path / "grid.csv", columns)
    pd.testing.assert_frame_equal(one.interactions, two.interactions)
    pd.testing.assert_frame_equal(one.items, two.items)


def test_one_part_for_all_is_shown_as_fields_and_others_as_text() -> None:
    assert as_json("mf") == "mf"
    assert as_json('m:C{"x": 1}') == {"use": "m:C", "x": 1}
    assert as_json('mf;shop=m:C{"x": 1}') == 'mf;shop=m:C{"x": 1}'
