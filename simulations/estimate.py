"""What a run will take, before it starts: memory and time from the sizes of its data, as an estimate.

Every figure is a size times a constant of `COST`, the only place of constants. Seconds are those of one core that does
nothing else, bytes those of the largest moment. Both were measured on one core of a server, of single processes on the
synthetic market: processor time and peak memory of `launch`, and of each round, in runs that differ in one size (users,
items, rounds, `--eval-every`, clients of one user each, `mf` beside `mlp` and `slist`), by differences.
`tests/test_estimate.py` runs some and wants each within `TRUST` of its estimate.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from clients.device import devices
from clients.joining import remembers
from fedrec.components import per_client
from fedrec.data.store import PLACES
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data, dataset
from fedrec.experiment.parts import stacking_refusal
from fedrec.files import memory
from fedrec.models import SUMMED
from fedrec.models.quadratic import precision
from fedrec.params import covers
from fedrec.report.findings import size
from fedrec.report.profile import counted
from fedrec.training.common_start import LARGE
from simulations.baselines import CHEAP, baseline
from simulations.engines.nodes import MANY

WITHOUT = "it fits without its baselines: --no-compare"
TRUST = 4  # times too much or too little that an estimate may be, for runs of more than a second


class Cost(NamedTuple):
    """What was measured: bytes and seconds of one of each thing; see above."""

    process: float = 450e6  # bytes of a process with torch and flwr
    row: float = 250.0  # bytes of an interaction where it is read, split and held
    client: float = 10e3  # bytes of a client's state, apart from its tables
    copies: float = 5.0  # of a table that is trained: itself, what was sent, its sum, what is written
    start: float = 4.0  # seconds of the imports, and of the report
    spawn: float = 3.0  # seconds of the start of worker processes
    read: float = 2e-6  # seconds of a row that is read, split and held
    alone: float = 7.5e-3  # seconds of a client that is made, joins and is written
    turn: float = 2.7e-3  # seconds of its round apart from its rows: messages, admission, sums
    together: float = 3.5e-4  # seconds of both where many clients are one program
    stacked: float = 7e-5
    step: float = 2.3e-6  # seconds of a training row with its negatives, a table model of width 32
    dense: float = 2.5e-6  # seconds more of one through a network
    encoded: float = 100e-6  # seconds more of one whose user, or item, is read by an encoder (a guess)
    ranked: float = 15e-6  # seconds of a user's ranking, apart from its items
    score: float = 3.5e-10  # seconds of one item of it, a unit of width
    network: float = 2.2e-7  # seconds of one item of it through a network
    cube: float = 5.2e-11  # seconds of a cubed item of a client's sums
    pair: float = 1e-7  # seconds of a pair of a user's interactions in sums


COST = Cost()


class Sizes(NamedTuple):
    """What an experiment's clients hold together: `users` and `items` are summed over clients, `catalogue` is of all.

    `positives` are the rows from which ranking learns, `pairs` the pairs of interactions of one user.
    """

    rows: int
    positives: int
    users: int
    items: int
    clients: int
    catalogue: int
    pairs: int


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds that a run will take, by what takes them."""

    bytes: dict[str, float]
    seconds: dict[str, float]

    @property
    def memory(self) -> float:
        """Bytes of all processes of the run together."""
        return sum(self.bytes.values())

    @property
    def time(self) -> float:
        """Seconds of the whole run."""
        return sum(self.seconds.values())

    @property
    def fits(self) -> bool:
        """Whether the machine has the memory."""
        return self.memory <= memory()

    @property
    def refusal(self) -> str:
        """What is said of a run that takes more memory than there is."""
        most = max(self.bytes, key=self.bytes.__getitem__)
        found = f"found {size(self.memory)} by estimate, {size(self.bytes[most])} of them for {most}"
        return f"memory: a run must fit into {size(memory())}, {found}"

    def words(self) -> str:
        """Return the estimate in a sentence."""
        return (
            f"about {size(self.memory)} of memory and {lasting(self.time)} by estimate, which may be {TRUST} times off"
        )


def estimate(experiment: Experiment, compare: bool) -> Estimate:
    """Return what an experiment would take, with its baselines where it is to be compared; raises UserError."""
    e, sizes = experiment, sizes_of(experiment)
    others = [baseline(e, method) for method in ("local", "pooled") if compare and method != e.method]
    runs = [(e, sizes), *((other, pooled(sizes) if other.pool else sizes) for other in others)]
    hosts = processes(e, sizes.clients)
    held = {
        "processes": COST.process * hosts,
        "interactions": COST.row * sizes.rows * hosts,
        "clients": COST.client * sizes.clients,
        "tables": max(tables(other, s, hosts) for other, s in runs),
    }
    seconds = {
        "start": COST.start + COST.spawn * (hosts > 1) + COST.read * sizes.rows + joined(e, sizes),
        "rounds": rounds(e, sizes),
        "evaluation": evaluations(e, sizes),
    }
    beside = sum(rounds(other, s) + evaluations(other, s) for other, s in runs[1:])
    closed = sizes.catalogue**3
    if compare and not e.by_sums:
        beside += COST.cube * sum(cost for cost in (closed * sizes.clients, closed) if cost <= CHEAP)
    return Estimate(held, {**seconds, "baselines": beside})


def check_memory(experiment: Experiment, compare: bool) -> None:
    """Raise UserError if a run, or one of its baselines, would take more memory than there is."""
    found = estimate(experiment, compare)
    if not found.fits:
        bare = f" ({WITHOUT})" * (compare and estimate(experiment, False).fits)
        raise UserError(f"{found.refusal}{bare}")


def sizes_of(experiment: Experiment) -> Sizes:
    """Return the sizes of an experiment's data as its clients have them."""
    data, parts = dataset(experiment), clients_data(experiment)
    frame = data.interactions
    user = frame["user"].to_numpy(np.int64)
    if list(parts.names) == list(data.platforms):  # a user of several platforms is one of each
        user = user + len(data.users) * frame["platform"].to_numpy(np.int64)
    count = counted(user)[1].astype(np.float64)
    rows, users = sum(int(parts.row_counts(part).sum()) for part in PLACES), int(parts.user_counts().sum())
    share = rows / max(len(frame), 1)  # of the data, which others may not take part with
    return Sizes(
        rows,
        round(share * float(frame["positive"].sum())),
        users,
        int(parts.item_counts().sum()),
        len(parts),
        len(data.items),
        round(share * float((count * count).sum())),
    )


def pooled(sizes: Sizes) -> Sizes:
    """Return the sizes of one client that has everything."""
    return sizes._replace(clients=1, items=sizes.catalogue)


def processes(e: Experiment, clients: int) -> int:
    """Return how many processes read the data of a run and hold its clients."""
    if e.engine in ("inline", "batched"):
        return 1
    names = devices(e.device)
    slots = (os.cpu_count() or 1) if names == ["cpu"] else len(names)
    return 1 + (clients if e.engine == "superlink" else min(e.workers or slots, clients))


def width(e: Experiment) -> int:
    """Return the largest width of the clients' tables."""
    return max(int(text) for text in per_client(str(e.dim)).values())


def tables(e: Experiment, sizes: Sizes, hosts: int) -> float:
    """Return the bytes of what is learnt: tables by gradients, or sums over pairs of items and what is solved."""
    n = sizes.catalogue
    if e.solves and not e.alternates:
        whole = float(n) ** 2 * np.dtype(precision(n)).itemsize
        if e.sums.active:
            return COST.copies * 8 * sizes.items * e.sums.k + whole
        return whole * (1.5 * (hosts + 1) + 2 + 6 * sizes.clients * e.weighs)
    rows = sizes.users + n + items_held(e, sizes) * (not covers(e.share, "item_table") or e.personal)
    return COST.copies * 4 * (width(e) + 1) * float(rows)


def items_held(e: Experiment, sizes: Sizes) -> float:
    """Return how many rows of items all clients hold of tables of their own.

    Clients of one program that begin alike hold those that training has moved; see `fedrec.training.common_start`.
    """
    alike = one_program(e, sizes.clients) and not (e.personal or remembers(e) or e.agreement.active)
    own = any(":" in text for text in (*per_client(e.model).values(), e.transform))
    if not alike or own or sizes.items * (width(e) + 1) < LARGE:
        return sizes.items
    drawn = sizes.rows * e.rounds * e.local_epochs * len(e.phases) * (1 + e.num_negatives)
    return min(sizes.items, drawn)


def rounds(e: Experiment, sizes: Sizes) -> float:
    """Return the seconds in which a run trains."""
    workers = max(processes(e, sizes.clients) - 1, 1)
    if e.solves and not e.alternates:
        solved = float(sizes.catalogue) ** 3 * (sizes.clients if e.has_heads or not e.share or e.pool else 1)
        return COST.pair * sizes.pairs + COST.cube * solved / workers + turn(e, sizes) * e.rounds
    row = COST.step * (0.3 + 0.7 * width(e) / 32) + COST.dense * networks(e)
    if e.sequence.active or e.lora.active:
        row += COST.encoded
    names = max((text.split(",") for text in per_client(e.task).values()), key=len)
    each = sizes.positives if names[0].startswith("rank") else sizes.rows
    learnt = row * e.local_epochs * (each + sizes.rows * (len(names) - 1)) * (0.5 + e.num_negatives / 8)
    present = min(e.asynchrony.buffer / sizes.clients, 1.0) if e.asynchrony.buffer else e.participation
    return e.rounds * present * (learnt + turn(e, sizes)) / workers


def networks(e: Experiment) -> bool:
    """Return whether some client's model is a network, and no table alone."""
    return bool(set(per_client(e.model).values()) - {"mf", "item", *SUMMED})


def one_program(e: Experiment, clients: int) -> bool:
    """Return whether many clients are trained as one program."""
    many = e.engine == "process" and (e.stack == "yes" or (e.stack == "auto" and clients >= MANY))
    return (e.engine == "batched" or many) and not stacking_refusal(e)


def joined(e: Experiment, sizes: Sizes) -> float:
    """Return the seconds in which all clients are made, join and are written."""
    return sizes.clients * (COST.together if one_program(e, sizes.clients) else COST.alone)


def turn(e: Experiment, sizes: Sizes) -> float:
    """Return the seconds of a round of all clients, apart from their rows."""
    return sizes.clients * (COST.stacked if one_program(e, sizes.clients) else COST.turn)


def evaluations(e: Experiment, sizes: Sizes) -> float:
    """Return the seconds in which a run is evaluated: on validation in its rounds, and on the test in the end."""
    workers = max(processes(e, sizes.clients) - 1, 1)
    ranked = sizes.items / sizes.clients if e.candidates == "full" else e.candidates
    each = COST.ranked + ranked * (COST.network if networks(e) else COST.score * width(e))
    return (e.rounds / e.eval_every + 1) * sizes.users * each / workers


def lasting(seconds: float) -> str:
    """Return a time in the unit that reads best."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.2g} {unit}" if seconds < 100 * length else f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 10 else f"{seconds:.1f} seconds"


def lines(found: Estimate) -> Iterable[str]:
    """Yield the estimate as it is printed."""
    yield f"estimate: {found.words()}"
    yield "memory: " + ", ".join(f"{name} {size(n)}" for name, n in found.bytes.items())
    yield "time: " + ", ".join(f"{name} {lasting(s)}" for name, s in found.seconds.items() if s)
