"""The engine `ray`: Flower's own simulation runtime."""

import logging
import os
import sys
import threading
from collections.abc import Iterable
from typing import Any, cast

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from simulations.sockets import ray_token


def run_ray(server: ServerApp, client: ClientApp, clients: int, gpus: int) -> None:
    """Run an experiment on Flower's simulation runtime: one Ray actor for each core, or for each GPU.

    The experiment comes with the apps, since this runtime passes an empty run_config. The ServerApp's error is raised.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for name, value in ray_token().items():
        os.environ.setdefault(name, value)
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    from flwr.simulation import run_simulation

    cores = min(os.cpu_count() or 1, clients)
    config = {"client_resources": {"num_cpus": 1, "num_gpus": gpus / max(1, cores) if gpus else 0.0}}
    failure: list[BaseException] = []
    leave = threading.Event()

    def simulate() -> None:
        try:
            begin(cores)
            run_simulation(keeping(server, failure, leave), client, clients, backend_config=cast(Any, config))
        except BaseException as error:
            failure.append(error)

    watch(threading.Thread(target=simulate), leave)
    if failure:
        raise failure[0]


def begin(cores: int) -> None:
    """Start a Ray of so many cores, which Flower finds and ends, and whose workers look for modules where we do.

    Of a Ray that Flower starts they look in the working folder first, where a `clients.py` of the user's would take the
    place of the package. A job that says to be of a client of Ray's, for which Ray does not know that folder, does not.
    """
    import ray
    from ray.job_config import JobConfig

    paths = os.pathsep.join(filter(None, sys.path))
    ray.init(
        num_cpus=cores,
        include_dashboard=False,
        logging_level=logging.CRITICAL,
        log_to_driver=False,
        job_config=JobConfig(runtime_env={"env_vars": {"PYTHONPATH": paths}}, _client_job=True),
    )


def watch(simulation: threading.Thread, leave: threading.Event) -> None:
    """Wait for the thread of a simulation; after KeyboardInterrupt set `leave`, and stop Ray if that is too slow.

    The main thread looks up now and then: a signal that another thread of Ray's takes does not wake it.
    """
    simulation.start()
    try:
        while simulation.is_alive():
            simulation.join(0.2)
    except KeyboardInterrupt:
        import ray

        leave.set()
        simulation.join(10.0)  # Ray needs some seconds to end its processes
        if simulation.is_alive():
            ray.shutdown()
            simulation.join(10.0)
        raise


def keeping(server: ServerApp, failure: list[BaseException], leave: threading.Event) -> ServerApp:
    """Return a ServerApp that puts what `server` raises into `failure`: Flower would log a traceback of its own.

    It gives up waiting for replies once `leave` is set; Flower has no other way to end it.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        pull = grid.pull_messages

        def pull_or_leave(message_ids: Iterable[str]) -> Iterable[Message]:
            if leave.is_set():
                raise KeyboardInterrupt
            return pull(message_ids)

        vars(grid)["pull_messages"] = pull_or_leave
        try:
            server(grid, context)
        except BaseException as error:
            failure.append(error)

    return app
