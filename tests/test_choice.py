"""Which model is taken where nobody names one, and what is said of it."""

import shlex
from pathlib import Path
from typing import Any

import pytest

import fedrec
from fedrec.errors import UserError
from fedrec.experiment.choice import describe
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.holdings import dataset
from fedrec.experiment.records import CLOSED, NOT_CLOSED
from fedrec.metrics import Paired
from fedrec.report.standing import Standing, stands
from simulations.api import common_model, given
from simulations.baselines import closed_forms, comparisons, left_out
from simulations.check import check
from simulations.cli import Command, decide, overrides, parse
from simulations.closing import notes
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
    "--eval-every 2": "--eval-every 2 acts only with more than one round",
    "--lr 0.003": "--lr 0.003 acts only with steps along gradients",
    "--lr 0.01": "--lr 0.01 acts only with steps along gradients",
    "--model auto --local-epochs 3": "--local-epochs 3 acts only with steps along gradients",
    "--dim 8": "--dim 8 acts only with a model of ours with tables",
    "--method fedrep": "phases private,shared needs steps along gradients",
    "--method median": "robust.kind median needs every client's answer by itself",
    "--task rank-bce": "task rank-bce needs steps along gradients",
    "--task click": "slist needs the one task rank",
    "--task rank,like": "slist needs the one task rank",
    "--share user_table,user_bias": "slist needs its sums to be what is shared",
    "--content.kind hashed": "content.kind hashed needs an item side that reads more than ids",
    "--sequence.kind sasrec": "sequence.kind sasrec needs a user side",
    "--split new-items": "split new-items needs more of an item than who liked it",
    "--newcomers shop=10": "newcomers needs steps along gradients",
    "--privacy.unit user --privacy.epsilon 2": "privacy.unit user needs gradients by unit",
    "--codec.kind top-k": "codec.kind top-k needs steps along gradients",
    "--stack yes": "stack yes needs steps along gradients that make one program",
}


@pytest.mark.parametrize("line", BY_SUMS.strip().splitlines())
def test_where_nothing_needs_gradients_the_model_learns_by_sums(line: str) -> None:
    command = parse(shlex.split(line))
    assert command.experiment.model == "slist"
    assert "--quadratic" in line or (command.by_steps and command.by_steps.model == "mf")
    assert command.model.startswith("slist, learnt by sums in ")
    assert command.experiment.rounds == (4 if "--rounds" in line else 1)


@pytest.mark.parametrize(("line", "why"), BY_STEPS.items())
def test_what_needs_gradients_takes_matrix_factorisation_and_says_so(line: str, why: str) -> None:
    command = parse(shlex.split(line))
    assert command.experiment == parse([*without_auto(line), "--model", "mf"]).experiment
    assert command.model.startswith(f"mf, since {why}")
    if line not in ("--rounds 20", "--lr 0.01"):  # which a record cannot tell from what nobody gave
        assert describe(command.experiment) == command.model.replace("--", "").replace("local-", "local_").replace(
            "eval-", "eval_"
        )


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
        parse(["--quadratic.ridge", "7", "--lr", "1"])
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
    exact = ("local", "pooled", "fedavg", "fedper", "ditto", "apfl", "mr-mtl", "graph", "no-harm")
    assert e.by_sums == (name in exact)


def test_the_commands_of_the_readme_resolve() -> None:
    lines = [argv for page, argv in TOLD if page == "README.md" and "--config" not in argv and "..." not in argv]
    lines = [argv for argv in lines if argv[2:3] == ["simulations.run"]]
    found = [parse(argv[3:]).experiment for argv in lines]
    assert {e.model for e in found} > {"slist", "mf"}
    for e, argv in zip(found, lines, strict=True):
        assert "--model" in argv or e.model in ("mf", "slist")
        assert "--lr" not in argv or not e.by_sums


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


@pytest.mark.parametrize("line", ["", "--model slist", "--model auto --model.recent 1"])
def test_many_items_take_a_subspace_where_nobody_says_what_travels(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = parse([*["--clients", "3", "--market.users", "30", "--market.items", "40"], *line.split()])
    assert fitting(command) == command
    monkeypatch.setattr("simulations.check.MOST_ITEMS", 10)
    other = fitting(command)
    assert other.experiment.sums.active and other.experiment.rounds == 5
    assert other.experiment.quadratic == command.experiment.quadratic
    assert other.model.startswith("slist, learnt by sums in 5 rounds, in a subspace of at most 128 columns, since the")
    monkeypatch.setattr("simulations.check.MOST_ITEMS", 10**9)
    monkeypatch.setattr("simulations.check.MOST_BYTES", 10)  # which whoever names a model may have
    assert fitting(command).experiment.sums.active == (line != "--model slist")


@pytest.mark.parametrize("more", ["--sums.kind dense", "--model.sums dense", "--clients 2"])
def test_sums_that_somebody_asked_for_are_no_others_and_those_of_two_are_not_told(
    more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = parse(
        ["--clients", "3", "--market.users", "30", "--market.items", "40", "--model", "slist", *more.split()]
    )
    monkeypatch.setattr("simulations.check.MOST_ITEMS", 10)
    assert fitting(command) == command
    monkeypatch.setattr("simulations.check.BYTES", 10_000)
    with pytest.raises(UserError, match=r"^sums\.kind: must be subspace of 40 items, .*found dense$"):
        check(command.experiment)


def test_python_chooses_too_and_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fedrec.run(**SMALL, out=tmp_path / "run", compare=False, quiet=False)
    assert run.experiment.model == "slist" and run.experiment.rounds == 1
    assert capsys.readouterr().out.startswith("model: slist, learnt by sums in one round (mf where something needs")
    page = run.report_path.read_text()
    assert "Model: slist, learnt by sums in one round" in page
    assert "<dt>Histories</dt><dd>at the test validation items too</dd>" in page


def standing(**values: float) -> Standing:
    """Return the standing of a run with NDCG@10 of .06 among baselines, each with an interval of .02."""
    gaps = {name: Paired(0.06 - value, 0.05 - value, 0.07 - value, 9) for name, value in values.items()}
    return Standing("All users", "rank", "ndcg@10", 0.06, values, gaps, False)


def test_a_closed_form_that_beats_a_model_is_named_as_the_strongest_and_first() -> None:
    beaten = standing(local=0.05, pooled=0.06, **{"slist-local": 0.08, "slist-pooled": 0.11, "ease-pooled": 0.07})
    assert "the strongest baseline is all clients together with the closed form slist, .1100 (" in stands(beaten, False)
    assert "Closed forms: each client alone with the closed form slist .0800." in stands(beaten, False)
    assert beaten.beaten == (
        "The model is the weaker part: all clients together with the closed form slist reaches .1100, this run .0600"
    )
    near, below = standing(local=0.05, **{"slist-pooled": 0.065}), standing(local=0.05, **{"slist-pooled": 0.03})
    assert near.strongest == "slist-pooled" and not near.beaten  # the interval says nothing
    assert below.strongest == "local" and not below.beaten and "Closed forms:" in stands(below, False)


def test_closed_forms_stand_beside_a_model_by_gradients_that_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {f"{kind}-{method}" for kind in ("slist",) for method in ("local", "pooled")}
    usual = decide(given(SMALL | {"lr": 0.02})).experiment
    made = closed_forms(usual)
    assert not comparisons(usual)[1]
    assert made.keys() == names and all(e.by_sums and e.seed == usual.seed for e in made.values())
    assert [made[name].pool for name in ("slist-local", "slist-pooled")] == [False, True]
    assert {f"{CLOSED}/{name}" for name in names} < comparisons(usual)[0].keys()
    assert closed_forms(decide(given(SMALL | {"task": "rank,click"})).experiment).keys() == names
    for more in ({"model": "slist"}, {"task": "click"}, {"split": "new-items"}):
        assert not closed_forms(decide(given(SMALL | more)).experiment)
    monkeypatch.setattr("simulations.baselines.CHEAP", 1.5 * len(dataset(usual).items) ** 3)
    assert closed_forms(usual).keys() == {"slist-pooled"}
    assert comparisons(usual)[1][NOT_CLOSED].startswith("slist by --method local is left out for its cost, cl")
    monkeypatch.setattr("simulations.baselines.CHEAP", 0.5 * len(dataset(usual).items) ** 3)
    assert "slist by --method local and --method pooled is left out" in comparisons(usual)[1][NOT_CLOSED]
    assert not left_out(decide(given(SMALL | {"model": "slist"})).experiment)


def test_a_run_by_gradients_has_its_closed_forms_and_names_them(tmp_path: Path) -> None:
    run = fedrec.run(**SMALL, rounds=1, local_epochs=1, out=tmp_path / "run")
    assert {path.name for path in (run.path / "baselines" / CLOSED).iterdir()} == run.read.closed.keys()
    assert len(run.read.closed) == 2
    page = run.report_path.read_text()
    assert "the closed form slist" in page and "Model: mf, since local_epochs 1 acts only with" in page
    assert "A closed form may be stronger" not in page
    (run.path / "baselines" / NOT_CLOSED).write_text("slist is left out")
    assert any("A closed form may be stronger" in note and "slist is left out." in note for note in notes(run.path))
    assert "shared: item_table, item_bias" in page and "<dt>Histories</dt>" not in page
