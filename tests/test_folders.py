"""The folder of a run from the command line: claimed at the start, gone on with, refused in one line, private."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from clients import recommend
from fedrec.errors import UserError
from fedrec.experiment.records import ROW_STARTS, write_json
from fedrec.folders import CHECKPOINTS, COMMAND, LOCK, claim, held, unfinished
from server.strategy import Coordinator
from simulations import distil, engines
from simulations import run as command
from simulations.closing import table
from simulations.engines.identity import compare
from simulations.run import main
from tests.helpers import same

ROOT = Path(__file__).parents[1]
MARKET = ["--market.users", "20", "--market.items", "60", "--market.impressions", "10"]
SMALL = [*MARKET, "--clients", "3", "--rounds", "4", "--dim", "4", "--quiet"]
PLAIN = [*SMALL, "--engine", "inline", "--no-compare"]


class Killed(BaseException):
    """Ends a run at once, as if the process had been killed."""


Broken = Callable[..., Path]


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Broken:
    """Begin a run that is killed after the checkpoint of a round; 0: before the first."""

    def begin(*argv: str, after: int = 2, out: Path = tmp_path / "out") -> Path:
        save = Coordinator.save

        def saving(self: Coordinator, number: int, last: bool) -> None:
            if after:
                save(self, number, last)
            if number >= after:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Coordinator, "save", saving)
            # A process that is killed cleans nothing up.
            patch.setattr("fedrec.folders.clear", lambda home, made: None)
            with pytest.raises(Killed):
                main([*(argv or PLAIN), "--out", str(out)])
        return out

    return begin


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command, assert that it ends with status 2 and one line, and return the line."""

    def call(*argv: str) -> str:
        capsys.readouterr()
        assert main([*argv, "--quiet"]) == 2
        shown = capsys.readouterr()
        assert not shown.out and shown.err.startswith("error: ") and shown.err.count("\n") == 1, shown.err
        return shown.err.removeprefix("error: ").rstrip()

    return call


def whole(folder: Path, *argv: str) -> Path:
    """Return an uninterrupted run."""
    assert main([*(argv or PLAIN), "--out", str(folder / "whole")]) == 0
    return folder / "whole"


def tree(home: Path) -> dict[str, bytes]:
    """Return every file of a folder."""
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


def test_two_default_runs_at_once_get_two_names_and_both_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train, argv = command.train, [one for one in PLAIN if one != "--quiet"]

    def nested(*args: Any) -> None:
        monkeypatch.setattr(command, "train", train)
        assert main(argv) == 0  # begins and ends while the first is in its first round
        train(*args)

    monkeypatch.setattr(command, "train", nested)
    assert main(argv) == 0
    names = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("run:", "report:"))]
    first, second = "runs/synthetic-fedper-seed0", "runs/synthetic-fedper-seed0-2"
    assert names == [f"run: {first}", f"run: {second}", f"report: {second}/report.html", f"report: {first}/report.html"]
    same(tmp_path / first, tmp_path / second)
    assert not any(path.name.startswith(".") or path.name == "unfinished" for path in tmp_path.rglob("*"))


def test_a_run_that_is_not_complete_is_told_by_every_reader(broken: Broken, refused: Callable[..., str]) -> None:
    out = broken()
    assert unfinished(out)
    text = f"run: must be complete, found {out} unfinished: still running, or broken off"
    for read in (recommend.experiment_of, table):
        with pytest.raises(UserError) as error:
            read(out)
        assert str(error.value) == text
    (out / "baselines" / "local").mkdir(parents=True)
    with pytest.raises(UserError, match="must be complete"):
        recommend.experiment_of(out / "baselines" / "local")
    assert distil.main([str(out), "--client", "shop"]) == 2
    assert "that is not complete; go on with it by --resume" in refused(*PLAIN, "--out", str(out))


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_run_that_was_killed_is_gone_on_with(after: int, broken: Broken, tmp_path: Path) -> None:
    out = broken(after=after)
    assert bool(list((out / CHECKPOINTS).glob("[0-9]*"))) == bool(after)
    assert main(["--resume", str(out), "--quiet"]) == 0
    same(whole(tmp_path), out)
    assert not unfinished(out) and not (out / CHECKPOINTS).exists() and not (out / LOCK).exists()


def test_a_run_that_was_killed_while_it_was_compared_keeps_the_baselines_that_it_had(
    broken: Broken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*SMALL, "--engine", "inline"]
    made: list[str] = []
    real = engines.launch

    def killed(experiment: Any, home: Path, **rest: Any) -> None:
        made.append(experiment.method if experiment.model == "mf" else "closed form")
        real(experiment, home, **rest)
        if made == ["fedper", "local", "pooled"]:
            raise Killed

    monkeypatch.setattr(engines, "launch", killed)
    with pytest.raises(Killed):
        main([*argv, "--out", str(tmp_path / "out")])
    assert unfinished(tmp_path / "out")
    assert main(["--resume", str(tmp_path / "out"), "--quiet"]) == 0
    assert made == ["fedper", "local", "pooled", "fedper", "pooled", *["closed form"] * 2]
    same(whole(tmp_path, *argv), tmp_path / "out")


def test_a_run_that_was_killed_before_it_said_what_it_is_is_refused_in_words(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    out, _ = claim(tmp_path / "out")
    line = refused("--resume", str(out))
    assert "must be a readable file" in line and "remove the folder and begin again" in line


def damaged(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Return what changes a command that is JSON."""

    def call(path: Path) -> None:
        about = json.loads(path.read_text())
        change(about)
        write_json(path, about)

    return call


def folder_for(path: Path) -> None:
    """Put a folder in the place of a file."""
    path.unlink()
    path.mkdir()


COMMANDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "must be a readable file (No such file or directory)"),
    "a folder": (folder_for, "must be a readable file (Is a directory)"),
    "empty": (lambda path: path.write_bytes(b""), "must be JSON"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "must be JSON"),
    "no text": (lambda path: path.write_bytes(b"\xff\xfe\xff"), "must be JSON"),
    "deep": (lambda path: path.write_bytes(b"[" * 100_000), "must be JSON"),
    "a list": (lambda path: path.write_bytes(b"[]"), "must hold named values, found list"),
    "foreign": (lambda path: path.write_bytes(b"{}"), "must have a whole number `every`"),
    "no experiment": (damaged(lambda about: about.pop("experiment")), "must have an experiment, found None"),
    "no names": (damaged(lambda about: about.update(experiment=[1])), "must have an experiment, found [1]"),
    "wrong field": (damaged(lambda about: about["experiment"].update(dmi=4)), "did you mean 'dim'?"),
    "wrong value": (
        damaged(lambda about: about["experiment"].update(dim={})),
        "input should be a valid integer, found {}",
    ),
    "wrong every": (damaged(lambda about: about.update(every="1")), "must have a whole number `every`"),
    "wrong wish": (damaged(lambda about: about.update(compare=None)), "a truth value `compare`"),
    "no saving": (damaged(lambda about: about.update(every=0)), "checkpoint-every must be above 0"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_is_damaged_or_foreign_is_refused_in_one_line(
    name: str, broken: Broken, refused: Callable[..., str]
) -> None:
    out = broken()
    change, words = COMMANDS[name]
    change(out / CHECKPOINTS / COMMAND)
    line = refused("--resume", str(out))
    assert words in line, line
    assert unfinished(out) and len(list((out / CHECKPOINTS).glob("[0-9]*"))) == 2


OTHERS: dict[str, tuple[Mapping[str, Any], str]] = {
    "dim": ({"dim": 8}, "resume: dim must be 4 as in the checkpoint, found 8"),
    "engine": ({"engine": "batched"}, "resume: engine must be 'inline' as in the checkpoint, found 'batched'"),
    "method": ({"method": "fedrep"}, "resume: method must be 'fedper' as in the checkpoint, found 'fedrep'"),
    "market": ({"market": {"users": 30, "items": 60, "impressions": 10}}, "resume: market.users must be 20 as in"),
    "seed": ({"seed": 1}, "resume: seed must be 0 as in the checkpoint, found 1"),
    "rounds": ({"rounds": 9}, "resume: rounds must be 4 as in the checkpoint, found 9"),
    "clients": ({"clients": 2}, "resume: clients must be 3 as in the checkpoint, found 2"),
    "ray": ({"engine": "ray"}, "checkpoint-every: must be 0 for the engine ray"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_an_experiment_that_does_not_fit_the_checkpoint_is_refused_by_name_before_any_work(
    name: str, broken: Broken, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = broken()
    fields, words = OTHERS[name]
    damaged(lambda about: about["experiment"].update(fields))(out / CHECKPOINTS / COMMAND)
    before = tree(out)
    monkeypatch.setattr(Coordinator, "fit", lambda *_: pytest.fail("work was begun"))
    assert refused("--resume", str(out)).startswith(words)
    assert tree(out) == before


def test_another_version_or_other_data_do_not_fit_the_checkpoint(
    tmp_path: Path, broken: Broken, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.csv"
    rows = [f"u{u},i{(u + 5 * i) % 12}" for u in range(10) for i in range(8)]
    path.write_text("\n".join(["user,item", *rows, ""]))
    data = ["--dataset", "table", "--columns", "user=user,item=item", "--partition", "users", "--clients", "2"]
    argv = [*data, "--data-dir", str(path), "--rounds", "4", "--dim", "4", "--no-compare", "--engine", "inline"]
    out = broken(*argv)
    with monkeypatch.context() as patch:
        patch.setattr("simulations.engines.identity.versions", lambda: {"torch": "9.9"})
        assert "resume: torch must have version 2." in refused("--resume", str(out))
    with monkeypatch.context() as patch:
        patch.setattr("fedrec.experiment.records.ROW_STARTS", "3")
        assert "resume: row starts must have version 2 as in the checkpoint, found 3" in refused("--resume", str(out))
    other = tmp_path / "other.csv"
    asked = out / CHECKPOINTS / COMMAND
    damaged(lambda about: about["experiment"].update(data_dir=str(other)))(asked)
    renamed = [row.replace("u", "v") for row in rows]  # in the same order, but rows start by their keys
    for lines in (rows[1:], renamed):
        other.write_text("\n".join(["user,item", *lines, ""]))
        assert "resume: the data must be what the checkpoint was made from" in refused("--resume", str(out))
    moved = path.rename(tmp_path / "moved.csv")  # where it lies is not what it holds
    damaged(lambda about: about["experiment"].update(data_dir=str(moved)))(asked)
    assert main(["--resume", str(out), "--quiet"]) == 0


def test_a_checkpoint_that_does_not_say_how_rows_start_is_refused() -> None:
    with pytest.raises(UserError, match=r"^resume: row starts must have version unknown as in the checkpoint, found 2"):
        compare({"experiment": {}, "versions": {}}, {"experiment": {}, "versions": {"row starts": ROW_STARTS}})


def test_whether_a_run_is_alive_is_told_by_its_lock(broken: Broken, refused: Callable[..., str]) -> None:
    out = broken()
    with held(out):
        assert (
            refused("--resume", str(out)) == f"resume: must be a run that has ended, found {str(out)!r} still running"
        )
    assert main(["--resume", str(out), "--quiet"]) == 0  # whatever process has the number of the one that died


@pytest.mark.parametrize("engine", ["inline", "batched", "process"])
def test_a_run_that_one_ctrl_c_ended_early_is_gone_on_with(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    argv = [*SMALL, "--engine", engine, *([] if engine == "inline" else ["--no-compare"])]
    argv += ["--workers", "1"] * (engine == "process")
    out, round_of = tmp_path / "out", Coordinator.round

    def pressed(self: Coordinator, number: int) -> Any:
        if number == 2:
            signal.raise_signal(signal.SIGINT)
        return round_of(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Coordinator, "round", pressed)
        assert main([*argv, "--out", str(out)]) == 130
    record = json.loads((out / "experiment.json").read_text())
    assert record["stopped"] == "interrupted" and not unfinished(out)
    asked = (out / CHECKPOINTS / COMMAND).read_bytes()
    damaged(lambda about: about["experiment"].update(dim=8))(out / CHECKPOINTS / COMMAND)
    assert "dim must be 4" in refused("--resume", str(out))
    (out / CHECKPOINTS / COMMAND).write_bytes(asked)
    assert recommend.experiment_of(out).rounds == 4  # complete, as far as it goes, also after a refusal
    assert main(["--resume", str(out), "--quiet"]) == 0
    if engine == "process":  # to the bit what `inline` gives, in a tenth of the time
        argv = [*PLAIN]
    same(whole(tmp_path, *argv), out, but=("engine", "workers"))
    assert "complete" in refused("--resume", str(out))


def test_a_private_run_that_was_ended_early_says_why_it_cannot_be_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    round_of = Coordinator.round

    def pressed(self: Coordinator, number: int) -> Any:
        signal.raise_signal(signal.SIGINT)
        return round_of(self, number)

    monkeypatch.setattr(Coordinator, "round", pressed)
    argv = [*PLAIN, "--weights", "uniform", "--privacy.unit", "user", "--privacy.epsilon", "4"]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 130
    assert "has forgotten its secrets" in refused("--resume", str(tmp_path / "out"))
    assert not (tmp_path / "out" / CHECKPOINTS).exists()


def test_baselines_are_added_to_a_finished_run(tmp_path: Path, refused: Callable[..., str]) -> None:
    out = whole(tmp_path)
    assert [path.name for path in (out / "baselines").iterdir()] == ["popularity"]
    assert refused("--resume", str(out)) == (
        f"option --resume: must be a run that has not come to its end, found {str(out)!r} complete "
        "(baselines that it lacks are added by --compare)"
    )
    assert "must be a run that has not come to its end" in refused("--resume", str(out), "--no-compare")
    before = tree(out)
    assert main(["--resume", str(out), "--compare", "--quiet"]) == 0
    other = tmp_path / "other"
    assert main([*(one for one in PLAIN if one != "--no-compare"), "--out", str(other)]) == 0
    same(other, out)
    assert {name: data for name, data in tree(out).items() if name in before and name != "report.html"} == {
        name: data for name, data in before.items() if name != "report.html"
    }
    assert refused("--resume", str(out), "--compare").endswith("found " + repr(str(out)) + " with all")


def test_compare_beside_resume_acts(broken: Broken) -> None:
    out = broken()
    assert main(["--resume", str(out), "--compare", "--quiet"]) == 0
    assert {path.name for path in (out / "baselines").iterdir()} == {"popularity", "local", "pooled", "closed-form"}


def test_a_failed_run_that_saved_nothing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Coordinator, "save", full)
    assert main([*PLAIN, "--out", str(tmp_path / "a" / "out")]) == 1
    assert list(tmp_path.iterdir()) == []


def test_without_fcntl_a_run_starts(tmp_path: Path) -> None:
    private = ["--weights", "uniform", "--privacy.unit", "user", "--privacy.epsilon", "4", "--rounds", "2"]
    code = "import sys; sys.modules['fcntl'] = None; from simulations.run import main; sys.exit(main(sys.argv[1:]))"
    ended = subprocess.run(
        [sys.executable, "-c", code, *PLAIN, *private, "--out", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "out" / "report.html").exists()


# What the README calls a client's own; everything else is as the user's umask has it.
PRIVATE = ("checkpoints", "users.parquet", "items.parquet", "measured", "privacy", "about", "about.parquet")
KINDS: dict[str, list[str]] = {
    "plain": ["--task", "rank;shop=rating,category"],
    "personal": ["--method", "ditto"],
    "own copies": ["--method", "mr-mtl"],
    "private": ["--weights", "uniform", "--privacy.unit", "user", "--privacy.epsilon", "4"],
    "noise at the server": [
        *("--partition", "one-user", "--clients", "20", "--weights", "uniform"),
        *("--privacy.unit", "client", "--privacy.epsilon", "4"),
    ],
    "secure": ["--secure.active"],
    "agreement": ["--method", "agreement", "--volunteers", "8"],
    "batched": ["--engine", "batched"],
    "process": ["--engine", "process", "--workers", "1"],
}


def modes(home: Path) -> dict[str, int]:
    """Return the permissions of everything below a folder."""
    return {str(path.relative_to(home)): stat.S_IMODE(path.stat().st_mode) for path in home.rglob("*")}


def own(name: str) -> bool:
    """Return whether a path in a run's folder is a client's own, or private otherwise."""
    parts = Path(name).parts
    secret = parts[-1].startswith(("client-", "own-", "alone-")) and parts[-2] == "model"
    return secret or any(part in PRIVATE for part in parts) or parts[-1] == LOCK


def open_to_others(home: Path) -> list[str]:
    """Return what is private and can be read by others, or is not and cannot."""
    found = []
    for name, mode in modes(home).items():
        folder = (home / name).is_dir()
        wanted = (0o700 if folder else 0o600) if own(name) else (0o755 if folder else 0o644)
        if mode != wanted:
            found.append(f"{name}: {mode:o}")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_private_is_for_its_owner_alone(kind: str, broken: Broken) -> None:
    before = os.umask(0o022)
    try:
        compare = [] if kind == "plain" else ["--no-compare"]
        argv = [*SMALL, "--engine", "inline", *compare, *KINDS[kind], "--rounds", "2"]
        out = broken(*argv, after=1)
        assert any("nodes.state" in name or "node-" in name for name in modes(out))
        assert open_to_others(out) == []
        assert main(["--resume", str(out), "--quiet"]) == 0
        if kind == "plain":
            assert distil.main([str(out), "--client", "films", "--task", "rank", "--rounds", "1"]) == 0
        assert open_to_others(out) == []
        assert any(own(name) for name in modes(out)) and any("baselines" in name for name in modes(out))
    finally:
        os.umask(before)


def test_private_files_are_created_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can open one in the moment before its mode is set: none is set after it was made."""
    monkeypatch.setattr(os, "chmod", lambda path, *_, **__: pytest.fail(f"changed the mode of {path}"))
    before = os.umask(0)
    try:
        assert main([*PLAIN, "--out", str(tmp_path / "out")]) == 0
    finally:
        os.umask(before)
    assert not [name for name, mode in modes(tmp_path / "out").items() if own(name) and mode & 0o077]
