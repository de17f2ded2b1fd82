"""Which host a node is, by the settings of its engine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clients.app import client_app
from fedrec.experiment import build, clients_data
from simulations.engines.host import Host


def host_of(settings: Mapping[str, Any]) -> Host:
    """Return the host of some partitions of an experiment.

    `settings`: experiment (its JSON), home (where clients write their files), partitions, device ("": as they like).
    """
    experiment, home = build(settings["experiment"]), Path(settings["home"])
    app = client_app(lambda _: (experiment, home))
    return Host(app, settings["partitions"], len(clients_data(experiment)), settings["device"])
