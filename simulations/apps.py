"""The two apps as every engine runs them, and as Flower's own command line finds them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from clients.app import client_app
from fedrec.experiment import Experiment, clients_data
from fedrec.records import Record, Row, reserve, write_record
from server.app import Finish, server_app
from server.strategy import Plan
from simulations.check import check
from simulations.cli import overrides


def plan_of(experiment: Experiment) -> Plan:
    """Return what the server is told of an experiment."""
    e = experiment
    return Plan(e.rounds, e.eval_every, e.patience, e.weights == "uniform", (e.metrics[0], "logloss", "rmse"))


def finisher(experiment: Experiment, home: Path) -> Finish:
    """Return what writes the record of a run into `home`."""

    def finish(record: Record) -> None:
        write_record(home, record, experiment.model_dump(mode="json"))

    return finish


def apps_for(
    experiment: Experiment,
    home: Path,
    on_round: Callable[[Row], None] = lambda row: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[ServerApp, ClientApp]:
    """Return the apps of one experiment that writes its record into `home`."""

    def read_server(_: dict[str, Any]) -> tuple[Plan, int, Finish]:
        return plan_of(experiment), len(clients_data(experiment)), finisher(experiment, home)

    def read_client(_: dict[str, Any]) -> tuple[Experiment, Path | None]:
        return experiment, home

    return server_app(read_server, on_round, stop), client_app(read_client)


def from_run_config(config: dict[str, Any]) -> tuple[Experiment, Path]:
    """Return the experiment that Flower's run_config names, and the folder `out` that its record goes to."""
    values = dict(config)
    out = Path(str(values.pop("out", "") or "runs/flower")).expanduser().absolute()
    return overrides(values), out


def report_of(experiment: Experiment, home: Path) -> Finish:
    """Return what writes the record, the popularity baseline and the report into `home`."""
    write = finisher(experiment, home)

    def finish(record: Record) -> None:
        from fedrec.report import write_report
        from simulations.baselines import run_popularity

        write(record)
        run_popularity(experiment, home / "baselines" / "popularity")
        print(f"report: {write_report(home)}")

    return finish


def read_for_server(config: dict[str, Any]) -> tuple[Plan, int, Finish]:
    """Check the experiment of a run_config, and return what the ServerApp needs."""
    experiment, out = from_run_config(config)
    check(experiment)
    reserve(out).rmdir()
    return plan_of(experiment), len(clients_data(experiment)), report_of(experiment, out)


server = server_app(read_for_server)
client = client_app(from_run_config)
