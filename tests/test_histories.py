"""What is read of users when they are asked: what was liked in training, and at the test what was validated too."""

from pathlib import Path
from typing import Any

import pytest

import fedrec
from fedrec.data import ClientData
from fedrec.data.history import Sequences, sequences
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data, reader
from fedrec.experiment.records import Record
from fedrec.models import SummedRecommender
from simulations.run import main
from tests.helpers import experiment, fit

MARKET = {"users": 40, "items": 30, "impressions": 20}
READERS: dict[str, dict[str, Any]] = {
    **{model: {"model": model, "rounds": 1} for model in ("ease", "slit", "slist")},
    "subspace": {"model": "slist", "sums": {"kind": "subspace", "k": 4, "passes": 1}, "rounds": 2, "eval_every": 2},
    **{kind: {"sequence": {"kind": kind, "history": 100}} for kind in ("gru4rec", "sasrec")},
}


def small(name: str, **fields: Any) -> Experiment:
    return experiment(**{"market": MARKET, "split": "random", "fractions": (0.2, 0.2), **READERS[name], **fields})


def read(e: Experiment, data: ClientData, split: Any) -> list[list[int]]:
    """Return the items that a client's model reads of every user."""
    model = reader(e, data, split)
    if isinstance(model, SummedRecommender):
        return listed(model.past)
    assert model.side.history is not None
    return [[item for item in row if item >= 0] for row in model.side.history.tolist()]


def listed(past: Sequences) -> list[list[int]]:
    return [past.item[a:b].tolist() for a, b in zip(past.start[:-1], past.start[1:], strict=True)]


@pytest.mark.parametrize("name", READERS)
def test_every_model_reads_the_same_and_the_switch_is_of_the_test_alone(name: str) -> None:
    for history in ("train", "with-validation"):
        e = small(name, history=history)
        assert e.history == history
        for data in clients_data(e):
            trained = listed(sequences(data, [data.train], e.seed))
            known = listed(sequences(data, [data.train, data.validation], e.seed))
            assert trained != known
            assert read(e, data, "validation") == trained
            assert read(e, data, "test") == (known if history == "with-validation" else trained)


def values(record: Record, split: str) -> list[float]:
    return [float(row["value"]) for row in record.clients if row["split"] == split]


@pytest.mark.parametrize("name", ["slist", "gru4rec"])
def test_the_switch_changes_test_values_and_nothing_that_is_learnt_or_chosen(name: str) -> None:
    usual, alone = (fit(small(name, **fields))[0] for fields in ({}, {"history": "train"}))
    assert all((usual.shared[key] == value).all() for key, value in alone.shared.items())
    assert values(usual, "validation") == values(alone, "validation")
    assert values(usual, "test") != values(alone, "test")


@pytest.mark.parametrize("line", ["--model mf", "--model slist --split new-users", "--model mlp --task rank,click"])
def test_what_reads_no_histories_has_no_switch(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*line.split(), "--history", "train"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: option --history: acts only with a model that reads histories"), shown
    assert shown.count("\n") == 1


def test_the_page_names_what_was_read_and_what_is_shared(tmp_path: Path) -> None:
    run = fedrec.run(
        model="slist", history="train", clients=3, engine="inline", market=MARKET, compare=False, out=tmp_path / "run"
    )
    page = run.report_path.read_text()
    assert "<dt>Histories</dt><dd>at the test training items alone</dd>" in page
    assert "<dt>Method</dt><dd>fedper; shared: sums</dd>" in page
