"""Checks that an experiment can run, before anything is started or written."""

from clients.device import devices
from fedrec.errors import UserError
from fedrec.experiment import Experiment, clients_data
from fedrec.tasks import per_client


def check(experiment: Experiment) -> None:
    """Raise UserError if the data, the tasks, the sharing or the device do not fit together."""
    devices(experiment.device)
    parts = clients_data(experiment)
    names: list[str] = []
    shapes: dict[str, tuple[tuple[int, ...], str]] = {}
    known = {data.name for part in parts for data in (part.members or (part,))}
    for text in (experiment.task, experiment.model):
        for client in per_client(text).keys() - {"*"}:
            if client not in known:
                raise UserError(f"client {client!r}: must be one of {', '.join(sorted(known)[:20])}, found in {text!r}")
    for data in parts:
        tasks = experiment.tasks(data.name)
        for task in tasks:
            task.target(data.train)
            if not task.rows(data.train).any():
                raise UserError(f"task {task.name}: client {data.name} must have a training row with it, found none")
        names += agree(experiment, data.name, shapes)
    experiment.sharing().check(names)


def agree(experiment: Experiment, client: str, shapes: dict[str, tuple[tuple[int, ...], str]]) -> list[str]:
    """Return the names of a client's parameters; raises UserError if one that it shares has another shape elsewhere.

    `shapes` gathers the shape of every shared parameter and the first client that has it.
    """
    like = experiment.recommender(client).shapes(1, 1, [task.name for task in experiment.tasks(client)])
    for name, value in experiment.sharing().split(like)[0].items():
        shape, other = shapes.setdefault(name, (tuple(value.shape), client))
        if shape != tuple(value.shape):
            raise UserError(
                f"share: {name} must have one shape to be shared, found {list(value.shape)} in {client} "
                f"and {list(shape)} in {other}; give them one model, or share less"
            )
    return list(like)


def warnings(experiment: Experiment) -> list[str]:
    """Return what the reader of a result must know of the data and the protocol."""
    notes = [note for part in clients_data(experiment) for note in part.notes]
    if experiment.negatives == "published":
        notes.insert(0, "LEAKING PROTOCOL: training negatives avoid the held-out items")
    return list(dict.fromkeys(notes))[:10]


def client_count(experiment: Experiment) -> int:
    """Return the number of Flower clients."""
    return len(clients_data(experiment))


def gpu_count(experiment: Experiment) -> int:
    """Return the number of distinct CUDA devices that the clients use."""
    return len({name for name in devices(experiment.device) if name != "cpu"})
