"""Which model is taken where nobody names one, and what is said of it."""

import shlex
from pathlib import Path
from typing import Any

import pytest

import fedrec
from fedrec.errors import UserError
from fedrec.experiment.choice import describe
from fedrec.experiment.config import Experiment, build
from simulations.api import common_model, given
from simulations.cli import Command, decide, overrides, parse
from simulations.methods import METHODS
from simulations.run import fitting
from tests.test_front import TOLD

SMALL: dict[str, Any] = {"clients": 2, "engine": "inline", "market": {"users": 30, "items": 40, "impressions": 15}}
BY_SUMS = """
--clients 5
--model auto
--method fedavg
--method local
--method pooled
--task rank-bce
--secure.active
--participation 0.5 --rounds 4
--split new-users
--candidates 99
--market.similarity 0
--partition users --skew 0.5 --clients 8
--quadratic.ridge 3
"""
BY_STEPS = {
    "--rounds 30": "--rounds 30 acts only with steps along gradients",
    "--rounds 20": "--rounds 20 acts only with steps along gradients",
    "--lr 0.003": "--lr 0.003 acts only with steps along gradients",
    "--lr 0.01": "--lr 0.01 acts only with steps along gradients",
    "--model auto --local-epochs 3": "--local-epochs 3 acts only with steps along gradients",
    "--dim 8": "dim acts only with a model of ours with tables",
    "--method fedrep": "phases private,shared needs steps along gradients",
    "--method median": "robust.kind median needs every client's answer by itself",
    "--task click": "slist needs the one task rank",
    "--task rank,like": "slist needs the one task rank",
    "--share user_table,user_bias": "share acts only with a model that has user_table and user_bias",
    "--content.kind hashed": "content.kind hashed needs an item side that reads more than ids",
    "--sequence.kind sasrec": "sequence.kind sasrec needs a user side",
    "--split new-items": "split new-items needs more of an item than who liked it",
    "--newcomers shop=10": "newcomers needs steps along gradients",
    "--privacy.unit user --privacy.epsilon 2": "privacy.unit user needs gradients by unit",
    "--codec.kind top-k": "codec.kind top-k needs changes along gradients",
    "--stack yes": "stack yes needs steps along gradients that make one program",
}


@pytest.mark.parametrize("line", BY_SUMS.strip().splitlines())
def test_where_nothing_needs_gradients_the_model_learns_by_sums(line: str) -> None:
    command = parse(shlex.split(line))
    assert command.experiment.model == "slist" and command.by_steps and command.by_steps.model == "mf"
    assert command.model.startswith("slist, learnt by sums in ")
    assert command.experiment.rounds == (4 if "--rounds" in line else 1)


@pytest.mark.parametrize(("line", "why"), BY_STEPS.items())
def test_what_needs_gradients_takes_matrix_factorisation_and_says_so(line: str, why: str) -> None:
    command = parse(shlex.split(line))
    assert command.experiment == parse([*without_auto(line), "--model", "mf"]).experiment
    assert command.model.startswith(f"mf, since {why}")
    if line not in ("--rounds 20", "--lr 0.01"):  # which a record cannot tell from what nobody gave
        assert describe(command.experiment) == command.model.replace("--", "").replace("local-", "local_")


def without_auto(line: str) -> list[str]:
    """Return the options of a line without that of its model."""
    return shlex.split(line.replace("--model auto", ""))


def test_a_model_that_is_named_stands() -> None:
    assert parse(["--model", "mf"]).experiment == Experiment()
    assert [parse(["--model", name]).model for name in ("mf", "ease", "mlp")] == ["", "", ""]
    assert build({}).model == "mf"
    with pytest.raises(UserError, match="model"):
        build({"model": "auto"})
    with pytest.raises(UserError, match="acts only with a model that learns by steps"):
        parse(["--model", "slist", "--lr", "0.003"])


def test_a_record_keeps_its_model_and_a_flag_may_ask_for_another(tmp_path: Path) -> None:
    for name in ("mf", "slist"):
        path = tmp_path / f"{name}.json"
        path.write_text(build({"model": name}).model_dump_json())
        assert parse(["--config", str(path)]).experiment.model == name
    path = tmp_path / "some.toml"
    path.write_text("model = 'mlp'\n[market]\nusers = 7")
    assert parse(["--config", str(path), "--model", "auto"]).experiment.model == "slist"


def test_what_neither_model_takes_is_refused_in_the_words_of_the_usual_one() -> None:
    with pytest.raises(UserError, match=r"quadratic.ridge: acts only with a model that learns by sums"):
        parse(["--quadratic.ridge", "3", "--lr", "1"])
    with pytest.raises(UserError, match="volunteers"):
        parse(["--method", "agreement"])


def test_flower_chooses_as_the_command_line_does() -> None:
    assert overrides({"rounds": 20, "model": "auto", "lr": 0.01}) == parse([]).experiment
    assert overrides({"rounds": 20, "model": "mf"}) == parse(["--model", "mf"]).experiment
    assert overrides({"rounds": 30}).model == "mf"


@pytest.mark.parametrize(
    ("arms", "model"),
    [
        ([{"method": "local"}, {"method": "fedper"}], "slist"),
        ([{"method": "local"}, {"method": "fedrep"}], "mf"),
        ([{"method": "local"}, {"model": "mlp"}], "mf"),
    ],
)
def test_arms_that_are_compared_have_one_model(arms: list[dict[str, str]], model: str) -> None:
    assert common_model({}, arms)["model"].value == model
    assert not common_model(given({"model": "ease"}), arms)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_model_that_it_can_be_run_with(name: str) -> None:
    more = {"agreement": "--volunteers 60", "scaffold": "--optimiser sgd", "pfedrec": "--model item"}.get(name, "")
    e = parse(["--method", name, *more.split()]).experiment
    assert e.by_sums == (name in ("local", "pooled", "fedavg", "fedper"))


def test_the_commands_of_the_readme_resolve() -> None:
    lines = [argv for page, argv in TOLD if page == "README.md" and "--config" not in argv and "..." not in argv]
    found = [parse(argv[3:]).experiment for argv in lines if argv[2:3] == ["simulations.run"]]
    assert {e.model for e in found} > {"slist", "mf"}
    assert all(e.model in ("mf", "slist") or "--model" in " ".join(argv) for e, argv in zip(found, lines, strict=False))


def test_sums_that_the_data_make_too_large_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    command = Command(
        *decide(given({"clients": 2}))[:1], by_steps=decide(given({"clients": 2})).by_steps, model="slist"
    )
    assert fitting(command).experiment.model == "slist"
    for limit, value in (("MOST_ITEMS", 10), ("MOST_BYTES", 1e6)):
        with monkeypatch.context() as patch:
            patch.setattr(f"simulations.check.{limit}", value)
            other = fitting(command)
            assert other.experiment == command.by_steps and "mf, since the sums of 2 clients over" in other.model


def test_python_chooses_too_and_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fedrec.run(**SMALL, out=tmp_path / "run", compare=False, quiet=False)
    assert run.experiment.model == "slist" and run.experiment.rounds == 1
    assert capsys.readouterr().out.startswith("model: slist, learnt by sums in one round (mf where something needs")
    assert "Model: slist, learnt by sums in one round" in run.report_path.read_text()
