"""Which clients a worker hosts, and on which device."""

import os
from dataclasses import dataclass

from clients.device import devices
from fedrec.experiment.config import Experiment
from fedrec.experiment.earlier import parties
from fedrec.experiment.records import natural
from fedrec.keyed import CHUNK


@dataclass(frozen=True)
class Slot:
    """What a worker is given: which clients, on which device."""

    partitions: tuple[int, ...]
    device: str = ""


def slots_of(experiment: Experiment, clients: int) -> list[Slot]:
    """Return the workers' slots: clients that the server sums one after the other, in whole chunks if there are enough.

    There is one worker for each device, or for each core of a CPU alone, unless the experiment says how many.
    """
    names = devices(experiment.device)
    slots = (os.cpu_count() or 1) if names == ["cpu"] else len(names)
    workers = min(experiment.workers or slots, clients)
    size = -(-clients // workers)
    if size >= CHUNK:
        size = -(-size // CHUNK) * CHUNK
    order = in_order(experiment)
    starts = range(0, clients, size)
    return [Slot(tuple(order[start : start + size]), names[k % len(names)]) for k, start in enumerate(starts)]


def in_order(experiment: Experiment) -> list[int]:
    """Return the partitions in the order in which the server sums their clients."""
    names = parties(experiment).names
    return sorted(range(len(names)), key=lambda place: (natural(names[place]), names[place]))
