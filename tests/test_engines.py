"""One result whatever the engine: inline and ray agree to the bit, and so do two runs with one seed."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict

from fedrec.experiment.config import Experiment, build
from fedrec.experiment.holdings import clients_data
from server.faults import ClientFailure
from simulations.apps import apps_for, client, from_context, server
from simulations.engines import InlineGrid
from tests.helpers import AppNode, experiment, fit, results, run_inline, same

ROOT = Path(__file__).parent.parent
TASKS = "rank,click*0.5;shop=rating"


def test_the_same_seed_gives_the_same_result_to_the_bit() -> None:
    first, second = fit(experiment(task=TASKS))[0], fit(experiment(task=TASKS))[0]
    assert results(first) == results(second)
    assert all(torch.equal(first.shared[name], second.shared[name]) for name in first.shared)


def test_another_seed_gives_another_result() -> None:
    assert results(fit(experiment(seed=0))[0]) != results(fit(experiment(seed=1))[0])


def run_into(home: Path, e: Experiment) -> Path:
    """Run an experiment with its engine into a folder."""
    home.mkdir()
    run_inline(*apps_for(e, home), len(clients_data(e)))
    return home


RAY = """
import sys
from pathlib import Path
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data
from simulations.apps import apps_for
from simulations.engines import run_ray
e = Experiment.model_validate_json(sys.argv[1])
try:
    run_ray(*apps_for(e, Path(sys.argv[2])), len(clients_data(e)), 0)
except Exception as error:
    print(type(error).__name__, error)
"""


def ray_into(home: Path, e: Experiment) -> str:
    """Run an experiment on Ray in a process of its own, since Ray leaves open files behind; return what it printed."""
    home.mkdir()
    command = [sys.executable, "-c", RAY, e.model_dump_json(), str(home)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout


def test_inline_and_ray_agree_to_the_bit(tmp_path: Path) -> None:
    a = run_into(tmp_path / "inline", experiment(task=TASKS, engine="inline"))
    b = tmp_path / "ray"
    assert ray_into(b, experiment(task=TASKS, engine="ray")) == ""
    same(a, b, but=("engine",))


@pytest.mark.soak
@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_a_client_that_fails_is_named(engine: str, tmp_path: Path, tries: Callable[[int, int], int]) -> None:
    tries(int(engine == "inline"), 1)
    wrong = experiment(task="rank,nosuchlabel")
    if engine == "inline":
        with pytest.raises(ClientFailure) as failure:
            run_into(tmp_path / "inline", wrong)
        printed = f"ClientFailure {failure.value}"
    else:
        printed = ray_into(tmp_path / "ray", wrong)
    assert re.match(r"^ClientFailure joining: 2 of 3 .*found 0 \(node \d+.*: failed: task: .*'nosuchlabel'", printed)
    assert not list(tmp_path.glob("*/experiment.json"))


def test_the_saved_experiment_repeats_the_run_to_the_bit(tmp_path: Path) -> None:
    home = run_into(tmp_path / "first", experiment("fedrep", task=TASKS, seed=3))
    saved = json.loads((home / "experiment.json").read_text())["experiment"]
    again = run_into(tmp_path / "again", build(saved))
    for name in ("clients.csv", "ledger.csv", "users.parquet"):
        assert (home / name).read_bytes() == (again / name).read_bytes()


def test_flowers_own_run_config_describes_the_same_run(tmp_path: Path) -> None:
    e = experiment("fedrep", task=TASKS, clients=3)
    reference = run_into(tmp_path / "reference", e)
    config = {"experiment": e.model_dump_json(), "out": str(tmp_path / "flower")}
    nodes = [AppNode(client, i, 3) for i in range(3)]
    for node in nodes:
        node.context.run_config = config  # type: ignore[assignment]
    grid = InlineGrid(nodes)
    server(grid, Context(1, 1, {}, RecordDict(), config))  # type: ignore[arg-type]
    for name in ("clients.csv", "ledger.csv", "users.parquet"):
        assert (tmp_path / "flower" / name).read_bytes() == (reference / name).read_bytes()
    assert (tmp_path / "flower" / "report.html").exists()


def test_without_a_number_of_clients_there_is_one_for_each_node() -> None:
    context = Context(1, 1, {}, RecordDict(), {"clients": "none", "rounds": 3, "method": "fedrep"})
    e, out = from_context(context, 4)
    assert (e.clients, e.rounds, e.phases, out.name) == (4, 3, ("private", "shared"), "flower-1")
