"""Which clients a node has, and whether it stacks them, by the settings of its engine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clients.app import clients_of
from clients.device import devices
from clients.node import Node
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.earlier import parties
from fedrec.experiment.parts import asked_to_stack, stacking_refusal

# Seconds of a round on an H100 over those on the CPU of its machine (workload W1 of the study of speed), by whether
# clients train as one program; launching kernels takes most of the time of one client's small steps.
ALONE, TOGETHER = 2.0, 0.62
MANY = 64  # clients from which they are stacked, unless the experiment says otherwise; on an accelerator all are


def node_of(settings: Mapping[str, Any]) -> Node:
    """Return the node of some partitions of an experiment.

    `settings`: experiment (its JSON), home (where clients write their files), partitions, device ("": as they like).
    """
    experiment = build(settings["experiment"])
    return hosted(experiment, Path(settings["home"]), settings["partitions"], settings["device"])


def hosted(experiment: Experiment, home: Path | None, partitions: Sequence[int], device: str) -> Node:
    """Return the node of some partitions, stacked if they are."""
    together = stacked(experiment)
    return Node(clients_of(experiment, home, partitions, device or "cpu" * together), together)


def each_alone(experiment: Experiment, home: Path | None) -> list[Node]:
    """Return a node for every client."""
    return [Node([client]) for client in clients_of(experiment, home, range(len(parties(experiment))))]


def stacked(experiment: Experiment) -> bool:
    """Return whether clients train as one program; raises UserError if --stack asks for it and it cannot be."""
    e, wanted, reason = experiment, asked_to_stack(experiment), stacking_refusal(experiment)
    if wanted and reason and e.stack == "yes":
        raise UserError(f"{reason}; take --stack no")
    many = len(parties(e)) >= MANY or devices(e.device) != ["cpu"]
    return not (e.pool or reason) and (bool(wanted) or (e.engine == "process" and e.stack == "auto" and many))


def apart(experiment: Experiment) -> str:
    """Return what is to be said of clients that train one at a time though they are asked to as one program."""
    steps = experiment.engine == "batched" and not experiment.solves
    reason = stacking_refusal(experiment) if steps else ""
    return f"{reason}; its clients are trained one at a time" if reason else ""


def slow(experiment: Experiment) -> str:
    """Return what is to be said of an accelerator that the run cannot use well; an empty text if there is none."""
    names = sorted({*devices(experiment.device)} - {"cpu"})
    if not names or experiment.solves or stacked(experiment):
        return ""
    measured = f"on one H100 a round took {ALONE} times as long so as on its CPU, and {TOGETHER} times as one program"
    return f"{names[0]} trains one client at a time: {measured} (take --engine batched, or --device cpu)"
