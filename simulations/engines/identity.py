"""What a checkpoint is of: the experiment, its data, and what a result depends on beside them."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from clients.device import devices
from fedrec.data import ClientData
from fedrec.data.store import Federation
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data, keys
from fedrec.experiment.records import versions
from fedrec.privacy.secret import Part, digest
from simulations.options import flatten

MOVABLE = ("data_dir",)  # where the data lies may change: what it holds is compared


def identity(e: Experiment) -> dict[str, Any]:
    """Return what a run can be told from any other by, as JSON can hold it."""
    parts = list(parts_of(clients_data(e)))
    parts += ["\n".join(texts) for texts in keys(e)]  # of which rows start
    try:
        release = version("fedrec")
    except PackageNotFoundError:  # run from its folder alone
        release = "unknown"
    return {
        "experiment": flatten(e.model_dump(mode="json")),
        "versions": {**versions(), "fedrec": release},
        "devices": devices(e.device),
        "data": digest(*parts).hex(),
    }


def parts_of(clients: Sequence[ClientData]) -> Iterator[Part]:
    """Yield what the results of clients are made from."""
    if isinstance(clients, Federation):
        names = ("users", "user_edges", "items", "item_edges", "edges")
        arrays = {name: getattr(clients, name) for name in names}
        yield "\n".join(clients.names)
        yield {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}
        yield clients.columns
        return
    for data in clients:
        yield data.name
        yield {"users": torch.from_numpy(data.users), "items": torch.from_numpy(data.items)}
        yield from (data.train, data.validation, data.test, data.support)
        yield from parts_of(data.members)


def compare(was: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise UserError, which names what differs, unless two identities are of the same run."""
    before, now = flatten(was["experiment"]), current["experiment"]
    for name in {**now, **before}:
        if name not in MOVABLE and before.get(name) != now.get(name):
            raise UserError(
                f"resume: {name} must be {before.get(name)!r} as in the checkpoint, found {now.get(name)!r}"
            )
    for name, value in current["versions"].items():
        if (known := was["versions"].get(name, "unknown")) != value:
            raise UserError(f"resume: {name} must have version {known} as in the checkpoint, found {value}")
    if list(was["devices"]) != list(current["devices"]):
        raise UserError(f"resume: devices must be {was['devices']} as in the checkpoint, found {current['devices']}")
    if was["data"] != current["data"]:
        raise UserError("resume: the data must be what the checkpoint was made from, found other interactions")
