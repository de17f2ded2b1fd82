"""Clients that hold the rows that training moved, beside a start that all have, are those that hold whole tables."""

from pathlib import Path
from typing import Any

import pytest
import torch

import fedrec.training.common_start as common_start
from clients.app import clients_of
from clients.node import Node
from clients.state import restore, saved
from fedrec.experiment.kept import describe_clients, load_kept
from fedrec.files import memory
from fedrec.training.common_start import CommonStart
from simulations.cli import parse
from simulations.engines import launch
from simulations.estimate import estimate
from tests.helpers import experiment
from tests.test_resume import Killed, until

ALONE: dict[str, Any] = {
    "partition": "one-user",
    "clients": 70,
    "market": {"users": 70, "items": 90, "impressions": 8},
    "engine": "batched",
    "rounds": 4,
    "eval_every": 1,
    "patience": 2,
}


@pytest.mark.parametrize(("method", "fields"), [("local", {}), ("fedper", {"share": ["user_bias"]})])
def test_what_is_held_by_a_common_start_is_the_whole_tables_to_the_bit(
    method: str, fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In metrics, the selected round, and what each client keeps; also of a run that was broken off."""
    e = experiment(method, **{**ALONE, **fields})
    launch(e, tmp_path / "whole")
    monkeypatch.setattr(common_start, "LARGE", 1)
    launch(e, tmp_path / "rows")
    with pytest.raises(Killed):
        launch(e, tmp_path / "broken", on_round=until(2), every=1)
    launch(e, tmp_path / "broken", every=1)
    (whole,) = (tmp_path / "whole" / "model").glob("clients-*")
    for home in (tmp_path / "rows", tmp_path / "broken"):
        for name in ("clients.csv", "users.parquet"):
            assert (home / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        (file,) = (home / "model").glob("clients-*")
        assert file.stat().st_size < whole.stat().st_size
        for client in [one["name"] for one in describe_clients(home)][::23]:
            mine, other = load_kept(home, client), load_kept(tmp_path / "whole", client)
            assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def test_what_is_saved_of_a_common_start_has_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common_start, "LARGE", 1)
    e = experiment("local", **ALONE)
    node = Node(clients_of(e, None, range(70)), stacked=True)
    node.join()
    (program,) = node.programs
    assert isinstance(program.states.now.private, CommonStart)
    records = saved(node.parties)
    assert sum(name.startswith("base.") for name in records) == 1
    restore(node.parties, records)
    assert isinstance(program.states.now.private, CommonStart)


def test_many_users_alone_with_a_large_catalogue_are_not_refused() -> None:
    """Whole tables would take 53 GB a copy."""
    argv = ["--dataset", "simulations.studies.crowd:Crowd", "--dataset.users", "2000", "--dataset.items", "200000"]
    argv += ["--partition", "one-user", "--clients", "2000", "--model", "mf", "--rounds", "3", "--engine", "batched"]
    found = estimate(parse([*argv, "--share", "item_table,item_bias"]).experiment, True)
    assert found.bytes["tables"] < 2e9 < memory()
