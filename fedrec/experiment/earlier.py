"""A run by sums that another goes on from: its total, and what of it each client has to send to be exact again.

Sums add up, so a client whose data are others now owes the difference of its sums, a newcomer all of them, and one that
leaves what is to be subtracted: minus its own. Everybody else owes nothing.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedrec.data import ClientData, Clients, Listed
from fedrec.data.history import sequences
from fedrec.data.sources import listed
from fedrec.data.table import FRAME
from fedrec.data.types import Ints, Keys
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.holdings import clients_data, keys, own_sums, reader, weights_sent
from fedrec.experiment.records import load_params
from fedrec.files import named_values
from fedrec.folders import refuse_unfinished
from fedrec.keyed import nothing_like
from fedrec.models import SummedRecommender
from fedrec.models.summed import pack, unpack
from fedrec.params import Params
from fedrec.sharing import CROSS, GRAM, SUMS, is_sum

FORGOTTEN = "forgotten.csv"  # in the folder of a run: the users that it is without
TOGETHER = 2  # clients of whom none is told alone, where their sums change in one secure sum
DEFINED = ("past", "future", "whole", "length")  # fields of a quadratic model that its sums are made with


@dataclass(frozen=True)
class Earlier:
    """A finished run by sums: its experiment, and the clients whose sums its total has."""

    experiment: Experiment
    clients: frozenset[str]


def experiment_of(home: Path) -> Experiment:
    """Return the experiment of a run; raises UserError if there is no run."""
    if not home.is_dir():
        raise UserError(f"run: must be the folder of a finished run, found {str(home)!r}")
    refuse_unfinished(home)
    record = named_values(home / "experiment.json", "run")
    if not isinstance(record.get("experiment"), dict):
        raise UserError(f"run: {home / 'experiment.json'} must have the key 'experiment', found none")
    return moved(build(record["experiment"]), home)


def moved(experiment: Experiment, home: Path) -> Experiment:
    """Return the experiment of a run whose folder may have been moved since, with the files that lie in that folder."""
    run = home.absolute().parents[1] if home.absolute().parent.name == "baselines" else home.absolute()
    for field, name in (("data_dir", FRAME), ("forgotten", FORGOTTEN)):
        path = getattr(experiment, field)
        if path is not None and path.name == name and not path.exists() and not listed(path):
            experiment = experiment.model_copy(update={field: run / name})
    return experiment


@functools.lru_cache(maxsize=4)
def earlier(run: Path) -> Earlier:
    """Return the run by sums in a folder, kept for the process; raises UserError for any other."""
    experiment, record = experiment_of(run), named_values(run / "experiment.json", "run")
    if not experiment.adds_up or not isinstance(record.get("summed"), list):
        raise UserError(f"start: must be a run of a model by sums (as of --model slist), found {run}")
    return Earlier(experiment, frozenset(map(str, record["summed"])))


def check_start(experiment: Experiment) -> None:
    """Raise UserError for an experiment that cannot go on from the run it names, since its sums are others."""
    if experiment.start is None:
        return
    if experiment.privacy.active or earlier(experiment.start).experiment.privacy.active:
        raise UserError("start: nothing is added to a released total; a new noisy release of everything must be made")
    old, new, leaving = earlier(experiment.start), experiment, {data.name for data in leavers(experiment)}
    pairs = [("model", old.experiment.model, new.model), ("share", old.experiment.share, new.share)]
    pairs += [(f"quadratic.{n}", getattr(old.experiment.quadratic, n), getattr(new.quadratic, n)) for n in DEFINED]
    for name, before, now in pairs:
        if before != now:
            raise UserError(f"{name}: must be {before} as in the run to go on from, whose sums it makes, found {now}")
    if old.experiment.pool or new.pool or not new.share:
        raise UserError("start: must be a run of several clients that share their sums, and go on as one")
    if any(e.sums.active or e.weighs or weights_sent(e) or not is_dense(e) for e in (old.experiment, new)):
        raise UserError(
            "start: must be the total of sums over all pairs of items, of more than two clients (of two it is the "
            "other's sums: add --reveal), found a run that has another, or none"
        )
    if gone := leaving - set(new.without):
        text = f"{', '.join(sorted(gone))} whose sums it has, and whom these data lack"
        raise UserError(f"start: must lose no client but those that leave (add --without), found {text}")
    total(new)
    if new.secure.active:
        new.secure.needed(len(clients_data(new)))  # the new total is the sum of those
        if len(changed(new)) < TOGETHER:
            raise UserError(
                "start: what is added to a secure sum tells the sums of those who send, and of nobody else, where "
                f"they are fewer than {TOGETHER}; take --no-secure.active to tell the server"
            )


def is_dense(experiment: Experiment) -> bool:
    """Return whether a client's sums are G and C over all pairs of items."""
    names = reader(experiment, clients_data(experiment)[0], "train").shapes(0, 0, ())
    return {name for name in names if is_sum(name)} == {GRAM, CROSS}


def leavers(experiment: Experiment) -> tuple[ClientData, ...]:
    """Return, holding nothing, the clients whose sums are in the total that is gone on from and that are there no more.

    They have a part in the one round, in which what the total has of them is subtracted.
    """
    if experiment.start is None:
        return ()
    present, none = clients_data(experiment), np.zeros(0, np.int64)
    gone = sorted(earlier(experiment.start).clients - set(present.names))
    nobody = present[0].without(np.arange(len(present[0].users)))
    return tuple(ClientData(name, none, nobody.items, nobody.train, nobody.validation, nobody.test) for name in gone)


def parties(experiment: Experiment) -> Clients:
    """Return what every client of the grid holds: those that learn, and behind them those that leave."""
    present, gone = clients_data(experiment), leavers(experiment)
    return Listed((*present, *gone)) if gone else present


def changed(experiment: Experiment) -> frozenset[str]:
    """Return the clients whose sums are not as in the total that is gone on from."""
    assert experiment.start is not None
    old = earlier(experiment.start)
    before = {data.name: data for data in clients_data(old.experiment) if data.name in old.clients}
    others = {
        data.name
        for data in clients_data(experiment)
        if data.name not in before or not alike(old.experiment, before[data.name], experiment, data)
    }
    return frozenset(others | {data.name for data in leavers(experiment)})


def alike(old: Experiment, before: ClientData, new: Experiment, after: ClientData) -> bool:
    """Return whether a client learns from the same sequences in both experiments."""
    rows = []
    for e, data in ((old, before), (new, after)):
        met = sequences(data, [data.train], e.seed)
        rows.append((keys(e)[1][data.items[met.item]], met.start))
    return all(np.array_equal(one, other) for one, other in zip(*rows, strict=True))


def total(experiment: Experiment) -> Params:
    """Return the total that an experiment goes on from, over its own catalogue; raises UserError."""
    assert experiment.start is not None
    saved = load_params(experiment.start / "model" / "shared.safetensors")
    return over(experiment, {name: value for name, value in saved.items() if name.startswith(SUMS)})


def past_sums(experiment: Experiment, name: str) -> Params:
    """Return what the total that is gone on from has of a client, made again of the data that it had then."""
    assert experiment.start is not None
    old = earlier(experiment.start)
    data = next((data for data in clients_data(old.experiment) if data.name == name), None)
    if name not in old.clients or data is None:
        model = reader(experiment, clients_data(experiment)[0], "train")
        assert isinstance(model, SummedRecommender)
        return nothing_like(model.shapes(0, 0, ()))
    return over(experiment, own_sums(old.experiment, data))


def over(experiment: Experiment, sums: Params) -> Params:
    """Return sums of the earlier run over an experiment's own catalogue; raises UserError if it lacks an item of them.

    Items that are new have zeros.
    """
    assert experiment.start is not None
    old, new = keys(earlier(experiment.start).experiment)[1], keys(experiment)[1]
    if np.array_equal(old, new):
        return sums
    place, known = places(old, new)
    gram, cross = unpack(sums)
    lost = ~known & (np.diagonal(gram) != 0)
    if lost.any():
        text = f"{old[lost][0]!r} and {int(lost.sum()) - 1} more" if lost.sum() > 1 else f"{old[lost][0]!r}"
        raise UserError(f"start: the catalogue must have every item of the sums to go on from, found it without {text}")
    wide = np.zeros((2, len(new), len(new)), gram.dtype)
    for target, source in zip(wide, (gram, cross), strict=True):
        target[np.ix_(place, place)] = source[np.ix_(known, known)]
    return pack(wide[0], wide[1])


def places(old: Keys, new: Keys) -> tuple[Ints, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Return where the old keys that are known are among the new ones, and the mask of those."""
    where = {key: number for number, key in enumerate(new)}
    known = np.array([key in where for key in old], np.bool_)
    return np.array([where[key] for key in old[known]], np.int64), known
