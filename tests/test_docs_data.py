"""docs/data.md: its files are read, and its commands run, as they stand; its table is that of the layouts."""

import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from fedrec.data import LAYOUTS, Dataset
from fedrec.experiment.holdings import dataset
from simulations.cli import parse
from simulations.profile import main as profile
from simulations.run import main

TEXT = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`([\w./-]+)`:\n\n```\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = [
    shlex.split(text.replace("\\\n", " "))[2:] for text in re.findall(r"```\n(fedrec run .*?)\n```", TEXT, re.DOTALL)
]
(LOOK,) = re.findall(r"```\nfedrec profile (.*?)\n```", TEXT, re.DOTALL)
FILMS, SHOP, BOOKS, ALL, COUNTED = COMMANDS[:5]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the files of the page, in which its commands are given."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="latin-1" if name == "films.csv" else "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(command: list[str]) -> Dataset:
    """Return what a command reads."""
    return dataset(parse(command).experiment)


def test_the_film_site(folder: Path) -> None:
    data = read(FILMS)
    assert data.items["title"].tolist() == ["Der große Fluß", "Über den Wolken", "Zwei Züge", "Nachts"]
    assert data.interactions["rating"].isna().sum() == 1
    assert sorted(data.interactions["rating"].dropna()) == [1.5, 2, 3.5, 4, 4.5, 4.5, 5, 5]
    assert data.interactions["time"].min() == 1703376000  # 24 December 2023


def test_the_shop(folder: Path) -> None:
    data = read(SHOP)
    assert data.labels == ("buy", "click")
    rows = data.interactions
    assert len(rows) == 9, "11 events of 9 pairs"
    assert int(rows["buy"].sum()) == 6 and int((rows["buy"] & rows["click"]).sum()) == 1
    assert rows["positive"].equals(rows["buy"])


def test_the_shop_whose_events_are_counted(folder: Path) -> None:
    rows = read(COUNTED).interactions
    assert sorted(rows["weight"]) == [1] * 7 + [2] * 2, "11 events of 9 pairs"
    assert rows.drop(columns="weight").equals(read(SHOP).interactions)


def test_the_bookseller(folder: Path) -> None:
    data = read(BOOKS)
    assert len(data.interactions) == 9, "of 11 rows, two are bad"
    assert sum("1 of" in note and "rows were dropped" in note for note in data.notes) == 2
    assert data.items["categories"].tolist() == ["novel", "poems|novel", "", "novel"]
    assert data.users["region"].tolist() == ["Bern", "Basel", "Bern"]


def test_all_three_are_trained_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = read(ALL)
    assert data.platforms == ("books", "films", "shop")
    assert set(data.users["key"]) == {"k1", "k2", "k3", "k4", "k5"}
    assert Counter(data.interactions["platform"]) == {0: 9, 1: 9, 2: 9}
    small = ["--rounds", "1", "--dim", "4", "--engine", "inline", "--no-compare", "--quiet"]
    assert main([*ALL, *small, "--out", "out"]) == 0, capsys.readouterr().err


def test_a_look_before_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile(shlex.split(LOOK)) == 0
    shown = capsys.readouterr().out
    assert "decimal comma" in " ".join(shown.split()) and "rank, rating, like" in shown
    assert "python -m simulations.run" in shown.partition("next:")[2]


def test_the_table_of_public_data_sets_says_what_the_layouts_say() -> None:
    for name, layout in LAYOUTS.items():
        (row,) = [line for line in TEXT.splitlines() if line.startswith("|") and f"`{name}`" in line.split("|")[1]]
        assert layout.page in row and layout.terms in TEXT
        told = row.split("|")[-2].strip()
        assert told.startswith("yes" if layout.url else "no"), row
        assert ("MD5" in told) == bool(layout.md5), row


def test_help_of_a_public_data_set_says_what_it_is_and_its_terms(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(["--dataset", "kuairec", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    assert "KuaiRec 2.0" in shown and "https://kuairec.com/ terms: CC BY-SA 4.0" in shown
    assert "--dataset.path" in shown
