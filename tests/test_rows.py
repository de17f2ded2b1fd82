"""Bad rows, and what a table's options do, from the command line to the terminal, the record and the page."""

import json
from pathlib import Path

import pandas as pd
import pytest

from fedrec.errors import UserError
from fedrec.experiment.acting import inert
from fedrec.experiment.config import Experiment, build
from simulations.cli import parse
from simulations.methods import usual
from simulations.options import nest
from tests.test_input import SMALL, refusal, told

ROLES = ("--dataset", "table", "--columns", "user=u,item=i,platform=p,rating=r,event=e,time=t")
LINES = [f"u{n % 20},i{7 * n % 30},{'ab'[n % 2]},{1 + n % 5},{('view', 'order')[n % 3 == 0]},{n}" for n in range(300)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["u,i,p,r,e,t", *LINES[:100], ",i1,a,3,view,7", *LINES[100:], "u1,i2,b,good,view,8"]))
    return path


def test_dropped_rows_are_counted_in_the_terminal_the_record_and_the_page(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    form = ("--events", "click=view,order;buy=order", "--filters.core", "2", "--task", "rank,buy")
    status, text, wrong = told(
        *SMALL, *ROLES, "--data-dir", str(rows), *form, "--rows", "drop", "--reading.scale", "1..5", "--out", str(out)
    )
    assert (status, wrong) == (0, "")
    said = "rows.csv: 2 of 302 rows were dropped, 300 remain: user 1 (must not be empty: line 102 nothing); rating 1"
    core = "filter, 2-core:"
    assert f"data: {said}" in text and core in text
    notes = json.loads((out / "experiment.json").read_text())["data"]["notes"]
    assert any(note.startswith(said) for note in notes) and any(note.startswith(core) for note in notes)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert said in page and core in page
    assert {"rank", "buy"} < set(pd.read_csv(out / "clients.csv")["task"])


def test_a_bad_row_is_refused_by_its_line_before_anything_runs(rows: Path, tmp_path: Path) -> None:
    text = refusal(tmp_path, *ROLES, "--data-dir", str(rows), "--events", "click=view;buy=order")
    assert text.startswith(
        "error: rows.csv, line 102, column 'u': must not be empty, found nothing (2 of 302 rows are bad"
    )


def test_attributes_of_items_are_content(rows: Path, tmp_path: Path) -> None:
    items = tmp_path / "items.csv"
    items.write_text("id,genre,was\n" + "\n".join(f"i{n},g{n % 3},long text {n}" for n in range(31)))
    argv = ["--reading.items", str(items), "--reading.item-columns", "key=id,category=genre,description=was"]
    argv += ["--content.kind", "hashed", "--rows", "drop", "--data-dir", str(rows)]
    from fedrec.data import content_vectors
    from fedrec.experiment.holdings import dataset

    e = parse([*ROLES, *argv]).experiment
    data = dataset(e)
    assert data.items["categories"].tolist()[:2] == ["g0", "g1"] and "description" in data.items
    bare = content_vectors(dataset(e), e.content)[0]
    items.write_text(items.read_text().replace("long", "short"))
    again = parse([*ROLES, *argv, "--seed", "1"]).experiment
    assert (bare != content_vectors(dataset(again), again.content)[0]).any()


FILE = {"dataset": "table", "columns": "user=u,item=i"}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"reading.normalise": True}, "reading.normalise"),
        ({"reading.item_columns": "key=id"}, "reading.item_columns"),
        ({"reading.user_columns": "key=id"}, "reading.user_columns"),
    ],
)
def test_what_needs_another_option_is_refused_without_it(fields: dict[str, object], path: str) -> None:
    e = build(nest({**FILE, **fields}))
    assert list(inert(e, usual(e))) == [path]
    more = {"reading.scale": "1..5", "reading.items": "a.csv", "reading.users": "b.csv"}
    e = build(nest({**FILE, **more, **fields}))
    assert list(inert(e, usual(e))) == []


def test_options_of_a_table_are_refused_without_one() -> None:
    for flags in (
        ["--rows", "drop"],
        ["--events", "click=view"],
        ["--filters.core", "5"],
        ["--reading.match", "x.csv"],
    ):
        with pytest.raises(UserError, match="acts only with a table"):
            parse(flags)
    assert parse([*ROLES, "--data-dir", "x.csv", "--rows", "drop"]).experiment != Experiment()


def test_a_dataset_that_is_made_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_of_rows.py").write_text(
        "from dataclasses import dataclass\nfrom fedrec.data import Market, synthetic\n\n\n@dataclass(frozen=True)\n"
        "class Made:\n    def load(self):\n        return synthetic(Market(users=20, items=30), platforms=2, seed=0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from fedrec.experiment.holdings import dataset

    for flags, field in ((["--rows", "drop"], "reading"), (["--filters.core", "2"], "filters")):
        with pytest.raises(UserError, match=f"{field}: acts only with a table, found a Dataset"):
            dataset(parse(["--dataset", "made_of_rows:Made", *flags]).experiment)
