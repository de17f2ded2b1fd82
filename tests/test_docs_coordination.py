"""docs/coordination.md: its commands run, its constraints keep their contract, its block prints what it says."""

import contextlib
import importlib
import io
import json
import re
import shlex
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from fedrec.components import read
from fedrec.federation.coordination.clauses import CLOSED, LINEAR, OF_LOSSES, SETS, read_clause
from fedrec.testing import TieContract
from simulations.run import main

TEXT = (Path(__file__).parent.parent / "docs" / "coordination.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = [shlex.split(line)[2:] for line in re.findall(r"```\n(fedrec run .*)\n```", TEXT)]
SMALL = shlex.split(
    "--clients 3 --rounds 2 --dim 4 --no-compare --quiet --engine inline --market.users 24 --market.items 30"
    " --market.impressions 20"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the files, in which the commands are given; their modules are forgotten afterwards."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS, ids=[one[one.index("--tie") + 1] for one in COMMANDS])
def test_a_command_runs_and_its_constraints_of_parameters_are_met(command: list[str], folder: Path) -> None:
    assert main([*SMALL, *command, "--out", "run"]) == 0
    ties = json.loads((folder / "run" / "experiment.json").read_text())["ties"]
    assert [row["tie"] for row in ties] == [text for word, text in pairwise(command) if word == "--tie"]
    assert all(row["verdict"] == "met" for row in ties if not row["tie"].startswith("losses"))


def test_its_constraints_keep_the_contract_and_fit_in_ten_lines(folder: Path) -> None:
    found = [read(read_clause(command[command.index("--tie") + 1]).own).use.split(":") for command in COMMANDS[1:]]
    assert {f"{module}.py" for module, _ in found} == FILES.keys()
    for module, name in found:
        part = getattr(importlib.import_module(module), name)
        suite = type("Suite", (TieContract,), {"component": part() if isinstance(part, type) else part})()
        for test in (name for name in dir(suite) if name.startswith("test_")):
            getattr(suite, test)()
        assert len([line for line in FILES[f"{module}.py"].splitlines() if line.strip()]) <= 10


def test_its_block_prints_what_it_says() -> None:
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if not block.startswith("# ")]
    (said,) = re.findall(r"```\n(\[1\..*?)```", TEXT, re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "docs/coordination.md", "exec"), {})
    assert out.getvalue().strip() == said.strip()


def test_its_table_has_every_form() -> None:
    forms = {*CLOSED, *SETS, LINEAR, *OF_LOSSES}
    assert {form for form in forms if re.search(rf"\n\|[^\n]*`[^`\n]*\b{form}\b[^`\n]*`", TEXT)} == forms
