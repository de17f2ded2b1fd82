"""The command as its user meets it: what it writes, what it says, and that nothing is lost."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import pandas as pd
import platformdirs
import pytest
from rich.console import Console

from clients import recommend
from clients.client import Client
from clients.training import Made, Start, train
from fedrec.errors import UserError
from fedrec.evaluation.evaluate import evaluate, members
from fedrec.evaluation.scorers import ModelScorer
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data, dataset, tasks_for
from fedrec.experiment.records import load_params, slug
from fedrec.folders import CHECKPOINTS, claim, unfinished, writing
from simulations import engines
from simulations.progress import reporter
from simulations.run import main, stopping

ROOT = Path(__file__).parents[1]
MARKET = ["--market.users", "20", "--market.items", "60", "--market.impressions", "10"]
SIZE = ["--engine", "inline", "--clients", "3", "--rounds", "2", "--dim", "4"]
SMALL = [*MARKET, *SIZE, "--model", "mf"]
COLUMNS = "user=user,item=item,platform=shop"


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process; `quiet` and the width of the terminal are the caller's."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*argv: str) -> Ended:
        capfd.readouterr()
        status = main(argv)
        return Ended(status, *capfd.readouterr())

    return call


def csv(folder: Path, rows: Iterable[str], header: str = "user,item,shop,rating,click") -> list[str]:
    """Write a table and return the flags that read it, with a platform column and small sizes."""
    path = folder / "table.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return [*["--dataset", "table", "--engine", "inline", "--rounds", "2", "--dim", "4", "--data-dir"], str(path)]


def sales(*extra: str) -> list[str]:
    """Return rows of two platforms: ten users who meet eight of twelve items each, then what is given."""
    shops = ("films", "books")
    rows = [f"u{u},i{(u + 5 * i) % 12},{shops[u % 2]},{1 + (u + i) % 5},{i % 2}" for u in range(10) for i in range(8)]
    return [*rows, *extra]


def only_line(ended: Ended) -> str:
    """Return the message of a refusal: one line, status 2, nothing on the standard output."""
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err
    return ended.err.removeprefix("error: ").rstrip()


def report(folder: Path) -> str:
    """Return the text of a report, its white space as single blanks."""
    return " ".join((folder / "report.html").read_text().split())


WRONG = {
    "dataset": ("--dataset movielens", "option --dataset: must be one of .*, found 'movielens'"),
    "method": ("--method fedprex", "option --method: must be one of .*'fedprex'; did you mean 'fedprox'."),
    "metric": ("--metrics ncdg@10", "metric 'ncdg@10': must be one of .*; did you mean 'ndcg'."),
    "no client": ("--clients 0", "option --clients: must be at least 1 and at most 1000000, found 0"),
    "negative clients": ("--clients -3", "option --clients: must be at least 1 and at most 1000000, found -3"),
    "more clients than users": ("--partition users --clients 21", "clients: must be at most .* users, 20, found 21"),
    "device": ("--device cuda:77", "device: must be one of auto, cpu.*, found 'cuda:77'"),
    "second device": ("--device cpu,gpu", "device: must be .*, found 'gpu'"),
    "task": ("--task rank,clik", "task: must be one of .*, found 'clik'; did you mean 'click'."),
    "client of a task": ("--task rank;shp=click", "client 'shp': must be one of films, news, shop, found in .*"),
    "client of a model": ("--model mf;shp=mlp", "client 'shp': must be one of films, news, shop, found in .*"),
    "client without a task": ("--task films=rank", "task: client '(shop|news)' has no task in 'films=rank'"),
    "model": ("--model mf;shop=mpl", "option --model: must be one of aitm, .*mlp, .*, found 'mpl'.*"),
    "shared module": ("--share item_tabel", "share: must be one of .*, found 'item_tabel'; did you mean 'item_table'."),
    "shapes": (
        "--method fedavg --model mf;shop=mlp",
        r"share: heads.rank.weight must have one shape to be shared, found \[32\] in shop and \[6\] in films; .*",
    ),
    "table without a file": ("--dataset table", "data-dir: the dataset 'table' needs a file, found none given"),
    "missing table": (
        "--dataset table --data-dir no.csv --columns user=u,item=i",
        "no.csv: must be a readable file, found .*no.csv.*",
    ),
    "missing folder": ("--dataset ml-100k --data-dir nowhere", "data-dir: .*u.data must be a readable file, found .*"),
    "file without --dataset": (
        "--data-dir sales.csv",
        r"option --data-dir: acts only with data of a file or a folder \(add --dataset table\), found .*",
    ),
    "columns without --dataset": (
        "--columns user=u",
        r"option --columns: acts only with a table \(add --dataset table\), found user=u",
    ),
    "impressions": ("--market.impressions 600", "items: must be at least 750 for 600 impressions, found 60"),
    "temporal split": ("--split tempral", "option --split: .*found 'tempral'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_experiment_is_refused_in_one_line_and_leaves_nothing(name: str, run: Run, tmp_path: Path) -> None:
    argv, message = WRONG[name]
    small = [*(() if "--dataset" in argv else MARKET), *SIZE]
    found = only_line(run(*small, *argv.split(), "--out", str(tmp_path / "deep" / "out")))
    assert re.fullmatch(message, found), found
    assert list(tmp_path.iterdir()) == []


RATED = COLUMNS + ",rating=rating"
TABLES: dict[str, tuple[list[str], str, str]] = {
    "missing column": (sales(), "user=user,item=itm", "column of table.csv: must be one of .*, found 'itm'; did you.*"),
    "unmapped item": (sales(), "user=item", "columns: must map item .*, found 'user=item' and the columns user, .*"),
    "unknown role": (sales(), "user=user,item=item,prize=rating", "columns: must be one of .*, found 'prize'.*"),
    "empty": ([], COLUMNS, "table.csv: must hold at least one row, found an empty table"),
    "inf": (
        sales("u1,i1,films,-inf,1"),
        RATED,
        ".*, line 82, column 'rating': a rating must be a finite .*, found '-inf'",
    ),
    "word": (
        sales("u1,i1,films,five,1"),
        RATED,
        ".*, line 82, column 'rating': a rating must be a finite .*, found 'five'",
    ),
    "label": (
        sales("u1,i1,films,5,2"),
        COLUMNS + ",label=click",
        ".*, line 82, column 'click': a label must be .*, found '2'",
    ),
    "no time": (sales(), COLUMNS + " --split temporal", "split: 'temporal' needs times, found none in the data"),
    "clients": (sales(), COLUMNS + " --clients 3", "clients: the data has 2 platforms, one client each, found 3"),
    "absurd": (sales(), "user=user,item=item --clients 999", "clients: must be at most .* users, 10, found 999"),
    "no rating": (sales(), COLUMNS + " --task rating", "task rating: a client .* must have a training row.*found none"),
    "no positive": (
        [row[:-1] + "0" for row in sales()],
        COLUMNS + ",label=click",
        "task rank: a client that has it must have a training row for it, found none",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_wrong_table_is_refused_in_one_line_and_leaves_nothing(name: str, run: Run, tmp_path: Path) -> None:
    rows, columns, message = TABLES[name]
    flags = csv(tmp_path, rows)
    found = only_line(run(*flags, "--columns", *columns.split(), "--out", str(tmp_path / "out")))
    assert re.fullmatch(message, found), found
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_bytes_that_are_not_utf8_are_refused_where_they_are_to_be(run: Run, tmp_path: Path) -> None:
    flags = csv(tmp_path, [])
    (tmp_path / "table.csv").write_bytes("user,item\nRené,1\n".encode("latin-1"))
    told = ("--columns", "user=user,item=item", "--reading.encoding", "utf-8")
    found = only_line(run(*flags, *told, "--out", str(tmp_path / "out")))
    assert found == r"table.csv, line 2: must be UTF-8, found b'\xe9'"


def test_a_closed_network_is_told_with_what_to_fetch(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object, **__: object) -> NoReturn:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("pooch.retrieve", closed)
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda _: str(tmp_path / "cache"))
    found = only_line(run("--dataset", "ml-100k", "--engine", "inline", "--out", str(tmp_path / "out")))
    assert "found Network is unreachable; fetch https://" in found and "or name its directory with --data-dir" in found
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_not_an_empty_folder_is_refused_and_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for name, rule in (
        ("full", "found .*full with content"),
        ("file", "found the file .*file"),
        ("file/below", "must be in a folder that can be written, found .*file/below.*"),
    ):
        found = only_line(run(*SMALL, "--out", str(tmp_path / name)))
        assert re.fullmatch(f"out: .*{rule}", found), found
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "full", "mine.txt"]
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_an_empty_folder_is_filled_and_stays_the_same_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    assert run(*SMALL, "--out", ".").status == 0
    assert tmp_path.stat().st_ino == before
    assert (tmp_path / "report.html").exists() and not list(tmp_path.glob(".*"))


def test_without_out_a_run_gets_a_folder_of_its_own(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*SMALL, "--quiet").out == "report: runs/synthetic-fedper-seed0/report.html\n"
    assert run(*SMALL, "--quiet").out == "report: runs/synthetic-fedper-seed0-2/report.html\n"
    assert run(*SMALL).out.splitlines()[0] == "run: runs/synthetic-fedper-seed0-3"
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_folder_has_one_run_and_a_name_that_is_taken_gives_the_next(tmp_path: Path) -> None:
    with writing(tmp_path / "out", numbered=True) as first, writing(tmp_path / "out", numbered=True) as second:
        assert [first.name, second.name] == ["out", "out-2"]
        with pytest.raises(UserError, match=r"out: must be a new or an empty folder, found .* that is not complete"):
            claim(first)
        assert unfinished(first) and unfinished(second)
    assert [list(home.iterdir()) for home in (first, second)] == [[], []]


def test_an_empty_folder_is_claimed_by_one_of_two(tmp_path: Path) -> None:
    claim(tmp_path)
    with pytest.raises(UserError, match="that is not complete; remove it to begin again"):
        claim(tmp_path)


def test_an_exception_leaves_nothing_of_a_run(tmp_path: Path) -> None:
    for numbered in (False, True):
        with pytest.raises(RuntimeError), writing(tmp_path / "a" / "b", numbered) as home:
            (home / "half").touch()
            raise RuntimeError
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(RuntimeError), writing(tmp_path / "mine") as home:
        (home / "half").mkdir()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"] and not list((tmp_path / "mine").iterdir())


def test_a_view_and_then_a_purchase_is_a_purchase(run: Run, tmp_path: Path) -> None:
    # 40 views of 20 users, every second of which is followed by a purchase of the same item.
    views = [f"u{n % 20},i{n % 7},{n},0" for n in range(40)]
    path = tmp_path / "log.csv"
    path.write_text("u,i,t,buy\n" + "\n".join([*views, *(f"{row[:-1]}1" for row in views[::2])]))
    flags = f"--dataset table --data-dir {path} --clients 2 --no-compare --rounds 1 --engine inline".split()
    out = tmp_path / "out"
    ended = run(*flags, "--columns", "user=u,item=i,time=t,label=buy", "--out", str(out))
    assert (ended.status, ended.err) == (0, "")
    said = "buy: 20 rows, 20 interactions; no label: 40 rows, 20 interactions"
    record = json.loads((out / "experiment.json").read_text())
    assert said in " ".join(ended.out.split()) and said in report(out) and said in record["data"]["notes"][0]


def test_what_is_no_error_is_told_on_the_terminal_and_in_the_report(run: Run, tmp_path: Path) -> None:
    odd = ["lone,i1,films,5,1", "u1,i3,books,4,1", "a,i1,tiny,3,1", "b,i2,tiny,3,1"]
    odd += [f"one{u},i{i},one,5,1" for u in range(3) for i in range(5)]
    flags = csv(tmp_path, sales(*odd, "u0,i0,films,5,1", "u0,i0,films,5,1"))
    columns = COLUMNS + ",label=click,rating=rating"
    out = tmp_path / "out"
    ended = run(*flags, "--columns", columns, "--task", "rank,click", "--compare", "--out", str(out))
    assert (ended.status, ended.err) == (0, "")
    shown = " ".join(ended.out.split())
    for said in (
        "repeats of a (platform, user, item) are merged, with every label that any of them has",
        "films: 1 user with fewer than two positives is kept for training only",
        "tiny: 2 users with a single interaction are kept for training only",
        "Nothing is held out, so nothing is measured, for tiny.",
        "The test labels have one class only, or are not known, for one.",
    ):
        assert said in shown and said in report(out), said
    record = json.loads((out / "experiment.json").read_text())
    sizes = {one["name"]: (one["users"], one["train"], one["test"]) for one in record["data"]["clients"]}
    assert sizes["tiny"] == (2, 2, 0)
    assert sizes["films"][0] == 6  # five, and the one with a single interaction
    table = pd.read_csv(out / "clients.csv").query("split == 'test'").set_index(["client", "metric"])["value"]
    assert table[["one"]].isna().to_dict() == {
        ("one", "hr@10"): False,
        ("one", "ndcg@10"): False,
        ("one", "auc"): True,
        ("one", "logloss"): False,
    }
    assert table[["tiny"]].isna().all() and table[["films"]].notna().all()


def test_a_client_without_a_row_for_its_task_takes_part_all_the_same(run: Run, tmp_path: Path) -> None:
    flags = csv(tmp_path, sales("x,i1,none,3,0", "x,i2,none,3,0"))
    ended = run(*flags, "--columns", COLUMNS + ",label=click", "--out", str(tmp_path / "out"))
    assert (ended.status, ended.err) == (0, "")
    losses = pd.read_csv(tmp_path / "out" / "clients.csv").query("metric == 'loss'").set_index("client")["value"]
    assert losses["none"].isna().all() and losses["films"].notna().all()


def test_ratings_that_diverge_name_the_client_the_rate_and_the_round(run: Run, tmp_path: Path) -> None:
    for method in ("fedper", "local"):
        argv = ["--method", method, "--optimiser", "sgd", "--lr", "1e5", "--rounds", "9"]
        ended = run(*SMALL, *argv, "--out", str(tmp_path / "out"))
        assert (ended.status, ended.out) == (1, f"run: {tmp_path / 'out'}\n")
        last = ended.err.splitlines()[-1]
        assert re.fullmatch(
            r"failed: round \d: 2 of 3 clients must answer, found 0 \(films, news, shop: failed: "
            r"lr: .*, found 100000.0 in round \d\)(; go on from its last checkpoint with --resume .*)?",
            last,
        )
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert list(tmp_path.iterdir()) == []


def test_a_baseline_that_fails_takes_nothing_from_the_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engines.launch

    def failing(experiment: Experiment, home: Path, **rest: Any) -> None:
        real(experiment, home, **rest)
        if experiment.method == "local":
            raise OSError(28, "No space left on device", str(home))

    monkeypatch.setattr(engines, "launch", failing)
    out = tmp_path / "out"
    ended = run(*SMALL, "--compare", "--out", str(out))
    assert ended.status == 1
    assert ended.err.startswith("failed: baseline local: [Errno 28] No space left on device")
    assert sorted(path.name for path in (out / "baselines").iterdir()) == ["closed-form", "pooled", "popularity"]
    assert "Not run: local" in report(out)


def test_the_first_ctrl_c_is_a_wish_the_second_an_order_and_a_third_is_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with stopping() as stopped:
        assert not stopped()
        signal.raise_signal(signal.SIGINT)
        assert stopped()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err.count("stopping after this round") == 1


def test_a_baseline_that_is_stopped_is_dropped_and_the_run_is_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engines.launch

    def interrupted(experiment: Experiment, home: Path, **rest: Any) -> None:
        if experiment.method == "local":
            signal.raise_signal(signal.SIGINT)
        real(experiment, home, **rest)

    monkeypatch.setattr(engines, "launch", interrupted)
    ended = run(*SMALL, "--compare", "--out", str(tmp_path / "out"))
    assert ended.status == 130
    assert [path.name for path in (tmp_path / "out" / "baselines").iterdir()] == ["popularity"]
    assert json.loads((tmp_path / "out" / "experiment.json").read_text())["stopped"] == ""


def session(leader: int) -> list[str]:
    """Return the command lines of the processes of a session, from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == leader:
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except (OSError, ProcessLookupError):
            continue
    return [line for line in found if line]  # a process that has ended and waits to be collected has none


LONG = 300.0  # seconds after which something that is waited for is taken to have failed


def until(true: Callable[[], object], seconds: float = LONG) -> None:
    """Wait until `true`."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def interrupt(engine: str, presses: int, out: Path) -> Ended:
    """Begin a long run, press Ctrl-C as a terminal does (for the whole process group), and return how it ended.

    What happens is waited for, however long it takes on a machine that has other work.
    """
    argv = [*MARKET, "--engine", engine, "--clients", "2", "--rounds", "100000", "--dim", "4", "--out", str(out)]
    argv += ["--model", "mf"]
    argv += ["--local-epochs", "800"] * (presses > 1)  # a round must last beyond the second
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        begun = subprocess.Popen(
            [sys.executable, "-m", "simulations.run", *argv],
            cwd=ROOT,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )

        def said(file: IO[str]) -> str:
            file.seek(0)
            return file.read()

        try:
            if engine == "ray":
                actors = min(2, os.cpu_count() or 1)
                until(lambda: sum("ClientAppActor" in line for line in session(begun.pid)) == actors)
                time.sleep(1.0)  # some rounds, of which nothing is to be seen
            else:
                until(lambda: list((out / CHECKPOINTS).glob("[0-9]*")))
            for _ in range(presses):
                os.killpg(begun.pid, signal.SIGINT)
                until(lambda: "stopping after this round" in said(errors))
            begun.wait(LONG)
        finally:
            begun.kill()
            begun.wait()
        until(lambda: not session(begun.pid))
        return Ended(begun.returncode, said(output), said(errors))


needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="lists processes from /proc")


@needs_proc
@pytest.mark.soak
@pytest.mark.parametrize("engine", ["inline", "process", "ray"])
def test_ctrl_c_keeps_what_was_finished(engine: str, tmp_path: Path, tries: Callable[[int, int], int]) -> None:
    tries(int(engine != "ray"), 1)
    ended = interrupt(engine, 1, tmp_path / "out")
    assert ended.status == 130
    assert ended.err.split("\n") == ["", "stopping after this round; press Ctrl-C again to stop at once", ""]
    out = tmp_path / "out"
    assert list(tmp_path.iterdir()) == [out]
    record = json.loads((out / "experiment.json").read_text())
    rounds = pd.read_csv(out / "rounds.csv")
    assert record["stopped"] == "interrupted" and 1 <= record["selected_round"] <= len(rounds) < 100_000
    said = f"The run ended early, after {len(rounds):,} round"
    assert said in report(out) and said in " ".join(ended.out.split())
    assert recommend.main([str(out), "--client", "films", "--user", "1", "-k", "1"]) == 0


@needs_proc
@pytest.mark.soak
@pytest.mark.parametrize("engine", ["inline", "process", "ray"])
def test_a_second_ctrl_c_stops_at_once_and_leaves_only_what_can_be_gone_on_from(
    engine: str, tmp_path: Path, tries: Callable[[int, int], int]
) -> None:
    tries(int(engine != "ray"), 1)
    ended = interrupt(engine, 2, tmp_path / "out")
    assert (ended.status, ended.out) == (130, f"run: {tmp_path / 'out'}\n")
    out = tmp_path / "out"
    kept = out.exists()
    assert ended.err.splitlines()[1:] == [
        "stopping after this round; press Ctrl-C again to stop at once",
        f"stopped; go on from its last checkpoint with --resume {out}" if kept else "stopped: nothing was written",
    ]
    assert list(tmp_path.iterdir()) == [out] * kept
    assert kept == (engine != "ray")
    if kept:
        assert unfinished(out)
        with pytest.raises(UserError, match=r"run: must be complete, found .* unfinished"):
            experiment_of(out)


MIXED = ["--task", "rank;shop=rating,click*0.5", "--model", "mf;shop=mlp"]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of clients with different tasks and models, with its baselines."""
    out = tmp_path_factory.mktemp("mixed") / "out"
    assert main([*SMALL, *MIXED, "--rounds", "3", "--hidden", "8,4", "--compare", "--quiet", "--out", str(out)]) == 0
    return out


def experiment_of(out: Path) -> Experiment:
    """Return the experiment of a run."""
    return recommend.experiment_of(out)


def test_a_run_directory_holds_the_whole_record(mixed: Path) -> None:
    names = {str(path.relative_to(mixed)) for path in mixed.rglob("*") if path.is_file() and "about" not in path.parts}
    wanted = {
        "users.parquet",
        "experiment.json",
        "rounds.csv",
        "clients.csv",
        "ledger.csv",
        "faults.csv",
        "report.html",
    }
    wanted |= {f"model/client-{name}.safetensors" for name in ("films", "news", "shop")}
    wanted |= {"model/shared.safetensors", "model/rows.json"}
    assert {name for name in names if not name.startswith("baselines")} == wanted
    clients = pd.read_csv(mixed / "clients.csv")
    assert list(clients) == ["round", "client", "split", "task", "metric", "value", "device"]
    assert set(clients["device"]) == {"cpu"} and set(clients["split"]) == {"train", "validation", "test"}
    ledger = pd.read_csv(mixed / "ledger.csv")
    assert list(ledger) == ["round", "client", "direction", "parameter", "rows", "bytes"]
    record = json.loads((mixed / "experiment.json").read_text())
    assert record["experiment"] == experiment_of(mixed).model_dump(mode="json")
    assert record["versions"]["torch"] == version("torch")


def test_shared_and_private_parameters_make_up_each_client_and_do_not_overlap(mixed: Path) -> None:
    e = experiment_of(mixed)
    shared = load_params(mixed / "model" / "shared.safetensors")
    for data in clients_data(e):
        private = load_params(mixed / "model" / f"client-{slug(data.name)}.safetensors")
        names = [task.name for task in tasks_for(e, data)]
        like = e.recommender(data.name).shapes(len(data.users), len(data.items), names)
        mine, rest = e.sharing().split(like)
        assert private.keys() == rest.keys() and mine.keys() <= shared.keys()
        assert {name: value.shape for name, value in private.items()} == {n: rest[n].shape for n in private}
        assert not private.keys() & shared.keys()
    assert {"body.0.weight", "item_table", "item_bias"} <= shared.keys()


def test_the_saved_experiment_repeats_the_run_to_the_bit(mixed: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert main(["--config", str(mixed / "experiment.json"), "--quiet", "--out", str(again)]) == 0
    files = [*again.glob("*.csv"), *again.glob("*.parquet"), *(again / "model").iterdir()]
    assert len(files) == 4 + 1 + 5
    for path in files:
        other = mixed / path.relative_to(again)
        if path.name == "rounds.csv":
            a, b = (pd.read_csv(one).drop(columns=["seconds", "evaluate_seconds"]) for one in (path, other))
            pd.testing.assert_frame_equal(a, b, check_exact=True)
        else:
            assert path.read_bytes() == other.read_bytes(), path.name


def test_the_ledger_agrees_with_the_rounds(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(*SMALL, *MIXED, "--rounds", "3", "--eval-every", "3", "--out", str(out)).status == 0
    total = pd.read_csv(out / "ledger.csv").groupby(["round", "direction"])["bytes"].sum().to_dict()
    rounds = pd.read_csv(out / "rounds.csv").set_index("round")[["bytes_down", "bytes_up"]].to_dict("index")
    for number in (1, 2):  # nothing but training travels in them
        assert rounds[number] == {"bytes_down": total[number, "down"], "bytes_up": total[number, "up"]}
    assert total[3, "down"] > rounds[3]["bytes_down"] >= rounds[1]["bytes_down"]  # the last test is part of no round
    assert min(value for row in rounds.values() for value in row.values()) > 0


def test_the_saved_model_is_that_of_the_best_round(mixed: Path) -> None:
    rounds = pd.read_csv(mixed / "rounds.csv")
    record = json.loads((mixed / "experiment.json").read_text())
    assert record["selected_round"] == rounds.set_index("round")["validation"].idxmax()
    check_saved_model(mixed)


def check_saved_model(out: Path) -> None:
    """Assert that the saved parameters, evaluated anew on the test data, give the recorded values."""
    e = experiment_of(out)
    recorded = pd.read_csv(out / "clients.csv").query("split == 'test'")
    values = recorded.set_index(["client", "task", "metric"])["value"].to_dict()
    found: dict[tuple[str, str, str], float] = {}
    for holder in clients_data(e):
        params = recommend.params_of(out, e, holder)
        for data, part in members(holder, params):
            scorer = ModelScorer(e.recommender(holder.name), part)
            tasks = e.tasks(data.name)
            kept = {"metrics": e.metrics, "candidates": e.candidates, "seed": e.seed}
            found |= evaluate(scorer, data, tasks, "test", **kept).metrics  # type: ignore[arg-type]
    assert found == pytest.approx(values, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    "argv",
    [
        "--rounds 30 --patience 1",
        "--rounds 12 --patience 2 --eval-every 2 --method fedrep",
        "--rounds 4 --method pooled",
        "--rounds 4 --method local",
    ],
)
def test_early_stopping_keeps_the_best_round(argv: str, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(*SMALL, *argv.split(), "--lr", "0.05", "--out", str(out)).status == 0
    record = json.loads((out / "experiment.json").read_text())
    rounds = pd.read_csv(out / "rounds.csv").set_index("round")["validation"].dropna()
    assert record["selected_round"] == rounds.idxmax()
    patience, every = record["experiment"]["patience"], record["experiment"]["eval_every"]
    if patience:
        assert record["stopped"] == "patience"
        assert rounds.index[-1] == record["selected_round"] + patience * every < record["experiment"]["rounds"]
        assert "stopped early" in report(out)
    check_saved_model(out)


def test_a_stop_between_two_validations_keeps_the_private_part_of_the_best_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []

    def counted(client: Client, start: Start) -> Made:
        trained.append(start.sent.round)
        if trained == [1, 1, 1, 2, 2, 2, 3]:
            signal.raise_signal(signal.SIGINT)
        return train(client, start)

    monkeypatch.setattr("clients.round.train", counted)
    out = tmp_path / "out"
    assert main([*SMALL, "--rounds", "9", "--eval-every", "2", "--quiet", "--out", str(out)]) == 130
    record = json.loads((out / "experiment.json").read_text())
    assert (record["selected_round"], record["stopped"], max(trained)) == (2, "interrupted", 3)
    short = tmp_path / "short"
    assert main([*SMALL, "--eval-every", "2", "--quiet", "--out", str(short)]) == 0
    for path in (short / "model").iterdir():
        assert path.read_bytes() == (out / "model" / path.name).read_bytes(), path.name


def test_recommendations_come_from_a_run(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    e = experiment_of(mixed)
    shop = next(data for data in clients_data(e) if data.name == "shop")
    key = dataset(e).users["key"][shop.users[0]]
    assert recommend.main([str(mixed), "--client", "shop", "--user", key, "-k", "3"]) == 0
    assert f"shop recommends to user {key}, by the task rating" in capsys.readouterr().out
    pooled = mixed / "baselines" / "pooled"
    assert recommend.main([str(pooled), "--client", "shop", "--user", key, "-k", "3"]) == 0
    assert f"shop recommends to user {key}, by the task rating" in capsys.readouterr().out


def test_every_member_of_a_pooled_run_is_measured_by_its_own_tasks(mixed: Path) -> None:
    def measured(folder: Path) -> set[tuple[str, str, str]]:
        rows = pd.read_csv(folder / "clients.csv").query("split == 'test'")
        return set(rows[["client", "task", "metric"]].itertuples(index=False, name=None))

    expected = {(name, "rank", metric) for name in ("films", "news") for metric in ("ndcg@10", "hr@10")}
    expected |= {("shop", "rating", "rmse"), ("shop", "click", "auc"), ("shop", "click", "logloss")}
    assert measured(mixed) == expected
    for method in ("local", "pooled", "popularity"):
        assert measured(mixed / "baselines" / method) == expected
    check_saved_model(mixed / "baselines" / "pooled")


def test_the_closing_table_and_the_report_show_every_task_and_baseline(
    mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from simulations.closing import table

    console = Console(file=StringIO(), width=80)
    console.print(table(mixed))
    assert isinstance(console.file, StringIO)
    lines = console.file.getvalue().splitlines()
    assert all(name in lines[1] for name in ["together", "alone", "difference", "pooled", "popular", "verdict"])
    for method, place in (("local", 1), ("pooled", -2), ("popularity", -1)):
        folder = mixed / "baselines" / method
        rows = pd.read_csv(folder / "clients.csv").query("split == 'test'")
        value = rows.set_index(["client", "metric"])["value"]["films", "ndcg@10"]
        row = next(line for line in lines if line.startswith("films rank")).replace(", ", ",")
        numbers = [cell for cell in row.split()[2:] if cell[0] in ".0123456789"]
        assert numbers[place] == f"{value:.4f}".lstrip("0"), method
    shown = " ".join(lines)
    assert all(name in shown for name in ("films rank", "news rank", "shop rating", "shop click", "mean of 2 rank"))
    tests = [
        pd.read_csv(f / "clients.csv").query("split == 'test' and metric == 'ndcg@10'")
        for f in (mixed, mixed / "baselines" / "local")
    ]
    first, second = tests[0]["value"].to_numpy() - tests[1]["value"].to_numpy()
    # Two clients, the mean m = (a + b) / 2 and the t quantile 12.706 of one degree of freedom: m +- 12.706 |a - b| / 2.
    mean, half = (first + second) / 2, 12.7062 * abs(first - second) / 2
    band = f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]".replace("0.", ".").replace("-", "−")
    assert band in next(line for line in lines if line.startswith("mean of 2")) and "over the clients" in shown
    page = report(mixed)
    assert all(name in page for name in ("RMSE", "AUC", "NDCG@10", "mlp", "heads.click.weight"))
    assert "Not run" not in page


def test_quiet_prints_the_path_of_the_report_and_nothing_else(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(*SMALL, "--quiet", "--out", str(out)) == (0, f"report: {out / 'report.html'}\n", "")


def test_a_live_display_only_on_a_terminal_that_is_not_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(quiet: bool = False, terminal: bool = True) -> str:
        file = StringIO()
        with reporter(Console(file=file, force_terminal=terminal, width=120), quiet) as shown:
            shown.phase("fedper, 3 clients", 2)
            shown.round({"round": 1, "train_loss": 0.51239, "validation": 0.0456})
        return file.getvalue()

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert all(part in drawn() for part in ("fedper, 3 clients", "1/2", "loss 0.5124", "validation 0.0456"))
    assert drawn(quiet=True) == drawn(terminal=False) == ""
    monkeypatch.setenv("CI", "true")
    assert drawn() == ""


@pytest.mark.parametrize("method", ["local", "pooled"])
def test_a_baseline_runs_by_itself_as_it_does_beside_a_run(method: str, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    layers = ["--hidden", "8,4"] if method == "local" else []  # the pooled model is everybody's, mf
    model = ["--model", "mf"] if method == "pooled" else []
    argv = ["--method", method, *model, *layers, "--rounds", "3", "--quiet", "--out", str(out)]
    assert main([*SMALL, *MIXED, *argv]) == 0
    assert (out / "clients.csv").read_text() == (mixed / "baselines" / method / "clients.csv").read_text()
    ledger = pd.read_csv(out / "ledger.csv")
    assert not ledger["parameter"].str.contains("table|bias|heads|body").any()
    assert (out / "report.html").exists()


def test_platforms_of_a_table_of_reviews_are_compared(run: Run, tmp_path: Path) -> None:
    rows = [
        f"A{u},B{(5 * u + 7 * i) % 60:04},{'Luxury' if u % 5 else 'Gift'},{1.0 + (u + i) % 5},{1.5e9 + 9e4 * i}"
        for u in range(60)
        for i in range(6)
    ]
    flags = csv(tmp_path, rows, "user,asin,domain,stars,when")
    columns = "user=user,item=asin,platform=domain,rating=stars,time=when"
    out = tmp_path / "out"
    ended = run(*flags, "--columns", columns, "--compare", "--task", "rank,rating,like*0.5", "--out", str(out))
    assert (ended.status, ended.err) == (0, "")
    record = json.loads((out / "experiment.json").read_text())
    assert {one["name"]: one["users"] for one in record["data"]["clients"]} == {"Gift": 12, "Luxury": 48}
    assert all(name in ended.out for name in ("Gift rank", "Luxury rank", "Gift rating", "Luxury like", "verdict"))


def test_the_command_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simulations.run", *SMALL, "--out", str(tmp_path / "out")]
    environment = {**os.environ, "CI": "true", "COLUMNS": "80"}
    done, wrong = (
        subprocess.run([*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        for more in ([], ["--clients", "0"])
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"run: {tmp_path / 'out'}\nTest rank ndcg@10") and done.stdout.endswith(
        "report.html\n"
    )
    assert "\x1b" not in done.stdout
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert only_line(Ended(2, wrong.stdout, wrong.stderr)).endswith("and at most 1000000, found 0")
