"""Constraints of named blocks in whole runs: by every engine, again, in words, and refused where they are none."""

import io
import json
import re
import shlex
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import fedrec
from fedrec.components import text_of
from fedrec.experiment.config import build
from fedrec.experiment.holdings import clients_data
from fedrec.report.constraints import by_round
from fedrec.report.page import write_report
from simulations.engines import launch
from simulations.run import close, main
from tests.helpers import experiment, same
from tests.own_parts import Near
from tests.test_resume import Killed, until

OWN = ("item_table+item_bias: tests.own_parts:even", 'item_table: tests.own_parts:Near{"radius": 0.1} <= 0')
MARKET = {"users": 30, "items": 40, "impressions": 30}
SMALL: dict[str, Any] = {"method": "admm", "clients": 3, "rounds": 2, "dim": 4, "market": MARKET}
FLAGS = [word for name, n in MARKET.items() for word in (f"--market.{name}", str(n))]
FLAGS += shlex.split("--method admm --clients 3 --rounds 2 --dim 4 --no-compare --quiet")
COLUMNS = ["tie1_residual", "tie1_multiplier", "tie2_residual", "tie2_multiplier", "train_loss"]
FLAT = {"users": 60, "items": 40, "impressions": 30}


def numbers(folder: Path) -> str:
    """Return the metrics of a run."""
    return re.sub("process|batched", "inline", (folder / "clients.csv").read_text())


def record(folder: Path) -> dict[str, Any]:
    """Return the record of a run."""
    found: dict[str, Any] = json.loads((folder / "experiment.json").read_text())
    return found


def test_a_constraint_of_ones_own_is_one_value_in_every_way_and_on_every_engine(tmp_path: Path) -> None:
    """From Python and typed; recorded with its file, and repeated; in processes to the bit, stacked to 1e-5."""
    ties = ["item_table+item_bias: tests.own_parts:even", f"item_table: {text_of(Near(0.1))} <= 0"]
    run = fedrec.run(**SMALL, coupling={"ties": ties}, engine="inline", out=tmp_path / "inline", compare=False)
    typed = [*FLAGS, *(word for tie in OWN for word in ("--tie", tie))]
    for engine in ("process", "batched"):
        assert main([*typed, "--engine", engine, "--out", str(tmp_path / engine)]) == 0
    again = ["--config", str(tmp_path / "inline" / "experiment.json"), "--no-compare", "--quiet"]
    assert main([*again, "--out", str(tmp_path / "again")]) == 0
    assert numbers(tmp_path / "inline") == numbers(tmp_path / "process") == numbers(tmp_path / "again")
    inline, process, batched = (pd.read_csv(tmp_path / n / "rounds.csv") for n in ("inline", "process", "batched"))
    assert inline[COLUMNS].equals(process[COLUMNS])
    np.testing.assert_allclose(inline[COLUMNS], batched[COLUMNS], rtol=1e-5, atol=1e-5)
    told = record(tmp_path / "inline")
    assert sorted(part["use"] for part in told["components"]) == ["tests.own_parts:Near", "tests.own_parts:even"]
    assert all(len(part["sha256"]) == 64 for part in told["components"])
    assert build(told["experiment"]).coupling.ties == "; ".join(OWN)
    assert run.ties["tie"].tolist() == list(OWN) and run.ties["verdict"].tolist() == ["met", "met"]
    assert bool((run.ties["residual"] <= 1e-6).all()) and run.ties["multiplier"].abs().min() > 0
    held = {data.name: data.items for data in clients_data(run.experiment)}
    common, sizes = reduce(np.intersect1d, held.values()), []
    for name in ("films", "shop"):
        places, params = np.isin(held[name], common), run.model(name).params
        sizes.append(sum(float(params[n][places].double().square().sum()) for n in ("item_table", "item_bias")))
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-5)


@pytest.mark.parametrize("ties", [OWN, ("losses: parity(0.01)", "item_table: films = 2*shop")])
def test_a_run_that_was_broken_off_goes_on_to_the_bit(ties: tuple[str, ...], tmp_path: Path) -> None:
    coupling = {"rho": 1e-3, "duals": True, "ties": "; ".join(ties)}
    e = experiment("admm", rounds=4, market=MARKET, coupling=coupling)
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    launch(e, tmp_path / "whole")
    for number in (2, 4):
        with pytest.raises(Killed):
            launch(e, tmp_path / "broken", on_round=until(number), every=1)
    launch(e, tmp_path / "broken", every=1)
    same(tmp_path / "whole", tmp_path / "broken")
    assert record(tmp_path / "whole")["ties"] == record(tmp_path / "broken")["ties"]


def test_of_rounds_that_break_the_ties_of_losses_the_one_that_does_so_least_is_tested(tmp_path: Path) -> None:
    run = fedrec.run(
        **{**SMALL, "rounds": 5, "market": FLAT},
        coupling={"ties": "losses: at-most(0.3)"},
        engine="inline",
        out=tmp_path / "run",
        compare=False,
    )
    rounds = run.rounds
    least = rounds["tie1_residual"].min()
    selected = rounds.set_index("round").loc[run.read.record["selected_round"]]
    assert 0 < least == selected["tie1_residual"] < rounds["tie1_residual"].max()
    assert run.ties["residual"].tolist() == [pytest.approx(least)]


def test_what_losses_miss_is_drawn_of_the_rounds_that_were_validated(tmp_path: Path) -> None:
    run = fedrec.run(
        **{**SMALL, "rounds": 4, "eval_every": 2},
        coupling={"ties": ["item_table: consensus", "losses: at-most(0.01)"]},
        engine="inline",
        out=tmp_path / "run",
        compare=False,
    )
    ((text, residual, _),) = by_round(run.read)
    assert text == "losses: at-most(0.01)"
    assert residual.notna().tolist() == [False, True, False, True]
    assert residual[3] == pytest.approx(run.ties["residual"][1])
    assert run.rounds["violation"].notna().tolist() == [False, True, False, True]


def shown(folder: Path) -> list[str]:
    """Return what the terminal shows at the end of a run, at 80 columns."""
    console = Console(markup=False, emoji=False, width=80, record=True, file=io.StringIO())
    close(folder, console, quiet=False)
    return console.export_text().splitlines()


@pytest.mark.parametrize(
    ("ties", "verdict", "broken"),
    [
        (["item_table: films = shop", "item_table: films = shop + 1"], "infeasible", "(by .5)"),
        (["losses: at-most(0.001)", "item_table: ball(1)"], "violated", "losses: at-most(0.001) (by"),
        (["item_bias: consensus", "item_table: ball(100)"], "met", ""),
    ],
)
def test_what_does_not_hold_is_said_first_with_by_how_much(
    ties: list[str], verdict: str, broken: str, tmp_path: Path
) -> None:
    run = fedrec.run(**SMALL, coupling={"ties": ties}, engine="inline", out=tmp_path / "run", compare=False)
    assert run.ties["verdict"][0] == verdict
    page, lines = write_report(run.path).read_text(), shown(run.path)
    assert all(len(line.rstrip()) <= 80 for line in lines if not line.startswith("report:"))
    text = " ".join(line.strip() for line in lines)
    assert all(tie in text and tie in page for tie in ties)
    assert page.count(f'<span class="tag {"up" if verdict == "met" else "down"}">{verdict}</span>') >= 1
    assert "the price of a constraint" in text and "the price of a constraint" in page
    title = f"{verdict.capitalize()} constraints"
    if verdict == "met":
        assert " constraints: " not in text and "Every constraint is met." in page
        return
    if verdict == "violated":
        assert len(run.ties["weights"][0]) == 3 and min(run.ties["weights"][0]) > 0
        assert re.search(r"<small>films \.?\d.*\nnews .*\nshop .*</small>", page)
    assert f"{title}: " in text and broken in text
    (first,) = re.findall(r'<h2 id="warnings">.*?<strong>(.*?)</strong>', page, re.DOTALL)[:1]
    assert first == title and broken in page


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--tie 'item_table: fims = shop'", "must be one of films, news, shop, found 'fims'; did you mean 'films'?"),
        ("--tie 'losses: fims <= shop'", "did you mean 'films'?"),
        ("--tie 'itm_table: films = shop'", "must name what is shared, found 'itm_table' of item_bias, item_table"),
        ("--tie 'item_table: sum(1)' --tie 'item_table: graph(0.1)'", "item_table may be tied by one closed form"),
        ("--tie 'item_table: consensus' --tie 'item_table: consensus'", "may be given once, found twice"),
        ("--tie 'item_table: bal(3)'", "did you mean 'ball'?"),
        ("--tie 'item_table: os:system'", "must be a component"),
        ("--tie 'item_table: tests.own_parts:Nigh'", "must have the class Nigh"),
        ('--tie \'item_table: tests.own_parts:Near{"radius": "wide"}\'', "radius: input should be a valid number"),
        ('--tie \'item_table: tests.own_parts:Lapsing{"how": "nan"}\'', "must be finite at what the clients sent"),
        ('--tie \'item_table: tests.own_parts:Lapsing{"how": "longer"}\'', "must be 1 numbers whatever z is, found 2"),
        ("--method fedper --tie 'item_table: ball(1)'", "needs a proximal tie, coupling.rho above 0"),
        ("--method mr-mtl --tie 'item_table: ball(1)'", "needs duals, which hold what a constraint costs"),
        ("--method local --tie 'item_table: ball(1)'", "needs something that clients exchange"),
        ("--pool --tie 'item_table: ball(1)'", "but one client has the data of all, found pool True"),
        ("--model slist --tie 'item_table: ball(1)'", "or --model mf"),
        ("--secure.active --weights uniform --tie 'item_table: ball(1)'", "the server sees no more than a sum"),
        ("--newcomers shop=1 --tie 'item_table: ball(1)'", "but newcomers send nothing"),
        ("--coupling.step 2 --tie 'item_table: ball(1)'", "coupling.step: acts only with a tie of losses"),
        ("--method no-harm --budget.margin 0.1 --tie 'losses: parity(1)'", "budget: must be a tie beside ties of"),
        ("--method agreement --volunteers 6 --tie 'item_table: ball(1)'", "needs duals"),
    ],
)
def test_what_is_no_tie_of_a_run_is_refused_in_one_line(
    options: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*FLAGS, "--engine", "inline", "--rounds", "12", "--out", str(tmp_path / "run"), *shlex.split(options)]
    assert main(flags) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1
    assert not (tmp_path / "run").exists() or "Lapsing" in options  # which fits until it is asked again


def test_ties_travel_beside_a_codec_and_the_noise_of_users(tmp_path: Path) -> None:
    """What is compressed or noisy is tied like any other; losses may not be told of what is promised."""
    cases: dict[str, dict[str, Any]] = {
        "codec": {"codec": {"kind": "top-k"}, "coupling": {"ties": ["losses: parity(0.1)", "item_table: ball(1)"]}},
        "noise": {
            "market": {"users": 12, "items": 20, "impressions": 8},
            "weights": "uniform",
            "privacy": {"unit": "user", "noise": 1.0, "replay": True},
            "coupling": {"ties": ["item_table: films = 2*shop"]},
        },
    }
    for name, fields in cases.items():
        run = fedrec.run(**{**SMALL, "rounds": 1, **fields}, engine="inline", out=tmp_path / name, compare=False)
        assert run.ties["verdict"].iloc[-1] == "met"
        assert run.ties["residual"].iloc[-1] <= 1e-6
