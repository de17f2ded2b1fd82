"""Three shops' exports as they are: a look, a run and a recommendation by key, in three commands."""

import json
import re
import shlex
from pathlib import Path

import pytest

from clients import recommend
from simulations import profile, run
from tests.shops import Shops, write_shops

SHORT = ["--rounds", "2", "--no-compare", "--engine", "inline", "--model", "mf"]


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Shops]:
    home = tmp_path_factory.mktemp("three shops")
    return home, write_shops(home)


def test_look_run_and_recommend_in_three_commands(
    shops: tuple[Path, Shops], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    home, made = shops
    # 1. A look: what is bad is dropped and counted, and what is left is what the shops wrote.
    assert profile.main([*made.options, *SHORT, "--out", str(home / "seen")]) == 0
    out, err = capsys.readouterr()
    assert err == "" and len(out.splitlines()) <= 48 and max(map(len, out.partition("\npage: ")[0].splitlines())) <= 80
    seen = json.loads((home / "seen" / "profile.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in seen["platforms"]] == ["books", "nord", "web"]
    for one in seen["platforms"]:
        pairs = made.pairs[one["name"]]
        assert (one["rows"], one["users"]) == (len(pairs), len({user for user, _ in pairs}))
        assert one["items"] == len(made.items[one["name"]])
    for file, count in made.bad.items():
        (note,) = (text for text in seen["notes"] if text.startswith(f"{file}: ") and "dropped" in text)
        assert re.match(rf"{re.escape(file)}: {count} of [\d,]+ rows were dropped", note)
    books, nord, web = seen["platforms"]
    # Of 27 customers with 10 ratings each every twentieth is missing, from the fourth on.
    assert nord["ratings"]["known"] == 270 - 14 and nord["ratings"]["low"] == 1 and nord["ratings"]["high"] == 5
    assert books["ratings"]["high"] <= 10 and web["ratings"] is None
    assert {"click", "buy", "behaviour"} <= web["tasks"].keys() and "buy" not in nord["tasks"]
    assert seen["overlap"]["users"] == [[25, 0, 0], [0, 27, 12], [0, 12, 28]]
    assert seen["overlap"]["items"] == [[40, 30, 0], [30, 30, 0], [0, 0, 40]]
    assert seen["whole"]["times"][0] >= 1_614_556_800 and seen["whole"]["times"][1] < 1_614_556_800 + 301 * 86_400
    # 2. The command that it tells.
    told = shlex.split(out.partition("\nnext:\n")[2].replace("\\\n", " "))
    assert told == seen["command"] and told[:3] == ["python", "-m", "simulations.run"]
    assert run.main([*told[3:], "--out", str(home / "run")]) == 0
    capsys.readouterr()
    # 3. Recommendations by key: leading zeros, blanks and any script.
    for shop, user in (
        ("nord", "0007"),
        ("nord", "Åsa Öst"),
        ("web", "日本 花子"),
        ("web", "kunde 3"),
        ("books", "R0007"),
    ):
        assert recommend.main([str(home / "run"), "--client", shop, "--user", user, "-k", "5"]) == 0
        out, err = capsys.readouterr()
        assert err == "" and out.splitlines()[0] == f"{shop} recommends to user {user}, by the task rank:"
        items = re.findall(r"│ +\d+ +│ (\S+)", out)
        met = {item for who, item in made.pairs[shop] if who == user}
        assert (
            ("title" in out) == (shop != "web")
            and len(items) == 5
            and set(items) <= made.items[shop]
            and len(met & set(items)) <= 1
        )  # what is held out
    # A key of another shop gets the cold answer.
    assert recommend.main([str(home / "run"), "--client", "books", "--user", "0007"]) == 0
    assert capsys.readouterr().out.startswith("cold answer: books has no user '0007'")


def test_without_dropping_the_first_bad_row_is_named(
    shops: tuple[Path, Shops], capsys: pytest.CaptureFixture[str]
) -> None:
    home, made = shops
    strict = [one if one != "drop" else "strict" for one in made.options]
    assert profile.main([*strict, "--out", str(home / "none")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and not (home / "none").exists()
    assert re.search(r"(nord\.csv|web\.jsonl|part-0\.parquet), line \d+", err)
