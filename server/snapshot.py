"""The server's state between two rounds, as tensors, numbers and new rows of the record, and back."""

from dataclasses import asdict

from fedrec.aggregation import gather
from fedrec.parameters import Params
from fedrec.sharing import ContractError
from server.checkpoint import Snapshot
from server.scores import Best, Score
from server.state import State

ROWS = ("rounds", "clients", "traffic", "notes", "resumed", "faults")


def take(c: State, number: int, since: dict[str, int]) -> Snapshot:
    """Return the state after a round; of the record the rows that are new, `since` the counts of the last snapshot."""
    tensors = {f"tie/{name}": value for name, value in c.tie.state().items()}
    tensors |= {f"best/{name}": value for name, value in c.best.z.items()}
    if c.plan.coupling.personal:  # else a part of z
        for place, name in enumerate(c.best.parts):
            tensors |= {f"part/{place}/{key}": value for key, value in c.best.parts[name].items()}
    if c.control:
        tensors |= {f"control/{name}": value for name, value in c.control.c.items()}
    numbers = {
        "clients": list(c.carriers),
        "stale": c.stale,
        "seen": c.seen,
        "improved": sorted(c.improved),
        "prices": c.prices,
        "last": asdict(c.scores.last),
        "keys": {name: [list(key) for key in keys] for name, keys in c.scores.keys.items()},
        "best": {"round": c.best.round, "score": asdict(c.best.score), "prices": c.best.prices},
        "newcomers": c.newcomers.state(),
        "seconds": c.record.seconds,
    }
    record = {name: getattr(c.record, name)[since.get(name, 0) :] for name in ROWS}
    return Snapshot(number, tensors, numbers, record)


def put_back(c: State, snapshot: Snapshot) -> None:
    """Bring a state whose clients have joined to a snapshot; raises ContractError if they are others."""
    numbers = snapshot.numbers
    if numbers["clients"] != list(c.carriers):
        raise ContractError(f"clients: must be those of the checkpoint, found {len(c.carriers)} that have joined")
    c.tie.restore(under("tie/", snapshot.tensors))
    c.parts = {name: c.tie.part(name) for name in c.carriers}
    if c.control:
        c.control.c = under("control/", snapshot.tensors)
    c.stale, c.seen, c.improved, c.prices = (numbers[n] for n in ("stale", "seen", "improved", "prices"))
    c.improved = set(c.improved)
    c.scores.last = Score(**numbers["last"])
    c.scores.keys = {name: tuple(tuple(key) for key in keys) for name, keys in numbers["keys"].items()}
    about, z = numbers["best"], under("best/", snapshot.tensors)
    if about["round"]:
        # What every client was sent is a part of z, unless the coupling is personal.
        own = {name: under(f"part/{place}/", snapshot.tensors) for place, name in enumerate(c.carriers)}
        parts = own if c.plan.coupling.personal else {name: gather(z, who) for name, who in c.carriers.items()}
        c.best = Best(about["round"], Score(**about["score"]), z, parts, about["prices"])
    c.newcomers.restore(numbers["newcomers"])
    for name in ROWS:
        setattr(c.record, name, snapshot.record[name])
    c.record.traffic = [(tuple(names), rows) for names, rows in c.record.traffic]
    c.record.seconds = numbers["seconds"]


def under(prefix: str, tensors: Params) -> Params:
    """Return the tensors whose names begin with a prefix, without it, in the order of their names as a mean has them.

    The format has an order of its own.
    """
    return {name.removeprefix(prefix): tensors[name] for name in sorted(tensors) if name.startswith(prefix)}
