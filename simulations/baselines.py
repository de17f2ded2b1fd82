"""What a federated run is compared with.

Every client alone, one model on everyone's data, popularity; where a client has several tasks, each of them in a run of
its own; and under a promise of privacy the runs that part its cost.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fedrec.components import join_clients, per_client, split_at
from fedrec.data import ClientData
from fedrec.data.split import concatenate
from fedrec.data.types import Ints
from fedrec.errors import UserError
from fedrec.evaluation.counts import Counts
from fedrec.evaluation.evaluate import NONE, PerUser, blocks, evaluate_all
from fedrec.evaluation.scorers import ModelScorer, PopularityScorer, Scorer, Tally
from fedrec.experiment.acting import acting, tasks
from fedrec.experiment.channel import public
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.holdings import clients_data, dataset, keys, reader, task_lists, tasks_for, tasks_of_all
from fedrec.experiment.parts import weight_column
from fedrec.experiment.peruser import write_users
from fedrec.experiment.records import CLOSED, NOT_CLOSED, NOT_SINGLE, OWN, SINGLE, Record, write_clients
from fedrec.metrics import Values
from fedrec.models.noisy import ALONE
from fedrec.tasks import Task, parse_task
from fedrec.training.cohort import owners
from simulations.check import check
from simulations.methods import METHODS, usual
from simulations.promises import stages, without_promise

CLOSED_FORMS = ("slist",)  # the strongest of ours on every data set that we know
BLOCK = 256  # users, of whole clients, that are measured at a time
CHEAP = 3e11  # clients times the cube of their items: what a closed form beside a run may cost
SAME = (  # fields of the data and of how they are tested
    *("clients", "dataset", "data_dir", "columns", "reading", "filters", "market", "partition", "skew", "volunteers"),
    *("split", "fractions", "candidates", "metrics", "history", "seed"),
)
PRESENT = {"participation": 1.0, "dropout": "0", "deadline": 0.0, "secure": {}, "newcomers": "", "asynchrony": {}}


def baseline(experiment: Experiment, method: str) -> Experiment:
    """Return the same experiment under the method `local` or `pooled`; data, model, seed and epochs stay.

    Nobody is drawn, no answer is lost, nobody comes later and there is no noise: training alone needs no messages.
    Nor has it the optimiser that a promise of privacy chose for its noise. What cannot act in it is at its default.
    """
    e = build({**without_promise(experiment), **METHODS[method].model_dump(), **PRESENT})
    return acting(e, usual(e))


def single_task(experiment: Experiment, task: str) -> Experiment:
    """Return the same experiment in which every client that has `task` has it alone, and any other its first task.

    Method, model, data, seed and who takes part stay, so that the difference is what a client's tasks do to each other.
    A weight of the task against the others falls away with them. Raises UserError where they cannot be parted.
    """
    if experiment.privacy.active:
        raise UserError("each task's run would spend a privacy budget of its own, on top of that of the run itself")
    parts = {}
    for client, text in per_client(experiment.task).items():
        names = {parse_task(part).name: next(split_at(part, "*")).strip() for part in split_at(text, ",")}
        parts[client] = names.get(task, next(iter(names.values())))
    e = build({**experiment.model_dump(), "task": join_clients(parts), "deadline": 0.0})
    return acting(e, usual(e))


def single_tasks(experiment: Experiment) -> tuple[dict[str, Experiment], str]:
    """Return the experiment of each task that a client has beside others; if one cannot be, none, and why."""
    clients = task_lists(experiment, clients_data(experiment))
    names = dict.fromkeys(task.name for tasks in clients if len(tasks) > 1 for task in tasks)
    try:
        singles = {name: single_task(experiment, name) for name in names}
        for e in singles.values():
            check(e)
    except UserError as error:
        return {}, str(error)
    return singles, ""


def closed_forms(experiment: Experiment) -> dict[str, Experiment]:
    """Return the models by sums, alone and pooled, that any other model which ranks is compared with, by name.

    They are of the same data, split, metrics and seed, and beside gradients cheap: where they would not be there are
    none. Sums with noise make another model than sums without, and ask for as much.
    """
    e, found = experiment, dict[str, Experiment]()
    same = {name: getattr(e, name) for name in SAME}
    same["reading"] = e.reading.model_copy(update={"repeats": "once"})  # the same rows, which sums do not weigh
    for method, cost in () if weight_column(e) else closed_costs(e).items():
        for kind in CLOSED_FORMS if cost <= CHEAP or e.privacy.summed else ():
            made = build({**same, **METHODS[method].model_dump(), "model": kind, "engine": "inline"})
            try:
                check(made)
            except UserError:
                continue
            found[f"{kind}-{method}"] = made
    return found


def closed_costs(experiment: Experiment) -> dict[str, float]:
    """Return what a closed form beside a run costs, clients times the cube of their items, by method.

    None beside a model that is by sums itself, unless these have noise.
    """
    e = experiment
    ranked = all(any(task.name == "rank" for task in group) for group in tasks(e))
    if (e.by_sums and not e.privacy.summed) or not ranked or e.split == "new-items":
        return {}
    each = float(len(dataset(e).items)) ** 3
    return {"local": len(clients_data(baseline(e, "local"))) * each, "pooled": each}


def left_out(experiment: Experiment) -> str:
    """Return which closed forms are not made, and why; an empty text if all are."""
    costs = {} if experiment.privacy.summed else closed_costs(experiment)
    dear = {method: cost for method, cost in costs.items() if cost > CHEAP}
    if costs and weight_column(experiment):
        return f"{' and '.join(CLOSED_FORMS)} is left out: it learns by sums, which know no weights of interactions"
    if not dear:
        return ""
    forms, whose = " and ".join(CLOSED_FORMS), " and ".join(f"--method {method}" for method in dear)
    cost = f"clients times the cube of the items are {max(dear.values()):.0e}, above {CHEAP:.0e}"
    return f"{forms} by {whose} is left out for its cost, {cost} (take --model {CLOSED_FORMS[0]})"


def comparisons(experiment: Experiment) -> tuple[dict[str, Experiment], dict[str, str]]:
    """Return the baselines to train by their folders, and by file why others are not, if so."""
    methods = () if experiment.privacy.summed else ("local", "pooled")  # of which `run_alone` is the first
    whole = {method: baseline(experiment, method) for method in methods if method != experiment.method}
    apart, why = single_tasks(experiment)
    closed = {f"{CLOSED}/{name}": e for name, e in closed_forms(experiment).items()}
    runs = {**whole, **closed, **stages(experiment), **{f"{SINGLE}/{task}": e for task, e in apart.items()}}
    notes = {NOT_SINGLE: why, NOT_CLOSED: left_out(experiment)}
    told = {name: text for name, text in notes.items() if text}
    return {name: e.model_copy(update={"tracker": "none"}) for name, e in runs.items()}, told


def beside(experiment: Experiment) -> dict[str, Callable[[Experiment, Path], None]]:
    """Return what is measured beside every run, without training, by the names of the baselines that it makes."""
    return {"popularity": run_popularity, **({"local": run_alone} if experiment.privacy.summed else {})}


def run_popularity(experiment: Experiment, home: Path) -> None:
    """Write how the non-personal baseline does on every client's test data: popularity among all clients.

    It counts the training rows of all clients, over the items of the client's own catalogue. The simulation does so for
    the report alone: nothing of it is sent to anybody, and it is not private. `OWN` beside it has the popularity among
    the client's own rows, which is the stronger one where tastes differ.
    """
    home.mkdir(parents=True)
    parts = clients_data(baseline(experiment, "local"))
    kinds, every, items = tasks_of_all(experiment, parts), parts.rows("train"), len(dataset(experiment).items)
    rows = [(every, every.user, every.item)]
    if any(task.part for task in kinds):  # a target of the user's own is of what one client has
        rows = [(part.train, part.users[part.train.user], part.items[part.train.item]) for part in parts]
    if experiment.volunteers:  # their rows stand in those of every client, and count once
        volunteers = public(experiment)
        others = [~np.isin(user, volunteers.users) for _, user, _ in rows]
        rows = [(train.take(kept), user, item[kept]) for (train, user, item), kept in zip(rows, others, strict=True)]
        rows.append(
            (volunteers.train, volunteers.users[volunteers.train.user], volunteers.items[volunteers.train.item])
        )
    tally = Tally.of(kinds, [(train, item) for train, _, item in rows], items)

    def offered(part: ClientData) -> Tally:
        return tally if len(part.items) == items else tally.take(part.items)

    def whole(datas: Sequence[ClientData]) -> dict[str, Counts]:
        if any(len(data.items) < items for data in datas):
            return {}
        return {name: Counts(np.zeros(len(datas), np.int64), items, *liked) for name, liked in totals.items()}

    totals = {t.name: named(tally.count[t.name]) for t in kinds if t.kind == "rank"}
    measure(experiment, home, popular(experiment, offered), whole)
    if len(parts) > 1:
        own = popular(experiment, lambda part: Tally.of(kinds, [(part.train, part.train.item)], len(part.items)))
        measure(experiment, home / OWN, own, partial(of_each, kinds))


def named(count: Values) -> tuple[Ints, Ints]:
    """Return the items that were liked, and how often, of the counts [items] of all."""
    liked = np.flatnonzero(count)
    return liked, count[liked].astype(np.int64)


def of_each(tasks: Sequence[Task], datas: Sequence[ClientData]) -> dict[str, Counts]:
    """Return how often each client's own users liked its items in training, by rank task."""
    rows, who = concatenate([data.train for data in datas]), owners([data.train for data in datas])
    each, width = np.arange(len(datas)), max(len(data.items) for data in datas)
    masks = {task.name: task.rows(rows) for task in tasks if task.kind == "rank"}
    return {name: Counts.count(each, who[mask], rows.item[mask], width) for name, mask in masks.items()}


def popular(experiment: Experiment, tally: Callable[[ClientData], Tally]) -> Callable[[ClientData], Scorer]:
    """Return what recommends to a client's users what the `tally` of each client says of its items."""
    return lambda data: PopularityScorer.of(experiment.tasks(data.name), tally(data), about=data.attributes)


def run_alone(experiment: Experiment, home: Path) -> None:
    """Write how the model of noisy sums does on every client's own exact sums, with nothing of the others.

    It has the same public classes of items and the same settings, is a client's own private head at c = 0, and costs no
    budget: nothing leaves a client.
    """

    def alone(data: ClientData) -> Scorer:
        heads = {f"heads.{task.name}.weight": torch.tensor([ALONE]) for task in tasks_for(experiment, data)}
        return ModelScorer(reader(experiment, data, "test"), heads)

    measure(experiment, home, alone)


def of_one(scorer: Callable[[ClientData], Scorer], datas: Sequence[ClientData], position: int) -> Scorer:
    """Return what recommends to the users of one of several clients."""
    return scorer(datas[position])


def measure(
    experiment: Experiment,
    home: Path,
    scorer: Callable[[ClientData], Scorer],
    counts: Callable[[Sequence[ClientData]], Mapping[str, Counts]] = lambda datas: NONE,
) -> None:
    """Write how what recommends to each client's users does on its test data; see `evaluate_all`."""
    home.mkdir(exist_ok=True, parents=True)
    record, users = Record(), list[PerUser]()
    for datas in blocks(clients_data(baseline(experiment, "local")), lambda data: len(data.users), BLOCK):
        tests = evaluate_all(
            partial(of_one, scorer, datas),
            datas,
            [experiment.tasks(data.name) for data in datas],
            "test",
            metrics=experiment.metrics,
            candidates=experiment.candidates,
            seed=experiment.seed,
            counts=counts(datas),
        )
        for test in tests:
            record.score(0, "test", test.metrics, "cpu")
            users += test.per_user
    write_users(home, users, keys(experiment))
    write_clients(home, record.clients)
