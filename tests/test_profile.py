"""A look before training: the screen, the page, the numbers, the command to run next, and what is refused."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedrec.experiment.holdings import clients_data, dataset
from fedrec.report.profile_screen import BRIEF
from simulations import command, estimate, run
from simulations.cli import parse
from simulations.profile import brief, continued, main

MARKET = ["--market.users", "30", "--market.items", "60", "--market.impressions", "12"]
SMALL = [*MARKET, "--rounds", "1", "--engine", "inline", "--model", "mf"]
MAPPED = ["--columns", "user=user,item=item,platform=platform,time=time,rating=rating"]


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def shops(path: Path, platforms: int = 3, **columns: Any) -> list[str]:
    """Write a table whose platforms have users and no item in common; return the options that read it."""
    rng, n = np.random.default_rng(1), 120 * platforms
    values: dict[str, Any] = {
        "user": np.repeat(np.arange(n // 6), 6) % 30,
        "item": rng.integers(0, 25, n),
        "platform": np.arange(n) * platforms // n,
        "time": 1_600_000_000 + rng.permutation(n) * 3600,
        "rating": rng.integers(1, 6, n),
    }
    frame = pd.DataFrame({**values, **columns})
    frame["item"] = frame["platform"].astype(str) + "-" + frame["item"].astype(str)
    frame["platform"] = "shop " + frame["platform"].astype(str)
    frame.to_csv(path, index=False)
    return ["--dataset", "table", "--data-dir", str(path), *MAPPED, "--rounds", "1", "--engine", "inline"]


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def next_of(out: str) -> list[str]:
    """Return the command below `next:`, as a shell reads it."""
    return shlex.split(out.partition("\nnext:\n")[2].replace("\\\n", " "))


@pytest.mark.parametrize("platforms", [1, 3, 9])
def test_a_table_is_one_screen_and_its_command_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], platforms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = shops(Path("my shops.csv"), platforms)
    out = shown(capsys, *given, "--out", "seen", "--no-compare")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) <= 40
    told = next_of(out)
    assert told[:3] == ["python", "-m", "simulations.run"]
    assert json.loads((tmp_path / "seen" / "profile.json").read_text())["command"] == told
    if platforms > 1:
        assert "no item in common: sharing items changes nothing, users do" in " ".join(out.split())
        assert told[-2:] == ["--share", "user_table,user_bias"]
    if platforms == 3:
        assert run.main([*told[3:], "--quiet", "--out", "made"]) == 0
        assert capsys.readouterr().out == f"report: {Path('made') / 'report.html'}\n"  # no look with --quiet


def test_few_users_are_a_silo_each_and_a_folder_is_called_as_its_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"u{user},i{user * step % 17}" for user in range(3) for step in range(1, 9)]
    Path("shops").mkdir()
    for name in ("a", "b"):
        Path("shops", f"{name}.csv").write_text("\n".join(["user,item", *rows]))
    told = next_of(shown(capsys, "--dataset", "table", "--data-dir", "shops/a.csv", "--no-compare"))
    assert run.main([*told[3:], "--rounds", "1", "--quiet", "--out", "made"]) == 0
    assert sorted(set(pd.read_csv("made/clients.csv")["client"])) == ["silo-1", "silo-2", "silo-3"]
    for where in ("shops/*.csv", "shops", "films=shops/a.csv;news=shops/b.csv"):
        shown(capsys, "--dataset", "table", "--data-dir", where)
    names = {path.name for path in Path("runs").iterdir()}
    assert names == {"profile-a", "profile-shops", "profile-shops-2", "profile-films-news"}


def test_the_command_is_what_was_given_where_that_says_what_is_shared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*shops(tmp_path / "t.csv"), "--share", "item_table"]
    out = shown(capsys, *given, "--out", str(tmp_path / "a"), "--quiet")
    assert next_of(out)[3:] == given
    assert out.splitlines()[0] == f"page: {tmp_path / 'a' / 'profile.html'}"  # --quiet: the page and the command alone


def test_the_page_and_the_numbers_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = shops(tmp_path / "t.csv", rating=np.full(360, 4))
    shown(capsys, *given, "--out", str(tmp_path / "seen"))
    numbers = json.loads((tmp_path / "seen" / "profile.json").read_text(encoding="utf-8"))
    page = (tmp_path / "seen" / "profile.html").read_text(encoding="utf-8")
    assert [group["name"] for group in numbers["platforms"]] == ["shop 0", "shop 1", "shop 2"]
    assert numbers["whole"]["rows"] == len(dataset(parse(given).experiment).interactions)
    assert {one["kind"] for one in numbers["suspicions"]} == {"constant rating", "constant"}
    assert all(one["text"][1:].replace("'", "&#39;") in page for one in numbers["suspicions"])
    assert f"{numbers['whole']['rows']:,} interactions" in page and "Items in common" in page
    assert shlex.join(numbers["command"]).replace("'", "&#39;") in page


def test_many_platforms_are_cut_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, *shops(tmp_path / "t.csv", 60), "--out", str(tmp_path / "seen"), "--no-compare")
    assert "... and 55 more on the page" in out and len(out.splitlines()) <= 40
    page = (tmp_path / "seen" / "profile.html").read_text(encoding="utf-8")
    assert "The 24 largest platforms are shown." in page and page.count('<th scope="row">shop') == 4 * 50 + 2 * 24


def test_synthetic_markets_have_a_look_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, "--clients", "2", *SMALL, "--out", str(tmp_path / "seen"))
    assert "each could train rank, rating, click, buy, behaviour, category, brand, price" in out
    assert "suspicious" not in out
    one = shown(capsys, "--clients", "2", "--partition", "one-user", *SMALL, "--out", str(tmp_path / "one"))
    assert "sharing users cannot" in " ".join(one.split())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--resume", "x"], "option --resume: acts only with a run, and a profile runs nothing"),
        (["--checkpoint-every=2"], "option --checkpoint-every: acts only with a run"),
        (["--estimate"], "option --estimate: acts only with a run"),
        (["--dataset", "table", "--data-dir", "nowhere.csv", "--columns", "user=u,item=i"], "nowhere.csv"),
        (["--round", "3"], "option --round: no such option; did you mean --rounds?"),
        (["--clients", "2", *SMALL, "--task", "dwell"], "task: must be one of"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert main([*argv, "--out", str(tmp_path / "seen")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "seen").exists()


def test_it_is_a_command_with_a_help_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["profile", "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: fedrec profile") and max(map(len, out.splitlines())) <= 80


def test_a_run_on_a_table_says_in_short_what_it_is_about_to_train_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*shops(tmp_path / "t.csv", rating=np.full(360, 4)), "--no-compare", "--model", "mf"]
    assert run.main([*given, "--out", str(tmp_path / "a")]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = brief(parse(given).experiment)
    start = lines.index(said[0])
    assert lines[start : start + len(said)] == said and len(said) <= BRIEF and max(map(len, said)) <= 80
    assert said[0].startswith("data: t.csv, ") and "3 platforms" in said[0]
    assert said[-1].startswith("suspicious: ") and "sharing: no item in common" in said[1]
    assert brief(parse(["--clients", "2", *SMALL]).experiment) == []


def test_what_is_said_in_short_is_at_most_six_lines_whatever_is_suspicious(tmp_path: Path) -> None:
    n = 360
    slips: dict[str, Any] = {
        "rating": np.where(np.arange(n) == 50, 5000, np.arange(n) % 5),
        "time": np.full(n, 7),
        "user": [f"u{k}" for k in range(n)],
    }
    said = brief(
        parse(shops(tmp_path / "a very long name of a file, which alone takes most of a line.csv", **slips)).experiment
    )
    assert len(said) == BRIEF and max(map(len, said)) <= 80 and re.match(r"\d+ more suspicions", said[-1])


def test_a_command_is_broken_into_lines_that_a_shell_joins() -> None:
    told = ["python", "-m", "simulations.run", "--columns", "user=a b,item=" + "x" * 70, "--quiet", "--out", "it's"] * 2
    text = continued(told)
    assert shlex.split(text.replace("\\\n", " ")) == told
    short = continued(told[:3] + ["--rounds", "3"] * 20)
    assert max(map(len, short.splitlines())) <= 80 and short.count("\n") >= 3


def test_an_estimate_is_printed_and_nothing_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--clients", "2", *SMALL, "--out", str(tmp_path / "a"), "--estimate"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("estimate: about ") and "by estimate" in out and not (tmp_path / "a").exists()
    assert run.main(["--resume", str(tmp_path), "--estimate"]) == 2
    assert "found --estimate beside it" in capsys.readouterr().err


def test_what_does_not_fit_into_memory_is_refused_before_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--clients", "2", *SMALL]
    need = estimate.estimate(parse(given).experiment, True).memory
    monkeypatch.setattr(estimate, "memory", lambda: int(need) - 1)
    assert run.main([*given, "--out", str(tmp_path / "a")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: memory: a run must fit into ") and "by estimate" in err and err.count("\n") == 1
    assert err.endswith("(it fits without its baselines: --no-compare)\n")
    assert not (tmp_path / "a").exists()
    out = shown(capsys, *given, "--out", str(tmp_path / "seen"))
    assert "refused: memory: a run must fit into" in out and "--no-compare)" in " ".join(out.split())
    assert next_of(out)[-1] == "--no-compare"
    monkeypatch.setattr(estimate, "memory", lambda: int(need))
    assert run.main([*given, "--no-compare", "--out", str(tmp_path / "a"), "--quiet"]) == 0


def test_the_sizes_of_an_estimate_are_those_of_the_clients() -> None:
    for more in (["--clients", "3"], ["--partition", "users", "--clients", "4"], ["--partition", "one-user"]):
        e = parse([*SMALL, *more]).experiment
        parts, sizes = clients_data(e), estimate.sizes_of(e)
        assert sizes.clients == len(parts) and sizes.rows == len(dataset(e).interactions)
        assert sizes.positives == dataset(e).interactions["positive"].sum()
        assert sizes.users == sum(len(data.users) for data in parts)
        assert sizes.items == sum(len(data.items) for data in parts)
        counts = [np.bincount(np.concatenate([p.user for p in (d.train, d.validation, d.test)])) for d in parts]
        assert sizes.pairs == sum(int((count**2).sum()) for count in counts)
