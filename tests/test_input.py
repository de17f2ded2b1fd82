"""Wrong input, as a user gives it: one line and a status, never a traceback, a hang or all of the memory."""

import gzip
import io
import json
import lzma
import os
import socket
import tarfile
import zipfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import fedrec.files
import simulations.run
from fedrec.experiment.holdings import clients_data, dataset
from simulations.cli import Command, parse
from simulations.options import FIELDS, flag
from simulations.run import main

ROLES = ("--dataset", "table", "--columns", "user=user,item=item,platform=platform,time=time")
SMALL = ("--rounds", "1", "--dim", "4", "--no-compare", "--engine", "inline")
ROWS = "user,item,platform,time\n" + "".join(f"u{i % 20},i{i * 7 % 30},ab{i % 2},{10**9 + i}\n" for i in range(400))


def told(*argv: str) -> tuple[int, str, str]:
    """Return the status of a run, and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(argv)
    return status, out.getvalue(), err.getvalue()


def refusal(tmp_path: Path, *argv: str) -> str:
    """Return the one line with which a run is refused."""
    status, _, text = told(*SMALL, "--out", str(tmp_path / "out"), *argv)
    assert status == 2, text
    assert text.startswith("error: ") and text.count("\n") == 1, text
    assert not (tmp_path / "out").exists()
    return text


@pytest.mark.parametrize("suffix", ["csv", "parquet", "safetensors"])
@pytest.mark.parametrize("kind", ["FIFO", "socket", "device", "folder"])
def test_only_regular_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    monkeypatch.chdir(tmp_path)  # a socket's path may have about 100 characters
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    if suffix == "safetensors":
        argv: Sequence[str] = ("--content.kind", "hashed", "--content.vectors", str(path))
    else:
        argv = (*ROLES, "--data-dir", str(path))
    rule = f"must be a regular file, found a {kind}"
    if kind == "folder" and suffix != "safetensors":  # of which the files are read
        rule = "must be a file, or a folder that holds one, found none"
    assert rule in refusal(tmp_path, *argv)


def test_a_config_and_the_files_of_movielens_are_regular(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "u.data")
    assert "found a FIFO" in refusal(tmp_path, "--dataset", "ml-100k", "--data-dir", str(tmp_path))
    assert "found a FIFO" in refusal(tmp_path, "--config", str(tmp_path / "u.data"))


def packed(path: Path, content: bytes) -> Path:
    """Write a file as its name says that it is packed."""
    if path.name.endswith(".gz") and ".tar" not in path.name:
        path.write_bytes(gzip.compress(content))
    elif path.name.endswith(".xz"):
        path.write_bytes(lzma.compress(content))
    elif path.name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("rows.csv", content)
    else:
        with tarfile.open(path, "w:gz") as folder:
            info = tarfile.TarInfo("rows.csv")
            info.size = len(content)
            folder.addfile(info, io.BytesIO(content))
    return path


PACKED = ["rows.csv.gz", "rows.csv.xz", "rows.csv.zip", "rows.csv.tar.gz"]


@pytest.mark.parametrize("name", PACKED)
def test_packed_tables_are_read_as_plain_ones_and_bombs_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "rows.csv").write_text(ROWS)
    plain = dataset(parse([*ROLES, "--data-dir", str(tmp_path / "rows.csv")]).experiment)
    path = packed(tmp_path / name, ROWS.encode())
    found = dataset(parse([*ROLES, "--data-dir", str(path)]).experiment)
    pd.testing.assert_frame_equal(found.interactions, plain.interactions)
    monkeypatch.setattr(fedrec.files, "largest", lambda: 10_000)
    bomb = packed(tmp_path / f"bomb-{name}", b"user,item,platform,time\n" + b"0" * 2**24)
    assert bomb.stat().st_size < 2**17
    text = refusal(tmp_path, *ROLES, "--data-dir", str(bomb))
    assert "must have at most 10000 bytes unpacked, a quarter of the memory" in text


@pytest.mark.parametrize("name", [*PACKED, "rows.csv.zst", "rows.csv", "rows.parquet", "rows.tar", "rows.csv.bz2"])
@pytest.mark.parametrize("content", [b"", b"\0" * 999, bytes(range(256)) * 9], ids=["empty", "NUL", "binary"])
def test_a_damaged_file_is_refused_in_a_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert name in refusal(tmp_path, *ROLES, "--data-dir", str(tmp_path / name))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user,item,user,platform,time\na,b,c,d,1\n", "column 'user' of rows.csv: must be there once, found 2 of them"),
        ("user,item,time\na,b,1\n", "column of rows.csv: must be one of item, time, user, found 'platform'"),
        ("x" * 2**21, "line 1: must be a header of less than 1048576 bytes, found a longer line"),
        ("user,item,platform,time\n", "must hold at least one row, found an empty table"),
        (
            "user,item,platform,time\na,b,\x1b[31m,1\n",
            "line 2, column 'platform': a name must be printable and have at most 100",
        ),
        ('user,item,platform,time\na,b,"x\ny",1\n', "a name must be printable"),
        (f"user,item,platform,time\na,b,{'x' * 101},1\n", "a name must be printable and have at most 100"),
    ],
)
def test_a_wrong_table_is_refused_in_a_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "rows.csv").write_text(content)
    assert message in refusal(tmp_path, *ROLES, "--data-dir", str(tmp_path / "rows.csv"))


def test_a_table_without_rows_or_in_another_encoding_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({name: [] for name in ("user", "item", "platform", "time")}).to_parquet(tmp_path / "rows.parquet")
    assert "at least one row" in refusal(tmp_path, *ROLES, "--data-dir", str(tmp_path / "rows.parquet"))
    (tmp_path / "rows.csv").write_bytes(b"user,item,platform,time\n\xe9,1,a,1\n")
    argv = (*ROLES, "--data-dir", str(tmp_path / "rows.csv"))
    assert "line 2: must be UTF-8" in refusal(tmp_path, *argv, "--reading.encoding", "utf-8")
    (tmp_path / "rows.csv").write_bytes(b"user,item,platform,time\n\x81,1,a,1\n")  # nor is it latin-1
    assert "line 2: must be UTF-8 or latin-1" in refusal(tmp_path, *argv)


@pytest.mark.parametrize(("unit", "scale"), [("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9)])
def test_times_in_a_finer_unit_are_recognised_and_said(tmp_path: Path, unit: str, scale: int) -> None:
    table = pd.read_csv(io.StringIO(ROWS), dtype=str)
    table.to_csv(tmp_path / "plain.csv", index=False)
    table["time"] += "0" * (len(str(scale)) - 1)
    table.to_csv(tmp_path / "fine.csv", index=False)
    plain, fine = (
        dataset(parse([*ROLES, "--data-dir", str(tmp_path / f"{name}.csv")]).experiment) for name in ("plain", "fine")
    )
    pd.testing.assert_frame_equal(fine.interactions, plain.interactions)
    assert any(f"times are in {unit}" in note for note in fine.notes)
    assert not any("times are in" in note for note in plain.notes)
    table.loc[7, "time"] = str(10**9)
    table.to_csv(tmp_path / "mixed.csv", index=False)
    text = refusal(tmp_path, *ROLES, "--data-dir", str(tmp_path / "mixed.csv"))
    assert f"line 9, column 'time': a time must be in {unit}, as most are, found '1000000000'" in text


NAMED = ["[/]", "[bold]", "[link=http://x]y", "<b>x</b>", ":smile:", "a/b", "é", "x" * 100]


def test_platforms_of_any_name_are_shown_and_recorded_as_they_are_named(tmp_path: Path) -> None:
    rows = [f"u{i % 5},i{i * 7 % 30},{name},{10**9 + i}" for name in NAMED for i in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["user,item,platform,time", *rows]))
    out = tmp_path / "out"
    status, text, wrong = told(*SMALL, *ROLES, "--data-dir", str(tmp_path / "rows.csv"), "--out", str(out))
    assert (status, wrong) == (0, "")
    assert all(f"{name} " in text for name in NAMED[:-1])
    assert set(pd.read_csv(out / "clients.csv", dtype=str)["client"]) == set(NAMED)
    assert set(pd.read_parquet(out / "users.parquet")["client"]) == set(NAMED)
    assert "<b>x</b>" not in (out / "report.html").read_text(encoding="utf-8")


def test_a_user_whose_key_no_terminal_can_show_is_no_client(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(ROWS.replace("\nu1,", '\n"\x1b[2Ju\n1",'))
    argv = (*ROLES, "--data-dir", str(tmp_path / "rows.csv"))
    assert len(clients_data(parse(list(argv)).experiment)) == 2
    assert "must be printable" in refusal(tmp_path, *argv, "--partition", "one-user")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--rounds", "2.0"),
        ("--rounds", "1e400"),
        ("--rounds", "9" * 5000),
        ("--hidden", "8.0,4"),
        ("--clients", "1000000000"),
        ("--market.users", "9" * 30),
        ("--market.items", "1000000000"),
        ("--workers", "1000000000"),
        ("--init-std", "1e30"),
        ("--privacy.clip", "1e400"),
        ("--l2", "1e30"),
        ("--lr", "1e-300"),
        ("--coupling.total", "1e30"),
    ],
)
def test_an_absurd_number_is_refused_by_name(tmp_path: Path, option: str, value: str) -> None:
    assert f"option {option}: " in refusal(tmp_path, option, value)


def test_a_config_of_nonsense_is_refused_in_a_line(tmp_path: Path) -> None:
    for number, content in enumerate(
        [
            '{"patience": 2.0}',
            '{"patience": true}',
            '{"lr": 1e400}',
            '{"patience": 1' + "0" * 400 + "}",
            '{"patience": 1' + "0" * 5000 + "}",
            '{"market": {"users": {"x": [1]}}}',
            '{"market": [[[]]]}',
            '{"hidden": {"a": 1}}',
            '{"hidden": [[1]]}',
            '{"share": [null]}',
            '{"task": {"a\\n": "\\u001b[2J"}}',
            '{"\\u001b[2J": 1}',
            "[" * 5000 + "]" * 5000,
        ]
    ):
        path = tmp_path / f"{number}.json"
        path.write_text(content)
        assert len(refusal(tmp_path, "--config", str(path))) < 1100


def test_a_run_that_cannot_be_written_is_refused_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "x", Path("/proc/x"), tmp_path / ("y" * 300)):
        status, _, text = told(*SMALL, "--out", str(out))
        assert status == 2 and text.count("\n") == 1 and text.startswith("error: out: must be in a folder"), text


@pytest.mark.parametrize("engine", ["inline", "batched"])
def test_a_diverging_learning_rate_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, engine: str
) -> None:
    small = ["--market.users", "40", "--market.items", "60", "--clients", "2"]
    argv = [*SMALL, *small, "--optimiser", "sgd", "--lr", "1e5", "--rounds", "3", "--out", str(tmp_path / "out")]
    assert main([*argv, "--engine", engine]) == 1
    text = capfd.readouterr().err
    assert text.count("\n") == 1 and text.startswith("failed: round "), text
    if engine == "inline":  # the server may refuse a sum of stacked clients before they overflow
        assert "lr: must be small enough for finite parameters, found 100000.0" in text
    assert not caplog.records, "a log without a handler goes to the terminal"


def test_a_run_without_enough_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(simulations.run, "train", train)
    status, _, text = told(*SMALL, "--out", str(tmp_path / "out"))
    assert (status, text) == (1, "failed: the experiment needs more memory than there is\n")


WORDS = ["", " ", "x", "-1", "0", "2.0", "1e400", "nan", "inf", "-inf", "1e30", "1e-300", "9" * 400, "9" * 5000, "[/]"]
WORDS += ["a=b", ";", "=", ",", "a;b=", "a\0b", "a\nb", "{}", "none", "\u0663", "films=x", "*", "..", "\x1b[2J", "true"]


@settings(max_examples=60)
@given(st.data())
def test_a_bad_value_of_any_option_is_one_line(data: st.DataObject) -> None:
    given_ = data.draw(st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=3, unique=True))
    values = {path: data.draw(st.one_of(st.sampled_from(WORDS), st.text(max_size=20)), path) for path in given_}
    argv = [f"{flag(path)}={value}" for path, value in values.items()]
    small = ["--market.users", "10", "--market.items", "30", "--rounds", "1", "--engine", "inline", "--clients", "2"]

    class Accepted(BaseException):
        """The run would begin."""

    def begin(command: Command, console: Console) -> int:
        simulations.run.checked(command)
        raise Accepted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulations.run, "run", begin)
        try:
            status, out, text = told(*small, "--no-compare", *argv)
        except Accepted:
            return
    assert status == 2, text
    assert out == "" and text.startswith("error: ") and text.count("\n") == 1 and len(text) < 1100, text
    assert text[:-1].isprintable()


@pytest.mark.parametrize("content", [None, "", "{", "[]", json.dumps({"experiment": 3})])
def test_what_is_no_run_is_refused_by_whoever_reads_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    from clients.recommend import main as recommend
    from simulations.distil import main as distil

    if content is not None:
        (tmp_path / "experiment.json").write_text(content)
    for command, options in ((recommend, ["--client", "a", "--user", "b"]), (distil, [])):
        status = command([str(tmp_path), *options])
        text = capsys.readouterr().err
        assert status == 2 and text.count("\n") == 1 and text.startswith("error: "), text
