"""Whatever is killed, and whenever: nothing is lost and the result is the same to the bit."""

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch

from fedrec.errors import UserError
from fedrec.experiment.config import Experiment
from fedrec.experiment.scores import CLIENTS, Row, Scores
from fedrec.folders import CHECKPOINTS
from fedrec.rng import generator
from server.checkpoint import Checkpoints, Snapshot, latest
from server.faults import ClientFailure
from simulations.engines import launch, process
from simulations.engines.slots import Slot
from simulations.run import main
from tests.helpers import experiment, same

ROOT = Path(__file__).parent.parent
TASKS = "rank,click*0.5;shop=rating"


def into(home: Path, e: Experiment, **options: Any) -> Path:
    home.mkdir(exist_ok=True)
    launch(e, home, **options)
    return home


def checkpoints(out: Path) -> list[Path]:
    return sorted((out / CHECKPOINTS).glob("[0-9]*"))


class Killed(Exception):
    """Ends a run at once, as if the process had been killed."""


def until(number: int) -> Any:
    """Return an on_round that ends the run in a round, after its numbers and before its checkpoint."""

    def on_round(row: Row) -> None:
        if row["round"] == number:
            raise Killed

    return on_round


COUPLED = {"coupling": {"rho": 1e-3, "duals": True, "balance": True}}
PULLED = {"kind": "mean-regularised", "strength": 20.0}
CASES: dict[str, dict[str, Any]] = {
    "fedper": {},
    "clusters-admm": {"coupling": {"kind": "clusters", "groups": "films,shop", "rho": 1e-3, "duals": True}},
    "admm": COUPLED,
    "fedyogi": {},
    "pcgrad": {},
    "scaffold": {"optimiser": "sgd", "lr": 1.0},
    "ditto": {},
    "no-harm": {},
    "tied-losses": {"coupling": {"rho": 1e-3, "duals": True, "ties": "losses: parity(0.001);harm: at-most(0)"}},
    "turnout": {**COUPLED, "participation": 0.7, "dropout": "0.2", "quorum": 0.0},
    "fedbuff": {"asynchrony": {"buffer": 2, "spread": 1.0}, "clients": 5},
    "agreement": {"volunteers": 20, "model": "mf;shop=mlp"},
    "sweeps": {"model": "ials", "ials": {"d": 4}, "dropout": "2:shop"},
    "sums": {
        "model": "slist",
        "coupling": PULLED,
        "budget": {"margin": 0.0, "confidence": 1.0, "step": 100.0},
        "market": {"users": 60, "items": 20, "impressions": 12},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_broken_off_in_any_round_ends_as_if_it_had_not_been(case: str, tmp_path: Path) -> None:
    method = {
        "clusters-admm": "admm",
        "tied-losses": "admm",
        "turnout": "admm",
        "fedbuff": "fedyogi",
        "sums": "fedper",
        "sweeps": "fedper",
    }.get(case, case)
    e = experiment(method, rounds=4, **CASES[case])
    whole = into(tmp_path / "whole", e)
    broken = tmp_path / "broken"
    for number in (2, 4):
        with pytest.raises(Killed):
            into(broken, e, on_round=until(number), every=1)
    same(whole, into(broken, e, every=1))


def test_checkpoints_may_be_further_apart(tmp_path: Path) -> None:
    e = experiment("admm", rounds=5, patience=2)
    whole, broken = into(tmp_path / "whole", e), tmp_path / "broken"
    with pytest.raises(Killed):
        into(broken, e, on_round=until(4), every=2)
    assert [path.name for path in sorted((broken / CHECKPOINTS).iterdir())] == ["000002"]
    same(whole, into(broken, e, every=2))


def test_a_run_that_had_come_to_its_end_only_tests_again(tmp_path: Path) -> None:
    e = experiment(rounds=30, patience=1, lr=0.3)
    whole = into(tmp_path / "whole", e)
    shutil.copytree(into(tmp_path / "again", e, every=1), tmp_path / "ended")
    rounds: list[Row] = []
    same(whole, into(tmp_path / "ended", e, every=1, on_round=rounds.append))
    assert not rounds
    assert json.loads((tmp_path / "ended" / "experiment.json").read_text())["stopped"] == "patience"


@contextlib.contextmanager
def killer(seed: int, kills: int, pause: float) -> Iterator[list[int]]:
    """Kill a random worker process now and then."""
    killed: list[int] = []
    rng, done = generator(seed, "kill"), threading.Event()

    def kill() -> None:
        while len(killed) < kills and not done.wait(float(rng.uniform(0.0, 1.0)) * pause):
            alive = [child.pid for child in active_children() if child.pid and child.pid not in killed]
            if alive:
                pid = alive[int(rng.integers(len(alive)))]
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()


@pytest.mark.soak
def test_ten_killed_workers_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tries: Callable[[int, int], int]
) -> None:
    kills = tries(1, 10)
    monkeypatch.setattr("simulations.engines.process.LIVES", 1000)  # a slow start may be killed again and again
    e = experiment("admm", rounds=60, task=TASKS, engine="process", workers=2)
    whole = into(tmp_path / "whole", e.model_copy(update={"engine": "inline"}))
    told: list[str] = []
    with killer(0, kills, 3.0) as killed:
        home = into(tmp_path / "killed", e, tell=told.append, every=1, on_round=lasting(killed, kills))
    assert len(killed) == len(told) == kills
    assert set(told) == {"a worker died (exit code -9) and was started again"}
    same(whole, home, but=("engine", "workers"))


def lasting(killed: list[int], wanted: int) -> Any:
    """Return an on_round that makes rounds last, so that there is time to kill so many workers."""

    def on_round(row: Row) -> None:
        if len(killed) < wanted:
            time.sleep(0.7)

    return on_round


def test_without_checkpoints_a_worker_repeats_all_that_it_was_asked(tmp_path: Path) -> None:
    e = experiment("ditto", rounds=4, engine="process", workers=1)
    whole = into(tmp_path / "whole", e.model_copy(update={"engine": "inline"}))
    told: list[str] = []

    def on_round(row: Row) -> None:
        if row["round"] == 3:
            (child,) = active_children()
            child.kill()

    same(whole, into(tmp_path / "killed", e, tell=told.append, on_round=on_round), but=("engine",))
    assert told == ["a worker died (exit code -9) and was started again"]


def test_a_worker_that_always_dies_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    e = experiment(engine="process", workers=1)
    monkeypatch.setattr("simulations.engines.process.serve", die)
    with pytest.raises(ClientFailure, match="worker of clients 0, 2, 1: died 5 times, last with exit code 7"):
        into(tmp_path / "home", e)
    assert not active_children()


def die(*settings: object) -> None:
    """Be a worker that ends as soon as it has begun."""
    os._exit(7)


def arguments(out: Path, *more: str) -> list[str]:
    small = "--market.users 40 --market.items 40 --rounds 200 --dim 4 --clients 3 --method admm --no-compare --quiet"
    return [sys.executable, "-m", "simulations.run", *small.split(), "--out", str(out), *more]


def saved(root: Path, rounds: int) -> Checkpoints:
    """Write checkpoints of some rounds."""
    kept = Checkpoints(root, lambda folder: [], lambda folder: None, lambda folder: None)
    for number in range(1, rounds + 1):
        tensors = {"z": torch.full((2,), float(number))}
        scores = Scores([{**dict.fromkeys(CLIENTS, ""), "round": number, "value": 0.5}])
        kept.save(Snapshot(number, tensors, {"number": number}, {"rounds": [{"round": number}]}, [scores.packed()]))
    return kept


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "empty": lambda path: path.write_bytes(b""),
    "foreign": lambda path: path.write_bytes(b"[" * 100_000),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize(
    "name", ["server.safetensors", "server.json", "record.json", "clients.parquet", "manifest.json"]
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(
    name: str, damage: str, tmp_path: Path
) -> None:
    saved(tmp_path, 3)
    DAMAGES[damage](tmp_path / "000003" / name)
    found = latest(tmp_path)
    assert found is not None
    assert found.snapshot.round == 2
    assert found.snapshot.tensors["z"].tolist() == [2.0, 2.0]
    assert found.snapshot.record == {"rounds": [{"round": 1}, {"round": 2}]}
    rows = Scores()
    for part in found.snapshot.clients:
        rows.unpack(part)
    assert [row["round"] for row in rows] == [1, 2]
    assert [text.split(":")[0] for text in found.refused] == ["checkpoint 000003 is refused"]


@pytest.mark.parametrize("name", ["server.safetensors", "server.json", "record.json", "manifest.json", "nodes.state"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_after_a_damaged_checkpoint_the_run_goes_on_and_ends_as_if_nothing_had_been(
    name: str, damage: str, tmp_path: Path
) -> None:
    e = experiment(rounds=4, market={"users": 20, "items": 60, "impressions": 10})
    whole = into(tmp_path / "whole", e)
    with pytest.raises(Killed):
        into(tmp_path / "broken", e, on_round=until(4), every=1)
    DAMAGES[damage](checkpoints(tmp_path / "broken")[-1] / name)
    same(whole, into(tmp_path / "broken", e, every=1))
    assert [path.name for path in checkpoints(tmp_path / "broken")] == ["000001", "000002", "000003", "000004"]
    (told,) = json.loads((tmp_path / "broken" / "experiment.json").read_text())["resumed"]
    assert told.startswith("checkpoint 000003 is refused: ")
    same(whole, into(tmp_path / "broken", e, every=1))  # what was written then is whole


def test_a_run_goes_on_with_the_workers_that_it_had_whatever_cores_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    e, seen = experiment(rounds=3, engine="process"), []
    grid = process.ProcessGrid

    def started(slots: Sequence[Slot], *rest: Any) -> process.ProcessGrid:
        seen.append(slots)
        if len(seen) > 1:
            raise Killed
        return grid(slots, *rest)

    monkeypatch.setattr(process, "ProcessGrid", started)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.raises(Killed):
        into(tmp_path, e, every=1, on_round=until(2))
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    with pytest.raises(Killed):
        into(tmp_path, e, every=1)
    assert [len(slots) for slots in seen] == [2, 2] and seen[0] == seen[1]


def test_rows_of_a_damaged_checkpoint_are_not_counted_twice(tmp_path: Path) -> None:
    e = experiment(rounds=5)
    whole = into(tmp_path / "whole", e)
    stops = iter([False, False, True])
    home = into(tmp_path / "broken", e, every=2, stop=lambda: next(stops, False))
    assert [path.name for path in checkpoints(home)] == ["000002", "000003"]  # the last round is always saved
    DAMAGES["cut"](home / CHECKPOINTS / "000003" / "server.json")
    with pytest.raises(Killed):
        into(home, e, every=2, on_round=until(5))
    assert [path.name for path in checkpoints(home)] == ["000002", "000004"]
    same(whole, into(home, e, every=2))


def test_a_checkpoint_that_was_not_written_to_its_end_is_none(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / "000001").rename(tmp_path / ".000001")
    assert latest(tmp_path) is None


def test_a_clients_state_is_covered_by_the_checksum(tmp_path: Path) -> None:
    e = experiment(rounds=3)
    with pytest.raises(Killed):
        into(tmp_path, e, on_round=until(3), every=1)
    path = tmp_path / CHECKPOINTS / "000002" / "nodes.state"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    found = latest(tmp_path / CHECKPOINTS)
    assert found is not None
    assert found.snapshot.round == 1
    assert "nodes.state must have the checksum" in found.refused[0]


def test_when_all_checkpoints_are_damaged_the_run_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    for folder in tmp_path.iterdir():
        (folder / "record.json").write_text("{}")
    with pytest.raises(UserError, match=r"must hold a whole checkpoint, found none .*000003.*000002"):
        latest(tmp_path)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--resume", "nowhere"], "option --resume: must be the folder of a run, found 'nowhere'"),
        (
            ["--resume", "x", "--rounds", "3"],
            "option --resume: a run goes on as it was begun, found --rounds beside it",
        ),
        (
            ["--resume", "x", "--checkpoint-every", "3", "--out", "y"],
            "option --resume: a run goes on as it was begun, found --checkpoint-every, --out beside it",
        ),
        (["--checkpoint-every", "-1"], "option --checkpoint-every: must be a whole number from 0, found '-1'"),
        (["--engine", "ray", "--checkpoint-every", "1"], "checkpoint-every: must be 0 for the engine ray"),
    ],
)
def test_wrong_wishes_end_with_one_line(flags: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
