"""What a promise sets, what its cost is made of, and the private path without clip and noise."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

from fedrec.errors import UserError
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.privacy import NOT_PRIVATE
from fedrec.experiment.records import CLIPPED, PLAIN, UNCLIPPED
from simulations.cli import overrides, parse
from simulations.defaults import DEFAULTS
from simulations.options import flatten
from simulations.promises import stages, without_promise
from simulations.run import main
from simulations.studies import harness, promise
from simulations.studies.__main__ import main as studies
from tests.helpers import Here

SMALL = ["--market.users", "40", "--market.items", "60", "--clients", "3", "--rounds", "2", "--dim", "4"]
SMALL += ["--engine", "inline"]
PROMISE = ["--privacy.unit", "user", "--privacy.epsilon", "4"]


def fields(*argv: str) -> dict[str, object]:
    """Return the fields of a command's experiment by dotted path."""
    return flatten(parse(argv).experiment.model_dump())


@pytest.mark.parametrize("unit", ["user", "interaction", "client"])
def test_a_promise_sets_what_is_not_given(unit: str, tmp_path: Path) -> None:
    argv = ["--privacy.unit", unit, "--privacy.epsilon", "4"]
    usual, found = flatten(Experiment().model_dump()), fields(*argv)
    own = {"privacy.unit": unit, "privacy.epsilon": "4"}
    assert found == {**usual, **DEFAULTS[unit], **own}
    given = {"lr": 0.123, "local_epochs": 7}
    assert fields(*argv, "--lr", "0.123", "--local-epochs", "7") == {**found, **given}
    (tmp_path / "c.json").write_text(json.dumps(given))
    assert fields(*argv, "--config", str(tmp_path / "c.json")) == {**found, **given}
    assert flatten(overrides({"privacy.unit": unit, "privacy.epsilon": "4"}).model_dump()) == found
    # A record has every field: it is repeated as it is.
    record = {"experiment": parse(argv).experiment.model_dump(mode="json")}
    (tmp_path / "r.json").write_text(json.dumps(record))
    assert fields("--config", str(tmp_path / "r.json")) == found
    assert fields("--model", "mf") == usual


def test_python_has_no_hidden_defaults() -> None:
    with pytest.raises(
        UserError, match=r"privacy.unit: user needs weights that tell nothing .*\(add --weights uniform\)"
    ):
        build({"privacy": {"unit": "user", "epsilon": "4"}})
    e = build({"privacy": {"unit": "user", "epsilon": "4"}, "weights": "uniform"})
    assert e == Experiment().model_copy(update={"weights": "uniform", "privacy": e.privacy})


def test_what_is_compared_with_has_no_optimiser_that_was_chosen_for_noise() -> None:
    usual = flatten(Experiment().model_dump())
    e = parse([*PROMISE, "--dim", "4"]).experiment
    assert flatten(build(without_promise(e)).model_dump()) == {**usual, "dim": 4}
    assert build(without_promise(parse([*PROMISE, "--lr", "0.5"]).experiment)).lr == 0.5
    assert build(without_promise(Experiment())) == Experiment()


def test_an_infinite_clip_is_for_comparison_alone() -> None:
    with pytest.raises(UserError, match=r"clip: must be finite where there is noise, found inf"):
        parse([*PROMISE, "--privacy.clip", "inf"])
    with pytest.raises(UserError, match=r"privacy\.clip: "):
        parse(["--privacy.unit", "user", "--privacy.noise", "0", "--privacy.clip", "nan"])
    e = parse(["--privacy.unit", "user", "--privacy.noise", "0", "--privacy.clip", "inf"]).experiment
    assert e.privacy.open and math.isinf(e.privacy.clip)
    assert build(json.loads(json.dumps(e.model_dump(mode="json"), allow_nan=False))) == e


@pytest.mark.parametrize("unit", ["user", "interaction", "client"])
def test_a_run_without_noise_is_stamped(unit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*SMALL, "--privacy.unit", unit, "--privacy.noise", "0", "--privacy.clip", "inf", "--no-compare"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    shown, page = capsys.readouterr().out, (tmp_path / "run" / "report.html").read_text()
    assert shown.splitlines()[1].startswith("defaults under a promise: --weights uniform")
    assert shown.count(NOT_PRIVATE) >= 2 and page.count(NOT_PRIVATE) > 5
    tensors = load_file(tmp_path / "run" / "model" / "shared.safetensors")
    assert all(bool(value.isfinite().all()) for value in tensors.values())


@pytest.mark.parametrize("unit", ["user", "client"])
def test_the_cost_of_a_promise_is_parted(unit: str, tmp_path: Path) -> None:
    """The steps from one run to the next add up; what is not private pays from no ledger."""
    argv = [*SMALL, "--privacy.unit", unit, "--privacy.epsilon", "4", "--privacy.ledger", str(tmp_path / "ledger")]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    table = pd.read_csv(tmp_path / "run" / "price.csv")
    assert set(table["client"]) == {"films", "news", "shop", "Mean of the clients"}
    total = table["plain"] + table["training"] + table["clipping"] + table["noise"]
    assert (total - table["private"]).abs().max() < 1e-9
    for name, column in ((PLAIN, "plain"), (UNCLIPPED, "unclipped"), (CLIPPED, "clipped"), ("", "private")):
        folder = tmp_path / "run" / "baselines" / name if name else tmp_path / "run"
        rows = pd.read_csv(folder / "clients.csv").query("split == 'test'").set_index(["client", "metric"])["value"]
        own = table[table["client"] != "Mean of the clients"].set_index(["client", "metric"])[column]
        assert (rows.reindex(own.index) - own).abs().max() < 1e-12, name
        assert (table.set_index(["client", "metric"])[column]["Mean of the clients"] - own.groupby("metric").mean()
                ).abs().max() < 1e-12  # fmt: skip
    steps = ("training", "clipping", "noise")
    assert table[[f"{step}_low" for step in steps]].notna().all().all()
    page = (tmp_path / "run" / "report.html").read_text()
    section = re.sub(
        "<[^>]*>", " ", page[page.index("What the promise costs") : page.index("Mean of the clients<small>")]
    )
    assert section.count(NOT_PRIVATE) == 4 and "nan" not in section
    # Two rounds of one step for each party, and nothing of the three runs beside it.
    files = sorted((tmp_path / "ledger").glob("*.jsonl"))
    assert [path.stem for path in files] == (["films", "news", "shop"] if unit == "user" else ["server"])
    assert all(len(path.read_text().splitlines()) == 1 + 2 for path in files)


def test_without_comparisons_nothing_is_parted(tmp_path: Path) -> None:
    assert main([*SMALL, *PROMISE, "--no-compare", "--out", str(tmp_path / "run")]) == 0
    assert not (tmp_path / "run" / "price.csv").exists() and not (tmp_path / "run" / "baselines" / PLAIN).exists()
    assert "What the promise costs" not in (tmp_path / "run" / "report.html").read_text()


def test_the_stages_are_the_run_without_clip_or_noise() -> None:
    e = parse([*SMALL, *PROMISE, "--privacy.clip", "0.5", "--privacy.ledger", "books"]).experiment
    found = stages(e)
    assert not found[PLAIN].privacy.active and found[PLAIN] == build(without_promise(e))
    for name, clip in ((UNCLIPPED, math.inf), (CLIPPED, 0.5)):
        bare = found[name].privacy
        assert (bare.noise, bare.clip, bare.ledger, bare.epsilon) == (0.0, clip, None, "")
        assert found[name].model_copy(update={"privacy": e.privacy}) == e
    assert stages(found[CLIPPED]) == {} == stages(Experiment())


def test_the_study_parts_the_cost_over_seeds_and_chooses_by_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "ProcessPoolExecutor", Here)
    assert studies(["promise", "--seeds", "2", "--out", str(tmp_path / "parts"), *SMALL]) == 0
    results, rows = (pd.read_csv(tmp_path / "parts" / f"{name}.csv") for name in ("results", "summary"))
    assert set(results["name"]) == {PLAIN, "same training", UNCLIPPED, CLIPPED, "private"}
    assert list(rows["step"]) == list(promise.STEPS)
    means = results.groupby("name")["test"].mean()
    for row, (after, before) in zip(rows.to_dict("records"), promise.STEPS.values(), strict=True):
        assert row["change"] == pytest.approx(means[after] - means[before])
    page = (tmp_path / "parts" / "report.html").read_text()
    assert NOT_PRIVATE in page and "2 paired seeds" in page and "nan" not in capsys.readouterr().out
    grid = "lr=0.1,1|lr=0.1;l2=0.5"
    argv = ["promise", "--choose", "--seeds", "1", "--grid", grid, "--out", str(tmp_path / "choice")]
    assert studies([*argv, *SMALL]) == 0
    results, rows = (pd.read_csv(tmp_path / "choice" / f"{name}.csv") for name in ("results", "summary"))
    assert set(results["seed"]) == {100} and list(rows["validation"]) == sorted(results["validation"], reverse=True)
    assert set(rows["options"]) == {"--lr 0.1", "--lr 1", "--lr 0.1 --l2 0.5"}


@pytest.mark.parametrize("market", [("--market.users", "80", "--market.items", "120", "--rounds", "10"), ()])
@pytest.mark.soak
def test_without_clip_and_noise_the_private_path_is_no_worse_than_the_plain_one(
    market: tuple[str, ...], tries: Callable[[int, int], int], tmp_path: Path
) -> None:
    """Means over paired seeds lie within 5%. With one step for each pass, at the rate 1, it is .87 in the small market.

    As a step moves a user's own row once where a plain batch's rows of that user move it in each, it need not be equal.
    """
    every = promise.arms([*promise.USUAL.split(), *market], tries(6, 6) if market else tries(0, 10))
    runs = [run for run in every if run.labels["name"] in (PLAIN, promise.SAME)]
    rows = harness.carry_out(promise.STUDY, 0, tmp_path, runs)
    means = rows.groupby("name")["test"].mean()
    assert means[promise.SAME] == pytest.approx(means[PLAIN], rel=0.05)
