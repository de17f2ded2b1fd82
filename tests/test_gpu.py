"""On an accelerator: the same result as on the CPU up to float tolerance. Skipped where there is none."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from fedrec.experiment.records import load_params
from simulations.engines import launch
from tests.helpers import experiment

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
TASKS = "rank-bce,click*0.5;shop=rating"
MANY: dict[str, Any] = {"partition": "one-user", "clients": 70, "market": {"users": 70, "items": 30, "impressions": 8}}


def into(home: Path, method: str, **fields: Any) -> Path:
    home.mkdir()
    launch(experiment(method, task=TASKS, **fields), home)
    return home


@pytest.mark.parametrize("engine", ["inline", "batched", "process"])
@pytest.mark.parametrize("method", ["fedper", "admm", "ditto", "fedrep"])
@pytest.mark.parametrize("fields", [{}, {"model": "mlp"}, MANY], ids=["silos", "mlp", "one-user"])
def test_a_run_on_the_accelerator_gives_what_the_cpu_gives(
    engine: str, method: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    a = into(tmp_path / "cpu", method, **fields, engine="inline", device="cpu")
    b = into(tmp_path / "cuda", method, **fields, engine=engine, device="cuda")
    for path in sorted((a / "model").glob("*.safetensors")):
        mine, other = load_params(path), load_params(b / "model" / path.name)
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            assert torch.allclose(value, other[name], rtol=0, atol=1e-4), (path.name, name)
    devices = pd.read_csv(b / "clients.csv")["device"]
    assert set(devices.dropna()) == {"cuda:0"}


def test_cpu_and_accelerator_take_turns(tmp_path: Path) -> None:
    home = into(tmp_path / "mixed", "fedper", engine="process", device="cuda:0,cpu")
    assert set(pd.read_csv(home / "clients.csv")["device"].dropna()) == {"cuda:0", "cpu"}


def test_memory_is_bounded_by_chunks(tmp_path: Path) -> None:
    torch.cuda.reset_peak_memory_stats()
    fields = {**MANY, "clients": 2000, "market": {"users": 2000, "items": 2000, "impressions": 40}}
    into(tmp_path / "many", "fedper", **fields, engine="batched", device="cuda", dim=32)
    dense = 2000 * 2000 * 32 * 4
    assert torch.cuda.max_memory_allocated() < dense / 2
