"""The runs that an experiment is compared with: by the engine that was asked for, with the result of every engine."""

from collections.abc import Sequence
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest

from clients.node import Node
from fedrec.experiment.config import Experiment
from simulations import engines
from simulations.beside import Comparisons, apart, by_one_process, worthwhile
from simulations.engines.inline import InlineGrid
from simulations.run import main
from tests.helpers import experiment, same
from tests.test_batched import near

SMALL = "--market.users 20 --market.items 60 --market.impressions 10 --clients 3 --rounds 2 --dim 4 --quiet"


def compared(home: Path, engine: str) -> Path:
    """Return a run with its baselines."""
    assert main([*SMALL.split(), "--engine", *engine.split(), "--out", str(home)]) == 0
    return home


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is trained one client after the other in one process."""
    return compared(tmp_path_factory.mktemp("inline") / "run", "inline")


def test_worker_processes_train_the_baselines_to_the_bit_also_those_that_died_between_two(
    inline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch, begin = engines.launch, InlineGrid.__init__
    pids: dict[str, list[int | None]] = {}

    def started(e: Experiment, home: Path, **more: Any) -> None:
        if e.method == "pooled" and not e.by_sums:
            more["idle"][0][0].kill()
        launch(e, home, **more)
        if not e.by_sums:  # closed forms are cheaper than a message to a worker
            pids[e.method] = [worker.pid for worker, _ in more["idle"]]

    def here(grid: InlineGrid, nodes: Sequence[Node], *more: bool) -> None:
        if not all(party.client.experiment.by_sums for node in nodes for party in node.parties.values()):
            pytest.fail("a client was trained in the process of the server")
        begin(grid, nodes, *more)

    monkeypatch.setattr(engines, "launch", started)
    monkeypatch.setattr(InlineGrid, "__init__", here)
    same(inline, compared(tmp_path / "process", "process --workers 2"), but=("engine", "workers"))
    assert pids["fedper"] == pids["local"] and len(pids["local"]) == 2
    assert pids["local"][1] in pids["pooled"] and pids["local"][0] not in pids["pooled"]
    assert capsys.readouterr().err == "a worker died (exit code -9) and was started again\n"
    assert not active_children()


def test_the_baselines_of_a_batched_run_train_as_one_program(
    inline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    answer = InlineGrid._answer

    def answering(grid: InlineGrid, message: Any) -> Any:
        asked.extend([message.metadata.message_type] * grid.hosts)
        return answer(grid, message)

    monkeypatch.setattr(InlineGrid, "_answer", answering)
    batched = compared(tmp_path / "batched", "batched")
    assert asked.count("query.join") == 2 and asked.count("train") == 4  # of the run, and of each client alone
    for name in ("local", "pooled"):
        near(inline / "baselines" / name, batched / "baselines" / name)


@pytest.mark.parametrize("engine", ["inline", pytest.param("process --workers 2", marks=pytest.mark.soak)])
def test_baselines_made_in_processes_of_their_own_are_the_same_to_the_bit(
    engine: str, inline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    begin = Comparisons.begin

    def beginning(made: Comparisons, name: str) -> None:
        begun.append(name)
        begin(made, name)

    def here(*given: Any) -> str:
        pytest.fail(f"a baseline was made one after the other: {given[1]}")

    monkeypatch.setattr("simulations.run.worthwhile", lambda e: True)
    monkeypatch.setattr(Comparisons, "begin", beginning)
    monkeypatch.setattr("simulations.run.train_baseline", here)
    same(inline, compared(tmp_path / "beside", engine), but=("engine", "workers"))
    assert begun == ["local", "pooled", "closed-form/slist-local", "closed-form/slist-pooled"]
    assert not active_children()


def test_what_a_process_of_a_baseline_fails_at_is_said_and_the_run_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = Comparisons.begin

    def killing(made: Comparisons, name: str) -> None:
        begin(made, name)
        if name == "pooled":
            next(process for of, process in made.running.values() if of == name).kill()

    monkeypatch.setattr("simulations.run.worthwhile", lambda e: True)
    monkeypatch.setattr(Comparisons, "begin", killing)
    home = tmp_path / "run"
    assert main([*SMALL.split(), "--engine", "inline", "--out", str(home)]) == 1
    assert "failed: baseline pooled: its process died (exit code -9)" in capsys.readouterr().err
    assert sorted(path.name for path in (home / "baselines").iterdir()) == ["closed-form", "local", "popularity"]
    assert (home / "report.html").exists() and not (home / ".baseline").exists() and not active_children()


def test_a_small_run_starts_no_process_for_its_baselines_and_a_part_of_the_program_none() -> None:
    small, large = (experiment(rounds=rounds) for rounds in (1, 100_000))
    assert (worthwhile(small), worthwhile(large)) == (False, True)
    assert apart({"local": small}) and not apart({"local": experiment(task="__main__:Dwell")})
    assert by_one_process(experiment(engine="process", workers=2)).engine == "inline"
    assert by_one_process(experiment(engine="process", stack="yes")).engine == "batched"
