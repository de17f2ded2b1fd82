"""docs/extending.md: its files and commands work as they stand, under every engine, and are recorded."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from simulations.run import main
from simulations.studies.__main__ import main as study

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = [shlex.split(line)[2:] for line in re.findall(r"```\n(fedrec run .*)\n```", TEXT)][1:]
# A command that another one begins with is run as a part of that, and three parts of training in one run.
TRAINING = [one for one in COMMANDS if one[0] in ("--transform", "--objective", "--drift.personal")]
APART = [one for one in COMMANDS if not any(other != one and other[: len(one)] == one for other in COMMANDS)]
RUN = [*(one for one in APART if one not in TRAINING), [word for one in TRAINING for word in one]]
STUDY = re.findall(r"```\nfedrec studies (.*)\n```", TEXT)
SMALL = ["--clients", "3", "--rounds", "2", "--no-compare", "--quiet"]
MARKET = ["--market.users", "24", "--market.items", "30", "--market.impressions", "20"]
LINES = {
    "recommender": 15,
    "data source": 10,
    "task": 15,
    "metric": 8,
    "aggregator": 10,
    "constraint": 10,
    "constraint by its value": 10,
    "local transform": 15,
    "objective term": 15,
    "weighting": 15,
    "companion": 10,
    "codec": 15,
    "tracker": 10,
    "attack": 15,
}
HERE = ("inline", "process", "batched")


def argued(command: list[str], engine: str, out: Path) -> list[str]:
    """Return the arguments of a small run of a command of the text."""
    small = [*SMALL, *MARKET]
    if "--dataset" in command:
        small = ["--clients", "2", *SMALL[2:]]
    return [*small, *command, "--engine", engine, "--out", str(out)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the files, in which the commands are given; their modules are forgotten afterwards."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return tmp_path


@pytest.mark.soak
@pytest.mark.parametrize("command", RUN, ids=["-".join(re.findall(r"(\w+):", " ".join(one))) for one in RUN])
def test_a_part_of_ones_own_runs_under_every_engine(
    command: list[str], folder: Path, tries: Callable[[int, int], int]
) -> None:
    engines = [*HERE, "ray", "superlink"][: tries(3, 5)]
    found = {}
    for engine in engines:
        given = argued(command, engine, folder / engine)
        if engine in HERE:
            assert main(given) == 0
        else:  # in a process of its own, which ends with what it started
            typed = [sys.executable, "-m", "simulations.command", "run", *given]
            here = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            done = subprocess.run(typed, env=here, capture_output=True, check=False)
            assert done.returncode == 0, done.stderr
        found[engine] = (folder / engine / "clients.csv").read_text()
        record = json.loads((folder / engine / "experiment.json").read_text())
        named = re.findall(r"\w+:\w+", " ".join(command))
        assert sorted(part["use"] for part in record["components"]) == sorted(named)
        assert all(len(part["sha256"]) == 64 for part in record["components"])
    assert len({found[engine] for engine in engines if engine != "batched"}) == 1
    assert (
        main(["--config", str(folder / "inline" / "experiment.json"), *SMALL[4:], "--out", str(folder / "again")]) == 0
    )
    assert (folder / "again" / "clients.csv").read_text() == found["inline"]


def test_the_text_has_an_example_of_every_seam_within_its_lines() -> None:
    titles = dict(re.findall(r"\n## An? ([\w ]+)\n.*?```python\n# \w+\.py\n(.*?)```", TEXT, re.DOTALL))
    assert titles.keys() == LINES.keys() and len(COMMANDS) + len(STUDY) == len(LINES)
    for title, code in titles.items():
        body = [line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]
        assert len(body) <= LINES[title], title


def test_the_attack_of_the_text_is_asked_beside_ours(folder: Path) -> None:
    (command,) = STUDY
    small = [*SMALL[:4], *MARKET, "--epsilon", "inf", "--seeds", "1", "--workers", "1"]
    assert study([*shlex.split(command), *small, "--out", "study"]) == 0
    found = pd.read_csv("study/results.csv")
    assert (found["name"] == 'movement:Movement{"power": 2}').sum() == (found["name"] == "leaning").sum() == 1


def test_the_writer_of_the_text_is_opened_once_fed_every_round_and_closed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SummaryWriter:
        """As that of TensorBoard."""

        def __init__(self, path: str) -> None:
            told.append(("open", path))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            told.append((name, float(value), step))

        def close(self) -> None:
            told.append(("closed",))

    told: list[tuple[object, ...]] = []
    fake = ModuleType("tensorboard")
    fake.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    assert main([*SMALL, *MARKET, "--engine", "inline", "--tracker", "board:Board", "--out", "run"]) == 0
    assert told[0] == ("open", "board") and told[-1] == ("closed",)
    rounds = pd.read_csv("run/rounds.csv")
    assert [one[1] for one in told[1:-1] if one[0] == "train_loss"] == rounds["train_loss"].tolist()
    assert len(told) == 2 + rounds.size


@pytest.mark.parametrize("page", ["architecture", "glossary"])
def test_what_a_page_points_to_is_there(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:fedrec|clients|server|simulations|tests)/[\w/]+(?:\.py)?)`", text)
    assert len(paths) >= 20 and [path for path in paths if not (ROOT / path).exists()] == []
    for path, name in re.findall(r"`((?:clients|server|fedrec)/[\w/]+\.py)` `([\w.]+)`", text):
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", (ROOT / path).read_text(encoding="utf-8")), (path, name)
    assert len(re.findall(r"^\d+\. ", text, re.MULTILINE)) <= 12
