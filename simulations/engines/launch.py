"""Run an experiment with the engine that it names."""

import gc
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

import simulations.engines.process as process
from clients.device import devices
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment
from fedrec.experiment.earlier import parties
from fedrec.experiment.records import Row
from fedrec.folders import CHECKPOINTS, saved
from server.checkpoint import Checkpoints, latest
from simulations.engines.identity import compare, identity
from simulations.engines.inline import InlineGrid, run_on
from simulations.engines.nodes import each_alone, hosted
from simulations.engines.ray import run_ray
from simulations.engines.slots import in_order, slots_of


def launch(
    experiment: Experiment,
    home: Path,
    on_round: Callable[[Row], None] = lambda row: None,
    stop: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = lambda text: None,
    every: int = 0,
    idle: list[process.Started] | None = None,
) -> None:
    """Run an experiment, and write its record into `home`.

    `tell` gets what the user should know of the engine. With `every` above 0 there is a checkpoint after so many
    rounds, and the run goes on from the one that `home` may hold. Worker processes that are `idle` are taken, and wait
    there again after the run. Raises UserError if the checkpoint is of another run.
    """
    from simulations.apps import apps_for

    apps = partial(apps_for, experiment, home, on_round, stop)
    e, clients = experiment, len(parties(experiment))
    home.mkdir(parents=True, exist_ok=True)
    if not every and saved(home):
        raise UserError("resume: checkpoint-every must be above 0 for a run that has checkpoints, found 0")
    if e.engine in ("inline", "batched", "process"):
        with process.idle_workers() if idle is None else nullcontext(idle) as workers:
            run_here(e, home, apps, tell, every, workers)
    elif every:
        raise UserError(f"checkpoint-every: must be 0 for the engine {e.engine}, which keeps clients' state to itself")
    elif e.engine == "ray":
        run_ray(*apps(), clients, len({*devices(e.device)} - {"cpu"}))
    else:
        from simulations.superlink import run_superlink

        run_superlink(apps()[0], e, home, clients)


def run_here(
    e: Experiment,
    home: Path,
    apps: Callable[..., tuple[ServerApp, ClientApp]],
    tell: Callable[[str], None],
    every: int,
    idle: list[process.Started],
) -> None:
    """Run an experiment on a grid of this process, whose nodes' state can be saved; raises UserError as `launch`."""
    clients = len(parties(e))
    about = identity(e) if every else {}
    last = latest(home / CHECKPOINTS) if every else None
    if last:
        compare(last.about, about)
    grid: InlineGrid | process.ProcessGrid
    if e.engine == "process":
        settings = {"experiment": e.model_dump(mode="json"), "home": str(home)}
        # As many workers as before, each with the same clients, whatever cores this machine has.
        slots = slots_of(e.model_copy(update={"workers": last.about["workers"]}) if last else e, clients)
        about["workers"] = len(slots)
        grid = process.ProcessGrid(slots, settings, tell, idle)
    elif e.engine == "batched" and not e.pool:
        grid = InlineGrid([hosted(e, home, in_order(e), devices(e.device)[0])], hosts=True)
    else:
        grid = InlineGrid(each_alone(e, home))
    # A round of thousands of clients makes thousands of small objects, which the collector would walk again and again.
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        root = home / CHECKPOINTS
        kept = Checkpoints(root, grid.save, grid.settle, grid.restore, every, about, last) if every else None
        run_on(grid, apps(len(list(grid.get_node_ids())), kept)[0])
    finally:
        gc.set_threshold(*before)
        grid.close()
